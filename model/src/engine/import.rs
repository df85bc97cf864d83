//! Two files of a public LoRA arrive and a mixture leaves. Refuses to know formats.

use super::blob::Assembly;
use super::works::Works;
use crate::adapter::import::{ImportError, MAX_CONFIG_BYTES, MAX_WEIGHTS_BYTES, PeftLora, Wish, import};
use crate::infer::Model;
use crate::infer::compute::ServingAdapter;
use crate::schedule::Cancel;
use empathd_proto::engine::{BlobHead, EngineFailure, FromEngineBody, PeftFile};
use empathd_proto::record::Domain;
use std::sync::Arc;

/// What is asked for, and the files as far as they are there.
pub(super) struct Arriving {
    pub(super) model: Arc<Model>,
    pub(super) onto: Option<Arc<ServingAdapter>>,
    pub(super) domain: Option<Domain>,
    pub(super) attention_to_shared: bool,
    /// In the order of their announcement; at most one of each.
    pub(super) files: Vec<(PeftFile, Assembly)>,
}

/// A job with everything it needs.
pub(super) struct Import {
    pub(super) tag: u64,
    pub(super) cancel: Cancel,
    pub(super) asked: Arriving,
}

fn protocol(words: &str) -> EngineFailure {
    EngineFailure::Protocol(words.to_owned())
}

fn bad(error: &ImportError) -> EngineFailure {
    EngineFailure::BadAdapter(error.to_string())
}

impl Arriving {
    /// A file is announced. It is refused by its size before any of it is here.
    pub(super) fn announce(&mut self, file: PeftFile, head: BlobHead) -> Result<(), EngineFailure> {
        if !self.is_whole() || self.files.iter().any(|(known, _)| *known == file) {
            return Err(protocol("a file is announced twice, or inside another one"));
        }
        let (name, limit) = match file {
            PeftFile::Config => ("adapter_config.json", MAX_CONFIG_BYTES),
            PeftFile::Weights => ("adapter_model.safetensors", MAX_WEIGHTS_BYTES),
        };
        if head.bytes > limit as u64 {
            return Err(bad(&ImportError::File(format!("{name} has more than {limit} bytes"))));
        }
        let assembly = Assembly::new(head).map_err(|error| EngineFailure::BadAdapter(error.to_string()))?;
        self.files.push((file, assembly));
        Ok(())
    }

    /// More of the file that was announced last.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<(), EngineFailure> {
        let (_, blob) = self.files.last_mut().ok_or_else(|| protocol("a chunk of no file"))?;
        blob.push(chunk).map(drop).map_err(|error| EngineFailure::BadAdapter(error.to_string()))
    }

    /// Whether nothing is missing of what was announced.
    pub(super) fn is_whole(&self) -> bool {
        self.files.iter().all(|(_, blob)| blob.is_complete())
    }
}

impl Import {
    /// Sends the new mixture, then its shape.
    pub(super) fn run(self, works: &Works) -> Result<(), EngineFailure> {
        let Arriving { model, onto, domain, attention_to_shared, files } = self.asked;
        let mut files: Vec<(PeftFile, Vec<u8>)> =
            files.into_iter().map(|(file, blob)| (file, blob.into_bytes())).collect();
        let mut take = |wanted: PeftFile| {
            let at = files.iter().position(|(file, _)| *file == wanted);
            at.map(|at| files.swap_remove(at).1).ok_or_else(|| protocol("one of the two files is missing"))
        };
        let (config, weights) = (take(PeftFile::Config)?, take(PeftFile::Weights)?);
        let lora = PeftLora::read(&config, &weights, model.config()).map_err(|error| bad(&error))?;
        // The same file gives the same expert.
        let seed = u64::from_le_bytes(blake3::hash(&weights).as_bytes().first_chunk().copied().unwrap_or_default());
        let wish = Wish { domain, attention_to_shared, seed };
        let mixture = import(onto.as_ref().map(|adapter| &adapter.mixture), model.config(), &lora, wish);
        let mixture = mixture.map_err(|error| bad(&error))?;
        if self.cancel.is_set() {
            return Err(EngineFailure::Cancelled);
        }
        let bytes =
            mixture.to_bytes(model.facts.sha256).map_err(|error| EngineFailure::BadAdapter(error.to_string()))?;
        // Whoever is gone needs no answer.
        let _ = works
            .say_blob(self.tag, &bytes, |blob| FromEngineBody::Adapter { blob })
            .and_then(|()| works.say(self.tag, FromEngineBody::Imported(mixture.spec().clone())));
        Ok(())
    }
}
