//! Proposals for the next tokens, looked up where the last few tokens occurred before: notes and journals repeat
//! themselves and their prompt. A proposal costs nothing to make and is never trusted; whoever asked verifies it. Holds
//! places, no tokens. Refuses to know models and probabilities.

use zeroize::Zeroize;

/// Lengths of the run of tokens that is looked up, longest first.
const RUNS: [usize; 2] = [3, 2];
/// Longest proposal.
pub const MAX_DRAFT: usize = 8;
/// Length of the first proposal of an answer.
const FIRST_DRAFT: usize = 3;
/// Most tokens that are made without a proposal after proposals that were wrong from their first token on.
const MAX_PAUSE: u32 = 32;

/// An index of the runs of one conversation: for each run, where it last occurred with a token after it.
pub struct Lookup {
    /// One table a length; place of the token after the run, 0 for none. Runs that meet in a table displace each other.
    tables: [Vec<u32>; RUNS.len()],
    /// Tokens indexed, as ends of runs.
    indexed: usize,
    /// Length of the next proposal.
    length: usize,
    /// Tokens to be made before the next proposal, and how many it was after the last wrong one.
    pause: (u32, u32),
}

impl Lookup {
    /// For a conversation of at most `tokens_max` tokens, answer included; 16 bytes each.
    #[must_use]
    pub fn new(tokens_max: usize) -> Self {
        let places = (2 * tokens_max.max(1)).next_power_of_two();
        Self { tables: RUNS.map(|_| vec![0; places]), indexed: 0, length: FIRST_DRAFT, pause: (0, 0) }
    }

    /// Takes in what the conversation has grown by; `tokens` is the whole of it.
    pub fn read(&mut self, tokens: &[u32]) {
        // A run is indexed once the token after it is known, so that it never proposes itself.
        for after in self.indexed.max(1)..tokens.len() {
            for (table, run) in self.tables.iter_mut().zip(RUNS) {
                if let Some(begin) = after.checked_sub(run) {
                    let place = place(&tokens[begin..after], table.len());
                    table[place] = u32::try_from(after).unwrap_or(0);
                }
            }
        }
        let grown = tokens.len().saturating_sub(self.indexed.max(1));
        self.pause.0 = self.pause.0.saturating_sub(u32::try_from(grown).unwrap_or(u32::MAX));
        self.indexed = self.indexed.max(tokens.len());
    }

    /// At most `max` tokens that followed the last tokens of the conversation where these occurred before; `tokens` is what
    /// was read. Empty when nothing fits, or when proposals were wrong of late.
    #[must_use]
    pub fn propose<'a>(&self, tokens: &'a [u32], max: usize) -> &'a [u32] {
        let max = max.min(self.length);
        if self.pause.0 > 0 || max == 0 {
            return &[];
        }
        for (table, run) in self.tables.iter().zip(RUNS) {
            let Some(begin) = tokens.len().checked_sub(run) else { continue };
            let last = &tokens[begin..];
            let after = table[place(last, table.len())] as usize;
            if after >= run && after < tokens.len() && &tokens[after - run..after] == last {
                return &tokens[after..tokens.len().min(after + max)];
            }
        }
        &[]
    }

    /// Learns how long proposals are worth being: of `proposed` tokens the first `accepted` were right.
    pub fn judged(&mut self, proposed: usize, accepted: usize) {
        if proposed == 0 {
            return;
        }
        if accepted == 0 {
            let pause = (2 * self.pause.1).clamp(1, MAX_PAUSE);
            self.pause = (pause, pause);
            self.length = 1;
        } else if accepted >= proposed {
            self.pause = (0, 0);
            self.length = (2 * self.length).min(MAX_DRAFT);
        } else {
            self.pause = (0, 0);
            self.length = accepted + 1;
        }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.tables.iter_mut().for_each(Zeroize::zeroize);
    }
}

/// Where a run stands in a table whose length is a power of two (multiplicative hashing, Knuth 1973).
fn place(run: &[u32], places: usize) -> usize {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = run.iter().fold(ODD, |hash, token| (hash ^ u64::from(*token)).wrapping_mul(ODD).rotate_left(29));
    usize::try_from(mixed >> 32).unwrap_or(0) & (places - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_proposal_is_what_followed_the_last_tokens_before(
            tokens in proptest::collection::vec(0u32..5, 0..200),
            room in 1usize..200,
            piece in 1usize..7,
            max in 1usize..12,
        ) {
            let mut lookup = Lookup::new(room);
            let mut read = 0;
            while read < tokens.len() {
                read = tokens.len().min(read + piece);
                let known = &tokens[..read];
                lookup.read(known);
                let proposed = lookup.propose(known, max);
                prop_assert!(proposed.len() <= max.min(MAX_DRAFT));
                if !proposed.is_empty() {
                    let followed = |run: usize| {
                        let last = &known[read - run..];
                        (run..read).any(|after| &known[after - run..after] == last && known[after..].starts_with(proposed))
                    };
                    prop_assert!(followed(2));
                }
                lookup.judged(proposed.len(), proposed.len() / 2);
            }
        }
    }

    #[test]
    fn what_is_repeated_is_proposed_and_longer_each_time_it_was_right() {
        let prompt: Vec<u32> = (10..40).collect();
        let mut lookup = Lookup::new(64);
        let mut tokens = prompt.clone();
        tokens.extend([10, 11]);
        lookup.read(&tokens);
        assert_eq!(lookup.propose(&tokens, 16), [12, 13, 14]);
        lookup.judged(3, 3);
        tokens.extend([12, 13, 14]);
        lookup.read(&tokens);
        assert_eq!(lookup.propose(&tokens, 16), [15, 16, 17, 18, 19, 20]);
        assert_eq!(lookup.propose(&tokens, 2), [15, 16]);
    }

    #[test]
    fn wrong_proposals_come_ever_more_seldom() {
        let mut lookup = Lookup::new(1024);
        let mut tokens = vec![1, 2];
        let mut proposals = 0;
        for _ in 0..500 {
            tokens.extend([1, 2]);
            lookup.read(&tokens);
            let proposed = lookup.propose(&tokens, 8).len();
            proposals += usize::from(proposed > 0);
            lookup.judged(proposed, 0);
        }
        assert!((5..60).contains(&proposals), "{proposals}");
    }
}
