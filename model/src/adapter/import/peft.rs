//! The two files of a PEFT LoRA, read as what strangers wrote: every length bounded, every name known, every shape that of
//! the base model, every number finite. What this release does not compute is refused by its name, and so is every setting
//! it has never heard of. Refuses to know mixtures.

use crate::adapter::{Linear, MAX_RANK};
use crate::config::BackboneConfig;
use empathd_proto::engine::LinearName;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value};

/// Largest `adapter_config.json`.
pub const MAX_CONFIG_BYTES: usize = 64 * 1024;
/// Largest `adapter_model.safetensors`.
pub const MAX_WEIGHTS_BYTES: usize = 2 * 1024 * 1024 * 1024;
/// Characters of a stranger's name that an error shows.
const SHOWN_CHARS: usize = 64;
/// Settings that do not change what a finished LoRA computes, whatever they say.
const WITHOUT_EFFECT: &[&str] = &[
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "task_type",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "qalora_group_size",
    "ensure_weight_tying",
    "runtime_config",
    "eva_config",
];
/// Ways of initialisation that leave the base weights alone.
const HARMLESS_INITS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// Why a LoRA cannot become an expert.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file is too large, or is not what its name says.
    #[error("{0}")]
    File(String),
    /// A setting that this release does not compute.
    #[error("the LoRA uses {0}, which is not supported; save it again as a plain LoRA without it")]
    Setting(String),
    /// A tensor that does not belong, is missing, or has the wrong form.
    #[error("the LoRA's tensor {0}")]
    Tensor(String),
    /// It works on attention, and nobody said that the shared part may have that.
    #[error(
        "the LoRA also works on attention, where there are no experts; import it with its attention part added to the shared part, \
         or train it on gate_proj, up_proj and down_proj alone"
    )]
    Attention,
    /// Its attention part has no place.
    #[error(
        "the mixture has no shared part on {0} to which the LoRA's attention part could be added; import it by itself"
    )]
    NoShared(LinearName),
    /// More experts or ranks than a mixture can have.
    #[error("with this LoRA the mixture would have too many experts or too large a rank")]
    TooLarge,
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Numbers(#[from] candle_core::Error),
}

/// A pair of one map.
pub(super) struct Pair {
    /// `[rank, in]`.
    pub(super) a: Vec<f32>,
    /// `[out, rank]`.
    pub(super) b: Vec<f32>,
}

/// A LoRA for a model of known shape.
pub struct PeftLora {
    pub(super) rank: usize,
    /// What `B·A` is multiplied by.
    pub(super) scale: f32,
    /// By layer, then in the order of [`Linear::ALL`].
    pairs: Vec<Option<Pair>>,
}

impl PeftLora {
    /// Reads both files.
    ///
    /// # Errors
    /// [`ImportError::File`], [`ImportError::Setting`] or [`ImportError::Tensor`].
    pub fn read(config_json: &[u8], weights: &[u8], config: &BackboneConfig) -> Result<Self, ImportError> {
        let (rank, scale) = settings(config_json)?;
        if weights.len() > MAX_WEIGHTS_BYTES {
            return Err(ImportError::File(format!("the LoRA's weights have more than {MAX_WEIGHTS_BYTES} bytes")));
        }
        let file = SafeTensors::deserialize(weights).map_err(|_| {
            ImportError::File("adapter_model.safetensors is no safetensors file, or is truncated".into())
        })?;
        let places = config.layers * Linear::ALL.len();
        if file.len() > 2 * places {
            return Err(ImportError::File(format!("the LoRA has {} tensors, at most {} fit", file.len(), 2 * places)));
        }
        let mut sides: Vec<[Option<Vec<f32>>; 2]> = (0..places).map(|_| [None, None]).collect();
        for (name, view) in file.iter() {
            let place = place(name, config.layers).ok_or_else(|| bad(name, "is of no map that this model has"))?;
            let (inner, out) = place.linear.sides(config);
            let shape = if place.side == 0 { [rank, inner] } else { [out, rank] };
            let slot = &mut sides[place.layer * Linear::ALL.len() + place.linear as usize][place.side];
            if slot.replace(floats(name, &view, shape)?).is_some() {
                return Err(bad(name, "is there twice under different names"));
            }
        }
        let pairs = sides.into_iter().enumerate().map(paired).collect::<Result<Vec<_>, _>>()?;
        if pairs.iter().all(Option::is_none) {
            return Err(ImportError::File("the LoRA holds no tensor".into()));
        }
        Ok(Self { rank, scale, pairs })
    }

    /// Its pair of a map, if it works there.
    pub(super) fn pair(&self, layer: usize, linear: Linear) -> Option<&Pair> {
        self.pairs[layer * Linear::ALL.len() + linear as usize].as_ref()
    }

    /// Whether it works on a map of this name in any layer.
    pub(super) fn works_on(&self, name: LinearName) -> bool {
        self.pairs.iter().skip(super::linear(name) as usize).step_by(Linear::ALL.len()).any(Option::is_some)
    }

    /// Whether it works on a map without experts.
    #[must_use]
    pub fn has_attention(&self) -> bool {
        LinearName::ALL.iter().any(|name| !super::is_routed(*name) && self.works_on(*name))
    }
}

