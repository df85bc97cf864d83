//! Backup: one snapshot as a stream of rows and files that are sealed already, without the keys that open them; whole, or
//! what changed since an earlier one. Where the stream goes, and to whom it is sealed once more, is not known here.

mod item;
mod key_file;
mod restore;
pub(crate) mod stream;

use crate::audit::AuditDraft;
use crate::blobs;
use crate::envelope::Key;
use crate::error::{Fault, ReadError, WriteError};
use crate::format;
use crate::keys::{Keys, Shared, derive};
use crate::reader::{Reader, id_bytes};
use crate::store::{Opened, Store};
use crate::tables::Table;
use empathd_proto::{BlobId, StoreId};
use item::{Item, put};
pub use key_file::fuzz_key_file;
pub use restore::{RestoreError, RestoreFrom, Restored};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;
use std::sync::RwLockWriteGuard;
use stream::{StreamReader, StreamWriter};
use subtle::ConstantTimeEq;

/// Tables that no backup holds: what opens the others leaves in the key file only.
const KEY_TABLES: [Table; 2] = [Table::Keys, Table::Current];
/// Bytes of the keyed digest at the end of an index.
const MAC_BYTES: usize = 32;

/// What a backup says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackupHead {
    pub(crate) store: StoreId,
    pub(crate) format: u32,
    pub(crate) at_ms: u64,
    /// The backup that this one goes on from.
    pub(crate) base: Option<[u8; 16]>,
    /// Audit entries at the snapshot.
    pub(crate) entries: u64,
}

/// What is in a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BackupCounts {
    /// Rows.
    pub rows: u64,
    /// Rows that are gone since the backup before.
    pub removed: u64,
    /// Files.
    pub blobs: u64,
}

/// A backup that was written.
pub struct Backup {
    /// Its name: random bytes.
    pub name: [u8; 16],
    /// What is in it.
    pub counts: BackupCounts,
    /// Give it to the next one, which then holds only what changed. It says nothing to who lacks the store's keys.
    pub index: Vec<u8>,
}

/// What a backup had of each row: enough to see whether it changed.
#[derive(Default, Serialize, Deserialize)]
struct Index {
    name: [u8; 16],
    rows: BTreeMap<(u8, Vec<u8>), [u8; 16]>,
}

impl Store {
    /// Writes a backup; with the index of an earlier one, what changed since. The stream authenticates itself and every
    /// value in it is sealed; seal it once more to a recipient whose private half is elsewhere before it leaves. The entry
    /// `audit` comes after it.
    ///
    /// # Errors
    /// [`WriteError::Invalid`] for an index that is not of this store, and those of the disk and of integrity.
    pub fn backup(&self, out: &mut dyn Write, since: Option<&[u8]>, audit: AuditDraft) -> Result<Backup, WriteError> {
        let backup = self.write_backup(out, since, audit.at_ms)?;
        self.record_audit(&[AuditDraft { count: backup.counts.rows, ..audit }])?;
        Ok(backup)
    }

    /// As [`Store::backup`], without an entry: whoever has checked what was written records it.
    ///
    /// # Errors
    /// As [`Store::backup`].
    pub fn write_backup(&self, out: &mut dyn Write, since: Option<&[u8]>, at_ms: u64) -> Result<Backup, WriteError> {
        let alone = self.ready_alone()?;
        let since = since.map(|bytes| Index::open(bytes, &alone.keys)).transpose()?;
        let reader = Reader::new(&alone, &self.dir, alone.snapshot()?);
        // Links keep the files of this snapshot while others drop theirs; the next start sweeps what a crash leaves.
        let links = Links::new(&reader)?;
        drop(reader);
        let snapshot = alone.snapshot()?;
        // From here on others read and change while this goes on.
        let shared = RwLockWriteGuard::downgrade(alone);
        let opened: &Opened = &shared;
        let reader = Reader::new(opened, &self.dir, snapshot);
        let name = crate::entropy::array(&*self.entropy);
        let written = write(&reader, out, name, since, &links, at_ms);
        drop(reader);
        drop(shared);
        written
    }

    /// Reads a backup of this store to its end and authenticates every byte.
    ///
    /// # Errors
    /// [`ReadError::Integrity`] when it is not what this store wrote, whole; those of the disk.
    pub fn check_backup(&self, from: &mut dyn Read) -> Result<BackupCounts, ReadError> {
        let key = self.read(|reader| Ok::<_, ReadError>(stream_key(reader.keys())))?;
        let mut stream = StreamReader::new(from, key).map_err(read_fault)?;
        let head = item::head(&mut stream)?;
        if head.store != self.id() {
            return Err(ReadError::Integrity("the backup is of another store"));
        }
        item::walk(&mut stream, &mut |_| Ok(()))
    }
}

