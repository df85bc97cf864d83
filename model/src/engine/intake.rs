//! What the daemon's messages mean: small prompts are done at once, things that arrive in parts are gathered, and
//! complete works go to the executor, the trainer, the embedder or the thread of public files. A message out of order ends its own work and no other. Refuses to
//! know streams and threads.

use super::base::{Asked, Base};
use super::blob::Assembly;
use super::embedder;
use super::executor::Order;
use super::export::Export;
use super::files;
use super::import::{Arriving, Import};
use super::state::State;
use super::trainer::{From, Job, Task};
use super::works::{Kind, Works};
use crate::adapter::Mixture;
use crate::infer::Model;
use crate::schedule::{AdapterGeneration, Cancel};
use empathd_proto::engine::{
    BlobHead, EngineFailure, EngineStatus, Example, FromEngineBody, MAX_EXAMPLES, ServingSpec, ToEngine, ToEngineBody,
    TrainSpec,
};
use empathd_proto::generate::GenerateSpec;
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
    Job { task: Task, model: Arc<Model>, examples: Examples, begins: Option<Assembly> },
    Import(Arriving),
}

#[derive(Default)]
struct Examples {
    all: Vec<Example>,
    bytes: usize,
}

type Outcome = Result<(), EngineFailure>;

/// Where complete works go.
pub(super) struct Queues {
    pub(super) orders: SyncSender<Order>,
    pub(super) jobs: SyncSender<Job>,
    pub(super) embeddings: SyncSender<embedder::Job>,
    pub(super) files: SyncSender<files::Job>,
}

/// The receiving end of one connection.
pub(super) struct Intake<'a> {
    works: Works,
    state: &'a State,
    queues: Queues,
    gathering: HashMap<u64, (Cancel, Gathering)>,
    ended: VecDeque<u64>,
}

fn protocol(words: &str) -> EngineFailure {
    EngineFailure::Protocol(words.to_owned())
}

const fn busy() -> EngineFailure {
    EngineFailure::Busy { retry_after_ms: RETRY_AFTER_MS }
}

