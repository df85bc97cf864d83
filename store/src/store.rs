//! The store as a whole: made, opened, unsealed, read, changed, sealed. While it is sealed no key is in memory and the
//! database file is closed; sealing it is also the orderly stop. What is stored is not known here.

use crate::audit::{AuditDraft, AuditFindings, InclusionProof};
use crate::backend::{self, Disk, RealDisk};
use crate::blobs;
use crate::doubt::Doubt;
use crate::engine::Engine;
use crate::entropy::{self, Entropy};
use crate::error::{CreateError, Fault, OpenError, ReadError, SealError, UnsealError, WriteError};
use crate::gather::Gather;
use crate::keyring::{self, Held, KdfCost, Keyring, KeyringError, Unlock, UnlockError, UnlockSource, Unlocked};
use crate::keys::{Keys, Purpose, Shared};
use crate::mark::Mark;
use crate::memory::KEY_BYTES;
use crate::reader::Reader;
use crate::scrub::Cursor;
use crate::tables::{Table, Txn};
use crate::verify::StateFindings;
use crate::writer::{Seals, Writer, shared_key};
use crate::{envelope, files, format, stop};
use empathd_proto::audit::{AuditEntry, Hash, SignedCheckpoint};
use empathd_proto::{Secret, StoreId};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use zeroize::Zeroizing;

/// The keyring of a store that is still being made.
const UNFINISHED_KEYRING: &str = "keyring.new";
/// Key of the format version in the anchor table: the one value that is not sealed.
pub(crate) const FORMAT_KEY: &[u8] = b"format";
/// Key of how the store was left.
const RUN_KEY: &[u8] = b"run";

/// How the store was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Run {
    /// Unsealed; found like this at a start, it was killed.
    Running,
    /// Stopped in order.
    Stopped,
}

/// Data at rest. Share it with an `Arc`; every method takes `&self` and blocks.
pub struct Store {
    pub(crate) dir: PathBuf,
    id: StoreId,
    held: RwLock<Held>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) disk: Box<dyn Disk>,
    opened: RwLock<Opened>,
    pub(crate) scrub: Mutex<Cursor>,
    gather: Gather,
}

/// What changes when the store is unsealed and sealed.
pub(crate) struct Opened {
    pub(crate) keys: Keys,
    pub(crate) seals: Seals,
    pub(crate) unsealed: bool,
    db: Option<Box<dyn Engine>>,
    /// Makes the tags of the database's pages.
    page_key: [u8; KEY_BYTES],
    /// Rows that cannot be taken as they are.
    pub(crate) doubt: Doubt,
    pub(crate) mark: Mark,
    /// The disk failed under the database: it is opened again before anything else happens.
    pub(crate) failed: AtomicBool,
}

