//! A LoRA made elsewhere, as PEFT keeps it, becomes one more expert of a mixture: its numbers unchanged in effect, its
//! router found without data (Arrow, Ostapenko et al. 2024). Whoever wants better routing trains the routers alone
//! afterwards. Refuses to know where its files came from; nothing in them is believed.

mod arrow;
mod peft;
#[cfg(test)]
mod tests;

pub use peft::{ImportError, MAX_CONFIG_BYTES, MAX_WEIGHTS_BYTES, PeftLora};

use super::{Linear, MAX_EXPERTS, MAX_RANK, Mixture, Parameter};
use crate::config::BackboneConfig;
use crate::counter::Counter;
use candle_core::{Device, Tensor};
use empathd_proto::engine::{LinearName, MixtureSpec};
use empathd_proto::record::Domain;
use std::collections::HashMap;

/// How a LoRA becomes an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// What the expert is for; none for a free one.
    pub domain: Option<Domain>,
    /// Whether its attention part may be added to the shared pair, where every conversation then uses it.
    pub attention_to_shared: bool,
    /// Seed of the numbers that are neither the mixture's nor the LoRA's: rows that fill up a smaller rank, and where the
    /// search for a router begins.
    pub seed: u64,
}

/// The mixture with the LoRA as its last expert; a mixture of this expert alone without one.
///
/// The mixture's function changes only by the new expert taking part: ranks that do not fit are filled up with rows whose B
/// side is zero, a scale that differs is multiplied into the B side.
///
/// # Errors
/// [`ImportError`] in words for whoever asked: an attention part that was not asked for, or too many experts or ranks.
pub fn import(
    onto: Option<&Mixture>,
    config: &BackboneConfig,
    lora: &PeftLora,
    wish: Wish,
) -> Result<Mixture, ImportError> {
    if lora.has_attention() && !wish.attention_to_shared {
        return Err(ImportError::Attention);
    }
    let old = onto.map_or_else(|| alone(lora), |mixture| mixture.spec().clone());
    let spec = grown(&old, lora, wish)?;
    let fresh = Mixture::init(config, &spec, wish.seed)?;
    let kept = onto.map(numbers).transpose()?.unwrap_or_default();
    let merge = Merge { kept, old: &old, new: &spec, lora, seed: wish.seed };
    let names: Vec<String> = fresh.parameters().into_iter().map(|parameter| parameter.name).collect();
    fresh.map(|i, like| merge.parameter(&names[i], like))
}

/// The mixture that a LoRA is added to when there is none: nothing but a shared part of its rank, which does nothing yet.
fn alone(lora: &PeftLora) -> MixtureSpec {
    let rank = u32::try_from(lora.rank).unwrap_or(u32::MAX);
    MixtureSpec { shared_rank: rank, expert_rank: rank, top_k: 1, scale: lora.scale, ..MixtureSpec::default() }
}

/// The shape with room for the LoRA.
fn grown(old: &MixtureSpec, lora: &PeftLora, wish: Wish) -> Result<MixtureSpec, ImportError> {
    let rank = u32::try_from(lora.rank).unwrap_or(u32::MAX);
    let mut new = old.clone();
    new.experts.push(wish.domain);
    new.expert_rank = old.expert_rank.max(rank);
    new.top_k = old.top_k.max(1);
    if lora.has_attention() {
        new.shared_rank += rank;
        let missing = LinearName::ALL.iter().filter(|name| !old.shared_on.contains(name) && lora.works_on(**name));
        if let Some(name) = missing.copied().find(|name| !is_routed(*name)) {
            return Err(ImportError::NoShared(name));
        }
    }
    if new.experts.len() > MAX_EXPERTS || new.shared_rank as usize > MAX_RANK || new.expert_rank as usize > MAX_RANK {
        return Err(ImportError::TooLarge);
    }
    Ok(new)
}

fn is_routed(name: LinearName) -> bool {
    linear(name).is_routed()
}

/// The map with a name.
fn linear(name: LinearName) -> Linear {
    match name {
        LinearName::Query => Linear::Query,
        LinearName::Key => Linear::Key,
        LinearName::Value => Linear::Value,
        LinearName::Output => Linear::Output,
        LinearName::Gate => Linear::Gate,
        LinearName::Up => Linear::Up,
        LinearName::Down => Linear::Down,
    }
}

/// Tensors by name: shape and numbers.
type Numbers = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Every tensor of a mixture.
fn numbers(mixture: &Mixture) -> candle_core::Result<Numbers> {
    let read = |parameter: Parameter<'_>| {
        let numbers = parameter.tensor.flatten_all()?.to_vec1()?;
        Ok((parameter.name, (parameter.tensor.dims().to_vec(), numbers)))
    };
    mixture.parameters().into_iter().map(read).collect()
}

/// The making of each tensor of the new mixture.
struct Merge<'a> {
    /// Shape and numbers of the old mixture.
    kept: Numbers,
    old: &'a MixtureSpec,
    new: &'a MixtureSpec,
    lora: &'a PeftLora,
    seed: u64,
}

