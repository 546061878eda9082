//! A small obvious model of the store, random transactions, and the comparison of both.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_store::{
    CollectionId, Device, Engine, Identity, Index, MemDevice, MemIndex, ObjectKey, Options, Position, Transaction, TxOp,
};
use holdfast_types::{ClusterId, DiskUuid, OsdId};
use rand::Rng;

pub const IDENTITY: Identity = Identity { cluster: ClusterId([7; 16]), disk: DiskUuid([9; 16]), osd: OsdId(3) };

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelObject {
    pub bytes: Vec<u8>,
    pub attrs: BTreeMap<Vec<u8>, Bytes>,
    pub rows: BTreeMap<Vec<u8>, Bytes>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelCollection {
    pub objects: BTreeMap<ObjectKey, ModelObject>,
    pub meta: BTreeMap<Vec<u8>, Bytes>,
    /// The keys that objects may have.
    pub range: (Bytes, Option<Bytes>),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model(pub BTreeMap<CollectionId, ModelCollection>);

fn in_range(key: &[u8], start: &[u8], end: Option<&[u8]>) -> bool {
    key >= start && end.is_none_or(|end| key < end)
}

impl Model {
    fn c(&mut self, c: CollectionId) -> &mut ModelCollection {
        self.0.get_mut(&c).expect("the generator names collections that exist")
    }

    fn o(&mut self, c: CollectionId, o: &ObjectKey) -> &mut ModelObject {
        self.c(c).objects.entry(o.clone()).or_default()
    }

    pub fn apply(&mut self, tx: &Transaction) {
        for op in &tx.ops {
            match op {
                TxOp::CreateCollection { c } => assert!(self.0.insert(*c, ModelCollection::default()).is_none()),
                TxOp::SplitCollection { c, into, at } => {
                    let parent = self.c(*c);
                    let split = ObjectKey::new(at.clone()).unwrap();
                    let objects = parent.objects.split_off(&split);
                    let (from, to) = parent.range.clone();
                    let at = Bytes::from(at.clone()).max(from.clone());
                    let at = to.clone().map_or(at.clone(), |to| to.min(at));
                    parent.range = (from, Some(at.clone()));
                    let child = ModelCollection { objects, meta: parent.meta.clone(), range: (at, to) };
                    assert!(self.0.insert(*into, child).is_none());
                }
                TxOp::RemoveCollection { c } => assert!(self.0.remove(c).is_some()),
                TxOp::Touch { c, o } => {
                    self.o(*c, o);
                }
                TxOp::Write { c, o, offset, data } => {
                    let bytes = &mut self.o(*c, o).bytes;
                    let (from, to) = (*offset as usize, *offset as usize + data.len());
                    if !data.is_empty() {
                        bytes.resize(bytes.len().max(to), 0);
                        bytes[from..to].copy_from_slice(data);
                    }
                }
                TxOp::Truncate { c, o, size } => self.o(*c, o).bytes.resize(*size as usize, 0),
                TxOp::Zero { c, o, offset, length } => {
                    let bytes = &mut self.o(*c, o).bytes;
                    let (from, to) = (*offset as usize, (*offset + *length) as usize);
                    if *length > 0 {
                        bytes.resize(bytes.len().max(to), 0);
                        bytes[from..to].fill(0);
                    }
                }
                TxOp::Remove { c, o } => {
                    self.c(*c).objects.remove(o);
                }
                TxOp::SetAttr { c, o, name, value } => {
                    self.o(*c, o).attrs.insert(name.clone(), value.clone());
                }
                TxOp::RemoveAttr { c, o, name } => {
                    if let Some(object) = self.c(*c).objects.get_mut(o) {
                        object.attrs.remove(name);
                    }
                }
                TxOp::PutRows { c, o, rows } => self.o(*c, o).rows.extend(rows.iter().cloned()),
                TxOp::DeleteRows { c, o, keys } => {
                    if let Some(object) = self.c(*c).objects.get_mut(o) {
                        keys.iter().for_each(|key| drop(object.rows.remove(key)));
                    }
                }
                TxOp::DeleteRowRange { c, o, start, end } => {
                    if let Some(object) = self.c(*c).objects.get_mut(o) {
                        object.rows.retain(|key, _| !in_range(key, start, end.as_deref()));
                    }
                }
                TxOp::PutMeta { c, key, value } => {
                    self.c(*c).meta.insert(key.clone(), value.clone());
                }
                TxOp::DeleteMeta { c, key } => {
                    self.c(*c).meta.remove(key);
                }
                TxOp::DeleteMetaRange { c, start, end } => {
                    self.c(*c).meta.retain(|key, _| !in_range(key, start, end.as_deref()));
                }
            }
        }
    }

    /// Reads all that the engine has.
    pub fn read<D: Device, I: Index>(engine: &Engine<D, I>) -> Model {
        let mut model = Model::default();
        for c in engine.collections() {
            let mut collection = ModelCollection::default();
            let mut after: Option<ObjectKey> = None;
            loop {
                let page = engine.list_objects(c, after.as_ref(), 3).unwrap();
                let Some(last) = page.last() else { break };
                after = Some(last.clone());
                for o in page {
                    let size = engine.stat(c, &o).unwrap().expect("a listed object exists").size;
                    let bytes = engine.read(c, &o, 0, size + 9).unwrap().to_vec();
                    assert_eq!(bytes.len() as u64, size);
                    let attrs = engine.attrs(c, &o).unwrap();
                    let page = engine.rows_scan(c, &o, b"", None, usize::MAX, usize::MAX).unwrap();
                    let rows = page.rows.into_iter().map(|(key, value)| (key.to_vec(), value)).collect();
                    collection.objects.insert(o, ModelObject { bytes, attrs, rows });
                }
            }
            let page = engine.meta_scan(c, b"", None, usize::MAX, usize::MAX).unwrap();
            collection.meta = page.rows.into_iter().map(|(key, value)| (key.to_vec(), value)).collect();
            collection.range = engine.collection_range(c).expect("a collection");
            model.0.insert(c, collection);
        }
        model
    }

    /// Panics where the engine has something else.
    #[track_caller]
    pub fn check<D: Device, I: Index>(&self, engine: &Engine<D, I>, what: &str) {
        let found = Model::read(engine);
        if *self == found {
            return;
        }
        assert_eq!(self.0.keys().collect::<Vec<_>>(), found.0.keys().collect::<Vec<_>>(), "{what}: collections");
        for (c, expected) in &self.0 {
            let found = &found.0[c];
            assert_eq!(expected.range, found.range, "{what}: range of {c}");
            assert_eq!(expected.meta, found.meta, "{what}: metadata of {c}");
            let names = |m: &ModelCollection| m.objects.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(expected), names(found), "{what}: objects of {c}");
            for (o, expected) in &expected.objects {
                let found = &found.objects[o];
                assert_eq!(expected.attrs, found.attrs, "{what}: attributes of {o}");
                assert_eq!(expected.rows, found.rows, "{what}: rows of {o}");
                let differ = expected.bytes.iter().zip(&found.bytes).position(|(a, b)| a != b);
                assert_eq!(expected.bytes.len(), found.bytes.len(), "{what}: size of {o}");
                assert_eq!(None, differ, "{what}: bytes of {o}");
            }
        }
        unreachable!("models differ in nothing");
    }
}

pub fn collection(number: u32) -> CollectionId {
    CollectionId { pool: 1, seed: number }
}

pub fn object(name: &str) -> ObjectKey {
    ObjectKey::new(name.as_bytes().to_vec()).unwrap()
}

pub fn data(rng: &mut impl Rng, bytes: usize) -> Bytes {
    let mut data = vec![0; bytes];
    rng.fill_bytes(&mut data);
    data.into()
}

fn small_key(rng: &mut impl Rng) -> Vec<u8> {
    vec![b'a' + rng.random_range(0..6u8); rng.random_range(0..3)]
}

/// A transaction that fits `model`, which it is applied to.
pub fn random_tx(rng: &mut impl Rng, model: &mut Model, bytes_max: usize) -> Transaction {
    let mut tx = Transaction::new();
    for _ in 0..rng.random_range(1..5) {
        let op = random_op(rng, model, bytes_max);
        model.apply(&Transaction { ops: vec![op.clone()] });
        tx.push(op);
    }
    tx
}

fn random_op(rng: &mut impl Rng, model: &Model, bytes_max: usize) -> TxOp {
    let c = collection(rng.random_range(0..3));
    if !model.0.contains_key(&c) {
        return TxOp::CreateCollection { c };
    }
    let o = ObjectKey::new(vec![b"\x00ab\xff"[rng.random_range(0..4)]; rng.random_range(1..3)]).unwrap();
    let into = collection(rng.random_range(0..3));
    if rng.random_range(0..12) == 0 && !model.0.contains_key(&into) {
        return TxOp::SplitCollection { c, into, at: o.as_bytes().to_vec() };
    }
    let (from, to) = &model.0[&c].range;
    if !in_range(o.as_bytes(), from, to.as_deref()) {
        return TxOp::PutMeta { c, key: small_key(rng), value: data(rng, 20) };
    }
    let offset = rng.random_range(0..bytes_max as u64);
    let range = |rng: &mut _| (small_key(rng), if Rng::random(rng) { Some(small_key(rng)) } else { None });
    match rng.random_range(0..40) {
        0 => TxOp::RemoveCollection { c },
        1..=2 => TxOp::Touch { c, o },
        3..=14 => {
            let count = rng.random_range(0..bytes_max);
            TxOp::Write { c, o, offset: if rng.random() { 0 } else { offset }, data: data(rng, count) }
        }
        15..=16 => TxOp::Truncate { c, o, size: offset },
        17..=18 => TxOp::Zero { c, o, offset, length: rng.random_range(0..bytes_max as u64) },
        19..=21 => TxOp::Remove { c, o },
        22..=24 => TxOp::SetAttr { c, o, name: small_key(rng), value: data(rng, 9) },
        25 => TxOp::RemoveAttr { c, o, name: small_key(rng) },
        26..=29 => {
            let rows = (0..rng.random_range(0..4)).map(|_| (small_key(rng), data(rng, 7))).collect();
            TxOp::PutRows { c, o, rows }
        }
        30 => TxOp::DeleteRows { c, o, keys: vec![small_key(rng), small_key(rng)] },
        31 => {
            let (start, end) = range(rng);
            TxOp::DeleteRowRange { c, o, start, end }
        }
        32..=36 => TxOp::PutMeta { c, key: small_key(rng), value: data(rng, 20) },
        37 => TxOp::DeleteMeta { c, key: small_key(rng) },
        _ => {
            let (start, end) = range(rng);
            TxOp::DeleteMetaRange { c, start, end }
        }
    }
}

/// Sizes for tests: segments that fill after a few transactions.
pub fn tiny(sector_bytes: u32) -> Options {
    Options {
        segment_bytes: 64 << 10,
        sector_bytes,
        checksum_block_bytes: 1024,
        reserve_percent: 2,
        index_flush_bytes: 64 << 10,
        onode_cache_bytes: 4 << 10, // a few onodes: entries come and go
    }
}

pub const DEVICE_BYTES: u64 = (128 << 10) + 20 * (64 << 10);

pub type MemEngine = Engine<MemDevice, MemIndex>;

pub fn new_engine(options: &Options) -> (MemDevice, MemIndex, MemEngine) {
    let (device, index) = (MemDevice::new(DEVICE_BYTES), MemIndex::new());
    let engine = Engine::format(device.clone(), index.clone(), IDENTITY, options.clone()).unwrap();
    (device, index, engine)
}

pub fn reopen(device: &MemDevice, index: &MemIndex, options: &Options) -> MemEngine {
    Engine::open(device.clone(), index.clone(), options.clone()).unwrap()
}

/// What was submitted, and where it is in the log: enough to say what a crash may leave.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub base: Model,
    pub submitted: Vec<(Position, Transaction)>,
    pub acked: Position,
}

impl History {
    /// The state after all transactions up to `position`.
    pub fn at(&self, position: Position) -> Model {
        let mut model = self.base.clone();
        for (_, tx) in self.submitted.iter().take_while(|(at, _)| *at <= position) {
            model.apply(tx);
        }
        model
    }
}
