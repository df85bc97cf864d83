//! A pass over all layers in one precision: buffers made once, forward, loss, backward. Refuses to know what a batch was
//! made from.

use super::element::Element;
use super::frozen::{Frozen, FrozenSource};
use super::head::Head;
use super::layer::{Layer, LayerRows, Scratch, row_bytes, scratch_row_bytes};
use super::maps::{Machine, Maps};
use super::routes::Routes;
use super::trained::Trained;
use crate::adapter::{Linear, Mixture};
use crate::config::BackboneConfig;
use crate::kernels::backward::Span;
use crate::kernels::backward::attention::{Attention, Heads};
use crate::kernels::half::{Multiplier, Unit};
use crate::kernels::{Instructions, Pool};
use crate::train::TrainError;
use crate::train::batch::Batch;
use crate::train::gradient::goals::{Goals, PassLoss, PassScores, PlannedRouting as Routing};
use crate::train::gradient::routing::{Tally, asked_rows};

/// Memory for rows that are kept between forward and backward. Layers beyond it run forward once more.
const KEPT_BYTES_MAX: usize = 640 << 20;
/// Maps whose low-rank gradients are computed together: both sides of three.
const NARROW_SIDES: usize = 6;
/// Tokens whose embeddings one task looks up.
const EMBEDDED: usize = 16;

/// Frozen weights, what is trained over them, and the buffers of a pass.
pub(super) struct Core<E> {
    config: BackboneConfig,
    frozen: Frozen<E>,
    machine: Machine,
    trained: Option<Trained>,
    buffers: Option<Buffers<E>>,
    /// Memory for rows that are kept between forward and backward.
    kept_bytes: usize,
}

/// Buffers for passes of up to `rows` tokens.
struct Buffers<E> {
    rows: usize,
    /// The stream before each layer and behind the last, `[rows, hidden]`.
    streams: Vec<Vec<f32>>,
    /// Rows of the last layers, with one slot in front for all others when there are others.
    slots: Vec<LayerRows<E>>,
    scratch: Scratch<E>,
    head: Head<E>,
    routes: Routes,
    /// Gradient of the stream.
    d: Vec<f32>,
}

/// Packed tokens.
#[derive(Clone, Copy)]
struct Text<'a> {
    ids: &'a [u32],
    positions: &'a [u32],
    documents: &'a [usize],
}

/// What takes part beside the base.
#[derive(Clone, Copy)]
struct Parts<'a> {
    trained: Option<&'a Trained>,
    routing: &'a Routing,
}

impl<'a> Parts<'a> {
    /// What is trained, when experts take part.
    fn routed(&self) -> Option<&'a Trained> {
        self.trained.filter(|trained| trained.experts > 0 && !matches!(self.routing, Routing::Off))
    }

    fn forced(&self, layer: usize) -> Option<&'a [u64]> {
        match self.routing {
            Routing::Forced(bits) => Some(&bits[layer]),
            _ => None,
        }
    }
}

impl<E: Element> Core<E> {
    pub(super) fn open(
        config: BackboneConfig,
        source: &mut FrozenSource<'_>,
        threads: usize,
    ) -> Result<Self, TrainError> {
        let frozen = Frozen::read(&config, source)?;
        let (pool, multiplier) = (Pool::new(threads), Multiplier::new(Unit::best(), threads, 0, 0));
        let machine = Machine { pool, set: Instructions::best(), multiplier };
        Ok(Self { config, frozen, machine, trained: None, buffers: None, kept_bytes: KEPT_BYTES_MAX })
    }

    pub(super) const fn config(&self) -> &BackboneConfig {
        &self.config
    }

    /// Another bound of the rows that are kept.
    #[cfg(test)]
    pub(super) const fn keep_at_most(&mut self, bytes: usize) {
        self.kept_bytes = bytes;
    }

