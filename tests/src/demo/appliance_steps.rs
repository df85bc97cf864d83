//! Steps with a running appliance, each one a conversation with `empathctl` or the API. They know no file of the state.

use super::show::{Show, Step};
use super::source_steps::Sources;
use super::{Options, Places};
use crate::harness::appliance::{Appliance, Launch};
use crate::harness::ehr::{self, Ehr, Streamed};
use anyhow::{Context, bail, ensure};
use empathd_proto::admin::EngineState;
use empathd_proto::admin::{AuditVerdict, CertSummary, StatusReport};
use empathd_proto::report::{AdapterSummary, BoundRule, DatasetSummary, IngestReport, JobState, TrainStatus};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// Longest wait for the engine to load the base model.
const ENGINE_WITHIN: Duration = Duration::from_secs(120);
/// How often training is asked how far it is.
const TRAIN_POLL: Duration = Duration::from_millis(700);
/// Most tokens of an answer.
const ANSWER_TOKENS: u32 = 64;
/// The question that is asked before and after training.
const QUESTION: &str = "I lie awake until four every night, and in the morning I am sure that I will fail at work. \
                        What can I do?";

pub(super) fn start(launch: &Launch, places: &Places, show: &Show) -> anyhow::Result<Appliance> {
    let step = show.step("Start the appliance");
    let appliance = launch.start()?;
    appliance.ctl(&["init", "--passphrase-file", text(&places.passphrase)?])?;
    step.note("the engine loads the base model");
    appliance.wait_for("the engine being ready", ENGINE_WITHIN, |appliance| {
        let status: StatusReport = appliance.ask(&["status"]).ok()?;
        (status.engine == EngineState::Ready).then_some(())
    })?;
    step.done(&format!("initialised and unsealed, API on {}", appliance.ready.api));
    Ok(appliance)
}

pub(super) fn enroll(appliance: &Appliance, places: &Places, show: &Show) -> anyhow::Result<Ehr> {
    let step = show.step("Enrol the EHR");
    let cert: CertSummary =
        appliance.ask(&["cert", "enroll", "ehr", "--role", "ehr", "--out", text(&places.certs)?])?;
    let ehr = Ehr::new(&appliance.ready.api, &places.certs, "ehr")?;
    let ready = ehr.get("/readyz")?;
    ensure!(ready.status == 200, "the appliance is not ready: {}", ready.body);
    step.done(&format!("{} may ask", cert.uri));
    Ok(ehr)
}

pub(super) fn ingest(appliance: &Appliance, sources: &Sources, show: &Show) -> anyhow::Result<IngestReport> {
    let step = show.step("Take in the sources");
    if let Some(roster) = &sources.roster {
        appliance.ctl(&["roster", "set", text(roster)?])?;
    }
    let mut sum = IngestReport::default();
    for (done, file) in sources.files.iter().enumerate() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        step.progress(done as u64, sources.files.len() as u64, &name);
        sum.add(&appliance.ask(&["ingest", text(file)?])?);
    }
    step.done(&format!(
        "{} read, {} accepted, {} negatives, {} refused, {} identifiers removed",
        sum.read, sum.accepted, sum.negatives, sum.rejected, sum.phi_spans
    ));
    Ok(sum)
}

pub(super) fn cut(appliance: &Appliance, options: &Options, show: &Show) -> anyhow::Result<DatasetSummary> {
    let step = show.step("Cut a dataset by client");
    let cut: DatasetSummary = appliance.ask(&["dataset", "cut", "--seed", &options.seed.to_string()])?;
    step.done(&format!("{} to learn from, {} held out", cut.train, cut.validation));
    Ok(cut)
}

pub(super) fn answer(appliance: &Appliance, ehr: &Ehr, name: &'static str, show: &Show) -> anyhow::Result<Streamed> {
    let step = show.step(name);
    let models = ehr.get("/v1/models")?;
    let model = models.body["data"][0]["id"].as_str().context("GET /v1/models names no model")?.to_owned();
    let chat = json!({
        "model": model,
        "messages": [{ "role": "user", "content": QUESTION }],
        "temperature": 0.0,
        "max_completion_tokens": ANSWER_TOKENS,
    });
    let mut so_far = String::new();
    let answer = ehr
        .stream(&chat, &mut |piece| {
            so_far.push_str(piece);
            step.note(so_far.replace('\n', " ").trim());
        })
        .with_context(|| format!("the log ends with:\n{}", appliance.log_end()))?;
    let tokens = answer.usage.map_or(0, |usage| usage.completion_tokens);
    step.done(&format!("first words {:.0} ms, {tokens} tokens in {:.0} ms", answer.ttft_ms, answer.total_ms));
    Ok(answer)
}

