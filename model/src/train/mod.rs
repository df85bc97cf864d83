//! Training of a mixture: what goes in, what comes out, who is told on the way.

use crate::adapter::Mixture;
use crate::backbone::Backbone;
use empathd_proto::engine::{Evaluation, Example, PlainMessage, TrainSpec};
use empathd_proto::report::{TrainProgress, TrainReport};
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
    _base: &Backbone,
    _base_sha256: [u8; 32],
    _encode: &dyn Encode,
    _spec: &TrainSpec,
    _examples: &[Example],
    _resume: Option<&[u8]>,
    _now: &dyn Fn() -> Duration,
    _observer: &mut dyn Observer,
) -> Result<Trained, TrainError> {
    Err(TrainError::BadJob("not written yet".into()))
}

/// Measures the loss of all `examples`.
///
/// # Errors
/// See [`TrainError`].
pub fn evaluate(
    _base: &Backbone,
    _encode: &dyn Encode,
    _mixture: Option<&Mixture>,
    _examples: &[Example],
    _seq_len: usize,
    _between_layers: &mut dyn FnMut(),
) -> Result<Evaluation, TrainError> {
    Err(TrainError::BadJob("not written yet".into()))
}
