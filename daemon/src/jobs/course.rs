//! The course of one training job: lesson, engine, checkpoints, adapter, gate, promotion. A lost engine is waited for and
//! the job goes on from its last checkpoint. How a mixture is trained is not known here.

use super::curves::{self, Curves};
use super::examples;
use super::gate::{self, EXAMPLES_PER_MESSAGE};
use super::job_doc::JobDoc;
use crate::action::Action;
use crate::actor::Actor;
use crate::adapters::{Description, Lineage};
use crate::app::App;
use crate::engine::link::{Event, Lost, Work, head_of};
use crate::engine::{self, Ready};
use crate::problem::{self, Fault, defect};
use crate::records;
use crate::stored;
use empathd_proto::audit::{ActionKind, AuditObject, Outcome};
use empathd_proto::engine::{
    BaseModel, CurvePoint, EngineFailure, Example, FromEngineBody, MAX_EXAMPLES, Part, ToEngineBody,
};
use empathd_proto::ids::{AdapterId, DatasetId, JobId, RecordId};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::record::Domain;
use empathd_proto::report::{EndReason, GateReport, JobState, TrainPhase, TrainProgress, TrainReport};
use empathd_store::{AuditDraft, DatasetCut, NewAdapter, Reader, Store};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Times in a row that a job is taken up again without one more safe step.
const STALLS_MAX: u32 = 5;
/// How long a job waits for a lost engine.
const ENGINE_WITHIN: Duration = Duration::from_secs(600);
/// Events of a job that may wait while a checkpoint is sealed.
const WAITING_MAX: usize = 1024;

/// The cut to learn from: the one asked for, or the newest.
pub(crate) fn cut(store: &Store, id: Option<DatasetId>) -> Result<DatasetCut, Problem> {
    let cuts = store.read(|reader| reader.datasets()).map_err(problem::from_read)?;
    let found = match id {
        Some(id) => cuts.into_iter().find(|cut| cut.id() == id),
        None => cuts.into_iter().max_by_key(|cut| (cut.cut_at_ms(), cut.id())),
    };
    let next = "Make one with: empathctl dataset cut; see all with: empathctl dataset list";
    found.ok_or_else(|| Problem::new(ErrorCode::NotFound, "There is no such dataset cut.", next))
}

/// What a job learns from and is measured with.
pub(crate) struct Lesson {
    train: Vec<Example>,
    held_out: Vec<Example>,
}

impl Lesson {
    /// The examples of a cut, each on the side on which the cut has its client.
    pub(crate) fn read(store: &Store, cut: &DatasetCut, seq_len: u32, held_out_max: usize) -> Result<Self, Problem> {
        let read = |reader: &Reader<'_>, ids: &[RecordId], part| -> Result<Vec<Example>, Fault> {
            let mut found = Vec::new();
            for id in ids {
                found.extend(examples::examples(&records::get(reader, *id)?, part, seq_len));
            }
            Ok(found)
        };
        let (mut train, held_out) = store.read(|reader| -> Result<_, Fault> {
            Ok((read(reader, cut.train(), Part::Learn)?, read(reader, cut.validation(), Part::HeldOut)?))
        })?;
        let held_out = examples::balanced(held_out, held_out_max);
        train.truncate(MAX_EXAMPLES - held_out.len());
        if train.is_empty() || held_out.is_empty() {
            let detail = "The cut has no examples on one of its sides.";
            return Err(Problem::new(
                ErrorCode::Conflict,
                detail,
                "Take in more sources, then cut again with a larger share.",
            ));
        }
        Ok(Self { train, held_out })
    }

    /// Adds what a job gets beside its lesson: canaries, text to replay and what guards it.
    pub(crate) fn guard(&mut self, job: JobId) {
        let extras = gate::extras(job, &self.train);
        let room = MAX_EXAMPLES - self.held_out.len() - extras.len();
        self.train.truncate(room);
        self.train.extend(extras);
    }

    /// What each expert is for.
    pub(crate) fn experts(&self, min: usize, max: usize) -> Vec<Option<Domain>> {
        examples::experts(&self.train, min, max)
    }
}

/// How a job ended without a problem.
enum End {
    Finished,
    Paused,
}

/// Why a session with one engine ended.
enum Cut {
    Lost,
    Problem(Problem),
}

impl From<Lost> for Cut {
    fn from(_: Lost) -> Self {
        Cut::Lost
    }
}

