//! The weights of a sentence encoder from the bytes of a safetensors file: every tensor of the shape that the
//! configuration says, every number finite. Refuses to know texts.

use super::EmbedError;
use super::shape::Shape;
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::BertModel;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;

/// Most tensors of a file.
const MAX_TENSORS: usize = 4096;

const fn unusable(what: &'static str) -> EmbedError {
    EmbedError::Unusable { file: "the file of weights", what }
}

/// The model, its numbers as f32 on the processor.
pub(super) fn read(bytes: &[u8], shape: &Shape) -> Result<BertModel, EmbedError> {
    let file = SafeTensors::deserialize(bytes).map_err(|_| unusable("it is truncated or no safetensors file"))?;
    if file.len() > MAX_TENSORS {
        return Err(unusable("it has too many tensors"));
    }
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (name, view) in file.iter() {
        // Positions are counted, not read; whatever else is no float is not a weight.
        if matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let tensor = view.load(&Device::Cpu).and_then(|tensor| tensor.to_dtype(DType::F32));
            let tensor = tensor.map_err(|_| unusable("a tensor cannot be read"))?;
            if !is_finite(&tensor) {
                return Err(EmbedError::NotFinite);
            }
            tensors.insert(name.to_owned(), tensor);
        }
    }
    let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    BertModel::load(builder, shape.config())
        .map_err(|_| unusable("a tensor is missing or has another shape than config.json says"))
}

/// Whether all numbers are finite: one that is not makes their sum so.
fn is_finite(tensor: &Tensor) -> bool {
    let sum = tensor.sum_all().and_then(|sum| sum.to_scalar::<f32>());
    tensor.elem_count() == 0 || sum.is_ok_and(f32::is_finite)
}