fn write(
    reader: &Reader<'_>,
    out: &mut dyn Write,
    name: [u8; 16],
    since: Option<Index>,
    links: &Links,
    at_ms: u64,
) -> Result<Backup, WriteError> {
    let (base, mut before) = since.map_or((None, BTreeMap::new()), |index| (Some(index.name), index.rows));
    let head = BackupHead {
        store: reader.keys().store(),
        format: format::VERSION,
        at_ms,
        base,
        entries: reader.audit_count()?,
    };
    let mut stream = StreamWriter::new(out, stream_key(reader.keys()), &name).map_err(Fault::from)?;
    put(&mut stream, &Item::Head(head))?;
    let mut counts = BackupCounts::default();
    let mut index = Index { name, rows: BTreeMap::new() };
    for table in Table::ALL.iter().copied().filter(|table| !KEY_TABLES.contains(table)) {
        for row in reader.rows(table, &[]) {
            let (key, value) = row?;
            let digest = row_digest(reader.keys(), &value);
            let place = (table as u8, key);
            if before.remove(&place) != Some(digest) {
                counts.rows += 1;
                put(&mut stream, &Item::Row { table, key: place.1.clone(), value })?;
                if table == Table::Blobs {
                    counts.blobs += 1;
                    put_blob(&mut stream, links, BlobId::from_bytes(id_bytes(&place.1)?))?;
                }
            }
            index.rows.insert(place, digest);
        }
    }
    for (table, key) in before.into_keys() {
        if let Some(table) = Table::ALL.iter().copied().find(|one| *one as u8 == table) {
            counts.removed += 1;
            put(&mut stream, &Item::Removed { table, key })?;
        }
    }
    put(&mut stream, &Item::End(counts))?;
    stream.finish().map_err(Fault::from)?;
    Ok(Backup { name, counts, index: index.seal(reader.keys()) })
}

fn put_blob(stream: &mut StreamWriter<'_>, links: &Links, id: BlobId) -> Result<(), WriteError> {
    let file = File::open(links.path(id)).map_err(Fault::from)?;
    let bytes = file.metadata().map_err(Fault::from)?.len();
    put(stream, &Item::Blob { id, bytes })?;
    let copied = io::copy(&mut BufReader::new(file).take(bytes), stream).map_err(Fault::from)?;
    if copied == bytes { Ok(()) } else { Err(WriteError::Integrity("the file of a blob became shorter")) }
}

/// Second names of the files of blobs, for as long as a backup reads them.
struct Links {
    paths: BTreeMap<BlobId, PathBuf>,
}

impl Links {
    fn new(reader: &Reader<'_>) -> Result<Self, WriteError> {
        let mut links = Self { paths: BTreeMap::new() };
        for row in reader.rows(Table::Blobs, &[]) {
            let id = BlobId::from_bytes(id_bytes(&row?.0)?);
            let path = blobs::path(reader.dir(), id);
            let link = path.with_added_extension(crate::files::TEMPORARY);
            crate::files::remove(&link).map_err(Fault::from)?;
            match fs::hard_link(&path, &link) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(WriteError::Integrity("the file of a blob is missing"));
                }
                linked => linked.map_err(Fault::from)?,
            }
            links.paths.insert(id, link);
        }
        Ok(links)
    }

    fn path(&self, id: BlobId) -> PathBuf {
        self.paths.get(&id).cloned().unwrap_or_default()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // What cannot be removed now is swept at the next start.
        self.paths.values().for_each(|path| drop(crate::files::remove(path)));
    }
}

impl Index {
    fn seal(&self, keys: &Keys) -> Vec<u8> {
        let mut bytes = format::encode(self);
        let mac = blake3::keyed_hash(&index_key(keys), &bytes);
        bytes.extend_from_slice(mac.as_bytes());
        bytes
    }

    fn open(bytes: &[u8], keys: &Keys) -> Result<Self, WriteError> {
        let foreign = WriteError::Invalid("this is not the index of a backup of this store; write a whole backup");
        let Some((content, mac)) = bytes.split_last_chunk::<MAC_BYTES>() else { return Err(foreign) };
        if !bool::from(blake3::keyed_hash(&index_key(keys), content).as_bytes().ct_eq(mac)) {
            return Err(foreign);
        }
        Ok(format::decode(content)?)
    }
}

fn row_digest(keys: &Keys, value: &[u8]) -> [u8; 16] {
    let digest = blake3::keyed_hash(&index_key(keys), value);
    let (half, _) = digest.as_bytes().split_first_chunk().expect("32 bytes have 16");
    *half
}

/// The key that authenticates backups of a store: who has it can write one, and read none.
pub(crate) fn stream_key(keys: &Keys) -> Key {
    derive(keys.shared(Shared::Fold), b"empathd/backup-stream/1")
}

fn index_key(keys: &Keys) -> Key {
    derive(keys.shared(Shared::Fold), b"empathd/backup-index/1")
}

/// What a failed read of a stream means: bytes that do not authenticate or end early are no fault of the disk.
pub(crate) fn read_fault(error: io::Error) -> ReadError {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            ReadError::Integrity("the backup is not what the store wrote, or not all of it")
        }
        _ => ReadError::Io(error),
    }
}

/// Reads hostile bytes as a backup, for a fuzzer: as a stream, and as what comes out of one. It must return.
#[doc(hidden)]
pub fn fuzz_backup(bytes: &[u8]) {
    let mut from = bytes;
    let mut ignore = |_: item::Given<'_>| Ok(());
    if let Ok(mut stream) = StreamReader::new(&mut from, Key::default()) {
        let _ = item::head(&mut stream).and_then(|_| item::walk(&mut stream, &mut ignore));
    }
    let mut from = bytes;
    let _ = item::head(&mut from);
    let _ = item::walk_items(&mut from, &mut ignore);
}