/// Rank and scale, when everything else is as plain as it must be.
fn settings(json: &[u8]) -> Result<(usize, f32), ImportError> {
    if json.len() > MAX_CONFIG_BYTES {
        return Err(ImportError::File(format!("adapter_config.json has more than {MAX_CONFIG_BYTES} bytes")));
    }
    let parsed: Option<Map<String, Value>> = serde_json::from_slice(json).ok();
    let config = parsed.ok_or_else(|| ImportError::File("adapter_config.json is no JSON object".into()))?;
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(ImportError::Setting("a peft_type other than LORA".into()));
    }
    config.iter().try_for_each(|(name, value)| plain(name, value))?;
    let rank = config.get("r").and_then(Value::as_u64).and_then(|r| usize::try_from(r).ok());
    let rank = rank.filter(|rank| (1..=MAX_RANK).contains(rank));
    let rank = rank.ok_or_else(|| ImportError::File(format!("adapter_config.json needs r from 1 to {MAX_RANK}")))?;
    let alpha = config.get("lora_alpha").and_then(Value::as_f64);
    // rsLoRA (Kalajdzievski 2023) divides by the root of the rank.
    let by = if config.get("use_rslora") == Some(&Value::Bool(true)) { (rank as f64).sqrt() } else { rank as f64 };
    let scale = alpha.map(|alpha| (alpha / by) as f32).filter(|scale| scale.is_finite() && *scale != 0.0);
    scale.map(|scale| (rank, scale)).ok_or_else(|| ImportError::File("adapter_config.json needs a lora_alpha".into()))
}

/// Refuses a setting unless it is known to change nothing or says that it is off.
fn plain(name: &str, value: &Value) -> Result<(), ImportError> {
    let off = match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    };
    let accepted = match (name, value) {
        ("peft_type" | "r" | "lora_alpha", _) | ("use_rslora", Value::Bool(_)) => true,
        ("bias", Value::String(bias)) => bias == "none",
        ("init_lora_weights", Value::Bool(_)) => true,
        ("init_lora_weights", Value::String(way)) => HARMLESS_INITS.contains(&way.as_str()),
        _ => off || WITHOUT_EFFECT.contains(&name),
    };
    if accepted { Ok(()) } else { Err(ImportError::Setting(shown(name))) }
}

/// Where a tensor belongs.
struct Place {
    layer: usize,
    linear: Linear,
    /// 0 for A, 1 for B.
    side: usize,
}

/// The place of `base_model.model.model.layers.<l>.<map>.lora_<A|B>.weight`; older files carry the adapter's name as well.
fn place(name: &str, layers: usize) -> Option<Place> {
    let (layer, rest) = name.strip_prefix("base_model.model.model.layers.")?.split_once('.')?;
    // A number has one spelling.
    let layer = layer.parse::<usize>().ok().filter(|number| *number < layers && number.to_string() == layer)?;
    let rest = rest.strip_suffix(".weight")?;
    let rest = rest.strip_suffix(".default").unwrap_or(rest);
    let (name, side) = rest.rsplit_once(".lora_")?;
    let linear = Linear::ALL.into_iter().find(|linear| linear.name() == name)?;
    let side = ["A", "B"].iter().position(|known| *known == side)?;
    Some(Place { layer, linear, side })
}

/// Both sides of a pair, or none.
fn paired((at, sides): (usize, [Option<Vec<f32>>; 2])) -> Result<Option<Pair>, ImportError> {
    match sides {
        [Some(a), Some(b)] => Ok(Some(Pair { a, b })),
        [None, None] => Ok(None),
        _ => {
            let (layer, linear) = (at / Linear::ALL.len(), Linear::ALL[at % Linear::ALL.len()]);
            Err(ImportError::Tensor(format!("pair of layer {layer} on {} lacks one side", linear.name())))
        }
    }
}

/// The numbers of a tensor of this shape as f32.
fn floats(name: &str, view: &TensorView<'_>, shape: [usize; 2]) -> Result<Vec<f32>, ImportError> {
    if view.shape() != shape {
        return Err(bad(name, &format!("has shape {:?}, expected {shape:?}", view.shape())));
    }
    let two = |of: fn(u16) -> f32| view.data().as_chunks::<2>().0.iter().map(|b| of(u16::from_le_bytes(*b))).collect();
    let numbers: Vec<f32> = match view.dtype() {
        Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => two(|bits| f16::from_bits(bits).to_f32()),
        Dtype::BF16 => two(|bits| bf16::from_bits(bits).to_f32()),
        _ => return Err(bad(name, "is neither f32, f16 nor bf16")),
    };
    match numbers.iter().all(|x| x.is_finite()) {
        true => Ok(numbers),
        false => Err(bad(name, "holds a number that is not finite")),
    }
}

fn bad(name: &str, what: &str) -> ImportError {
    ImportError::Tensor(format!("{} {what}", shown(name)))
}

/// A stranger's name as an error may show it.
fn shown(name: &str) -> String {
    name.chars().take(SHOWN_CHARS).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}
