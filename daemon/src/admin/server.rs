//! Connections of the admin socket: accepts, bounds and times them, and carries frames between the caller and the
//! appliance. Who the caller is comes from the kernel alone.

use super::members::Members;
use super::translate::{self, Incoming, Outgoing};
use super::upload::{CHUNKS_WAITING_MAX, FilePart};
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
    let (progress, progress_waiting) = mpsc::channel(PROGRESS_WAITING_MAX);
    let (files, files_waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let (outgoing, waiting) =
        (Outgoing { progress, files }, Waiting { progress: progress_waiting, files: files_waiting });
    let first = tokio::time::timeout(limits.idle, wire::read::<ToDaemon>(&mut reader)).await;
    let incoming = match first {
        Ok(Ok(Some(ToDaemon::Request(request)))) => translate::incoming(request, limits.upload_bytes_max, outgoing),
        // Nothing was said: nothing is answered.
        Ok(Ok(None)) => return,
        // Performed for its entry in the trail; what is told is what went wrong here.
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

/// What an action says before its reply.
struct Waiting {
    progress: mpsc::Receiver<Progress>,
    files: mpsc::Receiver<FilePart>,
}

impl Waiting {
    /// The next message; `None` when nothing more can come.
    async fn next(&mut self) -> Option<FromDaemon> {
        tokio::select! {
            Some(progress) = self.progress.recv() => Some(FromDaemon::Progress(progress)),
            Some(part) = self.files.recv() => Some(frame_of(part)),
            else => None,
        }
    }

    fn close(&mut self) {
        self.progress.close();
        self.files.close();
    }
}

fn frame_of(part: FilePart) -> FromDaemon {
    match part {
        FilePart::Begin { path, bytes } => FromDaemon::File { path, bytes },
        FilePart::Chunk(chunk) => FromDaemon::Chunk(chunk),
    }
}

/// Performs the action and writes progress, files and the one reply.
async fn answer(
    app: &Arc<App>,
    actor: &Actor,
    action: Action,
    mut writer: OwnedWriteHalf,
    mut waiting: Waiting,
    limit: Duration,
) {
    let misread = matches!(action, Action::Unknown);
    let performing = app.perform(actor, action);
    tokio::pin!(performing);
    let result = loop {
        tokio::select! {
            biased;
            Some(message) = waiting.next() => {
                if !sent(&mut writer, &message, limit).await {
                    // The caller is gone. What it began is finished all the same.
                    waiting.close();
                }
            }
            result = &mut performing => break result,
        }
    };
    while let Ok(part) = waiting.files.try_recv() {
        sent(&mut writer, &frame_of(part), limit).await;
    }
    let result = match result {
        Ok(Reply::Admin(reply)) => Ok(*reply),
        Ok(_) => Err(defect("An action had a reply of another kind.")),
        Err(problem) if problem.code == ErrorCode::NotFound && misread => Err(unreadable()),
        Err(problem) => Err(problem),
    };
    sent(&mut writer, &FromDaemon::Done(Box::new(result)), limit).await;
    let _ = writer.shutdown().await;
}

fn unreadable() -> Problem {
    let next = "Use the empathctl of the same release as the daemon: empathctl --version";
    Problem::new(ErrorCode::BadRequest, "The request cannot be read, or did not come in time.", next)
}

async fn sent(writer: &mut OwnedWriteHalf, message: &FromDaemon, limit: Duration) -> bool {
    matches!(tokio::time::timeout(limit, wire::write(writer, message)).await, Ok(Ok(())))
}

async fn drain(reader: &mut OwnedReadHalf) {
    let mut buffer = vec![0u8; 64 * 1024];
    while matches!(reader.read(&mut buffer).await, Ok(bytes) if bytes > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, passphrase};
    use empathd_proto::admin::{AdminReply, AdminRequest};
    use empathd_proto::audit::{ActionKind, Outcome};
    use empathd_proto::frame;

    /// Sends these bytes as root and gives the one answer.
    async fn ask(app: &Arc<App>, bytes: &[u8]) -> Result<AdminReply, Problem> {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        let limits = app.config.admin.clone();
        let serving = tokio::spawn({
            let (app, members) = (app.clone(), Members::new(&[rustix::process::getuid().as_raw()], &[]));
            async move { connection(theirs, app, &members, &limits).await }
        });
        ours.write_all(bytes).await.expect("written");
        let answer = loop {
            if let FromDaemon::Done(answer) =
                wire::read::<FromDaemon>(&mut ours).await.expect("a frame").expect("an answer")
            {
                break *answer;
            }
        };
        drop(ours);
        serving.await.expect("no panic");
        answer
    }

    fn frames(messages: &[ToDaemon]) -> Vec<u8> {
        messages.iter().flat_map(|message| frame::encode(message).expect("small")).collect()
    }

    fn roster(announced: u64, parts: &[&str]) -> Vec<u8> {
        let mut messages = vec![ToDaemon::Request(AdminRequest::RosterSet { bytes: announced })];
        messages.extend(parts.iter().map(|part| ToDaemon::Chunk(part.as_bytes().to_vec())));
        messages.push(ToDaemon::End);
        frames(&messages)
    }

    #[tokio::test]
    async fn requests_are_answered_once_and_uploads_arrive_whole() {
        let fixture = Fixture::new("");
        let init = ToDaemon::Request(AdminRequest::Init { passphrase: passphrase() });
        assert!(matches!(ask(&fixture.app, &frames(&[init])).await, Ok(AdminReply::Initialised { .. })));
        let reply = ask(&fixture.app, &roster(20, &["Mary Miller\n", "Bob Sum\n"])).await;
        assert_eq!(reply, Ok(AdminReply::Roster { names: 2 }));
    }

    #[tokio::test]
    async fn an_upload_that_is_not_what_was_announced_is_refused() {
        let fixture = Fixture::unsealed("[admin]\nupload_bytes_max = 1024").await;
        for (bytes, code) in [
            (roster(4, &["Mary Miller"]), ErrorCode::BadRequest),
            (roster(400, &["Mary Miller"]), ErrorCode::BadRequest),
            (roster(1025, &["Mary Miller"]), ErrorCode::TooLarge),
        ] {
            assert_eq!(ask(&fixture.app, &bytes).await.expect_err("refused").code, code);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_refused_and_recorded() {
        let fixture = Fixture::unsealed("").await;
        let of_another_version = [2, 0, 0, 0, 9, 0];
        for bytes in [&of_another_version[..], &[0xff; 8], &frames(&[ToDaemon::End])] {
            let problem = ask(&fixture.app, bytes).await.expect_err("refused");
            assert_eq!(problem.code, ErrorCode::BadRequest);
        }
        let store = fixture.app.vault.unsealed().expect("unsealed");
        let entries = store.audit_tail(100).expect("a tail");
        let refused = entries.iter().filter(|entry| entry.action == ActionKind::Unknown);
        assert_eq!(refused.filter(|entry| entry.outcome == Outcome::Denied(ErrorCode::NotFound)).count(), 3);
    }
}
