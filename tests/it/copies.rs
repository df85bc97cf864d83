//! Copies of a real appliance: made, erased from, restored into a fresh folder with two recovery shares. What a copy holds
//! is the business of the store's own tests.

use crate::stage::{Stage, status};
use empathd_tests::harness::appliance::{Appliance, Launch};
use serde_json::Value;
use std::fs;
use std::process::Command;

/// Two people, each with words of their own, as the record system gives them.
fn source(name: &str, words: &str) -> String {
    let turn = |role: &str, text: String| format!("{{\"role\":\"{role}\",\"content\":\"{text}\"}}");
    let turns = [
        turn("user", format!("I have not slept well for weeks, and {words} is on my mind.")),
        turn("assistant", "That sounds exhausting. Tell me what a usual night looks like for you.".to_owned()),
    ];
    format!("{{\"dialogue_id\":\"{name}\",\"messages\":[{}]}}\n", turns.join(","))
}

fn ingest(stage: &Stage, appliance: &Appliance) {
    let file = stage.path("two.jsonl");
    fs::write(&file, source("p-one", "the river") + &source("p-two", "the orchard")).expect("written");
    let report = appliance.ctl(&["ingest", file.to_str().expect("UTF-8")]).expect("ingested");
    assert_eq!(report["accepted"], 2, "{report}");
}

/// The newest backup in a folder.
fn backup(stage: &Stage, appliance: &Appliance, more: &[&str]) -> String {
    let folder = stage.word("backups");
    let made = appliance.ctl(&[&["backup", "create", &folder], more].concat()).expect("a backup");
    made["file"].as_str().expect("a path").to_owned()
}

fn restore(stage: &Stage, state: &str, backups: &[&str], key_file: &str) -> Result<Value, String> {
    let mut command = Command::new(&stage.launch.programs.daemon);
    command.args(["restore", "--dev", "--json", "--state", state, "--key-file", key_file]);
    command.args(["--shares-file", &stage.word("papers"), "--passphrase-file", &stage.word("passphrase")]);
    for path in backups {
        command.args(["--backup", path]);
    }
    let output = command.output().expect("it runs");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("a document")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn a_client_who_was_erased_does_not_come_back_and_the_other_one_does() {
    let stage = Stage::new();
    let appliance = stage.launch.start().expect("it starts");
    let papers = stage.word("papers");
    let init = appliance.ctl(&["init", "--passphrase-file", &stage.word("passphrase"), "--shares-file", &papers]);
    assert!(init.expect("made")["shares"].is_null());
    ingest(&stage, &appliance);
    let whole = backup(&stage, &appliance, &[]);
    appliance.ctl(&["keys", "escrow", &stage.word("old-keys")]).expect("a key file");

    let out = stage.word("export");
    let erased = appliance.ctl(&["client", "erase", "p-one", "--reason", "request", "--export", &out, "--yes"]);
    assert_eq!(erased.expect("erased")["records"], 1);
    assert!(fs::read_to_string(stage.path("export/records.jsonl")).expect("there").contains("the river"));
    assert!(status(&appliance).care.expect("unsealed").key_file_due.is_some());
    let later = backup(&stage, &appliance, &["--incremental"]);
    appliance.ctl(&["keys", "escrow", &stage.word("keys")]).expect("a key file");
    appliance.ctl(&["backup", "drill", "--shares-file", &papers]).expect("a drill");

    let refused = restore(&stage, &stage.word("none"), &[&whole, &later], &stage.word("old-keys"));
    assert!(refused.expect_err("an old key file").contains("key file"));
    for (state, backups) in [("first", &[whole.as_str()][..]), ("both", &[whole.as_str(), later.as_str()][..])] {
        let state = stage.word(state);
        let restored = restore(&stage, &state, backups, &stage.word("keys")).expect("restored");
        assert_eq!(restored["records"], 1, "{restored}");
        assert!(stage.verify(state.as_ref()).ok);
    }

    appliance.ctl(&["seal"]).expect("sealed");
    appliance.ctl(&["unseal", "--shares-file", &papers]).expect("unsealed by two papers");
    appliance.stop().expect("stopped");

    let again = Launch { state: stage.path("both"), ..stage.launch.clone() }.start().expect("the restored one starts");
    again.ctl(&["unseal", "--shares-file", &papers]).expect("the papers stay good");
    assert_eq!(status(&again).records, Some(1));
    assert_eq!(again.ctl(&["client", "export", "p-one", &stage.word("gone")]).expect_err("gone").code(), "not_found");
    again.ctl(&["client", "export", "p-two", &stage.word("there")]).expect("exported");
    assert!(fs::read_to_string(stage.path("there/records.jsonl")).expect("there").contains("the orchard"));
    assert_eq!(again.ctl(&["audit", "verify"]).expect("verified")["verified"], true);
}
