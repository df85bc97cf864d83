//! What a router decides for one token: which experts, and how much of each. Plain arithmetic on slices, the same code in
//! training, in the reference and in packed serving. Refuses to know where logits come from and what is done with gates.
//!
//! With the router's logits `r = R·x` of a layer, the session's log-probabilities `log p` and the layer's weight `β`:
//!
//! 1. `z = r + β·log p` ([`add_prior`]; without a session prior `z = r`).
//! 2. The `k` highest `z` are taken, the earlier of equals; a forced choice replaces them.
//! 3. Gates are the softmax of all `z`, the taken ones kept and renormalised: the softmax over the taken ones alone.
//! 4. Where `p(crisis) > above`, the crisis expert `c` takes part: it replaces the last of the taken ones, and when its gate is
//!    below `floor`, it becomes `floor` and the others share `1 − floor` as they stood to one another.
//!
//! The session prior of a token is the softmax of the mean of `z̄ᵢ = P·norm(hᵢ)` over the tokens of its conversation up to
//! itself ([`log_prior`]), so that an answer never depends on how its prompt was cut into passes.

use super::MAX_EXPERTS;
use crate::kernels::{exp, softmax};
use empathd_proto::engine::MixtureSpec;
use empathd_proto::record::Domain;

/// How the routers of a mixture decide.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Experts a token takes.
    pub top_k: usize,
    /// The rule for sessions in crisis, when the mixture has it and an expert for it.
    pub crisis: Option<CrisisRule>,
}

/// In a crisis the crisis expert takes part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrisisRule {
    /// Position of the expert.
    pub expert: usize,
    /// Session probability of the expert above which the rule holds.
    pub above: f32,
    /// Its least gate then.
    pub floor: f32,
}

/// What was decided for one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Bit `e` is set when the token takes expert `e`.
    pub taken: u64,
    /// Whether the crisis expert's gate is the floor instead of its softmax.
    pub floored: bool,
}

impl Policy {
    /// The policy of a mixture. Of several crisis experts the first is the one the rule speaks of.
    #[must_use]
    pub fn new(spec: &MixtureSpec) -> Self {
        let expert = spec.experts.iter().position(|domain| *domain == Some(Domain::Crisis));
        let rule = spec.crisis_floor.filter(|_| spec.session_prior).zip(expert);
        let crisis = rule.map(|(rule, expert)| CrisisRule { expert, above: rule.above, floor: rule.floor });
        Self { top_k: spec.top_k as usize, crisis }
    }

    /// Decides for a token with these logits, the prior already added. `log_prior` is the session's, when it speaks in this
    /// layer; `forced` replaces the router's choice unless it is 0. Writes the gates, zero where nothing is taken.
    ///
    /// # Panics
    /// The slices differ in length, or there are more than [`MAX_EXPERTS`].
    pub fn decide(&self, logits: &[f32], log_prior: Option<&[f32]>, forced: u64, gates: &mut [f32]) -> Decision {
        assert!(logits.len() == gates.len() && logits.len() <= MAX_EXPERTS, "a gate for each expert");
        let mut taken = if forced == 0 { best(logits, self.top_k) } else { forced };
        let rule = self.crisis.filter(|rule| log_prior.is_some_and(|p| exp(p[rule.expert]) > rule.above));
        let Some(rule) = rule else {
            share(logits, taken, 1.0, gates);
            return Decision { taken, floored: false };
        };
        if taken >> rule.expert & 1 == 0 {
            taken = taken & !(1 << last(logits, taken)) | 1 << rule.expert;
        }
        share(logits, taken, 1.0, gates);
        let floored = gates[rule.expert] < rule.floor;
        if floored {
            share(logits, taken & !(1 << rule.expert), 1.0 - rule.floor, gates);
            gates[rule.expert] = rule.floor;
        }
        Decision { taken, floored }
    }

    /// The bits of experts whose gate does not follow their logit, and what is left for the others to share.
    #[must_use]
    pub fn held(&self, floored: bool) -> (u64, f32) {
        match self.crisis.filter(|_| floored) {
            Some(rule) => (1 << rule.expert, 1.0 - rule.floor),
            None => (0, 1.0),
        }
    }

    /// Replaces the gradient `d` by the gates `g` of one token by that by its logits: with `H` the held gates and `μ` what
    /// the others share, `dzₑ = gₑ·(dgₑ − Σ_{j∉H} gⱼ·dgⱼ / μ)` for `e ∉ H`, 0 for `e ∈ H` and where nothing is taken.
    pub fn gradient(&self, floored: bool, gates: &[f32], d: &mut [f32]) {
        let (held, shared) = self.held(floored);
        let free = |e: usize| held >> e & 1 == 0;
        let mean = gates.iter().zip(&*d).enumerate().filter(|(e, _)| free(*e)).map(|(_, (g, d))| g * d).sum::<f32>();
        let mean = mean / shared;
        for (e, (d, gate)) in d.iter_mut().zip(gates).enumerate() {
            *d = if free(e) { gate * (*d - mean) } else { 0.0 };
        }
    }
}

