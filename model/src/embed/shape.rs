//! The shape of a sentence encoder from its `config.json`, within bounds, so that nothing made by it can be larger than
//! makes sense. Refuses to know weights.

use super::{CONFIG_FILE, EmbedError};
use candle_transformers::models::bert::Config;

/// Most layers.
const MAX_LAYERS: usize = 64;
/// Widest layer.
const MAX_WIDTH: usize = 16_384;
/// Largest vocabulary.
const MAX_VOCAB: usize = 1 << 20;
/// Most tokens of one text; attention grows with their square.
const MAX_TOKENS: usize = 512;
/// Most positions that weights may be there for.
const MAX_POSITIONS: usize = 1 << 16;

/// A shape that can be computed.
pub(super) struct Shape {
    config: Config,
}

impl Shape {
    /// Reads and checks `config.json`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, EmbedError> {
        let unusable = |what| EmbedError::Unusable { file: CONFIG_FILE, what };
        let config: Config = serde_json::from_slice(bytes)
            .map_err(|_| unusable("it is not the description of a BERT model with absolute positions"))?;
        if config.model_type.as_deref().is_some_and(|family| family != "bert") {
            return Err(unusable("the model is of another family than bert"));
        }
        let sizes = [
            (config.vocab_size, MAX_VOCAB),
            (config.hidden_size, MAX_WIDTH),
            (config.intermediate_size, MAX_WIDTH),
            (config.num_hidden_layers, MAX_LAYERS),
            (config.num_attention_heads, config.hidden_size),
            (config.max_position_embeddings, MAX_POSITIONS),
            (config.type_vocab_size, MAX_LAYERS),
        ];
        if sizes.iter().any(|(size, most)| *size == 0 || size > most) {
            return Err(unusable("a size in it is 0 or beyond every known model"));
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(unusable("its width is no multiple of its heads"));
        }
        if !(0.0..1.0).contains(&config.layer_norm_eps) {
            return Err(unusable("layer_norm_eps is not from 0 to 1"));
        }
        Ok(Self { config })
    }

    /// As the library takes it.
    pub(super) const fn config(&self) -> &Config {
        &self.config
    }

    /// Numbers of one vector.
    pub(super) const fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Rows of the embedding.
    pub(super) const fn vocab(&self) -> usize {
        self.config.vocab_size
    }

    /// Most tokens of one text.
    pub(super) const fn tokens_max(&self) -> usize {
        if self.config.max_position_embeddings < MAX_TOKENS { self.config.max_position_embeddings } else { MAX_TOKENS }
    }
}
