//! Training of a mixture: what goes in, what comes out, who is told on the way. Refuses to know where examples come from,
//! what time it is and where checkpoints go.
//!
//! Reading order: [`run`](self) takes the steps; `prepare`, `order` and `batch` bring the tokens; `gradient` finds the
//! gradients a layer at a time; `labels` guides the routers; `schedule` and `adamw` move the weights; `measure` and
//! `state` say how good they are and keep them.
//!
//! The loss is the mean over the target tokens of an optimiser step, whatever the number of passes it takes. Routers are
//! forced by domain labels in the first fifth of the steps, ever less until half of them, and free afterwards; beside the
//! language loss they learn to prefer the experts of a conversation's domain and to forget none.

mod adamw;
mod batch;
mod gradient;
mod labels;
mod measure;
mod order;
mod prepare;
mod run;
mod schedule;
mod state;

pub use adamw::{AdamW, Rate, clip};
pub use batch::Batch;
pub use measure::score;
pub use gradient::{Goals, Gradients, Keep, PassLoss, PassScores, RouterPlan};

use crate::adapter::{AdapterError, Mixture};
use crate::backbone::Backbone;
use empathd_proto::engine::{Example, Part, TrainSpec};
use empathd_proto::generate::PlainMessage;
use empathd_proto::report::{TrainProgress, TrainReport};
use labels::Labels;
use prepare::prepare;
use run::{Job, Run};
use state::digest;
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
    /// After every step and validation. Break: make a checkpoint and stop early.
    fn progress(&mut self, progress: &TrainProgress) -> ControlFlow<()>;
    /// A checkpoint from which training can go on.
    fn checkpoint(&mut self, step: u32, bytes: Vec<u8>);
    /// Between two layers of work: the moment to answer someone who waits.
    fn between_layers(&mut self);
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

/// Trains a mixture over `base`.
///
/// # Errors
/// See [`TrainError`].
#[expect(clippy::too_many_arguments, reason = "each is a different thing the trainer must not know how to get")]
pub fn train(
    base: &Backbone,
    base_sha256: [u8; 32],
    encode: &dyn Encode,
    spec: &TrainSpec,
    examples: &[Example],
    resume: Option<&[u8]>,
    now: &dyn Fn() -> Duration,
    observer: &mut dyn Observer,
) -> Result<Trained, TrainError> {
    check(spec)?;
    let seq_len = (spec.seq_len as usize).min(base.config().context);
    let train = prepare(encode, examples.iter().filter(|e| e.part == Part::Learn), seq_len)?;
    let held = prepare(encode, examples.iter().filter(|e| e.part == Part::HeldOut), seq_len)?;
    if train.is_empty() || held.is_empty() {
        let which = if train.is_empty() { "to learn from" } else { "held out for validation" };
        return Err(TrainError::BadJob(format!("no example {which} holds an answer; ingest more and cut again")));
    }
    let digest = digest(spec, base_sha256, &train, &held);
    let shape = Mixture::init(base.config(), &spec.mixture, spec.seed)?;
    let labels = Labels::new(&spec.mixture, &train);
    let job = Job { base, spec, train, held, labels, shape, digest, now };
    let (mut run, resumed_from) = match resume {
        Some(bytes) => {
            let run = Run::resume(&job, bytes)?;
            let step = run.step_number();
            (run, Some(step))
        }
        None => (Run::begin(&job, observer)?, None),
    };
    let stopped_early = run.steps(observer)?;
    let (mixture, report) = run.finish(stopped_early, resumed_from)?;
    let bytes = mixture.to_bytes(base_sha256)?;
    Ok(Trained { mixture, bytes, report })
}

/// Refuses settings that cannot work.
fn check(spec: &TrainSpec) -> Result<(), TrainError> {
    let bad = |what: &str| Err(TrainError::BadJob(what.to_owned()));
    if spec.steps == 0 || spec.tokens_per_step == 0 || spec.seq_len < 8 {
        return bad("steps and tokens per step must not be zero, and sequences need at least 8 tokens");
    }
    let rates = [spec.learning_rate, spec.router_learning_rate, spec.clip];
    if !rates.iter().all(|x| x.is_finite() && *x > 0.0) {
        return bad("learning rates and the gradient bound must be above zero");
    }
    if !((0.0..1.0).contains(&spec.warmup) && spec.weight_decay.is_finite() && spec.weight_decay >= 0.0) {
        return bad("warm-up must be a share below one, and weight decay must not be negative");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
