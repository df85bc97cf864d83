//! Training as its callers see it: start or go on, follow, pause. At most one job runs. How a job runs its course is known
//! to `course.rs`.

use super::course::{self, Lesson};
use super::job_doc::{self, JobDoc};
use crate::admin::upload::ProgressSink;
use crate::app::{Acted, App};
use crate::problem::defect;
use empathd_proto::admin::{AdminReply, Progress, TrainOptions};
use empathd_proto::audit::{ActionKind, AuditObject};
use empathd_proto::engine::{Guards, LossSpec, MixtureSpec, Plateau, Stages, TrainOnly, TrainSpec};
use empathd_proto::ids::JobId;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::report::{JobState, TrainStatus};
use empathd_store::{AuditDraft, Store};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Steps that may be asked for.
const STEPS: RangeInclusive<u32> = 1..=1_000_000;
/// Minutes that may be asked for: the longest is the night window.
const MINUTES: RangeInclusive<u16> = 1..=720;
/// How long a pause waits for the job to leave its checkpoint.
const PAUSED_WITHIN: Duration = Duration::from_secs(45);

/// The place of the one training job.
pub(crate) struct Desk {
    latest: watch::Sender<Option<TrainStatus>>,
    running: Mutex<Option<Running>>,
}

#[derive(Clone)]
struct Running {
    job: JobId,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Default for Desk {
    fn default() -> Self {
        Self { latest: watch::Sender::new(None), running: Mutex::default() }
    }
}

impl Desk {
    /// The job that runs now, for status reports.
    pub(crate) fn latest(&self) -> Option<TrainStatus> {
        self.latest.borrow().clone().filter(|status| status.state == JobState::Running)
    }

    /// Says how the job is.
    pub(crate) fn publish(&self, status: TrainStatus) {
        self.latest.send_replace(Some(status));
    }

