//! Restore: a new store out of backups, the newest key file and two shares. Every row that comes back fits the heads that
//! the store kept; what was erased since stays erased. Where the streams come from is not known here.

use super::item::{self, Given};
use super::key_file::{self, OpenedKeyFile};
use super::stream::StreamReader;
use super::{read_fault, stream_key};
use crate::audit::AuditDraft;
use crate::backend::{self, Disk, RealDisk};
use crate::blobs;
use crate::entropy::{self, Entropy};
use crate::envelope;
use crate::error::{CreateError, Fault, ReadError, WriteError};
use crate::files;
use crate::format;
use crate::heads::{Group, Head};
use crate::keyring::{KdfCost, Keyring, Kind, Member, NewSource, Phase};
use crate::keys::{Purpose, Shared};
use crate::reader::{Reader, id_bytes};
use crate::shares::RecoveryShare;
use crate::store::{self, Opened, Store};
use crate::tables::{Table, Txn};
use crate::writer::{Writer, shared_key};
use empathd_proto::{ClientId, RecordId, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// What a store is restored from.
pub struct RestoreFrom<'a> {
    /// A whole backup, then those that go on from it, in order.
    pub backups: &'a mut [&'a mut dyn Read],
    /// The newest key file.
    pub key_file: &'a [u8],
    /// Two or three recovery shares.
    pub shares: &'a [RecoveryShare],
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Rows that came back.
    pub rows: u64,
    /// Records of erased clients that were in the backup and did not come back.
    pub erased: u64,
    /// When the backup was made, milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Why nothing was restored. There is no store in the folder afterwards.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The folder, the passphrase or the disk.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The key file is older than the backup.
    #[error("the key file is older than the backup; take the newest key file")]
    OldKeyFile,
    /// The backups do not follow each other.
    #[error("the backups do not go on from each other; give a whole backup first, then those after it in order")]
    Chain,
    /// Made by a newer release.
    #[error("the backup was made by a newer release; install that release")]
    Newer,
    /// Something is not what the store wrote.
    #[error("{0}; take another copy of the backup or of the key file")]
    Integrity(&'static str),
}

impl From<ReadError> for RestoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Integrity(what) => RestoreError::Integrity(what),
            ReadError::Io(error) => RestoreError::Create(CreateError::from(Fault::from(error))),
            other => RestoreError::Create(CreateError::Io(io::Error::other(other))),
        }
    }
}

impl From<WriteError> for RestoreError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Integrity(what) => RestoreError::Integrity(what),
            other => RestoreError::Create(other.into()),
        }
    }
}

impl From<Fault> for RestoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Damaged(what) => RestoreError::Integrity(what),
            other => RestoreError::Create(other.into()),
        }
    }
}

impl Store {
    /// Makes a store out of backups, with a new root and this passphrase; the recovery shares stay good. It ends unsealed.
    ///
    /// # Errors
    /// [`RestoreError`]; there is no store then, and the folder can be tried again.
    pub fn restore(
        dir: &Path,
        from: RestoreFrom<'_>,
        passphrase: &Secret,
        cost: KdfCost,
        entropy: Arc<dyn Entropy>,
        audit: AuditDraft,
    ) -> Result<(Store, Restored), RestoreError> {
        Self::restore_on(Box::new(RealDisk), dir, from, passphrase, cost, entropy, audit)
    }

