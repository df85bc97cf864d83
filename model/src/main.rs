//! `empathd-engine`: takes its socket, then serves the daemon. Deals with arguments and start-up only.

use anyhow::{Context, Result};
use clap::Parser;
use empathd_model::engine::{self, Peers};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, umask};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Computes answers and trains adapters for empathd. Holds no key, opens no network, writes no file.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Listen on this Unix socket. Without it the listening socket is standard input, as systemd gives it with
    /// StandardInput=socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Threads of one computation; all processors when absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// End when the first connection ends.
    #[arg(long)]
    exit_with_peer: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    keep_memory_private()?;
    if let Some(threads) = arguments.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global()?;
    }
    let (listener, peers) = match &arguments.socket {
        Some(path) => (bind(path)?, Peers::SameUser),
        None => {
            let listener =
                inherited().context("there is no socket: give --socket PATH, or start from a systemd socket")?;
            (listener, Peers::WhoeverMayOpen)
        }
    };
    eprintln!("empathd-engine {} is listening", env!("CARGO_PKG_VERSION"));
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("systemd cannot be told that the engine is ready")?;
    let served = engine::serve(&listener, peers, arguments.exit_with_peer);
    if let Some(path) = &arguments.socket {
        // Only a file name is left behind when this fails.
        drop(std::fs::remove_file(path));
    }
    Ok(served?)
}

/// No core dump, and no words of a conversation in the report of a defect: a panic's message may quote a text.
fn keep_memory_private() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("core dumps cannot be turned off")?;
    std::panic::set_hook(Box::new(|panic| match panic.location() {
        Some(place) => eprintln!("empathd-engine: defect at {}:{}", place.file(), place.line()),
        None => eprintln!("empathd-engine: defect"),
    }));
    Ok(())
}

/// Binds the socket for this user alone. A socket that nobody listens on is left from an earlier run and replaced.
fn bind(path: &Path) -> Result<UnixListener> {
    if path.exists()
        && UnixStream::connect(path).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path).with_context(|| format!("the stale socket {} cannot be removed", path.display()))?;
    }
    umask(rustix::fs::Mode::from_raw_mode(0o177));
    UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))
}

/// The listening socket that systemd put on standard input.
fn inherited() -> Result<UnixListener> {
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    anyhow::ensure!(rustix::net::sockopt::socket_acceptconn(&input)?, "standard input is not a listening socket");
    Ok(UnixListener::from(input))
}
