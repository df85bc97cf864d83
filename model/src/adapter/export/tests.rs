//! Tests of the files: which there are, what they hold, and that a stranger's reader would find what it asks for.

use super::*;
use crate::adapter::Linear;
use crate::adapter::import::PeftLora;
use crate::config::tests::tiny;
use crate::ops::check::random;
use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use empathd_proto::engine::{CrisisFloor, LinearName};
use empathd_proto::record::Domain;
use safetensors::SafeTensors;
use serde_json::Value;
use std::io::Cursor;

const FACTS: Facts<'_> = Facts { base_name: "some/base", base_sha256: [0xAB; 32] };

fn spec() -> MixtureSpec {
    MixtureSpec {
        shared_rank: 2,
        expert_rank: 3,
        experts: vec![Some(Domain::Crisis), None, Some(Domain::Bias)],
        top_k: 2,
        scale: 2.0,
        session_prior: true,
        crisis_floor: Some(CrisisFloor::default()),
        ..MixtureSpec::default()
    }
}

fn mixture(spec: &MixtureSpec) -> Mixture {
    let fresh = Mixture::init(&tiny(), spec, 1).unwrap();
    fresh.map(|i, t| Ok::<_, ()>(random(t.dims(), i as u64))).unwrap()
}

fn files(mixture: &Mixture) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let count = export(mixture, &tiny(), FACTS, &mut |path, bytes| {
        assert!(all.insert(path.to_owned(), bytes).is_none(), "{path} twice");
        Ok::<_, AdapterError>(())
    });
    assert_eq!(count.unwrap() as usize, all.len());
    all
}

fn document(files: &BTreeMap<String, Vec<u8>>, path: &str) -> Value {
    serde_json::from_slice(&files[path]).unwrap()
}

