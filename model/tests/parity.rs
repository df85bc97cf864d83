//! The backbone, its adapters, their gradients and the optimiser against the figures of public implementations.
//! What each figure is: `parity/README.md`.
#![expect(clippy::unwrap_used, reason = "a fixture that cannot be read fails the test that needs it")]

use candle_core::{Device, Tensor};
use empathd_model::adapter::Mixture;
use empathd_model::backbone::Backbone;
use empathd_model::config::{Architecture, BackboneConfig, RopeScaling};
use empathd_model::train::{AdamW, Batch, Encoded, Goals, Gradients, Precision, Rate};
use empathd_proto::engine::MixtureSpec;
use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;

/// Largest difference allowed in f32, as a share of the largest number compared with.
const TOLERANCE: f64 = 1e-4;
/// Largest difference of a loss allowed in bf16, as a share of it.
const HALF_LOSS: f64 = 5e-3;
/// Largest difference of all gradients together allowed in bf16, as a share of their norm. PyTorch's own bf16 lies 6.8 % from
/// its f32 on these figures (its loss 0.05 %), since eight bits go through all layers and back.
const HALF_GRADIENT: f64 = 6e-2;

/// One set of figures.
struct Set {
    config: BackboneConfig,
    base: Backbone,
    adapter: Vec<u8>,
    batch: Value,
    expected: HashMap<String, Vec<f32>>,
    figures: Value,
}

