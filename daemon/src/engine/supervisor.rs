//! Keeps a connection to the engine: starts it as a child or connects to where systemd keeps it, has it load its models,
//! listens to its pulse, and begins again when it is gone. What is asked of the engine afterwards is not known here.

use super::link::{Event, Link, LinkError, Lost};
use super::{Embedder, Ready, View};
use crate::model_file::{ModelFile, ModelFileError};
use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{BaseModel, EngineFailure, EngineStatus, FromEngineBody, ServingSpec, ToEngineBody};
use empathd_proto::generate::{CacheScope, CallerKey, GenerateSpec, PlainMessage, Prompt, SamplingSpec, ServiceClass};
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
/// How often the engine is asked how it is.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How long it may take to say so; it is asked again then.
const STATUS_WITHIN: Duration = Duration::from_secs(5);

/// What the engine is to have in memory.
#[derive(Debug, Clone)]
pub struct Models {
    /// The base model.
    pub base: ModelFile,
    /// How it shall answer.
    pub serving: ServingSpec,
    /// The model of embeddings; whether it must be there.
    pub embedder: Option<(ModelFile, bool)>,
}

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
    Model(#[from] ModelFileError),
    #[error("the engine refused the base model: {0}")]
    Refused(EngineFailure),
    #[error("the engine loaded the base model and cannot answer: {0}")]
    Cold(EngineFailure),
    #[error("the engine ended while it loaded the base model")]
    Lost(#[from] Lost),
    #[error("the engine did not load the base model within {} s", LOADED_WITHIN.as_secs())]
    Slow,
}

/// Keeps the engine until `stop`; `view` always says how it is.
pub async fn keep(whereabouts: Whereabouts, models: Models, view: watch::Sender<View>, stop: CancellationToken) {
    let mut pause = PAUSE_FIRST;
    for epoch in 1u64.. {
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = one_life(&whereabouts, &models, epoch, &view) => ended,
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
    models: &Models,
    epoch: u64,
    view: &watch::Sender<View>,
) -> Result<(), DownError> {
    // The child is killed when this is dropped.
    let (_child, stream) = connect(whereabouts).await?;
    let link = Link::open(stream).await?;
    view.send_replace(View::Loading);
    let result = tokio::time::timeout(LOADED_WITHIN, load(&link, models)).await.unwrap_or(Err(DownError::Slow));
    let base = match result {
        Ok(base) => base,
        Err(error) => {
            link.close();
            return Err(error);
        }
    };
    tracing::info!(kind = base.name, "engine ready");
    let ready = Arc::new(Ready::new(link.clone(), base, epoch));
    view.send_replace(View::Ready(ready.clone()));
    tokio::select! {
        () = link.closed() => {}
        _ = async { tokio::join!(listen(&ready), embed(&ready, models)) } => {}
    }
    Ok(())
}

/// Asks the engine again and again how it is. An answer that is late holds up nothing.
async fn listen(ready: &Ready) {
    let mut every = tokio::time::interval(STATUS_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if let Ok(Ok(Some(status))) = tokio::time::timeout(STATUS_WITHIN, status(&ready.link)).await {
            ready.pulse.heard(status);
        }
    }
}

async fn status(link: &Arc<Link>) -> Result<Option<EngineStatus>, Lost> {
    let mut work = link.begin(ToEngineBody::Status, 1).await?;
    match work.next().await? {
        Event::Said(FromEngineBody::Status(status)) => Ok(Some(status)),
        _ => Ok(None),
    }
}

/// Has the engine load the model of embeddings. Without it everything but embeddings works.
async fn embed(ready: &Ready, models: &Models) {
    let Some((file, required)) = &models.embedder else { return };
    let (path, sha256) = match file.locate().await {
        Ok(found) => found,
        Err(ModelFileError::Missing { .. }) if !required => return,
        Err(error) => return without_embedder(ready, error.to_string()),
    };
    ready.set_embedder(Embedder::Loading);
    let path = path.to_string_lossy().into_owned();
    let loaded = async {
        let mut work = ready.link.begin(ToEngineBody::LoadEmbedder { path, sha256 }, 1).await?;
        work.next().await
    };
    match tokio::time::timeout(LOADED_WITHIN, loaded).await {
        Ok(Ok(Event::Said(FromEngineBody::EmbedderLoaded { width }))) => {
            ready.set_embedder(Embedder::Ready { width });
        }
        Ok(Ok(Event::Said(FromEngineBody::Failed(failure)))) => without_embedder(ready, failure.to_string()),
        Ok(Ok(_)) => without_embedder(ready, "the engine answered out of turn".to_owned()),
        Ok(Err(lost)) => without_embedder(ready, lost.to_string()),
        Err(_) => without_embedder(ready, format!("it was not loaded within {} s", LOADED_WITHIN.as_secs())),
    }
}

fn without_embedder(ready: &Ready, reason: String) {
    tracing::warn!(reason, "no embeddings");
    ready.set_embedder(Embedder::Failed(reason));
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

/// Has the base model loaded and warm.
async fn load(link: &Arc<Link>, models: &Models) -> Result<BaseModel, DownError> {
    let (path, sha256) = models.base.locate().await?;
    let path = path.to_string_lossy().into_owned();
    let serving = models.serving.clone();
    let mut work = link.begin(ToEngineBody::LoadBase { path, sha256, serving }, 4).await?;
    loop {
        match work.next().await? {
            Event::Said(FromEngineBody::BaseLoaded(base)) => {
                warm_up(link).await?;
                return Ok(base);
            }
            Event::Said(FromEngineBody::Failed(failure)) => return Err(DownError::Refused(failure)),
            _ => {}
        }
    }
}

/// Has an engine that has taken no step yet say one word: the first caller shall not wait for what is done only once.
async fn warm_up(link: &Arc<Link>) -> Result<(), DownError> {
    if status(link).await?.is_some_and(|status| status.serving.warm) {
        return Ok(());
    }
    let greeting = PlainMessage { role: ChatRole::User, text: "Hello.".to_owned() };
    let spec = GenerateSpec {
        adapter: None,
        prompt: Prompt::Chat { messages: vec![greeting], tools: Vec::new() },
        class: ServiceClass::Batch,
        caller: CallerKey::default(),
        scope: CacheScope::default(),
        first_token_within_ms: None,
        max_tokens: 1,
        sampling: SamplingSpec::greedy(),
        stop: Vec::new(),
        grammar: None,
        skip_tokens: 0,
    };
    let mut work = link.begin(ToEngineBody::Generate(spec), 4).await?;
    loop {
        match work.next().await? {
            Event::Said(FromEngineBody::Finished(_)) => return Ok(()),
            Event::Said(FromEngineBody::Failed(failure)) => return Err(DownError::Cold(failure)),
            _ => {}
        }
    }
}