impl Store {
    /// Whether this folder holds a store.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(keyring::FILE).symlink_metadata().is_ok()
    }

    /// Makes a store and leaves it unsealed. `audit` is the first entry of its trail.
    ///
    /// # Errors
    /// [`CreateError`]. A creation that was cut short is begun anew by the next one.
    pub fn create(
        dir: &Path,
        passphrase: &Secret,
        cost: KdfCost,
        entropy: Arc<dyn Entropy>,
        audit: AuditDraft,
    ) -> Result<Store, CreateError> {
        Self::create_on(Box::new(RealDisk), dir, passphrase, cost, entropy, audit)
    }

    /// As [`Store::create`], on another disk.
    ///
    /// # Errors
    /// [`CreateError`].
    #[doc(hidden)]
    pub fn create_on(
        disk: Box<dyn Disk>,
        dir: &Path,
        passphrase: &Secret,
        cost: KdfCost,
        entropy: Arc<dyn Entropy>,
        audit: AuditDraft,
    ) -> Result<Store, CreateError> {
        prepare_folder(dir, passphrase)?;
        let (keyring, unlocked) = Keyring::create(passphrase, cost, &*entropy).map_err(|_| CreateError::Memory)?;
        begin_folder(dir, &keyring)?;
        let id = keyring.store();
        let mut opened = Opened::new(id, &*entropy).map_err(Fault::from)?;
        opened.set_db(backend::create(&*disk, dir, opened.page_key())?);
        opened.fill(dir, &*entropy, &unlocked, audit)?;
        finish_folder(disk, dir, keyring, entropy, opened)
    }

    /// Opens a state folder, sealed. Only the keyring is read.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path, entropy: Arc<dyn Entropy>) -> Result<Store, OpenError> {
        Self::open_on(Box::new(RealDisk), dir, entropy)
    }

    /// As [`Store::open`], on another disk.
    ///
    /// # Errors
    /// [`OpenError`].
    #[doc(hidden)]
    pub fn open_on(disk: Box<dyn Disk>, dir: &Path, entropy: Arc<dyn Entropy>) -> Result<Store, OpenError> {
        let held = Held::read(dir).map_err(|error| match error {
            KeyringError::Missing => OpenError::NotInitialised,
            KeyringError::Version(found) => OpenError::Version { found, supported: keyring::VERSION },
            KeyringError::Damaged => OpenError::Integrity("the keyring is damaged"),
            KeyringError::Io(error) => OpenError::Io(error),
        })?;
        let id = held.store();
        let opened = RwLock::new(Opened::new(id, &*entropy).map_err(OpenError::Io)?);
        Ok(Self {
            dir: dir.to_owned(),
            id,
            held: RwLock::new(held),
            entropy,
            disk,
            opened,
            gather: Gather::default(),
            scrub: Mutex::default(),
        })
    }

    /// Takes the keys into memory and opens the database. The entry `audit` is written with it.
    ///
    /// # Errors
    /// [`UnsealError`]; the store stays sealed.
    pub fn unseal(&self, passphrase: &Secret, audit: AuditDraft) -> Result<(), UnsealError> {
        self.unseal_with(Unlock::Passphrase(passphrase), audit)
    }

    /// As [`Store::unseal`], with any way in.
    ///
    /// # Errors
    /// [`UnsealError`]; the store stays sealed.
    pub fn unseal_with(&self, with: Unlock<'_>, audit: AuditDraft) -> Result<(), UnsealError> {
        if self.is_unsealed() {
            return Err(UnsealError::AlreadyUnsealed);
        }
        // Slow on purpose; nobody waits for a lock meanwhile.
        let (unlocked, keyring) = self.unlock(with).map_err(|error| unseal_error(error, with))?;
        let mut opened = self.exclusive();
        if opened.unsealed {
            return Err(UnsealError::AlreadyUnsealed);
        }
        let started = self.load(&mut opened, &unlocked).and_then(|()| self.start(&mut opened, keyring, audit));
        match started {
            Ok(()) => opened.unsealed = true,
            Err(_) => opened.close(),
        }
        started
    }

    /// Stops in order: waits for reads and changes under way, writes the entry `audit`, closes the database, writes the
    /// stop seal, overwrites the keys. Does nothing when it is sealed. From then on nothing may write into the state
    /// folder until it is unsealed.
    ///
    /// # Errors
    /// [`SealError`]; the keys have left memory all the same.
    pub fn seal(&self, audit: AuditDraft) -> Result<(), SealError> {
        let mut opened = self.exclusive();
        if !opened.unsealed {
            return Ok(());
        }
        let stopped = self.stop(&mut opened, audit);
        opened.close();
        stopped.map_err(SealError)
    }

    /// Seals it for good.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn close(self, audit: AuditDraft) -> Result<(), SealError> {
        self.seal(audit)
    }

    /// Whether keys are in memory.
    #[must_use]
    pub fn is_unsealed(&self) -> bool {
        self.shared().unsealed
    }

    /// Whether the kernel keeps the keys out of swap. When not, raise `LimitMEMLOCK` or turn swap off.
    #[must_use]
    pub fn keys_are_locked_in_memory(&self) -> bool {
        self.shared().keys.are_locked()
    }

    /// The store's name.
    #[must_use]
    pub fn id(&self) -> StoreId {
        self.id
    }

    /// The ways in that the keyring knows.
    #[must_use]
    pub fn unlock_sources(&self) -> Vec<UnlockSource> {
        self.held().sources()
    }

    /// Reads on one snapshot. `f` must not call the store again.
    ///
    /// # Errors
    /// Those of `f`, and [`ReadError`].
    pub fn read<T, E: From<ReadError>>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, E>) -> Result<T, E> {
        let opened = self.ready()?;
        let reader = Reader::new(&opened, &self.dir, opened.snapshot().map_err(ReadError::from)?);
        f(&reader)
    }

    /// Changes something, all or nothing, together with its audit entry, which `f` may complete. The entry is written
    /// also when `f` changed nothing; when `f` fails, nothing is written. `f` must not call the store again.
    ///
    /// # Errors
    /// Those of `f`, and [`WriteError`].
    pub fn change<T, E: From<WriteError>>(
        &self,
        mut audit: AuditDraft,
        f: impl FnOnce(&mut Writer<'_>, &mut AuditDraft) -> Result<T, E>,
    ) -> Result<T, E> {
        let opened = self.ready().map_err(WriteError::from)?;
        let mut writer = opened.writer(&self.dir, &*self.entropy)?;
        let done = f(&mut writer, &mut audit).and_then(|value| {
            writer.append_audit(&[audit])?;
            writer.store_heads()?;
            Ok(value)
        });
        match done {
            Ok(value) => {
                let dropped = std::mem::take(&mut writer.dropped_blobs);
                writer.commit().map_err(WriteError::from)?;
                blobs::remove(&self.dir, &dropped);
                Ok(value)
            }
            Err(error) => {
                let written = std::mem::take(&mut writer.written_blobs);
                writer.abort();
                blobs::remove(&self.dir, &written);
                Err(error)
            }
        }
    }

    /// Writes audit entries alone, for reads and denials. They are durable when it returns; callers who come while a
    /// commit is under way share the next one.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn record_audit(&self, drafts: &[AuditDraft]) -> Result<(), WriteError> {
        if drafts.is_empty() {
            return Ok(());
        }
        self.gather.submit(drafts, |all| self.commit_audit(all))
    }

    fn commit_audit(&self, drafts: &[AuditDraft]) -> Result<(), WriteError> {
        let opened = self.ready()?;
        let mut writer = opened.writer(&self.dir, &*self.entropy)?;
        match writer.append_audit(drafts).and_then(|()| writer.store_heads()) {
            Ok(()) => Ok(writer.commit()?),
            Err(error) => {
                writer.abort();
                Err(error)
            }
        }
    }

    /// The signed checkpoint over all audit entries.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn checkpoint(&self) -> Result<SignedCheckpoint, ReadError> {
        self.read(|reader| reader.checkpoint())
    }

    /// The newest audit entries, oldest first.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn audit_tail(&self, count: u32) -> Result<Vec<AuditEntry>, ReadError> {
        self.read(|reader| reader.audit_tail(count))
    }

    /// Proof that the audit trail of today extends the one of `old_size` entries.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn consistency_proof(&self, old_size: u64) -> Result<Vec<Hash>, ReadError> {
        self.read(|reader| reader.consistency_proof(old_size))
    }

    /// An audit entry with the proof that the trail of today holds it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn inclusion_proof(&self, seq: u64) -> Result<InclusionProof, ReadError> {
        self.read(|reader| reader.inclusion_proof(seq))
    }

    /// Recomputes the audit tree from its entries. `progress` is told how many of how many are done.
    ///
    /// # Errors
    /// [`ReadError`] when the check could not be made; what it found is in the findings.
    pub fn verify_audit(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<AuditFindings, ReadError> {
        self.read(|reader| reader.check_audit(progress))
    }

    /// Opens every value and file and compares them with the table heads, the audit trail among them.
    ///
    /// # Errors
    /// [`ReadError`] when the check could not be made; what it found is in the findings.
    pub fn verify_all(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<StateFindings, ReadError> {
        let opened = self.ready()?;
        Reader::new(&opened, &self.dir, opened.snapshot()?).without_doubt().check_all(progress)
    }

    /// Opens the database, of which every page is verified, and takes the keys: everything of an unsealing that changes
    /// nothing.
    pub(crate) fn load(&self, opened: &mut Opened, unlocked: &Unlocked) -> Result<(), UnsealError> {
        opened.db = None;
        opened.db = Some(backend::open(&*self.disk, &self.dir, &opened.page_key)?);
        opened.failed.store(false, Ordering::Release);
        opened.keys.set_roots(&unlocked.root, &unlocked.epochs[0].key());
        if let Some(next) = unlocked.epochs.get(1) {
            opened.keys.set_next_epoch(&next.key());
        }
        opened.settle_epoch()?;
        bring_to_format(opened)?;
        for shared in Shared::ALL {
            let key = shared_key(&Reader::new(opened, &self.dir, opened.snapshot()?), shared)?;
            opened.keys.set_shared(shared, &key);
        }
        opened.check_mark(&Reader::new(opened, &self.dir, opened.snapshot()?))?;
        Ok(())
    }

    /// Everything of an unsealing that changes something.
    fn start(&self, opened: &mut Opened, keyring: Keyring, audit: AuditDraft) -> Result<(), UnsealError> {
        opened.doubt = opened.doubt(&self.dir)?;
        if opened.doubt.row(Table::Blobs).is_ok() {
            blobs::sweep(&Reader::new(opened, &self.dir, opened.snapshot()?))?;
        }
        self.leave_as(opened, Run::Running, &[audit])?;
        stop::consume(&self.dir).map_err(Fault::from)?;
        if !self.held().is_current() {
            keyring.write(&*self.disk, &self.dir).map_err(Fault::from)?;
            self.hold(keyring);
        }
        self.tidy(opened)?;
        Ok(())
    }

    fn stop(&self, opened: &mut Opened, audit: AuditDraft) -> Result<(), WriteError> {
        if opened.has_failed() {
            opened.reopen(&*self.disk, &self.dir)?;
        }
        self.tidy(opened)?;
        self.leave_as(opened, Run::Stopped, &[audit])?;
        // The database keeps the state before the last commit, too: from now on both say that it stopped.
        self.leave_as(opened, Run::Stopped, &[])?;
        if let Some(db) = opened.db.take() {
            db.close()?;
        }
        stop::write(&self.dir, &opened.keys.stop_key()).map_err(Fault::from)?;
        Ok(())
    }

    fn leave_as(&self, opened: &Opened, run: Run, audit: &[AuditDraft]) -> Result<(), WriteError> {
        let mut writer = opened.writer(&self.dir, &*self.entropy)?;
        writer.put(Table::Meta, RUN_KEY, Purpose::Shared(Shared::Meta), &format::encode(&run))?;
        if !audit.is_empty() {
            writer.append_audit(audit)?;
        }
        writer.store_heads()?;
        Ok(writer.commit()?)
    }

    /// The unsealed store, its database opened again when the disk had failed under it.
    pub(crate) fn ready(&self) -> Result<RwLockReadGuard<'_, Opened>, ReadError> {
        let opened = self.shared();
        if !opened.unsealed {
            return Err(ReadError::Sealed);
        }
        if !opened.has_failed() {
            return Ok(opened);
        }
        drop(opened);
        let mut opened = self.exclusive();
        if opened.unsealed && opened.has_failed() {
            opened.reopen(&*self.disk, &self.dir)?;
            self.tidy(&mut opened)?;
        }
        drop(opened);
        let opened = self.shared();
        if opened.unsealed { Ok(opened) } else { Err(ReadError::Sealed) }
    }

    pub(crate) fn shared(&self) -> RwLockReadGuard<'_, Opened> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn exclusive(&self) -> RwLockWriteGuard<'_, Opened> {
        self.opened.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the keyring that was written.
    pub(crate) fn hold(&self, keyring: Keyring) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Held::Now(keyring);
    }

    /// The keys that this opens, and the keyring in today's format. Slow on purpose.
    pub(crate) fn unlock(&self, with: Unlock<'_>) -> Result<(Unlocked, Keyring), UnlockError> {
        let held = self.held().clone();
        held.unlock(with, &*self.entropy)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = if self.is_unsealed() { "unsealed" } else { "sealed" };
        write!(f, "Store({}, {state})", self.id())
    }
}

