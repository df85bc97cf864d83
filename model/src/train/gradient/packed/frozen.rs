//! Frozen weights as products of training read them, both ways through each from one reading of its rows. Refuses to know
//! where they come from and what is trained over them.

use super::element::{Element, Rows};
use crate::adapter::Linear;
use crate::config::BackboneConfig;
use crate::kernels::Turns;
use crate::kernels::half::Weight;
use crate::ops::RopeTable;
use crate::train::TrainError;

/// Where frozen weights come from: asked by Hugging Face name and shape, it gives every row in turn.
pub type FrozenSource<'a> = dyn FnMut(&str, &[usize], &mut dyn FnMut(usize, &[f32])) -> Result<(), TrainError> + 'a;

/// All frozen weights.
pub(super) struct Frozen<E> {
    pub(super) turns: Turns,
    pub(super) norm: Vec<f32>,
    pub(super) layers: Vec<FrozenLayer>,
    /// `[vocab, hidden]`; the embedding as well when the two are tied.
    pub(super) head: Weight,
    /// `[vocab, hidden]`, unless it is the head.
    embedding: Option<Rows<E>>,
}

/// Frozen weights of one layer.
pub(super) struct FrozenLayer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) ffn_norm: Vec<f32>,
    /// In the order of [`Linear::ALL`].
    linears: Vec<Weight>,
}

impl FrozenLayer {
    pub(super) fn linear(&self, linear: Linear) -> &Weight {
        &self.linears[linear as usize]
    }
}

impl<E: Element> Frozen<E> {
    /// Reads every weight once.
    ///
    /// # Errors
    /// The shape contradicts itself, a weight is missing, has another shape or is no number.
    pub(super) fn read(config: &BackboneConfig, source: &mut FrozenSource<'_>) -> Result<Self, TrainError> {
        config.check().map_err(|error| TrainError::Tensor(candle_core::Error::wrap(error)))?;
        let (vocab, hidden) = (config.vocab, config.hidden);
        let table = "model.embed_tokens.weight";
        let (embedding, head) = if config.tied_head {
            (None, matrix::<E>(source, table, [vocab, hidden])?)
        } else {
            let mut rows = Rows::new(vocab, hidden);
            read(source, table, &[vocab, hidden], &mut |row, numbers| E::round(numbers, rows.row_mut(row)))?;
            (Some(rows), matrix::<E>(source, "lm_head.weight", [vocab, hidden])?)
        };
        let norm = vector(source, "model.norm.weight", hidden)?;
        let layers = (0..config.layers).map(|index| layer::<E>(source, index, config)).collect::<Result<_, _>>()?;
        let table = RopeTable::new(config);
        let turns = Turns::new(config.head_dim / 2, config.context, |position| table.turns(position));
        Ok(Self { turns, norm, layers, head, embedding })
    }

    /// The row of a token.
    pub(super) fn embed(&self, id: u32, to: &mut [f32]) {
        match &self.embedding {
            Some(rows) => rows.row(id as usize).iter().zip(to).for_each(|(from, to)| *to = from.wide()),
            None => self.head.row(id as usize, to),
        }
    }
}

fn layer<E: Element>(
    source: &mut FrozenSource<'_>,
    index: usize,
    config: &BackboneConfig,
) -> Result<FrozenLayer, TrainError> {
    let mut norm = |name: &str| vector(source, &format!("model.layers.{index}.{name}.weight"), config.hidden);
    let (attention_norm, ffn_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
    let linears = Linear::ALL.iter().map(|linear| {
        let (inner, out) = linear.sides(config);
        matrix::<E>(source, &format!("model.layers.{index}.{}.weight", linear.name()), [out, inner])
    });
    Ok(FrozenLayer { attention_norm, ffn_norm, linears: linears.collect::<Result<_, _>>()? })
}

fn matrix<E: Element>(
    source: &mut FrozenSource<'_>,
    name: &str,
    [out, inner]: [usize; 2],
) -> Result<Weight, TrainError> {
    let mut weight = Weight::new(E::PRECISION, out, inner);
    read(source, name, &[out, inner], &mut |row, numbers| weight.put_row(row, numbers))?;
    Ok(weight)
}

fn vector(source: &mut FrozenSource<'_>, name: &str, len: usize) -> Result<Vec<f32>, TrainError> {
    let mut vector = vec![0f32; len];
    read(source, name, &[len], &mut |_, numbers| vector.copy_from_slice(numbers))?;
    Ok(vector)
}

/// Hands every row of a weight to `take`, once checked; a vector is one row.
fn read(
    source: &mut FrozenSource<'_>,
    name: &str,
    shape: &[usize],
    take: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), TrainError> {
    let (rows, width) = if let [rows, width] = *shape { (rows, width) } else { (1, shape[0]) };
    let (mut next, mut fits) = (0, true);
    source(name, shape, &mut |row, numbers| {
        fits &= row == next && row < rows && numbers.len() == width && numbers.iter().all(|x| x.is_finite());
        next += 1;
        if fits {
            take(row, numbers);
        }
    })?;
    if fits && next == rows {
        return Ok(());
    }
    let words = format!("weight {name} is not {shape:?} finite numbers; fetch the model again");
    Err(TrainError::Tensor(candle_core::Error::Msg(words)))
}
