//! The file `keyring`: from what a person, a machine or two papers hold to the root key, and from the root to the epoch
//! keys. It is replaced whole or not at all, and the file before it is overwritten. What an epoch key wraps is not known
//! here.

mod kdf;
mod v1;

use crate::backend::Disk;
use crate::entropy::{self, Entropy};
use crate::envelope::Key;
use crate::recipient::{Boxed, Opener, Recipient};
use crate::shares::{self, RecoveryShare, SetId};
use crate::wrapped::Wrapped;
use crate::{files, format};
use empathd_proto::{Secret, StoreId};
use hkdf::Hkdf;
pub use kdf::KdfCost;
use kdf::{Kdf, KdfError};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::io;
use std::path::Path;
use v1::KeyringV1;
use zeroize::{Zeroize, Zeroizing};

/// Its name in the state folder.
pub(crate) const FILE: &str = "keyring";
/// Version of the file's shape.
pub(crate) const VERSION: u32 = 2;
/// First bytes of the file.
const MAGIC: &[u8; 8] = b"EMPATHDK";
/// Bytes of the plain BLAKE3 checksum at the end, against accidents.
const CHECKSUM_BYTES: usize = 32;
/// Longest file that is read.
const MAX_BYTES: u64 = 64 * 1024;
/// Most sources: a passphrase, a credential and shares, each twice while they are being exchanged.
const MAX_SOURCES: usize = 6;
/// Epoch keys: the one in use, and while keys are being wrapped again the next one.
const MAX_EPOCHS: usize = 2;
/// Room for what the root seals: recipients and epoch keys.
const INNER_BYTES: usize = 1024;
/// Shortest credential.
const MIN_CREDENTIAL_BYTES: usize = 32;
/// Longest credential: systemd's own limit.
const MAX_CREDENTIAL_BYTES: usize = 1024 * 1024;

/// What opens a sealed store.
#[derive(Clone, Copy)]
pub enum Unlock<'a> {
    /// What a person knows.
    Passphrase(&'a Secret),
    /// What systemd hands over: at least 32 bytes that nobody can guess.
    Credential(&'a [u8]),
    /// Two or three of the papers.
    Shares(&'a [RecoveryShare]),
}

/// A way in that the keyring knows, for a person to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnlockSource {
    /// A passphrase.
    Passphrase,
    /// A credential of systemd.
    Credential,
    /// Recovery shares.
    Shares,
}

/// A way in as the file tells it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Passphrase(Kdf),
    Credential([u8; 16]),
    Shares(SetId),
}

/// A way in, with the root sealed to it.
#[derive(Clone, Serialize, Deserialize)]
struct Source {
    kind: Kind,
    root: Boxed,
}

/// Whether a way in stays when what is pending is done, or not done.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// It stays.
    Settled,
    /// It goes when the next epoch is in use.
    Leaving,
    /// It stays when the next epoch is in use.
    Coming,
}

/// What the root keeps of a way in, so that a new root can be sealed to it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) recipient: Recipient,
    pub(crate) phase: Phase,
}

/// An epoch key; overwritten when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize)]
#[zeroize(drop)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    key: [u8; 32],
}

/// What the root seals.
#[derive(Serialize, Deserialize)]
struct Inner {
    members: Vec<Member>,
    epochs: Vec<Epoch>,
}

/// The file's contents.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Keyring {
    store: StoreId,
    sources: Vec<Source>,
    inner: Wrapped,
}

/// A keyring of any format that is read.
#[derive(Clone)]
pub(crate) enum Held {
    /// An older release's.
    V1(KeyringV1),
    /// Today's.
    Now(Keyring),
}

/// Why the file cannot be used.
#[derive(Debug)]
pub(crate) enum KeyringError {
    /// There is none.
    Missing,
    /// Another format version.
    Version(u32),
    /// Not what was written.
    Damaged,
    /// The disk failed.
    Io(io::Error),
}

/// Why there are no keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UnlockError {
    /// It opens nothing.
    WrongSource,
    /// The keyring knows no such way in.
    NoSuchSource,
    /// What was given cannot be a source.
    Unfit(&'static str),
    /// Not enough memory.
    Memory,
    /// What was given is right and the rest is not.
    Damaged,
}

/// The root key and the epoch keys, the one in use first, the next after it.
#[derive(Clone)]
pub(crate) struct Unlocked {
    pub(crate) root: Key,
    pub(crate) epochs: Vec<Epoch>,
}

/// A way in that is put into the place of the one of its kind.
pub(crate) struct NewSource {
    kind: Kind,
    recipient: Recipient,
}

