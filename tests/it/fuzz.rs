//! Every fuzzed entrance, run a bounded number of times on altered seeds. What a longer run finds becomes a test of the room
//! it was found in.

use empathd_tests::fuzz::{TARGETS, Target};
use proptest::prelude::*;
use std::sync::LazyLock;

/// Bytes at the beginning that are altered oftener than the others: large files say there what follows.
const HEAD_BYTES: usize = 2048;

/// Each target with its seed, made once.
static SEEDS: LazyLock<Vec<(&Target, Vec<u8>)>> =
    LazyLock::new(|| TARGETS.iter().map(|target| (target, (target.seed)())).collect());

/// The seed after some edits: an operation, a place and a byte each.
fn altered(seed: &[u8], edits: &[(u8, usize, u8)]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for &(operation, place, byte) in edits {
        let reach = if operation < 4 { bytes.len() } else { bytes.len().min(HEAD_BYTES) };
        let at = place % (reach + 1);
        match operation % 4 {
            0 if at < bytes.len() => bytes[at] = byte,
            1 => bytes.truncate(at),
            2 => bytes.insert(at, byte),
            _ => bytes.extend_from_within(..at),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn no_entrance_falls_over_altered_bytes(edits in proptest::collection::vec((0..8u8, any::<usize>(), any::<u8>()), 0..5)) {
        for (target, seed) in SEEDS.iter() {
            (target.run)(&altered(seed, &edits));
        }
    }
}

/// A seed that is refused at once would fuzz nothing behind the first check.
#[test]
fn seeds_get_far() {
    use empathd_model::{adapter::Mixture, embed, tiny};
    use empathd_proto::chat;
    let seed = |name: &str| SEEDS.iter().find(|(target, _)| target.name == name).expect("a target").1.clone();
    serde_json::from_slice::<chat::ChatRequest>(&seed("chat")).expect("a request");
    serde_json::from_slice::<chat::CompletionRequest>(&seed("completion")).expect("a request");
    serde_json::from_slice::<chat::EmbeddingRequest>(&seed("embedding")).expect("a request");
    Mixture::from_bytes(&seed("adapter"), &tiny::config(), [7; 32]).expect("an adapter");
    assert_eq!(seed("embedder"), embed::tiny::files(1)[0].1);
    let lines =
        |seed: &[u8]| seed.split(|b| *b == b'\n').map(|line| serde_json::from_slice(line).expect("an entry")).collect();
    let entries: Vec<empathd_proto::audit::AuditEntry> = lines(&seed("trail"));
    let mut check = empathd_proto::audit::LogCheck::new(None);
    assert!(entries.iter().all(|entry| check.push(&entry.to_leaf()).is_ok()), "each in its place");
    assert!(seed("gguf").starts_with(b"GGUF"));
}

#[test]
fn every_target_has_its_fuzzer() {
    let manifest = crate::tree::read("tests/fuzz/Cargo.toml");
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
        assert!(crate::tree::read(&format!("tests/fuzz/targets/{}.rs", target.name)).contains(target.name));
    }
}
