//! An export from the order of an administrator to the bytes on the socket, with an engine played by the test. How the tool
//! writes them is not known here.

use crate::action::Action;
use crate::admin::upload::{FilePart, FileSink, ProgressSink};
use crate::app::Reply;
use crate::engine::link::head_of;
use crate::fixture::{Fixture, Played, ROOT};
use crate::jobs::course::tests::{admin, begin, judge, lesson, prepare, trained, until};
use empathd_proto::admin::{AdminReply, ExportSummary};
use empathd_proto::audit::{ActionKind, AuditObject, Outcome};
use empathd_proto::engine::{FromEngineBody, ToEngineBody};
use empathd_proto::ids::AdapterId;
use empathd_proto::manifest::{FileFacts, Index, MANIFEST, SIGNATURE};
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::report::JobState;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;

/// An appliance whose one generation has, or has not, passed its gate.
async fn generation(loss: f64) -> (Fixture, AdapterId) {
    let mut fixture = Fixture::unsealed("").await;
    prepare(&fixture.app).await;
    let mut engine = fixture.connect().await;
    admin(&fixture.app, begin(loss < 1.9)).await;
    let (tag, _) = lesson(&mut engine).await;
    trained(&mut engine, tag).await;
    let judging = tokio::spawn(judge(engine, loss));
    let state = if loss < 1.9 { JobState::Finished } else { JobState::Failed };
    let status = until(&fixture.app, state).await;
    judging.abort();
    (fixture, status.adapter.expect("a generation"))
}

/// An engine that gives these files.
async fn give(mut engine: Played, paths: &[&str]) {
    loop {
        let (tag, body) = engine.hear().await;
        match body {
            ToEngineBody::Chunk(_) => engine.say(tag, FromEngineBody::AdapterReady).await,
            ToEngineBody::DropAdapter { .. } => engine.say(tag, FromEngineBody::AdapterDropped).await,
            ToEngineBody::Export { base_name, .. } => {
                assert_eq!(base_name, "tiny");
                for path in paths {
                    let bytes = format!("content of {path}").into_bytes();
                    let file = FromEngineBody::File { path: (*path).to_owned(), blob: head_of(&bytes) };
                    engine.say(tag, file).await;
                    engine.say(tag, FromEngineBody::Chunk(bytes)).await;
                }
                engine.say(tag, FromEngineBody::Exported { files: paths.len() as u32 }).await;
            }
            _ => {}
        }
    }
}

type Taken = (Result<ExportSummary, Problem>, BTreeMap<String, Vec<u8>>);

/// Orders an export and takes its files.
async fn export(fixture: &mut Fixture, id: AdapterId, paths: &'static [&'static str]) -> Taken {
    let engine = fixture.connect().await;
    let giving = tokio::spawn(give(engine, paths));
    let (sender, mut parts) = mpsc::channel(1);
    let taking = tokio::spawn(async move {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut current = String::new();
        while let Some(part) = parts.recv().await {
            match part {
                FilePart::Begin { path, .. } => current = path,
                FilePart::Chunk(chunk) => files.entry(current.clone()).or_default().extend(chunk),
            }
        }
        files
    });
    let order = Action::AdapterExport { id, files: FileSink::new(sender) };
    let reply = tokio::time::timeout(Duration::from_secs(30), fixture.app.perform(&ROOT, order)).await;
    giving.abort();
    let reply = reply.expect("in time").map(|reply| match reply {
        Reply::Admin(reply) => match *reply {
            AdminReply::Exported(summary) => summary,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    });
    (reply, taking.await.expect("no panic"))
}

fn outcomes(fixture: &Fixture, id: AdapterId) -> Vec<(Outcome, u64)> {
    let entries = fixture.app.vault.unsealed().expect("unsealed").audit_tail(1000).expect("a tail");
    let exports = entries.iter().filter(|entry| entry.action == ActionKind::AdapterExport);
    exports
        .inspect(|entry| assert!(entry.object == AuditObject::Adapter(id) || entry.outcome != Outcome::Done))
        .map(|entry| (entry.outcome, entry.count))
        .collect()
}

#[tokio::test]
async fn an_export_is_signed_described_and_in_the_trail() {
    let (mut fixture, id) = generation(1.5).await;
    let (reply, files) = export(&mut fixture, id, &["shared/adapter_config.json", "gguf/shared.gguf"]).await;
    let summary = reply.expect("exported");
    assert_eq!(summary.files as usize, files.len());
    let index = Index::open(&files[MANIFEST], &files[SIGNATURE]).expect("signed");
    assert_eq!((index.adapter, &index.signed_by.public_key), (id.to_string(), &summary.public_key));
    assert_eq!(index.files.len() + 2, files.len());
    assert!(index.files.iter().all(|(path, facts)| FileFacts::of(&files[path]) == *facts));
    let card = String::from_utf8(files["README.md"].clone()).expect("text");
    for part in ["## Intended use", "## Limits and risks", "| crisis_recall | 24 |", "Base model: tiny"] {
        assert!(card.contains(part), "{part} is not in:\n{card}");
    }
    let manifest: serde_json::Value = serde_json::from_slice(&files[MANIFEST]).expect("JSON");
    assert!(manifest["gate"]["bounds"].as_array().is_some_and(|bounds| bounds.len() > 10));
    assert_eq!(manifest["lineage"]["cut_digest"].as_str().map(str::len), Some(64));
    assert_eq!(outcomes(&fixture, id), [(Outcome::Done, files.len() as u64)]);
}

#[tokio::test]
async fn what_an_export_must_not_hold_never_leaves() {
    let (mut fixture, id) = generation(1.5).await;
    let bad: [&'static [&'static str]; 3] = [&["../escaped"], &["manifest.json"], &["a", "a"]];
    for paths in bad {
        let (reply, files) = export(&mut fixture, id, paths).await;
        assert_eq!(reply.expect_err("refused").code, ErrorCode::Internal);
        assert!(files.is_empty());
    }
    assert!(outcomes(&fixture, id).iter().all(|(outcome, _)| matches!(outcome, Outcome::Failed(_))));
}

#[tokio::test]
async fn a_candidate_that_was_refused_does_not_leave() {
    let (mut fixture, id) = generation(1.995).await;
    let (reply, files) = export(&mut fixture, id, &["shared/adapter_config.json"]).await;
    assert_eq!(reply.expect_err("refused").code, ErrorCode::GateRefused);
    assert!(files.is_empty());
    let missing = AdapterId::from_bytes([9; 16]);
    assert_eq!(export(&mut fixture, missing, &[]).await.0.expect_err("none").code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_report_says_what_the_gate_found() {
    let (fixture, id) = generation(1.995).await;
    let AdminReply::TrainReport(report) = admin(&fixture.app, Action::TrainReport { job: None }).await else {
        panic!("a report")
    };
    let adapter = report.adapter.expect("a generation");
    assert_eq!((adapter.id, report.status.adapter), (id, Some(id)));
    let gate = adapter.gate.expect("a gate");
    assert!(!gate.passed() && gate.figures.iter().any(|figure| figure.name == "crisis_recall"));
    assert!(gate.failed().any(|bound| bound.name == "validation_loss"));
    let status = Action::TrainStatus { job: None, follow: false, progress: ProgressSink::default() };
    assert!(matches!(admin(&fixture.app, status).await, AdminReply::Train(_)));
}
