//! The key file: every data key that is left, under the epoch key, which is sealed to the recovery shares. With it and two
//! shares any backup opens; it is written anew after each erasure and with each backup. Where it is kept is not known here.

use crate::audit::AuditDraft;
use crate::envelope::Key;
use crate::error::{KeyError, ReadError, WriteError};
use crate::format;
use crate::keyring::{Epoch, UnlockSource, shares_seed};
use crate::keys::derive;
use crate::reader::Reader;
use crate::recipient::{Boxed, Opener, Recipient};
use crate::shares::RecoveryShare;
use crate::store::Store;
use crate::tables::{Row, Table};
use crate::writer::Writer;
use empathd_proto::StoreId;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

/// First bytes of the file.
const MAGIC: &[u8; 8] = b"EMPATHDE";
/// Version of the file.
const VERSION: u32 = 1;
/// Longest head.
const MAX_HEAD_BYTES: usize = 1024;
/// Bytes of the keyed digest at the end.
const MAC_BYTES: usize = 32;
/// Tables that it holds.
const TABLES: [Table; 3] = [Table::Keys, Table::Current, Table::Tombstones];

/// What is read before the shares are asked.
#[derive(Serialize, Deserialize)]
struct Head {
    store: StoreId,
    set: [u8; 4],
    epoch: u64,
    key: Boxed,
}

/// What only the shares show.
#[derive(Serialize, Deserialize)]
struct Body {
    /// Audit entries when it was written.
    entries: u64,
    rows: Vec<(Table, Vec<Row>)>,
}

/// A key file that two shares opened.
pub(crate) struct OpenedKeyFile {
    pub(crate) store: StoreId,
    pub(crate) epoch: Epoch,
    pub(crate) entries: u64,
    pub(crate) rows: Vec<(Table, Vec<Row>)>,
    /// To whom the next keyring seals its root, so that the shares stay good.
    pub(crate) set: [u8; 4],
    pub(crate) recipient: Recipient,
}

impl Store {
    /// The key file as it is now. Keep the newest, away from the backups; destroy older ones: with two shares an older one
    /// opens what was erased since. The entry `audit` is written before it is given out.
    ///
    /// # Errors
    /// [`KeyError::Unfit`] when there are no recovery shares yet.
    pub fn key_file(&self, audit: AuditDraft) -> Result<Vec<u8>, KeyError> {
        self.key_file_and(audit, |_| Ok(()))
    }

    /// As [`Store::key_file`], with what `also` changes in the transaction of the entry.
    ///
    /// # Errors
    /// As [`Store::key_file`], and those of `also`.
    pub fn key_file_and(
        &self,
        audit: AuditDraft,
        also: impl FnOnce(&mut Writer<'_>) -> Result<(), WriteError>,
    ) -> Result<Vec<u8>, KeyError> {
        if !self.unlock_sources().contains(&UnlockSource::Shares) {
            return Err(KeyError::Unfit("there are no recovery shares yet; have them made first"));
        }
        self.change(audit, |writer, _| also(writer))?;
        let opened = self.ready_alone()?;
        let root = opened.keys.root();
        let keyring = self.keyring().map_err(WriteError::from)?;
        let damaged = || KeyError::Write(WriteError::Integrity("the keyring in memory is damaged"));
        let Some((set, recipient)) = keyring.shares_recipient(&root) else {
            return Err(KeyError::Unfit("there are no recovery shares yet; have them made first"));
        };
        let epoch = keyring.epochs(&root).and_then(|epochs| epochs.into_iter().next()).ok_or_else(damaged)?;
        let context = context(self.id(), epoch.number);
        let key = recipient.seal(self.id(), &epoch.key(), &context, &*self.entropy);
        let reader = Reader::new(&opened, &self.dir, opened.snapshot().map_err(WriteError::from)?);
        let rows = TABLES.iter().map(|table| {
            let rows = reader.rows(*table, &[]).collect::<Result<Vec<Row>, _>>().map_err(WriteError::from)?;
            Ok::<_, KeyError>((*table, rows))
        });
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let entries = reader.audit_count().map_err(WriteError::from)?;
        let head = format::encode(&Head { store: self.id(), set, epoch: epoch.number, key });
        let body = format::encode(&Body { entries, rows });
        let length = (head.len() as u32).to_le_bytes();
        let mut bytes = [MAGIC.as_slice(), &VERSION.to_le_bytes(), &length, &head, &body].concat();
        let mac = blake3::keyed_hash(&mac_key(&epoch.key()), &bytes);
        bytes.extend_from_slice(mac.as_bytes());
        Ok(bytes)
    }
}

/// What a key file holds, opened with shares. Nothing behind the sealed epoch key is parsed before it authenticates.
pub(crate) fn open(bytes: &[u8], shares: &[RecoveryShare]) -> Result<OpenedKeyFile, ReadError> {
    let damaged = || ReadError::Integrity("the key file is not what the store wrote");
    let wrong = || ReadError::Integrity("these recovery shares do not open the key file");
    let (set, seed) = shares_seed(shares).map_err(|_| wrong())?;
    let (content, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or_else(damaged)?;
    let (head, body) = parts(content).ok_or_else(damaged)?;
    let head: Head = format::decode(head).map_err(|_| damaged())?;
    if head.set != set {
        return Err(wrong());
    }
    let opener = Opener::new(&seed);
    let key = opener.open(head.store, &head.key, &context(head.store, head.epoch)).ok_or_else(wrong)?;
    if !bool::from(blake3::keyed_hash(&mac_key(&key), content).as_bytes().ct_eq(mac)) {
        return Err(damaged());
    }
    let Body { entries, rows } = format::decode(body).map_err(|_| damaged())?;
    if rows.iter().any(|(table, _)| !TABLES.contains(table)) {
        return Err(damaged());
    }
    let (store, epoch) = (head.store, Epoch::new(head.epoch, &key));
    Ok(OpenedKeyFile { store, epoch, entries, rows, set, recipient: opener.recipient().clone() })
}

/// Head and body.
fn parts(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let (version, rest) = content.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let fits = u32::from_le_bytes(*version) == VERSION && length <= MAX_HEAD_BYTES.min(rest.len());
    fits.then(|| rest.split_at(length))
}

fn context(store: StoreId, epoch: u64) -> Vec<u8> {
    [b"empathd/key-file/1".as_slice(), store.as_bytes(), &epoch.to_le_bytes()].concat()
}

fn mac_key(epoch: &Key) -> Key {
    derive(epoch, b"empathd/key-file-mac/1")
}

/// Reads hostile bytes as a key file, for a fuzzer: with shares that fit nothing, and past the seal. It must return.
#[doc(hidden)]
pub fn fuzz_key_file(bytes: &[u8]) {
    if let Some((head, body)) = parts(bytes) {
        let _ = format::decode::<Head>(head);
        let _ = format::decode::<Body>(body);
    }
}
