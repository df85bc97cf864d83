//! Connections of the admin socket: accepts, bounds and times them, and carries frames between the caller and the
//! appliance. Who the caller is comes from the kernel alone.

use super::members::Members;
use super::translate::{self, Incoming};
use super::upload::CHUNKS_WAITING_MAX;
use crate::action::Action;
use crate::actor::Actor;
use crate::app::{App, Reply};
use crate::config;
use crate::problem::defect;
use crate::wire;
use empathd_proto::admin::{FromDaemon, Progress, ToDaemon};
use empathd_proto::frame::CHUNK_BYTES;
use empathd_proto::problem::{ErrorCode, Problem};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Progress that may wait for a slow caller; further progress is dropped.
const PROGRESS_WAITING_MAX: usize = 64;
/// How long a refused upload is read to its end, so that its sender gets to read the reply.
const LINGER: Duration = Duration::from_secs(5);
/// Pause after an accept that failed, such as when file descriptors are spent.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Permissions of the socket: any local user may ask for the state; the kernel says who asks.
const SOCKET_MODE: u32 = 0o666;

/// Opens the socket, in place of one that an earlier process left.
///
/// # Errors
/// The path cannot be bound, or another process listens there.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = format!("another process listens on {}", path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, text));
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Serves the socket until `stop`; returns when no connection is left, or `drain` is over.
pub async fn serve(listener: UnixListener, app: Arc<App>, stop: CancellationToken) {
    let limits = app.config.admin.clone();
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let members = Arc::new(Members::new(&limits.users, &limits.groups));
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let place = places.clone().try_acquire_owned();
        let (app, limits, members) = (app.clone(), limits.clone(), members.clone());
        connections.spawn(async move {
            match place {
                Ok(_place) => connection(stream, app, &members, &limits).await,
                Err(_) => refuse(stream, limits.idle).await,
            }
        });
    }
    connections.close();
    if tokio::time::timeout(app.config.serving.drain, connections.wait()).await.is_err() {
        tracing::warn!("admin connections were cut at the end of the drain");
    }
}

async fn refuse(mut stream: UnixStream, limit: Duration) {
    let next = "Try again in a few seconds.";
    let problem = Problem::new(ErrorCode::Busy, "Too many connections to the admin socket.", next);
    let done = FromDaemon::Done(Box::new(Err(problem)));
    let _ = tokio::time::timeout(limit, wire::write(&mut stream, &done)).await;
}

async fn connection(stream: UnixStream, app: Arc<App>, members: &Members, limits: &config::Admin) {
    let Ok(credentials) = stream.peer_cred() else { return };
    let actor = members.actor(credentials.uid(), credentials.gid());
    let (mut reader, writer) = stream.into_split();
    let (progress, waiting) = mpsc::channel(PROGRESS_WAITING_MAX);
    let first = tokio::time::timeout(limits.idle, wire::read::<ToDaemon>(&mut reader)).await;
    let incoming = match first {
        Ok(Ok(Some(ToDaemon::Request(request)))) => translate::incoming(request, limits.upload_bytes_max, progress),
        // Nothing was said: nothing is answered.
        Ok(Ok(None)) => return,
        _ => Incoming { action: Action::Unknown, chunks: None },
    };
    let Incoming { action, chunks } = incoming;
    let asked_for_upload = chunks.is_some();
    let feeding = async {
        match chunks {
            Some(chunks) => feed(&mut reader, chunks, limits.idle).await,
            None => std::future::pending().await,
        }
    };
    let answering = answer(&app, &actor, action, writer, waiting, limits.idle);
    tokio::pin!(answering);
    tokio::select! {
        () = &mut answering => {}
        () = feeding => answering.await,
    }
    if asked_for_upload {
        let _ = tokio::time::timeout(LINGER, drain(&mut reader)).await;
    }
}

/// Hands the chunks of an upload on until its end. Dropping the sender tells the action that no more will come.
async fn feed(reader: &mut OwnedReadHalf, chunks: mpsc::Sender<Vec<u8>>, idle: Duration) {
    const { assert!(CHUNKS_WAITING_MAX > 0) }
    while let Ok(Ok(Some(ToDaemon::Chunk(chunk)))) = tokio::time::timeout(idle, wire::read(reader)).await {
        if chunk.len() > CHUNK_BYTES || chunks.send(chunk).await.is_err() {
            return;
        }
    }
}

/// Performs the action and writes progress and the one reply.
async fn answer(
    app: &Arc<App>,
    actor: &Actor,
    action: Action,
    mut writer: OwnedWriteHalf,
    mut waiting: mpsc::Receiver<Progress>,
    limit: Duration,
) {
    let performing = app.perform(actor, action);
    tokio::pin!(performing);
    let result = loop {
        tokio::select! {
            biased;
            Some(progress) = waiting.recv() => {
                if !sent(&mut writer, &FromDaemon::Progress(progress), limit).await {
                    // The caller is gone. What it began is finished all the same.
                    waiting.close();
                }
            }
            result = &mut performing => break result,
        }
    };
    let result = result.and_then(|reply| match reply {
        Reply::Admin(reply) => Ok(*reply),
        _ => Err(defect("An action had a reply of another kind.")),
    });
    sent(&mut writer, &FromDaemon::Done(Box::new(result)), limit).await;
    let _ = writer.shutdown().await;
}

async fn sent(writer: &mut OwnedWriteHalf, message: &FromDaemon, limit: Duration) -> bool {
    matches!(tokio::time::timeout(limit, wire::write(writer, message)).await, Ok(Ok(())))
}

async fn drain(reader: &mut OwnedReadHalf) {
    let mut buffer = vec![0u8; 64 * 1024];
    while matches!(reader.read(&mut buffer).await, Ok(bytes) if bytes > 0) {}
}
