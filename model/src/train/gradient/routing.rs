//! The losses of routers and session prior, and their gradients, on plain slices: the same code for tensors and for packed
//! rows. Refuses to know where logits come from.
//!
//! `N` rows of documents `d` with `T_d` rows, `L` layers, `p = softmax(z)`, labels `y_d` (design notes: label, balance and z
//! terms after Fedus et al. 2022, Zoph et al. 2022 and LoRAMoE; all over the rows of one pass):
//!
//! * label: `Σ_d T_d/N · CE(y_d, m_d)` with `m_d` the mean of `p` over rows and layers — a document as a whole goes to its
//!   experts, each token may go where it likes;
//! * balance: `1/L Σ_l Σ_e f_le/π_e · P_le`, `f` the share of choices (a constant), `P` the mean of `p`, `π` the label prior.
//!   With `π = 1/E` it is Switch's `E·Σ f·P`; it is 1 when `f = P = π`;
//! * z: `1/(L·N) Σ logsumexp(z)²`;
//! * session: `1/D Σ_d v_d/T_d Σ_t CE(y'_d, p_t)` of the session's probabilities over the `D` labelled documents, `y'` the label
//!   without room for free experts, `v` its weight: what is short and seldom, as crises are, counts as much as anything else.

use super::goals::{RouterParts, RouterPlan};
use crate::kernels::softmax;
use crate::train::batch::Batch;

/// Least label prior that balance divides by: no choice costs more than a thousandfold.
const PRIOR_MIN: f32 = 1e-3;

/// What forward has learnt of the routers of a pass; backward needs it.
pub(super) struct Tally<'a> {
    plan: &'a RouterPlan,
    layers: usize,
    rows: usize,
    /// `m_d`, `[documents · experts]`, complete when every layer was counted.
    mean: Vec<f64>,
    /// For each layer `f_e / π_e`.
    excess: Vec<Vec<f32>>,
    balance: f64,
    z: f64,
    entropy: f64,
}

impl<'a> Tally<'a> {
    /// Nothing counted yet.
    pub(super) fn new(plan: &'a RouterPlan, layers: usize) -> Self {
        let (experts, rows) = (plan.prior.len(), plan.documents.iter().map(|one| one.rows).sum());
        let mean = vec![0.0; plan.documents.len() * experts];
        Self { plan, layers, rows, mean, excess: vec![Vec::new(); layers], balance: 0.0, z: 0.0, entropy: 0.0 }
    }

    /// Counts a layer: its logits `[rows, experts]`, the session's word added, and the experts each row took. In any order of
    /// layers, each once.
    ///
    /// # Panics
    /// The rows are not those of the plan.
    pub(super) fn count(&mut self, layer: usize, logits: &[f32], taken: &[u64]) {
        let experts = self.plan.prior.len();
        assert!(logits.len() == self.rows * experts && taken.len() == self.rows, "the rows of the plan");
        let excess = self.excess_of(taken);
        let (mut p, mut row) = (vec![0f32; experts], 0);
        let over = 1.0 / (self.rows * self.layers) as f64;
        for (document, mean) in self.plan.documents.iter().zip(self.mean.chunks_exact_mut(experts)) {
            let share = 1.0 / (document.rows * self.layers) as f64;
            for logits in logits[row * experts..].chunks_exact(experts).take(document.rows) {
                p.copy_from_slice(logits);
                let lse = f64::from(softmax(&mut p));
                mean.iter_mut().zip(&p).for_each(|(mean, p)| *mean += share * f64::from(*p));
                self.z += over * lse * lse;
                self.balance += over * f64::from(dot(&p, &excess));
                self.entropy += over * (lse - f64::from(dot(&p, logits)));
            }
            row += document.rows;
        }
        self.excess[layer] = excess;
    }

    /// `f_e / π_e`.
    fn excess_of(&self, taken: &[u64]) -> Vec<f32> {
        let mut counts = vec![0f32; self.plan.prior.len()];
        for bits in taken {
            counts.iter_mut().enumerate().for_each(|(e, count)| *count += (bits >> e & 1) as f32);
        }
        let total: f32 = counts.iter().sum();
        let of = |(count, prior): (&f32, &f32)| count / (total * prior.max(PRIOR_MIN));
        counts.iter().zip(self.plan.prior.iter()).map(of).collect()
    }

