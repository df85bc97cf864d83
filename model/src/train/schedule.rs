//! How rate and stages go on with progress, and how many steps the time allows. Progress is a share from 0 to 1 that is
//! worked out from decisions in whole numbers; when the deadline comes nearer than planned, what remains of it is spread
//! over fewer steps, so that decay always ends. Refuses to know what a step does and where the time comes from.
//!
//! Decisions that come from a clock are written down ([`PlanChange`]) and handed out with a checkpoint before a step is
//! taken by them. Whoever goes on from any checkpoint takes the same steps as the one who was not interrupted, until the
//! next decision; no other number of training depends on time.

use empathd_proto::engine::{Plateau, Stages, TrainSpec};
use empathd_proto::report::PlanChange;
use std::f64::consts::PI;

/// Share of the peak rate at the end.
const FLOOR: f64 = 0.1;
/// Share of the steps that fit that a new plan uses, so that not every slow step makes another one.
const CAUTION: f64 = 0.9;
/// Share of all time that a new plan leaves unused, for a machine that gets slower near the end.
const CUSHION: f64 = 0.04;
/// How many times more steps must fit than are planned before a plan grows again.
const WORTH_GROWING: f64 = 1.25;
/// Last validations that are kept free before the deadline: one, and half for a machine that gets slower meanwhile.
const RESERVED_VALIDATIONS: f64 = 1.5;
/// Exports that are kept free before the deadline: one, and two for a machine that gets slower meanwhile.
const RESERVED_EXPORTS: f64 = 3.0;
/// Share of all time that is kept free beside them.
const RESERVED_SHARE: f64 = 0.01;
/// Weight of the last step in the measured time of a step.
const NEWS: f64 = 0.3;

/// Share of the peak rate at the end of a step: rises linearly over `warmup`, then falls as a cosine to a tenth.
#[must_use]
pub(super) fn rate_factor(progress: f64, warmup: f64) -> f64 {
    if progress < warmup {
        return progress / warmup;
    }
    let fallen = ((progress - warmup) / (1.0 - warmup).max(f64::EPSILON)).min(1.0);
    FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (PI * fallen).cos())
}

/// What the rate is multiplied by after so many cuts on a plateau.
#[must_use]
pub(super) fn plateau_factor(plateau: Plateau, cuts: u32) -> f64 {
    f64::from(plateau.factor).powi(i32::try_from(cuts).unwrap_or(i32::MAX))
}

/// Who routes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stage {
    /// Nobody: only the shared part learns.
    Shared,
    /// Labels, with this probability for each conversation; routers otherwise.
    Forced(f64),
}

/// The stage at a progress: labels route with a probability that falls from one to a half, then to none at the end.
#[must_use]
pub(super) fn stage(progress: f64, stages: &Stages) -> Stage {
    let (shared, forced) = (f64::from(stages.shared_until), f64::from(stages.forced_until));
    let part = |from: f64, until: f64| ((progress - from) / (until - from).max(f64::EPSILON)).clamp(0.0, 1.0);
    match progress {
        _ if progress <= shared && shared > 0.0 => Stage::Shared,
        _ if progress <= forced => Stage::Forced(1.0 - 0.5 * part(shared, forced)),
        _ => Stage::Forced(0.5 * (1.0 - part(forced, 1.0))),
    }
}

/// The share of progress behind after `step` steps, by the decisions so far.
#[must_use]
pub(super) fn progress(plans: &[PlanChange], step: u32) -> f64 {
    let mut progress = 0.0;
    for (index, plan) in plans.iter().enumerate() {
        let until = plans.get(index + 1).map_or(step, |next| next.at_step.min(step));
        let (taken, planned) = (until.saturating_sub(plan.at_step), plan.steps.saturating_sub(plan.at_step).max(1));
        progress += (1.0 - progress) * (f64::from(taken) / f64::from(planned)).min(1.0);
    }
    progress
}

