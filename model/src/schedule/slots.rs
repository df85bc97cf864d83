//! Slots of keys and values: who has which, how many tokens are promised, and which of ended answers are kept for the next
//! one of the same salt. What is given up is overwritten and its bytes are counted. Refuses to know answers and queues.

use super::computes::Computes;
use crate::infer::compute::SlotId;
use empathd_proto::generate::CacheScope;
use std::time::Duration;
use zeroize::Zeroizing;

/// Fewest tokens in common that are worth sharing.
pub const MIN_SHARED: usize = 16;
/// How long the keys and values of an ended answer are kept.
pub const IDLE_TTL: Duration = Duration::from_secs(10 * 60);

/// Who may share: the scope the daemon gave and the adapter generation. Answers of two salts never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Salt {
    pub(super) scope: CacheScope,
    /// 0 for the plain base model.
    pub(super) generation: u64,
}

/// What a slot is used for.
enum Use {
    Free,
    /// An answer runs in it, which may hold so many tokens.
    Busy(usize),
    /// An answer ended in it.
    Idle {
        salt: Salt,
        tokens: Zeroizing<Vec<u32>>,
        since: Duration,
    },
}

/// All slots of what computes.
pub(super) struct Slots {
    uses: Vec<Use>,
    kv_tokens_max: usize,
    wiped_bytes: u64,
}

