//! Who may know whom. Each forbidden edge of the architecture is a line here; what the code does is not.

use crate::tree;
use std::collections::BTreeMap;

/// The crates, where they live, and which crates of the workspace they may know.
const MAY_KNOW: &[(&str, &str, &[&str])] = &[
    ("empathd-proto", "proto", &[]),
    ("empathd-store", "store", &["empathd-proto"]),
    ("empathd-model", "model", &["empathd-proto"]),
    ("empathd-ingest", "daemon/ingest", &["empathd-proto"]),
    ("empathd-clinic", "daemon/clinic", &["empathd-proto"]),
    // Not the model: the daemon speaks to the engine over a socket and never links candle.
    ("empathd", "daemon", &["empathd-proto", "empathd-store", "empathd-ingest", "empathd-clinic"]),
    ("empathctl", "daemon/ctl", &["empathd-proto"]),
    ("empathd-tests", "tests", EVERYTHING),
    ("empathd-benches", "benches", EVERYTHING),
];

const EVERYTHING: &[&str] = &[
    "empathd-proto",
    "empathd-store",
    "empathd-model",
    "empathd-ingest",
    "empathd-clinic",
    "empathd",
    "empathctl",
    "empathd-tests",
];

/// Outside crates that a room must never know, and why.
const NEVER: &[(&str, &[&str], &str)] = &[
    ("empathd-proto", &["tokio", "redb", "candle-core", "rustix", "tracing"], "words do no IO"),
    ("empathd-store", &["tokio", "hyper", "axum", "candle-core", "tracing"], "data at rest is synchronous and silent"),
    ("empathd-model", &["tokio", "redb", "hyper", "axum", "rustls", "aes-gcm"], "maths knows no keys and no network"),
    ("empathd-ingest", &["tokio", "redb", "candle-core", "rustix", "tracing"], "reading sources is pure"),
    ("empathd-clinic", &["tokio", "redb", "candle-core", "rustix", "tracing"], "clinical rules are pure"),
    (
        "empathd",
        &["candle-core", "candle-nn", "tokenizers", "safetensors", "redb", "aes-gcm"],
        "wiring knows no tensors and no file formats",
    ),
    ("empathctl", &["redb", "candle-core", "hyper", "axum"], "the tool is a client of the socket"),
];

fn dependencies(folder: &str) -> BTreeMap<String, toml::Value> {
    let manifest: toml::Table = tree::read(&format!("{folder}/Cargo.toml")).parse().expect("a manifest");
    let table = |name: &str| manifest.get(name).and_then(toml::Value::as_table).cloned().unwrap_or_default();
    table("dependencies").into_iter().collect()
}

#[test]
fn crates_know_only_whom_the_drawing_lets_them_know() {
    for (name, folder, allowed) in MAY_KNOW {
        for dependency in dependencies(folder).keys().filter(|key| key.starts_with("empath")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not know {dependency}");
        }
    }
}

#[test]
fn rooms_stay_ignorant_of_what_is_not_theirs() {
    for (name, forbidden, why) in NEVER {
        let (_, folder, _) = MAY_KNOW.iter().find(|(crate_name, _, _)| crate_name == name).expect("listed");
        let known = dependencies(folder);
        for outside in *forbidden {
            assert!(!known.contains_key(*outside), "{name} must not know {outside}: {why}");
        }
    }
}

#[test]
fn every_member_is_listed_and_takes_the_lints() {
    let manifest: toml::Table = tree::read("Cargo.toml").parse().expect("a manifest");
    let members = manifest["workspace"]["members"].as_array().expect("members");
    let listed: Vec<&str> = MAY_KNOW.iter().map(|(_, folder, _)| *folder).collect();
    for member in members.iter().filter_map(toml::Value::as_str) {
        assert!(listed.contains(&member), "{member} is not in the drawing of tests/it/deps.rs");
        let own: toml::Table = tree::read(&format!("{member}/Cargo.toml")).parse().expect("a manifest");
        let lints = own.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        assert_eq!(lints, Some(true), "{member} must take the lints of the workspace");
    }
    assert_eq!(members.len(), listed.len());
}

#[test]
fn one_place_puts_records_into_the_store() {
    let callers: Vec<String> = tree::rust_sources()
        .into_iter()
        .filter(|source| source.text.contains(".put_record("))
        .map(|source| source.path)
        .filter(|path| path.starts_with("daemon/"))
        .collect();
    assert_eq!(callers, ["daemon/src/records.rs"], "only reviewed records reach the store");
}

#[test]
fn one_place_makes_a_reviewed_record() {
    let makers: Vec<String> = tree::rust_sources()
        .into_iter()
        .filter(|source| source.text.contains("ValidRecord {") && source.path.starts_with("daemon/"))
        .filter(|source| {
            // A construction, not the definition or an `impl` block.
            source
                .text
                .lines()
                .any(|line| line.contains("ValidRecord {") && !line.contains("struct ") && !line.contains("impl "))
        })
        .map(|source| source.path)
        .collect();
    assert_eq!(makers, ["daemon/ingest/src/validate.rs"], "only validation makes a reviewed record");
}

#[test]
fn the_engine_writes_no_file_and_opens_no_network() {
    let forbidden = ["fs::write", "File::create", "OpenOptions", "TcpStream", "TcpListener", "UdpSocket"];
    for source in tree::rust_sources() {
        let tests_only =
            ["/tiny.rs", "/tests.rs"].iter().any(|end| source.path.ends_with(end)) || source.path.contains("/tests/");
        if !source.path.starts_with("model/src/") || tests_only {
            continue;
        }
        let code: Vec<&str> = source.text.lines().take(source.lines_without_tests()).collect();
        for word in forbidden {
            assert!(!code.iter().any(|line| line.contains(word)), "{} must not use {word}", source.path);
        }
    }
}
