//! From the errors of the rooms to the problem a caller sees: a code, what happened, what to do next. An error's own
//! text already says both; none of it can hold clinical text.

use empathd_proto::problem::{ErrorCode, Problem};
use empathd_store::{CreateError, KeyError, OpenError, ReadError, RestoreError, SealError, UnsealError, WriteError};

/// A problem on its way out of a store transaction.
#[derive(Debug)]
pub struct Fault(pub Problem);

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        fault.0
    }
}

macro_rules! faults {
    ($($error:ty => $map:path;)*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self($map(error))
            }
        }
    )*};
}

faults! {
    ReadError => from_read;
    WriteError => from_write;
    UnsealError => from_unseal;
    CreateError => from_create;
    OpenError => from_open;
    SealError => from_seal;
    crate::certs::CertError => Problem::from;
}

/// What happened as a sentence, and the next step from the part after the semicolon.
fn told(code: ErrorCode, error: &dyn std::error::Error) -> Problem {
    let text = error.to_string();
    let (what, next) = text.rsplit_once("; ").unwrap_or((&text, ""));
    Problem::new(code, sentence(what), sentence(next))
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let Some(first) = letters.next() else { return String::new() };
    let mut out: String = first.to_uppercase().chain(letters).collect();
    if !out.ends_with(['.', '!', '?']) && !out.contains(": empath") {
        out.push('.');
    }
    out
}

/// Of a failed read.
#[must_use]
pub fn from_read(error: ReadError) -> Problem {
    let code = match error {
        ReadError::Sealed => ErrorCode::Sealed,
        ReadError::Integrity(_) => ErrorCode::Integrity,
        ReadError::NotFound(_) => ErrorCode::NotFound,
        ReadError::Io(_) => ErrorCode::Storage,
    };
    told(code, &error)
}

/// Of a failed change.
#[must_use]
pub fn from_write(error: WriteError) -> Problem {
    let code = match error {
        WriteError::Sealed => ErrorCode::Sealed,
        WriteError::Integrity(_) => ErrorCode::Integrity,
        WriteError::NotFound(_) => ErrorCode::NotFound,
        WriteError::Transition(_) | WriteError::Invalid(_) => ErrorCode::Conflict,
        WriteError::TooLarge { .. } => ErrorCode::TooLarge,
        WriteError::DiskFull | WriteError::Io(_) => ErrorCode::Storage,
    };
    told(code, &error)
}

/// Of a store that stays sealed.
#[must_use]
pub fn from_unseal(error: UnsealError) -> Problem {
    let code = match error {
        UnsealError::AlreadyUnsealed | UnsealError::InUse => ErrorCode::Conflict,
        UnsealError::WrongPassphrase | UnsealError::WrongSource(_) => ErrorCode::WrongPassphrase,
        UnsealError::Version { .. } => ErrorCode::StoreVersion,
        UnsealError::Integrity(_) => ErrorCode::Integrity,
        UnsealError::Memory => ErrorCode::Busy,
        UnsealError::DiskFull | UnsealError::Io(_) => ErrorCode::Storage,
    };
    told(code, &error)
}

/// Of keys that were not changed.
#[must_use]
pub fn from_key(error: KeyError) -> Problem {
    match error {
        KeyError::WrongSource => told(ErrorCode::WrongPassphrase, &error),
        KeyError::Unfit(_) => told(ErrorCode::Conflict, &error),
        KeyError::Memory => told(ErrorCode::Busy, &error),
        KeyError::Write(error) => from_write(error),
    }
}

/// Of a store that did not come out of a backup.
#[must_use]
pub fn from_restore(error: RestoreError) -> Problem {
    match error {
        RestoreError::Create(error) => from_create(error),
        RestoreError::OldKeyFile | RestoreError::Chain => told(ErrorCode::Conflict, &error),
        RestoreError::Newer => told(ErrorCode::StoreVersion, &error),
        RestoreError::Integrity(_) => told(ErrorCode::Integrity, &error),
    }
}

/// Of a store that could not be made.
#[must_use]
pub fn from_create(error: CreateError) -> Problem {
    let code = match error {
        CreateError::Exists | CreateError::KeyringMissing => ErrorCode::Conflict,
        CreateError::EmptyPassphrase => ErrorCode::BadRequest,
        CreateError::Memory => ErrorCode::Busy,
        CreateError::DiskFull | CreateError::Io(_) => ErrorCode::Storage,
    };
    told(code, &error)
}

/// Of a state folder that could not be opened.
#[must_use]
pub fn from_open(error: OpenError) -> Problem {
    let code = match error {
        OpenError::NotInitialised => ErrorCode::NotInitialised,
        OpenError::Version { .. } => ErrorCode::StoreVersion,
        OpenError::Integrity(_) => ErrorCode::Integrity,
        OpenError::Io(_) => ErrorCode::Storage,
    };
    told(code, &error)
}

/// Of a stop that could not be recorded.
#[must_use]
pub fn from_seal(error: SealError) -> Problem {
    told(ErrorCode::Storage, &error)
}

/// A defect of the appliance: something ended that never should.
#[must_use]
pub fn defect(what: &str) -> Problem {
    Problem::new(ErrorCode::Internal, what, "See the log of the daemon; what was not finished was not kept.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_and_the_next_step_are_told_apart() {
        let problem = from_read(ReadError::Sealed);
        assert_eq!(problem.code, ErrorCode::Sealed);
        assert_eq!(problem.detail, "The store is sealed.");
        assert_eq!(problem.next, "Run: empathctl unseal");
        let problem = from_write(WriteError::DiskFull);
        assert_eq!(problem.next, "Free some space and try again.");
    }
}