/// Adds what the session says to a router's logits.
pub fn add_prior(logits: &mut [f32], weight: f32, log_prior: &[f32]) {
    logits.iter_mut().zip(log_prior).for_each(|(z, p)| *z += weight * p);
}

/// The sums of the session's `z̄[rows, experts]` up to each row of one conversation, which goes on from `carry` (empty at its
/// beginning). Rows are added one after another: the same bits however a conversation is cut.
#[must_use]
pub fn running_sums(z: &[f32], experts: usize, carry: &[f32]) -> Vec<f32> {
    let mut sums = z.to_vec();
    let mut before = if carry.is_empty() { vec![0f32; experts] } else { carry.to_vec() };
    for row in sums.chunks_exact_mut(experts) {
        row.iter_mut().zip(&mut before).for_each(|(sum, before)| {
            *sum += *before;
            *before = *sum;
        });
    }
    sums
}

/// The session's log-probabilities behind each row of a conversation, from its running sums behind `past` tokens.
#[must_use]
pub fn log_priors(sums: &[f32], experts: usize, past: usize) -> Vec<f32> {
    let mut all = vec![0f32; sums.len()];
    for (row, (sum, out)) in sums.chunks_exact(experts).zip(all.chunks_exact_mut(experts)).enumerate() {
        log_prior(sum, past + row + 1, out);
    }
    all
}

/// The session's log-probabilities behind `tokens` tokens, from the sum of their `P·norm(h)`: those of its mean.
pub fn log_prior(sum: &[f32], tokens: usize, out: &mut [f32]) {
    debug_assert!(tokens > 0 && sum.len() == out.len() && sum.len() <= MAX_EXPERTS, "a mean of something");
    let (inverse, mut powers) = (1.0 / tokens as f32, [0f32; MAX_EXPERTS]);
    let powers = &mut powers[..sum.len()];
    out.iter_mut().zip(sum).for_each(|(s, sum)| *s = sum * inverse);
    powers.copy_from_slice(out);
    let lse = softmax(powers);
    out.iter_mut().for_each(|s| *s -= lse);
}

/// Bits of the `top_k` highest; the earlier of equals.
fn best(logits: &[f32], top_k: usize) -> u64 {
    let mut taken = 0u64;
    for _ in 0..top_k {
        let free = (0..logits.len()).filter(|e| taken >> e & 1 == 0);
        let next = free.reduce(|best, e| if logits[e].total_cmp(&logits[best]).is_gt() { e } else { best });
        taken |= next.map_or(0, |e| 1 << e);
    }
    taken
}

/// The lowest of the taken ones; the later of equals.
fn last(logits: &[f32], taken: u64) -> usize {
    let lowest = |low: usize, e: usize| if logits[e].total_cmp(&logits[low]).is_le() { e } else { low };
    (0..logits.len()).filter(|e| taken >> e & 1 == 1).reduce(lowest).unwrap_or(0)
}

