//! Frozen weights in the layouts of the kernels, straight from the bytes of a file, tensor after tensor: no f32 copy exists at any
//! time, and nothing of the file stays in memory. All matrices lie in one arena in the order in which a pass reads them.
//! Refuses to know what is computed with them.

use crate::adapter::Linear;
use crate::config::{BackboneConfig, ConfigError};
use crate::gguf::{GgufError, GgufFile};
use crate::kernels::{Arena, MAX_HEAD_DIM, PackError, PackKind, PackedMatrix, Turns};
use crate::ops::RopeTable;

/// Why weights cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file is unusable.
    #[error(transparent)]
    File(#[from] GgufError),
    /// A tensor does not have the shape it should have.
    #[error("tensor {name}: {error}")]
    Pack {
        /// Its name.
        name: String,
        /// What is wrong.
        error: PackError,
    },
    /// A tensor has weights that are infinite or no numbers.
    #[error("tensor {0} has weights that are no numbers; the file is damaged, fetch it again")]
    NotFinite(String),
    /// The shape contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The shape is not for these kernels.
    #[error("the kernels of packed weights do not take {0}; serve this model with the path `reference`")]
    Unsupported(&'static str),
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

/// Where packed weights come from: asked by Hugging Face name and shape; matrices for the arena.
pub(super) type Source<'a> = dyn FnMut(&str, &[usize], Option<&mut Arena>) -> Result<PackedMatrix, WeightsError> + 'a;

/// Kind of a matrix by Hugging Face name and shape.
type Kinds<'a> = dyn Fn(&str, &[usize]) -> Result<PackKind, WeightsError> + 'a;

impl PackedWeights {
    /// Packs the weights of a file for the shape `config`, tensor after tensor.
    ///
    /// # Errors
    /// See [`WeightsError`].
    pub fn read(file: &GgufFile, config: BackboneConfig) -> Result<Self, WeightsError> {
        let mut bytes = Vec::new();
        let kind = |name: &str, shape: &[usize]| Ok(PackKind::of(file.format(name, shape)?));
        Self::new(config, &kind, &mut |name, shape, arena| {
            let (format, order) = file.raw(name, shape, &mut bytes)?;
            let (rows, cols) = if let [rows, cols] = *shape { (rows, cols) } else { (1, shape[0]) };
            let packed = PackedMatrix::pack_in(arena, format, rows, cols, &bytes, &|row| order.source(row));
            packed.map_err(|error| WeightsError::Pack { name: name.to_owned(), error })
        })
    }

    pub(super) fn new(config: BackboneConfig, kind: &Kinds<'_>, source: &mut Source<'_>) -> Result<Self, WeightsError> {
        config.check()?;
        if config.head_dim > MAX_HEAD_DIM {
            return Err(WeightsError::Unsupported("heads that are wider than 512"));
        }
        let mut bytes = 0;
        for (name, [rows, cols]) in matrices(&config) {
            bytes += PackedMatrix::bytes_for(kind(&name, &[rows, cols])?, rows, cols);
        }
        let mut arena = Arena::new(bytes);
        let mut source = |name: &str, shape: &[usize]| {
            let packed = source(name, shape, Some(&mut arena).filter(|_| shape.len() > 1))?;
            if packed.is_finite() { Ok(packed) } else { Err(WeightsError::NotFinite(name.to_owned())) }
        };
        let layers = (0..config.layers).map(|index| layer(&mut source, index, &config)).collect::<Result<_, _>>()?;
        let norm = vector(&mut source, "model.norm.weight", config.hidden)?;
        let whole = [config.vocab, config.hidden];
        let embedding = source(EMBEDDING, &whole)?;
        let head = if config.tied_head { None } else { Some(source(HEAD, &whole)?) };
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

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A tensor by Hugging Face name and shape, checked.
type Checked<'a> = dyn FnMut(&str, &[usize]) -> Result<PackedMatrix, WeightsError> + 'a;

/// Names and shapes of all matrices, in the order in which a pass reads them.
fn matrices(config: &BackboneConfig) -> Vec<(String, [usize; 2])> {
    let inside = |index: usize| Linear::ALL.iter().map(move |linear| linear_at(index, *linear, config));
    let mut all: Vec<_> = (0..config.layers).flat_map(inside).collect();
    let whole = [config.vocab, config.hidden];
    all.push((EMBEDDING.to_owned(), whole));
    if !config.tied_head {
        all.push((HEAD.to_owned(), whole));
    }
    all
}

fn linear_at(index: usize, linear: Linear, config: &BackboneConfig) -> (String, [usize; 2]) {
    let (inner, out) = linear.sides(config);
    (format!("model.layers.{index}.{}.weight", linear.name()), [out, inner])
}

fn vector(source: &mut Checked<'_>, name: &str, len: usize) -> Result<Vec<f32>, WeightsError> {
    let packed = source(name, &[len])?;
    let mut numbers = vec![0f32; len];
    packed.unpack_row(0, &mut numbers);
    Ok(numbers)
}

fn layer(source: &mut Checked<'_>, index: usize, config: &BackboneConfig) -> Result<PackedLayer, WeightsError> {
    let mut norm = |name: &str| vector(source, &format!("model.layers.{index}.{name}.weight"), config.hidden);
    let attention_norm = norm("input_layernorm")?;
    let ffn_norm = norm("post_attention_layernorm")?;
    let linears = Linear::ALL.iter().map(|linear| {
        let (name, shape) = linear_at(index, *linear, config);
        source(&name, &shape)
    });
    Ok(PackedLayer { attention_norm, ffn_norm, linears: linears.collect::<Result<_, _>>()? })
}