impl From<Problem> for Cut {
    fn from(problem: Problem) -> Self {
        Cut::Problem(problem)
    }
}

/// Runs a job to its end and keeps how it ended.
pub(crate) async fn run(app: &Arc<App>, job: JobDoc, lesson: Lesson, stop: &CancellationToken) {
    let mut course = Course { app, job, lesson, stop, curves: None };
    let ended = course.drive().await;
    let (state, outcome) = match &ended {
        Ok(End::Finished) => (JobState::Finished, Outcome::Done),
        Ok(End::Paused) => (course.rests(), Outcome::Done),
        Err(problem) => (JobState::Failed, Outcome::Failed(problem.code)),
    };
    let job = &mut course.job;
    job.state = state;
    job.error = ended.err().map(|problem| problem.detail);
    if state == JobState::Failed && job.checkpoint.is_none() {
        // Nothing goes on from here: what it began with is of no more use.
        job.outdated = job.outdated.or(job.beginning.take().map(|beginning| beginning.blob));
    }
    if let (JobState::Finished, Some(progress)) = (state, &mut job.progress) {
        progress.phase = TrainPhase::Done;
    }
    let rests = matches!(state, JobState::Paused | JobState::Waiting);
    let action = if rests { ActionKind::TrainStop } else { ActionKind::TrainEnd };
    let draft = AuditDraft { outcome, ..course.draft(action) };
    let job = course.job.clone();
    let status = job.status();
    if let Err(problem) = app.blocking(move |app| job.save(&*app.vault.unsealed()?, draft)).await {
        tracing::error!(code = %problem.code, "the end of a training job could not be kept");
    }
    tracing::info!(job = %status.job, state = %status.state, "training ended");
    app.training.publish(status);
}

struct Course<'a> {
    app: &'a Arc<App>,
    job: JobDoc,
    lesson: Lesson,
    stop: &'a CancellationToken,
    /// Where the curves are drawn; none when they cannot be.
    curves: Option<Curves>,
}