/// Writes `total` times the softmax over the taken ones, zero elsewhere.
fn share(logits: &[f32], taken: u64, total: f32, gates: &mut [f32]) {
    let (mut kept, mut count) = ([0f32; MAX_EXPERTS], 0);
    let chosen = || (0..logits.len()).filter(|e| taken >> e & 1 == 1);
    for e in chosen() {
        kept[count] = logits[e];
        count += 1;
    }
    softmax(&mut kept[..count]);
    gates.fill(0.0);
    chosen().zip(&kept).for_each(|(e, gate)| gates[e] = total * gate);
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::engine::CrisisFloor;

    const FLOOR: CrisisRule = CrisisRule { expert: 2, above: 0.5, floor: 0.3 };

    fn decide(policy: Policy, logits: &[f32], p_crisis: f32, forced: u64) -> (Decision, Vec<f32>) {
        let mut gates = vec![9.0; logits.len()];
        let mut prior = vec![((1.0 - p_crisis) / (logits.len() - 1) as f32).ln(); logits.len()];
        prior[2] = p_crisis.ln();
        let decision = policy.decide(logits, Some(&prior), forced, &mut gates);
        assert!((gates.iter().sum::<f32>() - 1.0).abs() < 1e-6 && gates.iter().all(|g| *g >= 0.0), "{gates:?}");
        (decision, gates)
    }

    #[test]
    fn the_best_are_kept_and_renormalised() {
        let policy = Policy { top_k: 2, crisis: None };
        let (found, gates) = decide(policy, &[0.0, 2.0, 1.0, 2.0], 0.9, 0);
        assert_eq!((found, &gates[..]), (Decision { taken: 0b1010, floored: false }, &[0.0, 0.5, 0.0, 0.5][..]));
        assert_eq!(decide(policy, &[1.0; 4], 0.9, 0).0.taken, 0b0011, "of equals the earlier");
        let (found, gates) = decide(policy, &[5.0, 0.0, 0.0, 1.0], 0.0, 0b1100);
        assert_eq!(found.taken, 0b1100, "a forced choice is followed");
        assert!((gates[3] - 1.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
    }

    #[test]
    fn in_a_crisis_its_expert_takes_part() {
        let policy = Policy { top_k: 2, crisis: Some(FLOOR) };
        let logits = [3.0, 1.0, -4.0, 2.0];
        assert_eq!(decide(policy, &logits, 0.49, 0).0, Decision { taken: 0b1001, floored: false });
        let (found, gates) = decide(policy, &logits, 0.51, 0);
        assert_eq!(found, Decision { taken: 0b0101, floored: true });
        assert!((gates[2] - 0.3).abs() < 1e-6 && (gates[0] - 0.7).abs() < 1e-6);
        let (found, gates) = decide(policy, &[3.0, 1.0, 2.9, 2.0], 0.9, 0);
        assert!(!found.floored && gates[2] > 0.4, "above the floor its own gate stands");
        let (found, gates) = decide(Policy { top_k: 3, ..policy }, &logits, 0.9, 0);
        assert_eq!(found, Decision { taken: 0b1101, floored: true });
        assert!((gates[0] / gates[3] - 1f32.exp()).abs() < 1e-4, "the others stand to one another as before");
        let (found, gates) = decide(Policy { top_k: 1, ..policy }, &logits, 0.9, 0b0010);
        assert_eq!((found.taken, gates[2]), (0b0100, 1.0), "no choice outranks the rule");
        let mut gates = [0.0; 4];
        assert_eq!(policy.decide(&logits, None, 0, &mut gates).taken, 0b1001, "before the prior speaks");
    }

    #[test]
    fn the_rule_needs_a_prior_and_an_expert() {
        let experts = vec![None, Some(Domain::Bias), Some(Domain::Crisis), Some(Domain::Crisis)];
        let spec = MixtureSpec {
            experts,
            top_k: 2,
            session_prior: true,
            crisis_floor: Some(CrisisFloor { above: 0.5, floor: 0.3 }),
            ..MixtureSpec::default()
        };
        assert_eq!(Policy::new(&spec), Policy { top_k: 2, crisis: Some(FLOOR) });
        let without = |spec: MixtureSpec| Policy::new(&spec).crisis.is_none();
        assert!(without(MixtureSpec { session_prior: false, ..spec.clone() }));
        assert!(without(MixtureSpec { experts: vec![None; 4], ..spec.clone() }));
        assert!(without(MixtureSpec { crisis_floor: None, ..spec }));
    }

    #[test]
    fn the_prior_is_that_of_the_mean() {
        let mut found = [0.0; 3];
        log_prior(&[2.0, 4.0, -6.0], 2, &mut found);
        let total = (1f32.exp() + 2f32.exp() + (-3f32).exp()).ln();
        for (found, s) in found.iter().zip([1.0, 2.0, -3.0]) {
            assert!((found - (s - total)).abs() < 1e-6);
        }
        let z = [0.5, -1.0, 2.0, 0.25, -3.0, 0.125];
        let whole = running_sums(&z, 2, &[]);
        assert_eq!(whole[4..], running_sums(&z[4..], 2, &whole[2..4]), "cut or whole");
        assert_eq!(log_priors(&whole, 2, 0)[4..], log_priors(&whole[4..], 2, 2));
        let mut logits = [1.0, 0.0, 0.0];
        add_prior(&mut logits, 2.0, &found);
        assert!((logits[0] - 1.0 - 2.0 * found[0]).abs() < 1e-6);
    }

    /// Gradients against central differences in f64, the decision written out again.
    #[test]
    fn gradients_are_those_of_central_differences() {
        let policy = Policy { top_k: 3, crisis: Some(FLOOR) };
        for (logits, p_crisis) in
            [([3.0f32, 1.0, -4.0, 2.0], 0.9f32), ([3.0, 1.0, 2.9, 2.0], 0.9), ([0.3, 1.0, 0.2, 0.1], 0.1)]
        {
            let (decision, gates) = decide(policy, &logits, p_crisis, 0);
            let weights = [0.7f32, -1.3, 2.1, 0.4];
            let mut d = weights;
            policy.gradient(decision.floored, &gates, &mut d);
            let (held, shared) = policy.held(decision.floored);
            let value = |logits: &[f64]| -> f64 {
                let free = |e: &usize| decision.taken >> e & 1 == 1 && held >> e & 1 == 0;
                let total: f64 = (0..4).filter(free).map(|e| logits[e].exp()).sum();
                (0..4).filter(free).map(|e| f64::from(weights[e] * shared) * logits[e].exp() / total).sum()
            };
            for e in 0..4 {
                let moved = |step: f64| {
                    let mut logits = logits.map(f64::from);
                    logits[e] += step;
                    value(&logits)
                };
                let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((f64::from(d[e]) - expected).abs() < 1e-5, "{e}: {} is not {expected}", d[e]);
            }
        }
    }
}
