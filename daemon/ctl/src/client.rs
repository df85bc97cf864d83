//! The connection to the admin socket: one request, for uploads the bytes after it, progress, one answer. Blocking,
//! with a time limit between frames and a bound on each. It refuses to know what is asked and how answers look.

use crate::error::CtlError;
use empathd_proto::admin::{AdminReply, AdminRequest, FromDaemon, Progress, ToDaemon};
use empathd_proto::frame;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// Longest silence of the daemon in ordinary requests.
const QUICK: Duration = Duration::from_secs(60);
/// Longest silence while it works through files, the trail or a checkpoint.
const LONG: Duration = Duration::from_secs(15 * 60);
/// Most progress reports of one request: more than the longest training has steps.
const MAX_PROGRESS: u32 = 50_000_000;

/// A file that the daemon sends.
#[derive(Debug)]
pub enum FilePart {
    /// A file begins.
    Begin {
        /// Its place in the folder, not checked.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// More of it.
    Chunk(Vec<u8>),
}

/// A client of one admin socket. Every request opens a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the socket at this path; connects when something is asked.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Asks, passes progress on, and gives the answer.
    ///
    /// # Errors
    /// [`CtlError`]: the daemon's problem, or what happened to the connection.
    pub fn ask(&self, request: AdminRequest, on_progress: &mut dyn FnMut(Progress)) -> Result<AdminReply, CtlError> {
        let patience = patience(&request);
        let mut stream = self.connect(patience)?;
        match send(&mut stream, &ToDaemon::Request(request)) {
            Ok(()) => answer(&mut stream, patience, on_progress),
            Err(error) => Err(instead(&mut stream, patience, error)),
        }
    }

    /// Asks, passes files on, and gives the answer.
    ///
    /// # Errors
    /// As [`Client::ask`], and what `on_file` refuses.
    pub fn ask_files(
        &self,
        request: AdminRequest,
        on_file: &mut dyn FnMut(FilePart) -> Result<(), CtlError>,
    ) -> Result<AdminReply, CtlError> {
        let patience = patience(&request);
        let mut stream = self.connect(patience)?;
        match send(&mut stream, &ToDaemon::Request(request)) {
            Ok(()) => hear(&mut stream, patience, &mut |_| (), on_file),
            Err(error) => Err(instead(&mut stream, patience, error)),
        }
    }

    /// Asks, sends `bytes` bytes of `source` in chunks, and gives the answer. `on_sent` hears the bytes sent so far.
    ///
    /// # Errors
    /// As [`Client::ask`]; [`CtlError::Input`] when the source is shorter than promised or cannot be read.
    pub fn upload(
        &self,
        request: AdminRequest,
        source: &mut dyn Read,
        bytes: u64,
        on_sent: &mut dyn FnMut(u64),
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<AdminReply, CtlError> {
        let patience = patience(&request);
        let mut stream = self.connect(patience)?;
        let sent = send(&mut stream, &ToDaemon::Request(request))
            .and_then(|()| send_chunks(&mut stream, source, bytes, on_sent))
            .and_then(|()| send(&mut stream, &ToDaemon::End));
        match sent {
            Ok(()) => answer(&mut stream, patience, on_progress),
            Err(error) => Err(instead(&mut stream, patience, error)),
        }
    }

    /// Asks, sends `bytes` in chunks, passes files on, and gives the answer.
    ///
    /// # Errors
    /// As [`Client::ask_files`].
    pub fn upload_files(
        &self,
        request: AdminRequest,
        mut bytes: &[u8],
        on_file: &mut dyn FnMut(FilePart) -> Result<(), CtlError>,
    ) -> Result<AdminReply, CtlError> {
        let patience = patience(&request);
        let mut stream = self.connect(patience)?;
        let length = bytes.len() as u64;
        let sent = send(&mut stream, &ToDaemon::Request(request))
            .and_then(|()| send_chunks(&mut stream, &mut bytes, length, &mut |_| ()))
            .and_then(|()| send(&mut stream, &ToDaemon::End));
        match sent {
            Ok(()) => hear(&mut stream, patience, &mut |_| (), on_file),
            Err(error) => Err(instead(&mut stream, patience, error)),
        }
    }

    fn connect(&self, patience: Duration) -> Result<UnixStream, CtlError> {
        let stream = UnixStream::connect(&self.socket).map_err(|error| refused(&self.socket, error))?;
        let limits = stream.set_read_timeout(Some(patience)).and_then(|()| stream.set_write_timeout(Some(patience)));
        limits.map_err(CtlError::Connection)?;
        Ok(stream)
    }
}

fn refused(socket: &Path, source: io::Error) -> CtlError {
    let socket = socket.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => CtlError::NotRunning(socket),
        ErrorKind::PermissionDenied => CtlError::NoAccess(socket),
        _ => CtlError::Connect { socket, source },
    }
}

