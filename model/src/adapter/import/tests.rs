//! Tests of the import: an exported expert comes back with the same effect, and hostile files are refused by name.

use super::*;
use crate::adapter::AdapterError;
use crate::adapter::export::{Facts, PEFT_CONFIG, PEFT_WEIGHTS, export};
use crate::backbone::Backbone;
use crate::backbone::tests::{random_backbone, random_mixture};
use crate::config::tests::tiny;
use crate::ops::check::random;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

const WISH: Wish = Wish { domain: Some(Domain::Crisis), attention_to_shared: false, seed: 5 };
const IDS: [u32; 7] = [3, 17, 9, 28, 0, 5, 11];

/// Both files of a folder of an export.
fn exported(mixture: &Mixture, folder: &str) -> (Vec<u8>, Vec<u8>) {
    let mut found = HashMap::new();
    let facts = Facts { base_name: "base", base_sha256: [1; 32] };
    export(mixture, &tiny(), facts, &mut |path, bytes| {
        found.insert(path.to_owned(), bytes);
        Ok::<_, AdapterError>(())
    })
    .unwrap();
    let mut take = |name: &str| found.remove(&format!("{folder}/{name}")).unwrap();
    (take(PEFT_CONFIG), take(PEFT_WEIGHTS))
}

fn read(files: &(Vec<u8>, Vec<u8>)) -> Result<PeftLora, ImportError> {
    PeftLora::read(&files.0, &files.1, &tiny())
}

