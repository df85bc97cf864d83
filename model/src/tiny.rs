//! A tiny random Llama with a byte-level tokenizer and a chat template, as a file and in memory: for tests and benches,
//! where a real model would take minutes. The only part of this crate that writes a file. Nothing serves with it.

use crate::backbone::Backbone;
use crate::config::{Architecture, BackboneConfig, RopeScaling};
use crate::counter::{Counter, Site};
use crate::gguf::names::{self, RopeRows};
use crate::tokenizer::{Tokenizer, TokenizerError, TokenizerSource, byte_of_char};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

/// Its control tokens, those that end an answer among them.
pub const CONTROL_IDS: std::ops::Range<u32> = 0..CONTROLS.len() as u32;
/// Control tokens, ids from 0.
const CONTROLS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Merges in their order; `Ġ` is a space.
const MERGES: &str =
    "t h,th e,i n,e r,a n,o u,r e,o n,e s,Ġ t,Ġ a,Ġ s,Ġ w,Ġ the,in g,y ou,Ġ you,a t,i s,o r,e n,a r,l l";
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                             + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const END_ID: u32 = 2;

/// Its shape.
#[must_use]
pub fn config() -> BackboneConfig {
    BackboneConfig {
        architecture: Architecture::Llama,
        vocab: tokens().len(),
        hidden: 64,
        ffn: 128,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        context: 512,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tied_head: true,
    }
}

/// Its tokenizer.
///
/// # Errors
/// None in practice.
pub fn tokenizer() -> std::result::Result<Tokenizer, TokenizerError> {
    let (tokens, merges) = (tokens(), merges());
    let kinds: Vec<i64> = kinds(tokens.len()).map(i64::from).collect();
    Tokenizer::new(&TokenizerSource {
        model: "gpt2",
        pre: "smollm",
        tokens: &tokens,
        merges: &merges,
        kinds: &kinds,
        ends: vec![END_ID],
    })
}

/// The model in memory, equal to what [`write_gguf`] writes for the same seed.
///
/// # Errors
/// None in practice.
pub fn backbone(seed: u64) -> Result<Backbone> {
    let device = Device::Cpu;
    Backbone::new(config(), &mut |name, shape| weight(seed, name, shape)?.dequantize(&device), &device)
}

/// Writes the model as a GGUF file.
///
/// # Errors
/// The file cannot be written.
pub fn write_gguf(path: &Path, seed: u64) -> Result<()> {
    let config = config();
    let tensors = shapes(&config)
        .into_iter()
        .map(|(hf_name, shape)| stored(seed, &hf_name, &shape, &config))
        .collect::<Result<Vec<_>>>()?;
    let metadata = metadata(&config);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut BufWriter::new(File::create(path)?), &metadata, &tensors)
}

fn tokens() -> Vec<String> {
    let mut bytes: Vec<(u8, char)> = byte_of_char().into_iter().map(|(character, byte)| (byte, character)).collect();
    bytes.sort_unstable();
    let controls = CONTROLS.iter().map(|word| (*word).to_owned());
    let bytes = bytes.into_iter().map(|(_, character)| character.to_string());
    controls.chain(bytes).chain(merges().iter().map(|merge| merge.replace(' ', ""))).collect()
}

fn merges() -> Vec<String> {
    MERGES.split(',').map(str::to_owned).collect()
}

/// Kind of each token: control, then normal.
fn kinds(count: usize) -> impl Iterator<Item = i32> {
    (0..count).map(|id| if id < CONTROLS.len() { 3 } else { 1 })
}

