//! What can go wrong, one enum for each family of operation. A message says what happened and what to do next; it never
//! holds a key, a passphrase, an identifier or clinical text. How an error is shown to a caller is not known here.

use std::io;

/// What the disk or the database answered. Inside this crate only; each family of operation gives it its own name.
#[derive(Debug)]
pub(crate) enum Fault {
    /// No space left, or a quota reached.
    DiskFull,
    /// Any other answer of the operating system.
    Io(io::Error),
    /// The database file is not what the database wrote.
    Damaged(&'static str),
    /// Another process has the file open.
    InUse,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Fault::DiskFull,
            _ => Fault::Io(error),
        }
    }
}

impl From<redb::StorageError> for Fault {
    fn from(error: redb::StorageError) -> Self {
        match error {
            redb::StorageError::Io(error) => error.into(),
            redb::StorageError::Corrupted(_) | redb::StorageError::LockPoisoned(_) => {
                Fault::Damaged("the database file is damaged")
            }
            other => Fault::Io(io::Error::other(other)),
        }
    }
}

impl From<redb::TableError> for Fault {
    fn from(error: redb::TableError) -> Self {
        match error {
            redb::TableError::Storage(error) => error.into(),
            _ => Fault::Damaged("a table is missing or has another shape"),
        }
    }
}

impl From<redb::TransactionError> for Fault {
    fn from(error: redb::TransactionError) -> Self {
        match error {
            redb::TransactionError::Storage(error) => error.into(),
            other => Fault::Io(io::Error::other(other)),
        }
    }
}

impl From<redb::CommitError> for Fault {
    fn from(error: redb::CommitError) -> Self {
        match error {
            redb::CommitError::Storage(error) => error.into(),
            other => Fault::Io(io::Error::other(other)),
        }
    }
}

impl From<redb::DatabaseError> for Fault {
    fn from(error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::Storage(error) => error.into(),
            redb::DatabaseError::DatabaseAlreadyOpen => Fault::InUse,
            _ => Fault::Damaged("the database file has another form"),
        }
    }
}

/// Why a store could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is a store already.
    #[error("this folder holds a store already; unseal it, or choose another folder")]
    Exists,
    /// A database lies there without its keyring.
    #[error(
        "this folder holds a database whose keyring is missing; restore the file `keyring`, or choose another folder"
    )]
    KeyringMissing,
    /// The passphrase is empty.
    #[error("the passphrase is empty; choose one that others cannot guess")]
    EmptyPassphrase,
    /// Not enough memory for the key derivation.
    #[error("there is not enough memory to derive a key from the passphrase; free some and try again")]
    Memory,
    /// The disk is full.
    #[error("the disk is full; free some space and try again")]
    DiskFull,
    /// The disk failed.
    #[error("the state folder cannot be written ({0}); check the disk and the folder's permissions")]
    Io(io::Error),
}

/// Why a state folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no store.
    #[error("there is no store in this folder; run: empathctl init")]
    NotInitialised,
    /// Another version of the format.
    #[error("the store has format {found} and this program knows {supported}; install the release that wrote it")]
    Version {
        /// Of the file.
        found: u32,
        /// Of this program.
        supported: u32,
    },
    /// A file is not what the store wrote.
    #[error("{0}; restore the state folder from a backup")]
    Integrity(&'static str),
    /// The disk failed.
    #[error("the state folder cannot be read ({0}); check the disk and the folder's permissions")]
    Io(io::Error),
}