    /// As [`Store::restore`], on another disk.
    ///
    /// # Errors
    /// [`RestoreError`].
    #[doc(hidden)]
    pub fn restore_on(
        disk: Box<dyn Disk>,
        dir: &Path,
        from: RestoreFrom<'_>,
        passphrase: &Secret,
        cost: KdfCost,
        entropy: Arc<dyn Entropy>,
        audit: AuditDraft,
    ) -> Result<(Store, Restored), RestoreError> {
        store::prepare_folder(dir, passphrase)?;
        let file = key_file::open(from.key_file, from.shares)?;
        let source = NewSource::passphrase(passphrase, cost, &*entropy).map_err(|_| CreateError::Memory)?;
        let root = Zeroizing::new(entropy::array(&*entropy));
        let shares = Member { recipient: file.recipient.clone(), phase: Phase::Settled };
        let members = vec![source.member(), (Kind::Shares(file.set), shares)];
        let keyring = Keyring::build(file.store, &root, members, std::slice::from_ref(&file.epoch), &*entropy);
        store::begin_folder(dir, &keyring)?;
        let mut opened = Opened::new(file.store, &*entropy).map_err(Fault::from)?;
        opened.set_db(backend::create(&*disk, dir, opened.page_key())?);
        opened.keys.set_roots(&root, &file.epoch.key());
        put_keys(&mut opened, dir, &file)?;
        let restored = put_rows(&opened, dir, &*entropy, from.backups, &file, audit)?;
        let store = store::finish_folder(disk, dir, keyring, entropy, opened)?;
        Ok((store, restored))
    }
}

/// The rows of the key file, first of all: the others are authenticated by these keys.
fn put_keys(opened: &mut Opened, dir: &Path, file: &OpenedKeyFile) -> Result<(), RestoreError> {
    let txn = opened.begin()?;
    txn.create_tables()?;
    for (table, rows) in &file.rows {
        rows.iter().try_for_each(|(key, value)| txn.insert(*table, key, value).map(drop))?;
    }
    txn.commit()?;
    for shared in Shared::ALL {
        let key = shared_key(&Reader::new(opened, dir, opened.snapshot()?), shared)?;
        opened.keys.set_shared(shared, &key);
    }
    Ok(())
}

fn put_rows(
    opened: &Opened,
    dir: &Path,
    entropy: &dyn Entropy,
    backups: &mut [&mut dyn Read],
    file: &OpenedKeyFile,
    audit: AuditDraft,
) -> Result<Restored, RestoreError> {
    let mut writer = opened.writer(dir, entropy)?;
    let (mut before, mut at_ms) = (None, None);
    for from in backups.iter_mut() {
        let mut stream = StreamReader::new(from, stream_key(&opened.keys)).map_err(read_fault)?;
        let head = item::head(&mut stream)?;
        if head.store != file.store || head.base != before {
            return Err(RestoreError::Chain);
        }
        if head.format > format::VERSION {
            return Err(RestoreError::Newer);
        }
        if head.entries > file.entries {
            return Err(RestoreError::OldKeyFile);
        }
        (before, at_ms) = (Some(stream.name()), Some(head.at_ms));
        item::walk(&mut stream, &mut |given| take(&writer.txn, dir, given))?;
    }
    let at_ms = at_ms.ok_or(RestoreError::Chain)?;
    writer.txn.insert(Table::Anchor, store::FORMAT_KEY, &format::VERSION.to_le_bytes())?;
    // Tombstones of the key file are newer than those of the backup.
    for (table, rows) in file.rows.iter().filter(|(table, _)| *table == Table::Tombstones) {
        rows.iter().try_for_each(|(key, value)| writer.txn.insert(*table, key, value).map(drop))?;
    }
    let (rows, erased) = reconcile(&mut writer)?;
    store::put_run(&mut writer)?;
    writer.append_audit(&[AuditDraft { count: rows, ..audit }])?;
    writer.store_heads()?;
    let unwanted = std::mem::take(&mut writer.dropped_blobs);
    writer.commit()?;
    blobs::remove(dir, &unwanted);
    blobs::sweep(&Reader::new(opened, dir, opened.snapshot()?))?;
    Ok(Restored { rows, erased, at_ms })
}

fn take(txn: &Txn, dir: &Path, given: Given<'_>) -> Result<(), ReadError> {
    match given {
        // How many tombstones there are is said by the key file.
        Given::Row { table: Table::Tombstones, .. } | Given::Removed { table: Table::Tombstones, .. } => {}
        Given::Row { table, key, value } => drop(txn.insert(table, &key, &value)?),
        Given::Removed { table, key } => drop(txn.remove(table, &key)?),
        Given::Blob { id, file } => {
            files::replace(&blobs::path(dir, id), |out| io::copy(file, out).map(drop)).map_err(read_fault)?;
        }
    }
    Ok(())
}

