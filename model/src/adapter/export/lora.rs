//! One LoRA cut out of the stacks of a mixture: which rows of which map belong to it, and the GGUF adapter that llama.cpp
//! applies. Refuses to know routers.

use super::Exported;
use crate::adapter::{AdapterError, Linear, LowRank};
use crate::gguf::names::{self, RopeRows};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::io::Cursor;
use std::ops::Range;

/// What is cut out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What every token uses.
    Shared,
    /// One expert alone.
    Expert(usize),
    /// The shared part and one expert as a single LoRA of their ranks together, for formats without a shared part.
    Both(usize),
}

/// A low-rank pair of one map.
pub(super) struct Pair {
    /// `[rank, in]`.
    pub(super) a: Tensor,
    /// `[out, rank]`.
    pub(super) b: Tensor,
}

impl Part {
    /// Its rank, the same on every map.
    pub(super) fn rank(self, exported: &Exported<'_>) -> usize {
        let spec = exported.spec();
        match self {
            Self::Shared => spec.shared_rank as usize,
            Self::Expert(_) => spec.expert_rank as usize,
            Self::Both(_) => spec.shared_rank as usize + spec.expert_rank as usize,
        }
    }

    /// `alpha`: scale times rank, so that what others divide by the rank is our scale again.
    pub(super) fn alpha(self, exported: &Exported<'_>) -> f32 {
        exported.spec().scale * self.rank(exported) as f32
    }

    /// Maps that it works on.
    pub(super) fn linears(self, exported: &Exported<'_>) -> Vec<Linear> {
        let layer = exported.mixture.layer(0);
        let works =
            |linear: &Linear| layer.pair(*linear).is_some_and(|pair| !self.rows(exported, pair, *linear).is_empty());
        Linear::ALL.into_iter().filter(works).collect()
    }

    /// Its rows in the stack of a map.
    fn rows(self, exported: &Exported<'_>, pair: &LowRank, linear: Linear) -> Vec<Range<usize>> {
        let rank = exported.spec().expert_rank as usize;
        let expert = |e: usize| {
            let first = pair.shared + e * rank;
            if linear.is_routed() { first..first + rank } else { 0..0 }
        };
        let rows: Vec<std::ops::Range<usize>> = match self {
            Self::Shared => std::iter::once(0..pair.shared).collect(),
            Self::Expert(e) => std::iter::once(expert(e)).collect(),
            Self::Both(e) => vec![0..pair.shared, expert(e)],
        };
        rows.into_iter().filter(|rows| !rows.is_empty()).collect()
    }

    /// Its pair of a map, none where it does not work. Rows that it lacks there are zero.
    pub(super) fn pair(
        self,
        exported: &Exported<'_>,
        layer: usize,
        linear: Linear,
    ) -> Result<Option<Pair>, AdapterError> {
        let Some(stack) = exported.mixture.layer(layer).pair(linear) else { return Ok(None) };
        let rows = self.rows(exported, stack, linear);
        if rows.is_empty() {
            return Ok(None);
        }
        let cut = |tensor: &Tensor, side: usize| {
            let pieces = rows.iter().map(|rows| tensor.narrow(side, rows.start, rows.len()));
            let pieces: Vec<Tensor> = pieces.collect::<candle_core::Result<_>>()?;
            let missing = self.rank(exported) - rows.iter().map(ExactSizeIterator::len).sum::<usize>();
            // Of its own: whoever writes bytes reads all of the storage behind it.
            Tensor::cat(&pieces, side)?.pad_with_zeros(side, 0, missing)?.to_device(&Device::Cpu)?.force_contiguous()
        };
        Ok(Some(Pair { a: cut(&stack.a, 0)?, b: cut(&stack.b, 1)? }))
    }
}

/// A GGUF adapter: what `convert_lora_to_gguf.py` of llama.cpp makes of the PEFT form of the same part. The B side of
/// queries and keys has its rows in the order of a GGUF model's, in which the two numbers of a rotation lie side by side.
pub(super) fn gguf(exported: &Exported<'_>, part: Part) -> Result<Vec<u8>, AdapterError> {
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    for layer in 0..exported.config.layers {
        for linear in Linear::ALL {
            let Some(pair) = part.pair(exported, layer, linear)? else { continue };
            let hf_name = format!("model.layers.{layer}.{}.weight", linear.name());
            let place = names::place(&hf_name).ok_or(AdapterError::Malformed(hf_name))?;
            let b = match place.rope {
                RopeRows::No => pair.b,
                RopeRows::Query => names::pairs_from_halves(&pair.b, exported.config.heads)?,
                RopeRows::Key => names::pairs_from_halves(&pair.b, exported.config.kv_heads)?,
            };
            tensors.push((format!("{}.lora_a", place.name), QTensor::quantize(&pair.a, GgmlDType::F32)?));
            tensors.push((format!("{}.lora_b", place.name), QTensor::quantize(&b, GgmlDType::F32)?));
        }
    }
    let text = |text: &str| Value::String(text.to_owned());
    let metadata = [
        ("general.type", text("adapter")),
        ("general.architecture", text(exported.config.architecture.as_str())),
        ("general.name", text(exported.facts.base_name)),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(part.alpha(exported))),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors)?;
    Ok(bytes.into_inner())
}