impl From<KdfError> for UnlockError {
    fn from(error: KdfError) -> Self {
        match error {
            KdfError::Memory => UnlockError::Memory,
            KdfError::Parameters => UnlockError::Damaged,
        }
    }
}

impl Epoch {
    /// An epoch with this number.
    pub(crate) fn new(number: u64, key: &Key) -> Self {
        Self { number, key: **key }
    }

    /// Its key.
    pub(crate) fn key(&self) -> Key {
        Zeroizing::new(self.key)
    }
}

impl NewSource {
    /// From a new passphrase.
    pub(crate) fn passphrase(new: &Secret, cost: KdfCost, entropy: &dyn Entropy) -> Result<Self, UnlockError> {
        let kdf = Kdf::new(cost, entropy);
        let recipient = Opener::new(&kdf.derive(new)?).recipient().clone();
        Ok(Self { kind: Kind::Passphrase(kdf), recipient })
    }

    /// From a new credential.
    pub(crate) fn credential(new: &[u8], entropy: &dyn Entropy) -> Result<Self, UnlockError> {
        let salt = entropy::array(entropy);
        let recipient = Opener::new(&credential_seed(&salt, new)?).recipient().clone();
        Ok(Self { kind: Kind::Credential(salt), recipient })
    }

    /// The way in by itself.
    pub(crate) fn member(self) -> (Kind, Member) {
        (self.kind, Member { recipient: self.recipient, phase: Phase::Settled })
    }

    /// New shares.
    pub(crate) fn shares(entropy: &dyn Entropy) -> (Self, [RecoveryShare; shares::SHARES]) {
        let seed = Zeroizing::new(entropy::array(entropy));
        let recipient = Opener::new(&seed).recipient().clone();
        let set = recipient.name();
        (Self { kind: Kind::Shares(set), recipient }, shares::split(&seed, set, entropy))
    }
}

impl Keyring {
    /// A new keyring with new keys.
    pub(crate) fn create(
        passphrase: &Secret,
        cost: KdfCost,
        entropy: &dyn Entropy,
    ) -> Result<(Self, Unlocked), UnlockError> {
        let store = StoreId::from_bytes(entropy::array(entropy));
        let source = NewSource::passphrase(passphrase, cost, entropy)?;
        let root = Zeroizing::new(entropy::array(entropy));
        let epochs = vec![Epoch::new(1, &Zeroizing::new(entropy::array(entropy)))];
        let members = vec![source.member()];
        let keyring = Self::build(store, &root, members, &epochs, entropy);
        Ok((keyring, Unlocked { root, epochs }))
    }

    /// Seals the root to every way in, and these and the epoch keys under the root.
    pub(crate) fn build(
        store: StoreId,
        root: &Key,
        members: Vec<(Kind, Member)>,
        epochs: &[Epoch],
        entropy: &dyn Entropy,
    ) -> Self {
        let seal = |(kind, member): &(Kind, Member)| {
            let root = member.recipient.seal(store, root, &root_context(store, kind), entropy);
            Source { kind: kind.clone(), root }
        };
        let sources: Vec<Source> = members.iter().map(seal).collect();
        let members = members.into_iter().map(|(_, member)| member).collect();
        let inner = Inner { members, epochs: epochs.to_vec() };
        // Into a buffer of fixed size: a growing one would leave copies of the keys behind.
        let mut buffer = Zeroizing::new([0; INNER_BYTES]);
        let body = postcard::to_slice(&inner, &mut *buffer).expect("six recipients and two keys fit");
        let inner = Wrapped::seal_body(root, store, body, &inner_context(store, &sources), entropy);
        Self { store, sources, inner }
    }

    /// The store's name.
    pub(crate) fn store(&self) -> StoreId {
        self.store
    }

    /// The epochs, the one in use first, the next after it.
    pub(crate) fn epochs(&self, root: &Key) -> Option<Vec<Epoch>> {
        self.inner(root).map(|mut inner| std::mem::take(&mut inner.epochs))
    }

    /// The keys that this opens.
    pub(crate) fn unlock(&self, with: Unlock<'_>) -> Result<Unlocked, UnlockError> {
        let mut met = false;
        for source in &self.sources {
            let Some(opener) = source.kind.opener(with)? else { continue };
            met = true;
            if let Some(root) = opener.open(self.store, &source.root, &root_context(self.store, &source.kind)) {
                let epochs = self.inner(&root).ok_or(UnlockError::Damaged)?.epochs;
                return Ok(Unlocked { root, epochs });
            }
        }
        Err(if met { UnlockError::WrongSource } else { UnlockError::NoSuchSource })
    }