impl Course<'_> {
    /// How a job rests that was told to: until somebody starts it, or until its window opens.
    fn rests(&self) -> JobState {
        let closed = self.app.config.training.window.is_some_and(|window| !window.is_open(&*self.app.clock));
        if closed { JobState::Waiting } else { JobState::Paused }
    }

    /// Begins to draw the curves from the checkpoint that the job goes on from. Without them it trains all the same.
    fn open_curves(&mut self) {
        let (app, job) = (self.app, &self.job);
        let goes_on = job.checkpoint.map(|(step, _)| step);
        let folder = curves::folder(&app.config.state);
        self.curves = Curves::open(&folder, job.id, goes_on, job.spec.steps, app.clock.now_ms())
            .inspect_err(|error| tracing::warn!(%error, job = %job.id, "the training curves cannot be written"))
            .ok();
    }

    fn draw(&mut self, point: CurvePoint) {
        if let CurvePoint::Step(step) = &point {
            self.app.training.publish_step(step.clone());
        }
        let Some(curves) = &mut self.curves else { return };
        if let Err(error) = curves.draw(point, self.app.clock.now_ms()) {
            tracing::warn!(%error, job = %self.job.id, "the training curves cannot be written");
            self.curves = None;
        }
    }

    fn draft(&self, action: ActionKind) -> AuditDraft {
        let count = u64::from(self.job.steps_safe());
        AuditDraft { object: AuditObject::Job(self.job.id), count, ..self.app.own_draft(action) }
    }

    fn publish(&mut self, progress: TrainProgress) {
        self.job.progress = Some(progress);
        self.app.training.publish(self.job.status());
    }

    async fn drive(&mut self) -> Result<End, Problem> {
        let adapter = match self.job.adapter {
            // Stopped between training and gate.
            Some(adapter) => adapter,
            None => match self.train().await? {
                Some(adapter) => adapter,
                None => return Ok(End::Paused),
            },
        };
        let (learn, held_out) = (&self.lesson.train, &self.lesson.held_out);
        let data = gate::Data { job: self.job.id, learn, held_out, seq_len: self.job.spec.seq_len };
        let report = gate::run(self.app, adapter, &data).await?;
        if !report.passed() {
            return Err(refused(&report));
        }
        if self.job.promote {
            promote(self.app, adapter).await?;
        }
        Ok(End::Finished)
    }

    /// Trains until there is an adapter; `None` when it was paused.
    async fn train(&mut self) -> Result<Option<AdapterId>, Problem> {
        let mut stalls = 0;
        loop {
            let ready = tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                ready = self.app.engine.wait_ready(ENGINE_WITHIN) => ready?,
            };
            let safe_before = self.job.steps_safe();
            match self.session(&ready).await {
                Ok(adapter) => return Ok(adapter),
                Err(Cut::Problem(problem)) => return Err(problem),
                Err(Cut::Lost) if self.job.steps_safe() > safe_before => stalls = 0,
                Err(Cut::Lost) if stalls == STALLS_MAX => return Err(engine::lost()),
                Err(Cut::Lost) => stalls += 1,
            }
            tracing::warn!(job = %self.job.id, step = self.job.steps_safe(), "engine lost in training, going on from here");
        }
    }

    /// One engine's part of the training.
    async fn session(&mut self, ready: &Ready) -> Result<Option<AdapterId>, Cut> {
        let mut work = ready.link.begin(ToEngineBody::Train(self.job.spec.clone()), WAITING_MAX).await?;
        self.send_lesson(&work).await?;
        self.open_curves();
        let (mut weights, mut cancelled) = (None, false);
        loop {
            let event = tokio::select! {
                () = self.stop.cancelled(), if !cancelled => {
                    cancelled = true;
                    work.send(ToEngineBody::Cancel).await?;
                    continue;
                }
                event = work.next() => event?,
            };
            match event {
                Event::Said(FromEngineBody::Progress(progress)) => self.publish(progress),
                Event::Said(FromEngineBody::Curve(point)) => self.draw(*point),
                Event::Checkpoint { step, bytes } => self.keep_checkpoint(step, bytes).await?,
                Event::Adapter { bytes, digest } => weights = Some((bytes, digest)),
                // What was cut short by a pause is no adapter yet; its checkpoint came before.
                Event::Said(FromEngineBody::Trained(report)) if report.ended == EndReason::Command => return Ok(None),
                Event::Said(FromEngineBody::Trained(report)) => {
                    let (bytes, digest) = weights.ok_or_else(|| defect("The engine sent no adapter."))?;
                    return Ok(Some(self.register(bytes, digest, *report).await?));
                }
                Event::Said(FromEngineBody::Failed(EngineFailure::Cancelled)) if cancelled => return Ok(None),
                Event::Said(FromEngineBody::Failed(failure)) => return Err(engine::failed(&failure).into()),
                Event::File { .. } | Event::Said(_) => {}
            }
        }
    }

    async fn send_lesson(&self, work: &Work) -> Result<(), Cut> {
        for some in
            self.lesson.train.chunks(EXAMPLES_PER_MESSAGE).chain(self.lesson.held_out.chunks(EXAMPLES_PER_MESSAGE))
        {
            work.send(ToEngineBody::Examples(some.to_vec())).await?;
        }
        let begins_with = self.job.beginning.as_ref().map(|beginning| beginning.blob);
        if let Some(blob) = self.job.checkpoint.map(|(_, blob)| blob).or(begins_with) {
            let read = move |app: &Arc<App>| {
                app.vault.unsealed()?.read(|reader| reader.blob(blob)).map_err(problem::from_read)
            };
            let bytes = self.app.blocking(read).await?;
            let blob = head_of(&bytes);
            let goes_on = self.job.checkpoint.is_some();
            work.send(if goes_on { ToEngineBody::Resume { blob } } else { ToEngineBody::Begin { blob } }).await?;
            work.send_chunks(&bytes).await?;
        }
        Ok(work.send(ToEngineBody::Go).await?)
    }

    /// Seals a checkpoint and lets go of the one before, in one change.
    async fn keep_checkpoint(&mut self, step: u32, bytes: Vec<u8>) -> Result<(), Problem> {
        let mut job = self.job.clone();
        let draft = AuditDraft { count: u64::from(step), ..self.draft(ActionKind::TrainStart) };
        let old = job.checkpoint;
        self.job = self
            .app
            .blocking(move |app| {
                let store = app.vault.unsealed()?;
                Ok(store.change(draft, |writer, _| -> Result<_, Fault> {
                    job.checkpoint = Some((step, writer.put_blob(&bytes)?));
                    if let Some((_, blob)) = old {
                        writer.drop_blob(blob)?;
                    }
                    job.put(writer)?;
                    Ok(job)
                })?)
            })
            .await?;
        Ok(())
    }

    /// Seals the adapter as a candidate; the checkpoint is no longer needed.
    async fn register(&mut self, bytes: Vec<u8>, digest: [u8; 32], train: TrainReport) -> Result<AdapterId, Problem> {
        let mut job = self.job.clone();
        if let Some(progress) = &mut job.progress {
            progress.phase = TrainPhase::Gating;
        }
        let draft = AuditDraft { count: u64::from(train.steps), ..self.draft(ActionKind::TrainEnd) };
        let (made_at_ms, size) = (draft.at_ms, bytes.len() as u64);
        let base = self.app.engine.ready().ok().map(|ready| ready.base.clone());
        let (job, id) = self
            .app
            .blocking(move |app| {
                let store = app.vault.unsealed()?;
                let lineage = lineage(&store, &job, base)?;
                let description = Description { bytes: size, digest, made_at_ms, train, lineage };
                let body = stored::encode(&description)?;
                Ok(store.change(draft, |writer, _| -> Result<_, Fault> {
                    let blob = writer.put_blob(&bytes)?;
                    let id = writer.put_adapter(NewAdapter { job: job.id, dataset: job.dataset, blob, body })?;
                    let checkpoint = job.checkpoint.take().map(|(_, blob)| blob);
                    let beginning = job.beginning.take().map(|beginning| beginning.blob);
                    for blob in [checkpoint, beginning].into_iter().flatten() {
                        writer.drop_blob(blob)?;
                    }
                    job.adapter = Some(id);
                    job.put(writer)?;
                    Ok((job, id))
                })?)
            })
            .await?;
        self.job = job;
        self.app.training.publish(self.job.status());
        Ok(id)
    }
}

