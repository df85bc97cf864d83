//! `ingest` and `roster set`: files go to the daemon, reports come back. What a file holds is not looked at here.

use crate::cli::{IngestArgs, RosterCommand};
use crate::error::CtlError;
use crate::render;
use crate::session::Session;
use crate::sources::{self, Source};
use empathd_proto::admin::{AdminReply, AdminRequest, Progress};
use empathd_proto::report::IngestReport;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Exit code of problems that lie in a file and not in the appliance.
const BAD_INPUT: u8 = 2;
/// Notes about files passed over, before the rest is only counted.
const MAX_NOTES: usize = 20;

/// A file that the daemon refused as a whole.
#[derive(Debug, Serialize)]
pub(crate) struct Refused {
    pub(crate) file: PathBuf,
    pub(crate) code: &'static str,
    pub(crate) detail: String,
}

/// What came of a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) dry_run: bool,
    #[serde(flatten)]
    pub(crate) report: IngestReport,
    pub(crate) refused: Vec<Refused>,
    pub(crate) skipped: usize,
    #[serde(skip)]
    pub(crate) failure: Option<CtlError>,
}

pub(super) fn run(session: &mut Session<'_>, args: &IngestArgs) -> Result<(), CtlError> {
    let sources = sources::find(&args.paths)?;
    for (path, why) in sources.skipped.iter().take(MAX_NOTES) {
        session.note(&format!("passed over {}: {why}", path.display()));
    }
    if sources.skipped.len() > MAX_NOTES {
        session.note(&format!("passed over {} more", sources.skipped.len() - MAX_NOTES));
    }
    let mut outcome = Outcome { dry_run: args.dry_run, skipped: sources.skipped.len(), ..Outcome::default() };
    send_all(session, &sources.files, &mut outcome);
    session.show(&outcome, |_| render::ingest::report(&outcome))?;
    outcome.failure.map_or(Ok(()), Err)
}

/// Sends every file; stops at the first problem that does not lie in the file itself.
fn send_all(session: &mut Session<'_>, files: &[Source], outcome: &mut Outcome) {
    let bar = session.bars.bytes(files.iter().map(|file| file.bytes).sum());
    let mut done_bytes = 0;
    for file in files {
        match send(session, file, outcome.dry_run, &bar, done_bytes) {
            Ok(report) => outcome.report.add(&report),
            Err(CtlError::Problem(problem)) if problem.code.exit_code() == BAD_INPUT => {
                session.note(&format!("refused {}: {}", file.path.display(), problem.detail));
                let (code, detail) = (problem.code.as_str(), problem.detail.clone());
                outcome.refused.push(Refused { file: file.path.clone(), code, detail });
                if file.named {
                    outcome.failure.get_or_insert(CtlError::Problem(problem));
                }
            }
            Err(error) => {
                outcome.failure = Some(error);
                break;
            }
        }
        done_bytes += file.bytes;
        bar.set_position(done_bytes);
    }
    bar.finish_and_clear();
    if outcome.report.files == 0 && outcome.failure.is_none() {
        outcome.failure = Some(CtlError::input(
            "no source profile fits any of these files",
            "docs/INSTALL.md lists the forms that are read; try one file with --dry-run",
        ));
    }
}

fn send(
    session: &Session<'_>,
    source: &Source,
    dry_run: bool,
    bar: &ProgressBar,
    done_bytes: u64,
) -> Result<IngestReport, CtlError> {
    let name = source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    bar.set_message(name.clone());
    let mut file = open(&source.path)?;
    let request = AdminRequest::Ingest { file_name: name.clone(), bytes: source.bytes, dry_run };
    let reply = session.client.upload(
        request,
        &mut file,
        source.bytes,
        &mut |sent| bar.set_position(done_bytes + sent),
        &mut |progress| {
            if let Progress::Ingest { done, total } = progress {
                bar.set_message(format!("{name}: {done} of {total} records"));
            }
        },
    )?;
    match reply {
        AdminReply::Ingested(report) => Ok(report),
        _ => Err(CtlError::UnexpectedReply),
    }
}

pub(super) fn roster(session: &mut Session<'_>, command: RosterCommand) -> Result<(), CtlError> {
    let RosterCommand::Set { file: path } = command;
    let mut file = open(&path)?;
    let bytes = file.metadata().map_err(|source| CtlError::File { doing: "read", path, source })?.len();
    let request = AdminRequest::RosterSet { bytes };
    let reply = session.client.upload(request, &mut file, bytes, &mut |_| (), &mut |_| ())?;
    let AdminReply::Roster { names } = reply else { return Err(CtlError::UnexpectedReply) };
    session.show(&json!({ "names": names }), |_| format!("The roster holds {names} names.\n"))
}

fn open(path: &Path) -> Result<File, CtlError> {
    File::open(path).map_err(|source| CtlError::File { doing: "read", path: path.to_owned(), source })
}