    pub(super) fn hold(&mut self, mixture: &Mixture, rows: usize) -> Result<(), TrainError> {
        // What was there goes first: both do not fit into the memory that one was measured for.
        (self.buffers, self.trained) = (None, None);
        self.trained = Some(Trained::new(&self.config, mixture, E::PRECISION, &mut self.machine.pool)?);
        self.reserve(rows);
        Ok(())
    }

    pub(super) fn set_weights(&mut self, weights: &[Vec<f32>]) -> Result<(), TrainError> {
        let trained = self.trained.as_mut().ok_or_else(nothing_held)?;
        trained.fill(weights, &mut self.machine.pool)
    }

    /// Makes room for passes of `rows` tokens, unless there is.
    fn reserve(&mut self, rows: usize) {
        if self.buffers.as_ref().is_some_and(|buffers| buffers.rows >= rows) {
            return;
        }
        self.buffers = None;
        let (config, trained) = (&self.config, self.trained.as_ref());
        let threads = self.machine.pool.threads();
        let stack = trained.map_or(0, Trained::stack_max);
        self.machine.multiplier = Multiplier::new(Unit::best(), threads, rows, NARROW_SIDES * stack);
        let row = trained.map_or(0, |trained| bytes_of_row::<E>(config, trained));
        let kept = kept_layers(config, rows * row, self.kept_bytes);
        let slots = kept + usize::from(kept < config.layers);
        let layer = |slot: usize| trained.map(|trained| &trained.layers[config.layers - slots + slot]);
        let heads = Heads { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim };
        let attention = Attention::new(heads, rows, threads);
        self.buffers = Some(Buffers {
            rows,
            streams: (0..=config.layers).map(|_| vec![0.0; rows * config.hidden]).collect(),
            slots: (0..slots).map(|slot| LayerRows::new(config, rows, layer(slot))).collect(),
            scratch: Scratch::new(config, rows, stack, attention),
            head: Head::new(config, rows),
            routes: Routes::new(config.layers, trained.map_or(0, |trained| trained.experts), rows),
            d: vec![0.0; rows * config.hidden],
        });
    }

    pub(super) fn pass(
        &mut self,
        batch: &Batch,
        goals: &Goals<'_>,
        sums: &mut [Vec<f32>],
        between_layers: &mut dyn FnMut(),
    ) -> Result<PassLoss, TrainError> {
        let text = self.text(batch)?;
        self.check(batch, goals, sums)?;
        self.reserve(text.ids.len());
        let base = Base::of(batch, goals);
        let Self { config, frozen, machine, trained, buffers, .. } = self;
        let (Some(trained), Some(buffers)) = (trained.as_ref(), buffers.as_mut()) else { return Err(nothing_held()) };
        let mut run = Run { config, frozen, machine, buffers };
        if !base.ids.is_empty() {
            let parts = Parts { trained: None, routing: &Routing::Off };
            run.forward(base.text(), parts, between_layers);
            run.buffers.head.keep_base(base.rows.iter().copied());
        }
        let routing = goals.routers.map_or(&Routing::Own, |plan| &plan.routing);
        let parts = Parts { trained: Some(trained), routing };
        run.forward(text, parts, between_layers);
        let mut found = run.lose(batch, goals);
        let silence = run.buffers.routes.silence();
        let plan = goals.routers.unwrap_or(&silence);
        let mut tally = None;
        if let Some(trained) = parts.routed() {
            let routes = &run.buffers.routes;
            let counted = routes.tally(plan);
            let hears = trained.session.is_some();
            found.parts = counted.parts(hears.then(|| routes.log_prior()));
            found.routers = found.parts.weighted(&plan.weights);
            found.load = routes.load();
            tally = Some(counted);
        }
        run.backward(text, parts, tally.as_ref(), sums, between_layers);
        Ok(found)
    }

