//! The store as the daemon uses it: every write with its audit entry, every read through the barrier.

use super::pace::{Pace, timed_us};
use super::{Subject, System};
use crate::measure::{Figures, rounded};
use empathd_proto::audit::{ActionKind, AuditObject, Outcome, Principal, PrincipalKind};
use empathd_proto::{RecordId, Secret};
use empathd_store::{AuditDraft, DataClass, KdfCost, NewRecord, PutOutcome, ReadError, Store, WriteError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Clients among whom the records are spread.
const CLIENTS: usize = 50;
/// Entries that a batch of the trail has.
const ENTRIES: usize = 5000;

pub(super) struct Sealed {
    store: Store,
    file: PathBuf,
    ids: Vec<RecordId>,
}

pub(super) fn create(dir: &Path) -> anyhow::Result<Store> {
    std::fs::create_dir_all(dir)?;
    let passphrase = Secret::new("correct horse battery staple".into());
    Ok(Store::create(dir, &passphrase, KdfCost::Light, Arc::new(System), draft(ActionKind::Init))?)
}

pub(super) fn draft(action: ActionKind) -> AuditDraft {
    let principal = Principal { kind: PrincipalKind::Appliance, number: 0 };
    AuditDraft { at_ms: 0, principal, action, outcome: Outcome::Done, object: AuditObject::None, count: 0 }
}

/// Puts bodies in one change; `first` is the number of the first.
pub(super) fn put(store: &Store, first: usize, bodies: &[Vec<u8>]) -> anyhow::Result<Vec<RecordId>> {
    let ids = store.change(draft(ActionKind::Ingest), |writer, _| {
        let mut ids = Vec::with_capacity(bodies.len());
        for (number, body) in (first..).zip(bodies) {
            let client = writer.client_for(&format!("client-{}", number % CLIENTS))?;
            let mut content_key = [0; 32];
            content_key[..8].copy_from_slice(&(number as u64).to_le_bytes());
            let new = NewRecord { client, class: DataClass::Training, content_key, body };
            match writer.put_record(new)? {
                PutOutcome::Stored(id) => ids.push(id),
                PutOutcome::Duplicate(_) => return Err(WriteError::Invalid("each content is new")),
            }
        }
        Ok(ids)
    })?;
    Ok(ids)
}

impl Sealed {
    pub(super) fn create(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { store: create(dir)?, file: dir.join("store.redb"), ids: Vec::new() })
    }
}

impl Subject for Sealed {
    fn write(&mut self, bodies: &[Vec<u8>]) -> anyhow::Result<()> {
        let ids = put(&self.store, self.ids.len(), bodies)?;
        self.ids.extend(ids);
        Ok(())
    }

    fn read(&mut self, number: usize) -> anyhow::Result<Vec<u8>> {
        let id = self.ids[number];
        let found = self.store.read(|reader| reader.record(id)).map_err(|error: ReadError| error)?;
        Ok(found.ok_or_else(|| anyhow::anyhow!("a record is missing"))?.body.to_vec())
    }

    fn file(&self) -> &Path {
        &self.file
    }
}

/// What an audit entry of its own adds to a read, and how fast a long trail is verified.
pub(super) fn audit(dir: &Path, writes: u64, entries: u64, figures: &mut Figures) -> anyhow::Result<()> {
    let store = create(dir)?;
    let added: anyhow::Result<Vec<f64>> =
        (0..writes).map(|_| timed_us(|| Ok(store.record_audit(&[draft(ActionKind::Chat)])?))).collect();
    let added = Pace::of(added?);
    figures.insert("audit_added_p50_us".into(), rounded(added.p50_us));
    figures.insert("audit_added_p99_us".into(), rounded(added.p99_us));
    for _ in 0..entries.div_ceil(ENTRIES as u64) {
        store.record_audit(&vec![draft(ActionKind::Chat); ENTRIES])?;
    }
    let began = Instant::now();
    let found = store.verify_audit(&mut |_, _| ())?;
    let elapsed_s = began.elapsed().as_secs_f64();
    anyhow::ensure!(found.verified(), "the trail does not verify");
    figures.insert("verify_entries_per_s".into(), rounded(found.entries as f64 / elapsed_s));
    Ok(())
}
