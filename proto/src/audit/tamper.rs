//! What somebody who holds the machine and its signing key can do to a trail: edit, delete, insert, reorder, truncate and
//! fork at each entry, number the rest anew and sign the result. It counts what a check against a checkpoint kept
//! elsewhere does not notice, which must be nothing. It knows no store.

use super::checkpoint::{Checkpoint, SignedCheckpoint};
use super::entry::AuditEntry;
use super::log::LogCheck;
use super::tree::{Frontier, leaf_hash};
use ed25519_dalek::SigningKey;

/// What was tried and what nobody noticed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TamperCount {
    /// Altered trails.
    pub tried: u64,
    /// Altered trails that verified.
    pub undetected: u64,
}

/// A way to alter a trail at an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tamper {
    Edit,
    Delete,
    Insert,
    Reorder,
    Truncate,
    Fork,
}

impl Tamper {
    const ALL: [Tamper; 6] =
        [Tamper::Edit, Tamper::Delete, Tamper::Insert, Tamper::Reorder, Tamper::Truncate, Tamper::Fork];

    /// What stands in place of `rest`, the entries from the altered one on.
    fn applied(self, rest: &[AuditEntry]) -> Vec<AuditEntry> {
        let mut rest = rest.to_vec();
        match self {
            Tamper::Edit => rest[0].count ^= 1,
            Tamper::Delete => drop(rest.remove(0)),
            Tamper::Insert => rest.insert(0, other(rest[0])),
            Tamper::Reorder if rest.len() > 1 => rest.swap(0, 1),
            // The last entry has none after it: it is given the time of another.
            Tamper::Reorder => rest[0].at_ms ^= 1,
            Tamper::Truncate => rest.clear(),
            Tamper::Fork => {
                rest.iter_mut().for_each(|entry| *entry = other(*entry));
                rest.push(rest[0]);
            }
        }
        rest
    }
}

const fn other(mut entry: AuditEntry) -> AuditEntry {
    entry.at_ms ^= 1 << 40;
    entry.count ^= 1 << 20;
    entry
}

/// Alters the trail in every way at every entry and checks each result against `kept`, a checkpoint over all of them.
/// Neighbours must differ in more than their number, else exchanging them changes nothing.
#[doc(hidden)]
#[must_use]
pub fn tampers(entries: &[AuditEntry], kept: &Checkpoint, key: &SigningKey) -> TamperCount {
    let (mut count, mut check, mut frontier) =
        (TamperCount::default(), LogCheck::new(Some(kept.clone())), Frontier::default());
    for (at, entry) in entries.iter().enumerate() {
        for tamper in Tamper::ALL {
            let altered = tamper.applied(&entries[at..]);
            count.tried += 1;
            count.undetected += u64::from(verifies(check.clone(), frontier.clone(), altered, kept, key));
        }
        let leaf = entry.to_leaf();
        if check.push(&leaf).is_err() {
            // The trail itself does not fit what was kept: nothing that follows proves anything.
            return TamperCount { tried: count.tried, undetected: count.tried };
        }
        frontier.push(leaf_hash(&leaf));
    }
    count
}

/// Whether a check notices nothing, though the entries from here on were replaced, numbered anew and signed.
fn verifies(
    mut check: LogCheck,
    mut frontier: Frontier,
    altered: Vec<AuditEntry>,
    kept: &Checkpoint,
    key: &SigningKey,
) -> bool {
    for mut entry in altered {
        entry.seq = frontier.size();
        let leaf = entry.to_leaf();
        frontier.push(leaf_hash(&leaf));
        if check.push(&leaf).is_err() {
            return false;
        }
    }
    let signed: SignedCheckpoint = signed(kept, &frontier, key);
    check.finish(&signed, &key.verifying_key()).is_ok()
}

fn signed(kept: &Checkpoint, frontier: &Frontier, key: &SigningKey) -> SignedCheckpoint {
    Checkpoint { origin: kept.origin.clone(), size: frontier.size(), root: frontier.root() }.sign(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::log::{LogError, verify_log};
    use crate::audit::{ActionKind, AuditObject, Outcome, Principal, PrincipalKind};

    fn trail(entries: u64) -> (Vec<AuditEntry>, Checkpoint, SigningKey) {
        let principal = Principal { kind: PrincipalKind::Certificate, number: 7 };
        let (action, outcome, object) = (ActionKind::Chat, Outcome::Done, AuditObject::None);
        let entries: Vec<_> = (0..entries)
            .map(|seq| AuditEntry { seq, at_ms: 1_000 + seq, principal, action, outcome, object, count: 1 })
            .collect();
        let mut frontier = Frontier::default();
        entries.iter().for_each(|entry| frontier.push(leaf_hash(&entry.to_leaf())));
        let kept = Checkpoint { origin: "empathd/test".into(), size: frontier.size(), root: frontier.root() };
        (entries, kept, SigningKey::from_bytes(&[3; 32]))
    }

    #[test]
    fn every_change_of_a_trail_is_noticed_against_a_kept_checkpoint() {
        let (entries, kept, key) = trail(150);
        assert_eq!(tampers(&entries, &kept, &key), TamperCount { tried: 900, undetected: 0 });
        // Without what was kept, the owner of the key rewrites as he likes: the count above can fail.
        let nothing = Checkpoint { size: 0, root: Frontier::default().root(), ..kept };
        assert_eq!(tampers(&entries, &nothing, &key).undetected, 900);
    }

    #[test]
    fn a_trail_verifies_alone_and_says_what_does_not_fit() {
        let (entries, kept, key) = trail(20);
        let leaves: Vec<_> = entries.iter().map(AuditEntry::to_leaf).collect();
        let (signed, public) = (kept.sign(&key), key.verifying_key());
        let verify = |leaves: &[Vec<u8>], earlier| verify_log(leaves, &signed, &public, earlier);
        assert_eq!(verify(&leaves, Some(kept.clone())), Ok(kept.clone()));
        assert_eq!(verify(&leaves[..19], None), Err(LogError::Size { found: 19, expected: 20 }));
        assert_eq!(verify(&leaves[1..], None), Err(LogError::Order(0)));
        assert_eq!(verify(&[vec![0; 300]], None), Err(LogError::Leaf(0)));
        let longer = Checkpoint { size: 21, ..kept.clone() };
        assert_eq!(verify(&leaves, Some(longer)), Err(LogError::Earlier(21)));
        let rewritten = Checkpoint { size: 5, ..kept };
        assert_eq!(verify(&leaves, Some(rewritten)), Err(LogError::Earlier(5)));
        let other = SigningKey::from_bytes(&[4; 32]).verifying_key();
        assert!(matches!(verify_log(&leaves, &signed, &other, None), Err(LogError::Checkpoint(_))));
    }
}