    pub(super) fn scores(
        &mut self,
        batch: &Batch,
        adapted: bool,
        between_layers: &mut dyn FnMut(),
    ) -> Result<PassScores, TrainError> {
        let text = self.text(batch)?;
        if adapted && self.trained.is_none() {
            return Err(nothing_held());
        }
        self.reserve(text.ids.len());
        let Self { config, frozen, machine, trained, buffers, .. } = self;
        let Some(buffers) = buffers.as_mut() else { return Err(nothing_held()) };
        let mut run = Run { config, frozen, machine, buffers };
        let parts = Parts { trained: trained.as_ref().filter(|_| adapted), routing: &Routing::Own };
        run.forward(text, parts, between_layers);
        let scores = run.buffers.head.scores(run.machine, run.frozen, &batch.targets);
        let hears = parts.routed().is_some_and(|trained| trained.session.is_some());
        let rows = if hears { asked_rows(batch) } else { Vec::new() };
        Ok(PassScores {
            nll: scores.iter().map(|score| score.nll).collect(),
            hit: scores.iter().map(|score| score.hit).collect(),
            priors: rows.into_iter().map(|row| run.buffers.routes.prior_at(row)).collect(),
        })
    }

    /// The batch as kernels read it.
    fn text<'b>(&self, batch: &'b Batch) -> Result<Text<'b>, TrainError> {
        let known = |id: &u32| (*id as usize) < self.config.vocab;
        let fits = |target: &crate::ops::Target| (target.row as usize) < batch.ids.len() && known(&target.id);
        if batch.ids.is_empty() || !batch.ids.iter().all(known) || !batch.targets.iter().all(fits) {
            return Err(TrainError::BadJob("a batch has no token, or one that the model does not know".into()));
        }
        if batch.lengths.iter().any(|length| *length > self.config.context) {
            return Err(TrainError::BadJob(format!("a conversation exceeds the context of {}", self.config.context)));
        }
        Ok(Text { ids: &batch.ids, positions: &batch.pass.positions, documents: &batch.lengths })
    }

    fn check(&self, batch: &Batch, goals: &Goals<'_>, sums: &[Vec<f32>]) -> Result<(), TrainError> {
        let trained = self.trained.as_ref().ok_or_else(nothing_held)?;
        let known = goals.kept.iter().all(|keep| (keep.row as usize) < batch.ids.len());
        if goals.weights.len() != batch.targets.len() || !known || !trained.fits(sums) {
            return Err(TrainError::BadJob("goals or sums do not fit the batch and what is trained".into()));
        }
        Ok(())
    }
}

fn nothing_held() -> TrainError {
    TrainError::BadJob("no mixture is held".into())
}

/// Layers whose rows fit into the memory for them.
fn kept_layers(config: &BackboneConfig, layer_bytes: usize, bytes_max: usize) -> usize {
    (bytes_max / layer_bytes.max(1)).clamp(usize::from(config.layers == 1), config.layers)
}

fn bytes_of_row<E: Element>(config: &BackboneConfig, trained: &Trained) -> usize {
    let stack = |linear: Linear| {
        let pair = trained.layers.iter().find_map(|layer| layer.pair(linear));
        pair.map_or((0, false), |pair| (pair.sides.1, pair.sides.1 > pair.shared))
    };
    row_bytes::<E>(config, stack)
}

/// Bytes of all buffers for passes of `rows` tokens; `stack` gives the low-rank columns of each map and whether experts are
/// among them.
pub(super) fn buffer_bytes<E: Element>(
    config: &BackboneConfig,
    rows: usize,
    experts: usize,
    stack: impl Fn(Linear) -> (usize, bool),
) -> usize {
    let widest = Linear::ALL.iter().map(|linear| stack(*linear).0).max().unwrap_or(0);
    let layer = rows * row_bytes::<E>(config, stack);
    let kept = kept_layers(config, layer, KEPT_BYTES_MAX);
    let streams = (config.layers + 2) * config.hidden * size_of::<f32>();
    let (head_row, head) = Head::<E>::bytes(config);
    let routing = (2 * config.layers + 3) * experts * size_of::<f32>() + config.layers * 9;
    let narrow = NARROW_SIDES * widest * size_of::<E>();
    // Attention keeps about two and a half times keys' width more.
    let attention = 3 * config.kv_width() * size_of::<f32>();
    let row = streams + head_row + routing + narrow + attention + scratch_row_bytes::<E>(config, widest);
    (kept + usize::from(kept < config.layers)) * layer + rows * row + head
}

