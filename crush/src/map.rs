//! The checked map: its doors, its encoding, and mapping.

use holdfast_types::OsdId;
use minicbor::{Decode, Encode};

use crate::engine::Engine;
use crate::ids::allocate_shadow_ids;
use crate::mapper::{self, Query, Workspace};
use crate::model::{ItemId, Parts, RuleId};
use crate::validate::{InvalidMap, check};

/// A CRUSH map that can be trusted: every way in ([`CrushMap::from_parts`], [`CrushMap::parse_text`], decoding, and
/// every edit) checks it whole. Mapping therefore never fails, never panics and always ends.
///
/// It is encoded as its [`Parts`]; what mapping needs besides is derived.
#[derive(Debug, Clone)]
pub struct CrushMap {
    parts: Parts,
    engine: Engine,
}

impl CrushMap {
    /// Checks `parts`, gives ids to shadow buckets that have none, and prepares mapping.
    ///
    /// # Errors
    /// [`InvalidMap`] says what is wrong.
    pub fn from_parts(mut parts: Parts) -> Result<CrushMap, InvalidMap> {
        check(&parts)?;
        allocate_shadow_ids(&mut parts)?;
        let engine = Engine::build(&parts)?;
        Ok(CrushMap { parts, engine })
    }

    /// What the map is made of.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Maps `x` by a rule to up to `num_rep` distinct OSDs, by position.
    ///
    /// `reweights` is by OSD id, 16.16 fixed point: [`WEIGHT_ONE`](crate::WEIGHT_ONE) is wholly in, 0 is out; an OSD
    /// beyond its end is out. A `firstn` rule gives fewer OSDs when it cannot find enough, an `indep` rule gives `None`
    /// in those positions. An unknown rule gives nothing.
    #[must_use]
    pub fn map(&self, rule: RuleId, x: u32, num_rep: usize, reweights: &[u32]) -> Vec<Option<OsdId>> {
        let mut workspace = Workspace::default();
        self.map_raw(rule, x, num_rep, reweights, &mut workspace).iter().map(|item| mapper::osd(*item)).collect()
    }

    /// As [`CrushMap::map`], into `out`, with buffers that are reused: for mapping many inputs.
    pub fn map_into(
        &self,
        rule: RuleId,
        x: u32,
        num_rep: usize,
        reweights: &[u32],
        workspace: &mut Workspace,
        out: &mut Vec<Option<OsdId>>,
    ) {
        out.clear();
        out.extend(self.map_raw(rule, x, num_rep, reweights, workspace).iter().map(|item| mapper::osd(*item)));
    }

    /// As [`CrushMap::map`], as item ids with [`ITEM_NONE`](crate::ITEM_NONE) for holes.
    pub fn map_raw<'w>(
        &self,
        rule: RuleId,
        x: u32,
        num_rep: usize,
        reweights: &[u32],
        workspace: &'w mut Workspace,
    ) -> &'w [ItemId] {
        let Some(program) = self.engine.program(rule) else { return &[] };
        let total_tries = self.parts.tunables.choose_total_tries;
        mapper::run(&self.engine, program, Query { x, num_rep, reweights, total_tries }, workspace)
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// Equal maps map equally: the rest is derived from the parts.
impl PartialEq for CrushMap {
    fn eq(&self, other: &CrushMap) -> bool {
        self.parts == other.parts
    }
}

impl Eq for CrushMap {}

impl<C> Encode<C> for CrushMap {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        self.parts.encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for CrushMap {
    fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        CrushMap::from_parts(Parts::decode(d, ctx)?).map_err(minicbor::decode::Error::custom)
    }
}
