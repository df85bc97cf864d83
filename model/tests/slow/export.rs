//! Exports as other programs read them: the logits of HF PEFT and of llama.cpp beside ours. Slow, with foreign programs;
//! how it is run, and what holds: `parity/README.md`.

use super::cached;
use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use empathd_model::adapter::export::{Facts, expert_names, export};
use empathd_model::adapter::{AdapterError, Mixture};
use empathd_model::backbone::Backbone;
use empathd_model::config::BackboneConfig;
use empathd_model::counter::{Counter, Site};
use empathd_model::{gguf, tiny};
use empathd_proto::engine::MixtureSpec;
use empathd_proto::record::Domain;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Tokens of the compared text.
const TOKENS: u32 = 24;
/// Positions at its end whose logits are compared.
const COMPARED: usize = 4;
/// Experts of the exported mixture.
const DOMAINS: [Option<Domain>; 3] = [Some(Domain::TherapyDialogue), Some(Domain::Crisis), None];
/// Deviation of the random numbers of B sides: the correction must be seen and must not drown the model.
const B_DEVIATION: f64 = 0.02;

#[test]
#[ignore = "needs python3 with torch, transformers, peft and llama-cpp-python"]
fn the_tiny_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.gguf");
    tiny::write_gguf(&path, 7).unwrap();
    prove(&path, folder.path());
}

#[test]
#[ignore = "needs python3 with torch, transformers, peft and llama-cpp-python, and the reference model in the cache"]
fn the_reference_model() {
    let folder = tempfile::tempdir().unwrap();
    prove(&cached(), folder.path());
}

/// Writes model, export and our own logits, and has the script compare them.
fn prove(base: &Path, folder: &Path) {
    let file = gguf::open(base).unwrap_or_else(|error| panic!("{}: {error}", base.display()));
    let config = file.config().unwrap();
    let mut weights = HashMap::new();
    let mut take = |name: &str, shape: &[usize]| {
        let tensor = file.tensor(name, shape).map_err(candle_core::Error::wrap)?;
        weights.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    };
    let backbone = Backbone::new(config.clone(), &mut take, &Device::Cpu).unwrap();
    write_model(&folder.join("model"), &config, &weights);
    let mixture = mixture(&config);
    let facts = Facts { base_name: "model", base_sha256: file.sha256().unwrap() };
    export(&mixture, &config, facts, &mut |path, bytes| {
        write(&folder.join("generation").join(path), &bytes);
        Ok::<_, AdapterError>(())
    })
    .unwrap();
    let ids: Vec<u32> = (0..TOKENS).map(|i| 10 + i * 37 % 200).collect();
    write_logits(folder, &backbone, &mixture, &ids);
    unquantised(base, &folder.join("plain.gguf"));
    let names = expert_names(mixture.spec());
    let task = json!({"ids": ids, "compared": COMPARED, "experts": names, "gguf": base, "plain_gguf": folder.join("plain.gguf")});
    write(&folder.join("task.json"), task.to_string().as_bytes());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/export.py");
    let status = Command::new("python3").arg(script).arg(folder).status().unwrap();
    assert!(status.success(), "the script found a difference");
}

/// A mixture whose every part says something.
fn mixture(config: &BackboneConfig) -> Mixture {
    let experts = DOMAINS.to_vec();
    let spec = MixtureSpec {
        shared_rank: 4,
        expert_rank: 6,
        experts,
        top_k: 2,
        session_prior: true,
        ..MixtureSpec::default()
    };
    random(&Mixture::init(config, &spec, 11).unwrap())
}

/// The same with B sides that are not zero.
fn random(mixture: &Mixture) -> Mixture {
    let names: Vec<String> = mixture.parameters().into_iter().map(|parameter| parameter.name).collect();
    let counter = Counter::new(5);
    let numbers = |i: usize, tensor: &Tensor| {
        let site = Site::new(&names[i], 0);
        let normal = |at| (B_DEVIATION * counter.normal(site, at)) as f32;
        let all: Vec<f32> = (0..tensor.elem_count() as u64).map(normal).collect();
        Tensor::from_vec(all, tensor.dims(), &Device::Cpu)
    };
    let change = |i: usize, t: &Tensor| if names[i].ends_with(".b") { numbers(i, t) } else { Ok(t.clone()) };
    mixture.map(change).unwrap()
}

