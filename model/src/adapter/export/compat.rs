//! The mixture for programs that mix LoRAs in their own way: MixLoRA (MoE-PEFT) and X-LoRA (PEFT, mistral.rs). Both compute
//! something else than we do, so each says that it is an approximation. Refuses to know what an exact export is.

use super::lora::Part;
use super::peft::{self, Blocks, module, number};
use super::{Exported, PEFT_CONFIG, PEFT_WEIGHTS, json};
use crate::adapter::{AdapterError, Linear};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

/// For whoever opens the folder.
const README: &str = "# Approximations\n\n\
    These folders let other programs mix the experts. They do not give the numbers that the mixture was trained and evaluated with; \
    for those use `shared/`, `experts/` and `router/` one level up. No evaluation of the mixture holds for what these files compute.\n\n\
    `mixlora/`: MixLoRA (MoE-PEFT) runs a whole feed-forward part for each chosen expert and adds the results; here corrections are \
    added inside one feed-forward part. Both agree where one expert is chosen. It knows no shared feed-forward part, so that the \
    shared part is joined to every expert; it knows no session prior and no crisis floor. Its loader reads `.bin`: convert with \
    `torch.save(safetensors.torch.load_file(\"adapter_model.safetensors\"), \"adapter_model.bin\")`.\n\n\
    `xlora/`: X-LoRA (PEFT, mistral.rs) weighs whole LoRAs for a token, from a first pass over the plain model; here each layer \
    chooses for itself. Its adapters are the shared part joined to one expert each; its classifier is the session head, which was \
    trained on an earlier layer, and is zero where there is none. It knows no choice of a few and no crisis floor.\n";

/// Gives every file to `give`.
pub(super) fn files<E: From<AdapterError>>(exported: &Exported<'_>, give: &mut super::Sink<'_, E>) -> Result<(), E> {
    give("compat/README.md", README.as_bytes().to_vec())?;
    give(&format!("compat/mixlora/{PEFT_CONFIG}"), mixlora_config(exported)?)?;
    give(&format!("compat/mixlora/{PEFT_WEIGHTS}"), mixlora_weights(exported)?)?;
    for (e, name) in exported.names.iter().enumerate() {
        let part = Part::Both(e);
        give(&format!("compat/xlora/adapters/{name}/{PEFT_CONFIG}"), peft::config(exported, part)?)?;
        give(&format!("compat/xlora/adapters/{name}/{PEFT_WEIGHTS}"), peft::weights(exported, part)?)?;
    }
    give("compat/xlora/xlora_config.json", xlora_config(exported)?)?;
    give("compat/xlora/xlora_classifier.safetensors", xlora_classifier(exported)?)?;
    give("compat/xlora/ordering.json", ordering(exported)?)
}

fn mixlora_config(exported: &Exported<'_>) -> Result<Vec<u8>, AdapterError> {
    let (shared, both) = (Part::Shared, Part::Both(0));
    let modules: Vec<&str> = both.linears(exported).into_iter().map(module).collect();
    let lora = |part: Part| {
        json!({
            "r": part.rank(exported),
            "lora_alpha": number(part.alpha(exported)),
            "lora_dropout": 0.0,
            "bias": "none",
            "use_dora": false,
            "use_rslora": false,
        })
    };
    let Value::Object(mut config) = lora(shared) else { return json(&Value::Null) };
    let more = json!({
        "peft_type": "MIXLORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": exported.facts.base_name,
        "target_modules": modules,
        "expert_lora": lora(both),
        "routing_strategy": "mixlora",
        "num_experts": exported.names.len(),
        "top_k": exported.spec().top_k,
        "router_aux_loss_coef": 0.01,
        "router_init_range": 0.02,
        "jitter_noise": 0.0,
        "act_fn": "silu",
        "empathd_approximate": true,
    });
    config.extend(more.as_object().cloned().unwrap_or_default());
    json(&Value::Object(config))
}

fn mixlora_weights(exported: &Exported<'_>) -> Result<Vec<u8>, AdapterError> {
    let mut blocks = Blocks::default();
    for layer in 0..exported.config.layers {
        for linear in Linear::ALL {
            let name = format!("mixlora.layers.{layer}.{}", linear.name());
            if !linear.is_routed() {
                if let Some(pair) = Part::Shared.pair(exported, layer, linear)? {
                    blocks.pair(&name, &pair)?;
                }
                continue;
            }
            for e in 0..exported.names.len() {
                if let Some(pair) = Part::Both(e).pair(exported, layer, linear)? {
                    blocks.pair(&format!("{name}.experts.{e}"), &pair)?;
                }
            }
        }
        if let Some(router) = exported.mixture.layer(layer).router() {
            blocks.tensor(format!("mixlora.layers.{layer}.mlp.moe_gate.weight"), router)?;
        }
    }
    blocks.into_file()
}

fn xlora_config(exported: &Exported<'_>) -> Result<Vec<u8>, AdapterError> {
    let adapters = exported.names.iter().map(|name| (name.clone(), json!(format!("adapters/{name}"))));
    json(&json!({
        "peft_type": "XLORA",
        "task_type": "CAUSAL_LM",
        "base_model_id": exported.facts.base_name,
        "hidden_size": exported.config.hidden,
        "adapters": adapters.collect::<Map<_, _>>(),
        "layerwise_scalings": false,
        "enable_softmax": true,
        "enable_softmax_topk": false,
        "softmax_temperature": 1.0,
        "xlora_depth": 1,
        "xlora_size": 2048,
        "xlora_dropout_p": 0.0,
        "enable_relu_and_dropout": false,
        "use_bias": true,
        "use_trainable_adapters": false,
        "scaling_pass_value": 0.0,
        "global_scaling_weight": 1.0,
        "top_k_lora": null,
        "empathd_approximate": true,
    }))
}

/// One linear map from the last hidden state to the weights of the adapters.
fn xlora_classifier(exported: &Exported<'_>) -> Result<Vec<u8>, AdapterError> {
    let experts = exported.names.len();
    let weight = match exported.mixture.session_head() {
        Some(head) => head.clone(),
        None => Tensor::zeros((experts, exported.config.hidden), DType::F32, &Device::Cpu)?,
    };
    let mut blocks = Blocks::default();
    blocks.tensor("last.weight".to_owned(), &weight)?;
    blocks.tensor("last.bias".to_owned(), &Tensor::zeros(experts, DType::F32, &Device::Cpu)?)?;
    blocks.into_file()
}

/// What mistral.rs asks for beside the configuration: the order of the adapters and the places they work at.
fn ordering(exported: &Exported<'_>) -> Result<Vec<u8>, AdapterError> {
    let linears = Part::Both(0).linears(exported);
    let places = (0..exported.config.layers).flat_map(|layer| linears.iter().map(move |linear| (layer, linear)));
    let places = places.enumerate();
    let layers = places.map(|(at, (layer, linear))| (format!("model.layers.{layer}.{}", linear.name()), json!(at)));
    json(&json!({
        "base_model_id": exported.facts.base_name,
        "order": exported.names,
        "layers": layers.collect::<Map<_, _>>(),
        "preload_adapters": null,
    }))
}
