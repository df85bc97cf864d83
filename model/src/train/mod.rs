//! Training of a mixture: what goes in, what comes out, who is told on the way. Refuses to know where examples come from,
//! what time it is and where checkpoints go.
//!
//! Reading order: [`run`](self) takes the turns of the loop; `job` says what each is about; `prepare`, `order`, `pack` and
//! `batch` bring the tokens; `gradient` finds the gradients; `labels` guides the routers; `schedule`, `parts` and `adamw`
//! move the weights; `measure` and `judge` say how good they are; `search` and `watch` mind the machine and the clock;
//! `state` keeps everything.
//!
//! The loss is the mean over the target tokens of an optimiser step, whatever the number of passes it takes. The shared
//! part learns alone at first; then labels route, ever less; at last routers alone do.
//!
//! The weights are a function of the settings, the examples and the decisions that were made from clocks: the tokens of a
//! pass and the number of steps. Decisions are in the state, which is handed out before anything is done by them.

mod adamw;
mod batch;
mod gradient;
mod job;
mod judge;
mod labels;
mod measure;
mod order;
mod orthogonal;
mod pack;
mod parts;
mod prepare;
mod run;
mod schedule;
mod search;
mod state;
mod watch;

pub use adamw::{AdamW, Clocks, Rate};
pub use batch::Batch;
pub use gradient::{
    FrozenSource, Goals, Gradients, Keep, Labelled, PassLoss, PassScores, PlannedRouting, Precision, RouterParts,
    RouterPlan, RouterWeights, Wanted,
};
pub use measure::score;
pub use schedule::Stage;

use crate::adapter::{AdapterError, Mixture};
use empathd_proto::engine::{CurvePoint, Example, TrainOnly, TrainSpec};
use empathd_proto::generate::PlainMessage;
use empathd_proto::report::{TrainProgress, TrainReport};
use job::Job;
use run::Run;
use state::State;
use std::ops::ControlFlow;
use std::time::Duration;

/// A conversation in tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether the model learns to say the token at this position; as long as `ids`.
    pub target: Vec<bool>,
}

/// A conversation that has no token form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a conversation cannot be put into tokens: {0}")]
pub struct EncodeError(pub String);

/// Puts conversations into tokens as the model's own template says.
pub trait Encode {
    /// All messages; what the assistant says, with its end of turn, is the target.
    ///
    /// # Errors
    /// The template refuses the messages.
    fn encode(&self, messages: &[PlainMessage]) -> Result<Encoded, EncodeError>;
}

/// Who is told how training goes.
pub trait Observer {
    /// Before every step and at the end. Break: hand out the state and stop.
    fn progress(&mut self, progress: &TrainProgress) -> ControlFlow<()>;
    /// A state from which training can go on.
    fn checkpoint(&mut self, step: u32, bytes: Vec<u8>);
    /// One step or validation.
    fn curve(&mut self, point: &CurvePoint) {
        let _ = point;
    }
    /// Between two layers of work: the moment to answer someone who waits.
    fn between_layers(&mut self);
    /// Asked between two layers: whether to give up the step under way, hand out the state and stop.
    fn wants_pause(&mut self) -> bool {
        false
    }
}

/// The machine that training runs on.
pub struct Host<'a> {
    /// Time since some moment; never goes back.
    pub now: &'a dyn Fn() -> Duration,
    /// Memory now.
    pub memory: &'a dyn Fn() -> Memory,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What this process may still take.
    pub available: u64,
}

impl Memory {
    /// Where nobody knows how much there is.
    #[must_use]
    pub const fn unknown() -> Self {
        Self { available: u64::MAX }
    }
}

/// What training starts from.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// A fresh mixture.
    Fresh,
    /// A trained mixture of the same shape, as its file.
    Adapter(&'a [u8]),
    /// What [`Observer::checkpoint`] was given.
    Checkpoint(&'a [u8]),
}

/// What training made.
pub struct Trained {
    /// The mixture with the best weights seen.
    pub mixture: Mixture,
    /// The same as a file.
    pub bytes: Vec<u8>,
    /// What was measured.
    pub report: TrainReport,
}

/// Why there is no trained mixture.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Nothing to learn from or to measure with.
    #[error("training cannot begin: {0}")]
    BadJob(String),
    /// The loss was not a number before anything was better than what training began with.
    #[error(
        "the loss or its gradient was not a number at step {0}; nothing was learnt by then. Lower the learning rates"
    )]
    Diverged(u32),
    /// Told to stop before the first step.
    #[error("training was stopped before its first step")]
    Paused,
    /// The checkpoint is of another job.
    #[error("the checkpoint cannot be resumed: {0}; start the job again without it")]
    BadCheckpoint(String),
    /// A conversation has no token form.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The trained mixture has no file form.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Trains a mixture over the backbone of `gradients`.
