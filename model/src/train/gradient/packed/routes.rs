//! How the rows of a pass are routed: what the session is about, whom each router takes, and the way back through both.
//! Decisions are those of [`crate::adapter::route`], losses those of [`Tally`]; refuses to know the maps experts work on.

use super::element::Element;
use super::maps::Machine;
use super::trained::{Session, Small, Trained};
use crate::adapter::ExpertLoad;
use crate::adapter::route::{add_prior, log_priors, running_sums};
use crate::kernels::backward::{Span, SpanMut, gate};
use crate::train::gradient::goals::RouterPlan;
use crate::train::gradient::routing::Tally;

/// Decisions of one layer.
struct LayerRoutes {
    /// Logits with the prior, `[rows, experts]`.
    logits: Vec<f32>,
    gates: Vec<f32>,
    taken: Vec<u64>,
    floored: Vec<bool>,
}

/// Routing of a pass, every layer.
pub(super) struct Routes {
    experts: usize,
    layers: Vec<LayerRoutes>,
    /// `[rows, experts]`, behind the layer where the session is read.
    log_prior: Vec<f32>,
    d_log_prior: Vec<f32>,
    d_gates: Vec<f32>,
    /// One over the root mean square of the rows that the session is read from.
    inverse: Vec<f32>,
    rows: usize,
    documents: Vec<usize>,
}

impl Routes {
    pub(super) fn new(layers: usize, experts: usize, rows: usize) -> Self {
        let layer = || LayerRoutes {
            logits: vec![0.0; rows * experts],
            gates: vec![0.0; rows * experts],
            taken: vec![0; rows],
            floored: vec![false; rows],
        };
        let numbers = || vec![0.0; rows * experts];
        Self {
            experts,
            layers: (0..if experts > 0 { layers } else { 0 }).map(|_| layer()).collect(),
            log_prior: numbers(),
            d_log_prior: numbers(),
            d_gates: numbers(),
            inverse: vec![0.0; rows],
            rows: 0,
            documents: Vec::new(),
        }
    }

    /// A pass of documents of these lengths begins.
    pub(super) fn begin(&mut self, documents: &[usize]) {
        self.rows = documents.iter().sum();
        self.documents.clear();
        self.documents.extend_from_slice(documents);
    }

    const fn numbers(&self) -> usize {
        self.rows * self.experts
    }

    /// Gates of a layer.
    pub(super) fn gates(&self, layer: usize) -> &[f32] {
        &self.layers[layer].gates[..self.numbers()]
    }

    /// Gates of a layer, and room for their gradient, zeros.
    pub(super) fn gates_back(&mut self, layer: usize) -> (&[f32], &mut [f32]) {
        let numbers = self.numbers();
        self.d_gates[..numbers].fill(0.0);
        (&self.layers[layer].gates[..numbers], &mut self.d_gates[..numbers])
    }

    /// Reads what each session is about so far from the stream `x[rows, hidden]`.
    pub(super) fn hear(&mut self, machine: &mut Machine, session: &Session, x: Span<'_, f32>, eps: f32) {
        let (experts, numbers) = (self.experts, self.numbers());
        for (row, inverse) in self.inverse.iter_mut().enumerate().take(self.rows) {
            let squares: f32 = x.row(row).iter().map(|x| x * x).sum();
            *inverse = 1.0 / (squares / x.width() as f32 + eps).sqrt();
        }
        // The gradient is not needed yet: its room takes what the head says.
        let said = &mut self.d_log_prior[..numbers];
        gate::logits(&mut machine.pool, machine.set, x, &session.head.numbers, said);
        let rows = said.chunks_exact_mut(experts).zip(&self.inverse);
        rows.for_each(|(row, inverse)| row.iter_mut().for_each(|z| *z *= inverse));
        let mut start = 0;
        for length in &self.documents {
            let at = start * experts..(start + length) * experts;
            let sums = running_sums(&said[at.clone()], experts, &[]);
            self.log_prior[at].copy_from_slice(&log_priors(&sums, experts, 0));
            start += length;
        }
    }

    /// Probabilities of the session prior at a row.
    pub(super) fn prior_at(&self, row: usize) -> Vec<f32> {
        self.log_prior[row * self.experts..][..self.experts].iter().map(|p| p.exp()).collect()
    }