/// The conversations in which rows are held to the base, packed for a pass of the base alone.
struct Base {
    ids: Vec<u32>,
    positions: Vec<u32>,
    documents: Vec<usize>,
    /// Of each row that is held, the row in this text.
    rows: Vec<usize>,
}

impl Base {
    fn of(batch: &Batch, goals: &Goals<'_>) -> Self {
        let mut base = Self { ids: Vec::new(), positions: Vec::new(), documents: Vec::new(), rows: Vec::new() };
        base.rows.resize(goals.kept.len(), 0);
        let mut start = 0;
        for length in &batch.lengths {
            let rows = start..start + length;
            let kept = goals.kept.iter().enumerate().filter(|(_, keep)| rows.contains(&(keep.row as usize)));
            let mut any = false;
            for (at, keep) in kept {
                base.rows[at] = base.ids.len() + keep.row as usize - start;
                any = true;
            }
            if any {
                base.ids.extend_from_slice(&batch.ids[rows.clone()]);
                base.positions.extend_from_slice(&batch.pass.positions[rows]);
                base.documents.push(*length);
            }
            start += length;
        }
        base
    }

    fn text(&self) -> Text<'_> {
        Text { ids: &self.ids, positions: &self.positions, documents: &self.documents }
    }
}

/// A pass under way.
struct Run<'a, E> {
    config: &'a BackboneConfig,
    frozen: &'a Frozen<E>,
    machine: &'a mut Machine,
    buffers: &'a mut Buffers<E>,
}

impl<'a, E: Element> Run<'a, E> {
    fn slot(&self, layer: usize) -> usize {
        (layer + self.buffers.slots.len()).saturating_sub(self.config.layers)
    }

    /// Whether the rows of a layer are still those of forward when backward comes.
    fn is_kept(&self, layer: usize) -> bool {
        self.slot(layer) > 0 || self.buffers.slots.len() == self.config.layers
    }

