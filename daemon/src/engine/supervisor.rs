//! Keeps a connection to the engine: starts it as a child or connects to where systemd keeps it, has it load the base
//! model, and begins again when it is gone. What is asked of the engine afterwards is not known here.

use super::link::{Event, Link, LinkError, Lost};
use super::{Ready, View};
use crate::model_file::ModelFile;
use empathd_proto::engine::{BaseModel, EngineFailure, FromEngineBody, ServingSpec, ToEngineBody};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// First pause before another try; each further one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a child may take to open its socket.
const CHILD_OPENS_WITHIN: Duration = Duration::from_secs(10);
/// Pause between two looks at a child's socket.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the base model may take to load.
const LOADED_WITHIN: Duration = Duration::from_secs(600);

/// Where the engine is.
#[derive(Debug, Clone)]
pub enum Whereabouts {
    /// A child of this process, started anew whenever it ends.
    Child {
        /// The program.
        program: PathBuf,
        /// The socket it opens.
        socket: PathBuf,
        /// Its worker threads; its own choice when absent.
        threads: Option<u16>,
    },
    /// A service of its own behind this socket.
    Service(PathBuf),
}

/// Why there is no engine at the moment.
#[derive(Debug, thiserror::Error)]
enum DownError {
    #[error("the engine program {0} cannot be started: {1}")]
    Start(PathBuf, std::io::Error),
    #[error("no engine behind {0}: {1}")]
    Connect(PathBuf, std::io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Model(#[from] crate::model_file::ModelFileError),
    #[error("the engine refused the base model: {0}")]
    Refused(EngineFailure),
    #[error("the engine ended while it loaded the base model")]
    Lost(#[from] Lost),
    #[error("the engine did not load the base model within {} s", LOADED_WITHIN.as_secs())]
    Slow,
}

/// Keeps the engine until `stop`; `view` always says how it is.
pub async fn keep(whereabouts: Whereabouts, model: ModelFile, view: watch::Sender<View>, stop: CancellationToken) {
    let mut pause = PAUSE_FIRST;
    for epoch in 1u64.. {
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = one_life(&whereabouts, &model, epoch, &view) => ended,
        };
        match ended {
            Ok(()) => {
                pause = PAUSE_FIRST;
                tracing::warn!("engine lost, starting again");
                view.send_replace(View::Down("The engine ended and is being restarted.".to_owned()));
            }
            Err(error) => {
                tracing::warn!(%error, "engine not available");
                view.send_replace(View::Down(format!("The engine is not available: {error}.")));
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
        }
    }
    view.send_replace(View::Down("The appliance is stopping.".to_owned()));
}

/// One engine from start to end; `Ok` when it had been ready.
async fn one_life(
    whereabouts: &Whereabouts,
    model: &ModelFile,
    epoch: u64,
    view: &watch::Sender<View>,
) -> Result<(), DownError> {
    // The child is killed when this is dropped.
    let (_child, stream) = connect(whereabouts).await?;
    let link = Link::open(stream).await?;
    view.send_replace(View::Loading);
    let result = tokio::time::timeout(LOADED_WITHIN, load(&link, model)).await.unwrap_or(Err(DownError::Slow));
    let base = match result {
        Ok(base) => base,
        Err(error) => {
            link.close();
            return Err(error);
        }
    };
    tracing::info!(kind = base.name, "engine ready");
    view.send_replace(View::Ready(Arc::new(Ready { link: link.clone(), base, epoch })));
    link.closed().await;
    Ok(())
}

async fn connect(whereabouts: &Whereabouts) -> Result<(Option<Child>, UnixStream), DownError> {
    match whereabouts {
        Whereabouts::Service(socket) => {
            let stream = UnixStream::connect(socket).await;
            Ok((None, stream.map_err(|error| DownError::Connect(socket.clone(), error))?))
        }
        Whereabouts::Child { program, socket, threads } => {
            let mut child = start(program, socket, *threads)?;
            let stream = connect_to_child(&mut child, socket).await?;
            Ok((Some(child), stream))
        }
    }
}

fn start(program: &Path, socket: &Path, threads: Option<u16>) -> Result<Child, DownError> {
    // A socket that an earlier child left behind would be connected to in place of the new one.
    let _ = std::fs::remove_file(socket);
    let mut command = Command::new(program);
    command.arg("--socket").arg(socket).arg("--exit-with-peer");
    if let Some(threads) = threads {
        command.arg("--threads").arg(threads.to_string());
    }
    // candle's own pool spins while it waits and takes the cores that matrix products and answers need.
    command.env("CANDLE_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(|error| DownError::Start(program.to_owned(), error))
}

async fn connect_to_child(child: &mut Child, socket: &Path) -> Result<UnixStream, DownError> {
    let deadline = tokio::time::Instant::now() + CHILD_OPENS_WITHIN;
    loop {
        let error = match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let ended = !matches!(child.try_wait(), Ok(None));
        if ended || tokio::time::Instant::now() >= deadline {
            return Err(DownError::Connect(socket.to_owned(), error));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn load(link: &Arc<Link>, model: &ModelFile) -> Result<BaseModel, DownError> {
    let (path, sha256) = model.locate().await?;
    let path = path.to_string_lossy().into_owned();
    let mut work = link.begin(ToEngineBody::LoadBase { path, sha256, serving: ServingSpec::default() }, 4).await?;
    loop {
        match work.next().await? {
            Event::Said(FromEngineBody::BaseLoaded(base)) => return Ok(base),
            Event::Said(FromEngineBody::Failed(failure)) => return Err(DownError::Refused(failure)),
            _ => {}
        }
    }
}
