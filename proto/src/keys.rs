//! Keys, erasure, backup and the observer's checklist on the admin socket: what is asked and what is answered. How a key is
//! made or kept is not known here.

use crate::ids::{AdapterId, ClientId, StoreId};
use crate::record::words;
use crate::secret::Secret;
use serde::{Deserialize, Serialize};

/// Most bytes of a backup's index that comes back for the next backup.
pub const MAX_INDEX_BYTES: u64 = 1024 * 1024 * 1024;
/// Longest name of a client.
pub const MAX_CLIENT_NAME_BYTES: usize = 1024;
/// Most recovery shares of one request.
pub const MAX_SHARES: usize = 3;
/// File name of a backup on its way out.
pub const BACKUP_FILE: &str = "backup";
/// File name of a backup's index on its way out.
pub const INDEX_FILE: &str = "index";
/// File name of a key file on its way out.
pub const KEY_FILE: &str = "keys";
/// File name of a client's records in an export.
pub const RECORDS_FILE: &str = "records.jsonl";

/// Which way in changes.
#[derive(Debug, Serialize, Deserialize)]
pub enum Rekey {
    /// The passphrase, after the present one proved who asks.
    Passphrase {
        /// What opens the store now.
        present: Secret,
        /// What will open it.
        new: Secret,
    },
    /// Three new recovery shares; the earlier ones open nothing any more.
    Shares,
    /// The systemd credential that the service loads, or none.
    Credential {
        /// Whether there is to be one.
        wanted: bool,
    },
}

words! {
    /// Why a client is erased.
    EraseReason {
        /// The client asked for it (GDPR Article 17).
        Request = "request",
        /// The time for which records are kept is over.
        Retention = "retention",
        /// A court or an authority ordered it.
        Order = "order",
        /// The record should never have been here.
        Mistake = "mistake",
    }

    /// How one point of the checklist stands.
    CheckState {
        /// As it should be.
        Ok = "ok",
        /// It works, and could be safer.
        Warn = "warn",
        /// It has to be mended.
        Fail = "fail",
    }
}

/// Recovery shares in their form on paper. They are shown once and kept nowhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Papers(pub Vec<Secret>);

impl PartialEq for Papers {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(Secret::expose).eq(other.0.iter().map(Secret::expose))
    }
}

/// How keys and the copies of them stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysReport {
    /// The store.
    pub store: StoreId,
    /// Number of the epoch in use.
    pub epoch: u64,
    /// Ways in: `passphrase`, `credential`, `shares`.
    pub ways_in: Vec<String>,
    /// Whether the kernel keeps the keys out of swap.
    pub locked: bool,
    /// The copies.
    pub care: Care,
}

/// When copies were last made, and whether a new key file is due.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Care {
    /// The last backup, milliseconds since the Unix epoch.
    pub backup_at_ms: Option<u64>,
    /// The last drill.
    pub drill: Option<Drill>,
    /// The last key file.
    pub key_file_at_ms: Option<u64>,
    /// The last erasure.
    pub erasure_at_ms: Option<u64>,
    /// Why a new key file has to be made, if it has to be.
    pub key_file_due: Option<String>,
}

/// A restore that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// When, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How long it took.
    pub took_ms: u64,
    /// Rows that came back and were checked.
    pub rows: u64,
}

/// A backup that was written, checked and sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSummary {
    /// Its name, hexadecimal.
    pub name: String,
    /// When its snapshot was taken, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Whether it holds only what changed since another one.
    pub incremental: bool,
    /// Rows in it.
    pub rows: u64,
    /// Rows that are gone since the backup before.
    pub removed: u64,
    /// Files in it.
    pub blobs: u64,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
}

/// A key file that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowSummary {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// A client that was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasureSummary {
    /// The client, as the store calls it.
    pub client: ClientId,
    /// Records that are gone.
    pub records: u64,
    /// Why.
    pub reason: EraseReason,
    /// Adapters that learned from the client and were retired.
    pub retired: Vec<AdapterId>,
    /// Training jobs whose checkpoints were thrown away.
    pub jobs_dropped: u64,
    /// Which adapter answers now.
    pub active: Option<AdapterId>,
}

/// A client whose records were exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientExportSummary {
    /// The client, as the store calls it.
    pub client: ClientId,
    /// Records in it.
    pub records: u64,
    /// Files, manifest and signature included.
    pub files: u32,
    /// Bytes of all of them.
    pub bytes: u64,
    /// The key that signed the manifest, base64.
    pub public_key: String,
}

/// One point of the checklist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it stands.
    pub state: CheckState,
    /// What was found.
    pub found: String,
    /// What to do next; empty when nothing is to be done.
    pub next: String,
}

/// The recovery shares in a text: shares are parted by empty lines, and lines that begin with `#` are for readers. At most
/// [`MAX_SHARES`] are taken.
#[must_use]
pub fn papers_in(text: &Secret) -> Vec<Secret> {
    let mut papers: Vec<String> = vec![String::with_capacity(text.expose().len())];
    for line in text.expose().lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        match papers.last_mut() {
            Some(paper) if !line.is_empty() => {
                paper.push_str(line);
                paper.push(' ');
            }
            Some(paper) if !paper.is_empty() => papers.push(String::with_capacity(text.expose().len())),
            _ => {}
        }
    }
    papers.into_iter().filter(|paper| !paper.is_empty()).take(MAX_SHARES).map(Secret::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_in_a_file_are_parted_by_empty_lines_and_comments_are_passed_over() {
        let text = "# share 1\nAAAA BBBB\nCCCC\n\n\n# share 2\nDDDD\n\n\n";
        let papers = papers_in(&Secret::new(text.to_owned()));
        assert_eq!(papers.iter().map(Secret::expose).collect::<Vec<_>>(), ["AAAA BBBB CCCC ", "DDDD "]);
        assert!(papers_in(&Secret::new("# nothing\n\n".to_owned())).is_empty());
        assert_eq!(papers_in(&Secret::new("A\n\nB\n\nC\n\nD".to_owned())).len(), MAX_SHARES);
    }
}