fn logits(base: &Backbone, mixture: &Mixture) -> Vec<f32> {
    flat(&base.logits_all(&IDS, Some(mixture)).unwrap())
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The same mixture with other numbers where a name has this end.
fn altered(mixture: &Mixture, end: &str, f: impl Fn(&Tensor) -> Tensor) -> Mixture {
    let names: Vec<String> = mixture.parameters().into_iter().map(|parameter| parameter.name).collect();
    let change = |i: usize, t: &Tensor| Ok::<_, ()>(if names[i].ends_with(end) { f(t) } else { t.clone() });
    mixture.map(change).unwrap()
}

/// A plain LoRA of a rank on every map, or on the feed-forward ones.
fn plain(rank: u32, scale: f32, attention: bool) -> (Vec<u8>, Vec<u8>) {
    let feed_forward = vec![LinearName::Gate, LinearName::Up, LinearName::Down];
    let shared_on = if attention { LinearName::ALL.to_vec() } else { feed_forward };
    let spec = MixtureSpec { shared_rank: rank, scale, shared_on, ..MixtureSpec::default() };
    let fresh = Mixture::init(&tiny(), &spec, 3).unwrap();
    let mixture = fresh.map(|i, t| random(t.dims(), 70 + i as u64).affine(0.3, 0.0)).unwrap();
    exported(&mixture, "shared")
}

#[test]
fn an_import_alone_computes_what_the_lora_computes() {
    let base = random_backbone(tiny(), 1);
    let feed_forward = plain(3, 1.5, false);
    let whole = plain(3, 1.5, true);
    for (files, attention) in [(feed_forward, false), (whole, true)] {
        let lora = read(&files).unwrap();
        let wish = Wish { attention_to_shared: attention, ..WISH };
        let imported = import(None, &tiny(), &lora, wish).unwrap();
        assert_eq!(imported.spec().experts, [Some(Domain::Crisis)]);
        let as_shared = MixtureSpec { shared_rank: 3, scale: 1.5, ..MixtureSpec::default() };
        let zero = Mixture::init(&tiny(), &as_shared, 0).unwrap();
        let names: Vec<String> = zero.parameters().into_iter().map(|p| p.name).collect();
        let reference = zero.map(|i, t| {
            let (layer, linear, side) = place(&names[i]).unwrap();
            let numbers = lora.pair(layer, linear).map(|pair| if side == 'a' { &pair.a } else { &pair.b });
            numbers.map_or(Ok(t.clone()), |n| Tensor::from_slice(n, t.dims(), &Device::Cpu))
        });
        let difference = apart(&logits(&base, &imported), &logits(&base, &reference.unwrap()));
        assert!(difference < 1e-4, "a single expert's gate is one: {difference}");
    }
}

#[test]
fn the_others_keep_their_effect() {
    let base = random_backbone(tiny(), 1);
    let mixture = random_mixture(&tiny(), 2);
    let files = plain(5, 0.5, true);
    let wish = Wish { attention_to_shared: true, ..WISH };
    let imported = import(Some(&mixture), &tiny(), &read(&files).unwrap(), wish).unwrap();
    let spec = imported.spec();
    assert_eq!((spec.expert_rank, spec.shared_rank, spec.experts.len()), (5, 7, 4), "ranks grow, none shrinks");
    for layer in 0..tiny().layers {
        let [old, new] = [&mixture, &imported].map(|m| m.layer(layer).router().unwrap().to_vec2::<f32>().unwrap());
        assert_eq!(old[..], new[..3]);
    }
    // With a LoRA that does nothing, everything else must compute what it computed: equal logits everywhere, so that every
    // token takes the first two experts.
    let silent = read(&(files.0, silenced(&files.1))).unwrap();
    let silent = import(Some(&mixture), &tiny(), &silent, wish).unwrap();
    let level = |mixture: &Mixture| altered(mixture, "router", |router| router.zeros_like().unwrap());
    let difference = apart(&logits(&base, &level(&mixture)), &logits(&base, &level(&silent)));
    assert!(difference < 1e-4, "shared part and old experts have moved and are the same: {difference}");
    assert!(apart(&logits(&base, &level(&mixture)), &logits(&base, &level(&imported))) > 1e-2, "attention takes part");
}

/// The file with every B side zero.
fn silenced(weights: &[u8]) -> Vec<u8> {
    let file = SafeTensors::deserialize(weights).unwrap();
    let zeros: HashMap<String, Vec<u8>> =
        file.iter().map(|(name, view)| (name.to_owned(), vec![0; view.data().len()])).collect();
    let views = file.iter().map(|(name, view)| {
        let data = if name.contains("lora_B") { zeros[name].as_slice() } else { view.data() };
        (name.to_owned(), TensorView::new(view.dtype(), view.shape().to_vec(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn the_router_row_points_where_the_lora_acts() {
    let lora = read(&plain(2, 1.0, false)).unwrap();
    let counter = Counter::new(1);
    let hidden = tiny().hidden;
    let mut row = vec![0f32; hidden];
    arrow::row(&lora, 0, counter, &mut row);
    assert!((norm(&row) - 1.0).abs() < 1e-5);
    let gain = |v: &[f32]| -> f64 {
        let halves = [Linear::Gate, Linear::Up].map(|linear| lora.pair(0, linear).unwrap());
        let of = |pair: &peft::Pair| -> f64 {
            let down: Vec<f64> =
                pair.a.chunks_exact(hidden).map(|a| a.iter().zip(v).map(|(a, v)| f64::from(a * v)).sum()).collect();
            pair.b.chunks_exact(2).map(|b| (f64::from(b[0]) * down[0] + f64::from(b[1]) * down[1]).powi(2)).sum()
        };
        halves.iter().map(|pair| of(pair)).sum()
    };
    let best = gain(&row);
    for other in 0..50 {
        let other = random(&[hidden], 900 + other).to_vec1::<f32>().unwrap();
        let length = norm(&other);
        let other: Vec<f32> = other.iter().map(|x| x / length).collect();
        assert!(gain(&other) <= best * (1.0 + 1e-6), "no direction is answered more");
    }
    let imported = import(Some(&random_mixture(&tiny(), 2)), &tiny(), &lora, WISH).unwrap();
    let router = imported.layer(0).router().unwrap().to_vec2::<f32>().unwrap();
    let mean = router[..3].iter().map(|row| norm(row)).sum::<f32>() / 3.0;
    assert!((norm(&router[3]) - mean).abs() < 1e-4, "as long as the others");
    assert!(apart(&router[3].iter().map(|x| x / mean).collect::<Vec<_>>(), &row) < 1e-3);
}

#[test]
fn an_attention_part_needs_a_word() {
    let lora = read(&plain(2, 1.0, true)).unwrap();
    assert!(matches!(import(None, &tiny(), &lora, WISH), Err(ImportError::Attention)));
    let narrow = MixtureSpec { shared_on: vec![LinearName::Gate], shared_rank: 2, ..MixtureSpec::default() };
    let narrow = Mixture::init(&tiny(), &narrow, 1).unwrap();
    let wish = Wish { attention_to_shared: true, ..WISH };
    assert!(matches!(import(Some(&narrow), &tiny(), &lora, wish), Err(ImportError::NoShared(LinearName::Query))));
    let full =
        MixtureSpec { shared_rank: 2, expert_rank: 2, experts: vec![None; 64], top_k: 1, ..MixtureSpec::default() };
    let full = Mixture::init(&tiny(), &full, 1).unwrap();
    assert!(matches!(import(Some(&full), &tiny(), &lora, wish), Err(ImportError::TooLarge)));
}

fn config(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut config =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["gate_proj"]});
    change(&mut config);
    serde_json::to_vec(&config).unwrap()
}

#[test]
fn settings_that_are_not_computed_are_refused_by_name() {
    let weights = plain(2, 2.0, false).1;
    let refusal = |name: &str, value: Value| match PeftLora::read(&config(|c| c[name] = value), &weights, &tiny()) {
        Err(ImportError::Setting(found)) => found,
        Err(error) => error.to_string(),
        Ok(_) => "taken".into(),
    };
    for (name, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["lm_head"])),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("rank_pattern", json!({"up_proj": 8})),
        ("alpha_pattern", json!({"up_proj": 8})),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1]])),
        ("a_setting_of_tomorrow", json!(1)),
    ] {
        assert_eq!(refusal(name, value), name);
    }
    for (name, value) in [("lora_dropout", json!(0.1)), ("use_rslora", json!(true)), ("task_type", json!("CAUSAL_LM"))]
    {
        assert_eq!(refusal(name, value), "taken", "{name}");
    }
    assert!(refusal("peft_type", json!("IA3")).contains("peft_type"));
    for (name, value) in
        [("r", json!(0)), ("r", json!(1e9)), ("r", json!(-1)), ("lora_alpha", json!("x")), ("lora_alpha", json!(0))]
    {
        assert!(refusal(name, value.clone()).contains(name), "{name} = {value}");
    }
    assert!(refusal("r", json!(3)).contains("shape"), "the tensors have two rows");
    let shown = refusal(&"x\n\u{1b}".repeat(99), json!(1));
    assert!(
        shown.len() <= 64 && shown.chars().all(|c| c.is_ascii_graphic()),
        "a stranger's name does not reach a terminal"
    );
}