/// Compares every row with the heads of the backup, then takes out what was erased since. Returns how many rows are left and
/// how many records were taken out.
fn reconcile(writer: &mut Writer<'_>) -> Result<(u64, u64), RestoreError> {
    let stones = writer.tombstones()?;
    let gone: BTreeSet<ClientId> = stones.iter().map(|stone| stone.client).collect();
    let found = fold(writer)?;
    for (group, stored) in &found.stored {
        let fresh = matches!(group, Group::Table(Table::Keys | Table::Current | Table::Tombstones));
        let erased = matches!(group, Group::Client(client, _) if gone.contains(client));
        if !fresh && !erased && found.computed.get(group).copied().unwrap_or_default() != *stored {
            return Err(RestoreError::Integrity("rows of the backup are missing or not those that belong together"));
        }
    }
    let covered = |group: &Group| found.stored.contains_key(group) || *group == Group::Table(Table::Tombstones);
    if !found.computed.iter().all(|(group, head)| covered(group) || *head == Head::default()) {
        return Err(RestoreError::Integrity("the backup holds rows that no head counts"));
    }
    // Records without a key: only an erasure takes the key of a record away.
    let listed: BTreeSet<RecordId> = stones.iter().flat_map(|stone| stone.records.iter().copied()).collect();
    for key in &found.keyless_records {
        if !listed.contains(&RecordId::from_bytes(id_bytes(key)?)) {
            return Err(RestoreError::OldKeyFile);
        }
        writer.txn.remove(Table::Records, key)?;
    }
    for table in [Table::Keys, Table::Current, Table::Tombstones] {
        let group = Group::Table(table);
        writer.replace_head(group, found.computed.get(&group).copied().unwrap_or_default());
    }
    for stone in &stones {
        writer.erase_traces(stone.client, &stone.records.iter().copied().collect())?;
    }
    for key in &found.keyless_blobs {
        let id = empathd_proto::BlobId::from_bytes(id_bytes(key)?);
        writer.delete(Table::Blobs, key, Purpose::Blob(id))?;
        writer.dropped_blobs.push(id);
    }
    let rows = Table::ALL.iter().map(|table| writer.count(*table)).sum::<Result<u64, _>>()?;
    Ok((rows, found.keyless_records.len() as u64))
}

/// What the rows of a database add up to.
#[derive(Default)]
struct Folded {
    computed: BTreeMap<Group, Head>,
    stored: BTreeMap<Group, Head>,
    keyless_records: Vec<Vec<u8>>,
    keyless_blobs: Vec<Vec<u8>>,
}

fn fold(reader: &Reader<'_>) -> Result<Folded, RestoreError> {
    let mut found = Folded::default();
    for table in Table::ALL.iter().copied().filter(|table| *table != Table::Anchor) {
        for row in reader.rows(table, &[]) {
            let (key, value) = row?;
            let id = envelope::key_id(&value).ok_or(ReadError::Integrity("a row of the backup is no envelope"))?;
            let keyless = reader.keys().by_id(id).is_none() && reader.raw(Table::Keys, &id)?.is_none();
            match (keyless, table) {
                (true, Table::Records) => found.keyless_records.push(key),
                (true, Table::Blobs) => {
                    let group = found.computed.entry(Group::Table(table)).or_default();
                    group.add(reader.keys(), table, &key, &value);
                    found.keyless_blobs.push(key);
                }
                _ => {
                    let (purpose, body) = reader.open(table, &key, &value)?;
                    if table == Table::Heads {
                        let (group, head) = format::decode::<(Group, Head)>(&body)?;
                        found.stored.insert(group, head);
                    }
                    if let Some(group) = Group::of(table, purpose) {
                        found.computed.entry(group).or_default().add(reader.keys(), table, &key, &value);
                    }
                }
            }
        }
    }
    found.stored.insert(Group::Root, reader.head(Group::Root)?);
    Ok(found)
}