///
/// # Errors
/// See [`TrainError`].
#[expect(clippy::too_many_arguments, reason = "each is a different thing the trainer must not know how to get")]
pub fn train(
    gradients: &mut Gradients,
    base_sha256: [u8; 32],
    encode: &dyn Encode,
    spec: &TrainSpec,
    examples: &[Example],
    start: Start<'_>,
    host: &Host<'_>,
    observer: &mut dyn Observer,
) -> Result<Trained, TrainError> {
    check(spec)?;
    let begun = match start {
        Start::Adapter(bytes) => Some(begun_with(bytes, gradients, base_sha256, spec)?),
        Start::Fresh | Start::Checkpoint(_) => None,
    };
    let kept = |shape: &Mixture| match start {
        Start::Checkpoint(bytes) => State::is_of(bytes, shape),
        _ => true,
    };
    let job = Job::new(gradients, base_sha256, encode, spec, examples, begun, &kept)?;
    let (mut run, resumed_from) = match start {
        Start::Checkpoint(bytes) => {
            let run = Run::resume(&job, gradients, host, observer, bytes)?;
            let step = run.step_number();
            (run, Some(step))
        }
        Start::Fresh | Start::Adapter(_) => (Run::begin(&job, gradients, host, observer)?, None),
    };
    if matches!(start, Start::Adapter(_)) {
        run.measure_beginning()?;
    }
    let ended = run.steps()?;
    let (mixture, report) = run.finish(ended, resumed_from)?;
    let bytes = mixture.to_bytes(base_sha256)?;
    Ok(Trained { mixture, bytes, report })
}

/// The mixture that training starts from.
fn begun_with(
    bytes: &[u8],
    gradients: &Gradients,
    base_sha256: [u8; 32],
    spec: &TrainSpec,
) -> Result<Mixture, TrainError> {
    let mixture = Mixture::from_bytes(bytes, gradients.config(), base_sha256)?;
    if *mixture.spec() != spec.mixture {
        return Err(TrainError::BadJob("the adapter to start from has another shape than the job".into()));
    }
    Ok(mixture)
}

/// Refuses settings that cannot work.
fn check(spec: &TrainSpec) -> Result<(), TrainError> {
    let bad = |what: &str| Err(TrainError::BadJob(what.to_owned()));
    if spec.steps == 0 || spec.tokens_per_step == 0 || spec.seq_len < 8 || spec.pass_tokens == Some(0) {
        return bad("steps and tokens must not be zero, and sequences need at least 8 tokens");
    }
    let above_zero = [spec.learning_rate, spec.router_learning_rate, spec.b_rate_ratio, spec.clip, spec.plateau.factor];
    if !above_zero.iter().all(|x| x.is_finite() && *x > 0.0) {
        return bad("learning rates, their ratio, the plateau's factor and the gradient bound must be above zero");
    }
    let l = &spec.losses;
    let weights = [spec.weight_decay, l.session, l.route, l.route_end, l.balance, l.z, l.orthogonal, l.base_kl];
    if !weights.iter().all(|x| x.is_finite() && *x >= 0.0) {
        return bad("weight decay and the weights of losses must not be negative");
    }
    if !((0.0..1.0).contains(&spec.warmup) && (0.0..1.0).contains(&l.replay_share)) {
        return bad("warm-up and replay must be shares below one");
    }
    let stages = &spec.stages;
    if !(0.0 <= stages.shared_until && stages.shared_until <= stages.forced_until && stages.forced_until <= 1.0) {
        return bad("stages must be shares in their order");
    }
    if spec.only == TrainOnly::Routers && spec.mixture.experts.is_empty() {
        return bad("a mixture without experts has no routers to train");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