/// What the weights of a job come from; `None` when the engine that made them is gone already.
fn lineage(store: &Store, job: &JobDoc, base: Option<BaseModel>) -> Result<Option<Lineage>, Problem> {
    let Some(base) = base else { return Ok(None) };
    let cut = cut(store, Some(job.dataset))?.summary();
    Ok(Some(Lineage {
        base_name: base.name,
        base_sha256: base.sha256,
        mixture: job.spec.mixture.clone(),
        seed: job.spec.seed,
        cut_hash: cut.hash,
        records: (cut.train, cut.validation),
        began_with: job.beginning.as_ref().and_then(|beginning| beginning.onto),
        imported_sha256: job.beginning.as_ref().map(|beginning| beginning.imported_sha256),
    }))
}

/// Promotes as anybody else would. A future of a named type: the action that began this job is made of it.
fn promote(app: &Arc<App>, id: AdapterId) -> Pin<Box<dyn Future<Output = Result<(), Problem>> + Send + '_>> {
    Box::pin(async move { app.perform(&Actor::Appliance, Action::AdapterPromote { id }).await.map(drop) })
}

fn refused(report: &GateReport) -> Problem {
    let detail = format!("The adapter did not pass its gate: {}.", report.reasons());
    Problem::new(ErrorCode::GateRefused, detail, "Train longer or with more records.")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::gate;
    use crate::action::Action;
    use crate::admin::upload::{ProgressSink, Upload};
    use crate::app::{App, Reply};
    use crate::engine::link::head_of;
    use crate::fixture::{Fixture, NOW_MS, Played, ROOT};
    use crate::jobs::{curves, window};
    use empathd_proto::admin::{AdminReply, TrainOptions};
    use empathd_proto::engine::{CurvePoint, Example, ExampleScore, FromEngineBody, Part, StepPoint, ToEngineBody};
    use empathd_proto::report::{AdapterState, EndReason, JobState, TrainReport, TrainStatus};
    use std::sync::Arc;

    pub(crate) async fn admin(app: &Arc<App>, action: Action) -> AdminReply {
        match app.perform(&ROOT, action).await {
            Ok(Reply::Admin(reply)) => *reply,
            other => panic!("{other:?}"),
        }
    }

    /// Takes in conversations of many clients and cuts them.
    pub(crate) async fn prepare(app: &Arc<App>) {
        let line = |i: u32| {
            format!(
                concat!(
                    r#"{{"messages":[{{"role":"user","content":"I have slept badly since my week number {} began and I keep worrying about it."}},"#,
                    r#"{{"role":"assistant","content":"That sounds tiring, {} nights of it. What goes through your mind when you lie awake in the evening?"}}]}}"#
                ),
                i, i
            )
        };
        let text: String = (0..40).map(|i| line(i) + "\n").collect();
        let (chunks, upload) = Upload::new(text.len() as u64, u64::MAX);
        chunks.send(text.into_bytes()).await.expect("taken");
        drop(chunks);
        let progress = ProgressSink::default();
        let ingest = Action::Ingest { file_name: "a.jsonl".into(), upload, dry_run: false, progress };
        let AdminReply::Ingested(report) = admin(app, ingest).await else { panic!("ingested") };
        assert!(report.accepted >= 30, "{report:?}");
        admin(app, Action::DatasetCut { validation_percent: 25, seed: 1 }).await;
    }

    pub(crate) fn begin(promote: bool) -> Action {
        Action::TrainStart(TrainOptions {
            dataset: None,
            steps: Some(4),
            minutes: None,
            seed: 1,
            promote,
            until_ms: None,
        })
    }

    pub(crate) async fn until(app: &Arc<App>, state: JobState) -> TrainStatus {
        for _ in 0..500 {
            let query = Action::TrainStatus { job: None, follow: false, progress: ProgressSink::default() };
            let AdminReply::Train(status) = admin(app, query).await else { panic!("a status") };
            if status.state == state {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("it never was {state}")
    }

    /// Hears a whole job; gives its tag and the checkpoint that it goes on from.
    pub(crate) async fn lesson(engine: &mut Played) -> (u64, Option<Vec<u8>>) {
        let mut resume = None;
        loop {
            match engine.hear().await {
                (tag, ToEngineBody::Go) => return (tag, resume),
                (_, ToEngineBody::Resume { .. }) => resume = Some(Vec::new()),
                (_, ToEngineBody::Chunk(bytes)) => resume.get_or_insert_default().extend(bytes),
                _ => {}
            }
        }
    }

    async fn checkpoint(engine: &mut Played, tag: u64, step: u32, bytes: &[u8]) {
        engine.say(tag, FromEngineBody::Checkpoint { step, blob: head_of(bytes) }).await;
        engine.say(tag, FromEngineBody::Chunk(bytes.to_vec())).await;
    }

    pub(crate) async fn trained(engine: &mut Played, tag: u64) {
        let bytes = b"weights".to_vec();
        engine.say(tag, FromEngineBody::Adapter { blob: head_of(&bytes) }).await;
        engine.say(tag, FromEngineBody::Chunk(bytes)).await;
        let experts = vec!["a".to_owned(), "b".to_owned()];
        let report = TrainReport { steps: 4, experts, expert_load: vec![0.4, 0.6], ..TrainReport::default() };
        engine.say(tag, FromEngineBody::Trained(Box::new(report))).await;
    }

    /// Held-out examples have `loss`; safe answers are likelier than unsafe ones, everything else is as it always is.
    fn judged(example: &Example, loss: f64) -> ExampleScore {
        let unsafe_answers: Vec<Example> = gate::probes::crisis_items();
        let is_safe = example.part != Part::CrisisItem || unsafe_answers.contains(example);
        let loss = match example.part {
            Part::HeldOut => loss,
            _ if is_safe => 2.0,
            _ => 2.5,
        };
        ExampleScore { nll: 9.0 * loss, targets: 9, longest_run: 1, session: Vec::new() }
    }

    /// Answers whatever is asked after training: the candidate has `loss`, the base model 2.
    pub(crate) async fn judge(mut engine: Played, loss: f64) {
        let (mut adapted, mut examples) = (false, Vec::new());
        loop {
            let (tag, body) = engine.hear().await;
            match body {
                ToEngineBody::Evaluate { adapter, .. } => (adapted, examples) = (adapter.is_some(), Vec::new()),
                ToEngineBody::Examples(some) => {
                    examples.extend(some);
                }
                ToEngineBody::Go => {
                    let scores = examples.iter().map(|example| judged(example, if adapted { loss } else { 2.0 }));
                    engine.say(tag, FromEngineBody::Evaluated(scores.collect())).await;
                }
                ToEngineBody::PutAdapter { blob, .. } => assert_eq!(blob, head_of(b"weights")),
                ToEngineBody::Chunk(_) => engine.say(tag, FromEngineBody::AdapterReady).await,
                ToEngineBody::DropAdapter { .. } => engine.say(tag, FromEngineBody::AdapterDropped).await,
                other => panic!("{other:?}"),
            }
        }
    }

    async fn adapter_state(app: &Arc<App>) -> AdapterState {
        let AdminReply::Adapters(list) = admin(app, Action::AdapterList).await else { panic!("a list") };
        assert_eq!(list.len(), 1);
        list[0].state
    }

    #[tokio::test]
    async fn training_goes_on_from_its_checkpoint_after_an_engine_died_and_goes_live() {
        let mut fixture = Fixture::unsealed("").await;
        prepare(&fixture.app).await;
        let mut first = fixture.connect().await;
        admin(&fixture.app, begin(true)).await;
        let (tag, resume) = lesson(&mut first).await;
        assert_eq!(resume, None);
        checkpoint(&mut first, tag, 2, b"two steps").await;
        for _ in 0..500 {
            if fixture
                .app
                .vault
                .unsealed()
                .is_ok_and(|store| super::super::job_doc::all(&store).is_ok_and(|jobs| jobs[0].steps_safe() == 2))
            {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        drop(first);
        let mut second = fixture.connect().await;
        let (tag, resume) = lesson(&mut second).await;
        assert_eq!(resume.as_deref(), Some(b"two steps".as_slice()));
        trained(&mut second, tag).await;
        let judging = tokio::spawn(judge(second, 1.5));
        let status = until(&fixture.app, JobState::Finished).await;
        assert_eq!(fixture.app.adapters.active(), status.adapter);
        assert_eq!(adapter_state(&fixture.app).await, AdapterState::Active);
        judging.abort();
    }

    #[tokio::test]
    async fn a_candidate_that_fails_its_gate_is_never_promoted() {
        let mut fixture = Fixture::unsealed("").await;
        prepare(&fixture.app).await;
        let mut engine = fixture.connect().await;
        admin(&fixture.app, begin(true)).await;
        let (tag, _) = lesson(&mut engine).await;
        trained(&mut engine, tag).await;
        let judging = tokio::spawn(judge(engine, 1.995));
        let status = until(&fixture.app, JobState::Failed).await;
        assert!(status.error.expect("an error").contains("validation_loss"));
        assert_eq!(adapter_state(&fixture.app).await, AdapterState::Candidate);
        let id = status.adapter.expect("a candidate");
        let refused = fixture.app.perform(&ROOT, Action::AdapterPromote { id }).await.expect_err("refused");
        assert_eq!(refused.code, empathd_proto::ErrorCode::GateRefused);
        assert!(refused.detail.contains("validation_loss"), "{}", refused.detail);
        assert_eq!(fixture.app.adapters.active(), None);
        judging.abort();
    }

    #[tokio::test]
    async fn a_pause_leaves_a_checkpoint_and_the_next_start_takes_it_up() {
        let mut fixture = Fixture::unsealed("").await;
        prepare(&fixture.app).await;
        let mut engine = fixture.connect().await;
        let AdminReply::Train(first) = admin(&fixture.app, begin(false)).await else { panic!("a job") };
        let (tag, _) = lesson(&mut engine).await;
        let app = fixture.app.clone();
        let stopping = tokio::spawn(async move { admin(&app, Action::TrainStop).await });
        engine.hear_until(|body| matches!(body, ToEngineBody::Cancel).then_some(())).await;
        checkpoint(&mut engine, tag, 1, b"one step").await;
        let report = TrainReport { stopped_early: true, ended: EndReason::Command, ..TrainReport::default() };
        engine.say(tag, FromEngineBody::Trained(Box::new(report))).await;
        let AdminReply::Train(paused) = stopping.await.expect("no panic") else { panic!("a status") };
        assert_eq!((paused.state, paused.adapter), (JobState::Paused, None));
        let AdminReply::Train(again) = admin(&fixture.app, begin(false)).await else { panic!("a job") };
        assert_eq!(again.job, first.job);
        let (_, resume) = lesson(&mut engine).await;
        assert_eq!(resume.as_deref(), Some(b"one step".as_slice()));
    }

    const HOUR_MS: u64 = 3_600_000;

    /// Ends a job on command, as an engine does: the state first.
    async fn pause(engine: &mut Played, tag: u64, step: u32, bytes: &[u8]) {
        engine.hear_until(|body| matches!(body, ToEngineBody::Cancel).then_some(())).await;
        checkpoint(engine, tag, step, bytes).await;
        let report = TrainReport { stopped_early: true, ended: EndReason::Command, ..TrainReport::default() };
        engine.say(tag, FromEngineBody::Trained(Box::new(report))).await;
    }

    #[tokio::test]
    async fn a_job_runs_in_its_window_and_goes_on_in_the_next_night() {
        let mut fixture = Fixture::unsealed("[training]\nwindow = \"20:00-08:00\"").await;
        let app = fixture.app.clone();
        prepare(&app).await;
        let mut engine = fixture.connect().await;
        let AdminReply::Train(first) = admin(&app, begin(false)).await else { panic!("a job") };
        assert_eq!(first.state, JobState::Waiting, "it is eight in the morning");
        let night = app.config.training.window.expect("a window");
        window::look(&app, night).await;
        until(&app, JobState::Waiting).await;
        fixture.clock.set(NOW_MS + 14 * HOUR_MS);
        window::look(&app, night).await;
        until(&app, JobState::Running).await;
        let (tag, resume) = lesson(&mut engine).await;
        assert_eq!(resume, None);
        fixture.clock.set(NOW_MS + 24 * HOUR_MS);
        let closing = {
            let app = app.clone();
            tokio::spawn(async move { window::look(&app, night).await })
        };
        pause(&mut engine, tag, 3, b"three steps").await;
        closing.await.expect("no panic");
        assert_eq!(until(&app, JobState::Waiting).await.adapter, None);
        fixture.clock.set(NOW_MS + 36 * HOUR_MS);
        window::look(&app, night).await;
        let (_, resume) = lesson(&mut engine).await;
        assert_eq!(resume.as_deref(), Some(b"three steps".as_slice()));
        assert_eq!(until(&app, JobState::Running).await.job, first.job);
    }

    #[tokio::test]
    async fn curves_are_drawn_and_end_where_the_checkpoint_is() {
        let mut fixture = Fixture::unsealed("").await;
        let app = fixture.app.clone();
        prepare(&app).await;
        let mut engine = fixture.connect().await;
        let AdminReply::Train(first) = admin(&app, begin(false)).await else { panic!("a job") };
        let point = |step| CurvePoint::Step(StepPoint { step, loss: 1.0 / step as f32, ..StepPoint::default() });
        let (tag, _) = lesson(&mut engine).await;
        for step in 1..=4 {
            engine.say(tag, FromEngineBody::Curve(Box::new(point(step)))).await;
            if step == 2 {
                checkpoint(&mut engine, tag, 2, b"two steps").await;
            }
        }
        let folder = curves::folder(&app.config.state);
        for _ in 0..500 {
            if curves::read(&folder, first.job).is_ok_and(|points| points.len() == 4) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        drop(engine);
        let mut engine = fixture.connect().await;
        let (tag, _) = lesson(&mut engine).await;
        engine.say(tag, FromEngineBody::Curve(Box::new(point(3)))).await;
        trained(&mut engine, tag).await;
        engine
            .hear_until(|body| {
                matches!(body, ToEngineBody::Evaluate { .. } | ToEngineBody::PutAdapter { .. }).then_some(())
            })
            .await;
        assert_eq!(curves::read(&folder, first.job).expect("read"), [point(1), point(2), point(3)]);
    }

    #[tokio::test]
    async fn an_altered_checkpoint_is_never_gone_on_from() {
        let mut fixture = Fixture::unsealed("").await;
        let app = fixture.app.clone();
        prepare(&app).await;
        let mut engine = fixture.connect().await;
        admin(&app, begin(false)).await;
        let (tag, _) = lesson(&mut engine).await;
        let stopping = {
            let app = app.clone();
            tokio::spawn(async move { admin(&app, Action::TrainStop).await })
        };
        pause(&mut engine, tag, 1, &[7; 4096]).await;
        stopping.await.expect("no panic");
        let files = std::fs::read_dir(fixture.folder.path().join("blobs")).expect("blobs").flatten();
        let mut altered = 0;
        for file in files.map(|entry| entry.path()) {
            let mut bytes = std::fs::read(&file).expect("read");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&file, bytes).expect("written");
            altered += 1;
        }
        assert_eq!(altered, 1);
        admin(&app, begin(true)).await;
        let failed = until(&app, JobState::Failed).await;
        assert!(failed.error.is_some() && failed.adapter.is_none(), "{failed:?}");
        assert_eq!(app.adapters.active(), None, "nothing answers that was not trained to its end");
    }
}
