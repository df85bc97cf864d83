//! `adapter export` and `adapter verify`: a generation as a folder of files that only its owner reads, and the check that a
//! folder is what an appliance signed. What the files mean is not known here.

use crate::error::CtlError;
use crate::folder::{Writing, broken, make_empty};
use crate::render::words::bytes;
use crate::session::Session;
use empathd_proto::AdapterId;
use empathd_proto::admin::{AdminReply, AdminRequest, ExportSummary};
use empathd_proto::manifest::{FileFacts, Index, MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, SIGNATURE};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Folders in folders that are looked at.
const DEPTH_MAX: usize = 8;

pub(super) fn export(session: &mut Session<'_>, id: AdapterId, folder: &Path) -> Result<(), CtlError> {
    make_empty(folder)?;
    let mut writing = Writing::new(folder);
    let reply = session.client.ask_files(AdminRequest::AdapterExport { id }, &mut |part| writing.take(part))?;
    writing.finish()?;
    let AdminReply::Exported(summary) = reply else { return Err(CtlError::UnexpectedReply) };
    let checked = check(folder, Some(&summary.public_key))?;
    if checked.files != summary.files as usize || summary.adapter != id || checked.adapter != id.to_string() {
        return Err(broken("the folder holds other files than were sent"));
    }
    session.show(&summary, |_| exported(&summary, folder))
}

fn exported(summary: &ExportSummary, folder: &Path) -> String {
    format!(
        "Wrote {} files, {}, to {}. Treat them as confidential as the records.\n\n  signed by  {}\n\n\
         Whoever receives them checks them with that key: empathctl adapter verify DIR --key KEY\n",
        summary.files,
        bytes(summary.bytes),
        folder.display(),
        summary.public_key
    )
}

pub(super) fn verify(session: &mut Session<'_>, folder: &Path, key: Option<&str>) -> Result<(), CtlError> {
    let checked = check(folder, key)?;
    session.show(&checked, |_| {
        let known = if checked.key_known {
            "the given key"
        } else {
            "the key below, which was not given: compare it with the clinic's"
        };
        format!(
            "Every one of {} files is as it was signed with {known}.\n\n  of         {}{}\n  signed by  {}\n",
            checked.files, checked.adapter, checked.client, checked.public_key
        )
    })
}

/// What a good folder is.
#[derive(Debug, Serialize)]
pub(super) struct Checked {
    verified: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    adapter: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) client: String,
    /// Manifest and signature included.
    pub(super) files: usize,
    public_key: String,
    /// Whether the caller named the key.
    key_known: bool,
}

/// Holds a folder against its manifest, and the manifest against its signature and the key.
pub(super) fn check(folder: &Path, key: Option<&str>) -> Result<Checked, CtlError> {
    let manifest = read(&folder.join(MANIFEST), MAX_MANIFEST_BYTES)?;
    let signature = read(&folder.join(SIGNATURE), MAX_MANIFEST_BYTES)?;
    let index = Index::open(&manifest, &signature).map_err(|error| broken(&error.to_string()))?;
    if key.is_some_and(|key| key.trim() != index.signed_by.public_key) {
        return Err(broken("it was signed with another key than the given one"));
    }
    for (path, facts) in &index.files {
        if FileFacts::of(&read(&folder.join(path), facts.bytes)?) != *facts {
            return Err(broken(&format!("{path} is not the file that was signed")));
        }
    }
    let mut there = BTreeSet::new();
    list(folder, folder, DEPTH_MAX, &mut there)?;
    let known = |path: &&String| !index.files.contains_key(*path) && *path != MANIFEST && *path != SIGNATURE;
    if let Some(stranger) = there.iter().find(known) {
        return Err(broken(&format!("{stranger} is not in the manifest")));
    }
    let Index { adapter, client, signed_by, .. } = index;
    let public_key = signed_by.public_key;
    Ok(Checked { verified: true, adapter, client, files: there.len(), public_key, key_known: key.is_some() })
}

/// Every file below `folder`, by its path below `root`.
fn list(root: &Path, folder: &Path, depth: usize, found: &mut BTreeSet<String>) -> Result<(), CtlError> {
    let failed = |source| CtlError::File { doing: "read", path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() && depth > 0 {
            list(root, &path, depth - 1, found)?;
        } else if kind.is_file() {
            found.insert(path.strip_prefix(root).unwrap_or(&path).display().to_string());
        } else {
            return Err(broken("it holds something that is neither file nor folder"));
        }
        if found.len() > MAX_FILES + 2 {
            return Err(broken("it holds more files than an export can have"));
        }
    }
    Ok(())
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, CtlError> {
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => broken(&format!("{} is missing", path.display())),
        _ => CtlError::File { doing: "read", path: path.to_owned(), source },
    };
    let data = path.symlink_metadata().map_err(failed)?;
    if !data.is_file() || data.len() > bytes_max {
        return Err(broken(&format!("{} is no file of the right size", path.display())));
    }
    fs::read(path).map_err(failed)
}
