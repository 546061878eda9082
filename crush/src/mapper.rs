//! The mapping itself: descends the hierarchy by pseudo-random draws until enough distinct devices are found.
//!
//! Every detail is fixed by compatibility: the order of the checks, which attempt number enters which draw, what a
//! failed attempt leaves behind. Source: S. Weil et al., "CRUSH: Controlled, Scalable, Decentralized Placement of
//! Replicated Data" (SC 2006), and the behaviour of Ceph 16.2 under the jewel tunables, which the golden vectors record.
//!
//! Work is bounded whatever the map: see [`DRAWS_MAX`].

use holdfast_types::OsdId;

use crate::engine::{Engine, Node, Program};
use crate::hash::{hash32_2, hash32_3};
use crate::model::{BucketAlg, ChooseMode, DEVICE_TYPE, ItemId, Step, TypeId, WEIGHT_ONE};
use crate::straw2;

/// The result of a position that stays empty: Ceph's `CRUSH_ITEM_NONE`.
pub const ITEM_NONE: ItemId = 0x7fff_ffff;
/// A position that is not decided yet.
const ITEM_UNDECIDED: ItemId = 0x7fff_fffe;

/// The most item draws for one mapping. It bounds what a hostile map can cost to some 100 ms. An honest one stays far
/// below: 20 positions over 1,000 hosts, all 100 tries failing, draw 3 million items. Positions that are open when it is
/// reached stay empty.
pub const DRAWS_MAX: u64 = 1 << 24;
/// What entering a bucket costs besides its items, in draws.
const DRAWS_PER_BUCKET: u64 = 8;

/// Buffers of a mapping, to be reused by the next one.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// What the steps so far have chosen.
    chosen: Vec<ItemId>,
    /// What the running step chooses.
    next: Vec<ItemId>,
    /// The devices beneath `next`.
    leaves: Vec<ItemId>,
    /// What was emitted.
    result: Vec<ItemId>,
}

/// The state of one mapping.
struct Mapper<'a> {
    engine: &'a Engine,
    reweights: &'a [u32],
    x: u32,
    draws_left: u64,
}

/// What one choose step asks for.
#[derive(Clone, Copy)]
struct Request {
    /// How many positions the step would fill, if the result had room; it enters the draws of `indep`.
    numrep: u32,
    type_id: TypeId,
    leaf: bool,
    tries: u32,
    leaf_tries: u32,
}

/// The end of one descent.
enum Found {
    /// An item of the wanted type.
    Item(ItemId),
    /// A bucket without items: another attempt may do better.
    Empty,
    /// A device above the wanted level, or no draws left: no attempt would do better.
    Never,
}

/// What is to be mapped.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a> {
    pub(crate) x: u32,
    /// How many positions are wanted.
    pub(crate) num_rep: usize,
    /// By OSD id; an OSD beyond the end is out.
    pub(crate) reweights: &'a [u32],
    /// The map's tunable `choose_total_tries`.
    pub(crate) total_tries: u32,
}

/// Runs a rule. The result is item ids as Ceph gives them, with [`ITEM_NONE`] for holes.
pub(crate) fn run<'w>(
    engine: &Engine,
    program: &Program,
    query: Query<'_>,
    workspace: &'w mut Workspace,
) -> &'w [ItemId] {
    let Query { x, num_rep, reweights, total_tries } = query;
    let mut mapper = Mapper { engine, reweights, x, draws_left: DRAWS_MAX };
    // The tunable counts retries, a rule's own setting counts attempts.
    let mut tries = total_tries.saturating_add(1);
    let mut leaf_tries = 0;
    let Workspace { chosen, next, leaves, result } = workspace;
    chosen.clear();
    result.clear();
    for step in program {
        match *step {
            Step::Take { item, .. } => {
                chosen.clear();
                chosen.push(item);
            }
            Step::SetChooseTries(value) if value > 0 => tries = value,
            Step::SetChooseleafTries(value) if value > 0 => leaf_tries = value,
            Step::SetChooseTries(_) | Step::SetChooseleafTries(_) | Step::Restate(_) => {}
            Step::Choose { mode, count, type_id, leaf } => {
                let wanted = if count > 0 { i64::from(count) } else { i64::from(count) + num_rep as i64 };
                // `descend_once`: beneath an item one attempt is made, unless the rule says otherwise.
                let numrep = u32::try_from(wanted).unwrap_or(0);
                let request = Request { numrep, type_id, leaf, tries, leaf_tries: leaf_tries.max(1) };
                mapper.choose(chosen, mode, request, num_rep, next, leaves);
                std::mem::swap(chosen, if leaf { &mut *leaves } else { &mut *next });
            }
            Step::Emit => {
                let room = num_rep - result.len();
                result.extend(chosen.iter().take(room));
                chosen.clear();
            }
        }
    }
    result
}