/// Rows of a stack `[width, in]`, or columns of one `[out, width]`.
fn cut(tensor: &Tensor, side: usize, start: usize, count: usize) -> Vec<f32> {
    flat(&tensor.narrow(side, start, count).unwrap())
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn numbers(file: &[u8], name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeTensors::deserialize(file).unwrap();
    let view = file.tensor(name).unwrap();
    (view.shape().to_vec(), view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

#[test]
fn every_part_has_its_place() {
    let files = files(&mixture(&spec()));
    let places: Vec<&str> = files.keys().map(String::as_str).collect();
    let mut expected =
        vec!["compat/README.md".to_owned(), "router/router_config.json".into(), "router/router.safetensors".into()];
    for folder in ["shared", "experts/crisis", "experts/free_1", "experts/bias", "compat/mixlora"]
        .iter()
        .map(ToString::to_string)
        .chain(["crisis", "free_1", "bias"].map(|name| format!("compat/xlora/adapters/{name}")))
    {
        expected.extend([format!("{folder}/{PEFT_CONFIG}"), format!("{folder}/{PEFT_WEIGHTS}")]);
    }
    expected.extend(["shared", "crisis", "free_1", "bias"].map(|name| format!("gguf/{name}.gguf")));
    expected.extend(
        ["xlora_config.json", "xlora_classifier.safetensors", "ordering.json"].map(|f| format!("compat/xlora/{f}")),
    );
    expected.sort();
    assert_eq!(places, expected);
}

#[test]
fn a_mixture_without_experts_is_one_lora() {
    let spec =
        MixtureSpec { experts: vec![], expert_rank: 0, top_k: 0, session_prior: false, crisis_floor: None, ..spec() };
    let files = files(&mixture(&spec));
    assert_eq!(files.len(), 3, "{:?}", files.keys());
}

#[test]
fn experts_of_one_domain_have_names_of_their_own() {
    let crisis = Some(Domain::Crisis);
    let spec = MixtureSpec { experts: vec![crisis, None, crisis, Some(Domain::Bias)], ..spec() };
    assert_eq!(expert_names(&spec), ["crisis_0", "free_1", "crisis_2", "bias"]);
}

#[test]
fn peft_finds_what_it_asks_for() {
    let mixture = mixture(&spec());
    let files = files(&mixture);
    let config = document(&files, "experts/bias/adapter_config.json");
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_i64()), (Some(3), Some(6)), "alpha is scale times rank");
    assert_eq!(config["target_modules"], serde_json::json!(["gate_proj", "up_proj", "down_proj"]));
    for off in ["use_dora", "use_rslora", "fan_in_fan_out"] {
        assert_eq!(config[off], false);
    }
    assert_eq!(document(&files, "shared/adapter_config.json")["target_modules"].as_array().unwrap().len(), 7);
    let name = |side: char| format!("base_model.model.model.layers.1.mlp.up_proj.lora_{side}.weight");
    let stack = mixture.layer(1).pair(Linear::Up).unwrap();
    let weights = &files["experts/bias/adapter_model.safetensors"];
    assert_eq!(numbers(weights, &name('A')), (vec![3, tiny().hidden], cut(&stack.a, 0, 2 + 2 * 3, 3)));
    assert_eq!(numbers(weights, &name('B')), (vec![tiny().ffn, 3], cut(&stack.b, 1, 2 + 2 * 3, 3)));
    let every = SafeTensors::deserialize(weights).unwrap();
    assert_eq!(every.len(), tiny().layers * 3 * 2, "nothing but its own pairs: converters stop at anything else");
}

#[test]
fn our_own_reader_takes_every_lora() {
    let files = files(&mixture(&spec()));
    let folders: Vec<&str> = files.keys().filter_map(|path| path.strip_suffix(PEFT_CONFIG)).collect();
    for folder in folders.into_iter().filter(|folder| !folder.contains("mixlora")) {
        let (config, weights) = (&files[&format!("{folder}{PEFT_CONFIG}")], &files[&format!("{folder}{PEFT_WEIGHTS}")]);
        let lora = PeftLora::read(config, weights, &tiny()).unwrap_or_else(|error| panic!("{folder}: {error}"));
        assert_eq!(lora.has_attention(), !folder.starts_with("experts"), "{folder}");
    }
}

#[test]
fn llama_cpp_finds_what_it_asks_for() {
    let mixture = mixture(&spec());
    let bytes = &files(&mixture)["gguf/shared.gguf"];
    let mut reader = Cursor::new(bytes);
    let file = gguf_file::Content::read(&mut reader).unwrap();
    let text = |key: &str| file.metadata[key].to_string().unwrap().clone();
    assert_eq!(
        [text("general.type"), text("general.architecture"), text("adapter.type")],
        ["adapter", "llama", "lora"]
    );
    assert_eq!(file.metadata["adapter.lora.alpha"].to_f32().unwrap(), 4.0);
    assert_eq!(file.tensor_infos.len(), tiny().layers * 7 * 2);
    let tensor = |name: &str| {
        let tensor = file.tensor(&mut Cursor::new(bytes), name, &Device::Cpu).unwrap();
        tensor.dequantize(&Device::Cpu).unwrap()
    };
    let stack = mixture.layer(0).pair(Linear::Key).unwrap();
    let a = tensor("blk.0.attn_k.weight.lora_a");
    assert_eq!(flat(&a), cut(&stack.a, 0, 0, 2), "A as it is, [rank, in]");
    let b = tensor("blk.0.attn_k.weight.lora_b");
    let (kv_heads, half) = (tiny().kv_heads, tiny().head_dim / 2);
    let (found, own) = (b.to_vec2::<f32>().unwrap(), stack.b.narrow(1, 0, 2).unwrap().to_vec2::<f32>().unwrap());
    for head in 0..kv_heads {
        for (i, first) in (0..half).map(|i| (i, head * 2 * half + i)) {
            let pair = head * 2 * half + 2 * i;
            assert_eq!(
                (&found[pair], &found[pair + 1]),
                (&own[first], &own[first + half]),
                "rows of a rotation side by side"
            );
        }
    }
}

#[test]
fn the_router_says_what_decides() {
    let mixture = mixture(&MixtureSpec { shared_on: vec![LinearName::Gate], ..spec() });
    let files = files(&mixture);
    let config = document(&files, "router/router_config.json");
    assert_eq!(
        config["experts"][0],
        serde_json::json!({"name": "crisis", "domain": "crisis", "path": "experts/crisis"})
    );
    assert_eq!(config["experts"][1]["domain"], Value::Null);
    assert_eq!(config["shared_on"], serde_json::json!(["gate_proj"]));
    assert_eq!(config["base_sha256"], "ab".repeat(32));
    assert!(config["crisis_floor"]["floor"].is_number());
    assert_eq!(config["session_prior"]["layer"].as_u64(), mixture.prior_layer().map(|layer| layer as u64));
    let router = mixture.layer(1).router().unwrap();
    let found = numbers(&files["router/router.safetensors"], "layers.1.router");
    assert_eq!(found, (vec![3, tiny().hidden], flat(router)));
    let head = numbers(&files["router/router.safetensors"], "session.head");
    assert_eq!(head.1, flat(mixture.session_head().unwrap()));
}

#[test]
fn approximations_say_so_and_join_the_shared_part() {
    let mixture = mixture(&spec());
    let files = files(&mixture);
    for path in ["compat/mixlora/adapter_config.json", "compat/xlora/xlora_config.json"] {
        assert_eq!(document(&files, path)["empathd_approximate"], true, "{path}");
    }
    assert!(String::from_utf8_lossy(&files["compat/README.md"]).contains("Approximations"));
    let config = document(&files, "compat/mixlora/adapter_config.json");
    assert_eq!((config["expert_lora"]["r"].as_u64(), config["num_experts"].as_u64()), (Some(5), Some(3)));
    let weights = &files["compat/mixlora/adapter_model.safetensors"];
    let stack = mixture.layer(0).pair(Linear::Down).unwrap();
    let (shape, a) = numbers(weights, "mixlora.layers.0.mlp.down_proj.experts.1.lora_A.weight");
    assert_eq!(shape, [5, tiny().ffn]);
    assert_eq!(a, [cut(&stack.a, 0, 0, 2), cut(&stack.a, 0, 2 + 3, 3)].concat());
    assert_eq!(numbers(weights, "mixlora.layers.1.mlp.moe_gate.weight").0, [3, tiny().hidden]);
    let attention = &files["compat/xlora/adapters/bias/adapter_model.safetensors"];
    let (shape, a) = numbers(attention, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_eq!(shape, [5, tiny().hidden], "one rank everywhere");
    assert!(a[2 * tiny().hidden..].iter().all(|x| *x == 0.0), "what an expert lacks is zero");
    let classifier = &files["compat/xlora/xlora_classifier.safetensors"];
    assert_eq!(numbers(classifier, "last.weight").0, [3, tiny().hidden]);
    assert_eq!(document(&files, "compat/xlora/ordering.json")["layers"].as_object().unwrap().len(), tiny().layers * 7);
}
