//! The thread that trains and evaluates, one job after the other, giving way to answers between layers. Refuses to know
//! how jobs arrive.

use super::state::State;
use super::works::Works;
use crate::adapter::Mixture;
use crate::backbone::Backbone;
use crate::infer::Model;
use crate::infer::compute::ServingAdapter;
use crate::schedule::Cancel;
use crate::train::{self, Observer, TrainError, Trained};
use empathd_proto::engine::{EngineFailure, Example, FromEngineBody, TrainSpec};
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
    /// Train, perhaps from a checkpoint.
    Train { spec: Box<TrainSpec>, resume: Option<Vec<u8>> },
    /// Measure.
    Evaluate { adapter: Option<Arc<ServingAdapter>>, seq_len: usize },
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
            Task::Train { spec, resume } => self.train(spec, resume.as_deref(), works, state),
            Task::Evaluate { adapter, seq_len } => {
                let mixture = adapter.as_ref().map(|adapter| &adapter.mixture);
                self.evaluate(mixture, *seq_len, works, state)
            }
        };
        if let Err(error) = outcome {
            works.fail(self.tag, failure(&error));
        }
    }

    fn train(&self, spec: &TrainSpec, resume: Option<&[u8]>, works: &Works, state: &State) -> Result<(), TrainError> {
        let begun = Instant::now();
        let mut reporter = Reporter { job: self, works, state };
        let (format, facts) = (self.model.format.as_ref(), &self.model.facts);
        let backbone = &self.backbone()?;
        let now = || begun.elapsed();
        let trained = train::train(backbone, facts.sha256, format, spec, &self.examples, resume, &now, &mut reporter)?;
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
        let (backbone, format) = (&self.backbone()?, self.model.format.as_ref());
        let mut between_layers = || {
            if self.cancel.is_set() {
                resume_unwind(Box::new(Abandoned));
            }
            state.yield_to_answers();
        };
        let found = train::score(backbone, format, mixture, &self.examples, seq_len, &mut between_layers)?;
        let _ = works.say(self.tag, FromEngineBody::Evaluated(found));
        Ok(())
    }
}

impl Job {
    /// The weights as training reads them, shared with whoever else trains.
    fn backbone(&self) -> Result<Backbone, TrainError> {
        self.model.backbone().map_err(|error| TrainError::Tensor(candle_core::Error::wrap(error)))
    }
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
        TrainError::BadCheckpoint(_) | TrainError::Encode(_) | TrainError::Adapter(_) => {
            EngineFailure::BadJob(error.to_string())
        }
        TrainError::Tensor(_) => EngineFailure::Internal(error.to_string()),
    }
}