/// How long things take on this machine now, seconds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Pace {
    /// A step.
    pub(super) step_s: f64,
    /// A validation.
    pub(super) validation_s: f64,
    /// Handing out the state.
    pub(super) export_s: f64,
    /// Longest time between two moments at which training can give way.
    pub(super) gap_s: f64,
}

impl Pace {
    /// One more step was taken.
    pub(super) fn stepped(&mut self, seconds: f64) {
        self.step_s += NEWS * (seconds - self.step_s);
    }

    /// Seconds before the deadline at which whatever runs is given up: what is left is for handing out the best weights.
    pub(super) fn last_call_s(&self, seconds_max: f64) -> f64 {
        RESERVED_EXPORTS * self.export_s + 2.0 * self.gap_s + RESERVED_SHARE * seconds_max
    }
}

/// Where a job stands in time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation {
    /// Steps taken.
    pub(super) done: u32,
    /// Steps planned in all.
    pub(super) planned: u32,
    /// Seconds since the job began, those before an interruption included.
    pub(super) elapsed_s: f64,
    pub(super) pace: Pace,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The plan holds.
    Keep,
    /// So many steps in all from now on.
    Replan(u32),
    /// Not one more step fits.
    Stop,
}

/// Seconds of a step with its share of validations.
pub(super) fn step_with_validation_s(spec: &TrainSpec, pace: &Pace) -> f64 {
    pace.step_s
        + pace.validation_s / f64::from(spec.validate_every.max(1)) * f64::from(u32::from(spec.validate_every > 0))
}