#[expect(clippy::disallowed_methods, reason = "another set of figures may be compared with")]
fn folder() -> PathBuf {
    let own = || concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity").into();
    std::env::var_os("EMPATHD_PARITY_DIR").map_or_else(own, PathBuf::from).join("tiny")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

fn floats(view: &TensorView<'_>) -> Vec<f32> {
    view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn config() -> BackboneConfig {
    let file = json("config.json");
    let number = |name: &str| usize::try_from(file[name].as_u64().unwrap()).unwrap();
    BackboneConfig {
        architecture: Architecture::Llama,
        vocab: number("vocab_size"),
        hidden: number("hidden_size"),
        ffn: number("intermediate_size"),
        layers: number("num_hidden_layers"),
        heads: number("num_attention_heads"),
        kv_heads: number("num_key_value_heads"),
        head_dim: number("head_dim"),
        context: number("max_position_embeddings"),
        rms_eps: file["rms_norm_eps"].as_f64().unwrap(),
        rope_theta: file["rope_parameters"]["rope_theta"].as_f64().unwrap() as f32,
        rope_scaling: RopeScaling::None,
        tied_head: file["tie_word_embeddings"].as_bool().unwrap(),
    }
}

fn set() -> Set {
    let config = config();
    let bytes = std::fs::read(folder().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut weights = |name: &str, shape: &[usize]| {
        let view = file.tensor(name).map_err(candle_core::Error::wrap)?;
        assert_eq!(view.shape(), shape, "{name}");
        Tensor::from_vec(floats(&view), shape, &Device::Cpu)
    };
    let base = Backbone::new(config.clone(), &mut weights, &empathd_model::device::open().unwrap()).unwrap();
    let bytes = std::fs::read(folder().join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let expected = file.tensors().into_iter().map(|(name, view)| (name, floats(&view))).collect();
    let adapter = std::fs::read(folder().join("adapter.safetensors")).unwrap();
    Set { config, base, adapter, batch: json("batch.json"), expected, figures: json("expected.json") }
}

/// A safetensors file as a source of rows.
fn rows_of(view: &TensorView<'_>, row: &mut dyn FnMut(usize, &[f32])) {
    let numbers = floats(view);
    let width = view.shape().last().copied().unwrap_or(1);
    numbers.chunks_exact(width).enumerate().for_each(|(at, numbers)| row(at, numbers));
}

impl Set {
    /// The way by tensors.
    fn reference(&self) -> Gradients {
        Gradients::reference(self.base.clone())
    }

    /// The way by own kernels.
    fn packed(&self, precision: Precision) -> Gradients {
        let bytes = std::fs::read(folder().join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut source = |name: &str, shape: &[usize], row: &mut dyn FnMut(usize, &[f32])| {
            let view = file.tensor(name).unwrap();
            assert_eq!(view.shape(), shape, "{name}");
            rows_of(&view, row);
            Ok(())
        };
        Gradients::open(self.config.clone(), &mut source, precision, 2).unwrap()
    }

    /// The plain LoRA as a mixture without experts: its tensors in the place of a fresh mixture's.
    fn mixture(&self) -> Mixture {
        let rank = u32::try_from(self.batch["r"].as_u64().unwrap()).unwrap();
        let scale = (self.batch["alpha"].as_f64().unwrap() / f64::from(rank)) as f32;
        let spec = MixtureSpec {
            shared_rank: rank,
            expert_rank: 0,
            experts: vec![],
            top_k: 0,
            scale,
            ..MixtureSpec::default()
        };
        let fresh = Mixture::init(&self.config, &spec, 0).unwrap().to_bytes([0; 32]).unwrap();
        let (_, head) = SafeTensors::read_metadata(&fresh).unwrap();
        let lora = SafeTensors::deserialize(&self.adapter).unwrap();
        let renamed = lora.tensors().into_iter().map(|(name, view)| (format!("shared/{name}"), view));
        let bytes = safetensors::serialize(renamed, head.metadata().clone()).unwrap();
        Mixture::from_bytes(&bytes, &self.config, [0; 32]).unwrap()
    }

    fn conversations(&self) -> Vec<Encoded> {
        let rows = |name: &str| -> Vec<Vec<u32>> { serde_json::from_value(self.batch[name].clone()).unwrap() };
        let target = |mask: Vec<u32>| mask.into_iter().map(|bit| bit == 1).collect();
        let pairs = rows("input_ids").into_iter().zip(rows("target_mask"));
        pairs.map(|(ids, mask)| Encoded { ids, target: target(mask) }).collect()
    }

    /// Loss and gradients at these numbers.
    fn gradients(&self, trainer: &mut Gradients, shape: &Mixture, numbers: &[Vec<f32>]) -> (f64, Vec<Vec<f32>>) {
        let mixture = shape.map(|i, like| Tensor::from_slice(&numbers[i], like.dims(), self.base.device())).unwrap();
        let conversations = self.conversations();
        let batch = Batch::pack(&conversations);
        let weights = vec![1.0 / batch.target_tokens() as f32; batch.target_tokens()];
        let goals = Goals { weights: &weights, kept: &[], routers: None };
        trainer.hold(&mixture, batch.tokens()).unwrap();
        let mut sums: Vec<Vec<f32>> = numbers.iter().map(|n| vec![0.0; n.len()]).collect();
        let loss = trainer.pass(&batch, &goals, &mut sums, &mut || ()).unwrap().language;
        (loss, sums)
    }
}

/// PEFT's name of one of our parameters, `layers.0.mlp.up_proj.a`.
fn peft(name: &str) -> String {
    let (path, side) = name.rsplit_once('.').unwrap();
    format!("base_model.model.model.{path}.lora_{}.weight", side.to_ascii_uppercase())
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0f64, |top, x| top.max(f64::from(x.abs())));
    let apart = found.iter().zip(expected).fold(0f64, |top, (a, b)| top.max(f64::from((a - b).abs())));
    assert!(apart <= TOLERANCE * scale, "{what}: {apart} apart at a scale of {scale}");
}

fn numbers(mixture: &Mixture) -> (Vec<String>, Vec<Vec<f32>>) {
    let one = |p: empathd_model::adapter::Parameter<'_>| (p.name, p.tensor.flatten_all().unwrap().to_vec1().unwrap());
    mixture.parameters().into_iter().map(one).unzip()
}

#[test]
fn logits_are_those_of_the_reference() {
    let set = set();
    let mixture = set.mixture().to_device(set.base.device()).unwrap();
    let logits = set.conversations().into_iter().map(|one| set.base.logits_all(&one.ids, Some(&mixture)).unwrap());
    let all: Vec<f32> = logits.flat_map(|l| l.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
    assert_close("logits", &all, &set.expected["logits"]);
}

#[test]
fn loss_and_gradients_are_those_of_the_reference() {
    let set = set();
    let mixture = set.mixture();
    let (names, start) = numbers(&mixture);
    for mut trainer in [set.reference(), set.packed(Precision::Single)] {
        let (loss, gradients) = set.gradients(&mut trainer, &mixture, &start);
        let expected = set.figures["loss"].as_f64().unwrap();
        assert!((loss - expected).abs() < TOLERANCE * expected, "{loss} {expected}");
        assert_eq!(gradients.len(), set.config.layers * 14);
        for (name, gradient) in names.iter().zip(&gradients) {
            assert_close(name, gradient, &set.expected[&format!("grad.{}", peft(name))]);
        }
    }
}

#[test]
fn in_bf16_loss_and_gradients_are_near_those_of_the_reference() {
    let set = set();
    let mixture = set.mixture();
    let (names, start) = numbers(&mixture);
    let (loss, gradients) = set.gradients(&mut set.packed(Precision::Half), &mixture, &start);
    let expected = set.figures["loss"].as_f64().unwrap();
    assert!((loss - expected).abs() < HALF_LOSS * expected, "{loss} {expected}");
    let expected: Vec<f32> =
        names.iter().flat_map(|name| &set.expected[&format!("grad.{}", peft(name))]).copied().collect();
    let norm =
        |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    let found = gradients.concat();
    let apart = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
    assert!(apart < HALF_GRADIENT, "{apart}");
}

#[test]
fn ten_steps_of_adamw_are_those_of_the_reference() {
    let set = set();
    for trainer in [set.reference(), set.packed(Precision::Single)] {
        ten_steps(&set, trainer);
    }
}

fn ten_steps(set: &Set, mut trainer: Gradients) {
    let mixture = set.mixture();
    let (names, mut weights) = numbers(&mixture);
    let settings = &set.figures["adamw"];
    let setting = |name: &str| settings[name].as_f64().unwrap() as f32;
    let rates = vec![Some(Rate { rate: setting("lr"), decay: setting("weight_decay") }); weights.len()];
    let mut adam = AdamW::new(&weights);
    for step in set.figures["steps"].as_array().unwrap() {
        let (loss, mut gradients) = set.gradients(&mut trainer, &mixture, &weights);
        let norm = adam.step(&mut weights, &mut gradients, &rates, setting("clip_global_norm"));
        for (found, name) in [(loss, "loss_before"), (norm, "grad_norm_before_clip")] {
            let expected = step[name].as_f64().unwrap();
            assert!(
                (found - expected).abs() < 2.0 * TOLERANCE * expected,
                "{name} at {}: {found} {expected}",
                step["step"]
            );
        }
    }
    for (name, found) in names.iter().zip(&weights) {
        assert_close(name, found, &set.expected[&format!("after10.{}", peft(name))]);
    }
}