/// Our logits: of the base model, with the shared part, and with the shared part and one expert whose gate is one.
fn write_logits(folder: &Path, base: &Backbone, mixture: &Mixture, ids: &[u32]) {
    let last = |mixture: Option<&Mixture>| {
        let logits = base.logits_all(ids, mixture).unwrap();
        logits.narrow(0, ids.len() - COMPARED, COMPARED).unwrap().contiguous().unwrap()
    };
    let mut all = HashMap::from([
        ("base".to_owned(), last(None)),
        ("shared".to_owned(), last(Some(&only(mixture, base.config(), None)))),
    ]);
    for (e, name) in expert_names(mixture.spec()).into_iter().enumerate() {
        all.insert(format!("shared+{name}"), last(Some(&only(mixture, base.config(), Some(e)))));
    }
    write_tensors(&folder.join("logits.safetensors"), &all);
}

/// The shared part alone, or with one expert: with a single one to choose from, its gate is one.
fn only(mixture: &Mixture, config: &BackboneConfig, expert: Option<usize>) -> Mixture {
    let old = mixture.spec();
    let (shared, rank) = (old.shared_rank as usize, old.expert_rank as usize);
    let experts = expert.map(|e| old.experts[e]).into_iter().collect();
    let spec = MixtureSpec { experts, top_k: 1, session_prior: false, crisis_floor: None, ..old.clone() };
    let fresh = Mixture::init(config, &spec, 1).unwrap();
    let from: HashMap<String, Tensor> = mixture.parameters().into_iter().map(|p| (p.name, p.tensor.clone())).collect();
    let names: Vec<String> = fresh.parameters().into_iter().map(|parameter| parameter.name).collect();
    let cut = |i: usize, like: &Tensor| {
        let side = match names[i].rsplit('.').next() {
            Some("a") => 0,
            Some("b") => 1,
            _ => return Ok(like.clone()),
        };
        let stack = &from[&names[i]];
        let mut parts = vec![stack.narrow(side, 0, shared)?];
        if let Some(e) = expert.filter(|_| like.dim(side).is_ok_and(|width| width > shared)) {
            parts.push(stack.narrow(side, shared + e * rank, rank)?);
        }
        Tensor::cat(&parts, side)?.contiguous()
    };
    fresh.map(cut).unwrap_or_else(|error: candle_core::Error| panic!("{error}"))
}

/// The base model as Hugging Face keeps it, f32.
fn write_model(folder: &Path, config: &BackboneConfig, weights: &HashMap<String, Tensor>) {
    let json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_head,
        "attention_bias": false,
        "mlp_bias": false,
        "dtype": "float32",
    });
    write(&folder.join("config.json"), json.to_string().as_bytes());
    write_tensors(&folder.join("model.safetensors"), weights);
}

/// The same model file with every number in f32, in which llama.cpp rounds nothing.
fn unquantised(from: &Path, to: &Path) {
    let mut reader = fs::File::open(from).unwrap();
    let file = gguf_file::Content::read(&mut reader).unwrap();
    let plain = |name: &String| {
        let tensor = file.tensor(&mut fs::File::open(from).unwrap(), name, &Device::Cpu).unwrap();
        QTensor::quantize(&tensor.dequantize(&Device::Cpu).unwrap(), GgmlDType::F32).unwrap()
    };
    let tensors: Vec<(&String, QTensor)> = file.tensor_infos.keys().map(|name| (name, plain(name))).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata: Vec<(&str, &gguf_file::Value)> =
        file.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut fs::File::create(to).unwrap(), &metadata, &tensors).unwrap();
}

fn write_tensors(path: &Path, tensors: &HashMap<String, Tensor>) {
    let bytes = |tensor: &Tensor| -> Vec<u8> {
        let numbers: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
    };
    let all: Vec<(&String, &Tensor, Vec<u8>)> = tensors.iter().map(|(name, t)| (name, t, bytes(t))).collect();
    let views = all
        .iter()
        .map(|(name, t, data)| (name.as_str(), TensorView::new(Dtype::F32, t.dims().to_vec(), data).unwrap()));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write(path, &safetensors::serialize(views, Some(metadata)).unwrap());
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
