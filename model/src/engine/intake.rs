//! What the daemon's messages mean: small prompts are done at once, things that arrive in parts are gathered, and
//! complete works go to the executor or the trainer. A message out of order ends its own work and no other. Refuses to
//! know streams and threads.

use super::blob::Assembly;
use super::executor::{self, Order};
use super::state::State;
use super::trainer::{Job, Task};
use super::works::{CancelFlag, Kind, Works};
use crate::adapter::Mixture;
use crate::infer::{Generation, Model, Plan, Sampling};
use empathd_proto::engine::{
    BlobHead, EngineFailure, EngineStatus, Example, FromEngineBody, MAX_EXAMPLES, MAX_GENERATIONS, ServingSpec,
    ServingStatus, ToEngine, ToEngineBody, TrainSpec,
};
use empathd_proto::generate::{GenerateSpec, MAX_STOPS, Prompt};
use empathd_proto::ids::AdapterId;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

/// Most works whose parts are arriving.
const MAX_GATHERING: usize = 4;
/// Most evaluations waiting or running.
const MAX_EVALUATIONS: usize = 4;
/// Jobs that the queue to the trainer must hold.
pub(super) const MAX_JOBS: usize = MAX_EVALUATIONS + 1;
/// Most text of the examples of one job.
const MAX_EXAMPLE_BYTES: usize = 2 * 1024 * 1024 * 1024;
/// When to ask again for something that is not an answer.
const RETRY_AFTER_MS: u32 = 1_000;
/// Ended tags whose parts may still be on their way.
const MAX_ENDED: usize = 256;

/// A work whose parts are arriving.
enum Gathering {
    Adapter { id: AdapterId, blob: Assembly },
    Job { task: Task, model: Arc<Model>, examples: Examples, checkpoint: Option<Assembly> },
}

#[derive(Default)]
struct Examples {
    all: Vec<Example>,
    bytes: usize,
}

type Outcome = Result<(), EngineFailure>;

/// The receiving end of one connection.
pub(super) struct Intake<'a> {
    works: Works,
    state: &'a State,
    orders: SyncSender<Order>,
    jobs: SyncSender<Job>,
    gathering: HashMap<u64, (CancelFlag, Gathering)>,
    ended: VecDeque<u64>,
}

fn protocol(words: &str) -> EngineFailure {
    EngineFailure::Protocol(words.to_owned())
}

impl<'a> Intake<'a> {
    pub(super) fn new(works: Works, state: &'a State, orders: SyncSender<Order>, jobs: SyncSender<Job>) -> Self {
        Self { works, state, orders, jobs, gathering: HashMap::new(), ended: VecDeque::new() }
    }