impl Mapper<'_> {
    /// One choose step: for each item so far, up to `request.numrep` items beneath it.
    fn choose(
        &mut self,
        from: &[ItemId],
        mode: ChooseMode,
        request: Request,
        num_rep: usize,
        out: &mut Vec<ItemId>,
        leaves: &mut Vec<ItemId>,
    ) {
        out.clear();
        leaves.clear();
        if request.numrep == 0 {
            return;
        }
        for item in from {
            // A device or a hole has nothing beneath it.
            let Some(node) = self.engine.node(*item) else { continue };
            let start = out.len();
            let room = (request.numrep as usize).min(num_rep - start);
            out.resize(start + room, ITEM_UNDECIDED);
            leaves.resize(start + room, ITEM_UNDECIDED);
            let (Some(out_here), Some(leaves_here)) = (out.get_mut(start..), leaves.get_mut(start..)) else { continue };
            match mode {
                ChooseMode::Firstn => {
                    let filled = self.firstn(node, request, out_here, leaves_here);
                    out.truncate(start + filled);
                    leaves.truncate(start + filled);
                }
                ChooseMode::Indep => self.indep(node, request, out_here, leaves_here),
            }
        }
    }

    /// Fills `out` from the front with distinct items beneath `start`, and `leaves` with a device beneath each; returns
    /// how many.
    fn firstn(&mut self, start: &Node, request: Request, out: &mut [ItemId], leaves: &mut [ItemId]) -> usize {
        let mut filled = 0;
        for rep in 0..request.numrep {
            if filled == out.len() || self.draws_left == 0 {
                break;
            }
            for attempt in 0..request.tries {
                let r = rep.wrapping_add(attempt);
                let item = match self.descend(start, request.type_id, |_| r) {
                    Found::Item(item) => item,
                    Found::Empty => continue,
                    Found::Never => break,
                };
                let (Some(taken), Some(taken_leaves)) = (out.get(..filled), leaves.get(..filled)) else { break };
                if taken.contains(&item) {
                    continue;
                }
                let leaf = if !request.leaf || item >= 0 {
                    Some(item)
                } else {
                    self.firstn_leaf(item, r, request.leaf_tries, taken_leaves)
                };
                let Some(leaf) = leaf else { continue };
                if request.type_id == DEVICE_TYPE && self.is_out(item) {
                    continue;
                }
                if let (Some(out), Some(leaf_out)) = (out.get_mut(filled), leaves.get_mut(filled)) {
                    (*out, *leaf_out) = (item, leaf);
                }
                filled += 1;
                break;
            }
        }
        filled
    }

    /// A device beneath `item` that is in and not `taken`. Its draws continue from the parent's `r` (`vary_r` 1), and
    /// not from its position (`stable` 1).
    fn firstn_leaf(&mut self, item: ItemId, parent_r: u32, tries: u32, taken: &[ItemId]) -> Option<ItemId> {
        let node = self.engine.node(item)?;
        for attempt in 0..tries {
            let r = parent_r.wrapping_add(attempt);
            match self.descend(node, DEVICE_TYPE, |_| r) {
                Found::Item(leaf) if !taken.contains(&leaf) && !self.is_out(leaf) => return Some(leaf),
                Found::Item(_) | Found::Empty => {}
                Found::Never => return None,
            }
        }
        None
    }

    /// Decides every position of `out` and `leaves`, each on its own as far as possible; holes are [`ITEM_NONE`].
    fn indep(&mut self, start: &Node, request: Request, out: &mut [ItemId], leaves: &mut [ItemId]) {
        out.fill(ITEM_UNDECIDED);
        leaves.fill(ITEM_UNDECIDED);
        let mut undecided = out.len();
        for attempt in 0..request.tries {
            if undecided == 0 {
                break;
            }
            for position in 0..out.len() {
                if out.get(position) != Some(&ITEM_UNDECIDED) {
                    continue;
                }
                // How an attempt number enters depends on the bucket that is drawn from; a leaf continues from the
                // number of the last draw.
                let mut r = 0;
                let at = |node: &Node| {
                    r = indep_r(node, position as u32, request.numrep, attempt);
                    r
                };
                let item = match self.descend(start, request.type_id, at) {
                    Found::Item(item) => item,
                    Found::Empty => continue,
                    Found::Never => {
                        decide(out, leaves, position, ITEM_NONE, ITEM_NONE);
                        undecided -= 1;
                        continue;
                    }
                };
                if out.contains(&item) {
                    continue;
                }
                let leaf =
                    if request.leaf && item < 0 { self.indep_leaf(item, position as u32, r, request) } else { item };
                // What is written here stays when the item is refused below, as in Ceph: when every attempt fails, the
                // last leaf that was seen is the result.
                if let Some(leaf_out) = leaves.get_mut(position) {
                    *leaf_out = leaf;
                }
                if leaf == ITEM_NONE || (request.type_id == DEVICE_TYPE && self.is_out(item)) {
                    continue;
                }
                decide(out, leaves, position, item, leaf);
                undecided -= 1;
            }
        }
        for item in out.iter_mut().chain(leaves) {
            if *item == ITEM_UNDECIDED {
                *item = ITEM_NONE;
            }
        }
    }

    /// A device beneath `item` for this position, or [`ITEM_NONE`]. Devices of other positions are not looked at: they
    /// lie beneath other items.
    fn indep_leaf(&mut self, item: ItemId, position: u32, parent_r: u32, request: Request) -> ItemId {
        let Some(node) = self.engine.node(item) else { return ITEM_NONE };
        let first = position.wrapping_add(parent_r);
        for attempt in 0..request.leaf_tries {
            match self.descend(node, DEVICE_TYPE, |node| indep_r(node, first, request.numrep, attempt)) {
                Found::Item(leaf) if !self.is_out(leaf) => return leaf,
                Found::Item(_) | Found::Empty => {}
                Found::Never => return ITEM_NONE,
            }
        }
        ITEM_NONE
    }

    /// Draws from bucket to bucket until an item of the wanted type. Ends because the hierarchy has no cycles.
    fn descend(&mut self, start: &Node, type_id: TypeId, mut r: impl FnMut(&Node) -> u32) -> Found {
        let mut node = start;
        loop {
            let Some(left) = self.draws_left.checked_sub(node.ids.len() as u64 + DRAWS_PER_BUCKET) else {
                self.draws_left = 0;
                return Found::Never;
            };
            self.draws_left = left;
            let r = r(node);
            let Some(&item) = node.ids.get(draw(node, self.x, r)) else { return Found::Empty };
            if item >= 0 {
                return if type_id == DEVICE_TYPE { Found::Item(item) } else { Found::Never };
            }
            let Some(child) = self.engine.node(item) else { return Found::Never };
            if child.type_id == type_id {
                return Found::Item(item);
            }
            node = child;
        }
    }

    /// Whether a device refuses this input: by its reweight, in proportion; wholly, when it has none.
    fn is_out(&self, device: ItemId) -> bool {
        let reweight = usize::try_from(device).ok().and_then(|index| self.reweights.get(index)).copied().unwrap_or(0);
        reweight < WEIGHT_ONE && (reweight == 0 || (hash32_2(self.x, device.cast_unsigned()) & 0xffff) >= reweight)
    }
}

