//! The course of one training job: lesson, engine, checkpoints, adapter, gate, promotion. A lost engine is waited for and
//! the job goes on from its last checkpoint. How a mixture is trained is not known here.

use super::examples;
use super::gate::{self, EXAMPLES_PER_MESSAGE};
use super::job_doc::JobDoc;
use crate::action::Action;
use crate::actor::Actor;
use crate::adapters::Description;
use crate::app::App;
use crate::engine::link::{Event, Lost, Work, head_of};
use crate::engine::{self, Ready};
use crate::problem::{self, Fault, defect};
use crate::records;
use empathd_proto::audit::{ActionKind, AuditObject, Outcome};
use empathd_proto::engine::{EngineFailure, Example, FromEngineBody, MAX_EXAMPLES, ToEngineBody};
use empathd_proto::ids::{AdapterId, DatasetId, RecordId};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::record::Domain;
use empathd_proto::report::{GateReport, JobState, TrainPhase, TrainProgress, TrainReport};
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
        let read = |reader: &Reader<'_>, ids: &[RecordId], held_out| -> Result<Vec<Example>, Fault> {
            let mut found = Vec::new();
            for id in ids {
                found.extend(examples::examples(&records::get(reader, *id)?, held_out, seq_len));
            }
            Ok(found)
        };
        let (mut train, held_out) = store.read(|reader| -> Result<_, Fault> {
            Ok((read(reader, cut.train(), false)?, read(reader, cut.validation(), true)?))
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
    let mut course = Course { app, job, lesson, stop };
    let ended = course.drive().await;
    let job = &mut course.job;
    let (state, outcome) = match &ended {
        Ok(End::Finished) => (JobState::Finished, Outcome::Done),
        Ok(End::Paused) => (JobState::Paused, Outcome::Done),
        Err(problem) => (JobState::Failed, Outcome::Failed(problem.code)),
    };
    job.state = state;
    job.error = ended.err().map(|problem| problem.detail);
    if let (JobState::Finished, Some(progress)) = (state, &mut job.progress) {
        progress.phase = TrainPhase::Done;
    }
    let action = if state == JobState::Paused { ActionKind::TrainStop } else { ActionKind::TrainEnd };
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
}

impl Course<'_> {
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
        let report = gate::run(self.app, adapter, &self.lesson.held_out, self.job.spec.seq_len).await?;
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
                Event::Checkpoint { step, bytes } => self.keep_checkpoint(step, bytes).await?,
                Event::Adapter { bytes, digest } => weights = Some((bytes, digest)),
                Event::Said(FromEngineBody::Trained(report)) => {
                    let (bytes, digest) = weights.ok_or_else(|| defect("The engine sent no adapter."))?;
                    return Ok(Some(self.register(bytes, digest, *report).await?));
                }
                Event::Said(FromEngineBody::Failed(EngineFailure::Cancelled)) if cancelled => return Ok(None),
                Event::Said(FromEngineBody::Failed(failure)) => return Err(engine::failed(&failure).into()),
                Event::Said(_) => {}
            }
        }
    }

    async fn send_lesson(&self, work: &Work) -> Result<(), Cut> {
        for some in
            self.lesson.train.chunks(EXAMPLES_PER_MESSAGE).chain(self.lesson.held_out.chunks(EXAMPLES_PER_MESSAGE))
        {
            work.send(ToEngineBody::Examples(some.to_vec())).await?;
        }
        if let Some((_, blob)) = self.job.checkpoint {
            let read = move |app: &Arc<App>| {
                app.vault.unsealed()?.read(|reader| reader.blob(blob)).map_err(problem::from_read)
            };
            let bytes = self.app.blocking(read).await?;
            work.send(ToEngineBody::Resume { blob: head_of(&bytes) }).await?;
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
        let description = Description { bytes: bytes.len() as u64, digest, made_at_ms: draft.at_ms, train };
        let body = description.encode()?;
        let (job, id) = self
            .app
            .blocking(move |app| {
                let store = app.vault.unsealed()?;
                Ok(store.change(draft, |writer, _| -> Result<_, Fault> {
                    let blob = writer.put_blob(&bytes)?;
                    let id = writer.put_adapter(NewAdapter { job: job.id, dataset: job.dataset, blob, body })?;
                    if let Some((_, blob)) = job.checkpoint.take() {
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

/// Promotes as anybody else would. A future of a named type: the action that began this job is made of it.
fn promote(app: &Arc<App>, id: AdapterId) -> Pin<Box<dyn Future<Output = Result<(), Problem>> + Send + '_>> {
    Box::pin(async move { app.perform(&Actor::Appliance, Action::AdapterPromote { id }).await.map(drop) })
}

fn refused(report: &GateReport) -> Problem {
    let failed = report.bounds.iter().filter(|bound| !bound.held);
    let failed: Vec<_> =
        failed.map(|bound| format!("{} {:.4} > {:.4}", bound.name, bound.measured, bound.limit)).collect();
    let detail = format!("The adapter did not pass its gate: {}.", failed.join(", "));
    Problem::new(ErrorCode::GateRefused, detail, "Train longer or with more records.")
}
