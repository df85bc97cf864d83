//! Frozen weights in the layouts of the kernels, straight from the bytes of a file: no f32 copy exists at any time. Refuses
//! to know what is computed with them.

use crate::adapter::Linear;
use crate::config::{BackboneConfig, ConfigError};
use crate::gguf::{GgufError, GgufFile};
use crate::kernels::{MAX_HEAD_DIM, PackError, PackedMatrix, Turns};
use crate::ops::RopeTable;

/// Why weights cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file is unusable.
    #[error(transparent)]
    File(#[from] GgufError),
    /// A tensor does not have the shape it should have.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The shape is not for these kernels.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// All weights of a model.
pub struct PackedWeights {
    pub(super) config: BackboneConfig,
    pub(super) turns: Turns,
    /// `[vocab, hidden]`.
    pub(super) embedding: PackedMatrix,
    /// `[vocab, hidden]`, unless the embedding is the head.
    pub(super) head: Option<PackedMatrix>,
    pub(super) norm: Vec<f32>,
    pub(super) layers: Vec<PackedLayer>,
}

/// Weights of one layer.
pub(super) struct PackedLayer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) ffn_norm: Vec<f32>,
    /// In the order of [`Linear::ALL`].
    linears: Vec<PackedMatrix>,
}

impl PackedLayer {
    pub(super) fn linear(&self, linear: Linear) -> &PackedMatrix {
        &self.linears[linear as usize]
    }
}

/// Where packed weights come from: asked by Hugging Face name and shape.
pub(super) type Source<'a> = dyn FnMut(&str, &[usize]) -> Result<PackedMatrix, WeightsError> + 'a;

impl PackedWeights {
    /// Packs the weights of a file for the shape `config`, tensor after tensor.
    ///
    /// # Errors
    /// See [`WeightsError`].
    pub fn read(file: &GgufFile, config: BackboneConfig) -> Result<Self, WeightsError> {
        let mut bytes = Vec::new();
        Self::new(config, &mut |name, shape| {
            let (format, order) = file.raw(name, shape, &mut bytes)?;
            let (rows, cols) = if let [rows, cols] = *shape { (rows, cols) } else { (1, shape[0]) };
            Ok(PackedMatrix::pack(format, rows, cols, &bytes, &|row| order.source(row))?)
        })
    }

    pub(super) fn new(config: BackboneConfig, source: &mut Source<'_>) -> Result<Self, WeightsError> {
        config.check()?;
        if config.head_dim > MAX_HEAD_DIM {
            return Err(ConfigError("heads are too wide").into());
        }
        let (vocab, hidden) = (config.vocab, config.hidden);
        let embedding = source("model.embed_tokens.weight", &[vocab, hidden])?;
        let head = if config.tied_head { None } else { Some(source("lm_head.weight", &[vocab, hidden])?) };
        let norm = vector(source, "model.norm.weight", hidden)?;
        let layers = (0..config.layers).map(|index| layer(source, index, &config)).collect::<Result<_, _>>()?;
        let table = RopeTable::new(&config);
        let turns = Turns::new(config.head_dim / 2, config.context, |position| table.turns(position));
        Ok(Self { config, turns, embedding, head, norm, layers })
    }

    /// The output head.
    pub(super) fn head(&self) -> &PackedMatrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of weights that one decoded token reads: all but the look-up in an embedding that is not the head.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        let layer = |layer: &PackedLayer| layer.linears.iter().map(PackedMatrix::bytes_len).sum::<usize>();
        self.head().bytes_len() + self.layers.iter().map(layer).sum::<usize>()
    }

    /// Whether a product reads its input as floats, for any of the linear maps.
    pub(super) fn reads_floats(&self, linears: &[Linear]) -> bool {
        let floats = |layer: &PackedLayer| linears.iter().any(|l| !layer.linear(*l).kind().is_quantised());
        self.layers.iter().any(floats)
    }
}

fn vector(source: &mut Source<'_>, name: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
    let packed = source(name, &[len])?;
    let mut numbers = vec![0f32; len];
    packed.unpack_row(0, &mut numbers);
    Ok(numbers)
}

fn layer(source: &mut Source<'_>, index: usize, config: &BackboneConfig) -> Result<PackedLayer, WeightsError> {
    let mut norm = |name: &str| vector(source, &format!("model.layers.{index}.{name}.weight"), config.hidden);
    let attention_norm = norm("input_layernorm")?;
    let ffn_norm = norm("post_attention_layernorm")?;
    let linears = Linear::ALL.iter().map(|linear| {
        let (inner, out) = linear.sides(config);
        source(&format!("model.layers.{index}.{}.weight", linear.name()), &[out, inner])
    });
    Ok(PackedLayer { attention_norm, ffn_norm, linears: linears.collect::<Result<_, _>>()? })
}
