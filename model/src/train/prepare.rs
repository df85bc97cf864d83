//! Examples as tokens: put through the template, long ones split between turns, without those that teach nothing.

use super::{Encode, Encoded, TrainError};
use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{Example, Part};
use empathd_proto::generate::PlainMessage;
use empathd_proto::record::Domain;
use std::ops::Range;

/// A piece of an example in tokens, at least one of them a target.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) domain: Domain,
    pub(super) part: Part,
    /// Position of the example it is of.
    pub(super) example: usize,
    pub(super) encoded: Encoded,
}

/// Examples in tokens.
#[derive(Default)]
pub(super) struct Pieces {
    /// In the order of the examples, those without a target left out.
    pub(super) all: Vec<Prepared>,
    /// Exchanges that by themselves are longer than a sequence and were left out.
    pub(super) left_out: u64,
}

impl Prepared {
    pub(super) fn tokens(&self) -> usize {
        self.encoded.ids.len()
    }

    pub(super) fn target_tokens(&self) -> usize {
        self.encoded.target.iter().skip(1).filter(|t| **t).count()
    }
}

impl Pieces {
    /// Puts examples into tokens, at most `seq_len` to a piece.
    ///
    /// # Errors
    /// The template refuses a conversation.
    pub(super) fn of(encode: &dyn Encode, examples: &[Example], seq_len: usize) -> Result<Self, TrainError> {
        let mut pieces = Self::default();
        for (position, example) in examples.iter().enumerate() {
            let (split, left_out) = split(encode, &example.messages, seq_len)?;
            pieces.left_out += left_out;
            let piece = |encoded| Prepared { domain: example.domain, part: example.part, example: position, encoded };
            pieces.all.extend(split.into_iter().map(piece).filter(|one| one.target_tokens() > 0));
        }
        Ok(pieces)
    }

    /// Those of one part.
    pub(super) fn take(&mut self, part: Part) -> Vec<Prepared> {
        self.all.extract_if(.., |one| one.part == part).collect()
    }
}

/// A conversation in pieces that fit, each of whole exchanges; how many exchanges fit nowhere. What the system says in
/// front is said in front of each piece.
fn split(encode: &dyn Encode, messages: &[PlainMessage], seq_len: usize) -> Result<(Vec<Encoded>, u64), TrainError> {
    let whole = checked(encode, messages)?;
    if whole.ids.len() <= seq_len {
        return Ok((vec![whole], 0));
    }
    let head = messages.iter().take_while(|message| message.role == ChatRole::System).count();
    let exchanges = exchanges(messages, head);
    let (mut pieces, mut left_out, mut next) = (Vec::new(), 0, 0);
    while next < exchanges.len() {
        let piece = |last: usize| {
            let turns = &messages[exchanges[next].start..exchanges[last].end];
            checked(encode, &[&messages[..head], turns].concat())
        };
        let (mut best, mut low, mut high) = (None, next, exchanges.len());
        while low < high {
            let middle = low.midpoint(high);
            let encoded = piece(middle)?;
            if encoded.ids.len() <= seq_len {
                (best, low) = (Some(encoded), middle + 1);
            } else {
                high = middle;
            }
        }
        left_out += u64::from(best.is_none());
        next = low.max(next + 1);
        pieces.extend(best);
    }
    Ok((pieces, left_out))
}

/// The messages behind `head` from one answer's end to the next's; what nobody answers belongs to none.
fn exchanges(messages: &[PlainMessage], head: usize) -> Vec<Range<usize>> {
    let mut start = head;
    let ends = (head..messages.len()).filter(|i| messages[*i].role == ChatRole::Assistant);
    ends.map(|end| std::mem::replace(&mut start, end + 1)..end + 1).collect()
}

fn checked(encode: &dyn Encode, messages: &[PlainMessage]) -> Result<Encoded, TrainError> {
    let encoded = encode.encode(messages)?;
    if encoded.ids.len() != encoded.target.len() {
        return Err(TrainError::BadJob("the tokenizer gave ids and targets of different lengths".into()));
    }
    Ok(encoded)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::train::EncodeError;

    /// One token a byte, each message followed by token 1; what the assistant says is the target.
    pub(crate) struct Bytes;

    impl Encode for Bytes {
        fn encode(&self, messages: &[PlainMessage]) -> Result<Encoded, EncodeError> {
            let (mut ids, mut target) = (Vec::new(), Vec::new());
            for message in messages {
                let tokens = message.text.bytes().map(|b| 2 + u32::from(b) % 27).chain([1]);
                ids.extend(tokens);
                target.resize(ids.len(), message.role == ChatRole::Assistant);
            }
            Ok(Encoded { ids, target })
        }
    }

    pub(crate) fn message(role: ChatRole, text: &str) -> PlainMessage {
        PlainMessage { role, text: text.into() }
    }

    fn conversation(lengths: &[usize]) -> Vec<PlainMessage> {
        let role = |i| if i % 2 == 0 { ChatRole::User } else { ChatRole::Assistant };
        lengths.iter().enumerate().map(|(i, len)| message(role(i), &"x".repeat(len - 1))).collect()
    }

    /// Tokens and targets of each piece, and the exchanges left out.
    fn lengths(messages: &[PlainMessage], seq_len: usize) -> (Vec<(usize, usize)>, u64) {
        let (pieces, left_out) = split(&Bytes, messages, seq_len).unwrap();
        let length = |one: &Encoded| (one.ids.len(), one.target.iter().filter(|t| **t).count());
        (pieces.iter().map(length).collect(), left_out)
    }

    #[test]
    fn long_conversations_are_split_between_turns_and_lose_nothing() {
        let messages = conversation(&[4, 6, 4, 6, 4, 6]);
        assert_eq!(lengths(&messages, 30), (vec![(30, 18)], 0));
        assert_eq!(lengths(&messages, 29), (vec![(20, 12), (10, 6)], 0));
        assert_eq!(lengths(&messages, 19), (vec![(10, 6); 3], 0));
    }

    #[test]
    fn an_exchange_that_fits_nowhere_is_left_out_and_counted() {
        assert_eq!(lengths(&conversation(&[4, 6, 50, 6, 4, 6]), 20), (vec![(10, 6), (10, 6)], 1));
        assert_eq!(lengths(&conversation(&[50, 60]), 20), (vec![], 1));
    }

    #[test]
    fn every_piece_begins_with_what_the_system_says() {
        let mut messages = conversation(&[4, 6, 4, 6]);
        messages.insert(0, message(ChatRole::System, "be"));
        let (pieces, _) = split(&Bytes, &messages, 14).unwrap();
        let head = &Bytes.encode(&messages[..1]).unwrap().ids;
        assert_eq!(pieces.len(), 2);
        assert!(pieces.iter().all(|piece| piece.ids.starts_with(head) && piece.ids.len() == 13));
    }

    #[test]
    fn what_teaches_nothing_is_left_out() {
        let example = |messages| Example { domain: Domain::Bias, part: Part::Learn, messages };
        let all =
            [example(conversation(&[4, 6])), example(vec![message(ChatRole::User, &"x".repeat(99))]), example(vec![])];
        let pieces = Pieces::of(&Bytes, &all, 20).unwrap();
        assert_eq!((pieces.all.len(), pieces.left_out), (1, 0));
    }
}
