//! Every fuzzed entrance, run a bounded number of times on altered seeds. What a longer run finds becomes a test of the room
//! it was found in.

use empathd_tests::fuzz::TARGETS;
use proptest::prelude::*;

/// The seed after some edits: an operation, a place and a byte each.
fn altered(seed: &[u8], edits: &[(u8, usize, u8)]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for &(operation, place, byte) in edits {
        let at = place % (bytes.len() + 1);
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
    fn no_entrance_falls_over_altered_bytes(edits in proptest::collection::vec((0..4u8, any::<usize>(), any::<u8>()), 0..5)) {
        for target in TARGETS {
            (target.run)(&altered(target.seed, &edits));
        }
    }
}

#[test]
fn every_target_has_its_fuzzer() {
    let manifest = crate::tree::read("tests/fuzz/Cargo.toml");
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
        assert!(crate::tree::read(&format!("tests/fuzz/targets/{}.rs", target.name)).contains(target.name));
    }
}
