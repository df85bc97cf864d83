//! A base model ready to answer: the weights of one file as answers read them, its tokenizer and template. Training's
//! f32 weights are read from the same file when they are asked for and dropped with their last user. Refuses to know
//! where files are found.

use super::compute::{Compute, ReferenceExecutor, ServingAdapter};
use crate::adapter::Mixture;
use crate::backbone::{Backbone, WeakBackbone};
use crate::config::{BackboneConfig, ConfigError, RopeScaling};
use crate::gguf::{self, GgufError, GgufFile};
use crate::packed::{Executor, PackedWeights, WeightsError};
use crate::template::{ChatFormat, TemplateError};
use crate::train::{Gradients, Precision, TrainError};
use candle_core::Device;
use empathd_proto::engine::{BaseModel, ComputePath, RopeSpec, ServingSpec};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Longest context that can be asked for, tokens.
pub const MAX_CONTEXT: usize = 1 << 20;

/// Why a base model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file is unusable.
    #[error(transparent)]
    File(#[from] GgufError),
    /// It is another file.
    #[error("its SHA-256 is not the expected one; fetch the file again")]
    Digest,
    /// Its template is unusable.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// It has more tokens than rows in its embedding.
    #[error("its tokenizer has more tokens than its embedding has rows; the file is damaged")]
    Vocabulary,
    /// The serving settings do not fit it.
    #[error("it cannot be served as configured: {0}")]
    Serving(#[from] ConfigError),
    /// The weights cannot be packed.
    #[error(transparent)]
    Pack(#[from] WeightsError),
    /// There is no memory for keys and values.
    #[error("there is no room for keys and values ({0}); configure less of it")]
    Memory(std::io::ErrorKind),
    /// The weights cannot be taken into memory.
    #[error("its weights cannot be loaded: {0}")]
    Weights(candle_core::Error),
}

/// A base model in memory.
pub struct Model {
    /// Tokenizer and template.
    pub format: Arc<ChatFormat>,
    /// What others are told about it.
    pub facts: BaseModel,
    config: BackboneConfig,
    file: GgufFile,
    device: Device,
    serving: ServingSpec,
    threads: usize,
    /// There when answers are computed with packed weights.
    packed: Option<Arc<PackedWeights>>,
    backbone: Mutex<WeakBackbone>,
}

impl Model {
    /// Opens the file at `path`, whose SHA-256 must be `sha256`, to answer on `device` with `threads` threads.
    ///
    /// # Errors
    /// See [`ModelError`]. Nothing of a file with another digest is used.
    pub fn open(
        path: &Path,
        sha256: [u8; 32],
        device: &Device,
        serving: &ServingSpec,
        threads: usize,
    ) -> Result<Self, ModelError> {
        let file = gguf::open(path)?;
        if file.sha256()? != sha256 {
            return Err(ModelError::Digest);
        }
        let config = served(file.config()?, serving)?;
        let tokenizer = file.tokenizer()?;
        if tokenizer.len() > config.vocab {
            return Err(ModelError::Vocabulary);
        }
        let facts = BaseModel {
            name: file.name(),
            architecture: config.architecture.as_str().to_owned(),
            parameters: file.parameters(),
            context: u32::try_from(config.context).unwrap_or(u32::MAX),
            sha256,
        };
        let format = Arc::new(ChatFormat::new(tokenizer, file.chat_template())?);
        // Own kernels are for the processor; elsewhere answers are computed by candle.
        let packs = serving.path == ComputePath::Packed && device.is_cpu();
        let packed = packs.then(|| PackedWeights::read(&file, config.clone()).map(Arc::new)).transpose()?;
        let (device, serving) = (device.clone(), serving.clone());
        Ok(Self { format, facts, config, file, device, serving, threads, packed, backbone: Mutex::default() })
    }

    /// Its shape, with the context and the stretching it is served with.
    #[must_use]
    pub const fn config(&self) -> &BackboneConfig {
        &self.config
    }

    /// What computes answers, with empty slots.
    ///
    /// # Errors
    /// [`ModelError::File`], [`ModelError::Weights`] or [`ModelError::Memory`].
    pub fn compute(&self) -> Result<Compute, ModelError> {
        if let Some(weights) = &self.packed {
            let executor = Executor::new(Arc::clone(weights), self.serving.kv_mib, self.threads);
            return Ok(Compute::Packed(Box::new(executor.map_err(|error| ModelError::Memory(error.kind()))?)));
        }
        let reference = ReferenceExecutor::new(self.backbone()?, self.serving.kv_mib);
        Ok(Compute::Reference(Box::new(reference)))
    }

    /// An adapter generation as [`Model::compute`] reads it.
    ///
    /// # Errors
    /// [`ModelError::Weights`] when it does not fit.
    pub fn adapter(&self, mixture: Mixture) -> Result<ServingAdapter, ModelError> {
        if self.packed.is_some() {
            return ServingAdapter::packed(mixture, &self.config).map_err(ModelError::Weights);
        }
        let mixture = mixture.map(|_, tensor| tensor.to_device(&self.device)).map_err(ModelError::Weights)?;
        Ok(ServingAdapter::plain(mixture))
    }

    /// What finds gradients over the base model: by own kernels on the processor, whose weights are read row by row, by
    /// tensors elsewhere.
    ///
    /// # Errors
    /// [`ModelError::File`] or [`ModelError::Weights`].
    pub fn gradients(&self, threads: usize) -> Result<Gradients, ModelError> {
        if !self.device.is_cpu() {
            return Ok(Gradients::reference(self.backbone()?));
        }
        let mut rows = |name: &str, shape: &[usize], take: &mut dyn FnMut(usize, &[f32])| {
            self.file.rows(name, shape, take).map_err(|error| TrainError::Tensor(candle_core::Error::wrap(error)))
        };
        let gradients = Gradients::open(self.config.clone(), &mut rows, Precision::of_machine(), threads);
        gradients.map_err(|error| ModelError::Weights(candle_core::Error::wrap(error)))
    }

    /// The weights as training reads them, f32: read from the file unless somebody still has them.
    ///
    /// # Errors
    /// [`ModelError::File`] or [`ModelError::Weights`].
    pub fn backbone(&self) -> Result<Backbone, ModelError> {
        let mut kept = self.backbone.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backbone) = kept.upgrade() {
            return Ok(backbone);
        }
        let backbone = load(&self.file, self.config.clone(), &self.device)?;
        *kept = backbone.downgrade();
        Ok(backbone)
    }
}

/// The shape with the context and the stretching that were asked for. A longer context needs a stretching, because the
/// model never saw such positions, and is no longer than it reaches.
fn served(mut config: BackboneConfig, serving: &ServingSpec) -> Result<BackboneConfig, ModelError> {
    let mut reach = config.context as f64;
    if let Some(rope) = serving.rope {
        let (scaling, factor, original) = stretched(rope, config.context);
        config.rope_scaling = scaling;
        reach = (f64::from(factor) * original as f64).max(reach);
    }
    if let Some(context) = serving.context {
        config.context = context as usize;
        if config.context > MAX_CONTEXT {
            return Err(ConfigError("the context is too long").into());
        }
        if config.context as f64 > reach {
            return Err(ConfigError("a context beyond the trained one needs positions stretched as far").into());
        }
    }
    config.check()?;
    Ok(config)
}

/// A stretching, how many times it reaches, and beyond which context.
const fn stretched(rope: RopeSpec, trained: usize) -> (RopeScaling, f32, usize) {
    match rope {
        RopeSpec::Linear { factor } => (RopeScaling::Linear { factor }, factor, trained),
        RopeSpec::Yarn { factor, original_context } => {
            let original_context = original_context as usize;
            (RopeScaling::Yarn { factor, original_context }, factor, original_context)
        }
        RopeSpec::Llama3 { factor, original_context } => {
            let original_context = original_context as usize;
            // The ramp that Llama 3.1 was published with.
            let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
            let scaling = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context };
            (scaling, factor, original_context)
        }
    }
}

