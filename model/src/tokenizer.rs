//! Text to token ids and back, built from the tables of a model file (byte-level byte-pair encoding). Control tokens
//! are never recognised in a text: [`Tokenizer::encode`] treats their spelling like any other characters, so nobody can
//! write an end of turn into a message. Refuses to know files, chat templates and models.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

/// `tokenizer.ggml.token_type` of a control token.
const KIND_CONTROL: i64 = 3;
/// Control tokens that end an answer wherever they exist, beside the ones that the file names.
const END_WORDS: [&str; 4] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"];

/// Why a tokenizer cannot be built or cannot encode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A tokenizer family this release does not know.
    #[error("the tokenizer family {0:?} is not supported; use a model with a gpt2 tokenizer")]
    Model(String),
    /// A way of splitting words this release does not know.
    #[error("the pre-tokenizer {0:?} is not supported; use a model with smollm or gpt-2 splitting")]
    Pre(String),
    /// The tables contradict each other.
    #[error("the tokenizer's tables contradict each other ({0}); the file is damaged or hostile")]
    Tables(&'static str),
    /// The library refused. Its message may hold text and is not kept.
    #[error("the tokenizer failed")]
    Failed,
}

/// The tables of a model file.
#[derive(Debug)]
pub struct TokenizerSource<'a> {
    /// Family.
    pub model: &'a str,
    /// How text is split into words.
    pub pre: &'a str,
    /// Tokens by id.
    pub tokens: &'a [String],
    /// Merges by rank, two tokens with a space between.
    pub merges: &'a [String],
    /// Kind of each token.
    pub kinds: &'a [i64],
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
}

/// A tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes of each token; none for control tokens.
    bytes: Vec<Box<[u8]>>,
    controls: BTreeMap<String, u32>,
    ends: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} tokens)", self.bytes.len())
    }
}

/// One token of a text and the bytes of the text that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token.
    pub id: u32,
    /// Where in the text.
    pub range: Range<usize>,
}

impl Tokenizer {
    /// Builds a tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError`] for an unknown family or contradicting tables.
    pub fn new(source: &TokenizerSource) -> Result<Self, TokenizerError> {
        if source.model != "gpt2" {
            return Err(TokenizerError::Model(shown(source.model)));
        }
        if source.kinds.len() != source.tokens.len() {
            return Err(TokenizerError::Tables("tokens and their kinds differ in number"));
        }
        let words = words(source.pre)?;
        let mut inner = tokenizers::Tokenizer::new(byte_pairs(source)?);
        inner.with_pre_tokenizer(Some(words));
        let unbyte = byte_of_char();
        let bytes = source.tokens.iter().zip(source.kinds).map(|(token, kind)| match *kind {
            KIND_CONTROL => Box::default(),
            _ => token_bytes(token, &unbyte),
        });
        let controls: BTreeMap<String, u32> = (0u32..)
            .zip(source.tokens.iter().zip(source.kinds))
            .filter(|(_, (token, kind))| **kind == KIND_CONTROL && !token.is_empty())
            .map(|(id, (token, _))| (token.clone(), id))
            .collect();
        let known = source.ends.iter().copied().filter(|id| (*id as usize) < source.tokens.len());
        let mut ends: Vec<u32> =
            known.chain(END_WORDS.iter().filter_map(|word| controls.get(*word).copied())).collect();
        ends.sort_unstable();
        ends.dedup();
        Ok(Self { inner, bytes: bytes.collect(), controls, ends })
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Encodes a text. The spelling of a control token in it stays plain text.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn encode(&self, text: &str) -> Result<Vec<Piece>, TokenizerError> {
        let encoding = self.inner.encode(text, false).map_err(|_| TokenizerError::Failed)?;
        let pieces = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(pieces.map(|(id, (begin, end))| Piece { id: *id, range: *begin..*end }).collect())
    }

    /// The first control token spelled in a text and where: earliest, then longest. For templates only.
    #[must_use]
    pub fn find_control(&self, text: &str) -> Option<Piece> {
        let found = self.controls.iter().filter_map(|(word, id)| {
            text.find(word.as_str()).map(|begin| Piece { id: *id, range: begin..begin + word.len() })
        });
        found.min_by_key(|piece| (piece.range.start, std::cmp::Reverse(piece.range.end)))
    }

    /// The control token with this spelling.
    #[must_use]
    pub fn control(&self, word: &str) -> Option<u32> {
        self.controls.get(word).copied()
    }

    /// The bytes a token adds to an answer: none for control tokens and for ids outside the table.
    #[must_use]
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// The tokens that end an answer, smallest first.
    #[must_use]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Whether a token ends an answer.
    #[must_use]
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }
}

