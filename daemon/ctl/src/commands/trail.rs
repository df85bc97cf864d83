//! `audit export` and `audit verify --export`: the trail as files, and the check of such files without an appliance: each entry
//! canonical and in its place, the tree as the signed checkpoint has it, and what this user saw earlier a beginning of it.

use crate::checkpoint;
use crate::error::CtlError;
use crate::folder::{Writing, broken, make_empty};
use crate::render::words::count;
use crate::session::Session;
use empathd_proto::admin::{AdminReply, AdminRequest};
use empathd_proto::audit::checkpoint::MAX_TEXT_BYTES;
use empathd_proto::audit::export::{CHECKPOINT_FILE, MAX_LINE_BYTES, PART_ENTRIES, part_file};
use empathd_proto::audit::{AuditEntry, Checkpoint, LogCheck, SignedCheckpoint};
use serde::Serialize;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

pub(super) fn export(session: &mut Session<'_>, dir: &Path) -> Result<(), CtlError> {
    make_empty(dir)?;
    let mut writing = Writing::new(dir);
    let reply = session.client.ask_files(AdminRequest::AuditExport, &mut |part| writing.take(part))?;
    writing.finish()?;
    let AdminReply::AuditExported(summary) = reply else { return Err(CtlError::UnexpectedReply) };
    let checked = check(dir, Some(&summary.checkpoint.public_key), None)?;
    if checked.entries != summary.entries {
        return Err(broken("the folder holds another trail than was sent"));
    }
    session.show(&summary, |_| {
        format!(
            "Wrote {} entries, {} files, to {}, and checked them. They name nobody, and say who did what when.\n\n  \
             signed by  {}\n\nWhoever receives them checks them with that key: empathctl audit verify --export DIR --key KEY\n",
            count(summary.entries),
            summary.files,
            dir.display(),
            summary.checkpoint.public_key
        )
    })
}

pub(super) fn verify(session: &mut Session<'_>, dir: &Path, key: Option<&str>) -> Result<(), CtlError> {
    let signed = signed(dir)?;
    let (store, _) = checkpoint::read(&signed)?;
    let known = session.edge.state_dir.as_deref().map_or(Ok(None), |kept| checkpoint::known(kept, store))?;
    let checked = check(dir, key, known.as_ref())?;
    session.show(&checked, |_| {
        let by = if checked.key_known { "the given key" } else { "the key below: compare it with the clinic's" };
        let earlier = match checked.extends {
            Some(entries) => format!("It extends the {} entries that this user saw earlier.", count(entries)),
            None => "This user has seen no earlier checkpoint of it.".to_owned(),
        };
        let (entries, origin) = (count(checked.entries), &checked.origin);
        let head = format!("{entries} entries are those that were signed with {by}. {earlier}");
        format!("{head}\n\n  trail of   {origin}\n  signed by  {}\n", checked.public_key)
    })
}

/// What a good export is.
#[derive(Debug, Serialize)]
struct Checked {
    verified: bool,
    origin: String,
    entries: u64,
    public_key: String,
    /// Whether the caller named the key, or this user knew it.
    key_known: bool,
    /// Entries of the earlier checkpoint that it extends.
    extends: Option<u64>,
}

fn check(dir: &Path, key: Option<&str>, known: Option<&SignedCheckpoint>) -> Result<Checked, CtlError> {
    let signed = signed(dir)?;
    let refused = |error: &dyn std::fmt::Display| broken(&error.to_string());
    let other = || broken("it was signed with another key than the given one");
    if key.is_some_and(|key| key.trim() != signed.public_key) {
        return Err(other());
    }
    if known.is_some_and(|known| known.public_key != signed.public_key) {
        return Err(broken("it was signed with another key than the trail that this user saw earlier"));
    }
    let earlier: Option<Checkpoint> = known.map(SignedCheckpoint::verify).transpose().map_err(|e| refused(&e))?;
    let extends = earlier.as_ref().map(|earlier| earlier.size);
    let verifying = signed.key().map_err(|error| refused(&error))?;
    let size = signed.verify().map_err(|error| refused(&error))?.size;
    let mut check = LogCheck::new(earlier);
    for part in 0..size.div_ceil(PART_ENTRIES) {
        take_part(&dir.join(part_file(part)), &mut check)?;
    }
    let end = check.finish(&signed, &verifying).map_err(|error| refused(&error))?;
    let key_known = key.is_some() || known.is_some();
    Ok(Checked {
        verified: true,
        origin: end.origin,
        entries: end.size,
        public_key: signed.public_key,
        key_known,
        extends,
    })
}

