//! Refusals that cannot be recorded yet because the store is sealed. They wait in memory, bounded, and enter the audit
//! trail at the next unsealing. An appliance that loses power while sealed loses them: nothing was shown or changed.

use empathd_proto::audit::{ActionKind, Outcome};
use empathd_proto::problem::ErrorCode;
use empathd_store::AuditDraft;
use std::sync::{Mutex, PoisonError};

/// Refusals that wait one by one; further ones are only counted.
pub(crate) const WAITING_MAX: usize = 1024;

/// The refusals that wait.
#[derive(Default)]
pub(crate) struct Refusals(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    drafts: Vec<AuditDraft>,
    uncounted: Option<AuditDraft>,
}

impl Refusals {
    /// Keeps a refusal.
    pub(crate) fn push(&self, draft: AuditDraft) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.drafts.len() < WAITING_MAX {
            waiting.drafts.push(draft);
            return;
        }
        let first = AuditDraft {
            count: 0,
            outcome: Outcome::Denied(ErrorCode::Busy),
            ..crate::vault::by_itself(ActionKind::Unknown, draft.at_ms)
        };
        waiting.uncounted.get_or_insert(first).count += 1;
    }

    /// Takes all of them, oldest first; the last one counts those for which there was no room.
    #[must_use]
    pub(crate) fn take(&self) -> Vec<AuditDraft> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Waiting { mut drafts, uncounted } = std::mem::take(&mut *waiting);
        drafts.extend(uncounted);
        drafts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_refusals_are_counted() {
        let refusals = Refusals::default();
        for at_ms in 0..WAITING_MAX as u64 + 5 {
            refusals.push(crate::vault::by_itself(ActionKind::Unseal, at_ms));
        }
        let drafts = refusals.take();
        assert_eq!(drafts.len(), WAITING_MAX + 1);
        assert_eq!(drafts[WAITING_MAX].count, 5);
        assert!(refusals.take().is_empty());
    }
}
