//! What is fuzzed: one plain function for each way in which bytes of strangers enter. Each takes any bytes and must return.
//! The fuzzers under `tests/fuzz` call them without end, the integration binary a bounded number of times.

use empathd_ingest::{Policy, Roster, detect, read, validate};
use empathd_model::adapter::export::{Facts, export};
use empathd_model::adapter::import::{PeftLora, Wish, import};
use empathd_model::adapter::{AdapterError, Mixture};
use empathd_model::embed::{self, Embedder};
use empathd_model::gguf;
use empathd_model::infer::{Chooser, GrammarFactory, Lookup, MAX_DRAFT, Model, Pushed, TextStream};
use empathd_model::tiny;
use empathd_proto::audit::{AuditEntry, LogCheck, SignedCheckpoint};
use empathd_proto::engine::{MixtureSpec, ServingSpec};
use empathd_proto::generate::{Grammar, SamplingSpec};
use empathd_proto::keys::papers_in;
use empathd_proto::{Secret, admin, chat, engine, frame};
use empathd_store::RecoveryShare;
use serde::{Serialize, de::DeserializeOwned};
use std::io::Write;
use std::sync::LazyLock;

/// A fuzzed entrance.
pub struct Target {
    /// Its name, and the name of its fuzzer.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Bytes that get far, to begin from.
    pub seed: fn() -> Vec<u8>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frames, seed: || vec![7, 0, 0, 0, 1, 0, 0] },
    Target { name: "chat", run: requests, seed: || CHAT.into() },
    Target { name: "completion", run: requests, seed: || COMPLETION.into() },
    Target {
        name: "embedding",
        run: requests,
        seed: || br#"{"model":"m","input":["a",""],"encoding_format":"float"}"#.into(),
    },
    Target { name: "checkpoint", run: checkpoint, seed: || "o\n1\nAAAA\n\n\u{2014} o AAAA\n".into() },
    Target { name: "leaf", run: leaf, seed: || vec![1, 0, 0, 1, 0, 3, 0, 0, 0] },
    Target { name: "trail", run: trail, seed: || TRAIL.into() },
    Target { name: "envelope", run: empathd_store::fuzz_envelope, seed: || [[1, 1].as_slice(), &[0; 98]].concat() },
    Target { name: "source", run: source, seed: || SOURCE.into() },
    Target { name: "gguf", run: model_file, seed: tiny_model },
    Target { name: "embedder", run: embedder, seed: || embed::tiny::files(1)[0].1.clone() },
    Target { name: "adapter", run: adapter, seed: tiny_adapter },
    Target { name: "lora", run: lora, seed: tiny_lora },
    Target { name: "schema", run: schema, seed: || SCHEMA.into() },
    Target { name: "stop", run: stop_strings, seed: || "\n\nUser:|END|é|a text\n\nUs é END\n\nUser: more".into() },
    Target {
        name: "sampling",
        run: sampling,
        seed: || [[0, 0, 128, 63], [0, 0, 0, 63], [9, 2, 3, 1]].concat().repeat(4),
    },
    Target {
        name: "backup",
        run: empathd_store::fuzz_backup,
        seed: || [&b"EMPATHDR\x01\0\0\0"[..], &[0; 80]].concat(),
    },
    Target { name: "key_file", run: empathd_store::fuzz_key_file, seed: key_file },
    Target { name: "shares", run: shares, seed: || b"# share 1\nAAAAA BBBBB\n\n# share 2\nCCCCC\n".into() },
    Target { name: "lookup", run: lookup, seed: || b"12345123451234567".into() },
];

const CHAT: &[u8] =
    br#"{"model":"m","messages":[{"role":"user","content":"x"}],"stop":["a"],"seed":1,"logit_bias":{"7":-1},
"response_format":{"type":"json_object"},"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"n":2}"#;
const COMPLETION: &[u8] = br#"{"model":"m","prompt":["a","b"],"max_tokens":3,"logprobs":2,"echo":true,"stop":"z"}"#;
const TRAIL: &[u8] = br#"{"seq":0,"at_ms":5,"principal":{"kind":"local_user","number":7},"action":"chat","outcome":"done","object":"none","count":1}
{"seq":1,"at_ms":6,"principal":{"kind":"appliance","number":0},"action":"train_end","outcome":{"failed":"busy"},"object":"none","count":1}"#;
const SOURCE: &[u8] = b"{\"messages\":[{\"role\":\"user\",\"content\":\"I cannot sleep.\"},{\"role\":\"assistant\",\"content\":\"Tell me more about the nights.\"}]}\n";
const SCHEMA: &[u8] = br##"{"type":"object","required":["a"],"properties":{"a":{"type":"string","pattern":"^(a|b.{3})*$","maxLength":9},
"b":{"anyOf":[{"$ref":"#/$defs/c"},{"enum":[1,null]}]}},"$defs":{"c":{"type":"array","items":{"type":"integer","minimum":3},"minItems":1}}}"##;
/// SHA-256 of the base model that the seed of `adapter` was made for.
const BASE: [u8; 32] = [7; 32];
/// Tokens of an answer that are made under a grammar.
const ANSWER_TOKENS: u32 = 12;

