//! Whole commands against a scripted daemon: what is asked, what is shown, how it ends.

use super::fake::{Fake, checkpoint, frame_of};
use crate::cli::Cli;
use crate::error::CtlError;
use crate::session::{Edge, Session};
use clap::Parser;
use empathd_proto::admin::{
    AdminReply, AdminRequest, ApiRole, AuditVerdict, CertSummary, EmbedderState, EngineState, EnrolledCert, FromDaemon,
    SealState, StatusReport, ToDaemon,
};
use empathd_proto::report::IngestReport;
use empathd_proto::{ErrorCode, Problem, StoreId};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const STORE: StoreId = StoreId::from_bytes([1; 16]);

/// What a run left behind.
pub(super) struct Ran {
    result: Result<(), CtlError>,
    pub(super) out: String,
    pub(super) notes: String,
    pub(super) exit: u8,
}

pub(super) fn run(fake: &Fake, words: &[&str]) -> Ran {
    let socket = fake.folder.path().join("admin.sock").display().to_string();
    let words = ["empathctl", "--socket", &socket].into_iter().chain(words.iter().copied());
    let cli = Cli::try_parse_from(words).expect("a good command line");
    let edge = Edge { state_dir: Some(fake.folder.path().join("kept")), ..crate::render::words::tests::edge() };
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let mut session = Session::new(&cli.global, edge, &mut out, &mut notes);
    let result = super::run(&mut session, cli.command);
    let exit = result.as_ref().map_or_else(|error| session.complain(error), |()| 0);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Ran { result, out: text(out), notes: text(notes), exit }
}

fn status(state: SealState, size: Option<u64>) -> AdminReply {
    AdminReply::Status(StatusReport {
        version: "0.1.0".into(),
        state,
        api: Some("127.0.0.1:8443".into()),
        engine: EngineState::Ready,
        model: None,
        adapter: None,
        records: size,
        audit_entries: size,
        checkpoint: size.map(|size| checkpoint(STORE, size, 1)),
        train: None,
        serving: None,
        embedder: EmbedderState::None,
        embedder_problem: None,
        care: None,
        uptime_s: 1,
        scrub: None,
    })
}

fn verdict(size: u64, verified: bool, extends_known: Option<bool>) -> AdminReply {
    let findings = if verified { vec![] } else { vec!["entry 2 does not authenticate".into()] };
    AdminReply::AuditVerified(AuditVerdict {
        entries: size,
        verified,
        extends_known,
        findings,
        checkpoint: checkpoint(STORE, size, 1),
    })
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("one JSON document")
}

#[test]
fn init_creates_and_keeps_the_first_checkpoint() {
    let fake = Fake::replies([
        status(SealState::Uninitialised, None),
        AdminReply::Initialised { store: STORE, shares: super::copies_tests::papers() },
        status(SealState::Unsealed, Some(1)),
    ]);
    let file = fake.folder.path().join("passphrase");
    fs::write(&file, "twelve chars and more\n").expect("written");
    let ran = run(&fake, &["init", "--json", "--passphrase-file", &file.display().to_string()]);
    assert!(ran.result.is_ok(), "{}", ran.notes);
    let document = json(&ran.out);
    assert_eq!(document["schema"], 1);
    assert_eq!(document["store"], STORE.to_string());
    assert_eq!(document["state"], "unsealed");
    assert_eq!(document["shares"][1], "BBBB");
    assert!(!ran.out.contains("twelve") && !ran.notes.contains("twelve"));
    let received = fake.received();
    let [_, ToDaemon::Request(AdminRequest::Init { passphrase }), _] = &received[..] else { panic!("{received:?}") };
    assert_eq!(passphrase.expose(), "twelve chars and more");
    assert!(fake.folder.path().join(format!("kept/{STORE}.checkpoint")).exists());
}

#[test]
fn init_of_a_store_that_exists_asks_for_no_passphrase() {
    let fake = Fake::replying(status(SealState::Sealed, None));
    let ran = run(&fake, &["init", "--passphrase-file", "/nonexistent"]);
    assert_eq!(ran.exit, 6);
    assert!(ran.notes.contains("next: empathctl unseal"), "{}", ran.notes);
}

#[test]
fn a_problem_becomes_its_exit_code_and_one_document_on_the_error_side() {
    for code in ErrorCode::ALL {
        let problem = Problem::new(*code, "It did not work.", "Run: empathctl status");
        let fake = Fake::answering([frame_of(&FromDaemon::Done(Box::new(Err(problem))))]);
        let ran = run(&fake, &["dataset", "list", "--json"]);
        assert_eq!(ran.exit, code.exit_code());
        assert_eq!(ran.out, "");
        let document = json(&ran.notes);
        assert_eq!(document["code"], code.as_str());
        assert_eq!(document["exit_code"], code.exit_code());
        assert_eq!(document["next"], "Run: empathctl status");
    }
}

#[test]
fn a_key_is_written_for_its_owner_only() {
    let summary = CertSummary {
        serial: "0a".into(),
        name: "ehr".into(),
        role: ApiRole::Ehr,
        uri: "spiffe://empathd/ehr/ehr".into(),
        not_after_ms: 1,
        revoked_at_ms: None,
    };
    let enrolled = EnrolledCert { summary, cert_pem: "CERT".into(), key_pem: "KEY".into(), ca_pem: "CA".into() };
    let fake = Fake::replies([AdminReply::Enrolled(enrolled), status(SealState::Unsealed, Some(1))]);
    let out = fake.folder.path().join("certs");
    let ran = run(&fake, &["cert", "enroll", "ehr", "--json", "--out", &out.display().to_string()]);
    assert!(ran.result.is_ok(), "{}", ran.notes);
    assert!(!ran.out.contains("KEY"));
    assert!(json(&ran.out)["try_it"].as_str().is_some_and(|line| line.starts_with("curl --cacert ")));
    for (name, text, mode) in [("ehr.key", "KEY", 0o600), ("ehr.pem", "CERT", 0o644), ("ca.pem", "CA", 0o644)] {
        let path = out.join(name);
        assert_eq!(fs::read_to_string(&path).expect("written"), text);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, mode & !umask());
    }
}

