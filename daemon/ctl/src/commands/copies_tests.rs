//! Keys, clients and backups against a scripted daemon.

use super::fake::{Fake, frame_of};
use super::tests::run;
use empathd_proto::admin::{AdminReply, AdminRequest, FromDaemon, ToDaemon};
use empathd_proto::keys::{
    BackupSummary, Check, CheckState, EraseReason, ErasureSummary, EscrowSummary, Papers, Rekey,
};
use empathd_proto::manifest::FileFacts;
use empathd_proto::{AdapterId, ClientId, Secret};
use std::fs;
use std::os::unix::fs::PermissionsExt;

pub(super) fn papers() -> Papers {
    Papers(["AAAA", "BBBB", "CCCC"].map(|text| Secret::new(text.to_owned())).to_vec())
}

fn sent(files: &[(&str, &[u8])], reply: AdminReply) -> Fake {
    let mut frames = Vec::new();
    for (path, bytes) in files {
        frames.push(frame_of(&FromDaemon::File { path: (*path).to_owned(), bytes: bytes.len() as u64 }));
        frames.push(frame_of(&FromDaemon::Chunk(bytes.to_vec())));
    }
    frames.push(frame_of(&FromDaemon::Done(Box::new(Ok(reply)))));
    Fake::answering(frames)
}

#[test]
fn new_shares_are_shown_or_go_into_a_file_and_come_back_from_it() {
    let fake = Fake::replying(AdminReply::Shares(papers()));
    let file = fake.folder.path().join("shares");
    let path = file.to_str().expect("UTF-8");
    let ran = run(&fake, &["keys", "rekey", "--shares", "--shares-file", path]);
    assert_eq!(ran.exit, 0, "{}", ran.notes);
    assert!(!ran.out.contains("AAAA") && !ran.notes.contains("AAAA"));
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    assert!(matches!(fake.received()[..], [ToDaemon::Request(AdminRequest::KeysRekey(Rekey::Shares))]));

    let fake = Fake::replying(AdminReply::Shares(papers()));
    let ran = run(&fake, &["keys", "rekey", "--shares"]);
    assert!(["AAAA", "BBBB", "CCCC", "Share 3 of 3"].iter().all(|part| ran.out.contains(part)), "{}", ran.out);

    let read = crate::shares::given(&[file]).expect("read");
    assert_eq!(read.iter().map(|share| share.expose().trim()).collect::<Vec<_>>(), ["AAAA", "BBBB", "CCCC"]);
}

#[test]
fn a_key_file_is_its_owners_alone_and_half_of_one_does_not_stay() {
    let whole = FileFacts::of(b"sealed keys");
    let summary =
        |sha256: &str| AdminReply::Escrowed(EscrowSummary { bytes: whole.bytes, sha256: sha256.to_owned(), at_ms: 1 });
    let fake = sent(&[("keys", b"sealed keys")], summary(&whole.sha256));
    let file = fake.folder.path().join("escrow");
    let ran = run(&fake, &["keys", "escrow", file.to_str().expect("UTF-8")]);
    assert_eq!((ran.exit, fs::read(&file).expect("there").as_slice()), (0, b"sealed keys".as_slice()), "{}", ran.notes);
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let again = run(&fake, &["keys", "escrow", file.to_str().expect("UTF-8")]);
    assert_eq!(again.exit, 2, "an existing file is never written over");

    let fake = sent(&[("keys", b"sealed keys")], summary("00"));
    let file = fake.folder.path().join("escrow");
    assert_eq!(run(&fake, &["keys", "escrow", file.to_str().expect("UTF-8")]).exit, 7);
    assert!(!file.exists());
}

#[test]
fn a_backup_lies_under_its_time_and_the_next_one_goes_on_from_its_index() {
    let facts = FileFacts::of(b"rows");
    let summary = |incremental| {
        AdminReply::BackedUp(BackupSummary {
            name: "0123456789abcdef".into(),
            at_ms: 1_772_366_400_000,
            incremental,
            rows: 3,
            removed: 0,
            blobs: 1,
            bytes: facts.bytes,
            sha256: facts.sha256.clone(),
        })
    };
    let fake = sent(&[("backup", b"rows"), ("index", b"what there was")], summary(false));
    let (dir, to) = (tempfile::tempdir().expect("scratch"), "backups");
    let folder = dir.path().join(to);
    let path = folder.to_str().expect("UTF-8");
    assert_eq!(run(&fake, &["backup", "create", path, "--incremental"]).exit, 2, "there is none to go on from");
    let ran = run(&fake, &["backup", "create", path]);
    assert_eq!(ran.exit, 0, "{}", ran.notes);
    let mut names: Vec<String> =
        fs::read_dir(&folder).expect("there").flatten().map(|e| e.file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    assert_eq!(names, ["20260301T120000000Z-whole-01234567.backup", "20260301T120000000Z-whole-01234567.index"]);
    let fake = sent(&[("backup", b"rows"), ("index", b"more")], summary(true));
    assert_eq!(run(&fake, &["backup", "create", path, "--incremental"]).exit, 0);
    let received = fake.received();
    let [ToDaemon::Request(AdminRequest::BackupCreate { index_bytes: 14 }), ToDaemon::Chunk(index), ToDaemon::End] =
        &received[..]
    else {
        panic!("{received:?}")
    };
    assert_eq!(index, b"what there was");
}

#[test]
fn an_erasure_is_asked_again_and_says_what_was_retired_and_what_to_do() {
    let summary = ErasureSummary {
        client: ClientId::from_bytes([9; 16]),
        records: 4,
        reason: EraseReason::Request,
        retired: vec![AdapterId::from_bytes([8; 16])],
        jobs_dropped: 0,
        active: None,
    };
    let fake = Fake::replying(AdminReply::Erased(summary));
    let words = ["client", "erase", "ehr:p-17", "--reason", "request"];
    assert_eq!(run(&fake, &words).exit, 2, "without a terminal nothing is erased");
    let ran = run(&fake, &["client", "erase", "ehr:p-17", "--reason", "request", "--yes"]);
    assert_eq!(ran.exit, 0, "{}", ran.notes);
    assert!(ran.out.contains("adapter_08") && ran.out.contains("keys escrow FILE"), "{}", ran.out);
    assert!(!ran.out.contains("p-17") && !ran.notes.contains("p-17"));
}

#[test]
fn the_checklist_ends_badly_when_something_has_to_be_mended() {
    let check = |state, next: &str| Check { name: "disk".into(), state, found: "9 % free".into(), next: next.into() };
    let fake = Fake::replying(AdminReply::Checklist(vec![check(CheckState::Ok, ""), check(CheckState::Warn, "Look.")]));
    let ran = run(&fake, &["doctor"]);
    assert!(ran.exit == 0 && ran.out.contains("warn  disk") && ran.out.contains("disk: Look."), "{}", ran.out);
    let fake = Fake::replying(AdminReply::Checklist(vec![check(CheckState::Fail, "Free some.")]));
    assert_eq!(run(&fake, &["doctor"]).exit, 6);
}