/// Rows `0` of a stack that go to rows `1`, so many of them.
type Move = (usize, usize, usize);

impl Merge<'_> {
    /// The tensor with this name, `like` being its fresh numbers.
    fn parameter(&self, name: &str, like: &Tensor) -> Result<Tensor, ImportError> {
        let mut data: Vec<f32> = like.flatten_all()?.to_vec1()?;
        match place(name) {
            Some((layer, linear, side)) => self.pair(layer, linear, side, like.dims(), &mut data),
            None => self.router(name, like.dims(), &mut data),
        }
        if !data.iter().all(|x| x.is_finite()) {
            return Err(ImportError::Tensor(format!("for {name} is too large to be scaled")));
        }
        Ok(Tensor::from_vec(data, like.dims(), &Device::Cpu)?)
    }

    /// One side of a stack: the old rows to their new places, then what the LoRA brings.
    fn pair(&self, layer: usize, linear: Linear, side: char, dims: &[usize], data: &mut [f32]) {
        let width = if side == 'a' { dims[0] } else { dims[1] };
        let shared = self.shared_width(self.new, linear, width);
        if let Some((old_dims, old)) = self.kept.get(&format!("layers.{layer}.{}.{side}", linear.name())) {
            let old_width = if side == 'a' { old_dims[0] } else { old_dims[1] };
            for moved in self.moves(linear, self.shared_width(self.old, linear, old_width), shared) {
                copy(side, (old, old_width), (data, width), moved);
            }
        }
        let Some(pair) = self.lora.pair(layer, linear) else { return };
        let to = match linear.is_routed() {
            true => shared + (self.new.experts.len() - 1) * self.new.expert_rank as usize,
            false => shared - self.lora.rank,
        };
        let scale = self.lora.scale / self.new.scale;
        let brought: Vec<f32> = match side {
            'a' => pair.a.clone(),
            _ => pair.b.iter().map(|x| x * scale).collect(),
        };
        copy(side, (&brought, self.lora.rank), (data, width), (0, to, self.lora.rank));
    }

    /// Rows of the shared part in a stack this wide.
    fn shared_width(&self, spec: &MixtureSpec, linear: Linear, width: usize) -> usize {
        width - if linear.is_routed() { spec.experts.len() * spec.expert_rank as usize } else { 0 }
    }

    /// Where the old rows go.
    fn moves(&self, linear: Linear, old_shared: usize, new_shared: usize) -> Vec<Move> {
        let (old_rank, new_rank) = (self.old.expert_rank as usize, self.new.expert_rank as usize);
        let experts = if linear.is_routed() { self.old.experts.len() } else { 0 };
        let expert = |e: usize| (old_shared + e * old_rank, new_shared + e * new_rank, old_rank);
        std::iter::once((0, 0, old_shared)).chain((0..experts).map(expert)).collect()
    }

    /// A router, a prior weight or the session head: the old numbers, and for a router the new expert's row.
    fn router(&self, name: &str, dims: &[usize], data: &mut [f32]) {
        let old = self.kept.get(name).map_or(&[][..], |(_, numbers)| numbers.as_slice());
        data[..old.len()].copy_from_slice(old);
        let layer = name.strip_prefix("layers.").and_then(|rest| rest.strip_suffix(".router"));
        let Some(layer) = layer.and_then(|layer| layer.parse().ok()) else { return };
        let (rows, row) = data.split_at_mut((dims[0] - 1) * dims[1]);
        let fresh = norm(row);
        let wanted = rows.chunks_exact(dims[1]).map(norm).sum::<f32>() / (dims[0] - 1).max(1) as f32;
        let counter = Counter::new(self.seed);
        arrow::row(self.lora, layer, counter, row);
        let length = if rows.is_empty() { fresh } else { wanted };
        row.iter_mut().for_each(|x| *x *= length);
    }
}

fn norm(row: &[f32]) -> f32 {
    row.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Layer, map and side that a name of [`Mixture::parameters`] means; none for what is no pair.
fn place(name: &str) -> Option<(usize, Linear, char)> {
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let (name, side) = rest.rsplit_once('.')?;
    let linear = Linear::ALL.into_iter().find(|linear| linear.name() == name)?;
    Some((layer.parse().ok()?, linear, side.chars().next()?))
}

/// Copies rows of an A side `[width, in]`, or columns of a B side `[out, width]`.
fn copy(side: char, (from, from_width): (&[f32], usize), (to, width): (&mut [f32], usize), (start, at, count): Move) {
    if from_width == 0 || width == 0 {
        return;
    }
    if side == 'a' {
        let inner = from.len() / from_width;
        to[at * inner..(at + count) * inner].copy_from_slice(&from[start * inner..(start + count) * inner]);
        return;
    }
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(from_width)) {
        to[at..at + count].copy_from_slice(&from[start..start + count]);
    }
}
