//! Training as its callers see it: start or go on, follow, pause. At most one job runs. How a job runs its course is known
//! to `course.rs`.

use super::course::{self, Lesson};
use super::curves;
use super::job_doc::{self, JobDoc};
use crate::admin::upload::ProgressSink;
use crate::app::{Acted, App};
use crate::problem::defect;
use empathd_proto::admin::{AdminReply, Progress, TrainOptions};
use empathd_proto::audit::{ActionKind, AuditObject};
use empathd_proto::engine::{StepPoint, TrainSpec};
use empathd_proto::ids::JobId;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::record::Domain;
use empathd_proto::report::{AdapterState, JobState, TrainStatus};
use empathd_store::{AuditDraft, Store};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Steps that may be asked for.
const STEPS: RangeInclusive<u32> = 1..=1_000_000;
/// Minutes that may be asked for: the longest is the night window.
const MINUTES: RangeInclusive<u16> = 1..=720;
/// A job must have at least so long, milliseconds.
const NIGHT_MS_MIN: u64 = 60_000;
/// Share of the time of a window that is kept for the gate.
const GATE_SHARE: f64 = 0.1;
/// How long a pause waits for the job to leave its checkpoint.
const PAUSED_WITHIN: Duration = Duration::from_secs(45);

/// The place of the one training job.
pub(crate) struct Desk {
    latest: watch::Sender<Option<TrainStatus>>,
    /// What the last step of the running job measured.
    step: watch::Sender<Option<StepPoint>>,
    running: Mutex<Option<Running>>,
}

/// The job that has the place.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) job: JobId,
    stop: CancellationToken,
    pub(super) ended: CancellationToken,
}