impl Opened {
    pub(crate) fn new(store: StoreId, entropy: &dyn Entropy) -> io::Result<Self> {
        Ok(Self {
            keys: Keys::new(store)?,
            seals: Seals::new(),
            unsealed: false,
            db: None,
            page_key: entropy::array(entropy),
            doubt: Doubt::default(),
            mark: Mark::default(),
            failed: AtomicBool::new(false),
        })
    }

    /// The key of the tags of pages.
    pub(crate) fn page_key(&self) -> &[u8; KEY_BYTES] {
        &self.page_key
    }

    /// Whether the disk failed since the database was opened.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) || self.db.as_ref().is_some_and(|db| db.has_failed())
    }

    /// Passes an answer of the disk on, and remembers when it was a failure.
    pub(crate) fn noted<T>(&self, result: Result<T, Fault>) -> Result<T, Fault> {
        if matches!(result, Err(Fault::Io(_) | Fault::DiskFull)) {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    pub(crate) fn snapshot(&self) -> Result<Txn, Fault> {
        self.noted(Txn::read(self.db()?))
    }

    pub(crate) fn writer<'s>(&'s self, dir: &'s Path, entropy: &'s dyn Entropy) -> Result<Writer<'s>, WriteError> {
        let txn = self.noted(Txn::write(self.db()?))?;
        Ok(Writer::new(Reader::new(self, dir, txn), entropy))
    }

    pub(crate) fn db(&self) -> Result<&dyn Engine, Fault> {
        self.db.as_deref().ok_or_else(|| Fault::Io(io::Error::other("the database is closed")))
    }

    /// Opens the database again after the disk failed. Nothing is retried: what was not durable is gone.
    pub(crate) fn reopen(&mut self, disk: &dyn Disk, dir: &Path) -> Result<(), Fault> {
        self.db = None;
        self.db = Some(backend::open(disk, dir, &self.page_key)?);
        self.settle_epoch()?;
        self.check_mark(&Reader::new(self, dir, self.snapshot()?)).map_err(ReadError::into_fault)?;
        self.failed.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes a new database.
    pub(crate) fn set_db(&mut self, db: Box<dyn Engine>) {
        self.db = Some(db);
    }

    /// A transaction that writes, without a barrier before it.
    pub(crate) fn begin(&self) -> Result<Txn, Fault> {
        Txn::write(self.db()?)
    }

    /// Keeps the epoch key that the database uses, and no other.
    pub(crate) fn settle_epoch(&mut self) -> Result<(), Fault> {
        let row = Txn::read(self.db()?)?.get(Table::Current, &[Shared::Index as u8])?;
        let used = row.as_deref().and_then(envelope::key_id);
        if used.is_some_and(|used| self.keys.settle_epoch(used)) {
            Ok(())
        } else {
            Err(Fault::Damaged("the keyring and the database do not belong together"))
        }
    }

    /// Closes the database and overwrites the keys.
    fn close(&mut self) {
        self.db = None;
        self.doubt = Doubt::default();
        self.mark = Mark::default();
        self.keys.wipe();
        self.unsealed = false;
    }

    /// Writes the first contents of a new database.
    fn fill(
        &mut self,
        dir: &Path,
        entropy: &dyn Entropy,
        unlocked: &Unlocked,
        audit: AuditDraft,
    ) -> Result<(), WriteError> {
        self.keys.set_roots(&unlocked.root, &unlocked.epochs[0].key());
        let shared = Shared::ALL.map(|shared| (shared, Zeroizing::new(entropy::array(entropy))));
        for (name, key) in &shared {
            self.keys.set_shared(*name, key);
        }
        let mut writer = self.writer(dir, entropy)?;
        writer.txn.create_tables()?;
        writer.noted(writer.txn.insert(Table::Anchor, FORMAT_KEY, &format::VERSION.to_le_bytes()))?;
        for (name, key) in shared {
            writer.adopt_key(Purpose::Shared(name), key)?;
        }
        put_run(&mut writer)?;
        writer.set_consent_epoch(1)?;
        writer.set_history(&[])?;
        writer.append_audit(&[audit])?;
        writer.store_heads()?;
        Ok(writer.commit()?)
    }
}