/// Why a store stays sealed.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// It is unsealed.
    #[error("the store is unsealed already; nothing is to be done")]
    AlreadyUnsealed,
    /// The passphrase opens nothing.
    #[error("the passphrase does not open this store; check it and try again")]
    WrongPassphrase,
    /// The credential or the shares open nothing.
    #[error("{0}")]
    WrongSource(&'static str),
    /// Another version of the format.
    #[error("the database has format {found} and this program knows {supported}; install the release that wrote it")]
    Version {
        /// Of the database.
        found: u32,
        /// Of this program.
        supported: u32,
    },
    /// Something does not authenticate.
    #[error("{0}; stop the appliance, run `empathd verify`, and restore the state folder from a backup")]
    Integrity(&'static str),
    /// Another process has the database open.
    #[error("another process has this store open; stop it first")]
    InUse,
    /// Not enough memory for the key derivation.
    #[error("there is not enough memory to derive the key from the passphrase; free some and try again")]
    Memory,
    /// The disk is full.
    #[error("the disk is full; free some space and unseal again")]
    DiskFull,
    /// The disk failed.
    #[error("the state folder cannot be used ({0}); check the disk and unseal again")]
    Io(io::Error),
}

/// Why keys were not changed. The store opens as before.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// What was given to prove who asks opens nothing.
    #[error("what was given does not open this store, so nothing was changed; check it and try again")]
    WrongSource,
    /// What was given cannot become a way in.
    #[error("{0}")]
    Unfit(&'static str),
    /// Not enough memory for the key derivation.
    #[error("there is not enough memory to derive a key from the passphrase; free some and try again")]
    Memory,
    /// The change failed.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Why the orderly stop could not be recorded. The keys have left memory all the same.
#[derive(Debug, thiserror::Error)]
#[error(
    "the keys have left memory, but the orderly stop could not be recorded ({0}); check the disk, then unseal and seal again"
)]
pub struct SealError(pub(crate) WriteError);

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Keys are not in memory.
    #[error("the store is sealed; run: empathctl unseal")]
    Sealed,
    /// A value does not authenticate, or something is missing that must be there.
    #[error("{0}; stop the appliance, run `empathd verify`, and restore the state folder from a backup")]
    Integrity(&'static str),
    /// No such dataset, adapter or blob.
    #[error("there is no such {0} in the store")]
    NotFound(&'static str),
    /// The disk failed.
    #[error("the state folder cannot be read ({0}); check the disk")]
    Io(io::Error),
}

/// Why a change did not happen. Nothing of it is in the store.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Keys are not in memory.
    #[error("the store is sealed; run: empathctl unseal")]
    Sealed,
    /// A value does not authenticate, or something is missing that must be there.
    #[error("{0}; stop the appliance, run `empathd verify`, and restore the state folder from a backup")]
    Integrity(&'static str),
    /// What the change refers to is not there.
    #[error("there is no such {0} in the store")]
    NotFound(&'static str),
    /// The adapter does not stand where this step begins.
    #[error("{0}")]
    Transition(&'static str),
    /// A value that cannot be meant.
    #[error("{0}")]
    Invalid(&'static str),
    /// Larger than a value may be.
    #[error("the value has {bytes} bytes and may have {limit}; split it")]
    TooLarge {
        /// It has.
        bytes: u64,
        /// It may have.
        limit: u64,
    },
    /// The disk is full.
    #[error("the disk is full and the change was not made; free some space and try again")]
    DiskFull,
    /// The disk failed. Whether the last change is durable is known after the database was opened again.
    #[error("the disk refused the change ({0}); check the disk and try again")]
    Io(io::Error),
}

/// Why a state folder could not be checked at all.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no store.
    #[error("there is no store in this folder; give the folder that holds the file `keyring`")]
    NotAStore,
    /// The passphrase opens nothing.
    #[error("the passphrase does not open this store; check it and try again")]
    WrongPassphrase,
    /// Another version of the format.
    #[error(
        "the store has format {found} and this program knows {supported}; verify it with the release that wrote it"
    )]
    Version {
        /// Of the store.
        found: u32,
        /// Of this program.
        supported: u32,
    },
    /// A running appliance has it open.
    #[error("the appliance is running on this store; stop it first")]
    InUse,
    /// Not enough memory for the key derivation.
    #[error("there is not enough memory to derive the key from the passphrase; free some and try again")]
    Memory,
    /// The disk failed.
    #[error("the state folder cannot be read ({0}); check the disk and the folder's permissions")]
    Io(io::Error),
}

impl From<Fault> for ReadError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::DiskFull => ReadError::Io(io::ErrorKind::StorageFull.into()),
            Fault::Io(error) => ReadError::Io(error),
            Fault::Damaged(what) => ReadError::Integrity(what),
            Fault::InUse => ReadError::Io(io::ErrorKind::ResourceBusy.into()),
        }
    }
}

impl ReadError {
    /// What the disk or the database answered, when it is asked for below the barrier.
    pub(crate) fn into_fault(self) -> Fault {
        match self {
            ReadError::Integrity(what) => Fault::Damaged(what),
            ReadError::Io(error) => error.into(),
            ReadError::Sealed | ReadError::NotFound(_) => Fault::Damaged("the database lacks what it must hold"),
        }
    }
}

impl From<Fault> for WriteError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::DiskFull => WriteError::DiskFull,
            other => ReadError::from(other).into(),
        }
    }
}

impl From<ReadError> for WriteError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Sealed => WriteError::Sealed,
            ReadError::Integrity(what) => WriteError::Integrity(what),
            ReadError::NotFound(what) => WriteError::NotFound(what),
            ReadError::Io(error) => WriteError::Io(error),
        }
    }
}

impl From<Fault> for UnsealError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::DiskFull => UnsealError::DiskFull,
            Fault::Io(error) => UnsealError::Io(error),
            Fault::Damaged(what) => UnsealError::Integrity(what),
            Fault::InUse => UnsealError::InUse,
        }
    }
}

impl From<WriteError> for UnsealError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::DiskFull => UnsealError::DiskFull,
            WriteError::Io(error) => UnsealError::Io(error),
            WriteError::Integrity(what) => UnsealError::Integrity(what),
            other => UnsealError::Io(io::Error::other(other)),
        }
    }
}

impl From<ReadError> for UnsealError {
    fn from(error: ReadError) -> Self {
        WriteError::from(error).into()
    }
}

impl From<Fault> for CreateError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::DiskFull => CreateError::DiskFull,
            Fault::Io(error) => CreateError::Io(error),
            Fault::Damaged(what) => CreateError::Io(io::Error::other(what)),
            Fault::InUse => CreateError::Io(io::ErrorKind::ResourceBusy.into()),
        }
    }
}

impl From<WriteError> for CreateError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::DiskFull => CreateError::DiskFull,
            WriteError::Io(error) => CreateError::Io(error),
            other => CreateError::Io(io::Error::other(other)),
        }
    }
}
