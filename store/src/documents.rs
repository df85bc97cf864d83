//! Documents: small sealed values that the daemon names itself, such as certificates and jobs. What they say is not known
//! here.

use crate::error::{ReadError, WriteError};
use crate::keys::{Keys, Purpose, Shared};
use crate::reader::Reader;
use crate::tables::Table;
use crate::writer::Writer;
use zeroize::Zeroizing;

/// What a document is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DocKind {
    /// An enrolled certificate.
    Cert = 1,
    /// A job.
    Job = 2,
    /// A setting.
    Setting = 3,
    /// The clinic's certificate authority.
    Authority = 4,
}

impl DocKind {
    /// All of them.
    pub const ALL: &'static [DocKind] = &[DocKind::Cert, DocKind::Job, DocKind::Setting, DocKind::Authority];

    /// What the keys of this kind begin with.
    fn prefix(self, keys: &Keys) -> [u8; 16] {
        keys.index(&[b"kind", &[self as u8]])
    }

    fn key(self, keys: &Keys, id: &[u8; 16]) -> Vec<u8> {
        [self.prefix(keys), keys.index(&[b"doc", &[self as u8], id])].concat()
    }
}

impl Writer<'_> {
    /// Seals a document; an older one of this name is replaced.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn put_doc(&mut self, kind: DocKind, id: [u8; 16], body: &[u8]) -> Result<(), WriteError> {
        let named = Zeroizing::new([id.as_slice(), body].concat());
        let key = kind.key(self.keys(), &id);
        self.put(Table::Docs, &key, Purpose::Shared(Shared::Docs), &named)
    }

    /// Removes a document; false when there was none.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn drop_doc(&mut self, kind: DocKind, id: [u8; 16]) -> Result<bool, WriteError> {
        let key = kind.key(self.keys(), &id);
        self.delete(Table::Docs, &key, Purpose::Shared(Shared::Docs))
    }
}

impl Reader<'_> {
    /// A document.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn doc(&self, kind: DocKind, id: [u8; 16]) -> Result<Option<Zeroizing<Vec<u8>>>, ReadError> {
        let Some((_, named)) = self.value(Table::Docs, &kind.key(self.keys(), &id))? else { return Ok(None) };
        Ok(Some(split(&named)?.1))
    }

    /// All documents of a kind, in the order of their identifiers.
    ///
    /// # Errors
    /// [`ReadError`].
    #[expect(clippy::type_complexity, reason = "identifier and body, nothing to name")]
    pub fn docs(&self, kind: DocKind) -> Result<Vec<([u8; 16], Zeroizing<Vec<u8>>)>, ReadError> {
        let mut found = Vec::new();
        for row in self.rows(Table::Docs, &kind.prefix(self.keys())) {
            let (key, sealed) = row?;
            found.push(split(&self.open(Table::Docs, &key, &sealed)?.1)?);
        }
        found.sort_unstable_by_key(|(id, _)| *id);
        Ok(found)
    }
}

/// Identifier and body of a sealed document.
fn split(named: &[u8]) -> Result<([u8; 16], Zeroizing<Vec<u8>>), ReadError> {
    let (id, body) = named.split_first_chunk().ok_or(ReadError::Integrity("a document has no name"))?;
    Ok((*id, Zeroizing::new(body.to_vec())))
}

/// Whether a document lies where its name says, for the check of the whole state.
pub(crate) fn is_in_place(keys: &Keys, key: &[u8], named: &[u8]) -> bool {
    named.first_chunk().is_some_and(|id| DocKind::ALL.iter().any(|kind| kind.key(keys, id) == key))
}
