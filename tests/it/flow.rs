//! The whole main job with the real programs and a tiny random model: what the demo shows, in seconds. It does not judge
//! how well anything was learnt.

use crate::stage::{Stage, chat, status, text_of};
use empathd_proto::admin::AuditVerdict;
use empathd_proto::report::{AdapterState, AdapterSummary, DatasetSummary, IngestReport, JobState, TrainStatus};
use empathd_tests::corpus::{self, CorpusTruth};
use empathd_tests::harness::appliance::Appliance;
use empathd_tests::harness::{ehr, files};
use std::path::PathBuf;

#[test]
fn the_main_job_from_sources_to_an_answer_that_nobody_else_can_read() {
    let stage = Stage::new();
    let appliance = stage.open();
    let ehr_client = stage.ehr(&appliance, "ehr", "ehr");
    let truth = corpus::write(&stage.path("corpus"), 3).expect("written");

    let report = ingest(&appliance, &truth);
    assert_eq!(status(&appliance).records, Some(report.accepted + report.negatives));
    let again: IngestReport = appliance.ask(&["ingest", truth.files[1].to_str().expect("UTF-8")]).expect("ingested");
    assert_eq!((again.accepted, again.duplicates), (0, again.read), "the same file twice adds nothing");

    let adapter = train(&appliance);
    assert_eq!(status(&appliance).adapter, Some(adapter.id));

    let question = chat(&ehr_client, "I cannot sleep.", 40);
    let streamed = ehr_client.stream(&question, &mut |_| ()).expect("a stream");
    let plain = ehr_client.post("/v1/chat/completions", &question).expect("an answer");
    assert_eq!(plain.status, 200, "{}", plain.body);
    assert_eq!(text_of(&plain.body), streamed.text, "the same request has the same answer in both forms");
    assert_eq!(streamed.notes.expect("notes").adapter, Some(adapter.id));
    assert!(streamed.usage.expect("usage").completion_tokens > 0);

    let stranger = ehr::without_certificate(&appliance.ready.api, &appliance.ready.ca).expect("turned away");
    assert_eq!(stranger.application_bytes, 0);
    assert_eq!(ehr::without_tls(&appliance.ready.api).expect("turned away").application_bytes, 0);

    let verdict: AuditVerdict = appliance.ask(&["audit", "verify"]).expect("verified");
    assert!(verdict.verified && verdict.entries > 20, "{} entries, {:?}", verdict.entries, verdict.findings);
    appliance.stop().expect("stopped");
    assert_sealed(&stage, &truth);

    let again = stage.reopen();
    assert_eq!(status(&again).adapter, Some(adapter.id), "the active generation survives a restart");
    let after = ehr::Ehr::new(&again.ready.api, &stage.path("certs"), "ehr").expect("a client");
    assert_eq!(after.stream(&question, &mut |_| ()).expect("a stream").text, streamed.text);
}

fn ingest(appliance: &Appliance, truth: &CorpusTruth) -> IngestReport {
    appliance.ctl(&["roster", "set", truth.roster.to_str().expect("UTF-8")]).expect("a roster");
    let mut words = vec!["ingest"];
    words.extend(truth.files.iter().map(|file| file.to_str().expect("UTF-8")));
    let report: IngestReport = appliance.ask(&words).expect("ingested");
    assert_eq!(report.files as usize, truth.files.len());
    assert_eq!(report.read, truth.records);
    let bad: u64 = truth.bad.values().sum();
    let turned_away = report.rejected + report.negatives + report.duplicates;
    assert_eq!(turned_away, bad, "{:?}", report.reasons);
    assert_eq!(report.accepted, truth.records - bad);
    assert_eq!(report.negatives, truth.bad["unsafe_label"] + truth.bad["low_quality_label"]);
    assert_eq!(report.targets_unsafe, 0);
    assert!(report.phi_spans >= truth.canaries.len() as u64 * 9 / 10, "{} spans", report.phi_spans);
    assert_eq!(report.by_domain.len(), 6, "{:?}", report.by_domain);
    report
}

fn train(appliance: &Appliance) -> AdapterSummary {
    let cut: DatasetSummary = appliance.ask(&["dataset", "cut"]).expect("a cut");
    assert!(cut.train > cut.validation && cut.validation > 0, "{cut:?}");
    let job: TrainStatus =
        appliance.ask(&["train", "start", "--steps", "12", "--promote", "--follow"]).expect("trained");
    assert_eq!(job.state, JobState::Finished, "{:?}", job.error);
    let list = appliance.ctl(&["adapter", "list"]).expect("listed");
    let mut adapters: Vec<AdapterSummary> = serde_json::from_value(list["adapters"].clone()).expect("adapters");
    let adapter = adapters.remove(0);
    assert_eq!((Some(adapter.id), adapter.state), (job.adapter, AdapterState::Active), "{:?}", adapter.gate);
    assert!(adapter.gate.as_ref().expect("a gate").passed());
    assert_eq!(adapter.train.steps, 12);
    assert!(adapter.train.val_loss_after < adapter.train.val_loss_before);
    assert!(adapter.train.expert_load.iter().all(|share| *share > 0.0), "{:?}", adapter.train.expert_load);
    adapter
}

/// Nothing of the corpus can be read in the stopped state, and no change of it goes unnoticed.
fn assert_sealed(stage: &Stage, truth: &CorpusTruth) {
    let secrets: Vec<String> = truth.canaries.iter().chain(&truth.sentences).cloned().collect();
    let state = &stage.launch.state;
    let mut open: Vec<PathBuf> = files::regular_files(state).expect("listed");
    open.push(stage.launch.log.clone());
    let found = files::occurrences(&open, &secrets).expect("searched");
    assert!(found.is_empty(), "{found:?}");
    assert!(files::occurrences(&truth.files, &secrets).expect("searched").len() >= truth.canaries.len());

    let intact = stage.verify(state);
    assert!(intact.ok, "{}", intact.document);
    let copy = stage.path("copy");
    for file in files::regular_files(state).expect("listed") {
        files::copy(state, &copy).expect("copied");
        files::flip_bit(&copy.join(file.strip_prefix(state).expect("inside")), 0.6).expect("changed");
        assert!(!stage.verify(&copy).ok, "a changed bit in {} was not noticed", file.display());
    }
}