impl Default for Desk {
    fn default() -> Self {
        Self { latest: watch::Sender::new(None), step: watch::Sender::new(None), running: Mutex::default() }
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

    /// Says what a step of the running job measured.
    pub(crate) fn publish_step(&self, step: StepPoint) {
        self.step.send_replace(Some(step));
    }

    /// Forgets what it knew, when the store is sealed.
    pub(crate) fn forget(&self) {
        self.latest.send_replace(None);
        self.step.send_replace(None);
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the one place; it is given back when `ended` is cancelled.
    pub(super) fn take(&self, job: JobId) -> Result<Running, Problem> {
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

/// Begins a job, or goes on with a paused or half-way failed one of the same cut, seed and number of steps. While the
/// window is closed it waits.
pub(crate) async fn start(app: &Arc<App>, options: TrainOptions, draft: AuditDraft) -> Result<Acted, Problem> {
    check(&options, app.clock.now_ms())?;
    app.engine.ready()?;
    let place = app.training.take(JobId::from_bytes(app.random()))?;
    let id = place.job;
    // However this ends, the place is given back.
    let ended = place.ended.clone().drop_guard();
    let (job, lesson) = app.blocking(move |app| prepare(app, id, &options, draft)).await?;
    Ok(Acted::recorded(AdminReply::Train(run_if_due(app, place, ended, job, lesson))))
}

/// Lets a job run its course unless it waits for its window; how it is.
pub(super) fn run_if_due(app: &Arc<App>, place: Running, ended: DropGuard, job: JobDoc, lesson: Lesson) -> TrainStatus {
    let status = job.status();
    app.training.publish(status.clone());
    if job.state == JobState::Running {
        run(app, place, ended, job, lesson);
    }
    status
}

/// Lets a job run its course; whoever holds `ended` holds the place.
fn run(app: &Arc<App>, place: Running, ended: DropGuard, job: JobDoc, lesson: Lesson) {
    if let Some(running) = app.training.running().as_mut() {
        running.job = job.id;
    }
    let app = app.clone();
    tokio::spawn(async move {
        let _ended = ended;
        course::run(&app, job, lesson, &place.stop).await;
    });
}

/// Goes on with the job that waits for its window, if there is one and it can.
pub(crate) async fn take_up_waiting(app: &Arc<App>) -> Result<(), Problem> {
    if app.vault.unsealed().is_err() || app.engine.ready().is_err() || app.training.latest().is_some() {
        return Ok(());
    }
    let place = app.training.take(JobId::from_bytes(app.random()))?;
    let ended = place.ended.clone().drop_guard();
    let Some((job, lesson)) = app.blocking(|app| waiting(app)).await? else { return Ok(()) };
    app.training.publish(job.status());
    run(app, place, ended, job, lesson);
    Ok(())
}

/// The newest job that waits, kept in the store as running, and what it learns from.
fn waiting(app: &App) -> Result<Option<(JobDoc, Lesson)>, Problem> {
    let store = app.vault.unsealed()?;
    let jobs = job_doc::all(&store)?;
    let Some(mut job) = jobs.into_iter().rev().find(|job| job.state == JobState::Waiting) else { return Ok(None) };
    let cut = course::cut(&store, Some(job.dataset))?;
    let mut lesson = Lesson::read(&store, &cut, job.spec.seq_len, app.config.training.validation_examples_max)?;
    lesson.guard(job.id);
    job.state = JobState::Running;
    let (object, count) = (AuditObject::Job(job.id), u64::from(job.steps_safe()));
    job.save(&store, AuditDraft { object, count, ..app.own_draft(ActionKind::TrainStart) })?;
    Ok(Some((job, lesson)))
}

/// Refuses options that cannot be meant.
pub(super) fn check(options: &TrainOptions, now_ms: u64) -> Result<(), Problem> {
    let refused =
        |detail: String| Problem::new(ErrorCode::BadRequest, detail, "Correct it: empathctl train start --help");
    if options.until_ms.is_some_and(|until| until < now_ms + NIGHT_MS_MIN) {
        return Err(refused("The training would have to end within a minute.".to_owned()));
    }
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
    let goes_on = |job: &JobDoc| {
        // A job that failed half-way, such as on a full disk, has lost nothing of what it sealed.
        let failed_half_way = job.state == JobState::Failed && job.checkpoint.is_some();
        (matches!(job.state, JobState::Paused | JobState::Waiting) || failed_half_way)
            && job.dataset == cut.id()
            && job.spec.seed == options.seed
            && options.steps.is_none_or(|steps| steps == job.spec.steps)
    };
    let jobs = job_doc::all(&store)?;
    sweep(app, &store, &jobs);
    let mut job = match jobs.into_iter().rev().find(goes_on) {
        Some(paused) => JobDoc { promote: paused.promote || options.promote, error: None, ..paused },
        None => {
            let spec = spec(app, id, options, lesson.experts(training.experts_min, training.experts_max));
            JobDoc::fresh(draft.at_ms, cut.id(), spec, options.promote)
        }
    };
    job.state = first_state(app);
    lesson.guard(job.id);
    let count = u64::from(job.steps_safe());
    job.save(&store, AuditDraft { object: AuditObject::Job(job.id), count, ..draft })?;
    Ok((job, lesson))
}

/// How a job begins: at once, or with its window.
pub(super) fn first_state(app: &App) -> JobState {
    let may_run = app.config.training.window.is_none_or(|window| window.is_open(&*app.clock));
    if may_run { JobState::Running } else { JobState::Waiting }
}

/// Removes the curves of jobs whose adapters are retired, and of all but the newest. A disk that cannot do it is no reason
/// not to train.
fn sweep(app: &App, store: &Store, jobs: &[JobDoc]) {
    let adapters = store.read(|reader| reader.adapters()).unwrap_or_default();
    let is_retired = |job: &JobDoc| {
        adapters.iter().any(|adapter| Some(adapter.id) == job.adapter && adapter.state == AdapterState::Retired)
    };
    let kept: Vec<JobId> =
        jobs.iter().rev().filter(|job| !is_retired(job)).take(curves::JOBS_MAX).map(|job| job.id).collect();
    if curves::sweep(&curves::folder(&app.config.state), &kept).is_err() {
        tracing::warn!("old training curves could not be removed");
    }
}

/// Most seconds of a job that begins now: the minutes asked for, within the window and before the moment it must end by, less
/// what the gate takes of these.
fn seconds_max(app: &App, options: &TrainOptions) -> u32 {
    let minutes = options.minutes.unwrap_or(app.config.training.minutes);
    let window_s = app.config.training.window.map(|window| window.seconds(&*app.clock));
    let until_s = options.until_ms.map(|until| until.saturating_sub(app.clock.now_ms()) / 1000);
    let ends = [window_s, until_s].into_iter().flatten().map(|seconds| (seconds as f64 * (1.0 - GATE_SHARE)) as u64);
    let least = ends.chain([u64::from(minutes) * 60]).min().unwrap_or(0);
    u32::try_from(least.max(1)).unwrap_or(u32::MAX)
}

/// What a job is asked for: as configured, in the time that there is.
pub(super) fn spec(app: &App, id: JobId, options: &TrainOptions, experts: Vec<Option<Domain>>) -> TrainSpec {
    let training = &app.config.training;
    TrainSpec {
        job: id,
        steps: options.steps.unwrap_or(training.steps),
        seconds_max: seconds_max(app, options),
        seed: options.seed,
        ..training.spec(experts)
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
            let measured = app.training.step.borrow().clone().filter(|measured| measured.step == step.step);
            progress.send(Progress::Train(step));
            if let Some(measured) = measured {
                progress.send(Progress::Step(Box::new(measured)));
            }
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

/// Takes over the jobs of the store: one that a stop left running is paused, or waits for its window.
pub(crate) fn recall(app: &App, store: &Store) -> Result<(), Problem> {
    let mut jobs = job_doc::all(store)?;
    for job in jobs.iter_mut().filter(|job| job.state == JobState::Running) {
        job.state = if app.config.training.window.is_some() { JobState::Waiting } else { JobState::Paused };
        let draft = app.own_draft(ActionKind::TrainStop);
        job.save(store, AuditDraft { object: AuditObject::Job(job.id), count: u64::from(job.steps_safe()), ..draft })?;
    }
    app.training.latest.send_replace(jobs.last().map(JobDoc::status));
    Ok(())
}
