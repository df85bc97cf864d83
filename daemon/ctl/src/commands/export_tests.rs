//! Exports against a scripted daemon: what is written, how the folder is checked, and everything that must not pass.

use super::fake::{Fake, frame_of};
use super::tests::run;
use ed25519_dalek::{Signer as _, SigningKey};
use empathd_proto::AdapterId;
use empathd_proto::admin::{AdminReply, AdminRequest, ExportSummary, FromDaemon, ToDaemon};
use empathd_proto::manifest::{FileFacts, Index, MANIFEST, SCHEMA, SIGNATURE, Signer};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const ID: AdapterId = AdapterId::from_bytes([1; 16]);
const CONFIG: &str = "shared/adapter_config.json";

/// The frames of a good export.
fn frames(paths: &[&str]) -> Vec<Vec<u8>> {
    let key = SigningKey::from_bytes(&[7; 32]);
    let content = |path: &str| format!("content of {path}").into_bytes();
    let signed_by = Signer::new(key.verifying_key().as_bytes());
    let files = paths.iter().map(|path| ((*path).to_owned(), FileFacts::of(&content(path)))).collect();
    let index =
        Index { schema: SCHEMA, adapter: ID.to_string(), client: String::new(), signed_by: signed_by.clone(), files };
    let manifest = serde_json::to_vec(&index).expect("written");
    let signature = key.sign(&manifest).to_bytes().to_vec();
    let mut all: Vec<(String, Vec<u8>)> = paths.iter().map(|path| ((*path).to_owned(), content(path))).collect();
    all.push((MANIFEST.to_owned(), manifest));
    all.push((SIGNATURE.to_owned(), signature));
    let bytes = all.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let summary = ExportSummary { adapter: ID, files: all.len() as u32, bytes, public_key: signed_by.public_key };
    let parts = all.into_iter().flat_map(|(path, bytes)| {
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        let begin = FromDaemon::File { path, bytes: bytes.len() as u64 };
        [begin, FromDaemon::Chunk(head.to_vec()), FromDaemon::Chunk(tail.to_vec())]
    });
    let done = FromDaemon::Done(Box::new(Ok(AdminReply::Exported(summary))));
    parts.chain([done]).map(|message| frame_of(&message)).collect()
}

fn exported(paths: &[&str]) -> (Fake, PathBuf, u8, String) {
    let fake = Fake::answering(frames(paths));
    let folder = fake.folder.path().join("out");
    let ran = run(&fake, &["adapter", "export", &ID.to_string(), &folder.display().to_string()]);
    (fake, folder, ran.exit, ran.out + &ran.notes)
}

fn verified(fake: &Fake, folder: &std::path::Path, more: &[&str]) -> (u8, String) {
    let folder = folder.display().to_string();
    let words = [&["adapter", "verify", folder.as_str()], more].concat();
    let ran = run(fake, &words);
    (ran.exit, ran.out + &ran.notes)
}

#[test]
fn an_export_is_written_for_its_owner_and_verifies_without_a_daemon() {
    let (fake, folder, exit, text) = exported(&[CONFIG, "README.md"]);
    assert_eq!(exit, 0, "{text}");
    assert!(matches!(fake.received()[..], [ToDaemon::Request(AdminRequest::AdapterExport { id: ID })]));
    let mode = |path: &str| fs::metadata(folder.join(path)).expect("there").permissions().mode() & 0o777;
    assert_eq!([mode(""), mode("shared"), mode(CONFIG)], [0o700, 0o700, 0o600]);
    let key = text.split("signed by").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a key").to_owned();
    let (exit, text) = verified(&fake, &folder, &["--key", &key]);
    assert_eq!(exit, 0, "{text}");
    assert!(text.contains("the given key"));
    let (exit, text) = verified(&fake, &folder, &[]);
    assert!(exit == 0 && text.contains("compare it"), "an unknown key is said to be one: {text}");
    assert_eq!(verified(&fake, &folder, &["--key", "AAAA"]).0, 7);
}

#[test]
fn files_that_were_changed_added_or_taken_away_are_found_out() {
    let (fake, folder, exit, text) = exported(&[CONFIG, "README.md"]);
    assert_eq!(exit, 0, "{text}");
    let path = folder.join(CONFIG);
    let good = fs::read(&path).expect("read");
    fs::write(&path, [&good[1..], b"x"].concat()).expect("written");
    assert_eq!(verified(&fake, &folder, &[]).0, 7);
    fs::write(&path, [&good[..], b"x"].concat()).expect("written");
    assert_eq!(verified(&fake, &folder, &[]).0, 7);
    fs::remove_file(&path).expect("removed");
    let (exit, text) = verified(&fake, &folder, &[]);
    assert!(exit == 7 && text.contains("is missing"), "{text}");
    fs::write(&path, &good).expect("written");
    fs::write(folder.join("shared/more.bin"), "x").expect("written");
    let (exit, text) = verified(&fake, &folder, &["--json"]);
    assert!(exit == 7 && text.contains("shared/more.bin is not in the manifest"), "{text}");
    fs::remove_file(folder.join("shared/more.bin")).expect("removed");
    std::os::unix::fs::symlink("/etc/hostname", folder.join("link")).expect("linked");
    assert_eq!(verified(&fake, &folder, &[]).0, 7);
}

#[test]
fn nothing_is_written_outside_the_folder_or_over_what_is_there() {
    for bad in ["../escaped", "/tmp/escaped", "a/../../escaped"] {
        let (fake, _, exit, text) = exported(&[bad]);
        assert_eq!(exit, 7, "{text}");
        assert!(!fake.folder.path().join("escaped").exists());
    }
    let fake = Fake::replies([]);
    fs::write(fake.folder.path().join("mine"), "x").expect("written");
    let folder = fake.folder.path().display().to_string();
    let ran = run(&fake, &["adapter", "export", &ID.to_string(), &folder]);
    assert!(ran.exit == 2 && ran.notes.contains("not empty") && fake.received().is_empty(), "{}", ran.notes);
}

#[test]
fn a_file_that_ends_early_is_no_export() {
    let mut frames = frames(&[CONFIG]);
    frames.remove(2);
    let fake = Fake::answering(frames);
    let folder = fake.folder.path().join("out").display().to_string();
    let ran = run(&fake, &["adapter", "export", &ID.to_string(), &folder]);
    assert!(ran.exit == 7 && ran.notes.contains("not complete"), "{}", ran.notes);
}
