//! The thread that trains and evaluates, one job after the other, giving way to answers between layers. Refuses to know
//! how jobs arrive.

use super::state::State;
use super::works::Works;
use crate::adapter::Mixture;
use crate::infer::Model;
use crate::infer::compute::ServingAdapter;
use crate::schedule::Cancel;
use crate::train::{self, Gradients, Host, Memory, Observer, Start, TrainError, Trained};
use empathd_proto::engine::{CurvePoint, EngineFailure, Example, FromEngineBody, TrainSpec};
use empathd_proto::report::TrainProgress;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// A job with everything it needs.
pub(super) struct Job {
    pub(super) tag: u64,
    pub(super) cancel: Cancel,
    pub(super) model: Arc<Model>,
    pub(super) examples: Vec<Example>,
    pub(super) task: Task,
}

/// What is to be done with the examples.
pub(super) enum Task {
    /// Train, from what was sent.
    Train { spec: Box<TrainSpec>, from: From },
    /// Measure.
    Evaluate { adapter: Option<Arc<ServingAdapter>>, seq_len: usize },
}

/// What a job that trains was sent to start from.
#[derive(Default)]
pub(super) enum From {
    /// Nothing.
    #[default]
    Nothing,
    /// A state that was handed out before.
    Checkpoint(Vec<u8>),
    /// An adapter.
    Adapter(Vec<u8>),
}

/// Thrown through the computation when nobody is left to take its result. It is caught in this file.
struct Abandoned;

/// Does jobs until none can come any more.
pub(super) fn run(jobs: &Receiver<Job>, works: &Works, state: &State) {
    for job in jobs {
        let tag = job.tag;
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| job.run(works, state))) {
            let failure = if cause.is::<Abandoned>() {
                EngineFailure::Cancelled
            } else {
                EngineFailure::Internal("the job panicked".to_owned())
            };
            works.fail(tag, failure);
        }
    }
}

impl Job {
    fn run(self, works: &Works, state: &State) {
        let outcome = match &self.task {
            Task::Train { spec, from } => self.train(spec, from, works, state),
            Task::Evaluate { adapter, seq_len } => {
                let mixture = adapter.as_ref().map(|adapter| &adapter.mixture);
                self.evaluate(mixture, *seq_len, works, state)
            }
        };
        if let Err(error) = outcome {
            works.fail(self.tag, failure(&error));
        }
    }

    fn train(&self, spec: &TrainSpec, from: &From, works: &Works, state: &State) -> Result<(), TrainError> {
        let begun = Instant::now();
        let mut reporter = Reporter { job: self, works, state };
        let (format, facts) = (self.model.format.as_ref(), &self.model.facts);
        let mut gradients = self.gradients()?;
        let start = match from {
            From::Nothing => Start::Fresh,
            From::Checkpoint(bytes) => Start::Checkpoint(bytes),
            From::Adapter(bytes) => Start::Adapter(bytes),
        };
        let host = Host { now: &|| begun.elapsed(), memory: &memory };
        let (sha256, examples) = (facts.sha256, &self.examples);
        let trained = train::train(&mut gradients, sha256, format, spec, examples, start, &host, &mut reporter)?;
        let Trained { bytes, report, .. } = trained;
        // Whoever is gone will resume from the last checkpoint.
        let _ = works
            .say_blob(self.tag, &bytes, |blob| FromEngineBody::Adapter { blob })
            .and_then(|()| works.say(self.tag, FromEngineBody::Trained(Box::new(report))));
        Ok(())
    }

    fn evaluate(
        &self,
        mixture: Option<&Mixture>,
        seq_len: usize,
        works: &Works,
        state: &State,
    ) -> Result<(), TrainError> {
        let (mut gradients, format) = (self.gradients()?, self.model.format.as_ref());
        let mut between_layers = || {
            if self.cancel.is_set() {
                resume_unwind(Box::new(Abandoned));
            }
            state.yield_to_answers();
        };
        let found = train::score(&mut gradients, format, mixture, &self.examples, seq_len, &mut between_layers)?;
        let _ = works.say(self.tag, FromEngineBody::Evaluated(found));
        Ok(())
    }
}

impl Job {
    /// What finds gradients over the base model.
    fn gradients(&self) -> Result<Gradients, TrainError> {
        let gradients = self.model.gradients(rayon::current_num_threads());
        gradients.map_err(|error| TrainError::Tensor(candle_core::Error::wrap(error)))
    }
}

/// Memory as Linux tells it; without a word from it, nothing is known.
fn memory() -> Memory {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(Memory::unknown(), |kib| Memory { available: kib * 1024 })
}

/// Tells the daemon how training goes.
struct Reporter<'a> {
    job: &'a Job,
    works: &'a Works,
    state: &'a State,
}

impl Observer for Reporter<'_> {
    fn progress(&mut self, progress: &TrainProgress) -> ControlFlow<()> {
        let said = self.works.say(self.job.tag, FromEngineBody::Progress(progress.clone()));
        if said.is_err() || self.job.cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn checkpoint(&mut self, step: u32, bytes: Vec<u8>) {
        let _ = self.works.say_blob(self.job.tag, &bytes, |blob| FromEngineBody::Checkpoint { step, blob });
    }

    fn curve(&mut self, point: &CurvePoint) {
        let _ = self.works.say(self.job.tag, FromEngineBody::Curve(Box::new(point.clone())));
    }

    fn wants_pause(&mut self) -> bool {
        self.job.cancel.is_set()
    }

    fn between_layers(&mut self) {
        if self.works.is_closed() {
            resume_unwind(Box::new(Abandoned));
        }
        self.state.yield_to_answers();
    }
}

fn failure(error: &TrainError) -> EngineFailure {
    match error {
        TrainError::BadJob(cause) => EngineFailure::BadJob(cause.clone()),
        TrainError::BadCheckpoint(_) | TrainError::Encode(_) | TrainError::Adapter(_) | TrainError::Diverged(_) => {
            EngineFailure::BadJob(error.to_string())
        }
        TrainError::Paused => EngineFailure::Cancelled,
        TrainError::Tensor(_) => EngineFailure::Internal(error.to_string()),
    }
}