/// How many tokens two texts have in common at their beginning.
pub(super) fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Slots {
    pub(super) fn new(computes: &impl Computes) -> Self {
        let uses = (0..computes.slots()).map(|_| Use::Free).collect();
        Self { uses, kv_tokens_max: computes.kv_tokens_max(), wiped_bytes: 0 }
    }

    pub(super) fn kv_tokens_max(&self) -> usize {
        self.kv_tokens_max
    }

    pub(super) fn count(&self) -> usize {
        self.uses.len()
    }

    pub(super) fn busy(&self) -> usize {
        self.uses.iter().filter(|slot| matches!(slot, Use::Busy(_))).count()
    }

    /// Tokens that running answers may come to hold.
    pub(super) fn promised(&self) -> usize {
        self.uses.iter().map(|slot| if let Use::Busy(tokens) = slot { *tokens } else { 0 }).sum()
    }

    /// Tokens held now.
    pub(super) fn held(&self, computes: &impl Computes) -> usize {
        (0..self.uses.len()).map(|slot| computes.len(SlotId(slot))).sum()
    }

    /// Bytes overwritten since the last time this was asked.
    pub(super) fn take_wiped(&mut self) -> u64 {
        std::mem::take(&mut self.wiped_bytes)
    }

    /// A slot for an answer of at most `promise` tokens, with as much of `prompt` in it as an ended answer of the same
    /// salt has left. There must be a slot that is not busy, and room for the promise beside the busy ones.
    pub(super) fn take(
        &mut self,
        computes: &mut impl Computes,
        salt: Salt,
        prompt: &[u32],
        promise: usize,
    ) -> Option<SlotId> {
        let slot = match self.donor(salt, prompt) {
            Some((donor, common)) => self.reuse(computes, donor, common),
            None => self.empty(computes)?,
        };
        self.uses[slot.0] = Use::Busy(promise);
        while self.promised() + self.idle() > self.kv_tokens_max {
            let oldest = self.oldest()?;
            self.free(computes, oldest);
        }
        Some(slot)
    }

    /// The answer of a busy slot ended; what is in it may be used again.
    pub(super) fn keep(
        &mut self,
        computes: &mut impl Computes,
        slot: SlotId,
        salt: Salt,
        tokens: &[u32],
        now: Duration,
    ) {
        let tokens = &tokens[..computes.len(slot).min(tokens.len())];
        if tokens.len() < MIN_SHARED {
            return self.free(computes, slot);
        }
        self.uses[slot.0] = Use::Idle { salt, tokens: Zeroizing::new(tokens.to_vec()), since: now };
    }

    /// Overwrites a slot and gives it up.
    pub(super) fn free(&mut self, computes: &mut impl Computes, slot: SlotId) {
        self.wiped_bytes += computes.wipe(slot);
        self.uses[slot.0] = Use::Free;
    }

    /// Shortens what a slot holds.
    pub(super) fn truncate(&mut self, computes: &mut impl Computes, slot: SlotId, len: usize) {
        self.wiped_bytes += computes.truncate(slot, len);
    }

    /// Overwrites what was kept for too long.
    pub(super) fn expire(&mut self, computes: &mut impl Computes, now: Duration) {
        self.forget_if(computes, |_, since| now.saturating_sub(since) >= IDLE_TTL);
    }

    /// When something will have been kept for too long.
    pub(super) fn next_expiry(&self) -> Option<Duration> {
        let end = |slot: &Use| if let Use::Idle { since, .. } = slot { Some(*since + IDLE_TTL) } else { None };
        self.uses.iter().filter_map(end).min()
    }

    /// Overwrites everything kept of ended answers.
    pub(super) fn forget(&mut self, computes: &mut impl Computes) {
        self.forget_if(computes, |_, _| true);
    }

    /// Overwrites what was kept of ended answers of an adapter generation.
    pub(super) fn forget_generation(&mut self, computes: &mut impl Computes, generation: u64) {
        self.forget_if(computes, |salt, _| salt.generation == generation);
    }

    fn forget_if(&mut self, computes: &mut impl Computes, gone: impl Fn(Salt, Duration) -> bool) {
        for slot in 0..self.uses.len() {
            if matches!(&self.uses[slot], Use::Idle { salt, since, .. } if gone(*salt, *since)) {
                self.free(computes, SlotId(slot));
            }
        }
    }

    /// The kept slot that has most in common with a prompt.
    pub(super) fn donor(&self, salt: Salt, prompt: &[u32]) -> Option<(SlotId, usize)> {
        let common = |(slot, of): (usize, &Use)| match of {
            Use::Idle { salt: found, tokens, .. } if *found == salt => Some((SlotId(slot), shared(tokens, prompt))),
            _ => None,
        };
        let found = self.uses.iter().enumerate().filter_map(common).max_by_key(|(_, common)| *common);
        found.filter(|(_, common)| *common >= MIN_SHARED)
    }

    /// A slot with the first `common` tokens of a kept one: the same one when most of it is wanted, else a copy, so that
    /// the other conversation that begins like this one can go on too.
    fn reuse(&mut self, computes: &mut impl Computes, donor: SlotId, common: usize) -> SlotId {
        let held = computes.len(donor);
        let free = self.uses.iter().position(|slot| matches!(slot, Use::Free)).map(SlotId);
        match free {
            Some(slot) if 2 * common < held && computes.copy_prefix(donor, slot, common).is_ok() => slot,
            _ => {
                self.truncate(computes, donor, common);
                donor
            }
        }
    }

    /// A free slot, or the one kept longest, overwritten.
    fn empty(&mut self, computes: &mut impl Computes) -> Option<SlotId> {
        if let Some(free) = self.uses.iter().position(|slot| matches!(slot, Use::Free)) {
            return Some(SlotId(free));
        }
        let oldest = self.oldest()?;
        self.free(computes, oldest);
        Some(oldest)
    }

    fn oldest(&self) -> Option<SlotId> {
        let kept = |(slot, of): (usize, &Use)| match of {
            Use::Idle { since, .. } => Some((*since, SlotId(slot))),
            _ => None,
        };
        self.uses.iter().enumerate().filter_map(kept).min().map(|(_, slot)| slot)
    }

    /// Tokens kept of ended answers.
    fn idle(&self) -> usize {
        self.uses.iter().map(|slot| if let Use::Idle { tokens, .. } = slot { tokens.len() } else { 0 }).sum()
    }
}