    /// Decides for a layer whose feed-forward part sees `seen`.
    pub(super) fn decide<E: Element>(
        &mut self,
        machine: &mut Machine,
        (trained, index): (&Trained, usize),
        seen: Span<'_, E>,
        forced: Option<&[u64]>,
    ) {
        let (experts, numbers) = (self.experts, self.numbers());
        let layer = &mut self.layers[index];
        let Some(router) = &trained.layers[index].router else { return };
        gate::logits(&mut machine.pool, machine.set, seen, &router.numbers, &mut layer.logits[..numbers]);
        let weight = trained.layers[index].prior_weight.as_ref().map(|small| small.numbers[0]);
        for row in 0..self.rows {
            let at = row * experts..(row + 1) * experts;
            let logits = &mut layer.logits[at.clone()];
            let prior = weight.map(|weight| {
                let prior = &self.log_prior[at.clone()];
                add_prior(logits, weight, prior);
                prior
            });
            let forced = forced.map_or(0, |forced| forced[row]);
            let decision = trained.policy.decide(logits, prior, forced, &mut layer.gates[at]);
            (layer.taken[row], layer.floored[row]) = (decision.taken, decision.floored);
        }
    }

    /// Whom the routers took.
    pub(super) fn load(&self) -> ExpertLoad {
        let experts = self.experts;
        let mut load = ExpertLoad { chosen: vec![0; experts], weight: vec![0.0; experts] };
        for layer in &self.layers {
            for (bits, gates) in layer.taken[..self.rows].iter().zip(layer.gates.chunks_exact(experts)) {
                load.chosen.iter_mut().enumerate().for_each(|(e, chosen)| *chosen += bits >> e & 1);
                load.weight.iter_mut().zip(gates).for_each(|(sum, gate)| *sum += f64::from(*gate));
            }
        }
        load
    }

    /// A plan that asks for nothing, for a pass whose routers are told nothing.
    pub(super) fn silence(&self) -> RouterPlan {
        RouterPlan::silent(&self.documents, self.experts)
    }

    /// Counts every layer, and gives the session's logarithms.
    pub(super) fn tally<'a>(&self, plan: &'a RouterPlan) -> Tally<'a> {
        let mut tally = Tally::new(plan, self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            tally.count(index, &layer.logits[..self.numbers()], &layer.taken[..self.rows]);
        }
        tally
    }

    /// The session's log-probabilities `[rows, experts]`.
    pub(super) fn log_prior(&self) -> &[f32] {
        &self.log_prior[..self.numbers()]
    }

    /// Nothing is known yet of what the prior's rows lose.
    pub(super) fn begin_back(&mut self) {
        let numbers = self.numbers();
        self.d_log_prior[..numbers].fill(0.0);
    }

    /// From the gradient of a layer's gates to those of its router, its prior weight, the prior and `d_seen`.
    pub(super) fn decide_back<E: Element>(
        &mut self,
        machine: &mut Machine,
        (trained, index, tally): (&Trained, usize, &Tally<'_>),
        (seen, d_seen): (Span<'_, E>, SpanMut<'_, f32>),
        sums: &mut [Vec<f32>],
    ) {
        let (experts, numbers) = (self.experts, self.numbers());
        let (layer, d) = (&self.layers[index], &mut self.d_gates[..numbers]);
        let Some(router) = &trained.layers[index].router else { return };
        let rows = layer.gates.chunks_exact(experts).zip(&layer.floored).zip(d.chunks_exact_mut(experts));
        rows.for_each(|((gates, floored), d)| trained.policy.gradient(*floored, gates, d));
        tally.gradient(index, &layer.logits[..numbers], d);
        if let Some(Small { at, numbers: weight }) = &trained.layers[index].prior_weight {
            let logs = &self.log_prior[..numbers];
            sums[*at][0] += d.iter().zip(logs).map(|(d, p)| d * p).sum::<f32>();
            self.d_log_prior[..numbers].iter_mut().zip(&*d).for_each(|(sum, d)| *sum += weight[0] * d);
        }
        let to = &mut sums[router.at];
        gate::logits_back(&mut machine.pool, machine.set, d, seen, &router.numbers, to, Some(d_seen));
    }

    /// From the gradient of the prior to that of its head; nothing goes into the stream `x`.
    pub(super) fn hear_back(
        &mut self,
        machine: &mut Machine,
        (session, tally): (&Session, &Tally<'_>),
        x: Span<'_, f32>,
        sums: &mut [Vec<f32>],
    ) {
        let (experts, numbers) = (self.experts, self.numbers());
        let d = &mut self.d_log_prior[..numbers];
        tally.session_gradient(&self.log_prior[..numbers], d);
        let rows = d.chunks_exact_mut(experts).zip(&self.inverse);
        rows.for_each(|(row, inverse)| row.iter_mut().for_each(|d| *d *= inverse));
        let Small { at, numbers: head } = &session.head;
        gate::logits_back(&mut machine.pool, machine.set, d, x, head, &mut sums[*at], None);
    }
}