impl Reader<'_> {
    /// How the store was left.
    pub(crate) fn run(&self) -> Result<Run, ReadError> {
        self.decoded(Table::Meta, RUN_KEY)?.ok_or(ReadError::Integrity("how the store was left is not recorded"))
    }
}

pub(crate) fn prepare_folder(dir: &Path, passphrase: &Secret) -> Result<(), CreateError> {
    if passphrase.expose().is_empty() {
        return Err(CreateError::EmptyPassphrase);
    }
    if Store::exists(dir) {
        return Err(CreateError::Exists);
    }
    if dir.join(backend::FILE).exists() && !dir.join(UNFINISHED_KEYRING).exists() {
        return Err(CreateError::KeyringMissing);
    }
    files::private_dir(dir).and_then(|()| files::private_dir(&dir.join(blobs::DIR))).map_err(Fault::from)?;
    Ok(())
}

/// Writes the keyring of a store that is being made; there is none yet.
pub(crate) fn begin_folder(dir: &Path, keyring: &Keyring) -> Result<(), CreateError> {
    let bytes = keyring.to_bytes();
    files::replace(&dir.join(UNFINISHED_KEYRING), |file| file.write_all(&bytes)).map_err(Fault::from)?;
    Ok(backend::discard(dir).map_err(Fault::from)?)
}

