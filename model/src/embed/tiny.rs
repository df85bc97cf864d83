//! A tiny random sentence encoder, as the bytes of its three files: for tests, where the real one would take seconds.
//! Nothing serves with it.

use super::{CONFIG_FILE, TOKENIZER_FILE};
use crate::counter::{Counter, Site};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// Name of its file of weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Numbers of one of its vectors.
pub const WIDTH: usize = 16;
/// Most tokens of a text.
pub const TOKENS_MAX: usize = 24;
const FFN: usize = 32;
const LAYERS: usize = 2;
const WORDS: [&str; 10] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sleep", "##less", "night", "##s", "i", "."];

/// Name and bytes of each of its files.
#[must_use]
pub fn files(seed: u64) -> [(&'static str, Vec<u8>); 3] {
    [(WEIGHTS_FILE, weights(seed)), (CONFIG_FILE, config()), (TOKENIZER_FILE, tokenizer())]
}

fn config() -> Vec<u8> {
    let config = json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "intermediate_size": FFN, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "max_position_embeddings": TOKENS_MAX, "type_vocab_size": 2, "initializer_range": 0.02,
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute"
    });
    config.to_string().into_bytes()
}

fn tokenizer() -> Vec<u8> {
    let vocab: HashMap<&str, usize> = WORDS.iter().enumerate().map(|(id, word)| (*word, id)).collect();
    let tokenizer = json!({
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": vocab }
    });
    tokenizer.to_string().into_bytes()
}

fn weights(seed: u64) -> Vec<u8> {
    let shapes = shapes();
    let numbers = shapes.iter().map(|(name, shape)| {
        let count: usize = shape.iter().product();
        let middle = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        let number = |index| middle + 0.1 * Counter::new(seed).normal(Site::new(name, 0), index) as f32;
        (name, shape, (0..count as u64).flat_map(|index| number(index).to_le_bytes()).collect::<Vec<u8>>())
    });
    let numbers: Vec<_> = numbers.collect();
    let views = numbers.iter().filter_map(|(name, shape, bytes)| {
        TensorView::new(Dtype::F32, shape.to_vec(), bytes).ok().map(|view| (name.as_str(), view))
    });
    safetensors::serialize(views, None).unwrap_or_default()
}

fn shapes() -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    let mut pair = |name: &str, rows: usize, cols: usize| {
        shapes.insert(format!("{name}.weight"), if cols == 0 { vec![rows] } else { vec![rows, cols] });
        shapes.insert(format!("{name}.bias"), vec![rows]);
    };
    pair("embeddings.LayerNorm", WIDTH, 0);
    for layer in (0..LAYERS).map(|layer| format!("encoder.layer.{layer}")) {
        for name in ["query", "key", "value"] {
            pair(&format!("{layer}.attention.self.{name}"), WIDTH, WIDTH);
        }
        pair(&format!("{layer}.attention.output.dense"), WIDTH, WIDTH);
        pair(&format!("{layer}.attention.output.LayerNorm"), WIDTH, 0);
        pair(&format!("{layer}.intermediate.dense"), FFN, WIDTH);
        pair(&format!("{layer}.output.dense"), WIDTH, FFN);
        pair(&format!("{layer}.output.LayerNorm"), WIDTH, 0);
    }
    for (name, rows) in [("word", WORDS.len()), ("position", TOKENS_MAX), ("token_type", 2)] {
        shapes.insert(format!("embeddings.{name}_embeddings.weight"), vec![rows, WIDTH]);
    }
    shapes
}