    fn layer<'b>(&self, index: usize, text: Text<'b>) -> Layer<'b>
    where
        'a: 'b,
    {
        let (config, frozen) = (self.config, &self.frozen.layers[index]);
        Layer { config, turns: &self.frozen.turns, frozen, documents: text.documents, positions: text.positions }
    }

    fn embed(&mut self, ids: &[u32]) {
        let (hidden, frozen) = (self.config.hidden, self.frozen);
        let rows = &mut self.buffers.streams[0][..ids.len() * hidden];
        self.machine.pool.run_pieces(rows, EMBEDDED * hidden, &|task, rows| {
            let ids = ids[task * EMBEDDED..].iter();
            ids.zip(rows.chunks_exact_mut(hidden)).for_each(|(id, row)| frozen.embed(*id, row));
        });
    }

    /// All layers and the norm behind them.
    fn forward(&mut self, text: Text<'_>, parts: Parts<'_>, between_layers: &mut dyn FnMut()) {
        self.embed(text.ids);
        self.buffers.routes.begin(text.documents);
        for index in 0..self.config.layers {
            let session = parts.routed().and_then(|trained| trained.session.as_ref());
            if let Some(session) = session.filter(|session| session.layer == index) {
                let hidden = self.config.hidden;
                let x = Span::new(&self.buffers.streams[index][..text.ids.len() * hidden], hidden, hidden);
                self.buffers.routes.hear(self.machine, session, x, self.config.rms_eps as f32);
            }
            self.layer_forward(index, text, parts, true);
            between_layers();
        }
        let (eps, last) = (self.config.rms_eps as f32, &self.buffers.streams[self.config.layers]);
        self.buffers.head.norm(self.machine, self.frozen, eps, last, text.ids.len());
    }

    /// One layer; `decides` unless its routing is known.
    fn layer_forward(&mut self, index: usize, text: Text<'_>, parts: Parts<'_>, decides: bool) {
        let (slot, layer) = (self.slot(index), self.layer(index, text));
        let Buffers { streams, slots, scratch, routes, .. } = &mut *self.buffers;
        let (before, behind) = streams.split_at_mut(index + 1);
        let kept = &mut slots[slot];
        let maps = maps(&layer, parts, index, &[]);
        layer.attend(self.machine, &maps, &before[index], kept, scratch);
        if let Some(trained) = parts.routed() {
            if decides {
                let seen = kept.seen_again.span(text.ids.len());
                routes.decide(self.machine, (trained, index), seen, parts.forced(index));
            }
            let maps = Maps { gates: routes.gates(index), ..maps };
            layer.feed(self.machine, &maps, kept, scratch, &mut behind[0]);
        } else {
            layer.feed(self.machine, &maps, kept, scratch, &mut behind[0]);
        }
    }

    fn lose(&mut self, batch: &Batch, goals: &Goals<'_>) -> PassLoss {
        let Buffers { streams, head, d, .. } = &mut *self.buffers;
        let (last, rows) = (&streams[self.config.layers], batch.ids.len());
        let due = (&batch.targets[..], goals.weights, goals.kept);
        let lost = head.lose(self.machine, self.frozen, due, (last, d), rows);
        PassLoss { language: lost.language, kept: lost.kept, ..PassLoss::default() }
    }

    fn backward(
        &mut self,
        text: Text<'_>,
        parts: Parts<'_>,
        tally: Option<&Tally<'_>>,
        sums: &mut [Vec<f32>],
        between_layers: &mut dyn FnMut(),
    ) {
        self.buffers.routes.begin_back();
        for index in (0..self.config.layers).rev() {
            if !self.is_kept(index) {
                self.layer_forward(index, text, parts, false);
            }
            self.layer_back(index, text, parts, tally, sums);
            let session = parts.routed().and_then(|trained| trained.session.as_ref());
            if let (Some(session), Some(tally)) = (session.filter(|session| session.layer == index), tally) {
                let hidden = self.config.hidden;
                let x = Span::new(&self.buffers.streams[index][..text.ids.len() * hidden], hidden, hidden);
                self.buffers.routes.hear_back(self.machine, (session, tally), x, sums);
            }
            between_layers();
        }
    }

    fn layer_back(
        &mut self,
        index: usize,
        text: Text<'_>,
        parts: Parts<'_>,
        tally: Option<&Tally<'_>>,
        sums: &mut [Vec<f32>],
    ) {
        let (slot, layer) = (self.slot(index), self.layer(index, text));
        let Buffers { streams, slots, scratch, routes, d, .. } = &mut *self.buffers;
        let kept = &slots[slot];
        let maps = maps(&layer, parts, index, &[]);
        if let (Some(trained), Some(tally)) = (parts.routed(), tally) {
            let (gates, d_gates) = routes.gates_back(index);
            let maps = Maps { gates, ..maps };
            layer.feed_back(self.machine, &maps, (kept, scratch), d, (sums, d_gates));
            let seen = (kept.seen_again.span(text.ids.len()), layer.d_seen(scratch));
            routes.decide_back(self.machine, (trained, index, tally), seen, sums);
        } else {
            layer.feed_back(self.machine, &maps, (kept, scratch), d, (sums, &mut []));
        }
        layer.attend_back(self.machine, &maps, (kept, scratch), (&streams[index], d), sums);
    }
}

fn maps<'a>(layer: &Layer<'a>, parts: Parts<'a>, index: usize, gates: &'a [f32]) -> Maps<'a> {
    Maps {
        frozen: layer.frozen,
        trained: parts.trained.map(|trained| &trained.layers[index]),
        scale: parts.trained.map_or(0.0, |trained| trained.scale),
        rank: parts.trained.map_or(0, |trained| trained.rank),
        gates,
        rows: layer.positions.len(),
    }
}
