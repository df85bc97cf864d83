//! The check of a whole state: every value opens, every group of rows fits its head, files, cuts, adapters and the audit
//! trail fit each other. The check of a stopped store changes nothing in its folder. How a finding is shown is not known
//! here.

use crate::audit::AuditFindings;
use crate::backend::{self, OverlayDisk};
use crate::entropy::Entropy;
use crate::erase::Tombstone;
use crate::error::{OpenError, ReadError, VerifyError};
use crate::findings::Findings;
use crate::heads::{Group, Head};
use crate::keyring::{Unlock, UnlockError};
use crate::keys::stop_key;
use crate::reader::{Reader, id_bytes};
use crate::store::{Run, Store};
use crate::tables::Table;
use crate::{adapters, dataset, documents, files, format, stop};
use empathd_proto::report::AdapterState;
use empathd_proto::{BlobId, RecordId, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;

/// Progress is told once for this many values.
const PROGRESS_VALUES: u64 = 256;

/// What a check of the whole state found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFindings {
    /// Values and files that were opened.
    pub values: u64,
    /// What the audit trail is like; absent when the database could not be opened.
    pub audit: Option<AuditFindings>,
    /// Whether the store was stopped in order, so that every byte of every file was compared.
    pub stopped_in_order: bool,
    /// What did not fit, without identifiers of people. Empty when all did. Findings of the audit trail are among them.
    pub findings: Vec<String>,
}