impl<'a> Intake<'a> {
    pub(super) fn new(works: Works, state: &'a State, queues: Queues) -> Self {
        Self { works, state, queues, gathering: HashMap::new(), ended: VecDeque::new() }
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
                self.forget_generation(self.state.drop_adapter(adapter))?;
                self.answer(tag, FromEngineBody::AdapterDropped)
            }
            ToEngineBody::Generate(spec) => self.generate(tag, spec),
            ToEngineBody::Cancel => self.cancel(tag),
            ToEngineBody::Train(spec) => self.train(tag, spec),
            ToEngineBody::Evaluate { adapter, seq_len } => self.evaluate(tag, adapter, seq_len),
            ToEngineBody::Export { adapter, base_name } => self.export(tag, adapter, base_name),
            ToEngineBody::Import { onto, domain, attention_to_shared } => {
                let flag = self.begin_files(tag)?;
                let model = Arc::clone(&self.base()?.model);
                let onto = self.adapter(onto)?.map(|generation| generation.serving);
                let asked = Arriving { model, onto, domain, attention_to_shared, files: Vec::new() };
                self.gather(tag, flag, Gathering::Import(asked))
            }
            ToEngineBody::Status => {
                self.begin(tag, Kind::Prompt)?;
                self.answer(tag, FromEngineBody::Status(self.status()))
            }
            ToEngineBody::LoadEmbedder { path, sha256 } => {
                self.embedding(tag, embedder::Task::Load { path: path.into(), sha256 })
            }
            ToEngineBody::Embed(texts) => self.embedding(tag, embedder::Task::Embed(texts)),
            ToEngineBody::ForgetPrefixes => {
                self.begin(tag, Kind::Prompt)?;
                self.order(Order::Forget(tag))
            }
            part @ (ToEngineBody::Examples(_)
            | ToEngineBody::Resume { .. }
            | ToEngineBody::Begin { .. }
            | ToEngineBody::ImportFile { .. }
            | ToEngineBody::Go
            | ToEngineBody::Chunk(_)) => self.part(tag, part),
        }
    }

    fn begin(&self, tag: u64, kind: Kind) -> Result<Cancel, EngineFailure> {
        self.works.begin(tag, kind).ok_or_else(|| protocol("the tag is in use or is 0"))
    }

    fn answer(&self, tag: u64, body: FromEngineBody) -> Outcome {
        // Whoever is gone needs no answer.
        let _ = self.works.say(tag, body);
        Ok(())
    }

    fn order(&self, order: Order) -> Outcome {
        self.queues.orders.send(order).map_err(|_| EngineFailure::Internal("the executor is gone".to_owned()))
    }

    fn base(&self) -> Result<Arc<Base>, EngineFailure> {
        self.state.base().ok_or(EngineFailure::NoBase)
    }

    fn adapter(&self, adapter: Option<AdapterId>) -> Result<Option<AdapterGeneration>, EngineFailure> {
        let found = adapter.map(|id| self.state.adapter(id).ok_or(EngineFailure::UnknownAdapter(id)));
        found.transpose()
    }

    fn load_base(&self, tag: u64, path: &str, sha256: [u8; 32], serving: &ServingSpec) -> Outcome {
        let loaded = self.state.base().filter(|base| base.is(sha256, serving));
        let base = match loaded {
            Some(base) => base,
            None => self.replace_base(Path::new(path), sha256, serving)?,
        };
        self.answer(tag, FromEngineBody::BaseLoaded(base.model.facts.clone()))
    }

    /// Answers under way keep the base model they began with; the next ones wait for the new one.
    fn replace_base(&self, path: &Path, sha256: [u8; 32], serving: &ServingSpec) -> Result<Arc<Base>, EngineFailure> {
        if !self.state.has_room_for_base() {
            return Err(busy());
        }
        self.state.set_base(None);
        self.order(Order::Leave)?;
        let (base, scheduler) = Base::open(path, sha256, serving, &self.state.device, &self.state.desk)?;
        self.order(Order::Serve(Box::new(scheduler)))?;
        let base = Arc::new(base);
        self.state.set_base(Some(Arc::clone(&base)));
        Ok(base)
    }

    fn forget_generation(&self, number: Option<u64>) -> Outcome {
        number.map_or(Ok(()), |number| self.order(Order::ForgetGeneration(number)))
    }

    fn embedding(&self, tag: u64, task: embedder::Task) -> Outcome {
        let is_busy = self.works.count(Kind::Embedding) >= embedder::MAX_JOBS;
        let cancel = self.begin(tag, Kind::Embedding)?;
        if is_busy {
            return Err(busy());
        }
        let job = embedder::Job { tag, cancel, task };
        self.queues.embeddings.send(job).map_err(|_| EngineFailure::Internal("the embedder is gone".to_owned()))
    }

    fn begin_files(&self, tag: u64) -> Result<Cancel, EngineFailure> {
        let is_busy = self.works.count(Kind::Files) >= files::MAX_JOBS;
        let flag = self.begin(tag, Kind::Files)?;
        if is_busy { Err(busy()) } else { Ok(flag) }
    }

    fn files(&self, job: files::Job) -> Outcome {
        self.queues
            .files
            .send(job)
            .map_err(|_| EngineFailure::Internal("the thread of public files is gone".to_owned()))
    }

    fn export(&self, tag: u64, adapter: AdapterId, base_name: String) -> Outcome {
        let cancel = self.begin_files(tag)?;
        let model = Arc::clone(&self.base()?.model);
        let generation = self.state.adapter(adapter).ok_or(EngineFailure::UnknownAdapter(adapter))?;
        self.files(files::Job::Export(Export { tag, cancel, model, adapter: generation.serving, base_name }))
    }

    fn put_adapter(&mut self, tag: u64, id: AdapterId, head: BlobHead) -> Outcome {
        let flag = self.begin(tag, Kind::Adapter)?;
        self.base()?;
        let blob = Assembly::new(head).map_err(|error| EngineFailure::BadAdapter(error.to_string()))?;
        self.gather(tag, flag, Gathering::Adapter { id, blob })
    }

    fn gather(&mut self, tag: u64, flag: Cancel, work: Gathering) -> Outcome {
        if self.gathering.len() >= MAX_GATHERING {
            return Err(busy());
        }
        self.gathering.insert(tag, (flag, work));
        Ok(())
    }

    fn generate(&self, tag: u64, spec: GenerateSpec) -> Outcome {
        let arrived = self.state.desk.now();
        let cancel = self.begin(tag, Kind::Answer)?;
        let base = self.base()?;
        let asked = Asked { tag, adapter: self.adapter(spec.adapter)?, arrived, cancel };
        let answer = base.answer(spec, asked, &self.state.desk)?;
        self.order(Order::Answer(Box::new(answer)))
    }

    fn cancel(&mut self, tag: u64) -> Outcome {
        if self.gathering.contains_key(&tag) {
            return Err(EngineFailure::Cancelled);
        }
        self.works.cancel(tag);
        Ok(())
    }

    fn train(&mut self, tag: u64, spec: TrainSpec) -> Outcome {
        let is_busy = self.works.count(Kind::Training) > 0;
        let flag = self.begin(tag, Kind::Training)?;
        if is_busy {
            return Err(busy());
        }
        self.gather_job(tag, flag, Task::Train { spec: Box::new(spec), from: From::Nothing })
    }

    fn evaluate(&mut self, tag: u64, adapter: Option<AdapterId>, seq_len: u32) -> Outcome {
        let is_busy = self.works.count(Kind::Evaluation) >= MAX_EVALUATIONS;
        let flag = self.begin(tag, Kind::Evaluation)?;
        if is_busy {
            return Err(busy());
        }
        let adapter = self.adapter(adapter)?.map(|generation| generation.serving);
        let seq_len = usize::try_from(seq_len).map_err(|_| protocol("seq_len is too large"))?;
        self.gather_job(tag, flag, Task::Evaluate { adapter, seq_len })
    }

    fn gather_job(&mut self, tag: u64, flag: Cancel, task: Task) -> Outcome {
        let model = Arc::clone(&self.base()?.model);
        self.gather(tag, flag, Gathering::Job { task, model, examples: Examples::default(), begins: None })
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
            (Gathering::Import(asked), ToEngineBody::ImportFile { file, blob }) => asked.announce(file, blob),
            (Gathering::Import(asked), ToEngineBody::Chunk(chunk)) => asked.push(&chunk),
            (Gathering::Import(asked), ToEngineBody::Go) if asked.is_whole() => {
                let Some((cancel, Gathering::Import(asked))) = self.gathering.remove(&tag) else { return Ok(()) };
                self.files(files::Job::Import(Import { tag, cancel, asked }))
            }
            (Gathering::Job { examples, .. }, ToEngineBody::Examples(more)) => examples.add(more),
            (
                Gathering::Job { task: Task::Train { from, .. }, begins, .. },
                part @ (ToEngineBody::Resume { blob } | ToEngineBody::Begin { blob }),
            ) if begins.is_none() => {
                *begins = Some(Assembly::new(blob).map_err(|error| protocol(&error.to_string()))?);
                let resumes = matches!(part, ToEngineBody::Resume { .. });
                *from = if resumes { From::Checkpoint(Vec::new()) } else { From::Adapter(Vec::new()) };
                Ok(())
            }
            (Gathering::Job { begins: Some(blob), .. }, ToEngineBody::Chunk(chunk)) => {
                blob.push(&chunk).map(drop).map_err(|error| protocol(&error.to_string()))
            }
            (Gathering::Job { begins, .. }, ToEngineBody::Go) if begins.as_ref().is_none_or(Assembly::is_complete) => {
                self.go(tag)
            }
            _ => Err(protocol("this part does not belong to this work, or not yet")),
        }
    }

    fn keep_adapter(&mut self, tag: u64) -> Outcome {
        let Some((_, Gathering::Adapter { id, blob })) = self.gathering.remove(&tag) else { return Ok(()) };
        let model = &self.base()?.model;
        if !self.state.has_room(id) {
            return Err(busy());
        }
        let bad = |error: &dyn std::fmt::Display| EngineFailure::BadAdapter(error.to_string());
        let mixture = Mixture::from_bytes(&blob.into_bytes(), model.config(), model.facts.sha256);
        let serving = model.adapter(mixture.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
        self.forget_generation(self.state.put_adapter(id, serving))?;
        self.answer(tag, FromEngineBody::AdapterReady)
    }

    fn go(&mut self, tag: u64) -> Outcome {
        let Some((cancel, Gathering::Job { mut task, model, examples, begins })) = self.gathering.remove(&tag) else {
            return Ok(());
        };
        if let (Task::Train { from: From::Checkpoint(bytes) | From::Adapter(bytes), .. }, Some(blob)) =
            (&mut task, begins)
        {
            *bytes = blob.into_bytes();
        }
        self.queues
            .jobs
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
            base: self.state.base().map(|base| base.model.facts.clone()),
            adapters: self.state.adapters(),
            generating: u32::try_from(self.works.count(Kind::Answer)).unwrap_or(u32::MAX),
            training: self.works.count(Kind::Training) > 0,
            embedder: self.state.embedder().is_some(),
            serving: self.state.desk.status(),
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