    /// Does what a message asks.
    pub(super) fn take(&mut self, ToEngine { tag, body }: ToEngine) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.dispatch(tag, body)))
            .unwrap_or_else(|_| Err(EngineFailure::Internal("a message's work panicked".to_owned())));
        if let Err(failure) = outcome {
            self.gathering.remove(&tag);
            self.end(tag);
            self.works.fail(tag, failure);
        }
    }

    fn dispatch(&mut self, tag: u64, body: ToEngineBody) -> Outcome {
        match body {
            ToEngineBody::LoadBase { path, sha256, serving } => {
                self.begin(tag, Kind::Prompt)?;
                self.load_base(tag, &path, sha256, &serving)
            }
            ToEngineBody::PutAdapter { adapter, blob } => self.put_adapter(tag, adapter, blob),
            ToEngineBody::DropAdapter { adapter } => {
                self.begin(tag, Kind::Prompt)?;
                self.state.drop_adapter(adapter);
                self.answer(tag, FromEngineBody::AdapterDropped)
            }
            ToEngineBody::Generate(spec) => self.generate(tag, spec),
            ToEngineBody::Cancel => self.cancel(tag),
            ToEngineBody::Train(spec) => self.train(tag, spec),
            ToEngineBody::Evaluate { adapter, seq_len } => self.evaluate(tag, adapter, seq_len),
            ToEngineBody::Status => {
                self.begin(tag, Kind::Prompt)?;
                self.answer(tag, FromEngineBody::Status(self.status()))
            }
            ToEngineBody::LoadEmbedder { .. } | ToEngineBody::Embed(_) | ToEngineBody::ForgetPrefixes => {
                Err(EngineFailure::Refused("embeddings are not possible".to_owned()))
            }
            part @ (ToEngineBody::Examples(_)
            | ToEngineBody::Resume { .. }
            | ToEngineBody::Go
            | ToEngineBody::Chunk(_)) => self.part(tag, part),
        }
    }

    fn begin(&self, tag: u64, kind: Kind) -> Result<CancelFlag, EngineFailure> {
        self.works.begin(tag, kind).ok_or_else(|| protocol("the tag is in use or is 0"))
    }

    fn answer(&self, tag: u64, body: FromEngineBody) -> Outcome {
        // Whoever is gone needs no answer.
        let _ = self.works.say(tag, body);
        Ok(())
    }

    fn base(&self) -> Result<Arc<Model>, EngineFailure> {
        self.state.base().ok_or(EngineFailure::NoBase)
    }

    fn mixture(&self, adapter: Option<AdapterId>) -> Result<Option<Arc<Mixture>>, EngineFailure> {
        let found = adapter.map(|id| self.state.adapter(id).ok_or(EngineFailure::UnknownAdapter(id)));
        found.transpose()
    }

    fn load_base(&self, tag: u64, path: &str, sha256: [u8; 32], serving: &ServingSpec) -> Outcome {
        let loaded = self.state.base().filter(|model| model.facts.sha256 == sha256);
        let model = match loaded {
            Some(model) => model,
            None => {
                self.state.set_base(None);
                let model =
                    Model::open(Path::new(path), sha256, &self.state.device, serving, rayon::current_num_threads());
                let model = Arc::new(model.map_err(|error| EngineFailure::BadModel(error.to_string()))?);
                self.state.set_base(Some(Arc::clone(&model)));
                model
            }
        };
        self.answer(tag, FromEngineBody::BaseLoaded(model.facts.clone()))
    }

    fn put_adapter(&mut self, tag: u64, id: AdapterId, head: BlobHead) -> Outcome {
        let flag = self.begin(tag, Kind::Adapter)?;
        self.base()?;
        let blob = Assembly::new(head).map_err(|error| EngineFailure::BadAdapter(error.to_string()))?;
        self.gather(tag, flag, Gathering::Adapter { id, blob })
    }

    fn gather(&mut self, tag: u64, flag: CancelFlag, work: Gathering) -> Outcome {
        if self.gathering.len() >= MAX_GATHERING {
            return Err(EngineFailure::Busy { retry_after_ms: RETRY_AFTER_MS });
        }
        self.gathering.insert(tag, (flag, work));
        Ok(())
    }

    fn generate(&self, tag: u64, spec: GenerateSpec) -> Outcome {
        let busy = self.works.count(Kind::Answer) >= MAX_GENERATIONS;
        let cancel = self.begin(tag, Kind::Answer)?;
        if busy {
            return Err(EngineFailure::Busy { retry_after_ms: RETRY_AFTER_MS });
        }
        let model = self.base()?;
        let mixture = self.mixture(spec.adapter)?;
        let Prompt::Chat { messages, .. } = &spec.prompt else {
            return Err(EngineFailure::Refused("a prompt without messages is not possible".to_owned()));
        };
        let prompt = model.format.prompt(messages).map_err(|error| protocol(&error.to_string()))?;
        let generation = Generation::new(model, mixture, prompt, plan(spec)?).map_err(executor::failure)?;
        self.orders
            .send(Order { tag, generation, cancel })
            .map_err(|_| EngineFailure::Internal("the executor is gone".to_owned()))
    }

    fn cancel(&mut self, tag: u64) -> Outcome {
        if self.gathering.contains_key(&tag) {
            return Err(EngineFailure::Cancelled);
        }
        self.works.cancel(tag);
        Ok(())
    }

    fn train(&mut self, tag: u64, spec: TrainSpec) -> Outcome {
        let busy = self.works.count(Kind::Training) > 0;
        let flag = self.begin(tag, Kind::Training)?;
        if busy {
            return Err(EngineFailure::Busy { retry_after_ms: RETRY_AFTER_MS });
        }
        self.gather_job(tag, flag, Task::Train { spec, resume: None })
    }

    fn evaluate(&mut self, tag: u64, adapter: Option<AdapterId>, seq_len: u32) -> Outcome {
        let busy = self.works.count(Kind::Evaluation) >= MAX_EVALUATIONS;
        let flag = self.begin(tag, Kind::Evaluation)?;
        if busy {
            return Err(EngineFailure::Busy { retry_after_ms: RETRY_AFTER_MS });
        }
        let mixture = self.mixture(adapter)?;
        let seq_len = usize::try_from(seq_len).map_err(|_| protocol("seq_len is too large"))?;
        self.gather_job(tag, flag, Task::Evaluate { mixture, seq_len })
    }

    fn gather_job(&mut self, tag: u64, flag: CancelFlag, task: Task) -> Outcome {
        let model = self.base()?;
        self.gather(tag, flag, Gathering::Job { task, model, examples: Examples::default(), checkpoint: None })
    }

    /// A part of a work that was begun before. Parts of a work that has already failed were on their way.
    fn part(&mut self, tag: u64, part: ToEngineBody) -> Outcome {
        let Some((_, work)) = self.gathering.get_mut(&tag) else {
            return if self.ended.contains(&tag) { Ok(()) } else { Err(protocol("a part of nothing that was begun")) };
        };
        match (work, part) {
            (Gathering::Adapter { blob, .. }, ToEngineBody::Chunk(chunk)) => {
                let whole = blob.push(&chunk).map_err(|error| EngineFailure::BadAdapter(error.to_string()))?;
                if whole { self.keep_adapter(tag) } else { Ok(()) }
            }
            (Gathering::Job { examples, .. }, ToEngineBody::Examples(more)) => examples.add(more),
            (Gathering::Job { task: Task::Train { .. }, checkpoint, .. }, ToEngineBody::Resume { blob })
                if checkpoint.is_none() =>
            {
                *checkpoint = Some(Assembly::new(blob).map_err(|error| protocol(&error.to_string()))?);
                Ok(())
            }
            (Gathering::Job { checkpoint: Some(blob), .. }, ToEngineBody::Chunk(chunk)) => {
                blob.push(&chunk).map(drop).map_err(|error| protocol(&error.to_string()))
            }
            (Gathering::Job { checkpoint, .. }, ToEngineBody::Go)
                if checkpoint.as_ref().is_none_or(Assembly::is_complete) =>
            {
                self.go(tag)
            }
            _ => Err(protocol("this part does not belong to this work, or not yet")),
        }
    }

    fn keep_adapter(&mut self, tag: u64) -> Outcome {
        let Some((_, Gathering::Adapter { id, blob })) = self.gathering.remove(&tag) else { return Ok(()) };
        let model = self.base()?;
        let mixture = Mixture::from_bytes(&blob.into_bytes(), model.config(), model.facts.sha256)
            .map_err(|error| EngineFailure::BadAdapter(error.to_string()))?;
        if !self.state.put_adapter(id, mixture) {
            return Err(EngineFailure::Busy { retry_after_ms: RETRY_AFTER_MS });
        }
        self.answer(tag, FromEngineBody::AdapterReady)
    }

    fn go(&mut self, tag: u64) -> Outcome {
        let Some((cancel, Gathering::Job { mut task, model, examples, checkpoint })) = self.gathering.remove(&tag)
        else {
            return Ok(());
        };
        if let Task::Train { resume, .. } = &mut task {
            *resume = checkpoint.map(Assembly::into_bytes);
        }
        self.jobs
            .send(Job { tag, cancel, model, examples: examples.all, task })
            .map_err(|_| EngineFailure::Internal("the trainer is gone".to_owned()))
    }

    fn end(&mut self, tag: u64) {
        if self.ended.len() >= MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(tag);
    }

    fn status(&self) -> EngineStatus {
        EngineStatus {
            base: self.state.base().map(|model| model.facts.clone()),
            adapters: self.state.adapters(),
            generating: u32::try_from(self.works.count(Kind::Answer)).unwrap_or(u32::MAX),
            training: self.works.count(Kind::Training) > 0,
            embedder: false,
            serving: ServingStatus { kv_wiped_bytes: self.state.kv_wiped_bytes(), ..ServingStatus::default() },
        }
    }
}

impl Examples {
    fn add(&mut self, more: Vec<Example>) -> Outcome {
        let bytes: usize = more.iter().flat_map(|example| &example.messages).map(|message| message.text.len()).sum();
        self.bytes += bytes;
        self.all.extend(more);
        if self.all.len() > MAX_EXAMPLES || self.bytes > MAX_EXAMPLE_BYTES {
            return Err(EngineFailure::BadJob("there are too many examples for one job".to_owned()));
        }
        Ok(())
    }
}

/// The plan of an answer, when its numbers are within their ranges.
fn plan(spec: GenerateSpec) -> Result<Plan, EngineFailure> {
    let sampling = spec.sampling;
    if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
        return Err(protocol("temperature must be a number from 0 on"));
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return Err(protocol("top_p must be in (0, 1]"));
    }
    if spec.stop.len() > MAX_STOPS {
        return Err(protocol("there are too many stop strings"));
    }
    Ok(Plan {
        max_tokens: spec.max_tokens,
        skip_tokens: spec.skip_tokens,
        sampling: Sampling { temperature: sampling.temperature, top_p: sampling.top_p, seed: sampling.seed },
        stop: spec.stop,
    })
}
