//! The mixture as one safetensors file: plain PEFT tensors under `shared/` and `experts/<n>/`, routers under `router/`,
//! the manifest in the file's own metadata. Split at the first word, each part is a LoRA that other programs load.
//! Format 2 may leave out shared pairs and adds `router/layers.<l>.prior_weight` `[1]` and `router/session.head`
//! `[experts, hidden]`; files of format 1 have every shared pair and neither of these, and open as such.

use super::init::{check, shared, stack};
use super::route::Policy;
use super::{LayerAdapter, Linear, LowRank, Mixture, prior_layer};
use crate::config::BackboneConfig;
use crate::ops::host::host;
use candle_core::{Device, Result as TensorResult, Tensor};
use empathd_proto::engine::MixtureSpec;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Version of the format.
const FORMAT: u32 = 2;
/// Versions that are read.
const READABLE: std::ops::RangeInclusive<u32> = 1..=FORMAT;
/// Key of the manifest in the metadata.
const MANIFEST: &str = "empathd_manifest";

/// Why bytes are no mixture for this model.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Not a file of this format.
    #[error("the adapter's bytes cannot be read: {0}; train it again")]
    Malformed(String),
    /// Made for other base weights.
    #[error("the adapter was trained on another base model; load that model or train again")]
    OtherBase,
}

impl From<candle_core::Error> for AdapterError {
    fn from(error: candle_core::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// What the file says about itself.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    base_sha256: [u8; 32],
    mixture: MixtureSpec,
}

/// Writes f32 blocks, each with name and shape, and one metadata entry as a safetensors file.
pub(crate) fn write<'a>(
    blocks: impl Iterator<Item = (String, Vec<usize>, &'a [f32])>,
    key: &str,
    metadata: String,
) -> Result<Vec<u8>, String> {
    let blocks = blocks.map(|(name, shape, data)| {
        let mut bytes = Vec::with_capacity(size_of_val(data));
        data.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
        (name, shape, bytes)
    });
    let blocks: Vec<(String, Vec<usize>, Vec<u8>)> = blocks.collect();
    let views = blocks.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(|e| e.to_string())?;
        Ok((name.as_str(), view))
    });
    let views: Vec<(&str, TensorView<'_>)> = views.collect::<Result<_, String>>()?;
    let metadata = HashMap::from([(key.to_owned(), metadata)]);
    safetensors::serialize(views, Some(metadata)).map_err(|e| e.to_string())
}

/// Opens a safetensors file and its metadata entry.
pub(crate) fn read<'a>(bytes: &'a [u8], key: &str) -> Result<(SafeTensors<'a>, String), String> {
    let (_, head) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let metadata = head.metadata().as_ref().and_then(|m| m.get(key)).cloned();
    let metadata = metadata.ok_or_else(|| format!("it has no {key}"))?;
    Ok((SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?, metadata))
}

/// An f32 block of exactly this shape; every number finite.
pub(crate) fn block(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
    let view = file.tensor(name).map_err(|e| e.to_string())?;
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        return Err(format!("tensor {name} has shape {:?}, expected {shape:?} of f32", view.shape()));
    }
    let (words, _) = view.data().as_chunks::<4>();
    let data: Vec<f32> = words.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if data.iter().any(|x| !x.is_finite()) {
        return Err(format!("tensor {name} holds a number that is not finite"));
    }
    Ok(data)
}

/// PEFT's name of one side of a pair.
fn peft(part: &str, layer: usize, linear: Linear, side: char) -> String {
    format!("{part}/base_model.model.model.layers.{layer}.{}.lora_{side}.weight", linear.name())
}

/// The parts of a stack: their names, first rows and ranks.
fn parts(linear: Linear, spec: &MixtureSpec) -> Vec<(String, usize, usize)> {
    let (shared, rank) = (shared(linear, spec), spec.expert_rank as usize);
    let experts = if linear.is_routed() { spec.experts.len() } else { 0 };
    let routed = (0..experts).map(|e| (format!("experts/{e}"), shared + e * rank, rank));
    let everyone = (shared > 0).then(|| ("shared".to_owned(), 0, shared));
    everyone.into_iter().chain(routed).collect()
}