/// A name from the file as an error may show it.
fn shown(text: &str) -> String {
    text.chars().take(32).collect()
}

/// How a text becomes words before pairs are merged inside them.
fn words(pre: &str) -> Result<Sequence, TokenizerError> {
    let bytes = ByteLevel::new(false, true, true);
    match pre {
        "smollm" => Ok(Sequence::new(vec![Digits::new(true).into(), bytes.into()])),
        "gpt-2" => Ok(Sequence::new(vec![bytes.into()])),
        other => Err(TokenizerError::Pre(shown(other))),
    }
}

/// The merging model. Checks what the library takes on trust: that both halves of a merge and the whole are tokens.
/// It keeps no cache of words: people's words would stay in it.
fn byte_pairs(source: &TokenizerSource) -> Result<BPE, TokenizerError> {
    let known: HashSet<&str> = source.tokens.iter().map(String::as_str).collect();
    if known.len() != source.tokens.len() {
        return Err(TokenizerError::Tables("a token appears twice"));
    }
    let merges = source.merges.iter().map(|merge| {
        let (left, right) = merge.split_once(' ').ok_or(TokenizerError::Tables("a merge is not a pair"))?;
        if [left, right, &format!("{left}{right}")].into_iter().all(|token| known.contains(token)) {
            Ok((left.to_owned(), right.to_owned()))
        } else {
            Err(TokenizerError::Tables("a merge names an unknown token"))
        }
    });
    let merges = merges.collect::<Result<Vec<_>, _>>()?;
    let vocabulary: tokenizers::models::bpe::Vocab = source.tokens.iter().cloned().zip(0..).collect();
    let built = BPE::builder().vocab_and_merges(vocabulary, merges).cache_capacity(0).build();
    built.map_err(|_| TokenizerError::Failed)
}

/// The byte behind each character of a byte-level table: printable Latin-1 stands for itself, every other byte for a
/// character from U+0100 on, in order (the GPT-2 convention).
pub(crate) fn byte_of_char() -> HashMap<char, u8> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100u32;
    let mut map = HashMap::with_capacity(256);
    for byte in 0..=u8::MAX {
        let character = if plain(byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
        map.insert(character, byte);
    }
    map
}

fn token_bytes(token: &str, byte_of_char: &HashMap<char, u8>) -> Box<[u8]> {
    let bytes: Option<Vec<u8>> = token.chars().map(|character| byte_of_char.get(&character).copied()).collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(tokens: &[String], merges: &[String], pre: &'static str) -> Result<Tokenizer, TokenizerError> {
        let kinds = vec![1; tokens.len()];
        Tokenizer::new(&TokenizerSource { model: "gpt2", pre, tokens, merges, kinds: &kinds, ends: vec![] })
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn every_byte_has_its_own_character() {
        let map = byte_of_char();
        assert_eq!(map.len(), 256);
        assert_eq!(map[&'Ġ'], b' ');
        assert_eq!(map[&'Ċ'], b'\n');
    }

    #[test]
    fn contradicting_tables_are_refused() {
        let tokens = owned(&["a", "b", "ab"]);
        assert!(source(&tokens, &owned(&["a b"]), "smollm").is_ok());
        let longer_than_any_token = source(&owned(&["a", "ab"]), &owned(&["ab ab"]), "smollm");
        assert_eq!(longer_than_any_token.err(), Some(TokenizerError::Tables("a merge names an unknown token")));
        assert!(source(&tokens, &owned(&["ab"]), "smollm").is_err());
        assert!(source(&owned(&["a", "a"]), &[], "smollm").is_err());
        assert_eq!(source(&tokens, &[], "other").err(), Some(TokenizerError::Pre("other".to_owned())));
    }
}