/// The weights, with the file's own error when it is at fault.
fn load(file: &GgufFile, config: BackboneConfig, device: &Device) -> Result<Backbone, ModelError> {
    let mut fault = None;
    let backbone = Backbone::new(
        config,
        &mut |name, shape| match file.tensor(name, shape) {
            Ok(tensor) => tensor.to_device(device),
            Err(error) => {
                let words = error.to_string();
                fault = Some(error);
                Err(candle_core::Error::Msg(words))
            }
        },
        device,
    );
    backbone.map_err(|error| fault.map_or(ModelError::Weights(error), ModelError::File))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::compute::{LogitRows, SlotId, Span};
    use crate::tiny;

    const YARN: RopeSpec = RopeSpec::Yarn { factor: 4.0, original_context: 512 };

    fn open(path: ComputePath, context: Option<u32>, rope: Option<RopeSpec>) -> Result<Model, ModelError> {
        let folder = tempfile::tempdir().expect("scratch");
        let file = folder.path().join("tiny.gguf");
        tiny::write_gguf(&file, 3).expect("written");
        let sha256 = gguf::open(&file).and_then(|file| file.sha256()).expect("digest");
        let serving = ServingSpec { path, context, rope, kv_mib: 16, ..ServingSpec::default() };
        Model::open(&file, sha256, &Device::Cpu, &serving, 2)
    }

    /// The last logits of `ids`, read in pieces.
    fn last(model: &Model, ids: &[u32]) -> Vec<f32> {
        let mut compute = model.compute().expect("slots");
        let mut found = Vec::new();
        for ids in ids.chunks(compute.rows_max()) {
            let span = Span { slot: SlotId(0), ids, adapter: None, logits: LogitRows::Last };
            found = compute.pass(&[span], &mut []).expect("a pass").to_vec();
        }
        found
    }

    #[test]
    fn packed_weights_answer_unless_the_plain_way_is_asked_for() {
        assert_eq!(ServingSpec::default().path, ComputePath::Packed);
        let packed = open(ComputePath::Packed, None, None).and_then(|model| model.compute()).expect("slots");
        assert!(matches!(packed, Compute::Packed(_)));
        let plain = open(ComputePath::Reference, None, None).and_then(|model| model.compute()).expect("slots");
        assert!(matches!(plain, Compute::Reference(_)));
    }

    #[test]
    fn beyond_the_trained_context_both_ways_read_stretched_positions_alike() {
        let ids: Vec<u32> = (0..1500).map(|i| 10 + i * 37 % 200).collect();
        let stretched = [
            Some(RopeSpec::Linear { factor: 4.0 }),
            Some(YARN),
            Some(RopeSpec::Llama3 { factor: 4.0, original_context: 512 }),
        ];
        let mut before: Option<Vec<f32>> = None;
        for rope in stretched {
            let found = [ComputePath::Packed, ComputePath::Reference]
                .map(|path| last(&open(path, Some(2048), rope).expect("opens"), &ids));
            let size = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let apart = size(&mut found[0].iter().zip(&found[1]).map(|(a, b)| a - b));
            let apart = apart / size(&mut found[1].iter().copied());
            assert!(apart < 0.05, "{rope:?}: {apart}");
            assert_ne!(before, Some(found[0].clone()), "a stretching has no effect");
            before = Some(found[0].clone());
        }
    }

    #[test]
    fn contexts_that_positions_do_not_reach_are_refused() {
        let refused =
            |context, rope| matches!(open(ComputePath::Packed, Some(context), rope), Err(ModelError::Serving(_)));
        assert!(!refused(512, None) && !refused(100, None) && !refused(2048, Some(YARN)));
        assert!(refused(513, None) && refused(2049, Some(YARN)) && refused(u32::MAX, Some(YARN)));
        assert!(refused(600, Some(RopeSpec::Linear { factor: f32::NAN })));
        assert!(refused(600, Some(RopeSpec::Linear { factor: 0.5 })));
        assert!(refused(600, Some(RopeSpec::Yarn { factor: 2.0, original_context: 0 })));
    }
}