/// How long the daemon may be silent between two frames.
fn patience(request: &AdminRequest) -> Duration {
    use AdminRequest as R;
    match request {
        R::Ingest { .. } | R::DatasetCut { .. } | R::TrainStart(_) | R::TrainStop | R::AuditVerify { .. } => LONG,
        R::TrainStatus { follow, .. } => {
            if *follow {
                LONG
            } else {
                QUICK
            }
        }
        R::AdapterExport { .. } | R::AdapterImport(_) | R::AuditExport => LONG,
        R::ClientErase { .. } | R::ClientExport { .. } | R::BackupCreate { .. } | R::BackupDrill { .. } => LONG,
        R::KeysRotate | R::KeysRekey(_) | R::KeysEscrow => LONG,
        R::UnsealShares { .. } | R::KeysStatus | R::ClientHold { .. } | R::Doctor => QUICK,
        R::Status | R::TrainReport { .. } | R::Init { .. } | R::Unseal { .. } | R::Seal => QUICK,
        R::CertEnroll { .. } | R::CertList | R::CertRevoke { .. } | R::RosterSet { .. } => QUICK,
        R::DatasetList | R::AdapterList | R::AdapterPromote { .. } | R::AdapterRollback | R::AuditTail { .. } => QUICK,
    }
}

fn send(stream: &mut UnixStream, message: &ToDaemon) -> Result<(), CtlError> {
    // A request may hold a passphrase: its bytes are overwritten after they are sent.
    let bytes = Zeroizing::new(frame::encode(message)?);
    stream.write_all(&bytes).map_err(CtlError::Connection)
}

fn send_chunks(
    stream: &mut UnixStream,
    mut source: &mut dyn Read,
    bytes: u64,
    on_sent: &mut dyn FnMut(u64),
) -> Result<(), CtlError> {
    let mut sent = 0;
    while sent < bytes {
        let want = (bytes - sent).min(frame::CHUNK_BYTES as u64);
        let mut chunk = Vec::new();
        Read::by_ref(&mut source).take(want).read_to_end(&mut chunk).map_err(|error| changed(&error.to_string()))?;
        if chunk.len() as u64 != want {
            return Err(changed("it became shorter"));
        }
        send(stream, &ToDaemon::Chunk(chunk))?;
        sent += want;
        on_sent(sent);
    }
    Ok(())
}

fn changed(why: &str) -> CtlError {
    CtlError::input(
        format!("the file changed while it was read: {why}; nothing of it was kept"),
        "wait until it is written, then run the command again",
    )
}

/// A daemon that refuses an upload answers and hangs up while the tool still writes. Its answer, when there is one,
/// says more than the broken pipe.
fn instead(stream: &mut UnixStream, patience: Duration, error: CtlError) -> CtlError {
    match error {
        CtlError::Connection(_) => match answer(stream, patience, &mut |_| ()) {
            Err(CtlError::Problem(problem)) => CtlError::Problem(problem),
            _ => timed(error, patience),
        },
        other => other,
    }
}

