//! One decoder layer: norm, attention, norm, feed-forward, each added to the stream. The same code trains and answers.

use super::cache::LayerCache;
use crate::adapter::{Gates, LayerAdapter, Linear, Projection};
use crate::config::BackboneConfig;
use crate::ops::host::host;
use crate::ops::{Choice, RopeTable, Segment, attention, choose, down, gate, rms_norm, rope, swiglu};
use candle_core::{Result, Tensor, bail};
use std::sync::Arc;

/// Frozen weights of one layer.
pub(super) struct Layer {
    pub(super) attention_norm: Tensor,
    pub(super) ffn_norm: Tensor,
    /// In the order of [`Linear::ALL`].
    pub(super) weights: Vec<Tensor>,
}

/// How the packed rows of one pass belong together.
#[derive(Clone)]
pub(crate) struct Pass {
    /// Position of each row in its own conversation.
    pub(crate) positions: Arc<[u32]>,
    /// Conversations.
    pub(crate) segments: Arc<[Segment]>,
}

impl Pass {
    /// Conversations of these lengths, each from its beginning.
    pub(crate) fn packed(lengths: &[usize]) -> Self {
        let positions = lengths.iter().flat_map(|len| (0..*len).map(|p| u32::try_from(p).unwrap_or(u32::MAX)));
        Self { positions: positions.collect(), segments: Segment::packed(lengths).into() }
    }

    /// One conversation that goes on after `past` tokens.
    pub(super) fn continued(past: usize, count: usize) -> Self {
        let positions = (past..past + count).map(|p| u32::try_from(p).unwrap_or(u32::MAX));
        let segment = Segment { query_start: 0, queries: count, key_start: 0, past };
        Self { positions: positions.collect(), segments: [segment].into() }
    }
}

/// Who routes the rows of a pass.
#[derive(Clone, Copy, Default)]
pub(crate) enum Routing<'a> {
    /// Nobody: the shared part works alone.
    Off,
    /// The routers.
    #[default]
    Own,
    /// For each row the experts it must take; 0 lets the router choose.
    Forced(&'a [u64]),
}

/// What the routers of a layer are told.
#[derive(Clone, Copy, Default)]
pub(crate) struct Guide<'a> {
    /// Who routes.
    pub(crate) routing: Routing<'a>,
    /// The session's log-probabilities `[rows, experts]`, once they are known.
    pub(crate) log_prior: Option<&'a Tensor>,
}

/// What a router decided for the rows of a pass.
pub(crate) struct Routed {
    /// `[rows, experts]`, the session's word added, before anything is dropped.
    pub(crate) logits: Tensor,
    /// Who was taken.
    pub(crate) choice: Choice,
    /// `[rows, experts]`, rows summing to one.
    pub(crate) gates: Tensor,
}

/// What is the same for every layer of a pass.
pub(super) struct Shared<'a> {
    pub(super) config: &'a BackboneConfig,
    pub(super) rope: &'a RopeTable,
    pub(super) pass: &'a Pass,
}

impl Layer {
    /// The stream after this layer.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        shared: &Shared<'_>,
        adapter: Option<&LayerAdapter>,
        guide: Guide<'_>,
        cache: Option<(&LayerCache, usize)>,
    ) -> Result<(Tensor, Option<Routed>)> {
        let eps = shared.config.rms_eps;
        let seen = rms_norm(x, &self.attention_norm, eps)?;
        let x = (x + self.attend(&seen, shared, adapter, cache)?)?;
        let seen = rms_norm(&x, &self.ffn_norm, eps)?;
        let routed = adapter.map(|a| route(&seen, a, guide)).transpose()?.flatten();
        let gates = match (&routed, guide.routing) {
            (Some(routed), _) => Gates::Of(&routed.gates),
            (None, Routing::Off) => Gates::Zero,
            (None, _) => Gates::None,
        };
        let project = |linear, x: &Tensor| self.projection(linear, adapter, gates).apply(x);
        let inner = swiglu(&project(Linear::Gate, &seen)?, &project(Linear::Up, &seen)?)?;
        Ok(((x + project(Linear::Down, &inner)?)?, routed))
    }

    fn attend(
        &self,
        x: &Tensor,
        shared: &Shared<'_>,
        adapter: Option<&LayerAdapter>,
        cache: Option<(&LayerCache, usize)>,
    ) -> Result<Tensor> {
        let project = |linear, x: &Tensor| self.projection(linear, adapter, Gates::None).apply(x);
        let Shared { config, rope: table, pass } = shared;
        let q = rope(&project(Linear::Query, x)?, table, &pass.positions)?;
        let k = rope(&project(Linear::Key, x)?, table, &pass.positions)?;
        let v = project(Linear::Value, x)?;
        let (k, v) = match cache {
            Some((cache, len)) => cache.extend(len, &k, &v)?,
            None => (k, v),
        };
        let mixed = attention((&q, &k, &v), config.heads, config.kv_heads, &pass.segments)?;
        project(Linear::Output, &mixed)
    }

    fn projection<'a>(&'a self, linear: Linear, adapter: Option<&'a LayerAdapter>, gates: Gates<'a>) -> Projection<'a> {
        let weight = &self.weights[linear as usize];
        match adapter.and_then(|layer| layer.pair(linear).map(|pair| (pair, layer.scale()))) {
            None => Projection::Frozen { weight },
            Some((pair, scale)) => Projection::Adapted { weight, pair, scale, gates },
        }
    }
}

/// The decision of a layer's router, when it has one and is asked.
fn route(x: &Tensor, adapter: &LayerAdapter, guide: Guide<'_>) -> Result<Option<Routed>> {
    let (Some(router), policy) = (adapter.router(), adapter.policy()) else { return Ok(None) };
    let forced = match guide.routing {
        Routing::Off => return Ok(None),
        Routing::Own => None,
        Routing::Forced(bits) => Some(bits),
    };
    let rows = x.dim(0)?;
    if forced.is_some_and(|bits| bits.len() != rows) {
        bail!("{rows} rows are not forced by as many choices")
    }
    let mut logits = down(x, router)?;
    let prior = guide.log_prior.filter(|_| adapter.prior_weight().is_some());
    if let (Some(prior), Some(weight)) = (prior, adapter.prior_weight()) {
        logits = (logits + prior.broadcast_mul(weight)?)?;
    }
    let experts = logits.dim(1)?;
    let prior = prior.map(host).transpose()?;
    let choice = choose(&logits, |row, logits, gates| {
        let prior = prior.as_ref().map(|prior| &prior[row * experts..][..experts]);
        let decision = policy.decide(logits, prior, forced.map_or(0, |bits| bits[row]), gates);
        (decision.taken, policy.held(decision.floored).0)
    })?;
    let gates = gate(&logits, &choice)?;
    Ok(Some(Routed { logits, choice, gates }))
}
