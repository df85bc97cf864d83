//! The newest audit checkpoint this user has seen, kept on the tool's side, so that a trail that was cut back or
//! rewritten is noticed even when the whole appliance was replaced by an older copy. It refuses to know how a trail is
//! checked in full: that is the daemon's work, asked for with the kept checkpoint in hand.

use crate::error::CtlError;
use empathd_proto::StoreId;
use empathd_proto::audit::checkpoint::MAX_TEXT_BYTES;
use empathd_proto::audit::{Checkpoint, SignedCheckpoint};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the origin of a checkpoint begins with, before the store's identifier.
const ORIGIN: &str = "empathd/";
/// Longest kept file: a note, a key and the JSON around them.
const MAX_FILE_BYTES: u64 = 2 * MAX_TEXT_BYTES as u64;

/// The folder of kept checkpoints: `$XDG_STATE_HOME/empathd`, else `~/.local/state/empathd`.
#[must_use]
pub fn state_dir(xdg_state_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let given = |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    given(xdg_state_home).or_else(|| given(home).map(|home| home.join(".local/state"))).map(|dir| dir.join("empathd"))
}

/// The store whose trail a checkpoint fixes.
///
/// # Errors
/// [`CtlError::Alarm`] when the checkpoint is not signed by the key it names or names no store.
pub fn read(signed: &SignedCheckpoint) -> Result<(StoreId, Checkpoint), CtlError> {
    let checkpoint =
        signed.verify().map_err(|error| CtlError::Alarm(format!("empathd's checkpoint is no good: {error}")))?;
    let store = checkpoint.origin.strip_prefix(ORIGIN).and_then(|id| id.parse().ok());
    store.map(|store| (store, checkpoint)).ok_or_else(|| CtlError::Alarm("empathd's checkpoint names no store".into()))
}

/// The kept checkpoint of this store, if there is one.
///
/// # Errors
/// [`CtlError::File`] when it cannot be read; [`CtlError::Alarm`] when it was altered.
pub fn known(dir: &Path, store: StoreId) -> Result<Option<SignedCheckpoint>, CtlError> {
    let path = path(dir, store);
    let failed = |source| CtlError::File { doing: "read", path: path.clone(), source };
    let mut text = String::new();
    match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(failed)?,
    };
    let altered = || CtlError::Alarm(format!("the kept checkpoint {} was altered", path.display()));
    let signed: SignedCheckpoint = serde_json::from_str(&text).map_err(|_| altered())?;
    match read(&signed) {
        Ok((of, _)) if of == store => Ok(Some(signed)),
        _ => Err(altered()),
    }
}

/// Keeps this checkpoint in place of the last one, whole or not at all.
///
/// # Errors
/// [`CtlError::File`].
pub fn keep(dir: &Path, store: StoreId, signed: &SignedCheckpoint) -> Result<(), CtlError> {
    let path = path(dir, store);
    let fresh = path.with_extension("checkpoint.new");
    let write = || -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec(signed)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)
    };
    write().map_err(|source| CtlError::File { doing: "write", path: path.clone(), source })
}

/// Why `now` cannot come after `before`, as far as the two alone can show it.
#[must_use]
pub fn contradiction(before: &SignedCheckpoint, now: &SignedCheckpoint) -> Option<String> {
    let (Ok((_, old)), Ok((_, new))) = (read(before), read(now)) else {
        return Some("a checkpoint is not validly signed".into());
    };
    if before.public_key != now.public_key {
        return Some("the trail is signed by another key than before".into());
    }
    if new.size < old.size {
        return Some(format!("the trail had {} entries and now has {}", old.size, new.size));
    }
    (new.size == old.size && new.root != old.root).then(|| format!("the trail of {} entries was rewritten", old.size))
}

fn path(dir: &Path, store: StoreId) -> PathBuf {
    dir.join(format!("{store}.checkpoint"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const STORE: StoreId = StoreId::from_bytes([1; 16]);

    fn signed(size: u64, root: u8) -> SignedCheckpoint {
        crate::commands::fake::checkpoint(STORE, size, root)
    }

    #[test]
    fn a_kept_checkpoint_returns_for_its_own_store_only() {
        let home = tempfile::tempdir().expect("folder");
        let dir = home.path().join("state/empathd");
        assert_eq!(known(&dir, STORE).expect("none yet"), None);
        keep(&dir, STORE, &signed(3, 1)).expect("kept");
        keep(&dir, STORE, &signed(5, 2)).expect("kept over it");
        assert_eq!(known(&dir, STORE).expect("read"), Some(signed(5, 2)));
        let file = dir.join(format!("{STORE}.checkpoint"));
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).expect("there").permissions().mode() & 0o777, 0o700);
        let other = StoreId::from_bytes([2; 16]);
        fs::rename(&file, dir.join(format!("{other}.checkpoint"))).expect("moved");
        assert_eq!(known(&dir, other).expect_err("of another store").exit_code(), 7);
    }

    #[test]
    fn what_cannot_follow_is_named() {
        assert_eq!(contradiction(&signed(3, 1), &signed(3, 1)), None);
        assert_eq!(contradiction(&signed(3, 1), &signed(4, 9)), None);
        assert!(contradiction(&signed(3, 1), &signed(2, 1)).is_some_and(|why| why.contains("now has 2")));
        assert!(contradiction(&signed(3, 1), &signed(3, 2)).is_some_and(|why| why.contains("rewritten")));
        let mut forged = signed(4, 1);
        forged.note = forged.note.replacen("\n4\n", "\n5\n", 1);
        assert!(contradiction(&signed(3, 1), &forged).is_some());
    }

    #[test]
    fn the_folder_follows_the_user() {
        let dir = |xdg: Option<&str>, home: Option<&str>| state_dir(xdg.map(Into::into), home.map(Into::into));
        assert_eq!(dir(Some("/s"), Some("/h")), Some("/s/empathd".into()));
        assert_eq!(dir(Some("relative"), Some("/h")), Some("/h/.local/state/empathd".into()));
        assert_eq!(dir(None, None), None);
    }
}
