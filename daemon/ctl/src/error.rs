//! Everything that can end a command badly: what the daemon said, what the connection did, what was typed. Each has a
//! stable code, an exit code and the next command to type. Never a secret, never clinical text.

use empathd_proto::Problem;
use empathd_proto::frame::FrameError;
use serde::Serialize;
use std::io;
use std::path::PathBuf;

/// What ended a command.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The daemon refused or failed.
    #[error("{0}")]
    Problem(Problem),
    /// Nothing listens on the socket.
    #[error("empathd is not running: nothing answers on {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket may not be opened by this user.
    #[error("this user may not open {}", .0.display())]
    NoAccess(PathBuf),
    /// The socket's path is longer than the system allows, or the like.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The daemon speaks another protocol.
    #[error("empathd sent something that is not an answer: {0}")]
    Frame(#[from] FrameError),
    /// A well-formed answer to another question.
    #[error("empathd answered another question than was asked")]
    UnexpectedReply,
    /// More progress reports than any work has.
    #[error("empathd sends progress without end")]
    Endless,
    /// No answer in time.
    #[error("empathd did not answer within {0} s")]
    Timeout(u64),
    /// The connection ended before the answer.
    #[error("empathd closed the connection before it answered")]
    Closed,
    /// The connection broke.
    #[error("the connection to empathd broke: {0}")]
    Connection(io::Error),
    /// What was typed or given cannot be used.
    #[error("{detail}")]
    Input {
        /// What is wrong with it.
        detail: String,
        /// What to type instead.
        next: String,
    },
    /// A local file or folder.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// The verb: read, write, create.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate was issued, and its key could not be written; the key exists nowhere else.
    #[error("certificate {serial} was issued, but its files could not be written: {why}")]
    KeyLost {
        /// Serial number of the certificate that is now useless.
        serial: String,
        /// What went wrong.
        why: String,
    },
    /// The audit trail does not hold.
    #[error("AUDIT ALARM: {0}")]
    Alarm(String),
    /// Files of an export are not what was signed.
    #[error("the export does not hold: {0}")]
    Broken(String),
    /// Standard output cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(io::Error),
}

/// An error as one JSON document: problem details with the exit code beside them.
#[derive(Debug, Serialize)]
pub struct ErrorBody {
    /// `urn:empathd:problem:CODE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Stable code.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// What to do next.
    pub next: String,
    /// Exit code of the tool.
    pub exit_code: u8,
}

impl CtlError {
    /// What was typed or given cannot be used.
    pub fn input(detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Input { detail: detail.into(), next: next.into() }
    }

    /// The command line cannot be read.
    #[must_use]
    pub fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        Self::input(first.trim_start_matches("error: "), "empathctl --help")
    }

    /// Stable code: the daemon's own, or one of the tool's.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Problem(problem) => problem.code.as_str(),
            Self::NotRunning(_) => "not_running",
            Self::NoAccess(_) => "forbidden",
            Self::Connect { .. } | Self::Closed | Self::Connection(_) => "connection",
            Self::Frame(_) | Self::UnexpectedReply | Self::Endless => "protocol",
            Self::Timeout(_) => "timeout",
            Self::Input { .. } => "bad_request",
            Self::File { .. } | Self::KeyLost { .. } | Self::Output(_) => "local_file",
            Self::Alarm(_) | Self::Broken(_) => "integrity",
        }
    }

    /// Exit code of the tool, stable across releases; see [`crate::cli::EXIT_CODES`].
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Problem(problem) => problem.code.exit_code(),
            Self::NotRunning(_) => 3,
            Self::NoAccess(_) => 4,
            Self::Input { .. } | Self::File { .. } => 2,
            Self::Alarm(_) | Self::Broken(_) => 7,
            Self::Timeout(_) | Self::Closed | Self::Connection(_) => 8,
            Self::Connect { .. } | Self::Frame(_) | Self::UnexpectedReply | Self::Endless => 1,
            Self::KeyLost { .. } | Self::Output(_) => 1,
        }
    }

    /// What to do next, as a command where there is one.
    #[must_use]
    pub fn next(&self) -> String {
        match self {
            Self::Problem(problem) if !problem.next.is_empty() => problem.next.clone(),
            Self::Problem(_) | Self::Timeout(_) | Self::Closed | Self::Connection(_) => {
                "journalctl -u empathd -n 50".into()
            }
            Self::NotRunning(_) => "systemctl start empathd".into(),
            Self::NoAccess(_) => {
                "run it with sudo, or join the group: adduser USER empathd-admin, then log in again".into()
            }
            Self::Connect { .. } => "check --socket, or EMPATHD_SOCKET".into(),
            Self::Frame(_) | Self::UnexpectedReply | Self::Endless => {
                "use empathctl and empathd of one release: empathctl --version; empathd --version".into()
            }
            Self::Input { next, .. } => next.clone(),
            Self::File { .. } => "check the path and its permissions, then run the command again".into(),
            Self::KeyLost { serial, .. } => format!("empathctl cert revoke {serial}, then enroll again"),
            Self::Alarm(_) => {
                "empathctl seal, keep the state folder as it is, and call whoever answers for security".into()
            }
            Self::Broken(_) => "do not use these files; export again into an empty folder".into(),
            Self::Output(_) => "make room or give another output, then run the command again".into(),
        }
    }

    /// The error as a JSON document.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            kind: format!("urn:empathd:problem:{}", self.code()),
            code: self.code().to_owned(),
            detail: self.to_string(),
            next: self.next(),
            exit_code: self.exit_code(),
        }
    }
}
