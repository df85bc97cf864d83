//! How the rate, the forcing of routers and the number of steps go on with time. Progress is a share from 0 to 1; when
//! the deadline comes nearer than planned, the remaining progress is spread over fewer steps, so that decay always ends.

use empathd_proto::engine::TrainSpec;
use std::f64::consts::PI;

/// Share of the peak rate at the end.
const FLOOR: f64 = 0.1;
/// Progress up to which labels alone route.
const FORCED_UNTIL: f64 = 0.2;
/// Progress from which routers alone route.
const FREE_FROM: f64 = 0.5;
/// Validations that must still fit before the deadline: the last one, with as much again for export.
const RESERVED_VALIDATIONS: f64 = 2.0;

/// Share of the peak rate at the end of a step: rises linearly over `warmup`, then falls as a cosine to a tenth.
#[must_use]
pub(super) fn rate_factor(progress: f64, warmup: f64) -> f64 {
    if progress < warmup {
        return progress / warmup;
    }
    let fallen = ((progress - warmup) / (1.0 - warmup).max(f64::EPSILON)).min(1.0);
    FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (PI * fallen).cos())
}

/// Probability that a conversation is routed by its label.
#[must_use]
pub(super) fn forced_share(progress: f64) -> f64 {
    ((FREE_FROM - progress) / (FREE_FROM - FORCED_UNTIL)).clamp(0.0, 1.0)
}

/// Where the job stands in time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Seconds since the job began, those before an interruption included.
    pub(super) elapsed_s: f64,
    /// Seconds of the last validation.
    pub(super) validation_s: f64,
}

/// Steps that are still to be taken after `done`, as many of the spec's as fit before its deadline.
#[must_use]
pub(super) fn steps_left(spec: &TrainSpec, done: u32, first_step_at_s: f64, clock: Clock) -> u32 {
    let wanted = spec.steps.saturating_sub(done);
    if done == 0 {
        return wanted;
    }
    let per_step = (clock.elapsed_s - first_step_at_s) / f64::from(done);
    let room = f64::from(spec.seconds_max) - clock.elapsed_s - RESERVED_VALIDATIONS * clock.validation_s;
    if per_step <= 0.0 {
        return wanted;
    }
    wanted.min((room / per_step).max(0.0) as u32)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use empathd_proto::engine::{Guards, LossSpec, MixtureSpec, Plateau, Stages, TrainOnly};
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
            stages: Stages::default(),
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
    }

    #[test]
    fn labels_let_go_of_routers() {
        assert_eq!((forced_share(0.0), forced_share(0.2), forced_share(0.5), forced_share(1.0)), (1.0, 1.0, 0.0, 0.0));
        assert!((forced_share(0.35) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn steps_are_cut_to_the_deadline() {
        let clock = |elapsed_s| Clock { elapsed_s, validation_s: 20.0 };
        assert_eq!(steps_left(&spec(), 10, 0.0, clock(50.0)), 90, "fast enough");
        assert_eq!(steps_left(&spec(), 10, 0.0, clock(200.0)), 38, "(1000 - 200 - 40) / 20");
        assert_eq!(steps_left(&spec(), 10, 100.0, clock(200.0)), 76, "what came before the first step is no step");
        assert_eq!(steps_left(&spec(), 10, 0.0, clock(2000.0)), 0);
        assert_eq!(steps_left(&spec(), 0, 0.0, clock(500.0)), 100);
    }
}