/// Puts the keyring into its place: from here on there is a store.
pub(crate) fn finish_folder(
    disk: Box<dyn Disk>,
    dir: &Path,
    keyring: Keyring,
    entropy: Arc<dyn Entropy>,
    mut opened: Opened,
) -> Result<Store, CreateError> {
    fs::rename(dir.join(UNFINISHED_KEYRING), dir.join(keyring::FILE))
        .and_then(|()| files::sync_dir(dir))
        .map_err(Fault::from)?;
    opened.unsealed = true;
    let (id, held) = (keyring.store(), RwLock::new(Held::Now(keyring)));
    Ok(Store {
        dir: dir.to_owned(),
        id,
        held,
        entropy,
        disk,
        opened: RwLock::new(opened),
        gather: Gather::default(),
        scrub: Mutex::default(),
    })
}

/// Says that the store is unsealed.
pub(crate) fn put_run(writer: &mut Writer<'_>) -> Result<(), WriteError> {
    writer.put(Table::Meta, RUN_KEY, Purpose::Shared(Shared::Meta), &format::encode(&Run::Running))
}

fn unseal_error(error: UnlockError, with: Unlock<'_>) -> UnsealError {
    match (error, with) {
        (UnlockError::WrongSource, Unlock::Passphrase(_)) => UnsealError::WrongPassphrase,
        (UnlockError::WrongSource, Unlock::Credential(_)) => {
            UnsealError::WrongSource("the credential does not open this store; check which one the service loads")
        }
        (UnlockError::WrongSource, Unlock::Shares(_)) => {
            UnsealError::WrongSource("these recovery shares do not open this store; take those that were printed last")
        }
        (UnlockError::NoSuchSource, _) => {
            UnsealError::WrongSource("this store was never given such a way in; unseal it with the passphrase")
        }
        (UnlockError::Unfit(what), _) => UnsealError::WrongSource(what),
        (UnlockError::Memory, _) => UnsealError::Memory,
        (UnlockError::Damaged, _) => UnsealError::Integrity("the keyring is damaged"),
    }
}

/// Brings a database of an older format to today's; refuses a newer one. Format 1 had no tombstones and no holds.
fn bring_to_format(opened: &Opened) -> Result<(), UnsealError> {
    let stored = opened.snapshot()?.get(Table::Anchor, FORMAT_KEY)?;
    let Some(version) = stored.and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes) else {
        return Err(UnsealError::Integrity("the database does not say which format it has"));
    };
    match version {
        format::VERSION => Ok(()),
        1 => {
            let txn = Txn::write(opened.db()?)?;
            txn.create_tables()?;
            txn.insert(Table::Anchor, FORMAT_KEY, &format::VERSION.to_le_bytes())?;
            Ok(txn.commit()?)
        }
        found => Err(UnsealError::Version { found, supported: format::VERSION }),
    }
}