fn answer(
    stream: &mut UnixStream,
    patience: Duration,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<AdminReply, CtlError> {
    hear(stream, patience, on_progress, &mut |_| Err(CtlError::UnexpectedReply))
}

fn hear(
    stream: &mut UnixStream,
    patience: Duration,
    on_progress: &mut dyn FnMut(Progress),
    on_file: &mut dyn FnMut(FilePart) -> Result<(), CtlError>,
) -> Result<AdminReply, CtlError> {
    for _ in 0..MAX_PROGRESS {
        match receive(stream).map_err(|error| timed(error, patience))? {
            FromDaemon::Progress(progress) => on_progress(progress),
            FromDaemon::File { path, bytes } => on_file(FilePart::Begin { path, bytes })?,
            FromDaemon::Chunk(chunk) => on_file(FilePart::Chunk(chunk))?,
            FromDaemon::Done(outcome) => return (*outcome).map_err(CtlError::Problem),
        }
    }
    Err(CtlError::Endless)
}

fn receive(stream: &mut UnixStream) -> Result<FromDaemon, CtlError> {
    let mut header = [0; frame::HEADER_BYTES];
    stream.read_exact(&mut header).map_err(CtlError::Connection)?;
    // At most `MAX_FRAME_BYTES`, checked before anything is allocated.
    let mut payload = Zeroizing::new(vec![0; frame::payload_bytes(header)?]);
    stream.read_exact(&mut payload).map_err(CtlError::Connection)?;
    Ok(frame::decode(&payload)?)
}

fn timed(error: CtlError, patience: Duration) -> CtlError {
    let CtlError::Connection(source) = error else { return error };
    match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => CtlError::Timeout(patience.as_secs()),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => CtlError::Closed,
        _ => CtlError::Connection(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::fake::{Fake, frame_of};
    use empathd_proto::{ErrorCode, Problem};

    #[test]
    fn progress_is_passed_on_until_the_answer() {
        let progress = |done| FromDaemon::Progress(Progress::Audit { done, total: 2 });
        let fake = Fake::answering([
            frame_of(&progress(1)),
            frame_of(&progress(2)),
            frame_of(&FromDaemon::Done(Box::new(Ok(AdminReply::Ok)))),
        ]);
        let mut seen = Vec::new();
        let reply = fake.client().ask(AdminRequest::Seal, &mut |progress| seen.push(progress)).expect("answered");
        assert_eq!(reply, AdminReply::Ok);
        assert_eq!(seen, [Progress::Audit { done: 1, total: 2 }, Progress::Audit { done: 2, total: 2 }]);
        assert!(matches!(fake.received()[..], [ToDaemon::Request(AdminRequest::Seal)]));
    }

    #[test]
    fn an_upload_travels_in_chunks_and_ends() {
        let fake = Fake::replying(AdminReply::Roster { names: 1 });
        let data = vec![7; frame::CHUNK_BYTES + 5];
        let mut sent = Vec::new();
        let request = AdminRequest::RosterSet { bytes: data.len() as u64 };
        fake.client()
            .upload(request, &mut data.as_slice(), data.len() as u64, &mut |n| sent.push(n), &mut |_| ())
            .expect("answered");
        assert_eq!(sent, [frame::CHUNK_BYTES as u64, data.len() as u64]);
        let received = fake.received();
        let [ToDaemon::Request(_), ToDaemon::Chunk(first), ToDaemon::Chunk(second), ToDaemon::End] = &received[..]
        else {
            panic!("{} frames", received.len());
        };
        assert_eq!((first.len(), second.len()), (frame::CHUNK_BYTES, 5));
    }

    #[test]
    fn a_refusal_in_mid_upload_is_told_instead_of_a_broken_pipe() {
        let problem = Problem::new(ErrorCode::Sealed, "The store is sealed.", "Run: empathctl unseal");
        let fake = Fake::hanging_up(frame_of(&FromDaemon::Done(Box::new(Err(problem.clone())))));
        let data = vec![0; 8 * frame::CHUNK_BYTES];
        let request = AdminRequest::RosterSet { bytes: data.len() as u64 };
        let error = fake
            .client()
            .upload(request, &mut data.as_slice(), data.len() as u64, &mut |_| (), &mut |_| ())
            .expect_err("refused");
        assert!(matches!(error, CtlError::Problem(told) if told == problem));
    }

    #[test]
    fn hostile_frames_end_in_a_clear_error() {
        let huge = vec![0xff, 0xff, 0xff, 0xff, frame::VERSION];
        let other_version = vec![2, 0, 0, 0, 9, 0];
        let garbage = vec![3, 0, 0, 0, frame::VERSION, 0xff, 0xff];
        for bytes in [huge, other_version, garbage] {
            let fake = Fake::answering([bytes]);
            let error = fake.client().ask(AdminRequest::Status, &mut |_| ()).expect_err("hostile");
            assert!(matches!(error, CtlError::Frame(_)), "{error:?}");
            assert_eq!(error.code(), "protocol");
        }
        let fake = Fake::answering([vec![200, 0]]);
        assert!(matches!(fake.client().ask(AdminRequest::Status, &mut |_| ()), Err(CtlError::Closed)));
    }

    #[test]
    fn nobody_there_names_the_command_that_starts_it() {
        let folder = tempfile::tempdir().expect("folder");
        let missing = folder.path().join("admin.sock");
        let error = Client::new(&missing).ask(AdminRequest::Status, &mut |_| ()).expect_err("nobody");
        assert_eq!((error.exit_code(), error.next().as_str()), (3, "systemctl start empathd"));
        drop(std::os::unix::net::UnixListener::bind(&missing).expect("bound"));
        let error = Client::new(&missing).ask(AdminRequest::Status, &mut |_| ()).expect_err("left behind");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn a_closed_door_says_how_to_get_in() {
        let error = refused(Path::new("/run/x"), ErrorKind::PermissionDenied.into());
        assert_eq!(error.exit_code(), 4);
        assert!(error.next().contains("empathd-admin"));
    }
}
