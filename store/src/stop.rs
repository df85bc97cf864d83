//! The stop seal: after an orderly stop, a keyed digest of every file of the state folder, so that any byte changed while
//! the appliance is off is noticed, in unused pages of the database too. What the files mean is not known here.

use crate::envelope::Key;
use crate::findings::Findings;
use crate::{files, format};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use subtle::ConstantTimeEq;

/// Its name in the state folder.
pub(crate) const FILE: &str = "stop.seal";
/// First bytes of the file.
const MAGIC: &[u8; 8] = b"EMPATHDS";
/// Bytes of the keyed digest at the end.
const MAC_BYTES: usize = 32;
/// Longest stop seal that is read.
const MAX_BYTES: u64 = 512 * 1024 * 1024;
/// Most files in a state folder.
const MAX_FILES: usize = 1_000_000;
/// Deepest folder in a state folder.
const MAX_DEPTH: usize = 16;

/// Everything under a state folder by its relative path, except sockets and the stop seal.
type Listing = BTreeMap<Vec<u8>, Entry>;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    kind: Kind,
    bytes: u64,
    digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    File,
    /// A symbolic link; the digest is of where it points.
    Link,
    /// A device or a pipe; it is not read.
    Other,
}

/// Writes the stop seal of a state folder at rest.
pub(crate) fn write(dir: &Path, key: &Key) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&format::SCHEMA.to_le_bytes());
    bytes.extend(format::encode(&list(dir, key)?));
    let mac = blake3::keyed_hash(key, &bytes);
    files::replace(&dir.join(FILE), |file| {
        file.write_all(&bytes)?;
        file.write_all(mac.as_bytes())
    })
}

/// Whether the folder has one.
pub(crate) fn exists(dir: &Path) -> bool {
    dir.join(FILE).symlink_metadata().is_ok()
}

/// Removes it: the folder is about to change.
pub(crate) fn consume(dir: &Path) -> io::Result<()> {
    if exists(dir) {
        files::remove(&dir.join(FILE))?;
        files::sync_dir(dir)?;
    }
    Ok(())
}

/// Compares every file with the stop seal.
pub(crate) fn check(dir: &Path, key: &Key, findings: &mut Findings) -> io::Result<()> {
    let bytes = match files::read_bounded(&dir.join(FILE), MAX_BYTES) {
        Err(error) if matches!(error.kind(), io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput) => Vec::new(),
        read => read?,
    };
    let Some(sealed) = parse(&bytes, key) else {
        findings.add(format!("{FILE}: altered; what the other files should be is not known"));
        return Ok(());
    };
    let mut found = list(dir, key)?;
    for (path, entry) in &sealed {
        let shown = String::from_utf8_lossy(path);
        match found.remove(path) {
            None => findings.add(format!("{shown}: removed since the orderly stop")),
            Some(now) if now != *entry => findings.add(format!("{shown}: altered since the orderly stop")),
            Some(_) => {}
        }
    }
    for path in found.keys() {
        findings.add(format!("{}: added since the orderly stop", String::from_utf8_lossy(path)));
    }
    Ok(())
}

/// The listing of a stop seal; `None` when it is not authentic.
fn parse(bytes: &[u8], key: &Key) -> Option<Listing> {
    let (content, mac) = bytes.split_last_chunk::<MAC_BYTES>()?;
    if !bool::from(blake3::keyed_hash(key, content).as_bytes().ct_eq(mac)) {
        return None;
    }
    let (version, body) = content.strip_prefix(MAGIC)?.split_first_chunk()?;
    (u32::from_le_bytes(*version) == format::SCHEMA).then(|| format::decode(body).ok()).flatten()
}

fn list(dir: &Path, key: &Key) -> io::Result<Listing> {
    let mut listing = Listing::new();
    let mut folders = vec![(dir.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let relative = path.strip_prefix(dir).unwrap_or(&path);
            if kind.is_socket() || relative == Path::new(FILE) {
                continue;
            }
            if kind.is_dir() && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
                continue;
            }
            if listing.len() >= MAX_FILES {
                return Err(io::Error::other("the state folder holds more files than a stop seal may have"));
            }
            listing.insert(relative.as_os_str().as_bytes().to_vec(), digest(&path, kind, key)?);
        }
    }
    Ok(listing)
}

fn digest(path: &Path, kind: fs::FileType, key: &Key) -> io::Result<Entry> {
    let mut hasher = blake3::Hasher::new_keyed(key);
    if kind.is_symlink() {
        let target = fs::read_link(path)?;
        hasher.update(target.as_os_str().as_bytes());
        return Ok(Entry { kind: Kind::Link, bytes: 0, digest: hasher.finalize().into() });
    }
    if !kind.is_file() {
        return Ok(Entry { kind: Kind::Other, bytes: 0, digest: hasher.finalize().into() });
    }
    let file = files::open(path)?;
    let bytes = file.metadata()?.len();
    hasher.update_reader(file)?;
    Ok(Entry { kind: Kind::File, bytes, digest: hasher.finalize().into() })
}
