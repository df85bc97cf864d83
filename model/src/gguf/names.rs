//! What a tensor is called in GGUF when Hugging Face calls it otherwise, and the one difference in layout between the
//! two. Refuses to know files.

use candle_core::{Result, Tensor};

/// Whether the rows of a tensor are rotated by position, and by which heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopeRows {
    No,
    Query,
    Key,
}

/// Where a tensor is found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) rope: RopeRows,
}

/// The place of a Hugging Face name of the Llama family.
pub(crate) fn place(hf_name: &str) -> Option<Place> {
    let outside = match hf_name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(name) = outside {
        return Some(Place { name: name.to_owned(), rope: RopeRows::No });
    }
    let (layer, inside) = hf_name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (name, rope) = match inside {
        "input_layernorm.weight" => ("attn_norm", RopeRows::No),
        "self_attn.q_proj.weight" => ("attn_q", RopeRows::Query),
        "self_attn.k_proj.weight" => ("attn_k", RopeRows::Key),
        "self_attn.v_proj.weight" => ("attn_v", RopeRows::No),
        "self_attn.o_proj.weight" => ("attn_output", RopeRows::No),
        "post_attention_layernorm.weight" => ("ffn_norm", RopeRows::No),
        "mlp.gate_proj.weight" => ("ffn_gate", RopeRows::No),
        "mlp.up_proj.weight" => ("ffn_up", RopeRows::No),
        "mlp.down_proj.weight" => ("ffn_down", RopeRows::No),
        _ => return None,
    };
    Some(Place { name: format!("blk.{layer}.{name}.weight"), rope })
}

/// Turns rows in which the two numbers of a rotation lie side by side into rows in which they lie half a head apart.
pub(crate) fn halves_from_pairs(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = tensor.dims2()?;
    let half = rows / heads / 2;
    tensor.reshape((heads, half, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}

/// The inverse of [`halves_from_pairs`].
pub(crate) fn pairs_from_halves(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = tensor.dims2()?;
    let half = rows / heads / 2;
    tensor.reshape((heads, 2, half, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn pairs_move_half_a_head_apart() {
        let rows = Tensor::from_slice(&[0f32, 10., 1., 11., 2., 12., 3., 13.], (8, 1), &Device::Cpu).expect("tensor");
        let halves = halves_from_pairs(&rows, 2).expect("divides");
        let found = halves.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        assert_eq!(found, [0., 1., 10., 11., 2., 3., 12., 13.]);
    }

    #[test]
    fn unknown_names_have_no_place() {
        assert_eq!(place("model.layers.x.mlp.up_proj.weight"), None);
        assert_eq!(place("model.layers.3.mlp.up_proj.bias"), None);
        assert_eq!(
            place("model.layers.3.self_attn.k_proj.weight"),
            Some(Place { name: "blk.3.attn_k.weight".to_owned(), rope: RopeRows::Key })
        );
    }
}
