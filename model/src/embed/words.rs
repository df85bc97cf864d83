//! Texts to tokens by the vocabulary of a `tokenizer.json`: BERT's normalisation, its words, the longest known pieces of
//! each. Of the file only the vocabulary and BERT's switches are taken; cutting, padding and the patterns that other
//! families bring are not. Refuses to know models.

use super::{EmbedError, TOKENIZER_FILE};
use serde::Deserialize;
use std::collections::HashMap;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

/// Before the first token of a text.
const BEGIN: &str = "[CLS]";
/// After its last one.
const END: &str = "[SEP]";
/// Longest word that is cut into pieces, in characters; the work grows with its square.
const MAX_WORD_CHARS: usize = 1000;

/// What is taken of the file.
#[derive(Deserialize)]
struct File {
    normalizer: Normalizer,
    pre_tokenizer: Named,
    model: Pieces,
}

#[derive(Deserialize)]
struct Normalizer {
    #[serde(rename = "type")]
    name: String,
    clean_text: bool,
    handle_chinese_chars: bool,
    strip_accents: Option<bool>,
    lowercase: bool,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "type")]
    name: String,
}

#[derive(Deserialize)]
struct Pieces {
    /// Absent in old files.
    #[serde(rename = "type")]
    name: Option<String>,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    vocab: HashMap<String, u32>,
}

/// Cuts texts into tokens.
pub(super) struct Words {
    inner: tokenizers::Tokenizer,
    begin: u32,
    end: u32,
}

impl Words {
    /// Reads the file; every token must have a row among the `rows` of the embedding.
    pub(super) fn read(bytes: &[u8], rows: usize) -> Result<Self, EmbedError> {
        let unusable = |what| EmbedError::Unusable { file: TOKENIZER_FILE, what };
        let File { normalizer, pre_tokenizer, model } = serde_json::from_slice(bytes)
            .map_err(|_| unusable("it is not the description of a tokenizer of BERT's family"))?;
        let families = [
            (normalizer.name.as_str(), "BertNormalizer"),
            (pre_tokenizer.name.as_str(), "BertPreTokenizer"),
            (model.name.as_deref().unwrap_or("WordPiece"), "WordPiece"),
        ];
        if families.iter().any(|(found, expected)| found != expected) {
            return Err(unusable("its normalizer, pre_tokenizer or model is not BERT's"));
        }
        if model.vocab.values().any(|id| *id as usize >= rows) {
            return Err(unusable("it has tokens without a row in the embedding"));
        }
        if !(1..=MAX_WORD_CHARS).contains(&model.max_input_chars_per_word) {
            return Err(unusable("max_input_chars_per_word is 0 or too large"));
        }
        let id =
            |word: &str| model.vocab.get(word).copied().ok_or(unusable("[CLS], [SEP] or the unknown token is missing"));
        let (begin, end, _) = (id(BEGIN)?, id(END)?, id(&model.unk_token)?);
        let pieces = WordPiece::builder()
            .vocab(model.vocab.into_iter().collect::<Vocab>())
            .unk_token(model.unk_token)
            .continuing_subword_prefix(model.continuing_subword_prefix)
            .max_input_chars_per_word(model.max_input_chars_per_word)
            .build();
        let mut inner = tokenizers::Tokenizer::new(pieces.map_err(|_| EmbedError::Failed)?);
        let Normalizer { clean_text, handle_chinese_chars, strip_accents, lowercase, .. } = normalizer;
        let plain = BertNormalizer::new(clean_text, handle_chinese_chars, strip_accents, lowercase);
        inner.with_normalizer(Some(plain)).map_err(|_| EmbedError::Failed)?;
        inner.with_pre_tokenizer(Some(BertPreTokenizer));
        Ok(Self { inner, begin, end })
    }

    /// The tokens of a text, with the two around it.
    pub(super) fn ids(&self, text: &str) -> Result<Vec<u32>, EmbedError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|_| EmbedError::Failed)?;
        let mut ids = Vec::with_capacity(encoding.len() + 2);
        ids.push(self.begin);
        ids.extend_from_slice(encoding.get_ids());
        ids.push(self.end);
        Ok(ids)
    }
}