/// Which draw a position makes in an attempt. In a uniform bucket whose size the count divides, stepping by the count
/// would meet the same items again.
fn indep_r(node: &Node, first: u32, numrep: u32, attempt: u32) -> u32 {
    let again = node.alg == BucketAlg::Uniform && (node.ids.len() as u64).is_multiple_of(u64::from(numrep));
    let step = if again { numrep.wrapping_add(1) } else { numrep };
    first.wrapping_add(step.wrapping_mul(attempt))
}

fn decide(out: &mut [ItemId], leaves: &mut [ItemId], position: usize, item: ItemId, leaf: ItemId) {
    if let (Some(out), Some(leaf_out)) = (out.get_mut(position), leaves.get_mut(position)) {
        (*out, *leaf_out) = (item, leaf);
    }
}

/// The index of the item that a bucket draws; out of range when it is empty.
#[inline]
fn draw(node: &Node, x: u32, r: u32) -> usize {
    match node.alg {
        BucketAlg::Straw2 => straw2::draw(&node.ids, &node.weights, x, r),
        BucketAlg::Uniform => uniform(node.id, node.ids.len() as u32, x, r),
    }
}

/// The item at place `r` of a permutation that `x` and the bucket determine.
///
/// The permutation is a Fisher-Yates shuffle: step `p` swaps place `p` with a place from `p` on. One place of it is
/// found without a table by walking the swaps back.
fn uniform(id: ItemId, size: u32, x: u32, r: u32) -> usize {
    let Some(place) = r.checked_rem(size) else { return 0 };
    let mut at = place;
    for p in (0..=place).rev() {
        // The last step has nothing to swap with.
        let swap_with = if p + 1 < size { p + hash32_3(x, id.cast_unsigned(), p) % (size - p) } else { p };
        if at == swap_with {
            at = p;
        } else if at == p {
            at = swap_with;
        }
    }
    at as usize
}

/// A result item as an OSD.
pub(crate) fn osd(item: ItemId) -> Option<OsdId> {
    if item == ITEM_NONE { None } else { u32::try_from(item).ok().map(OsdId) }
}
