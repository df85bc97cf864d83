//! A LoRA as PEFT keeps it: `adapter_config.json` and `adapter_model.safetensors`, without anything that a reader of plain
//! LoRAs refuses. Refuses to know routers.

use super::lora::{Pair, Part};
use super::{Exported, json};
use crate::adapter::{AdapterError, Linear, write};
use candle_core::Tensor;
use serde_json::{Value, json};

/// What the LoRA is.
pub(super) fn config(exported: &Exported<'_>, part: Part) -> Result<Vec<u8>, AdapterError> {
    let linears = part.linears(exported);
    let modules: Vec<&str> = linears.iter().map(|linear| module(*linear)).collect();
    json(&json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": exported.facts.base_name,
        "revision": null,
        "inference_mode": true,
        "r": part.rank(exported),
        "lora_alpha": number(part.alpha(exported)),
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": false,
        "use_rslora": false,
    }))
}

/// Its numbers, f32.
pub(super) fn weights(exported: &Exported<'_>, part: Part) -> Result<Vec<u8>, AdapterError> {
    let mut blocks = Blocks::default();
    for layer in 0..exported.config.layers {
        for linear in Linear::ALL {
            if let Some(pair) = part.pair(exported, layer, linear)? {
                blocks.pair(&format!("base_model.model.model.layers.{layer}.{}", linear.name()), &pair)?;
            }
        }
    }
    blocks.into_file()
}

/// The last word of a map's name, as `target_modules` wants it.
pub(super) fn module(linear: Linear) -> &'static str {
    linear.name().rsplit('.').next().unwrap_or_default()
}

/// A whole number where it is one: not every reader of a config takes `32.0`.
pub(super) fn number(value: f32) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 { json!(value as i64) } else { json!(value) }
}

/// Tensors on their way into a safetensors file.
#[derive(Default)]
pub(super) struct Blocks(Vec<(String, Vec<usize>, Vec<f32>)>);

impl Blocks {
    /// Both sides of a pair, by PEFT's words.
    pub(super) fn pair(&mut self, module: &str, pair: &Pair) -> Result<(), AdapterError> {
        self.tensor(format!("{module}.lora_A.weight"), &pair.a)?;
        self.tensor(format!("{module}.lora_B.weight"), &pair.b)
    }

    pub(super) fn tensor(&mut self, name: String, tensor: &Tensor) -> Result<(), AdapterError> {
        self.0.push((name, tensor.dims().to_vec(), tensor.flatten_all()?.to_vec1()?));
        Ok(())
    }

    /// The file; its metadata say what PyTorch's own writer says.
    pub(super) fn into_file(self) -> Result<Vec<u8>, AdapterError> {
        let blocks = self.0.iter().map(|(name, shape, data)| (name.clone(), shape.clone(), data.as_slice()));
        write(blocks, "format", "pt".to_owned()).map_err(AdapterError::Malformed)
    }
}
