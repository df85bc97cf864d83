//! What every command has at hand: the client, where answers and notes go, and in which form. Clock, time zone and
//! folders come from the program's edge. It refuses to know any command.

use crate::cli::Global;
use crate::client::Client;
use crate::error::CtlError;
use crate::progress::Bars;
use empathd_proto::admin::{AdminReply, AdminRequest};
use jiff::tz::TimeZone;
use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

/// Version of the JSON documents; a member that changes its meaning raises it.
pub const JSON_SCHEMA: u32 = 1;

/// What only the program can know.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Wall clock, milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Zone in which times are shown.
    pub zone: TimeZone,
    /// Folder for kept checkpoints; absent when the user has no home.
    pub state_dir: Option<PathBuf>,
    /// Whether a person watches standard error.
    pub terminal: bool,
}

/// One run of the tool.
pub struct Session<'a> {
    /// The daemon.
    pub client: Client,
    /// Progress bars, hidden unless a person watches.
    pub bars: Bars,
    /// What the program's edge knows.
    pub edge: Edge,
    json: bool,
    pub(crate) out: &'a mut dyn Write,
    notes: &'a mut dyn Write,
}

#[derive(Serialize)]
struct Document<'a, T: Serialize> {
    schema: u32,
    #[serde(flatten)]
    answer: &'a T,
}

impl<'a> Session<'a> {
    /// A session that writes answers to `out` and everything else to `notes`.
    pub fn new(global: &Global, edge: Edge, out: &'a mut dyn Write, notes: &'a mut dyn Write) -> Self {
        let bars = Bars::new(edge.terminal && !global.json);
        Self { client: Client::new(&global.socket), bars, edge, json: global.json, out, notes }
    }

    /// Asks the daemon for something quick.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn ask(&self, request: AdminRequest) -> Result<AdminReply, CtlError> {
        self.client.ask(request, &mut |_| ())
    }

    /// Writes the answer: the document with `--json`, else the text.
    ///
    /// # Errors
    /// [`CtlError::Output`]; a reader that went away is none.
    pub fn show<T: Serialize>(&mut self, answer: &T, text: impl FnOnce(&Edge) -> String) -> Result<(), CtlError> {
        let text = if self.json {
            let document = Document { schema: JSON_SCHEMA, answer };
            let json = serde_json::to_string_pretty(&document).map_err(|error| CtlError::Output(error.into()))?;
            json + "\n"
        } else {
            text(&self.edge)
        };
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CtlError::Output(error)),
            _ => Ok(()),
        }
    }

    /// A line for the person beside the answer; silent with `--json`.
    pub fn note(&mut self, line: &str) {
        if !self.json {
            // Standard error that is gone cannot be told about.
            self.bars.above(|| drop(writeln!(self.notes, "{line}")));
        }
    }

    /// Says what went wrong and what to do next, and gives the exit code.
    pub fn complain(&mut self, error: &CtlError) -> u8 {
        let body = error.body();
        let text = match serde_json::to_string_pretty(&body) {
            Ok(json) if self.json => json,
            _ => format!("error: {}\n next: {}", body.detail, body.next.trim_start_matches("Run: ")),
        };
        drop(writeln!(self.notes, "{text}"));
        body.exit_code
    }
}
