//! What the tests of this crate share: predictable randomness, a store in a scratch folder, a disk in memory that fails
//! and forgets.

use crate::backend::{self, Disk, RealDisk, Storage};
use crate::entropy::Entropy;
use crate::{AuditDraft, DataClass, DocKind, KdfCost, NewRecord, PutOutcome, Store, WriteError, Writer};
use empathd_proto::audit::{ActionKind, AuditObject, Outcome, Principal, PrincipalKind};
use empathd_proto::{RecordId, Secret};
use redb::{Database, StorageBackend, TableDefinition};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tempfile::TempDir;

/// A stream of bytes that depends on its seed alone.
pub(crate) struct SeededEntropy(Mutex<blake3::OutputReader>);

impl SeededEntropy {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof()))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().expect("no test panics while it draws").fill(bytes);
    }
}

pub(crate) fn passphrase() -> Secret {
    Secret::new("a passphrase of tests".into())
}

pub(crate) fn draft(action: ActionKind) -> AuditDraft {
    AuditDraft {
        at_ms: 1_000,
        principal: Principal { kind: PrincipalKind::Appliance, number: 0 },
        action,
        outcome: Outcome::Done,
        object: AuditObject::None,
        count: 1,
    }
}

/// A new store in a scratch folder.
pub(crate) fn new_store(seed: u64) -> (TempDir, Store) {
    new_store_on(Box::new(RealDisk), seed)
}

pub(crate) fn new_store_on(disk: Box<dyn Disk>, seed: u64) -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("scratch folder");
    let entropy = Arc::new(SeededEntropy::new(seed));
    let store = Store::create_on(
        disk,
        &dir.path().join("state"),
        &passphrase(),
        KdfCost::Light,
        entropy,
        draft(ActionKind::Init),
    )
    .expect("created");
    (dir, store)
}

pub(crate) fn state(dir: &TempDir) -> PathBuf {
    dir.path().join("state")
}

/// Opens and unseals what lies in a folder.
pub(crate) fn reopen(dir: &TempDir, seed: u64) -> Store {
    let store = Store::open(&state(dir), Arc::new(SeededEntropy::new(seed))).expect("opened");
    store.unseal(&passphrase(), draft(ActionKind::Unseal)).expect("unsealed");
    store
}

/// One change that cannot fail on a sound disk.
pub(crate) fn change<T>(store: &Store, f: impl FnOnce(&mut Writer<'_>) -> Result<T, WriteError>) -> T {
    store.change(draft(ActionKind::Ingest), |writer, _| f(writer)).expect("changed")
}

/// Stores one record of the client that is called `who`.
pub(crate) fn put(writer: &mut Writer<'_>, who: &str, body: &[u8]) -> Result<PutOutcome, WriteError> {
    let client = writer.client_for(who)?;
    let content_key = blake3::hash(body).into();
    writer.put_record(NewRecord { client, class: DataClass::Training, content_key, body })
}

pub(crate) fn stored(outcome: PutOutcome) -> RecordId {
    match outcome {
        PutOutcome::Stored(id) | PutOutcome::Duplicate(id) => id,
    }
}

/// A store with something of every kind in it, left as a kill would leave it.
pub(crate) fn furnished(seed: u64) -> (TempDir, Store) {
    let (dir, store) = new_store(seed);
    for n in 0..6u8 {
        change(&store, |writer| put(writer, &format!("person {}", n % 3), &[n; 300]));
    }
    change(&store, |writer| writer.put_doc(DocKind::Job, [1; 16], b"a job"));
    change(&store, |writer| {
        let mut candidates = Vec::new();
        writer.records(DataClass::Training, &mut |record, client, _| {
            candidates.push((record, client));
            std::ops::ControlFlow::Continue(())
        })?;
        let rule = crate::CutRule { validation_percent: 30, seed: 1, at_ms: 5, candidates };
        let dataset = writer.cut_dataset(rule)?.id();
        let blob = writer.put_blob(&[7; 100_000])?;
        let job = empathd_proto::JobId::from_bytes([1; 16]);
        let adapter = writer.put_adapter(crate::NewAdapter { job, dataset, blob, body: b"body".to_vec() })?;
        writer.approve_adapter(adapter, b"gate".to_vec())?;
        writer.activate_adapter(adapter)
    });
    change(&store, |writer| {
        let client = writer.client_for("person 0")?;
        writer.set_hold(client, true)
    });
    let gone = change(&store, |writer| {
        put(writer, "gone", b"words of someone who was erased")?;
        writer.client_for("gone")
    });
    store.erase_client(gone, draft(ActionKind::Ingest)).expect("erased");
    (dir, store)
}

/// The database of a store that is not open, as its tables are: bytes to bytes.
pub(crate) fn raw_change(dir: &TempDir, f: impl FnOnce(&redb::WriteTransaction)) {
    let db = Database::open(state(dir).join(backend::FILE)).expect("opened");
    let txn = db.begin_write().expect("begun");
    f(&txn);
    txn.commit().expect("committed");
}

pub(crate) const fn raw_table(name: &str) -> TableDefinition<'_, &'static [u8], &'static [u8]> {
    TableDefinition::new(name)
}

