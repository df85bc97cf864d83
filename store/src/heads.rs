//! Table heads: for each group of rows a count and a keyed digest, kept in the same transaction as the rows, so that a row
//! that was removed, added or put back to an older state is noticed. What the rows hold is not known here.

use crate::error::{ReadError, WriteError};
use crate::format;
use crate::keys::{Keys, Purpose, Shared};
use crate::reader::Reader;
use crate::records::DataClass;
use crate::tables::Table;
use crate::writer::Writer;
use empathd_proto::ClientId;
use serde::{Deserialize, Serialize};

/// Key of the root head in the anchor table.
const ROOT_KEY: &[u8] = b"heads";

/// Rows that are counted together. `Root` comes last in the order: it covers the heads of all the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Group {
    /// All rows of a table.
    Table(Table),
    /// Records of one client in one class.
    Client(ClientId, DataClass),
    /// The heads themselves.
    Root,
}

/// Count and digest of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Rows.
    pub(crate) count: u64,
    /// Exclusive or of the keyed BLAKE3 digests of the rows. Who lacks the key cannot find rows that cancel each other.
    pub(crate) digest: [u8; 32],
}

impl Group {
    /// The group of a row of `table` sealed for `purpose`. The anchor is held by what it anchors, the audit trail by its
    /// tree.
    pub(crate) fn of(table: Table, purpose: Purpose) -> Option<Self> {
        match (table, purpose) {
            (Table::Anchor | Table::Audit, _) => None,
            (Table::Heads, _) => Some(Group::Root),
            (Table::Records, Purpose::Client(client, class)) => Some(Group::Client(client, class)),
            _ => Some(Group::Table(table)),
        }
    }

    /// Where its head lies.
    pub(crate) fn place(self, keys: &Keys) -> (Table, Vec<u8>) {
        match self {
            Group::Root => (Table::Anchor, ROOT_KEY.to_vec()),
            _ => (Table::Heads, keys.index(&[b"head", &format::encode(&self)]).to_vec()),
        }
    }
}

impl Head {
    /// Takes a row in.
    pub(crate) fn add(&mut self, keys: &Keys, table: Table, key: &[u8], value: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.mix(keys, table, key, value);
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, keys: &Keys, table: Table, key: &[u8], value: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.mix(keys, table, key, value);
    }

    /// Takes in the rows of another part of the group.
    pub(crate) fn merge(&mut self, other: Head) {
        self.count = self.count.wrapping_add(other.count);
        self.digest.iter_mut().zip(other.digest).for_each(|(mine, theirs)| *mine ^= theirs);
    }

    fn mix(&mut self, keys: &Keys, table: Table, key: &[u8], value: &[u8]) {
        let mut hasher = blake3::Hasher::new_keyed(keys.shared(Shared::Fold));
        hasher.update(&[table as u8]).update(&(key.len() as u64).to_le_bytes()).update(key).update(value);
        let row = hasher.finalize();
        self.digest.iter_mut().zip(row.as_bytes()).for_each(|(mine, theirs)| *mine ^= theirs);
    }
}

impl Reader<'_> {
    /// The head of a group as it is stored; of a group that never had a row, the empty one.
    pub(crate) fn head(&self, group: Group) -> Result<Head, ReadError> {
        let (table, key) = group.place(self.keys());
        match self.decoded::<(Group, Head)>(table, &key)? {
            Some((named, head)) if named == group => Ok(head),
            Some(_) => Err(ReadError::Integrity("a table head stands in another group's place")),
            None => Ok(Head::default()),
        }
    }
}

impl Writer<'_> {
    /// Stores every head that changed; the root last. Storing may itself reserve seals and so change a head again.
    pub(crate) fn store_heads(&mut self) -> Result<(), WriteError> {
        while let Some((group, head)) = self.next_changed_head() {
            let (table, key) = group.place(self.keys());
            self.put(table, &key, Purpose::Shared(Shared::Meta), &format::encode(&(group, head)))?;
        }
        Ok(())
    }
}
