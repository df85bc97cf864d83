//! Which weights are the best so far, when the rate falls and when there is no use in going on: by the mean over domains of
//! the held-out loss, so that a large domain does not speak for a small one. Weights that break a guard are never the best.
//! Refuses to know how losses are found.

use empathd_proto::engine::{Evaluation, Guards, TrainSpec};
use serde::{Deserialize, Serialize};

/// What one validation measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// Held-out examples by domain.
    pub(super) held: Evaluation,
    /// General text, when there is any: mean loss per target.
    pub(super) general: Option<f64>,
    /// Crisis items, when there are any.
    pub(super) crisis_items: Option<f64>,
}

/// What validations have said so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Judge {
    /// The base model.
    pub(super) base: Measured,
    /// The best weights.
    pub(super) best: Measured,
    /// Step of the best weights; 0 for those that training began with.
    pub(super) best_at: u32,
    /// The last weights.
    pub(super) last: Measured,
    /// Validations since the best.
    pub(super) worse: u32,
    /// Of them, since the rate last fell.
    pub(super) flat: u32,
    /// Times that the rate fell.
    pub(super) cuts: u32,
}

impl Measured {
    /// Mean of the domains' losses.
    pub(super) fn macro_loss(&self) -> f64 {
        self.held.macro_loss()
    }

    /// Whether every loss is a number.
    pub(super) fn is_finite(&self) -> bool {
        let guards = [self.general, self.crisis_items].into_iter().flatten();
        self.held.by_domain.values().copied().chain(guards).all(f64::is_finite)
    }

    /// Whether the guards hold against the base model.
    fn holds(&self, base: &Self, guards: &Guards) -> bool {
        let rise = |after: Option<f64>, before: Option<f64>| after.unwrap_or(0.0) - before.unwrap_or(0.0);
        rise(self.general, base.general) <= f64::from(guards.general_rise_max)
            && rise(self.crisis_items, base.crisis_items) <= f64::from(guards.crisis_rise_max)
    }
}

impl Judge {
    /// Before the first step: a fresh mixture is as good as the base model.
    pub(super) fn new(base: Measured) -> Self {
        Self { best: base.clone(), best_at: 0, last: base.clone(), base, worse: 0, flat: 0, cuts: 0 }
    }

    /// Before the first step of a mixture that is not fresh: what it is worth.
    pub(super) fn begin(&mut self, found: Measured) {
        (self.best, self.last) = (found.clone(), found);
    }

    /// Hears what was measured of the weights after `step`; whether they are the best so far.
    pub(super) fn hear(&mut self, found: Measured, step: u32, spec: &TrainSpec) -> bool {
        let is_best = found.macro_loss() < self.best.macro_loss() && found.holds(&self.base, &spec.guards);
        if is_best {
            (self.worse, self.flat) = (0, 0);
            (self.best, self.best_at) = (found.clone(), step);
        } else {
            (self.worse, self.flat) = (self.worse + 1, self.flat + 1);
        }
        if spec.plateau.patience > 0 && self.flat >= spec.plateau.patience {
            (self.flat, self.cuts) = (0, self.cuts + 1);
        }
        self.last = found;
        is_best
    }

    /// Whether there is no use in going on. While stages still change who learns, waiting is not in vain.
    pub(super) fn is_in_vain(&self, spec: &TrainSpec, progress: f64) -> bool {
        let staged = !spec.mixture.experts.is_empty() && progress < f64::from(spec.stages.forced_until);
        spec.patience > 0 && self.worse >= spec.patience && !staged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::schedule::tests::spec;
    use empathd_proto::engine::Plateau;

    fn measured(crisis: f64, bias: f64, general: f64, items: f64) -> Measured {
        let by_domain = [("crisis".to_owned(), crisis), ("bias".to_owned(), bias)].into();
        let held = Evaluation { loss: 0.1 * crisis + 0.9 * bias, by_domain, target_tokens: 100 };
        Measured { held, general: Some(general), crisis_items: Some(items) }
    }

    #[test]
    fn the_best_is_best_over_domains_and_within_its_guards() {
        let mut judge = Judge::new(measured(2.0, 2.0, 3.0, 3.0));
        let spec = TrainSpec { guards: Guards { general_rise_max: 0.05, crisis_rise_max: 0.02 }, ..spec() };
        assert!(!judge.hear(measured(2.5, 1.6, 3.0, 3.0), 7, &spec), "a smaller loss over all tokens is not enough");
        assert!(!judge.hear(measured(1.0, 1.0, 3.06, 3.0), 7, &spec), "general text got worse");
        assert!(!judge.hear(measured(1.0, 1.0, 3.0, 3.03), 7, &spec), "crisis items got worse");
        assert_eq!((judge.worse, judge.best.macro_loss()), (3, 2.0));
        assert!(judge.hear(measured(1.7, 1.9, 3.04, 3.01), 7, &spec));
        assert!(!judge.hear(measured(f64::NAN, 0.1, 3.0, 3.0), 7, &spec));
        assert!(!judge.last.is_finite() && judge.best.is_finite());
        assert_eq!(judge.worse, 1);
    }

    #[test]
    fn the_rate_falls_on_a_plateau_and_patience_ends() {
        let mut judge = Judge::new(measured(2.0, 2.0, 3.0, 3.0));
        let spec = TrainSpec { patience: 5, plateau: Plateau { patience: 2, factor: 0.5 }, ..spec() };
        let worse = measured(2.1, 2.0, 3.0, 3.0);
        let cuts: Vec<u32> = (0..5)
            .map(|_| {
                judge.hear(worse.clone(), 7, &spec);
                judge.cuts
            })
            .collect();
        assert_eq!(cuts, [0, 1, 1, 2, 2]);
        assert!(judge.is_in_vain(&spec, 0.6) && !judge.is_in_vain(&spec, 0.3), "experts have not had their turn yet");
        judge.hear(measured(1.0, 1.0, 3.0, 3.0), 7, &spec);
        assert!(!judge.is_in_vain(&spec, 0.6));
    }
}