/// What this process may not grant; files of mode 0644 are made under it.
fn umask() -> u32 {
    let file = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o777)).tempfile().expect("file");
    0o777 & !file.as_file().metadata().expect("there").permissions().mode()
}

#[test]
fn ingest_passes_over_what_no_profile_knows_and_adds_the_rest_up() {
    let report = IngestReport { files: 1, read: 3, accepted: 2, rejected: 1, ..IngestReport::default() };
    let unknown = Problem::new(ErrorCode::UnknownSource, "No profile fits.", "");
    let answers = [Ok(AdminReply::Ingested(report.clone())), Err(unknown), Ok(AdminReply::Ingested(report))];
    let fake = Fake::outcomes(answers);
    let data = fake.folder.path().join("data");
    fs::create_dir(&data).expect("made");
    for name in ["a.csv", "b.csv", "c.jsonl", "README"] {
        fs::write(data.join(name), name).expect("written");
    }
    let ran = run(&fake, &["ingest", "--json", &data.display().to_string()]);
    assert!(ran.result.is_ok(), "{}", ran.notes);
    let document = json(&ran.out);
    assert_eq!((document["read"].as_u64(), document["accepted"].as_u64()), (Some(6), Some(4)));
    assert_eq!(
        (document["refused"][0]["code"].as_str(), document["skipped"].as_u64()),
        (Some("unknown_source"), Some(1))
    );
    let received = fake.received();
    let ToDaemon::Request(AdminRequest::Ingest { file_name, bytes: 5, dry_run: false }) = &received[0] else {
        panic!("{received:?}")
    };
    assert_eq!(file_name, "a.csv");
}

#[test]
fn a_named_file_that_no_profile_knows_is_an_error_and_a_sealed_store_ends_the_run() {
    let problem = |code| Err(Problem::new(code, "It did not work.", ""));
    for (code, exit, asked) in [(ErrorCode::UnknownSource, 2, 2), (ErrorCode::Sealed, 3, 1)] {
        let fake = Fake::outcomes([problem(code), problem(code)]);
        let file = fake.folder.path().join("x.csv");
        fs::write(&file, "x").expect("written");
        let name = file.display().to_string();
        assert_eq!(run(&fake, &["ingest", &name, &name]).exit, exit);
        let requests = fake.received().into_iter().filter(|message| matches!(message, ToDaemon::Request(_)));
        assert_eq!(requests.count(), asked);
    }
}

#[test]
fn verify_keeps_what_it_saw_and_shows_it_next_time() {
    let fake = Fake::replies([
        status(SealState::Unsealed, Some(3)),
        verdict(3, true, None),
        status(SealState::Unsealed, Some(5)),
        verdict(5, true, Some(true)),
    ]);
    assert_eq!(run(&fake, &["audit", "verify"]).exit, 0);
    let ran = run(&fake, &["audit", "verify"]);
    assert!(ran.out.contains("extends the 3 entries seen before"), "{}", ran.out);
    let received = fake.received();
    let [_, ToDaemon::Request(AdminRequest::AuditVerify { known: None }), _, ToDaemon::Request(second)] = &received[..]
    else {
        panic!("{received:?}")
    };
    assert!(matches!(second, AdminRequest::AuditVerify { known: Some(known) } if *known == checkpoint(STORE, 3, 1)));
}

#[test]
fn a_trail_that_does_not_hold_is_an_alarm_whatever_the_daemon_claims() {
    let bad = [
        verdict(5, false, Some(true)),
        verdict(5, true, Some(false)),
        verdict(5, true, None),
        verdict(2, true, Some(true)),
    ];
    for verdict_now in bad {
        let fake = Fake::replies([
            status(SealState::Unsealed, Some(3)),
            verdict(3, true, None),
            status(SealState::Unsealed, Some(5)),
            verdict_now,
        ]);
        assert_eq!(run(&fake, &["audit", "verify"]).exit, 0);
        let ran = run(&fake, &["audit", "verify", "--json"]);
        assert_eq!(ran.exit, 7, "{}", ran.out);
        assert_eq!(json(&ran.out)["schema"], 1);
        assert_eq!(json(&ran.notes)["code"], "integrity");
    }
}

#[test]
fn status_notices_a_trail_that_was_cut_back() {
    let fake = Fake::replies([status(SealState::Unsealed, Some(3)), status(SealState::Unsealed, Some(2))]);
    assert_eq!(run(&fake, &["status"]).exit, 0);
    let ran = run(&fake, &["status"]);
    assert_eq!(ran.exit, 7);
    assert!(ran.notes.contains("AUDIT ALARM"), "{}", ran.notes);
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let fake = Fake::replying(AdminReply::Ok);
    assert!(matches!(run(&fake, &["cert", "list"]).result, Err(CtlError::UnexpectedReply)));
}

#[test]
fn completions_need_no_daemon() {
    let fake = Fake::replies([]);
    assert!(run(&fake, &["completions", "bash"]).out.contains("_empathctl"));
}
