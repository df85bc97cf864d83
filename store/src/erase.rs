//! Erasure of a client: keys, records and what leads to them leave in one transaction, under a new epoch, so that no copy of
//! a wrapped key opens; adapters that learned from the client are retired; a signed tombstone stays. A legal hold blocks it.
//! Who may erase, and what law asks for it, is not known here.

use crate::audit::{AuditDraft, signing_key};
use crate::envelope;
use crate::error::{ReadError, WriteError};
use crate::format;
use crate::heads::Group;
use crate::keys::{Keys, Purpose, Shared};
use crate::reader::{Reader, id_bytes};
use crate::records::DataClass;
use crate::store::Store;
use crate::tables::Table;
use crate::turn::Ways;
use crate::writer::{Writer, current_tag};
use ed25519_dalek::{Signature, Signer};
use empathd_proto::audit::AuditObject;
use empathd_proto::keys::EraseReason;
use empathd_proto::{AdapterId, ClientId, DatasetId, RecordId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What stays of an erased client. It names no person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The client.
    pub client: ClientId,
    /// Wall clock, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Why.
    pub reason: EraseReason,
    /// The records that were erased: cuts made before still name them.
    pub records: Vec<RecordId>,
    /// Ed25519, by the key that signs checkpoints.
    signature: Vec<u8>,
}

/// What an erasure did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// What stays.
    pub tombstone: Tombstone,
    /// Adapters that learned from the client; they are retired for good.
    pub retired: Vec<AdapterId>,
    /// Cuts that learn from the client: whatever else came out of them has to go, too.
    pub cuts: Vec<DatasetId>,
    /// Which adapter answers now; `None` is the base model.
    pub active: Option<AdapterId>,
}

impl Store {
    /// Erases a client who asked for it. When it returns, no key that is left opens anything of the client, in the database, its unused
    /// pages, or an earlier backup. The entry `audit` names the client and counts the records.
    ///
    /// # Errors
    /// [`WriteError::NotFound`] for an unknown client, [`WriteError::Transition`] under a legal hold; nothing is erased then.
    /// After an error of the disk it is done or not begun, which the next start or change settles.
    pub fn erase_client(&self, client: ClientId, audit: AuditDraft) -> Result<Erasure, WriteError> {
        self.erase_client_and(client, EraseReason::Request, audit, |_, _| Ok(()))
    }

    /// As [`Store::erase_client`], for any reason, with what `also` changes in the same transaction.
    ///
    /// # Errors
    /// As [`Store::erase_client`], and those of `also`.
    pub fn erase_client_and(
        &self,
        client: ClientId,
        reason: EraseReason,
        audit: AuditDraft,
        also: impl FnOnce(&mut Writer<'_>, &Erasure) -> Result<(), WriteError>,
    ) -> Result<Erasure, WriteError> {
        self.turn(audit, Ways::default(), |writer, audit| {
            let erasure = writer.erase(client, reason, audit.at_ms)?;
            also(writer, &erasure)?;
            audit.object = AuditObject::Client(client);
            audit.count = erasure.tombstone.records.len() as u64;
            Ok(erasure)
        })
    }
}

impl Tombstone {
    /// Whether this store made it.
    pub(crate) fn is_authentic(&self, keys: &Keys) -> bool {
        let Ok(signature) = Signature::from_slice(&self.signature) else { return false };
        signing_key(keys).verifying_key().verify_strict(&self.signed(keys), &signature).is_ok()
    }

    fn signed(&self, keys: &Keys) -> Vec<u8> {
        let body = format::encode(&(self.client, self.at_ms, self.reason, &self.records));
        [b"empathd/tombstone/1".as_slice(), keys.store().as_bytes(), &body].concat()
    }
}

impl Writer<'_> {
    /// Puts a client under a legal hold, or lifts it. False when it was so already.
    ///
    /// # Errors
    /// [`WriteError::NotFound`] for an unknown client.
    pub fn set_hold(&mut self, client: ClientId, held: bool) -> Result<bool, WriteError> {
        if self.current_of(Purpose::Client(client, DataClass::Record))?.is_none() {
            return Err(WriteError::NotFound("client"));
        }
        let key = hold_key(self.keys(), client);
        if self.is_held(client)? == held {
            return Ok(false);
        }
        if held {
            self.put(Table::Holds, &key, Purpose::Shared(Shared::Meta), &format::encode(&client))?;
        } else {
            self.delete(Table::Holds, &key, Purpose::Shared(Shared::Meta))?;
        }
        Ok(true)
    }

    fn erase(&mut self, client: ClientId, reason: EraseReason, at_ms: u64) -> Result<Erasure, WriteError> {
        if self.current_of(Purpose::Client(client, DataClass::Record))?.is_none() {
            return Err(WriteError::NotFound("client"));
        }
        if self.is_held(client)? {
            return Err(WriteError::Transition("a legal hold keeps this client's records; have it lifted first"));
        }
        let keys = self.keys_of(client)?;
        let records = self.erase_records(&keys)?;
        for (id, _) in &keys {
            self.delete(Table::Keys, id, Purpose::Epoch)?;
        }
        for class in DataClass::ALL {
            let tag = current_tag(self.keys(), Purpose::Client(client, class));
            self.delete(Table::Current, &tag, Purpose::Epoch)?;
        }
        self.forget_current(|purpose| matches!(purpose, Purpose::Client(owner, _) if owner == client));
        let (retired, cuts) = self.erase_traces(client, &records)?;
        let active = self.history()?.last().copied();
        let mut tombstone =
            Tombstone { client, at_ms, reason, records: records.into_iter().collect(), signature: Vec::new() };
        tombstone.signature = signing_key(self.keys()).sign(&tombstone.signed(self.keys())).to_bytes().to_vec();
        let key = *client.as_bytes();
        self.put(Table::Tombstones, &key, Purpose::Shared(Shared::Meta), &format::encode(&tombstone))?;
        Ok(Erasure { tombstone, retired, cuts, active })
    }

