//! What is fuzzed: one plain function for each way in which bytes of strangers enter. Each takes any bytes and must return.
//! The fuzzers under `tests/fuzz` call them without end, the integration binary a bounded number of times.

use empathd_ingest::{Policy, Roster, detect, read, validate};
use empathd_model::gguf;
use empathd_proto::audit::{AuditEntry, SignedCheckpoint};
use empathd_proto::{admin, chat, engine, frame};
use std::io::Write;

/// A fuzzed entrance.
pub struct Target {
    /// Its name, and the name of its fuzzer.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Bytes that get far, to begin from.
    pub seed: &'static [u8],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frames, seed: &[7, 0, 0, 0, 1, 0, 0] },
    Target {
        name: "chat",
        run: chat_body,
        seed: br#"{"model":"m","messages":[{"role":"user","content":"x"}],"stop":["a"],"seed":1}"#,
    },
    Target { name: "checkpoint", run: checkpoint, seed: "o\n1\nAAAA\n\n\u{2014} o AAAA\n".as_bytes() },
    Target { name: "leaf", run: leaf, seed: &[1, 0, 0, 1, 0, 3, 0, 0, 0] },
    Target {
        name: "source",
        run: source,
        seed: b"{\"messages\":[{\"role\":\"user\",\"content\":\"I cannot sleep.\"},{\"role\":\"assistant\",\"content\":\"Tell me more about the nights.\"}]}\n",
    },
    Target { name: "gguf", run: model_file, seed: b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0" },
];

fn frames(bytes: &[u8]) {
    let Some((header, payload)) = bytes.split_first_chunk() else { return };
    let _ = frame::payload_bytes(*header);
    let _ = frame::decode::<engine::ToEngine>(payload);
    let _ = frame::decode::<engine::FromEngine>(payload);
    let _ = frame::decode::<admin::ToDaemon>(payload);
    let _ = frame::decode::<admin::FromDaemon>(payload);
}

fn chat_body(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<chat::ChatRequest>(bytes) {
        let again = serde_json::to_vec(&request).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<chat::ChatRequest>(&again).ok(), Some(request));
    }
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

fn model_file(bytes: &[u8]) {
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(bytes).is_ok()
        && let Ok(model) = gguf::open(file.path())
    {
        let _ = (model.config(), model.tokenizer());
    }
}