#[derive(Deserialize)]
struct Adapters {
    adapters: Vec<AdapterSummary>,
}

pub(super) fn train(appliance: &Appliance, options: &Options, show: &Show) -> anyhow::Result<AdapterSummary> {
    let step = show.step("Train the mixture of experts");
    let (steps, seed) = (options.steps.to_string(), options.seed.to_string());
    let mut status: TrainStatus =
        appliance.ask(&["train", "start", "--promote", "--steps", &steps, "--seed", &seed])?;
    while status.state == JobState::Running {
        std::thread::sleep(TRAIN_POLL);
        status = appliance.ask(&["train", "status", &status.job.to_string()])?;
        follow(&step, &status);
    }
    ensure!(status.state == JobState::Finished, "training is {}: {}", status.state, status.error.unwrap_or_default());
    let id = status.adapter.context("training finished without an adapter")?;
    let list: Adapters = appliance.ask(&["adapter", "list"])?;
    let adapter = list.adapters.into_iter().find(|adapter| adapter.id == id).context("the adapter is not listed")?;
    let measured = &adapter.train;
    step.done(&format!(
        "{} steps at {:.0} tok/s, validation loss {:.3} to {:.3}",
        measured.steps, measured.tok_s, measured.val_loss_before, measured.val_loss_after
    ));
    gate(&adapter, show)?;
    Ok(adapter)
}

fn follow(step: &Step<'_>, status: &TrainStatus) {
    let Some(progress) = &status.progress else { return };
    let mut words = progress.phase.to_string();
    if progress.step > 0 {
        words += &format!(", loss {:.3}, {:.0} tok/s, {:.0} s left", progress.loss, progress.tok_s, progress.left_s);
    }
    step.progress(progress.step.into(), progress.steps.max(1).into(), &words);
}

fn gate(adapter: &AdapterSummary, show: &Show) -> anyhow::Result<()> {
    let step = show.step("Its gate");
    let Some(gate) = &adapter.gate else { bail!("the adapter did not go through its gate") };
    let held = gate.bounds.iter().filter(|bound| bound.held).count();
    step.done(&format!("{held} of {} bounds held, the adapter is {}", gate.bounds.len(), adapter.state));
    for bound in &gate.bounds {
        let word = if bound.held { "held" } else { "FAILED" };
        let side = if bound.rule == BoundRule::AtMost { "at most" } else { "at least" };
        let (name, small) = (&bound.name, if bound.is_small() { ", small sample" } else { "" });
        show.line(&format!("      {name:<36} {:>9.4} {side:>8} {:>8.4}  {word}{small}", bound.measured, bound.limit));
    }
    Ok(())
}

/// Whether callers without a certificate, and without TLS, got not one byte of the application.
pub(super) fn strangers(appliance: &Appliance, show: &Show) -> anyhow::Result<bool> {
    let step = show.step("Turn strangers away");
    let (api, ca) = (&appliance.ready.api, &appliance.ready.ca);
    let (without_certificate, without_tls) = (ehr::without_certificate(api, ca)?, ehr::without_tls(api)?);
    let bytes = [without_certificate.application_bytes, without_tls.application_bytes];
    step.done(&format!("no certificate: {} bytes; no TLS: {} bytes", bytes[0], bytes[1]));
    Ok(bytes == [0, 0])
}

pub(super) fn records(appliance: &Appliance) -> anyhow::Result<u64> {
    let status: StatusReport = appliance.ask(&["status"])?;
    status.records.context("the status of an unsealed appliance names no number of records")
}

pub(super) fn audit(appliance: &Appliance, show: &Show) -> anyhow::Result<AuditVerdict> {
    let step = show.step("Verify the audit trail");
    let verdict: AuditVerdict = appliance.ask(&["audit", "verify"])?;
    let word = if verdict.verified { "all of them fit" } else { "they do NOT fit" };
    step.done(&format!("{} entries, {word}", verdict.entries));
    Ok(verdict)
}

pub(super) fn stop(appliance: Appliance, show: &Show) -> anyhow::Result<()> {
    let step = show.step("Stop the appliance");
    appliance.stop()?;
    step.done("in order");
    Ok(())
}

/// A path as a word of a command line.
fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
