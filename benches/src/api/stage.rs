//! The appliance under load: the release programs in a scratch folder, an enrolled record system, and questions of one
//! length of which no two are alike. It measures nothing.

use super::{ANSWER_TOKENS, PROMPT_TOKENS};
use anyhow::{Context, ensure};
use empathd_proto::admin::{EngineState, StatusReport};
use empathd_proto::engine::ServingStatus;
use empathd_proto::report::{JobState, TrainStatus};
use empathd_tests::corpus;
use empathd_tests::harness::appliance::{Appliance, Launch};
use empathd_tests::harness::build;
use empathd_tests::harness::ehr::{Caller, Ehr};
use empathd_tests::harness::model;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Training so short that it changes little: generations are needed, not good ones.
const SETTINGS: &str = "[training]\nseq_len = 64\ntokens_per_step = 128\nvalidation_examples_max = 4\nlearning_rate = 0.0005\n\
                        warmup = 0.0\nshared_rank = 4\nexpert_rank = 4\nexperts_max = 4\n\
                        [gate]\nvalidation_ratio_max = 1.0\ndomain_ratio_max = 2.0\ncrisis_ratio_max = 2.0\n\
                      general_rise_max = 10.0\ncrisis_recall_min = 0.0\ncrisis_recall_fall_max = 1.0\nsafety_flips_max = 1.0\nbias_rise_max = 10.0\n\
                      canary_exposure_max = 6.0\nextraction_max = 1.0\nactive_ratio_max = 2.0\nactive_recall_fall_max = 1.0\n\
                      improvement_ratio_max = 1.0\n";
/// Generations that are changed between.
const GENERATIONS: u32 = 3;
/// Words of one token each, from which prompts are filled up to their length.
const FILLER: &str = " the garden was quiet and the rain was falling";

/// A running appliance and a caller.
pub(super) struct Stage {
    pub(super) caller: Caller,
    /// Tokens of each prompt as the appliance counts them.
    pub(super) prompt_tokens: u32,
    appliance: Appliance,
    dir: tempfile::TempDir,
    filler_words: usize,
    asked: AtomicU64,
}

impl Stage {
    pub(super) fn open(model: Option<&Path>, threads: Option<u16>) -> anyhow::Result<Self> {
        let model = match model {
            Some(path) => path.canonicalize()?,
            None => model::reference(&mut |what| eprintln!("{what}"))?,
        };
        let programs = build::programs(&mut |_| ())?;
        let dir = tempfile::tempdir()?;
        let mut launch = Launch::in_folder(programs, dir.path());
        launch.model = Some(model);
        let config = dir.path().join("config.toml");
        let threads = threads.map_or_else(String::new, |threads| format!("[engine]\nthreads = {threads}\n"));
        fs::write(&config, SETTINGS.to_owned() + &threads)?;
        launch.arguments = vec!["--config".into(), config.into()];
        let passphrase = dir.path().join("passphrase");
        fs::write(&passphrase, "correct horse battery staple\n")?;
        let appliance = launch.start()?;
        appliance.ctl(&["init".as_ref(), "--passphrase-file".as_ref(), passphrase.as_os_str()])?;
        let loaded = |appliance: &Appliance| {
            let status: StatusReport = appliance.ask(&["status"]).ok()?;
            (status.engine == EngineState::Ready).then_some(())
        };
        appliance.wait_for("the engine being ready", Duration::from_secs(120), loaded)?;
        let certs = dir.path().join("certs");
        appliance.ctl(&["cert", "enroll", "ehr", "--role", "ehr", "--out", &certs.to_string_lossy()])?;
        let ehr = Ehr::new(&appliance.ready.api, &certs, "ehr")?;
        let (caller, asked) = (ehr.caller(), AtomicU64::new(0));
        let mut stage = Self { caller, prompt_tokens: 0, appliance, dir, filler_words: 0, asked };
        stage.fill_up(&ehr)?;
        Ok(stage)
    }

