//! The process that serves the daemon over a Unix socket: one connection at a time, one thread that reads, one that
//! makes answers, one that trains, one that computes embeddings, one for public files, one that writes. It holds no key, opens no network and writes no file; when the
//! connection ends, everything under way ends and is overwritten. Refuses to know clients and records.

mod base;
mod blob;
mod embedder;
mod executor;
mod export;
mod files;
mod import;
mod intake;
mod state;
mod trainer;
mod wire;
mod works;

use crate::device;
use empathd_proto::engine::{FromEngine, FromEngineBody, MAX_CRISIS_GENERATIONS, MAX_GENERATIONS};
use intake::{Intake, Queues};
use rustix::net::sockopt::socket_peercred;
use state::State;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, Builder};
use std::time::Duration;
use works::Works;

/// Stack of the trainer; a backward pass can nest deeply.
const TRAINER_STACK_BYTES: usize = 64 * 1024 * 1024;
/// Orders waiting for the executor: every answer that may wait, and some that are done at once.
const MAX_ORDERS: usize = MAX_GENERATIONS + MAX_CRISIS_GENERATIONS + 16;
/// How long the daemon may take to read what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the engine cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The device cannot be opened.
    #[error("the device cannot be opened: {0}")]
    Device(#[from] candle_core::Error),
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Socket(#[from] io::Error),
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peers {
    /// Processes of the engine's own user, and root.
    SameUser,
    /// Whoever the permissions of a socket made by systemd let in: there the daemon is another user.
    WhoeverMayOpen,
}

/// Serves one connection after the other; with `exit_with_peer` only the first.
///
/// # Errors
/// [`ServeError`] when the device or the listening socket fails. What a peer does is never an error.
pub fn serve(listener: &UnixListener, peers: Peers, exit_with_peer: bool) -> Result<(), ServeError> {
    let state = State::new(device::open()?);
    loop {
        let (stream, _) = listener.accept()?;
        if peers == Peers::SameUser && !is_same_user(&stream) {
            continue;
        }
        // A connection that cannot be set up is closed like one that broke; the daemon comes again.
        drop(converse(&stream, &state));
        state.drop_adapters();
        if exit_with_peer {
            return Ok(());
        }
    }
}

/// Whether the peer runs as the same user or as root.
fn is_same_user(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::getuid())
}

/// One connection from its greeting to its end.
fn converse(stream: &UnixStream, state: &State) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let (works, outgoing) = Works::new(Arc::clone(&state.desk));
    let (orders, incoming_orders) = sync_channel(MAX_ORDERS);
    let (jobs, incoming_jobs) = sync_channel(intake::MAX_JOBS);
    let (embeddings, incoming_embeddings) = sync_channel(embedder::MAX_JOBS);
    let (files, incoming_files) = sync_channel(files::MAX_JOBS);
    let queues = Queues { orders, jobs, embeddings, files };
    thread::scope(|scope| {
        scope.spawn(move || write_all(stream, &outgoing));
        let (executor_works, trainer_works, embedder_works) = (works.clone(), works.clone(), works.clone());
        let files_works = works.clone();
        scope.spawn(move || files::run(&incoming_files, &files_works));
        scope.spawn(move || executor::run(&incoming_orders, &executor_works, state));
        scope.spawn(move || embedder::run(&incoming_embeddings, &embedder_works, state));
        let trainer = move || trainer::run(&incoming_jobs, &trainer_works, state);
        let trainer = Builder::new().stack_size(TRAINER_STACK_BYTES).spawn_scoped(scope, trainer);
        if trainer.is_ok() {
            read_all(stream, &works, Intake::new(works.clone(), state, queues), state);
        }
        works.close();
        drop(works);
        // Whoever still writes or reads on it stops.
        drop(stream.shutdown(Shutdown::Both));
        trainer.map(drop)
    })
}

/// Reads messages until the stream ends or a frame is wrong.
fn read_all(mut stream: &UnixStream, works: &Works, mut intake: Intake, state: &State) {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let hello = FromEngineBody::Hello { version, device: device::describe(&state.device) };
    if works.say(0, hello).is_err() {
        return;
    }
    while let Ok(Some(message)) = wire::read(&mut stream) {
        intake.take(message);
    }
}

/// Writes messages until none can come any more or the daemon stops reading.
fn write_all(mut stream: &UnixStream, outgoing: &Receiver<FromEngine>) {
    for message in outgoing {
        if wire::write(&mut stream, &message).is_err() {
            drop(stream.shutdown(Shutdown::Both));
            return;
        }
    }
}
