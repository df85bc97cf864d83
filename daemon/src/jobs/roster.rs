//! The clinic's roster: the names that de-identification looks for, kept sealed. How they are searched is not known here.

use crate::problem::{Fault, defect};
use empathd_ingest::Roster;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_store::{AuditDraft, DocKind, Store};
use zeroize::Zeroizing;

/// Its place among the settings.
const ROSTER_ID: [u8; 16] = *b"clinic roster\0\0\0";

/// Replaces the roster by these bytes, one name a line; gives the number of names.
pub(crate) fn set(store: &Store, bytes: &[u8], draft: AuditDraft) -> Result<u64, Problem> {
    let next = "Save the list as UTF-8 text with one name a line.";
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Problem::new(ErrorCode::BadRequest, "The roster is not UTF-8 text.", next))?;
    build(text)?;
    let names = lines(text).count() as u64;
    store.change(draft, |writer, draft| -> Result<(), Fault> {
        draft.count = names;
        Ok(writer.put_doc(DocKind::Setting, ROSTER_ID, text.as_bytes())?)
    })?;
    Ok(names)
}

/// The roster as it is now; empty when none was set.
pub(crate) fn load(store: &Store) -> Result<Roster, Problem> {
    let doc: Option<Zeroizing<Vec<u8>>> =
        store.read(|reader| reader.doc(DocKind::Setting, ROSTER_ID)).map_err(crate::problem::from_read)?;
    let Some(doc) = doc else { return Ok(Roster::empty()) };
    build(std::str::from_utf8(&doc).map_err(|_| defect("The stored roster is not text."))?)
}

fn build(text: &str) -> Result<Roster, Problem> {
    Roster::new(lines(text).map(str::to_owned)).map_err(|error| {
        Problem::new(
            ErrorCode::BadRequest,
            format!("The roster cannot be used: {error}."),
            "Correct the list and send it again.",
        )
    })
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}
