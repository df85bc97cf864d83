//! Conversations packed behind one another into one pass: no padding, and none sees another.

use super::Encoded;
use crate::backbone::Pass;
use crate::ops::Target;
use std::sync::Arc;

/// Packed conversations.
pub struct Batch {
    pub(super) ids: Vec<u32>,
    pub(super) lengths: Vec<usize>,
    pub(super) pass: Pass,
    pub(super) targets: Arc<[Target]>,
    /// For each target the conversation it belongs to.
    pub(super) owners: Vec<usize>,
}

impl Batch {
    /// Packs conversations. A token is a target when it is marked and something precedes it.
    #[must_use]
    pub fn pack<'a>(conversations: impl IntoIterator<Item = &'a Encoded>) -> Self {
        let (mut ids, mut lengths, mut targets, mut owners) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (owner, one) in conversations.into_iter().enumerate() {
            for position in (1..one.ids.len()).filter(|p| one.target[*p]) {
                let row = u32::try_from(ids.len() + position - 1).unwrap_or(u32::MAX);
                targets.push(Target { row, id: one.ids[position] });
                owners.push(owner);
            }
            ids.extend_from_slice(&one.ids);
            lengths.push(one.ids.len());
        }
        let pass = Pass::packed(&lengths);
        Self { ids, lengths, pass, targets: targets.into(), owners }
    }

    /// Tokens in it.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens that are predicted.
    #[must_use]
    pub fn target_tokens(&self) -> usize {
        self.targets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_predicted_from_the_row_before() {
        let one = Encoded { ids: vec![5, 6, 7], target: vec![true, false, true] };
        let two = Encoded { ids: vec![8, 9], target: vec![false, true] };
        let batch = Batch::pack([&one, &two]);
        assert_eq!(batch.ids, [5, 6, 7, 8, 9]);
        assert_eq!(batch.targets[..], [Target { row: 1, id: 7 }, Target { row: 3, id: 9 }]);
        assert_eq!(batch.owners, [0, 1]);
        assert_eq!(batch.pass.positions[..], [0, 1, 2, 0, 1]);
    }
}