impl Mixture {
    /// One safetensors file for the base weights with this digest.
    ///
    /// # Errors
    /// A tensor cannot be read back from its device.
    pub fn to_bytes(&self, base_sha256: [u8; 32]) -> Result<Vec<u8>, AdapterError> {
        let mut blocks = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            for (linear, pair) in Linear::ALL.iter().zip(&layer.pairs) {
                let Some(pair) = pair else { continue };
                for (part, start, rank) in parts(*linear, &self.spec) {
                    blocks.push(named(peft(&part, index, *linear, 'A'), &pair.a.narrow(0, start, rank)?)?);
                    blocks.push(named(peft(&part, index, *linear, 'B'), &pair.b.narrow(1, start, rank)?)?);
                }
            }
            if let Some(router) = &layer.router {
                blocks.push(named(format!("router/layers.{index}.weight"), router)?);
            }
            if let Some(weight) = &layer.prior_weight {
                blocks.push(named(format!("router/layers.{index}.prior_weight"), weight)?);
            }
        }
        if let Some(head) = &self.session {
            blocks.push(named("router/session.head".to_owned(), head)?);
        }
        let manifest = Manifest { format: FORMAT, base_sha256, mixture: self.spec.clone() };
        let manifest = serde_json::to_string(&manifest).map_err(|e| AdapterError::Malformed(e.to_string()))?;
        let blocks = blocks.iter().map(|(name, shape, data)| (name.clone(), shape.clone(), data.as_slice()));
        write(blocks, MANIFEST, manifest).map_err(AdapterError::Malformed)
    }

    /// Reads what [`Mixture::to_bytes`] wrote.
    ///
    /// # Errors
    /// See [`AdapterError`].
    pub fn from_bytes(bytes: &[u8], config: &BackboneConfig, base_sha256: [u8; 32]) -> Result<Self, AdapterError> {
        let (file, manifest) = read(bytes, MANIFEST).map_err(AdapterError::Malformed)?;
        let manifest: Manifest =
            serde_json::from_str(&manifest).map_err(|_| AdapterError::Malformed("its manifest is unknown".into()))?;
        if !READABLE.contains(&manifest.format) {
            return Err(AdapterError::Malformed(format!("its format is {}, known is {FORMAT}", manifest.format)));
        }
        if manifest.base_sha256 != base_sha256 {
            return Err(AdapterError::OtherBase);
        }
        let spec = manifest.mixture;
        check(config, &spec)?;
        let layers = (0..config.layers).map(|index| read_layer(&file, config, &spec, index));
        let layers = layers.collect::<Result<_, _>>().map_err(AdapterError::Malformed)?;
        let head = || tensor(&file, "router/session.head", &[spec.experts.len(), config.hidden]);
        let session = spec.session_prior.then(head).transpose().map_err(AdapterError::Malformed)?;
        Ok(Self { layers, spec, session })
    }
}

/// A tensor's name, shape and numbers.
fn named(name: String, tensor: &Tensor) -> TensorResult<(String, Vec<usize>, Vec<f32>)> {
    let shape = tensor.dims().to_vec();
    let tensor = tensor.contiguous()?;
    let data = host(&tensor)?.to_vec();
    Ok((name, shape, data))
}