    /// The losses of the routers once every layer was counted, and that of the session prior `[rows, experts]` of logarithms.
    pub(super) fn parts(&self, log_prior: Option<&[f32]>) -> RouterParts {
        let (experts, share) = (self.plan.prior.len(), f64::from(self.plan.share));
        let mut label = 0.0;
        for (document, mean) in self.plan.documents.iter().zip(self.mean.chunks_exact(experts)) {
            let Some(wanted) = &document.wanted else { continue };
            let cross: f64 = wanted.route.iter().zip(mean).map(|(y, m)| -f64::from(*y) * m.ln()).sum();
            label += document.rows as f64 / self.rows as f64 * cross;
        }
        let session = log_prior.map_or(0.0, |log_prior| self.session(log_prior));
        RouterParts {
            session: share * session,
            label: share * label,
            balance: share * self.balance,
            z: share * self.z,
            entropy: share * self.entropy,
        }
    }

    /// Adds the gradient of the routers' losses by the logits of a layer, `[rows, experts]`, to `d_logits`:
    /// `dz_e = p_e·(q_e − Σ q·p) + 2·w_z·lse·p_e/(N·L)` with `q_e = (w_balance·f_e/π_e − w_label·y_e/m_e)/(N·L)`.
    ///
    /// # Panics
    /// The rows are not those of the plan, or the layer was not counted.
    pub(super) fn gradient(&self, layer: usize, logits: &[f32], d_logits: &mut [f32]) {
        let experts = self.plan.prior.len();
        let (weights, excess) = (self.plan.weights, &self.excess[layer]);
        assert!(logits.len() == d_logits.len() && excess.len() == experts, "a counted layer");
        let over = self.plan.share / (self.rows * self.layers) as f32;
        let (mut p, mut pull, mut row) = (vec![0f32; experts], vec![0f32; experts], 0);
        for (document, mean) in self.plan.documents.iter().zip(self.mean.chunks_exact(experts)) {
            for (e, pull) in pull.iter_mut().enumerate() {
                let label = document.wanted.as_ref().map_or(0.0, |wanted| wanted.route[e] / mean[e] as f32);
                *pull = over * (weights.balance * excess[e] - weights.label * label);
            }
            let range = row * experts..(row + document.rows) * experts;
            let rows = logits[range.clone()].chunks_exact(experts).zip(d_logits[range].chunks_exact_mut(experts));
            for (logits, d) in rows {
                p.copy_from_slice(logits);
                let lse = softmax(&mut p);
                let level = dot(&p, &pull) - 2.0 * weights.z * over * lse;
                d.iter_mut().zip(&p).zip(&pull).for_each(|((d, p), pull)| *d += p * (pull - level));
            }
            row += document.rows;
        }
    }

    /// Loss of the session prior before weight and share.
    fn session(&self, log_prior: &[f32]) -> f64 {
        let (experts, mut row, mut loss) = (self.plan.prior.len(), 0, 0.0);
        for document in &self.plan.documents {
            let rows = log_prior[row * experts..].chunks_exact(experts).take(document.rows);
            if let Some(wanted) = &document.wanted {
                let all = rows.map(|row| f64::from(dot(row, &wanted.session))).sum::<f64>();
                loss -= f64::from(wanted.weight) * all / document.rows.max(1) as f64;
            }
            row += document.rows;
        }
        loss / self.labelled()
    }

    /// Documents with a label, at least one.
    fn labelled(&self) -> f64 {
        self.plan.documents.iter().filter(|one| one.wanted.is_some()).count().max(1) as f64
    }

    /// Turns the gradient by the session's log-probabilities, `[rows, experts]`, as the layers left it, into that by
    /// `z̄ = P·norm(h)` of each row, the prior's own loss added. With `s` the running mean of `z̄`:
    /// `ds = d − p·Σd + w·v_d/(D·T_d)·(p − y)`; `dz̄_i = Σ_{t≥i} ds_t/(t+1)` within the document.
    ///
    /// # Panics
    /// The rows are not those of the plan.
    pub(super) fn session_gradient(&self, log_prior: &[f32], d: &mut [f32]) {
        let (experts, mut row) = (self.plan.prior.len(), 0);
        assert!(log_prior.len() == self.rows * experts && log_prior.len() == d.len(), "the rows of the plan");
        let each = self.plan.weights.session * self.plan.share / self.labelled() as f32;
        let mut later = vec![0f32; experts];
        for document in &self.plan.documents {
            later.fill(0.0);
            let own = document.wanted.as_ref().map_or(0.0, |wanted| wanted.weight);
            let weight = each * own / document.rows.max(1) as f32;
            for position in (0..document.rows).rev() {
                let at = (row + position) * experts;
                let (prior, d) = (&log_prior[at..][..experts], &mut d[at..][..experts]);
                let total: f32 = d.iter().sum();
                let inverse = 1.0 / (position + 1) as f32;
                for (e, d) in d.iter_mut().enumerate() {
                    let p = prior[e].exp();
                    let own = document.wanted.as_ref().map_or(0.0, |wanted| weight * (p - wanted.session[e]));
                    later[e] += inverse * (*d - p * total + own);
                    *d = later[e];
                }
            }
            row += document.rows;
        }
    }
}