    /// Removes what leads to a client and its records, and retires the adapters that learned from them. Gives those, and
    /// the cuts that learn from them.
    pub(crate) fn erase_traces(
        &mut self,
        client: ClientId,
        records: &BTreeSet<RecordId>,
    ) -> Result<(Vec<AdapterId>, Vec<DatasetId>), WriteError> {
        self.erase_rows(Table::Contents, &|record: RecordId| records.contains(&record))?;
        self.erase_rows(Table::Clients, &|found: ClientId| found == client)?;
        let hold = hold_key(self.keys(), client);
        self.delete(Table::Holds, &hold, Purpose::Shared(Shared::Meta))?;
        for class in DataClass::ALL {
            self.drop_head(Group::Client(client, class))?;
        }
        let learned = self.datasets_with(records)?;
        let retired = self.withdraw_adapters(&learned)?;
        Ok((retired, learned.into_iter().collect()))
    }

    /// Removes the records that these keys seal.
    fn erase_records(&mut self, keys: &[(envelope::KeyId, Purpose)]) -> Result<BTreeSet<RecordId>, WriteError> {
        let mut found = Vec::new();
        for row in self.rows(Table::Records, &[]) {
            let (key, sealed) = row?;
            let by = envelope::key_id(&sealed);
            if let Some((_, purpose)) = keys.iter().find(|(id, _)| by == Some(*id)) {
                found.push((RecordId::from_bytes(id_bytes(&key)?), *purpose));
            }
        }
        for (record, purpose) in &found {
            self.delete(Table::Records, record.as_bytes(), *purpose)?;
        }
        Ok(found.into_iter().map(|(record, _)| record).collect())
    }

    /// Removes the rows of a table of the Meta key whose value fits.
    fn erase_rows<T: serde::de::DeserializeOwned>(
        &mut self,
        table: Table,
        fits: &dyn Fn(T) -> bool,
    ) -> Result<(), WriteError> {
        let mut found = Vec::new();
        for row in self.rows(table, &[]) {
            let (key, sealed) = row?;
            if fits(format::decode(&self.open(table, &key, &sealed)?.1)?) {
                found.push(key);
            }
        }
        for key in found {
            self.delete(table, &key, Purpose::Shared(Shared::Meta))?;
        }
        Ok(())
    }
}

impl Reader<'_> {
    /// The client that a source calls `external`, if there is one.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn client(&self, external: &str) -> Result<Option<ClientId>, ReadError> {
        self.decoded(Table::Clients, &self.keys().index(&[b"client", external.as_bytes()]))
    }

    /// Whether a client is under a legal hold.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn is_held(&self, client: ClientId) -> Result<bool, ReadError> {
        match self.decoded::<ClientId>(Table::Holds, &hold_key(self.keys(), client))? {
            Some(named) if named != client => Err(ReadError::Integrity("a legal hold stands in another's place")),
            found => Ok(found.is_some()),
        }
    }

    /// What stays of erased clients.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn tombstones(&self) -> Result<Vec<Tombstone>, ReadError> {
        self.rows(Table::Tombstones, &[])
            .map(|row| {
                let (key, sealed) = row?;
                let stone: Tombstone = format::decode(&self.open(Table::Tombstones, &key, &sealed)?.1)?;
                if stone.client.as_bytes().as_slice() == key && stone.is_authentic(self.keys()) {
                    Ok(stone)
                } else {
                    Err(ReadError::Integrity("a tombstone was not made by this store"))
                }
            })
            .collect()
    }

    /// Every key of a client, those that were replaced, too.
    fn keys_of(&self, client: ClientId) -> Result<Vec<(envelope::KeyId, Purpose)>, ReadError> {
        let mut found = Vec::new();
        for row in self.rows(Table::Keys, &[]) {
            let (key, sealed) = row?;
            let id =
                key.as_slice().try_into().map_err(|_| ReadError::Integrity("a key has a name of another length"))?;
            let (_, body) = self.open(Table::Keys, &key, &sealed)?;
            let (purpose, _) = self.unwrapped_key(id, &body)?;
            if matches!(purpose, Purpose::Client(owner, _) if owner == client) {
                found.push((id, purpose));
            }
        }
        Ok(found)
    }

    /// The cuts that learn from any of these records.
    fn datasets_with(&self, records: &BTreeSet<RecordId>) -> Result<BTreeSet<DatasetId>, ReadError> {
        let learns = |cut: &crate::DatasetCut| cut.train().iter().any(|record| records.contains(record));
        Ok(self.datasets()?.iter().filter(|cut| learns(cut)).map(crate::DatasetCut::id).collect())
    }
}

fn hold_key(keys: &Keys, client: ClientId) -> [u8; 16] {
    keys.index(&[b"hold", client.as_bytes()])
}
