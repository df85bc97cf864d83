//! Changing: everything that enters the database passes here, sealed under the right key with a fresh nonce, counted in
//! the head of its group. What the values mean is known by the files of their kind.

use crate::entropy::{self, Entropy};
use crate::envelope::{self, Key, KeyId};
use crate::error::{Fault, ReadError, WriteError};
use crate::format;
use crate::heads::{Group, Head};
use crate::keys::{Keys, Purpose, ROTATE_AFTER_SEALS, SEALS_PER_RESERVATION, Shared, id_of};
use crate::reader::{Reader, context};
use crate::tables::Table;
use empathd_proto::BlobId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// Room for a key with its purpose.
const WRAPPED_KEY_BYTES: usize = 96;
/// Largest body of one value.
pub(crate) const MAX_VALUE_BYTES: usize = 256 * 1024 * 1024;

/// Seals that each shared key has made, as far as this process knows. Aborted changes count too.
pub(crate) struct Seals(Mutex<HashMap<KeyId, u64>>);

impl Seals {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Counts one more seal of a key whose row has `reserved`; returns how many there are now. What an earlier process
    /// reserved counts as spent.
    fn count(&self, id: KeyId, reserved: u64) -> u64 {
        let mut seals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = seals.entry(id).or_insert(reserved);
        *used += 1;
        *used
    }

    #[cfg(test)]
    pub(crate) fn set(&self, id: KeyId, used: u64) {
        self.0.lock().expect("no panic").insert(id, used);
    }
}

/// The key in use for a purpose, and how many seals are reserved for it on disk.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Current {
    pub(crate) id: KeyId,
    reserved: u64,
}

/// One change, open. It reads what it has written so far.
pub struct Writer<'s> {
    reader: Reader<'s>,
    entropy: &'s dyn Entropy,
    current: HashMap<Purpose, (Current, Key)>,
    heads: BTreeMap<Group, Head>,
    changed_heads: BTreeSet<Group>,
    /// How long the audit trail is with the entries of this change; 0 when it has none.
    pub(crate) entries: u64,
    pub(crate) written_blobs: Vec<BlobId>,
    pub(crate) dropped_blobs: Vec<BlobId>,
}

impl<'s> Deref for Writer<'s> {
    type Target = Reader<'s>;

    fn deref(&self) -> &Reader<'s> {
        &self.reader
    }
}

impl<'s> Writer<'s> {
    pub(crate) fn new(reader: Reader<'s>, entropy: &'s dyn Entropy) -> Self {
        Self {
            reader,
            entropy,
            current: HashMap::new(),
            heads: BTreeMap::new(),
            changed_heads: BTreeSet::new(),
            entries: 0,
            written_blobs: Vec::new(),
            dropped_blobs: Vec::new(),
        }
    }