fn frames(bytes: &[u8]) {
    let Some((header, payload)) = bytes.split_first_chunk() else { return };
    let _ = frame::payload_bytes(*header);
    let _ = frame::decode::<engine::ToEngine>(payload);
    let _ = frame::decode::<engine::FromEngine>(payload);
    let _ = frame::decode::<admin::ToDaemon>(payload);
    let _ = frame::decode::<admin::FromDaemon>(payload);
}

/// What was read is read again from what is written of it.
fn returns<T: Serialize + DeserializeOwned + PartialEq>(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&request).expect("what was read can be written");
        assert!(serde_json::from_slice::<T>(&again).is_ok_and(|found| found == request));
    }
}

/// A key file as far as its sealed part.
fn key_file() -> Vec<u8> {
    [&b"EMPATHDE\x01\0\0\0\x10\0\0\0"[..], &[0; 160]].concat()
}

/// Recovery shares as somebody typed them.
fn shares(bytes: &[u8]) {
    let text = Secret::new(String::from_utf8_lossy(bytes).into_owned());
    for paper in papers_in(&text) {
        let _ = RecoveryShare::from_text(&paper);
    }
    let _ = RecoveryShare::from_text(&text);
}

fn requests(bytes: &[u8]) {
    returns::<chat::ChatRequest>(bytes);
    returns::<chat::CompletionRequest>(bytes);
    returns::<chat::EmbeddingRequest>(bytes);
}

fn checkpoint(bytes: &[u8]) {
    let note = String::from_utf8_lossy(bytes).into_owned();
    let _ = SignedCheckpoint { note, public_key: "AAAA".to_owned() }.verify();
}

fn leaf(bytes: &[u8]) {
    if let Some(entry) = AuditEntry::from_leaf(bytes) {
        assert_eq!(entry.to_leaf(), bytes, "one entry has one form");
    }
}

/// Lines of an exported trail, as its check takes them.
fn trail(bytes: &[u8]) {
    let mut check = LogCheck::new(None);
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(entry) = serde_json::from_slice::<AuditEntry>(line) else { return };
        if check.push(&entry.to_leaf()).is_err() {
            return;
        }
    }
}

fn source(bytes: &[u8]) {
    let Ok(profile) = detect(bytes, None) else { return };
    let Ok(drafts) = read(bytes, profile) else { return };
    for draft in drafts.drafts {
        let Ok(record) = validate(draft.assess(&Roster::empty()), &Policy::default()) else { continue };
        for turn in 0..record.record().turns.len() {
            let _ = record.record().redacted_text(turn);
        }
    }
}

fn tiny_model() -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().expect("scratch");
    tiny::write_gguf(file.path(), 1).expect("written");
    std::fs::read(file.path()).expect("read back")
}

fn model_file(bytes: &[u8]) {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(bytes).is_ok()
        && let Ok(model) = gguf::open(file.path())
        && let Ok(sha256) = model.sha256()
        && let Ok(device) = empathd_model::device::open()
    {
        let _ = Model::open(file.path(), sha256, &device, &ServingSpec::default(), 1);
    }
}

fn embedder(bytes: &[u8]) {
    static OTHERS: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
        let [_, (_, config), (_, tokenizer)] = embed::tiny::files(1);
        (config, tokenizer)
    });
    let (config, tokenizer) = &*OTHERS;
    let Ok(embedder) = Embedder::from_bytes(config, tokenizer, bytes) else { return };
    let texts = embedder.read(&["I sleep.".to_owned()]).expect("its words are not what was altered");
    assert!(embedder.vector(&texts[0]).map_or(true, |vector| vector.len() == embedder.width()));
}

fn tiny_adapter() -> Vec<u8> {
    let spec = MixtureSpec {
        shared_rank: 2,
        expert_rank: 2,
        experts: vec![None; 2],
        top_k: 1,
        scale: 1.0,
        ..MixtureSpec::default()
    };
    let mixture = Mixture::init(&tiny::config(), &spec, 1).expect("a shape that fits");
    mixture.to_bytes(BASE).expect("written")
}

fn adapter(bytes: &[u8]) {
    let _ = Mixture::from_bytes(bytes, &tiny::config(), BASE);
}