/// A disk in memory. What was not synced may be lost, in part and in any order, when the power fails.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<Memory>>);

#[derive(Debug, Default, Clone)]
struct Memory {
    durable: Vec<u8>,
    visible: Vec<u8>,
    /// Writes since the last sync, in order.
    pending: Vec<(u64, Vec<u8>)>,
    /// Operations until the disk fails; it then fails until it is mended.
    left: Option<u64>,
    error: Option<io::ErrorKind>,
}

impl MemoryDisk {
    /// A disk with these bytes on it.
    pub(crate) fn holding(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(Memory { durable: bytes.to_vec(), visible: bytes.to_vec(), ..Memory::default() })))
    }

    /// A disk of its own with the same contents.
    pub(crate) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(self.memory().clone())))
    }

    /// Changes bits of one byte, as a hand on the disk would.
    pub(crate) fn flip(&self, at: usize, bits: u8) {
        let mut memory = self.memory();
        if let Some(byte) = memory.visible.get_mut(at) {
            *byte ^= bits;
        }
    }

    pub(crate) fn fail_after(&self, operations: u64, error: io::ErrorKind) {
        let mut memory = self.memory();
        memory.left = Some(operations);
        memory.error = Some(error);
    }

    /// Whether it failed since `fail_after`.
    pub(crate) fn has_failed(&self) -> bool {
        self.memory().left == Some(0)
    }

    pub(crate) fn mend(&self) {
        self.memory().left = None;
    }

    /// Cuts the power: of the writes that were not synced some survive, some in part.
    pub(crate) fn cut_power(&self, seed: u64) {
        const SECTOR: usize = 512;
        let chance = SeededEntropy::new(seed);
        let mut memory = self.memory();
        let pending = std::mem::take(&mut memory.pending);
        let mut image = std::mem::take(&mut memory.durable);
        image.resize(memory.visible.len().max(image.len()), 0);
        for (offset, data) in pending {
            let [survives, tear] = crate::entropy::array(&chance);
            let sectors = data.len().div_ceil(SECTOR);
            let kept = match survives % 3 {
                0 => 0,
                1 => data.len(),
                _ => (tear as usize % (sectors + 1) * SECTOR).min(data.len()),
            };
            image[offset as usize..offset as usize + kept].copy_from_slice(&data[..kept]);
        }
        memory.visible.clone_from(&image);
        memory.durable = image;
        memory.left = None;
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().expect("no test panics while it holds the disk")
    }

    /// The memory for one operation, if the disk works.
    fn operate(&self) -> io::Result<MutexGuard<'_, Memory>> {
        let mut memory = self.memory();
        if memory.left == Some(0) {
            return Err(memory.error.unwrap_or(io::ErrorKind::Other).into());
        }
        memory.left = memory.left.map(|left| left - 1);
        Ok(memory)
    }
}

impl Disk for MemoryDisk {
    fn storage(&self, _path: &Path, _create: bool) -> io::Result<Storage> {
        drop(self.operate()?);
        Ok(Storage(Box::new(self.clone())))
    }

    /// On the real disk, in three operations: it may fail before, between the file and what it replaces, and after.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        drop(self.operate()?);
        crate::files::replace(path, |file| io::Write::write_all(file, bytes))?;
        drop(self.operate()?);
        Ok(())
    }
}

impl StorageBackend for MemoryDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.operate()?.visible.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let memory = self.operate()?;
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(memory.visible.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut memory = self.operate()?;
        memory.visible.resize(len as usize, 0);
        // Lengths are kept in order with syncs: what lies beyond is not written any more.
        memory.pending.retain(|(offset, data)| offset + data.len() as u64 <= len);
        memory.durable.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut memory = self.operate()?;
        memory.pending.clear();
        memory.durable = memory.visible.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut memory = self.operate()?;
        let range = offset as usize..offset as usize + data.len();
        memory.visible.get_mut(range).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        memory.pending.push((offset, data.to_vec()));
        Ok(())
    }
}