/// For each conversation of a batch the row that predicts the first token of its last answer, or its last row when it holds no
/// answer: what was known before anything was answered.
pub(super) fn asked_rows(batch: &Batch) -> Vec<usize> {
    let mut end = 0;
    let ends = batch.lengths.iter().map(|length| {
        end += length;
        end.saturating_sub(1)
    });
    let mut rows: Vec<usize> = ends.collect();
    let mut before: Option<(usize, u32)> = None;
    for (target, owner) in batch.targets.iter().zip(&batch.owners) {
        let goes_on = before == Some((*owner, target.row.wrapping_sub(1)));
        if !goes_on {
            rows[*owner] = target.row as usize;
        }
        before = Some((*owner, target.row));
    }
    rows
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::super::goals::{Labelled, PlannedRouting, RouterWeights, Wanted};
    use super::*;
    use crate::adapter::route::{log_priors, running_sums};
    use crate::counter::{Counter, Site};
    use crate::train::Encoded;

    const EXPERTS: usize = 3;
    const LAYERS: usize = 2;

    fn plan() -> RouterPlan {
        let wanted = |w: [f32; 3]| {
            let session = vec![w[1], w[0], w[2]].into();
            Wanted { route: w.to_vec().into(), session, weight: 0.5 + w[0] }
        };
        let labelled = |rows, w: Option<[f32; 3]>| Labelled { rows, wanted: w.map(wanted) };
        RouterPlan {
            routing: PlannedRouting::Own,
            documents: vec![labelled(3, Some([0.8, 0.1, 0.1])), labelled(1, None), labelled(4, Some([0.1, 0.2, 0.7]))],
            prior: vec![0.5, 0.3, 0.2].into(),
            weights: RouterWeights { session: 0.7, label: 0.9, balance: 0.4, z: 0.2 },
            share: 0.6,
        }
    }

    fn random(count: usize, seed: u64) -> Vec<f64> {
        (0..count as u64).map(|i| Counter::new(seed).normal(Site::new("routing", 0), i)).collect()
    }

    fn softmax_of(z: &[f64]) -> (Vec<f64>, f64) {
        let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        (z.iter().map(|z| (z - lse).exp()).collect(), lse)
    }

    /// All router losses of the logits `[layers, rows, experts]`, written out again in f64.
    fn routers(plan: &RouterPlan, logits: &[f64], taken: &[u64]) -> f64 {
        let rows = taken.len();
        let mut means = vec![vec![0.0; EXPERTS]; plan.documents.len()];
        let owners: Vec<usize> =
            plan.documents.iter().enumerate().flat_map(|(d, one)| std::iter::repeat_n(d, one.rows)).collect();
        let total: f64 = taken.iter().map(|bits| f64::from(bits.count_ones())).sum();
        let f = |e: usize| taken.iter().filter(|bits| *bits >> e & 1 == 1).count() as f64 / total;
        let (mut balance, mut square) = (0.0, 0.0);
        for (at, z) in logits.chunks(EXPERTS).enumerate() {
            let ((p, lse), owner) = (softmax_of(z), owners[at % rows]);
            square += lse * lse / logits.len() as f64 * EXPERTS as f64;
            for e in 0..EXPERTS {
                means[owner][e] += p[e] / (plan.documents[owner].rows * LAYERS) as f64;
                balance += f(e) / f64::from(plan.prior[e]) * p[e] / (rows * LAYERS) as f64;
            }
        }
        let labels = plan.documents.iter().zip(&means).filter_map(|(one, mean)| {
            let wanted = &one.wanted.as_ref()?.route;
            let cross: f64 = wanted.iter().zip(mean).map(|(y, m)| -f64::from(*y) * m.ln()).sum();
            Some(one.rows as f64 / rows as f64 * cross)
        });
        let [label, heavy, z] = [plan.weights.label, plan.weights.balance, plan.weights.z].map(f64::from);
        f64::from(plan.share) * (label * labels.sum::<f64>() + heavy * balance + z * square)
    }

    fn single(numbers: &[f64]) -> Vec<f32> {
        numbers.iter().map(|x| *x as f32).collect()
    }

    /// Central differences of `f` at each number.
    fn differences(at: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let moved = |i: usize, step: f64| {
            let mut at = at.to_vec();
            at[i] += step;
            f(&at)
        };
        (0..at.len()).map(|i| (moved(i, 1e-5) - moved(i, -1e-5)) / 2e-5).collect()
    }

    fn near(found: &[f32], expected: &[f64]) {
        let scale = expected.iter().fold(0f64, |top, x| top.max(x.abs()));
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() <= 1e-5 * scale, "{i}: {found} is not {expected}");
        }
    }

    #[test]
    fn router_losses_and_their_gradients_are_those_of_the_formulas() {
        let (plan, taken) = (plan(), [0b011u64, 0b101, 0b011, 0b110, 0b001, 0b100, 0b110, 0b010]);
        let logits = random(LAYERS * 8 * EXPERTS, 3);
        let mut tally = Tally::new(&plan, LAYERS);
        let of = |layer: usize| single(&logits[layer * 8 * EXPERTS..][..8 * EXPERTS]);
        (0..LAYERS).rev().for_each(|layer| tally.count(layer, &of(layer), &taken));
        let expected = routers(&plan, &logits, &taken);
        assert!((tally.parts(None).weighted(&plan.weights) - expected).abs() < 1e-6 * expected);
        let mut found = vec![0f32; logits.len()];
        for (layer, d) in found.chunks_mut(8 * EXPERTS).enumerate() {
            tally.gradient(layer, &of(layer), d);
        }
        near(&found, &differences(&logits, |logits| routers(&plan, logits, &taken)));
    }

    /// What the session says, `c` of it by the layers and the rest by its own loss, written out again in f64.
    fn session(plan: &RouterPlan, z: &[f64], c: &[f64]) -> f64 {
        let (mut row, mut all) = (0, 0.0);
        for document in &plan.documents {
            let mut sum = [0.0; EXPERTS];
            for t in 0..document.rows {
                let at = (row + t) * EXPERTS;
                sum.iter_mut().zip(&z[at..]).for_each(|(sum, z)| *sum += z);
                let mean: Vec<f64> = sum.iter().map(|sum| sum / (t + 1) as f64).collect();
                let (p, _) = softmax_of(&mean);
                all += (0..EXPERTS).map(|e| c[at + e] * p[e].ln()).sum::<f64>();
                if let Some(wanted) = &document.wanted {
                    // Two of the three documents have a label.
                    let own = f64::from(plan.weights.session * plan.share * wanted.weight);
                    let weight = own / (2 * document.rows) as f64;
                    all -= (0..EXPERTS).map(|e| weight * f64::from(wanted.session[e]) * p[e].ln()).sum::<f64>();
                }
            }
            row += document.rows;
        }
        all
    }

    #[test]
    fn the_session_learns_from_its_label_and_from_the_layers() {
        let (plan, z, c) = (plan(), random(8 * EXPERTS, 5), random(8 * EXPERTS, 6));
        let (mut prior, mut row) = (Vec::new(), 0);
        for document in &plan.documents {
            let own = single(&z[row * EXPERTS..][..document.rows * EXPERTS]);
            prior.extend(log_priors(&running_sums(&own, EXPERTS, &[]), EXPERTS, 0));
            row += document.rows;
        }
        let tally = Tally::new(&plan, LAYERS);
        let own = session(&plan, &z, &[0.0; 8 * EXPERTS]);
        let found = tally.session(&prior) * f64::from(plan.weights.session * plan.share);
        assert!((found - own).abs() < 1e-6 * own);
        let mut d = single(&c);
        tally.session_gradient(&prior, &mut d);
        near(&d, &differences(&z, |z| session(&plan, z, &c)));
    }

    #[test]
    fn the_asked_row_is_the_one_before_the_last_answer() {
        let one = |bits: &[u32]| Encoded { ids: vec![1; bits.len()], target: bits.iter().map(|b| *b == 1).collect() };
        let batch = Batch::pack(&[one(&[0, 1, 1, 0, 0, 1, 1]), one(&[0, 0, 0]), one(&[1, 1, 1])]);
        assert_eq!(asked_rows(&batch), [4, 9, 10]);
    }

    #[test]
    fn balance_is_one_where_choices_follow_the_labels() {
        let mut plan = plan();
        plan.prior = vec![0.5, 0.25, 0.25].into();
        let logits: Vec<f32> = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()].repeat(8);
        let mut tally = Tally::new(&plan, 1);
        tally.count(0, &logits, &[0b001, 0b001, 0b001, 0b001, 0b010, 0b010, 0b100, 0b100]);
        assert!((tally.parts(None).balance - f64::from(plan.share)).abs() < 1e-6);
        assert!((tally.parts(None).entropy / f64::from(plan.share) - 1.5 * 2f64.ln()).abs() < 1e-6);
    }
}