/// A block as a tensor.
fn tensor(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Tensor, String> {
    Tensor::from_vec(block(file, name, shape)?, shape, &Device::Cpu).map_err(|e| e.to_string())
}

fn read_layer(
    file: &SafeTensors<'_>,
    config: &BackboneConfig,
    spec: &MixtureSpec,
    index: usize,
) -> Result<LayerAdapter, String> {
    let pairs = Linear::ALL.iter().map(|linear| read_pair(file, config, spec, (index, *linear)));
    let pairs = pairs.collect::<Result<_, _>>()?;
    let experts = spec.experts.len();
    let router = || tensor(file, &format!("router/layers.{index}.weight"), &[experts, config.hidden]);
    let prior_weight = || tensor(file, &format!("router/layers.{index}.prior_weight"), &[1]);
    let hears = spec.session_prior && index >= prior_layer(config.layers);
    Ok(LayerAdapter {
        pairs,
        router: (experts > 0).then(router).transpose()?,
        prior_weight: hears.then(prior_weight).transpose()?,
        policy: Policy::new(spec),
        scale: spec.scale,
    })
}

fn read_pair(
    file: &SafeTensors<'_>,
    config: &BackboneConfig,
    spec: &MixtureSpec,
    (index, linear): (usize, Linear),
) -> Result<Option<LowRank>, String> {
    let ((inner, out), width) = (linear.sides(config), stack(linear, spec));
    if width == 0 {
        return Ok(None);
    }
    let mut a = Vec::with_capacity(width * inner);
    let mut b = vec![0f32; out * width];
    for (part, start, rank) in parts(linear, spec) {
        a.extend(block(file, &peft(&part, index, linear, 'A'), &[rank, inner])?);
        let columns = block(file, &peft(&part, index, linear, 'B'), &[out, rank])?;
        for (row, columns) in b.chunks_exact_mut(width).zip(columns.chunks_exact(rank)) {
            row[start..start + rank].copy_from_slice(columns);
        }
    }
    let tensor = |data, shape| Tensor::from_vec(data, shape, &Device::Cpu).map_err(|e| e.to_string());
    Ok(Some(LowRank { a: tensor(a, (width, inner))?, b: tensor(b, (out, width))?, shared: shared(linear, spec) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::ops::check::random;
    use empathd_proto::engine::{CrisisFloor, LinearName};
    use empathd_proto::record::Domain;

    fn spec() -> MixtureSpec {
        let experts = vec![Some(Domain::Crisis), None, Some(Domain::Bias)];
        MixtureSpec { shared_rank: 2, expert_rank: 3, experts, top_k: 2, scale: 2.0, ..MixtureSpec::default() }
    }

    fn mixture(spec: &MixtureSpec) -> Mixture {
        let fresh = Mixture::init(&tiny(), spec, 1).unwrap();
        fresh.map(|i, t| Ok::<_, ()>(random(t.dims(), i as u64))).unwrap()
    }

    fn numbers(mixture: &Mixture) -> Vec<(String, Vec<f32>)> {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
        mixture.parameters().into_iter().map(|p| (p.name, flat(p.tensor))).collect()
    }

    #[test]
    fn a_mixture_survives_its_file() {
        let hearing = MixtureSpec {
            session_prior: true,
            crisis_floor: Some(CrisisFloor::default()),
            shared_on: vec![LinearName::Query, LinearName::Down],
            ..spec()
        };
        for spec in [spec(), hearing] {
            let mixture = mixture(&spec);
            let bytes = mixture.to_bytes([7; 32]).unwrap();
            let back = Mixture::from_bytes(&bytes, &tiny(), [7; 32]).unwrap();
            assert_eq!(back.spec(), mixture.spec());
            assert_eq!(numbers(&back), numbers(&mixture));
            assert_eq!(back.layer(1).policy(), mixture.layer(1).policy());
            let (file, _) = read(&bytes, MANIFEST).unwrap();
            let name = "experts/2/base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";
            assert_eq!(file.tensor(name).unwrap().shape(), [tiny().hidden, 3], "one expert is a plain PEFT tensor");
        }
    }

    /// A file as it was written before format 2: its tensors, and a manifest that says less.
    #[test]
    fn a_file_of_format_1_still_opens() {
        let mixture = mixture(&spec());
        let bytes = mixture.to_bytes([7; 32]).unwrap();
        let (file, _) = read(&bytes, MANIFEST).unwrap();
        let manifest = serde_json::json!({
            "format": 1,
            "base_sha256": vec![7u8; 32],
            "mixture": { "shared_rank": 2, "expert_rank": 3, "experts": ["crisis", null, "bias"], "top_k": 2, "scale": 2.0 },
        });
        let metadata = HashMap::from([(MANIFEST.to_owned(), manifest.to_string())]);
        let old = safetensors::serialize(file.tensors(), Some(metadata)).unwrap();
        let back = Mixture::from_bytes(&old, &tiny(), [7; 32]).unwrap();
        assert_eq!(back.spec(), &spec());
        assert_eq!(numbers(&back), numbers(&mixture));
        let newer = manifest.to_string().replace("\"format\":1", "\"format\":3");
        let newer =
            safetensors::serialize(file.tensors(), Some(HashMap::from([(MANIFEST.to_owned(), newer)]))).unwrap();
        assert!(matches!(Mixture::from_bytes(&newer, &tiny(), [7; 32]), Err(AdapterError::Malformed(_))));
    }

    #[test]
    fn wrong_bytes_are_refused() {
        let bytes = mixture(&spec()).to_bytes([7; 32]).unwrap();
        let open = |bytes: &[u8], config: &BackboneConfig, base| Mixture::from_bytes(bytes, config, base).map(|_| ());
        assert!(matches!(open(&bytes, &tiny(), [8; 32]), Err(AdapterError::OtherBase)));
        let wider = BackboneConfig { ffn: 24, ..tiny() };
        assert!(matches!(open(&bytes, &wider, [7; 32]), Err(AdapterError::Malformed(_))));
        for cut in [0, 7, 8, 100, bytes.len() - 1] {
            assert!(matches!(open(&bytes[..cut], &tiny(), [7; 32]), Err(AdapterError::Malformed(_))));
        }
        let mut poisoned = bytes.clone();
        let end = poisoned.len();
        poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(matches!(open(&poisoned, &tiny(), [7; 32]), Err(AdapterError::Malformed(_))));
    }
}