#[test]
fn numbers_that_overflow_with_their_scale_are_refused() {
    let weights = plain(2, 2.0, false).1;
    let lora = PeftLora::read(&config(|c| c["lora_alpha"] = json!(1e38)), &weights, &tiny()).unwrap();
    let onto = Mixture::init(&tiny(), &MixtureSpec { scale: 1e-30, ..MixtureSpec::default() }, 1).unwrap();
    assert!(matches!(import(Some(&onto), &tiny(), &lora, WISH), Err(ImportError::Tensor(_))));
}

#[test]
fn rs_lora_divides_by_the_root_of_the_rank() {
    let weights = plain(2, 2.0, false).1;
    let lora = PeftLora::read(&config(|c| c["use_rslora"] = json!(true)), &weights, &tiny()).unwrap();
    assert!((lora.scale - 4.0 / 2f32.sqrt()).abs() < 1e-6);
}

/// Tensors as a file; each has the bytes it needs, all of them `fill`.
fn tensors(list: &[(&str, Dtype, &[usize])], fill: u8) -> Vec<u8> {
    let size = |dtype: Dtype, shape: &[usize]| shape.iter().product::<usize>() * dtype.bitsize() / 8;
    let data: Vec<Vec<u8>> = list.iter().map(|(_, dtype, shape)| vec![fill; size(*dtype, shape)]).collect();
    let views = list
        .iter()
        .zip(&data)
        .map(|((name, dtype, shape), data)| (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn tensors_that_do_not_belong_are_refused() {
    let (a, b) = (
        "base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.gate_proj.lora_B.weight",
    );
    let (wide, tall) = ([2, tiny().hidden], [tiny().ffn, 2]);
    let read = |list: &[(&str, Dtype, &[usize])], fill| {
        PeftLora::read(&config(|_| ()), &tensors(list, fill), &tiny()).map(|_| ())
    };
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        assert!(read(&[(a, dtype, &wide), (b, dtype, &tall)], 0).is_ok());
    }
    let refused = |list: &[(&str, Dtype, &[usize])], fill, words: &str| {
        let error = read(list, fill).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(&[(a, Dtype::F32, &wide)], 0, "lacks one side");
    refused(&[(a, Dtype::F32, &tall), (b, Dtype::F32, &tall)], 0, "shape");
    refused(&[(a, Dtype::I32, &wide), (b, Dtype::F32, &tall)], 0, "neither f32");
    refused(&[(a, Dtype::F32, &wide), (b, Dtype::F32, &tall)], 0xFF, "not finite");
    refused(&[], 0, "no tensor");
    let default = a.replace(".weight", ".default.weight");
    refused(&[(a, Dtype::F32, &wide), (&default, Dtype::F32, &wide), (b, Dtype::F32, &tall)], 0, "twice");
    for stranger in [
        "base_model.model.model.layers.9.mlp.gate_proj.lora_A.weight",
        "base_model.model.model.layers.00.mlp.gate_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.gate_proj.lora_magnitude_vector",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.layers.0.mlp.gate_proj.lora_A.other.weight",
    ] {
        refused(&[(stranger, Dtype::F32, &wide)], 0, "no map");
    }
    let whole = plain(2, 2.0, false);
    for cut in [0, 7, 8, 100, whole.1.len() - 1] {
        assert!(matches!(PeftLora::read(&whole.0, &whole.1[..cut], &tiny()), Err(ImportError::File(_))));
    }
    let endless = vec![b' '; MAX_CONFIG_BYTES + 1];
    assert!(matches!(PeftLora::read(&endless, &whole.1, &tiny()), Err(ImportError::File(_))));
}