    /// The keyring with a next epoch beside the present one, and with what changes in the ways in. Both the old and the
    /// new ones open it.
    pub(crate) fn pending(
        &self,
        root: &Key,
        next: Epoch,
        coming: Option<NewSource>,
        leaving: Option<UnlockSource>,
        entropy: &dyn Entropy,
    ) -> Option<Self> {
        let mut inner = self.inner(root)?;
        inner.epochs.truncate(1);
        inner.epochs.push(next);
        let leaves = |kind: &Kind| {
            leaving == Some(kind.source()) || coming.as_ref().is_some_and(|new| new.kind.source() == kind.source())
        };
        let mut members = self.members(&inner);
        members.iter_mut().filter(|(kind, _)| leaves(kind)).for_each(|(_, member)| member.phase = Phase::Leaving);
        if let Some(new) = coming {
            members.push((new.kind, Member { recipient: new.recipient, phase: Phase::Coming }));
        }
        Some(Self::build(self.store, root, members, &inner.epochs, entropy))
    }

    /// The keyring under a new root, in which nothing is pending any more. `done` says whether the next epoch is in use.
    pub(crate) fn settled(&self, old: &Key, done: bool, entropy: &dyn Entropy) -> Option<(Self, Unlocked)> {
        let mut inner = self.inner(old)?;
        if done && inner.epochs.len() > 1 {
            inner.epochs.remove(0);
        }
        inner.epochs.truncate(1);
        let mut members = self.members(&inner);
        members.retain(|(_, member)| member.phase != if done { Phase::Leaving } else { Phase::Coming });
        members.iter_mut().for_each(|(_, member)| member.phase = Phase::Settled);
        let root = Zeroizing::new(entropy::array(entropy));
        let keyring = Self::build(self.store, &root, members, &inner.epochs, entropy);
        let epochs = std::mem::take(&mut inner.epochs);
        Some((keyring, Unlocked { root, epochs }))
    }

    /// To whom the recovery shares belong.
    pub(crate) fn shares_recipient(&self, root: &Key) -> Option<(SetId, Recipient)> {
        let members = self.members(&self.inner(root)?);
        members.into_iter().find_map(|(kind, member)| match kind {
            Kind::Shares(set) if member.phase != Phase::Leaving => Some((set, member.recipient)),
            _ => None,
        })
    }

    /// The ways in, each once.
    pub(crate) fn sources(&self) -> Vec<UnlockSource> {
        let mut sources: Vec<_> = self.sources.iter().map(|source| source.kind.source()).collect();
        sources.dedup();
        sources
    }

    /// What the root seals; `None` when it is not the root, or the file was changed.
    fn inner(&self, root: &Key) -> Option<Inner> {
        let body = self.inner.open_body(root, self.store, &inner_context(self.store, &self.sources))?;
        let inner: Inner = format::decode(&body).ok()?;
        let fits = inner.members.len() == self.sources.len() && (1..=MAX_EPOCHS).contains(&inner.epochs.len());
        fits.then_some(inner)
    }

    fn members(&self, inner: &Inner) -> Vec<(Kind, Member)> {
        self.sources.iter().map(|source| source.kind.clone()).zip(inner.members.iter().cloned()).collect()
    }

    fn is_sane(&self) -> bool {
        let kdfs_are_sane = self.sources.iter().all(|source| match &source.kind {
            Kind::Passphrase(kdf) => kdf.is_sane(),
            Kind::Credential(_) | Kind::Shares(_) => true,
        });
        kdfs_are_sane && (1..=MAX_SOURCES).contains(&self.sources.len())
    }

    /// The file's bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        framed(VERSION, &format::encode(self))
    }

    /// Puts it into the place of the file that is there, whose bytes are overwritten.
    pub(crate) fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        disk.replace(&dir.join(FILE), &self.to_bytes())
    }
}

impl Held {
    /// The store's name.
    pub(crate) fn store(&self) -> StoreId {
        match self {
            Held::V1(keyring) => keyring.store,
            Held::Now(keyring) => keyring.store,
        }
    }

    /// The ways in.
    pub(crate) fn sources(&self) -> Vec<UnlockSource> {
        match self {
            Held::V1(_) => vec![UnlockSource::Passphrase],
            Held::Now(keyring) => keyring.sources(),
        }
    }