    /// Forgets what it knew, when the store is sealed.
    pub(crate) fn forget(&self) {
        self.latest.send_replace(None);
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the one place; it is given back when `ended` is cancelled.
    fn take(&self, job: JobId) -> Result<Running, Problem> {
        let mut running = self.running();
        if let Some(other) = running.as_ref().filter(|other| !other.ended.is_cancelled()) {
            let next = "Follow it with: empathctl train status --follow; pause it with: empathctl train stop";
            return Err(Problem::new(ErrorCode::Conflict, format!("{} is training already.", other.job), next));
        }
        let taken = Running { job, stop: CancellationToken::new(), ended: CancellationToken::new() };
        *running = Some(taken.clone());
        Ok(taken)
    }
}

/// Begins a job, or goes on with a paused or half-way failed one of the same cut, seed and number of steps.
pub(crate) async fn start(app: &Arc<App>, options: TrainOptions, draft: AuditDraft) -> Result<Acted, Problem> {
    check(&options)?;
    app.engine.ready()?;
    let place = app.training.take(JobId::from_bytes(app.random()))?;
    let id = place.job;
    // However this ends, the place is given back.
    let ended = place.ended.clone().drop_guard();
    let (job, lesson) = app.blocking(move |app| prepare(app, id, &options, draft)).await?;
    let status = job.status();
    app.training.publish(status.clone());
    if let Some(running) = app.training.running().as_mut() {
        running.job = job.id;
    }
    let app = app.clone();
    tokio::spawn(async move {
        let _ended = ended;
        course::run(&app, job, lesson, &place.stop).await;
    });
    Ok(Acted::recorded(AdminReply::Train(status)))
}

fn check(options: &TrainOptions) -> Result<(), Problem> {
    let refused =
        |detail: String| Problem::new(ErrorCode::BadRequest, detail, "Correct it: empathctl train start --help");
    match (options.steps, options.minutes) {
        (Some(steps), _) if !STEPS.contains(&steps) => {
            Err(refused(format!("The number of steps is {steps}, allowed is {} to {}.", STEPS.start(), STEPS.end())))
        }
        (_, Some(minutes)) if !MINUTES.contains(&minutes) => Err(refused(format!(
            "The number of minutes is {minutes}, allowed is {} to {}.",
            MINUTES.start(),
            MINUTES.end()
        ))),
        _ => Ok(()),
    }
}

/// The job that is to run, kept in the store as running, and what it learns from.
fn prepare(app: &App, id: JobId, options: &TrainOptions, draft: AuditDraft) -> Result<(JobDoc, Lesson), Problem> {
    let store = app.vault.unsealed()?;
    let cut = course::cut(&store, options.dataset)?;
    let training = &app.config.training;
    let mut lesson = Lesson::read(&store, &cut, training.seq_len, training.validation_examples_max)?;
    let steps = options.steps.unwrap_or(training.steps);
    let goes_on = |job: &JobDoc| {
        // A job that failed half-way, such as on a full disk, has lost nothing of what it sealed.
        let failed_half_way = job.state == JobState::Failed && job.checkpoint.is_some();
        (job.state == JobState::Paused || failed_half_way)
            && job.dataset == cut.id()
            && job.spec.seed == options.seed
            && options.steps.is_none_or(|steps| steps == job.spec.steps)
    };
    let mut job = match job_doc::all(&store)?.into_iter().rev().find(goes_on) {
        Some(paused) => JobDoc { promote: paused.promote || options.promote, error: None, ..paused },
        None => JobDoc {
            id,
            started_at_ms: draft.at_ms,
            dataset: cut.id(),
            spec: spec(app, id, options, steps, &lesson),
            promote: options.promote,
            state: JobState::Running,
            checkpoint: None,
            progress: None,
            adapter: None,
            error: None,
        },
    };
    job.state = JobState::Running;
    lesson.guard(job.id);
    let count = u64::from(job.steps_safe());
    job.save(&store, AuditDraft { object: AuditObject::Job(job.id), count, ..draft })?;
    Ok((job, lesson))
}

fn spec(app: &App, job: JobId, options: &TrainOptions, steps: u32, lesson: &Lesson) -> TrainSpec {
    let training = &app.config.training;
    TrainSpec {
        job,
        mixture: MixtureSpec {
            shared_rank: training.shared_rank,
            expert_rank: training.expert_rank,
            experts: lesson.experts(training.experts_min, training.experts_max),
            top_k: training.top_k,
            scale: training.scale,
            ..MixtureSpec::default()
        },
        only: TrainOnly::All,
        seq_len: training.seq_len,
        tokens_per_step: training.tokens_per_step,
        pass_tokens: None,
        steps,
        seconds_max: u32::from(options.minutes.unwrap_or(training.minutes)) * 60,
        learning_rate: training.learning_rate,
        b_rate_ratio: 1.0,
        router_learning_rate: training.router_learning_rate,
        weight_decay: training.weight_decay,
        warmup: training.warmup,
        clip: training.clip,
        validate_every: training.validate_every,
        checkpoint_every: training.checkpoint_every,
        patience: training.patience,
        plateau: Plateau::default(),
        stages: Stages::default(),
        losses: LossSpec::default(),
        guards: Guards::default(),
        seed: options.seed,
    }
}

/// How a job is; with `follow`, when it has ended.
pub(crate) async fn status(
    app: &Arc<App>,
    job: Option<JobId>,
    follow: bool,
    progress: ProgressSink,
) -> Result<Acted, Problem> {
    let mut latest = app.training.latest.subscribe();
    let status = loop {
        let current = latest.borrow_and_update().clone();
        let wanted = current.filter(|status| job.is_none_or(|job| job == status.job));
        let Some(status) = wanted else { break app.blocking(move |app| stored(app, job)).await? };
        if let Some(step) = status.progress.clone().filter(|_| follow) {
            progress.send(Progress::Train(step));
        }
        if !follow || status.state != JobState::Running || !progress.is_open() {
            break status;
        }
        tokio::select! {
            changed = latest.changed() => changed.map_err(|_| defect("Training has ended."))?,
            () = progress.closed() => {}
        }
    };
    let object = AuditObject::Job(status.job);
    Ok(Acted::unrecorded(AdminReply::Train(status), 0).about(object))
}

fn stored(app: &App, job: Option<JobId>) -> Result<TrainStatus, Problem> {
    let all = job_doc::all(&*app.vault.unsealed()?)?;
    let found = all.into_iter().rev().find(|doc| job.is_none_or(|job| job == doc.id));
    let next = "Begin one with: empathctl train start";
    found
        .map(|doc| doc.status())
        .ok_or_else(|| Problem::new(ErrorCode::NotFound, "There is no such training job.", next))
}

/// Pauses the running job and gives its last state.
pub(crate) async fn stop(app: &Arc<App>) -> Result<Acted, Problem> {
    if !pause(app).await {
        let next = "See the last one with: empathctl train status";
        return Err(Problem::new(ErrorCode::Conflict, "No training job runs.", next));
    }
    let latest = app.training.latest.borrow().clone();
    let status = latest.ok_or_else(|| defect("The paused job left no state."))?;
    let object = AuditObject::Job(status.job);
    Ok(Acted::unrecorded(AdminReply::Train(status), 0).about(object))
}

/// Has the running job leave a checkpoint and end; false when none runs.
pub(crate) async fn pause(app: &Arc<App>) -> bool {
    let running = app.training.running().clone().filter(|running| !running.ended.is_cancelled());
    let Some(running) = running else { return false };
    running.stop.cancel();
    if tokio::time::timeout(PAUSED_WITHIN, running.ended.cancelled()).await.is_err() {
        tracing::warn!(job = %running.job, "training did not pause in time; it goes on from its last checkpoint");
    }
    true
}

/// Takes over the jobs of the store: one that a stop left running is paused.
pub(crate) fn recall(app: &App, store: &Store) -> Result<(), Problem> {
    let mut jobs = job_doc::all(store)?;
    for job in jobs.iter_mut().filter(|job| job.state == JobState::Running) {
        job.state = JobState::Paused;
        let draft = app.own_draft(ActionKind::TrainStop);
        job.save(store, AuditDraft { object: AuditObject::Job(job.id), count: u64::from(job.steps_safe()), ..draft })?;
    }
    app.training.latest.send_replace(jobs.last().map(JobDoc::status));
    Ok(())
}
