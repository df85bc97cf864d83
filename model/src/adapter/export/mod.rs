//! A mixture as files of public formats, in memory and one at a time: plain PEFT for the shared part and for each expert,
//! the router beside them, the same parts as GGUF adapters, and two labelled approximations for programs that mix LoRAs in
//! their own way. Refuses to know where files are kept, who signed them and what training measured.
//!
//! ```text
//! shared/     adapter_config.json  adapter_model.safetensors    plain PEFT LoRA, always on
//! experts/N/  adapter_config.json  adapter_model.safetensors    plain PEFT LoRA of one expert; the gate is its weight
//! router/     router_config.json   router.safetensors           which expert, when
//! gguf/       shared.gguf  N.gguf                                the same parts as llama.cpp applies them
//! compat/     README.md  mixlora/  xlora/                        approximations, labelled so
//! ```

mod compat;
mod lora;
mod peft;
mod router;
#[cfg(test)]
mod tests;

use super::{AdapterError, Mixture};
use crate::config::BackboneConfig;
use empathd_proto::engine::MixtureSpec;
use lora::Part;
use std::collections::BTreeMap;

/// Name of the file that says what a LoRA is, as PEFT calls it.
pub const PEFT_CONFIG: &str = "adapter_config.json";
/// Name of the file that holds its numbers.
pub const PEFT_WEIGHTS: &str = "adapter_model.safetensors";

/// What the files say about the model they belong to.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its name, as other programs look it up.
    pub base_name: &'a str,
    /// SHA-256 of its file.
    pub base_sha256: [u8; 32],
}

/// Who takes the files: a place and what lies there.
type Sink<'a, E> = dyn FnMut(&str, Vec<u8>) -> Result<(), E> + 'a;

/// A mixture with all that its files say.
struct Exported<'a> {
    mixture: &'a Mixture,
    config: &'a BackboneConfig,
    facts: Facts<'a>,
    /// Names of the experts, each once.
    names: Vec<String>,
}

/// Gives every file to `sink`, its place first: relative, with `/`, without `..`. Only one file is in memory at a time.
/// How many there were.
///
/// # Errors
/// [`AdapterError`] when numbers cannot be read back or encoded; whatever `sink` fails with.
pub fn export<E: From<AdapterError>>(
    mixture: &Mixture,
    config: &BackboneConfig,
    facts: Facts<'_>,
    sink: &mut Sink<'_, E>,
) -> Result<u32, E> {
    let exported = Exported { mixture, config, facts, names: expert_names(mixture.spec()) };
    let mut count = 0;
    let mut give = |path: &str, bytes: Vec<u8>| {
        count += 1;
        sink(path, bytes)
    };
    for (folder, name, part) in exported.parts() {
        give(&format!("{folder}/{PEFT_CONFIG}"), peft::config(&exported, part)?)?;
        give(&format!("{folder}/{PEFT_WEIGHTS}"), peft::weights(&exported, part)?)?;
        give(&format!("gguf/{name}.gguf"), lora::gguf(&exported, part)?)?;
    }
    if !exported.names.is_empty() {
        give("router/router_config.json", router::config(&exported)?)?;
        give("router/router.safetensors", router::weights(&exported)?)?;
        compat::files(&exported, &mut give)?;
    }
    Ok(count)
}

impl Exported<'_> {
    fn spec(&self) -> &MixtureSpec {
        self.mixture.spec()
    }

    /// The parts that are a LoRA by themselves: folder, name and what they are.
    fn parts(&self) -> impl Iterator<Item = (String, &str, Part)> {
        let experts = self.names.iter().enumerate();
        let experts = experts.map(|(e, name)| (format!("experts/{name}"), name.as_str(), Part::Expert(e)));
        std::iter::once(("shared".to_owned(), "shared", Part::Shared)).chain(experts)
    }
}

/// Name of each expert, unique and fit for a path: its domain, with its position where another has the same one, or
/// `free_<position>`.
#[must_use]
pub fn expert_names(spec: &MixtureSpec) -> Vec<String> {
    let mut counted = BTreeMap::new();
    spec.experts.iter().flatten().for_each(|domain| *counted.entry(*domain).or_insert(0) += 1);
    let name = |(e, domain): (usize, &Option<_>)| match domain {
        None => format!("free_{e}"),
        Some(domain) if counted[domain] > 1 => format!("{domain}_{e}"),
        Some(domain) => domain.to_string(),
    };
    spec.experts.iter().enumerate().map(name).collect()
}

/// A JSON document as a file.
fn json(value: &serde_json::Value) -> Result<Vec<u8>, AdapterError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| AdapterError::Malformed(error.to_string()))?;
    Ok((text + "\n").into_bytes())
}