/// Every tensor by its Hugging Face name.
fn shapes(config: &BackboneConfig) -> Vec<(String, Vec<usize>)> {
    let BackboneConfig { vocab, hidden, ffn, layers, .. } = *config;
    let (query, kv) = (config.query_width(), config.kv_width());
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..layers {
        let inside = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![query, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, query]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
        ];
        shapes.extend(inside.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    shapes
}

/// One weight, packed as it lies in the file: norms and the rows that are rotated as f32, the rest in blocks.
fn weight(seed: u64, name: &str, shape: &[usize]) -> Result<QTensor> {
    let (counter, site) = (Counter::new(seed), Site::new(name, 0));
    let (mean, deviation) = if shape.len() == 1 { (1.0, 0.1) } else { (0.0, 0.15) };
    let count = shape.iter().product::<usize>() as u64;
    let numbers: Vec<f32> = (0..count).map(|i| (mean + deviation * counter.normal(site, i)) as f32).collect();
    let kind = match name.rsplit('.').nth(1) {
        Some("embed_tokens") => GgmlDType::Q8_0,
        Some("gate_proj" | "up_proj" | "down_proj") => GgmlDType::Q4_1,
        Some("v_proj") => GgmlDType::F16,
        Some("o_proj") => GgmlDType::Q4_0,
        _ => GgmlDType::F32,
    };
    QTensor::quantize(&Tensor::from_vec(numbers, shape, &Device::Cpu)?, kind)
}

/// One weight with the name and the order of rows that it has in a file.
fn stored(seed: u64, hf_name: &str, shape: &[usize], config: &BackboneConfig) -> Result<(String, QTensor)> {
    let Some(place) = names::place(hf_name) else { candle_core::bail!("no place for {hf_name}") };
    let heads = match place.rope {
        RopeRows::No => return Ok((place.name, weight(seed, hf_name, shape)?)),
        RopeRows::Query => config.heads,
        RopeRows::Key => config.kv_heads,
    };
    let rows = weight(seed, hf_name, shape)?.dequantize(&Device::Cpu)?;
    Ok((place.name, QTensor::quantize(&names::pairs_from_halves(&rows, heads)?, GgmlDType::F32)?))
}

fn metadata(config: &BackboneConfig) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::String(text.to_owned());
    let texts = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let count = |count: usize| Value::U32(u32::try_from(count).unwrap_or(u32::MAX));
    vec![
        ("general.architecture", text(config.architecture.as_str())),
        ("general.name", text("tiny")),
        ("llama.block_count", count(config.layers)),
        ("llama.context_length", count(config.context)),
        ("llama.embedding_length", count(config.hidden)),
        ("llama.feed_forward_length", count(config.ffn)),
        ("llama.attention.head_count", count(config.heads)),
        ("llama.attention.head_count_kv", count(config.kv_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(config.rms_eps as f32)),
        ("llama.rope.freq_base", Value::F32(config.rope_theta)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("smollm")),
        ("tokenizer.ggml.tokens", texts(tokens())),
        ("tokenizer.ggml.merges", texts(merges())),
        ("tokenizer.ggml.token_type", Value::Array(kinds(config.vocab).map(Value::I32).collect())),
        ("tokenizer.ggml.eos_token_id", Value::U32(END_ID)),
        ("tokenizer.chat_template", text(CHAT_TEMPLATE)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf;

    #[test]
    fn the_file_holds_what_memory_holds() {
        let folder = tempfile::tempdir().expect("scratch");
        let path = folder.path().join("tiny.gguf");
        write_gguf(&path, 3).expect("written");
        let file = gguf::open(&path).expect("opens");
        let read = file.config().expect("config");
        assert_eq!(read, BackboneConfig { rms_eps: read.rms_eps, ..config() });
        for (name, shape) in shapes(&config()) {
            let here = weight(3, &name, &shape).and_then(|weight| weight.dequantize(&Device::Cpu)).expect("weight");
            let there = file.tensor(&name, &shape).expect("tensor");
            let difference = (here - there).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>());
            assert_eq!(difference.expect("numbers"), 0.0, "{name}");
        }
        assert_eq!(file.tokenizer().expect("tokenizer").len(), config().vocab);
    }
}