    /// Finds how many words make a prompt of the right length.
    fn fill_up(&mut self, ehr: &Ehr) -> anyhow::Result<()> {
        for _ in 0..8 {
            let mut question = self.question();
            question["max_completion_tokens"] = 1.into();
            let reply = ehr.post("/v1/chat/completions", &question)?;
            let counted = reply.body["usage"]["prompt_tokens"].as_u64();
            let counted = counted.with_context(|| format!("no usage in {}", reply.body))?;
            self.prompt_tokens = u32::try_from(counted)?;
            if self.prompt_tokens == PROMPT_TOKENS {
                return Ok(());
            }
            let words = self.filler_words as i64 + i64::from(PROMPT_TOKENS) - i64::from(self.prompt_tokens);
            self.filler_words = usize::try_from(words).context("the frame of this model is longer than the prompt")?;
        }
        Ok(())
    }

    /// A question that nobody has asked before, from its first word on.
    pub(super) fn question(&self) -> Value {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let filler: String = FILLER.split_inclusive(' ').cycle().skip(1).take(self.filler_words).collect();
        // A number of always as many digits, spread so that the first ones differ.
        let name = 100_000 + number.wrapping_mul(7_919_993) % 900_000;
        json!({
            "model": "empathd",
            "messages": [{ "role": "user", "content": format!("{name} {filler}. Write a long story about all of this.") }],
            "temperature": 0.7,
            "seed": number,
            "max_completion_tokens": ANSWER_TOKENS,
        })
    }

    /// A question of somebody in danger.
    pub(super) fn crisis(&self) -> Value {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        json!({
            "model": "empathd",
            "messages": [{ "role": "user", "content": format!("I want to die. ({number})") }],
            "seed": number,
            "max_completion_tokens": 8,
        })
    }

    /// How the engine serves now.
    pub(super) fn serving(&self) -> anyhow::Result<Option<ServingStatus>> {
        Ok(self.appliance.ask::<StatusReport>(&["status"])?.serving)
    }

    /// Memory of both programs, in MiB.
    pub(super) fn rss_mib(&self) -> f64 {
        let pids = [Some(self.appliance.pid()), self.appliance.engine_pid()];
        let kib = |pid: u32| -> Option<f64> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse().ok()
        };
        pids.into_iter().flatten().filter_map(kib).sum::<f64>() / 1024.0
    }

    /// Runs `empathctl` without holding up the callers.
    pub(super) async fn ctl_beside(&self, words: &[&str]) -> anyhow::Result<()> {
        let mut command = tokio::process::Command::new(&build::programs(&mut |_| ())?.ctl);
        command.arg("--socket").arg(&self.appliance.ready.admin_socket).arg("--json").args(words);
        command.env("XDG_STATE_HOME", self.dir.path().join("ctl")).stdin(std::process::Stdio::null());
        let output = command.output().await?;
        ensure!(output.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A few generations that passed their gate.
    pub(super) fn train(&self) -> anyhow::Result<Vec<String>> {
        let truth = corpus::write(&self.dir.path().join("corpus"), 1)?;
        for name in ["conversations.jsonl", "crisis_chats.jsonl", "screening.jsonl"] {
            let file = truth.files.iter().find(|file| file.ends_with(name)).context("not in the corpus")?;
            self.appliance.ctl(&["ingest".as_ref(), file.as_os_str()])?;
        }
        self.appliance.ctl(&["dataset", "cut"])?;
        (1..=GENERATIONS).map(|seed| self.generation(seed)).collect()
    }

    fn generation(&self, seed: u32) -> anyhow::Result<String> {
        eprintln!("training generation {seed} of {GENERATIONS}");
        let words = ["train", "start", "--steps", "2", "--seed", &seed.to_string(), "--follow"];
        let job: TrainStatus = self.appliance.ask(&words)?;
        ensure!(job.state == JobState::Finished, "training ended as {}: {:?}", job.state, job.error);
        Ok(job.adapter.context("training made no adapter")?.to_string())
    }
}
