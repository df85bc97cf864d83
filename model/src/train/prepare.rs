//! Examples as tokens: put through the template, cut to length at the end of a turn, without those that teach nothing.

use super::{Encode, Encoded, TrainError};
use empathd_proto::chat::ChatRole;
use empathd_proto::engine::Example;
use empathd_proto::generate::PlainMessage;
use empathd_proto::record::Domain;

/// An example in tokens, at least one of them a target.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) domain: Domain,
    pub(super) encoded: Encoded,
}

impl Prepared {
    pub(super) fn tokens(&self) -> usize {
        self.encoded.ids.len()
    }

    pub(super) fn target_tokens(&self) -> usize {
        self.encoded.target.iter().skip(1).filter(|t| **t).count()
    }
}

/// Examples in tokens, those without a target left out.
pub(super) fn prepare<'a>(
    encode: &dyn Encode,
    examples: impl Iterator<Item = &'a Example>,
    seq_len: usize,
) -> Result<Vec<Prepared>, TrainError> {
    let mut all = Vec::new();
    for example in examples {
        let encoded = fit(encode, &example.messages, seq_len)?;
        let prepared = Prepared { domain: example.domain, encoded };
        if prepared.target_tokens() > 0 {
            all.push(prepared);
        }
    }
    Ok(all)
}

/// The longest beginning that ends with an answer and fits; when not even the first answer does, its end.
fn fit(encode: &dyn Encode, messages: &[PlainMessage], seq_len: usize) -> Result<Encoded, TrainError> {
    let whole = checked(encode, messages)?;
    if whole.ids.len() <= seq_len {
        return Ok(whole);
    }
    let ends: Vec<usize> = (0..messages.len()).filter(|i| messages[*i].role == ChatRole::Assistant).collect();
    let (mut best, mut low, mut high) = (None, 0, ends.len());
    while low < high {
        let middle = low.midpoint(high);
        let encoded = checked(encode, &messages[..=ends[middle]])?;
        if encoded.ids.len() <= seq_len {
            (best, low) = (Some(encoded), middle + 1);
        } else {
            high = middle;
        }
    }
    match (best, ends.first()) {
        (Some(encoded), _) => Ok(encoded),
        (None, Some(first)) => Ok(squeeze(checked(encode, &messages[..=*first])?, seq_len)),
        (None, None) => Ok(Encoded { ids: Vec::new(), target: Vec::new() }),
    }
}

/// Cuts the context from the left until the answer fits; an answer that is too long by itself keeps a quarter of the
/// length for its context and loses its end.
fn squeeze(encoded: Encoded, seq_len: usize) -> Encoded {
    let context = encoded.target.iter().position(|t| *t).unwrap_or(encoded.ids.len());
    let answer = encoded.ids.len() - context;
    let kept = seq_len.saturating_sub(answer).max(seq_len / 4).min(context);
    let range = context - kept..(context - kept + seq_len).min(encoded.ids.len());
    Encoded { ids: encoded.ids[range.clone()].to_vec(), target: encoded.target[range].to_vec() }
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
    use empathd_proto::engine::Part;

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

    fn lengths(messages: &[PlainMessage], seq_len: usize) -> (usize, usize) {
        let encoded = fit(&Bytes, messages, seq_len).unwrap();
        (encoded.ids.len(), encoded.target.iter().filter(|t| **t).count())
    }

    #[test]
    fn conversations_are_cut_at_the_end_of_an_answer() {
        let messages = conversation(&[4, 6, 4, 6, 4, 6]);
        assert_eq!(lengths(&messages, 30), (30, 18));
        assert_eq!(lengths(&messages, 29), (20, 12));
        assert_eq!(lengths(&messages, 10), (10, 6));
    }

    #[test]
    fn a_long_context_loses_its_beginning_and_a_long_answer_its_end() {
        assert_eq!(lengths(&conversation(&[50, 6]), 20), (20, 6));
        let encoded = fit(&Bytes, &conversation(&[50, 60]), 20).unwrap();
        assert_eq!(encoded.target.iter().position(|t| *t), Some(5));
        assert_eq!(encoded.ids.len(), 20);
    }

    #[test]
    fn what_teaches_nothing_is_left_out() {
        let example = |messages| Example { domain: Domain::Bias, part: Part::Learn, messages };
        let all =
            [example(conversation(&[4, 6])), example(vec![message(ChatRole::User, &"x".repeat(99))]), example(vec![])];
        assert_eq!(prepare(&Bytes, all.iter(), 20).unwrap().len(), 1);
    }
}