    /// Fresh random bytes, for identifiers.
    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        entropy::array(self.entropy)
    }

    /// Seals a body and puts it in its row.
    pub(crate) fn put(&mut self, table: Table, key: &[u8], purpose: Purpose, body: &[u8]) -> Result<(), WriteError> {
        if body.len() > MAX_VALUE_BYTES {
            return Err(WriteError::TooLarge { bytes: body.len() as u64, limit: MAX_VALUE_BYTES as u64 });
        }
        let (id, data_key) = self.sealing_key(purpose)?;
        let context = context(self.keys(), table, key);
        let sealed = match purpose {
            Purpose::Shared(_) => envelope::seal(id, &data_key, &self.random(), &context, body),
            Purpose::Epoch | Purpose::Client(..) | Purpose::Adapter(_) | Purpose::Blob(_) => {
                envelope::seal_uncounted(id, &data_key, &self.random(), &context, body)
            }
        };
        let head = self.changing_head(table, purpose)?;
        let old = self.noted(self.txn.insert(table, key, &sealed))?;
        if let Some(group) = head {
            let keys = self.keys();
            let head = self.heads.entry(group).or_default();
            if let Some(old) = old {
                head.remove(keys, table, key, &old);
            }
            head.add(keys, table, key, &sealed);
        }
        Ok(())
    }

    /// Takes a row of this purpose out; false when there was none.
    pub(crate) fn delete(&mut self, table: Table, key: &[u8], purpose: Purpose) -> Result<bool, WriteError> {
        let head = self.changing_head(table, purpose)?;
        let Some(old) = self.noted(self.txn.remove(table, key))? else {
            self.undoubted(|doubt| doubt.absence(table))?;
            return Ok(false);
        };
        if let Some(group) = head {
            let keys = self.keys();
            self.heads.entry(group).or_default().remove(keys, table, key, &old);
        }
        Ok(true)
    }

    /// Destroys the key of a purpose, so that nothing sealed with it opens again in this database.
    pub(crate) fn forget_key(&mut self, purpose: Purpose) -> Result<(), WriteError> {
        if let Some((current, _)) = self.current_of(purpose)? {
            self.delete(Table::Keys, &current.id, Purpose::Epoch)?;
            let tag = current_tag(self.keys(), purpose);
            self.delete(Table::Current, &tag, Purpose::Epoch)?;
            self.current.remove(&purpose);
        }
        Ok(())
    }

    /// Wraps every key again under the epoch key that seals now.
    pub(crate) fn wrap_again(&mut self) -> Result<(), WriteError> {
        for table in [Table::Keys, Table::Current] {
            let names: Vec<Vec<u8>> =
                self.rows(table, &[]).map(|row| row.map(|(key, _)| key)).collect::<Result<_, _>>()?;
            for name in names {
                let (_, body) = self.value(table, &name)?.ok_or(WriteError::Integrity("a key vanished"))?;
                self.put(table, &name, Purpose::Epoch, &body)?;
            }
        }
        Ok(())
    }

    /// Wraps a key, makes it the one in use for its purpose.
    pub(crate) fn adopt_key(&mut self, purpose: Purpose, key: Key) -> Result<(Current, Key), WriteError> {
        let id = id_of(&key, self.keys().store());
        if self.raw(Table::Keys, &id)?.is_some() {
            return Err(WriteError::Integrity("two keys have the same name"));
        }
        // Into a buffer of fixed size: a growing one would leave copies of the key behind.
        let mut buffer = Zeroizing::new([0; WRAPPED_KEY_BYTES]);
        let body = postcard::to_slice(&(purpose, *key), &mut *buffer);
        let body = body.map_err(|_| WriteError::Integrity("a key does not fit its row"))?;
        self.put(Table::Keys, &id, Purpose::Epoch, body)?;
        self.use_key(purpose, Current { id, reserved: 0 }, key)
    }

    /// The key in use for a purpose, if there is one.
    pub(crate) fn current_of(&mut self, purpose: Purpose) -> Result<Option<(Current, Key)>, ReadError> {
        if let Some(found) = self.current.get(&purpose) {
            return Ok(Some(found.clone()));
        }
        let Some(current) = self.decoded::<Current>(Table::Current, &current_tag(self.keys(), purpose))? else {
            return Ok(None);
        };
        let (named, key) = self.key(current.id)?;
        if named != purpose {
            return Err(ReadError::Integrity("a key in use has another purpose"));
        }
        self.current.insert(purpose, (current, key.clone()));
        Ok(Some((current, key)))
    }

    /// Forgets which keys are in use for some purposes, after their rows were removed.
    pub(crate) fn forget_current(&mut self, of: impl Fn(Purpose) -> bool) {
        self.current.retain(|purpose, _| !of(*purpose));
    }

    /// Puts a head that was computed anew into the place of the stored one.
    pub(crate) fn replace_head(&mut self, group: Group, head: Head) {
        self.heads.insert(group, head);
        self.changed_heads.insert(group);
    }

    /// Removes the head of a group that has no rows any more.
    pub(crate) fn drop_head(&mut self, group: Group) -> Result<(), WriteError> {
        self.heads.remove(&group);
        self.changed_heads.remove(&group);
        let (table, key) = group.place(self.keys());
        self.delete(table, &key, Purpose::Shared(Shared::Meta))?;
        Ok(())
    }

    /// The next head that changed and is not stored yet; the root when no other is left.
    pub(crate) fn next_changed_head(&mut self) -> Option<(Group, Head)> {
        let group = self.changed_heads.pop_first()?;
        Some((group, self.heads.get(&group).copied().unwrap_or_default()))
    }

    /// Makes the change durable.
    pub(crate) fn commit(self) -> Result<(), Fault> {
        let opened = self.reader.opened();
        opened.noted(self.reader.txn.commit())?;
        opened.acknowledge(self.entries);
        Ok(())
    }

    /// Drops the change.
    pub(crate) fn abort(self) {
        self.reader.txn.abort();
    }

    pub(crate) fn noted<T>(&self, result: Result<T, Fault>) -> Result<T, Fault> {
        self.opened().noted(result)
    }

    /// The key to seal with, made at first sight. A shared key counts its seals and is replaced before its limit.
    fn sealing_key(&mut self, purpose: Purpose) -> Result<(KeyId, Key), WriteError> {
        if purpose == Purpose::Epoch {
            return Ok(self.keys().epoch());
        }
        let found = self.current_of(purpose)?;
        let (mut current, mut key) = match (found, purpose) {
            (Some(found), _) => found,
            (None, Purpose::Shared(_)) => return Err(WriteError::Integrity("a shared key is missing")),
            (None, _) => {
                let key = Zeroizing::new(self.random());
                self.adopt_key(purpose, key)?
            }
        };
        if matches!(purpose, Purpose::Shared(_)) {
            let mut used = self.opened().seals.count(current.id, current.reserved);
            if used > ROTATE_AFTER_SEALS {
                let fresh = Zeroizing::new(self.random());
                (current, key) = self.adopt_key(purpose, fresh)?;
                used = self.opened().seals.count(current.id, current.reserved);
            }
            if used > current.reserved {
                let reserved = used + SEALS_PER_RESERVATION;
                (current, key) = self.use_key(purpose, Current { reserved, ..current }, key)?;
            }
        }
        Ok((current.id, key))
    }

    /// Writes which key is in use for a purpose.
    fn use_key(&mut self, purpose: Purpose, current: Current, key: Key) -> Result<(Current, Key), WriteError> {
        let tag = current_tag(self.keys(), purpose);
        self.put(Table::Current, &tag, Purpose::Epoch, &format::encode(&current))?;
        self.current.insert(purpose, (current, key.clone()));
        Ok((current, key))
    }

    /// The group whose head a row of this purpose changes, with that head loaded.
    fn changing_head(&mut self, table: Table, purpose: Purpose) -> Result<Option<Group>, ReadError> {
        let Some(group) = Group::of(table, purpose) else { return Ok(None) };
        if !self.heads.contains_key(&group) {
            let head = self.head(group)?;
            self.heads.insert(group, head);
        }
        self.changed_heads.insert(group);
        Ok(Some(group))
    }
}

/// Where the key in use for a purpose is noted. Shared keys have a plain number: the index key is one of them.
pub(crate) fn current_tag(keys: &Keys, purpose: Purpose) -> Vec<u8> {
    match purpose {
        Purpose::Shared(shared) => vec![shared as u8],
        _ => keys.index(&[b"current", &format::encode(&purpose)]).to_vec(),
    }
}

/// The key that a shared purpose uses now, for a reader that has no shared keys yet.
pub(crate) fn shared_key(reader: &Reader<'_>, shared: Shared) -> Result<Key, ReadError> {
    let missing = ReadError::Integrity("a shared key is missing");
    let Some(current) = reader.decoded::<Current>(Table::Current, &[shared as u8])? else { return Err(missing) };
    match reader.key(current.id)? {
        (Purpose::Shared(named), key) if named == shared => Ok(key),
        _ => Err(missing),
    }
}
