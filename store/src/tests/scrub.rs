//! The scrub finds what was changed on the disk, in small steps, and goes on behind it.

use super::support::*;
use crate::tables::Table;
use crate::{ReadError, Store, blobs};
use empathd_proto::audit::ActionKind;
use std::fs;

/// Bytes of a step.
const STEP_BYTES: u64 = 2000;

/// A whole round: values looked at, and what was found. No step is much larger than it may be.
fn round(store: &Store) -> (u64, Vec<String>) {
    let (mut checked, mut findings) = (0, Vec::new());
    loop {
        let step = store.scrub(STEP_BYTES).expect("read");
        assert!(step.bytes < STEP_BYTES + blobs::CHUNK_BYTES as u64 + 64 * 1024, "{}", step.bytes);
        checked += step.checked;
        findings.extend(step.findings);
        if step.is_round_over {
            return (checked, findings);
        }
    }
}

#[test]
fn a_round_looks_at_everything_and_finds_nothing_in_a_sound_store() {
    let (_dir, store) = furnished(41);
    let rows = store.verify_all(&mut |_, _| {}).expect("checked").values;
    let (checked, findings) = round(&store);
    assert_eq!(findings, Vec::<String>::new());
    // The file of 100,000 bytes has two chunks.
    assert_eq!(checked, rows + 2);
    // Changes come between the steps.
    store.scrub(STEP_BYTES).expect("read");
    let gone = change(&store, |writer| writer.client_for("person 1"));
    store.erase_client(gone, draft(ActionKind::Ingest)).expect("erased");
    assert_eq!(round(&store).1, Vec::<String>::new());
    store.seal(draft(ActionKind::Seal)).expect("sealed");
    assert!(matches!(store.scrub(STEP_BYTES), Err(ReadError::Sealed)));
}

#[test]
fn a_changed_value_and_a_changed_chunk_are_found_and_the_rest_is_looked_at() {
    let (dir, store) = furnished(42);
    let (sound, _) = round(&store);
    drop(store);
    for table in [Table::Records, Table::Docs, Table::Audit] {
        raw_change(&dir, |txn| {
            let (key, mut value) = super::tamper::all_rows(txn, table).swap_remove(0);
            *value.last_mut().expect("bytes") ^= 1;
            txn.open_table(raw_table(table.name()))
                .expect("table")
                .insert(key.as_slice(), value.as_slice())
                .expect("put");
        });
    }
    let file =
        fs::read_dir(state(&dir).join(blobs::DIR)).expect("listed").next().expect("a blob").expect("listed").path();
    let mut bytes = fs::read(&file).expect("read");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(&file, bytes).expect("written");
    let store = reopen(&dir, 2);
    let (checked, findings) = round(&store);
    for table in ["records: ", "docs: ", "audit: ", "blobs: ", "records of a client: "] {
        assert!(findings.iter().any(|text| text.starts_with(table)), "{table} of {findings:?}");
    }
    assert!(checked > sound, "{checked} of {sound}: the entry of the unsealing came to them");
}
