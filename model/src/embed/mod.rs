//! Embeddings: where texts lie in the space of a small sentence encoder (all-MiniLM-L6-v2 and its kin), on the BERT of
//! candle-transformers. A text is computed alone, so its vector does not depend on its neighbours. Files are untrusted
//! until their digest was compared: none makes this module panic. Refuses to know what the vectors are for.

mod shape;
pub mod tiny;
mod weights;
mod words;

use candle_core::{Device, Tensor};
use candle_transformers::models::bert::BertModel;
use empathd_proto::generate::{MAX_EMBED_BYTES, MAX_EMBED_TEXTS};
use sha2::{Digest, Sha256};
use shape::Shape;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use words::Words;

/// Beside the weights: the shape of the model.
pub const CONFIG_FILE: &str = "config.json";
/// Beside the weights: its vocabulary.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Largest file of weights.
pub const MAX_WEIGHTS_BYTES: u64 = 1 << 30;
/// Largest file beside it.
pub const MAX_JSON_BYTES: u64 = 32 << 20;

/// Why there are no embeddings. No variant holds words of a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// A file cannot be read.
    #[error("{file} cannot be read ({kind}); check that it is there and that the engine may read it")]
    Io {
        /// Which of the three.
        file: &'static str,
        /// Why.
        kind: ErrorKind,
    },
    /// A file is larger than any that makes sense.
    #[error("{file} has more than {limit} bytes")]
    FileSize {
        /// Which of the three.
        file: &'static str,
        /// Most bytes.
        limit: u64,
    },
    /// The weights are another file.
    #[error("its SHA-256 is not the expected one; fetch the file again")]
    Digest,
    /// A file is damaged, hostile, or of a model that this release does not compute.
    #[error("{file} cannot be used: {what}")]
    Unusable {
        /// Which of the three.
        file: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// More texts at once than are taken.
    #[error("input has {0} texts, the limit is {MAX_EMBED_TEXTS}")]
    Texts(usize),
    /// A text of more bytes than are taken.
    #[error("input[{index}] has {bytes} bytes, the limit is {MAX_EMBED_BYTES}")]
    TextBytes {
        /// Which, from 0.
        index: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// A text of more tokens than the model reads. It is not cut: half a text is another text.
    #[error("input[{index}] has {tokens} tokens, the limit is {limit}")]
    TextTokens {
        /// Which, from 0.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// Most that the model reads.
        limit: usize,
    },
    /// Tokens that the model cannot have: none, too many, or outside its vocabulary.
    #[error("the model has no such tokens")]
    Tokens,
    /// The weights do not make numbers.
    #[error("the model of embeddings gave no usable numbers; fetch its files again")]
    NotFinite,
    /// The library failed.
    #[error("the model of embeddings failed")]
    Failed,
}

/// A sentence encoder in memory.
pub struct Embedder {
    shape: Shape,
    words: Words,
    model: BertModel,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedder({} wide, {} tokens)", self.width(), self.tokens_max())
    }
}

impl Embedder {
    /// Opens the safetensors file at `path`, whose SHA-256 must be `sha256`, with [`CONFIG_FILE`] and [`TOKENIZER_FILE`]
    /// beside it.
    ///
    /// # Errors
    /// [`EmbedError`]. Nothing of a file with another digest is used.
    pub fn open(path: &Path, sha256: [u8; 32]) -> Result<Self, EmbedError> {
        let weights = bytes(path, "the file of weights", MAX_WEIGHTS_BYTES)?;
        if <[u8; 32]>::from(Sha256::digest(&weights)) != sha256 {
            return Err(EmbedError::Digest);
        }
        let config = bytes(&path.with_file_name(CONFIG_FILE), CONFIG_FILE, MAX_JSON_BYTES)?;
        let tokenizer = bytes(&path.with_file_name(TOKENIZER_FILE), TOKENIZER_FILE, MAX_JSON_BYTES)?;
        Self::from_bytes(&config, &tokenizer, &weights)
    }

