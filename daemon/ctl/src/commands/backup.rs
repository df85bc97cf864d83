//! `backup`: copies of the store in a folder, each under a name that sorts by time, and the drill. What is in a backup is
//! not known here.

use crate::cli::BackupCommand;
use crate::error::CtlError;
use crate::folder::{Writing, broken, make_empty};
use crate::render;
use crate::session::Session;
use crate::shares;
use empathd_proto::admin::{AdminReply, AdminRequest};
use empathd_proto::keys::{BACKUP_FILE, BackupSummary, INDEX_FILE, MAX_INDEX_BYTES};
use empathd_proto::manifest::FileFacts;
use serde::Serialize;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Folder for a backup that is not whole yet.
const UNFINISHED: &str = "unfinished";
/// How the index of a backup ends.
const INDEX: &str = "index";
/// How a backup ends.
const BACKUP: &str = "backup";

#[derive(Serialize)]
struct Created {
    file: PathBuf,
    #[serde(flatten)]
    summary: BackupSummary,
}

pub(super) fn run(session: &mut Session<'_>, command: BackupCommand) -> Result<(), CtlError> {
    match command {
        BackupCommand::Create { dir, incremental } => create(session, &dir, incremental),
        BackupCommand::Drill(from) => {
            let shares = shares::given(&from.shares_file)?;
            let AdminReply::Drilled(drill) = session.ask(AdminRequest::BackupDrill { shares })? else {
                return Err(CtlError::UnexpectedReply);
            };
            session.show(&drill, |_| render::copies::drilled(&drill))
        }
    }
}

fn create(session: &mut Session<'_>, dir: &Path, incremental: bool) -> Result<(), CtlError> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| CtlError::File { doing, path, source }
    };
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let index = if incremental { newest_index(dir)? } else { Vec::new() };
    let unfinished = dir.join(UNFINISHED);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(failed("write", &unfinished))?;
    }
    make_empty(&unfinished)?;
    let mut writing = Writing::new(&unfinished);
    let request = AdminRequest::BackupCreate { index_bytes: index.len() as u64 };
    let reply = session.client.upload_files(request, &index, &mut |part| writing.take(part))?;
    writing.finish()?;
    let AdminReply::BackedUp(summary) = reply else { return Err(CtlError::UnexpectedReply) };
    let from = unfinished.join(BACKUP_FILE);
    let mut file = File::open(&from).map_err(failed("read", &from))?;
    let facts = FileFacts::read(&mut file).map_err(failed("read", &from))?;
    if facts != (FileFacts { bytes: summary.bytes, sha256: summary.sha256.clone() }) {
        return Err(broken("the backup on the disk is not what was sent"));
    }
    let name = name(&summary);
    let file = dir.join(format!("{name}.{BACKUP}"));
    // The index last: a backup without one is whole, an index without its backup would mislead the next one.
    for (from, to) in [(BACKUP_FILE, &file), (INDEX_FILE, &dir.join(format!("{name}.{INDEX}")))] {
        fs::rename(unfinished.join(from), to).map_err(failed("write", to))?;
    }
    fs::remove_dir(&unfinished).map_err(failed("write", &unfinished))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write", dir))?;
    let created = Created { file, summary };
    session.show(&created, |_| render::copies::backed_up(&created.summary, &created.file))
}

/// A name that sorts by time and says whether others are needed before it.
fn name(summary: &BackupSummary) -> String {
    let stamp = i64::try_from(summary.at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let stamp = stamp.unwrap_or_default().strftime("%Y%m%dT%H%M%S%3fZ");
    let kind = if summary.incremental { "part" } else { "whole" };
    format!("{stamp}-{kind}-{}", summary.name.get(..8).unwrap_or(&summary.name))
}

fn newest_index(dir: &Path) -> Result<Vec<u8>, CtlError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CtlError::File { doing: "read", path, source }
    };
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_some_and(|end| end == INDEX) {
            found.push(path);
        }
    }
    let Some(path) = found.into_iter().max() else {
        let detail = format!("there is no earlier backup in {}", dir.display());
        return Err(CtlError::input(detail, "make a whole one first: empathctl backup create DIR"));
    };
    let mut index = Vec::new();
    let file = File::open(&path).map_err(failed(&path))?;
    file.take(MAX_INDEX_BYTES).read_to_end(&mut index).map_err(failed(&path))?;
    if index.is_empty() {
        return Err(broken("the index of the newest backup is empty; make a whole one"));
    }
    Ok(index)
}