    /// The keys that this opens, and the keyring in today's format.
    pub(crate) fn unlock(&self, with: Unlock<'_>, entropy: &dyn Entropy) -> Result<(Unlocked, Keyring), UnlockError> {
        match (self, with) {
            (Held::Now(keyring), with) => Ok((keyring.unlock(with)?, keyring.clone())),
            (Held::V1(keyring), Unlock::Passphrase(passphrase)) => keyring.migrate(passphrase, entropy),
            (Held::V1(_), Unlock::Credential(_) | Unlock::Shares(_)) => Err(UnlockError::NoSuchSource),
        }
    }

    /// Whether the file is in today's format.
    pub(crate) fn is_current(&self) -> bool {
        matches!(self, Held::Now(_))
    }

    /// Reads the file of a state folder.
    pub(crate) fn read(dir: &Path) -> Result<Self, KeyringError> {
        let bytes = match files::read_bounded(&dir.join(FILE), MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(KeyringError::Missing),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Err(KeyringError::Damaged),
            Err(error) => return Err(KeyringError::Io(error)),
        };
        Self::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KeyringError> {
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(KeyringError::Damaged)?;
        let rest = content.strip_prefix(MAGIC).ok_or(KeyringError::Damaged)?;
        let (version, body) = rest.split_first_chunk().ok_or(KeyringError::Damaged)?;
        if blake3::hash(content) != *checksum {
            return Err(KeyringError::Damaged);
        }
        match u32::from_le_bytes(*version) {
            1 => {
                let old = format::decode::<KeyringV1>(body).ok().filter(|old| old.kdf.is_sane());
                old.map(Held::V1).ok_or(KeyringError::Damaged)
            }
            VERSION => {
                let now = format::decode::<Keyring>(body).ok().filter(Keyring::is_sane);
                now.map(Held::Now).ok_or(KeyringError::Damaged)
            }
            other => Err(KeyringError::Version(other)),
        }
    }
}

impl Kind {
    /// What a person sees of it.
    const fn source(&self) -> UnlockSource {
        match self {
            Kind::Passphrase(_) => UnlockSource::Passphrase,
            Kind::Credential(_) => UnlockSource::Credential,
            Kind::Shares(_) => UnlockSource::Shares,
        }
    }

    /// What was given, as an opener for this way in; `None` when it is for another.
    fn opener(&self, with: Unlock<'_>) -> Result<Option<Opener>, UnlockError> {
        let seed = match (self, with) {
            (Kind::Passphrase(kdf), Unlock::Passphrase(passphrase)) => kdf.derive(passphrase)?,
            (Kind::Credential(salt), Unlock::Credential(bytes)) => credential_seed(salt, bytes)?,
            (Kind::Shares(set), Unlock::Shares(shares)) => match shares_seed(shares)? {
                (of, seed) if of == *set => seed,
                _ => return Err(UnlockError::WrongSource),
            },
            _ => return Ok(None),
        };
        Ok(Some(Opener::new(&seed)))
    }
}

/// The seed of shares.
pub(crate) fn shares_seed(shares: &[RecoveryShare]) -> Result<(SetId, Key), UnlockError> {
    shares::combine(shares).map_err(|error| match error {
        shares::ShareError::TooFew => {
            UnlockError::Unfit("two different recovery shares are needed; take another of the three papers")
        }
        shares::ShareError::Sets => {
            UnlockError::Unfit("the recovery shares were not printed together; take papers of one set")
        }
        _ => UnlockError::Unfit("the recovery shares contradict each other; leave one out"),
    })
}

fn credential_seed(salt: &[u8; 16], credential: &[u8]) -> Result<Key, UnlockError> {
    if !(MIN_CREDENTIAL_BYTES..=MAX_CREDENTIAL_BYTES).contains(&credential.len()) {
        return Err(UnlockError::Unfit("a credential has 32 bytes to 1 MiB; make one with 32 random bytes"));
    }
    let mut seed = Key::default();
    let expanded = Hkdf::<Sha256>::new(Some(salt), credential).expand(b"empathd/credential/1", &mut *seed);
    expanded.expect("32 bytes are one block");
    Ok(seed)
}

/// What the root in a way in is bound to.
fn root_context(store: StoreId, kind: &Kind) -> Vec<u8> {
    [b"empathd/root/2".as_slice(), store.as_bytes(), &format::encode(kind)].concat()
}

/// What the epoch keys are bound to: everything else in the file.
fn inner_context(store: StoreId, sources: &Vec<Source>) -> Vec<u8> {
    [b"empathd/keyring/2".as_slice(), store.as_bytes(), &format::encode(sources)].concat()
}

fn framed(version: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = [MAGIC.as_slice(), &version.to_le_bytes(), body].concat();
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

#[cfg(test)]
mod tests;