/// The first two bytes say how many bytes of the rest are the configuration; the weights follow.
fn lora(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else { return };
    let (config, weights) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let Ok(lora) = PeftLora::read(config, weights, &tiny::config()) else { return };
    let wish = Wish { domain: None, attention_to_shared: true, seed: 1 };
    let Ok(mixture) = import(None, &tiny::config(), &lora, wish) else { return };
    assert!(mixture.to_bytes(BASE).is_ok_and(|bytes| Mixture::from_bytes(&bytes, &tiny::config(), BASE).is_ok()));
}

fn tiny_lora() -> Vec<u8> {
    let mixture = Mixture::init(&tiny::config(), &MixtureSpec { shared_rank: 2, ..MixtureSpec::default() }, 1);
    let mut files = Vec::new();
    let facts = Facts { base_name: "base", base_sha256: BASE };
    let mut take = |path: &str, bytes: Vec<u8>| {
        if path.starts_with("shared/") {
            files.push(bytes);
        }
        Ok::<_, AdapterError>(())
    };
    export(&mixture.expect("a shape that fits"), &tiny::config(), facts, &mut take).expect("written");
    let length = u16::try_from(files[0].len()).expect("a short configuration");
    [length.to_le_bytes().to_vec(), files.concat()].concat()
}

/// A schema that is read is followed; logits are of no model and the same each time.
fn schema(bytes: &[u8]) {
    static FACTORY: LazyLock<GrammarFactory> =
        LazyLock::new(|| GrammarFactory::new(&tiny::tokenizer().expect("built")).expect("built"));
    let vocab = tiny::config().vocab;
    let Ok(matcher) = FACTORY.matcher(&Grammar::JsonSchema(String::from_utf8_lossy(bytes).into_owned())) else {
        return;
    };
    let mut chooser = Chooser::new(&SamplingSpec::greedy(), vocab, Some(matcher)).expect("within ranges");
    for index in 0..ANSWER_TOKENS {
        let logits: Vec<f32> = (0..vocab).map(|id| (id * 37 % 101) as f32).collect();
        let Ok(chosen) = chooser.choose(&logits, index) else { return };
        if chooser.took(chosen.id).is_err() || chooser.is_complete() {
            return;
        }
    }
}

/// Stop strings and a text, parted by bars: how the text is cut changes nothing, and no stop string is left in it.
fn stop_strings(bytes: &[u8]) {
    let words = String::from_utf8_lossy(bytes).into_owned();
    let mut stops: Vec<String> = words.split('|').map(str::to_owned).collect();
    let text = stops.pop().unwrap_or_default();
    let cut = |size: usize| {
        let mut stream = TextStream::new(stops.clone()).ok()?;
        let mut all = String::new();
        for piece in text.as_bytes().chunks(size) {
            match stream.push(piece) {
                Pushed::Text(text) => all.push_str(&text),
                Pushed::Stopped(text) => return Some(all + &text),
            }
        }
        Some(all + &stream.finish())
    };
    let whole = cut(usize::MAX);
    assert_eq!(whole, cut(1));
    let stopped = |stop: &String| !stop.is_empty() && whole.as_ref().is_some_and(|whole| whole.contains(stop.as_str()));
    assert!(!stops.iter().any(stopped));
}

/// Any four bytes are a number: the first ones the wishes, the others the logits.
fn sampling(bytes: &[u8]) {
    let numbers: Vec<f32> =
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
    let Some((wishes, logits)) = numbers.split_first_chunk::<5>() else { return };
    let spec = SamplingSpec {
        temperature: wishes[0],
        top_p: wishes[1],
        seed: u64::from(wishes[2].to_bits()),
        presence_penalty: wishes[2],
        frequency_penalty: wishes[3],
        logit_bias: vec![(wishes[4].to_bits(), wishes[4]), (0, wishes[0])],
        logprobs: bytes.last().copied(),
    };
    for spec in
        [SamplingSpec { logit_bias: vec![(0, 1.0)], logprobs: Some(3), presence_penalty: 1.0, ..spec.clone() }, spec]
    {
        let Ok(mut chooser) = Chooser::new(&spec, logits.len(), None) else { continue };
        for index in 0..3 {
            let Ok(chosen) = chooser.choose(logits, index) else { break };
            assert!(logits.get(chosen.id as usize).is_some_and(|logit| logit.is_finite()));
            chooser.took(chosen.id).expect("there is no grammar");
        }
    }
}

/// Each byte is a token: a proposal is part of what was there, and no longer than it may be.
fn lookup(bytes: &[u8]) {
    let tokens: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
    let mut lookup = Lookup::new(tokens.len().min(64));
    for end in 0..=tokens.len() {
        lookup.read(&tokens[..end]);
        let proposed = lookup.propose(&tokens[..end], MAX_DRAFT).len();
        assert!(proposed <= MAX_DRAFT.min(end));
        let accepted = tokens.get(end).map_or(0, |next| *next as usize % (proposed + 1));
        lookup.judged(proposed, accepted);
    }
}