    /// Makes one of the bytes of its three files.
    ///
    /// # Errors
    /// [`EmbedError::Unusable`] or [`EmbedError::NotFinite`].
    pub fn from_bytes(config: &[u8], tokenizer: &[u8], weights: &[u8]) -> Result<Self, EmbedError> {
        let shape = Shape::read(config)?;
        let words = Words::read(tokenizer, shape.vocab())?;
        // The libraries are not made for strangers' files; what they do with one must not end the engine.
        let model = catch_unwind(AssertUnwindSafe(|| weights::read(weights, &shape)));
        Ok(Self { model: model.map_err(|_| EmbedError::Failed)??, words, shape })
    }

    /// Numbers of one vector.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.shape.width()
    }

    /// Most tokens of one text, the two around it included.
    #[must_use]
    pub const fn tokens_max(&self) -> usize {
        self.shape.tokens_max()
    }

    /// The tokens of each text, the two around it included. Their number is what is charged. A control token's spelling
    /// in a text stays plain text.
    ///
    /// # Errors
    /// [`EmbedError::Texts`], [`EmbedError::TextBytes`], [`EmbedError::TextTokens`] or [`EmbedError::Failed`].
    pub fn read(&self, texts: &[String]) -> Result<Vec<Vec<u32>>, EmbedError> {
        if texts.len() > MAX_EMBED_TEXTS {
            return Err(EmbedError::Texts(texts.len()));
        }
        let mut all = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            if text.len() > MAX_EMBED_BYTES {
                return Err(EmbedError::TextBytes { index, bytes: text.len() });
            }
            let tokens = self.words.ids(text)?;
            if tokens.len() > self.tokens_max() {
                return Err(EmbedError::TextTokens { index, tokens: tokens.len(), limit: self.tokens_max() });
            }
            all.push(tokens);
        }
        Ok(all)
    }

    /// The vector of one text, of length one: the mean of its tokens' last hidden states, over its norm.
    ///
    /// # Errors
    /// [`EmbedError::Tokens`], [`EmbedError::NotFinite`] or [`EmbedError::Failed`].
    pub fn vector(&self, tokens: &[u32]) -> Result<Vec<f32>, EmbedError> {
        let known = tokens.iter().all(|id| (*id as usize) < self.shape.vocab());
        if tokens.is_empty() || tokens.len() > self.tokens_max() || !known {
            return Err(EmbedError::Tokens);
        }
        let mean = self.mean(tokens).map_err(|_| EmbedError::Failed)?;
        let norm = mean.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
        if !norm.is_finite() || norm <= f64::from(f32::MIN_POSITIVE) {
            return Err(EmbedError::NotFinite);
        }
        Ok(mean.into_iter().map(|number| (f64::from(number) / norm) as f32).collect())
    }

    /// The mean hidden state, `width` numbers.
    fn mean(&self, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
        let ids = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?; // 1 × tokens
        let kinds = ids.zeros_like()?;
        let hidden = self.model.forward(&ids, &kinds, None)?; // 1 × tokens × width
        hidden.mean(1)?.squeeze(0)?.to_vec1()
    }
}

/// A whole file of at most `limit` bytes.
fn bytes(path: &Path, file: &'static str, limit: u64) -> Result<Vec<u8>, EmbedError> {
    let io = |error: std::io::Error| EmbedError::Io { file, kind: error.kind() };
    // Of a pipe or a device, opening alone may wait for ever.
    let size = std::fs::metadata(path).map_err(io)?;
    if !size.is_file() {
        return Err(EmbedError::Unusable { file, what: "it is no regular file" });
    }
    if size.len() > limit {
        return Err(EmbedError::FileSize { file, limit });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size.len()).unwrap_or(0));
    File::open(path).map_err(io)?.take(limit).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