/// Whether the plan holds. It may grow back towards the spec's steps only where `may_grow` says so: growing can wait,
/// shrinking cannot.
#[must_use]
pub(super) fn decide(spec: &TrainSpec, now: &Situation, may_grow: bool) -> Decision {
    let Situation { done, planned, elapsed_s, pace } = now;
    let (done, planned, all_s) = (*done, *planned, f64::from(spec.seconds_max));
    let left = planned.saturating_sub(done);
    let room = all_s - elapsed_s - pace.last_call_s(all_s) - RESERVED_VALIDATIONS * pace.validation_s;
    let in_room = |room: f64| (room / step_with_validation_s(spec, pace).max(1e-9)).clamp(0.0, f64::from(u32::MAX));
    let fit = in_room(room) as u32;
    let cautious = (CAUTION * in_room(room - CUSHION * all_s)).max(1.0) as u32;
    match fit {
        _ if left == 0 => Decision::Keep,
        0 => Decision::Stop,
        _ if fit < left => Decision::Replan(done + cautious),
        _ if may_grow && planned < spec.steps && f64::from(cautious) > WORTH_GROWING * f64::from(left) => {
            Decision::Replan(spec.steps.min(done.saturating_add(cautious)))
        }
        _ => Decision::Keep,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use empathd_proto::engine::{Guards, LossSpec, MixtureSpec, TrainOnly};
    use empathd_proto::ids::JobId;

    pub(crate) fn spec() -> TrainSpec {
        TrainSpec {
            job: JobId::from_bytes([0; 16]),
            mixture: MixtureSpec {
                shared_rank: 2,
                expert_rank: 2,
                experts: vec![None; 2],
                top_k: 1,
                scale: 2.0,
                ..MixtureSpec::default()
            },
            only: TrainOnly::All,
            seq_len: 32,
            tokens_per_step: 48,
            pass_tokens: None,
            steps: 100,
            seconds_max: 1000,
            learning_rate: 5e-3,
            b_rate_ratio: 1.0,
            router_learning_rate: 1e-2,
            weight_decay: 0.01,
            warmup: 0.1,
            clip: 1.0,
            validate_every: 10,
            checkpoint_every: 10,
            patience: 5,
            plateau: Plateau::default(),
            stages: Stages { shared_until: 0.2, forced_until: 0.5 },
            losses: LossSpec::default(),
            guards: Guards::default(),
            seed: 1,
        }
    }

    #[test]
    fn the_rate_rises_falls_and_ends_at_a_tenth() {
        assert!((rate_factor(0.05, 0.1) - 0.5).abs() < 1e-12);
        assert!((rate_factor(0.1, 0.1) - 1.0).abs() < 1e-12);
        assert!((rate_factor(1.0, 0.1) - 0.1).abs() < 1e-12);
        assert!((rate_factor(1.0, 0.0) - 0.1).abs() < 1e-12);
        let all: Vec<f64> = (10..=100).map(|i| rate_factor(f64::from(i) / 100.0, 0.1)).collect();
        assert!(all.windows(2).all(|w| w[1] < w[0]));
        assert!(rate_factor(1.0, 1.0).is_finite());
        assert_eq!(plateau_factor(Plateau { patience: 2, factor: 0.5 }, 3), 0.125);
    }

    #[test]
    fn first_the_shared_part_then_labels_then_routers() {
        let at = |progress| stage(progress, &Stages { shared_until: 0.2, forced_until: 0.5 });
        assert_eq!((at(0.01), at(0.2)), (Stage::Shared, Stage::Shared));
        let forced = |progress| match at(progress) {
            Stage::Forced(share) => share,
            Stage::Shared => panic!("{progress}"),
        };
        assert!(forced(0.2001) > 0.999 && (forced(0.35) - 0.75).abs() < 1e-6);
        assert!((forced(0.5) - 0.5).abs() < 1e-6 && (forced(0.75) - 0.25).abs() < 1e-6 && forced(1.0) == 0.0);
        assert_eq!(stage(0.0, &Stages { shared_until: 0.0, forced_until: 0.0 }), Stage::Forced(1.0));
        assert_eq!(stage(1.0, &Stages { shared_until: 0.0, forced_until: 0.0 }), Stage::Forced(0.0));
    }

    #[test]
    fn progress_ends_at_one_whatever_was_decided() {
        let plan = |at_step, steps| PlanChange { at_step, steps };
        assert_eq!(progress(&[plan(0, 8)], 2), 0.25);
        let changed = [plan(0, 100), plan(10, 40), plan(20, 30)];
        assert_eq!(progress(&changed, 10), 0.1);
        assert!((progress(&changed, 20) - 0.4).abs() < 1e-12);
        assert!((progress(&changed, 30) - 1.0).abs() < 1e-12);
        let all: Vec<f64> = (0..=30).map(|step| progress(&changed, step)).collect();
        assert!(all.windows(2).all(|two| two[1] > two[0]));
    }

    fn after(elapsed_s: f64, step_s: f64, (done, planned): (u32, u32)) -> Situation {
        let pace = Pace { step_s, validation_s: 20.0, export_s: 2.0, gap_s: 0.5 };
        Situation { done, planned, elapsed_s, pace }
    }

    #[test]
    fn steps_are_cut_to_the_deadline_and_grow_back() {
        let decided = |now: Situation, may_grow| decide(&spec(), &now, may_grow);
        assert_eq!(decided(after(50.0, 5.0, (10, 100)), true), Decision::Keep, "fast enough");
        // (1000 − 200 − 17 − 30) s at 20 + 2 s a step are 34 steps; without the cushion 32, nine tenths of them 29.
        assert_eq!(decided(after(200.0, 20.0, (10, 100)), false), Decision::Replan(39));
        assert_eq!(decided(after(200.0, 20.0, (10, 40)), false), Decision::Keep);
        assert_eq!(decided(after(300.0, 5.0, (15, 40)), false), Decision::Keep, "growing can wait");
        assert_eq!(decided(after(300.0, 5.0, (15, 40)), true), Decision::Replan(93));
        assert_eq!(decided(after(940.0, 20.0, (30, 40)), true), Decision::Stop);
        assert_eq!(decided(after(2000.0, 20.0, (40, 40)), true), Decision::Keep, "all steps are taken");
    }
}
