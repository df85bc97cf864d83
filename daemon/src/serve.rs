//! From a configuration to a running appliance, and to its orderly stop. What the parts do is not known here.

use crate::acts;
use crate::adapters;
use crate::admin;
use crate::app::App;
use crate::backups;
use crate::clock::{OsEntropy, SystemClock};
use crate::config::{Config, EnginePlace};
use crate::engine::supervisor::{self, Models, Whereabouts};
use crate::engine::{Engine, View};
use crate::http::{self, HttpLimits};
use crate::inference;
use crate::jobs;
use crate::model_file::ModelFile;
use crate::scrub;
use anyhow::{Context, bail};
use empathd_proto::admin::SealState;
use empathd_store::KdfCost;
use rustix::fs::{FlockOperation, Mode, OFlags};
use sd_notify::NotifyState;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long parts that have been told to end may take beyond their own limits.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How often systemd is told that the daemon lives, when it does not say.
const ALIVE_EVERY: Duration = Duration::from_secs(60);

/// What differs between a service and a trial.
#[derive(Debug, Clone)]
pub struct Manner {
    /// Where the engine is.
    pub engine: Whereabouts,
    /// Cost of the passphrase.
    pub cost: KdfCost,
    /// Print one line on standard output when ready.
    pub announce: bool,
}

/// Runs the appliance until it is told to stop.
///
/// # Errors
/// What keeps it from starting, with what to do.
pub async fn run(config: Config, manner: Manner) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("signals cannot be awaited")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("signals cannot be awaited")?;
    let _lock = claim(&config.state)?;
    let api = TcpListener::bind(config.api.listen)
        .await
        .with_context(|| format!("cannot listen on {}: change api.listen", config.api.listen))?;
    let socket = admin_listener(&config.admin.socket)?;
    let stop = CancellationToken::new();
    let (view, engine) = watch::channel(View::Down("The engine is being started.".to_owned()));
    let models = models(&config.engine);
    let engine_stop = CancellationToken::new();
    let keeper = tokio::spawn(supervisor::keep(manner.engine, models, view, engine_stop.clone()));
    let limits = HttpLimits { drain_ms: millis(config.serving.drain), ..HttpLimits::default() };
    let (clock, entropy) = (Arc::new(SystemClock::start()), Arc::new(OsEntropy));
    let app = App::new(config, clock, entropy, manner.cost, Engine::new(engine))?;
    app.set_api(api.local_addr()?);
    backups::sweep(&app.config.state);
    acts::unseal_by_credential(&app).await;
    if manner.announce {
        announce(&app)?;
    }
    tokio::spawn(adapters::keep_loaded(app.clone()));
    tokio::spawn(jobs::window::keep(app.clone()));
    tokio::spawn(inference::keep_young(app.clone()));
    tokio::spawn(scrub::keep(app.clone()));
    let doors = [
        tokio::spawn(http::serve(api, app.clone(), limits, stop.clone())),
        tokio::spawn(admin::server::serve(socket, app.clone(), stop.clone())),
    ];
    let telling = tokio::spawn(tell_systemd(app.clone()));
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    app.begin_stop();
    stop.cancel();
    // Training pauses while answers are finished; the admin socket may hold somebody who follows it.
    app.pause_training().await;
    for door in doors {
        let _ = tokio::time::timeout(app.config.serving.drain + END_WITHIN, door).await;
    }
    app.stop().await;
    telling.abort();
    engine_stop.cancel();
    let _ = tokio::time::timeout(END_WITHIN, keeper).await;
    Ok(())
}

/// What the engine is to have in memory.
fn models(place: &EnginePlace) -> Models {
    let file = |key, name: &Path, sha256| ModelFile::new(key, name.to_owned(), place.models.clone(), sha256);
    let embedder = &place.embedder;
    Models {
        base: file("engine.model", &place.model, place.sha256),
        serving: place.serving.clone(),
        embedder: Some((file("engine.embedder", &embedder.file, embedder.sha256), embedder.required)),
    }
}

/// The state folder, for this process alone: the lock is on the folder itself and leaves no file.
pub(crate) fn claim(state: &Path) -> anyhow::Result<OwnedFd> {
    let shown = state.display();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .with_context(|| format!("the state folder {shown} cannot be made: check store.folder and its permissions"))?;
    let folder = rustix::fs::open(state, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("the state folder {shown} cannot be opened"))?;
    if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another empathd runs on {shown}: stop it first, or choose another state folder");
    }
    Ok(folder)
}

/// The admin socket: the one that systemd gave as standard input, or one that is opened here.
fn admin_listener(path: &Path) -> anyhow::Result<UnixListener> {
    let stdin = std::io::stdin();
    if rustix::net::sockopt::socket_acceptconn(&stdin).unwrap_or(false) {
        let listener = std::os::unix::net::UnixListener::from(stdin.as_fd().try_clone_to_owned()?);
        listener.set_nonblocking(true)?;
        return Ok(UnixListener::from_std(listener)?);
    }
    admin::server::bind(path).with_context(|| format!("cannot listen on {}: change admin.socket", path.display()))
}

/// One line for whoever started a trial.
fn announce(app: &App) -> anyhow::Result<()> {
    use std::io::Write;
    let line = serde_json::json!({
        "api": app.api().map(|address| address.to_string()),
        "admin_socket": app.config.admin.socket,
        "ca": app.config.state.join("pki/ca.pem"),
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("standard output is closed")
}

/// Tells systemd that the daemon is ready, in which state, and that it lives.
async fn tell_systemd(app: Arc<App>) {
    let mut changes = app.revocations();
    let every = sd_notify::watchdog_enabled().map_or(ALIVE_EVERY, |limit| limit / 3);
    let mut alive = tokio::time::interval(every);
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status(&app))]);
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = alive.tick() => {}
        }
        let _ = sd_notify::notify(&[NotifyState::Watchdog, NotifyState::Status(status(&app))]);
    }
}

fn status(app: &App) -> &'static str {
    match app.readiness().store {
        SealState::Uninitialised => "Waiting for the first start: empathctl init",
        SealState::Sealed => "Sealed, waiting for the passphrase: empathctl unseal",
        SealState::Unsealed => "Unsealed, serving",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