impl StateFindings {
    /// Whether all fitted.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Checks the state folder of a stopped appliance, without changing it. `progress` is told how many of how many values are
/// done.
///
/// # Errors
/// [`VerifyError`] when the check could not be made at all; whatever is wrong with the state is a finding.
pub fn verify_stopped(
    dir: &Path,
    passphrase: &Secret,
    entropy: Arc<dyn Entropy>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<StateFindings, VerifyError> {
    let mut findings = Findings::default();
    let store = match Store::open_on(Box::new(OverlayDisk), dir, entropy) {
        Ok(store) => store,
        Err(OpenError::NotInitialised) => return Err(VerifyError::NotAStore),
        Err(OpenError::Version { found, supported }) => return Err(VerifyError::Version { found, supported }),
        Err(OpenError::Io(error)) => return Err(VerifyError::Io(error)),
        Err(OpenError::Integrity(what)) => return Ok(only(findings, what)),
    };
    let unlocked = match store.unlock(Unlock::Passphrase(passphrase)) {
        Ok((unlocked, _)) => unlocked,
        Err(UnlockError::WrongSource | UnlockError::NoSuchSource | UnlockError::Unfit(_)) => {
            return Err(VerifyError::WrongPassphrase);
        }
        Err(UnlockError::Memory) => return Err(VerifyError::Memory),
        Err(UnlockError::Damaged) => return Ok(only(findings, "the keyring is damaged")),
    };
    let _lock = lock(dir)?;
    let sealed = stop::exists(dir);
    if sealed {
        stop::check(dir, &stop_key(&unlocked.root), &mut findings).map_err(VerifyError::Io)?;
    }
    let mut opened = store.exclusive();
    let checked = store.load(&mut opened, &unlocked).and_then(|()| {
        let reader = Reader::new(&opened, dir, opened.snapshot()?);
        if reader.run()? == Run::Stopped && !sealed {
            findings.add(format!(
                "{}: missing after an orderly stop; it was removed, or a start or stop was cut short. If you know of \
                 one, unseal the store, stop it in order and verify again",
                stop::FILE
            ));
        }
        Ok(reader.check_all(progress)?)
    });
    match checked {
        Ok(state) => {
            findings.extend(state.findings);
            Ok(StateFindings { stopped_in_order: sealed, findings: findings.into_texts(), ..state })
        }
        Err(error) => {
            findings.add(format!("{}: {error}", backend::FILE));
            Ok(StateFindings { stopped_in_order: sealed, ..only(findings, "the values could not be checked") })
        }
    }
}

/// The state of which nothing but this is known.
fn only(mut findings: Findings, what: &str) -> StateFindings {
    findings.add(what.to_owned());
    StateFindings { values: 0, audit: None, stopped_in_order: false, findings: findings.into_texts() }
}

/// Holds the database file against a start meanwhile; a missing file is found later.
fn lock(dir: &Path) -> Result<Option<File>, VerifyError> {
    let Ok(file) = files::open(&dir.join(backend::FILE)) else { return Ok(None) };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(VerifyError::InUse),
        Err(TryLockError::Error(error)) => Err(VerifyError::Io(error)),
    }
}

/// A check under way.
struct Check<'a, 's> {
    reader: &'a Reader<'s>,
    findings: Findings,
    values: u64,
    /// Heads computed from the rows.
    computed: BTreeMap<Group, Head>,
    /// Heads as they are stored.
    stored: BTreeMap<Group, Head>,
    /// Records of clients that were erased.
    erased: BTreeSet<RecordId>,
}

impl Reader<'_> {
    /// Opens every value and file; `progress` is told how many of how many values are done.
    pub(crate) fn check_all(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<StateFindings, ReadError> {
        let mut check = Check {
            reader: self,
            findings: Findings::default(),
            values: 0,
            computed: BTreeMap::new(),
            stored: BTreeMap::new(),
            erased: BTreeSet::new(),
        };
        if !self.txn.has_only_known_tables()? {
            check.findings.add("the database has tables that do not belong to it".to_owned());
        }
        let total = Table::ALL.iter().map(|table| self.count(*table)).sum::<Result<u64, _>>()?;
        for table in Table::ALL.iter().copied().filter(|table| *table != Table::Audit) {
            check.table(table, total, progress)?;
        }
        check.heads()?;
        check.datasets()?;
        check.adapters()?;
        let before = check.values;
        let audit = self.check_audit(&mut |done, _| progress(before + done, total))?;
        check.findings.extend(audit.findings.clone());
        Ok(StateFindings {
            values: before + audit.entries,
            audit: Some(audit),
            stopped_in_order: false,
            findings: check.findings.into_texts(),
        })
    }
}

impl Check<'_, '_> {
    /// What an operation gives; what does not authenticate becomes a finding about `subject`.
    fn sound<T>(&mut self, subject: &str, result: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(ReadError::Integrity(what)) => {
                self.findings.add(format!("{subject}: {what}"));
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    fn table(&mut self, table: Table, total: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<(), ReadError> {
        for row in self.reader.rows(table, &[]) {
            let Some((key, value)) = self.sound(table.name(), row.map_err(ReadError::from))? else { break };
            self.values += 1;
            if self.values.is_multiple_of(PROGRESS_VALUES) {
                progress(self.values, total);
            }
            if table == Table::Anchor {
                continue;
            }
            let opened = self.reader.open(table, &key, &value);
            let Some((purpose, body)) = self.sound(table.name(), opened)? else { continue };
            if let Some(group) = Group::of(table, purpose) {
                self.computed.entry(group).or_default().add(self.reader.keys(), table, &key, &value);
            }
            let meaning = self.row(table, &key, &body);
            self.sound(table.name(), meaning)?;
        }
        Ok(())
    }

    /// Whether a row means something, as far as it can be said of one row alone.
    fn row(&mut self, table: Table, key: &[u8], body: &[u8]) -> Result<(), ReadError> {
        let reader = self.reader;
        let misplaced = ReadError::Integrity("a row stands in another row's place");
        let in_place = match table {
            Table::Keys => {
                let id = key.try_into().map_err(|_| ReadError::Integrity("a key has a name of another length"))?;
                reader.unwrapped_key(id, body).map(|_| true)?
            }
            Table::Heads => {
                let (group, head) = format::decode::<(Group, Head)>(body)?;
                self.stored.insert(group, head).is_none()
            }
            Table::Contents => {
                let record = format::decode::<RecordId>(body)?;
                reader.raw(Table::Records, record.as_bytes())?.is_some()
            }
            Table::Docs => documents::is_in_place(reader.keys(), key, body),
            Table::Blobs => reader.blob(BlobId::from_bytes(id_bytes(key)?)).map(|_| true)?,
            Table::Datasets => format::decode::<dataset::DatasetCut>(body)?.id().as_bytes() == key,
            Table::Adapters => format::decode::<adapters::StoredAdapter>(body)?.id.as_bytes() == key,
            Table::Tombstones => format::decode::<Tombstone>(body)?.is_authentic(reader.keys()),
            Table::Holds => reader.is_held(format::decode(body)?)?,
            Table::Anchor | Table::Meta | Table::Current | Table::Clients | Table::Records | Table::Audit => true,
        };
        if in_place { Ok(()) } else { Err(misplaced) }
    }

    fn heads(&mut self) -> Result<(), ReadError> {
        let root = self.reader.head(Group::Root);
        if let Some(root) = self.sound("table heads", root)? {
            self.stored.insert(Group::Root, root);
        }
        let groups: BTreeSet<Group> = self.computed.keys().chain(self.stored.keys()).copied().collect();
        for group in groups {
            let found = self.computed.get(&group).copied().unwrap_or_default();
            let expected = self.stored.get(&group).copied().unwrap_or_default();
            let name = match group {
                Group::Table(table) => table.name(),
                Group::Client(..) => "records of a client",
                Group::Root => "table heads",
            };
            if found.count != expected.count {
                self.findings.add(format!("{name}: {} rows, and there should be {}", found.count, expected.count));
            } else if found != expected {
                self.findings.add(format!("{name}: rows were exchanged or put back to an older state"));
            }
        }
        Ok(())
    }

    fn datasets(&mut self) -> Result<(), ReadError> {
        let stones = self.sound("tombstones", self.reader.tombstones())?.unwrap_or_default();
        self.erased = stones.into_iter().flat_map(|stone| stone.records).collect();
        let Some(cuts) = self.sound("datasets", self.reader.datasets())? else { return Ok(()) };
        for cut in cuts {
            if cut.computed_hash() != *cut.hash() {
                self.findings.add("datasets: a cut does not fit its hash".to_owned());
            }
            let train = self.owners(cut.train())?;
            let validation = self.owners(cut.validation())?;
            if !train.is_disjoint(&validation) {
                self.findings.add("datasets: a client is on both sides of a cut".to_owned());
            }
        }
        Ok(())
    }

    fn owners(&mut self, records: &[RecordId]) -> Result<BTreeSet<empathd_proto::ClientId>, ReadError> {
        let mut owners = BTreeSet::new();
        for record in records {
            let owner = self.reader.owner_of(*record);
            match self.sound("datasets", owner)? {
                Some(Some(owner)) => drop(owners.insert(owner)),
                Some(None) if self.erased.contains(record) => {}
                Some(None) => self.findings.add("datasets: a record of a cut is missing".to_owned()),
                None => {}
            }
        }
        Ok(owners)
    }

    fn adapters(&mut self) -> Result<(), ReadError> {
        let reader = self.reader;
        let Some(adapters) = self.sound("adapters", reader.adapters())? else { return Ok(()) };
        for adapter in &adapters {
            if reader.raw(Table::Datasets, adapter.dataset.as_bytes())?.is_none()
                || reader.raw(Table::Blobs, adapter.blob.as_bytes())?.is_none()
            {
                self.findings.add("adapters: the cut or the weights of an adapter are missing".to_owned());
            }
        }
        let Some(history) = self.sound("adapters", reader.history())? else { return Ok(()) };
        let active = adapters.iter().filter(|one| one.state == AdapterState::Active).map(|one| &one.id);
        if !active.eq(history.last()) {
            self.findings.add("adapters: the active one is not the one that was activated last".to_owned());
        }
        Ok(())
    }
}