/// The entries of a part, each put into its canonical form again.
fn take_part(path: &Path, check: &mut LogCheck) -> Result<(), CtlError> {
    let failed = |source| CtlError::File { doing: "read", path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(failed)?);
    for _ in 0..=PART_ENTRIES {
        let mut line = Vec::new();
        Read::by_ref(&mut lines).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line).map_err(failed)?;
        if line.is_empty() {
            return Ok(());
        }
        let entry: AuditEntry = serde_json::from_slice(&line).map_err(|_| broken("a line of it is no entry"))?;
        check.push(&entry.to_leaf()).map_err(|error| broken(&error.to_string()))?;
    }
    Err(broken("a part of it has more entries than a part can have"))
}

fn signed(dir: &Path) -> Result<SignedCheckpoint, CtlError> {
    let path = dir.join(CHECKPOINT_FILE);
    let failed = |source| CtlError::File { doing: "read", path: path.clone(), source };
    let mut text = String::new();
    File::open(&path).map_err(failed)?.take(2 * MAX_TEXT_BYTES as u64).read_to_string(&mut text).map_err(failed)?;
    serde_json::from_str(&text).map_err(|_| broken("its checkpoint is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use empathd_proto::audit::{ActionKind, AuditObject, Frontier, Outcome, Principal, PrincipalKind, leaf_hash};
    use std::fs;

    fn entry(seq: u64) -> AuditEntry {
        let principal = Principal { kind: PrincipalKind::LocalUser, number: 7 };
        AuditEntry {
            seq,
            at_ms: 1_000 + seq,
            principal,
            action: ActionKind::Chat,
            outcome: Outcome::Done,
            object: AuditObject::None,
            count: seq,
        }
    }

    /// A trail of so many entries as files, signed.
    fn write(dir: &Path, entries: &[AuditEntry]) -> SignedCheckpoint {
        let mut frontier = Frontier::default();
        let mut lines = Vec::new();
        for entry in entries {
            frontier.push(leaf_hash(&entry.to_leaf()));
            lines.extend(serde_json::to_vec(entry).expect("JSON"));
            lines.push(b'\n');
        }
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let origin = format!("empathd/{}", empathd_proto::StoreId::from_bytes([1; 16]));
        let signed = Checkpoint { origin, size: frontier.size(), root: frontier.root() }.sign(&key);
        fs::write(dir.join(part_file(0)), lines).expect("written");
        fs::write(dir.join(CHECKPOINT_FILE), serde_json::to_vec(&signed).expect("JSON")).expect("written");
        signed
    }

    #[test]
    fn a_whole_export_holds_and_an_altered_one_does_not() {
        let folder = tempfile::tempdir().expect("folder");
        let dir = folder.path();
        let all: Vec<AuditEntry> = (0..20).map(entry).collect();
        let earlier = write(dir, &all[..9]);
        let signed = write(dir, &all);
        let checked = check(dir, Some(&signed.public_key), Some(&earlier)).expect("it holds");
        assert_eq!((checked.entries, checked.extends, checked.key_known), (20, Some(9), true));
        assert!(check(dir, Some("another"), None).is_err());
        let good = fs::read_to_string(dir.join(part_file(0))).expect("read");
        let lines: Vec<&str> = good.lines().collect();
        let altered = [
            lines[1..].join("\n"),
            lines[..19].join("\n"),
            good.replace("\"count\":5", "\"count\":6"),
            [&lines[..3], &[lines[4], lines[3]], &lines[5..]].concat().join("\n"),
            format!("{good}{}\n", lines[19]),
            good.replace("\"seq\":5", "\"seq\":99999999999999999999"),
            "x".repeat(5 * MAX_LINE_BYTES),
        ];
        for (n, text) in altered.iter().enumerate() {
            fs::write(dir.join(part_file(0)), text).expect("written");
            assert!(check(dir, None, None).is_err(), "alteration {n}");
        }
        // Rewritten from the sixth entry on, and signed again by who has the key: the checkpoint seen earlier shows it.
        let rewritten: Vec<AuditEntry> = all.iter().map(|e| AuditEntry { count: e.count / 2, ..*e }).collect();
        write(dir, &rewritten);
        assert!(check(dir, None, None).is_ok());
        assert!(check(dir, None, Some(&earlier)).is_err());
    }
}
