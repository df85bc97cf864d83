//! The router of a mixture as two files of our own: in words what decides, and the numbers of it. Refuses to know LoRAs.

use super::peft::{Blocks, module};
use super::{Exported, json};
use crate::adapter::{AdapterError, Linear, ParameterKind};
use serde_json::json;

/// Version of these files.
const FORMAT: u32 = 1;
/// What a reader has to compute.
const FORMULA: &str = "At layer l and token t, x is the normed input of the feed-forward part. Logits: layers.l.router · x; with a session \
    prior, from layer session_prior.layer on, plus layers.l.prior_weight · log p_t, where p_t = softmax(mean over the tokens up to t of \
    session.head · rms_norm(stream entering that layer), the norm without weights). Gates: softmax over all experts, the top_k \
    largest kept and divided by their sum; with a crisis floor, where p_t of the crisis expert exceeds above, that expert is among \
    them with a gate of at least floor and the others are scaled to a sum of one. \
    y = W·x + scale · (shared B·A·x + sum of gate_e · B_e·A_e·x).";

/// What decides, for whom, and over which parts.
pub(super) fn config(exported: &Exported<'_>) -> Result<Vec<u8>, AdapterError> {
    let spec = exported.spec();
    let expert = |(name, domain): (&String, &Option<_>)| json!({"name": name, "domain": domain, "path": format!("experts/{name}")});
    let experts: Vec<_> = exported.names.iter().zip(&spec.experts).map(expert).collect();
    let routed: Vec<&str> = Linear::ALL.into_iter().filter(|linear| linear.is_routed()).map(module).collect();
    json(&json!({
        "format": FORMAT,
        "base_model_name_or_path": exported.facts.base_name,
        "base_sha256": hex(&exported.facts.base_sha256),
        "experts": experts,
        "top_k": spec.top_k,
        "scale": spec.scale,
        "shared_rank": spec.shared_rank,
        "expert_rank": spec.expert_rank,
        "shared_on": spec.shared_on,
        "routed_on": routed,
        "session_prior": exported.mixture.prior_layer().map(|layer| json!({"layer": layer})),
        "crisis_floor": spec.crisis_floor,
        "formula": FORMULA,
    }))
}

/// Routers, prior weights and session head by the names that training gives them.
pub(super) fn weights(exported: &Exported<'_>) -> Result<Vec<u8>, AdapterError> {
    let mut blocks = Blocks::default();
    for parameter in exported.mixture.parameters() {
        if matches!(parameter.kind, ParameterKind::Router | ParameterKind::Session) {
            blocks.tensor(parameter.name, parameter.tensor)?;
        }
    }
    blocks.into_file()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
