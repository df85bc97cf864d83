//! The stage of the tests that need a whole appliance: real programs in a scratch folder with the tiny random model. It
//! plays no part itself.

use empathd_proto::admin::{EngineState, StatusReport};
use empathd_tests::corpus;
use empathd_tests::harness::appliance::{self, Appliance, Launch, Verdict};
use empathd_tests::harness::build;
use empathd_tests::harness::ehr::Ehr;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// Longest wait for something that takes milliseconds.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Training in seconds, with a checkpoint at each step; the gate only asks that nothing became worse by much, because a
/// random model of two layers learns little.
const CONFIG: &str = "[training]\nseq_len = 512\ntokens_per_step = 256\ncheckpoint_every = 1\nvalidate_every = 4\n\
                      learning_rate = 0.01\nvalidation_examples_max = 12\n\
                      [gate]\nvalidation_ratio_max = 1.0\ndomain_ratio_max = 1.5\ncrisis_ratio_max = 1.5\n\
                      general_rise_max = 10.0\ncrisis_recall_min = 0.0\ncrisis_recall_fall_max = 1.0\nsafety_flips_max = 1.0\nbias_rise_max = 10.0\n\
                      canary_exposure_max = 6.0\nextraction_max = 1.0\nactive_ratio_max = 2.0\nactive_recall_fall_max = 1.0\n\
                      improvement_ratio_max = 1.0\n";

/// A scratch folder and how an appliance is started in it.
pub(crate) struct Stage {
    pub(crate) dir: TempDir,
    pub(crate) launch: Launch,
}

impl Stage {
    /// A fresh one; builds the programs when nobody did before.
    pub(crate) fn new() -> Self {
        let programs = build::programs(&mut |_| ()).expect("the programs build");
        let dir = tempfile::tempdir().expect("scratch");
        let mut launch = Launch::in_folder(programs, dir.path());
        let model = dir.path().join("tiny.gguf");
        empathd_model::tiny::write_gguf(&model, 1).expect("the tiny model is written");
        launch.model = Some(model);
        fs::write(dir.path().join("config.toml"), CONFIG).expect("written");
        launch.arguments = vec!["--config".into(), dir.path().join("config.toml").into()];
        fs::write(dir.path().join("passphrase"), "correct horse battery staple\n").expect("written");
        Self { dir, launch }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path as a word of a command line.
    pub(crate) fn word(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// A started, initialised appliance whose engine is ready.
    pub(crate) fn open(&self) -> Appliance {
        let appliance = self.launch.start().expect("it starts");
        self.store(&appliance, "init");
        engine_ready(&appliance);
        appliance
    }

    /// The appliance of an earlier start, unsealed again.
    pub(crate) fn reopen(&self) -> Appliance {
        let appliance = self.launch.start().expect("it starts again");
        self.store(&appliance, "unseal");
        engine_ready(&appliance);
        appliance
    }

    fn store(&self, appliance: &Appliance, verb: &str) {
        appliance.ctl(&[verb, "--passphrase-file", &self.word("passphrase")]).expect(verb);
    }

    /// The record system with a fresh certificate of this name.
    pub(crate) fn ehr(&self, appliance: &Appliance, name: &str, role: &str) -> Ehr {
        let out = self.word("certs");
        appliance.ctl(&["cert", "enroll", name, "--role", role, "--out", &out]).expect("enrolled");
        Ehr::new(&appliance.ready.api, &self.path("certs"), name).expect("a client")
    }

    /// Takes in the dialogues of the corpus.
    pub(crate) fn ingest_dialogues(&self, appliance: &Appliance) {
        let truth = corpus::write(&self.path("corpus"), 1).expect("written");
        for name in ["conversations.jsonl", "crisis_chats.jsonl", "screening.jsonl"] {
            let file = truth.files.iter().find(|file| file.ends_with(name)).expect("in the corpus");
            appliance.ctl(&["ingest", file.to_str().expect("UTF-8")]).expect("ingested");
        }
    }

    /// `empathd verify` of the stopped state.
    pub(crate) fn verify(&self, state: &Path) -> Verdict {
        appliance::verify(&self.launch.programs, state, &self.path("passphrase")).expect("it runs")
    }
}

/// How the appliance is.
pub(crate) fn status(appliance: &Appliance) -> StatusReport {
    appliance.ask(&["status"]).expect("status")
}

/// Waits until the engine has its base model.
pub(crate) fn engine_ready(appliance: &Appliance) {
    let ready = |appliance: &Appliance| (status(appliance).engine == EngineState::Ready).then_some(());
    appliance.wait_for("the engine being ready", SOON, ready).expect("ready");
}

/// A chat of one question; temperature 1 keeps the random model from ending at once.
pub(crate) fn chat(ehr: &Ehr, question: &str, tokens: u32) -> Value {
    let models = ehr.get("/v1/models").expect("models");
    json!({
        "model": models.body["data"][0]["id"],
        "messages": [{ "role": "user", "content": question }],
        "temperature": 1.0,
        "seed": 7,
        "max_completion_tokens": tokens,
    })
}

/// The answer's text of a plain reply.
pub(crate) fn text_of(body: &Value) -> &str {
    body["choices"][0]["message"]["content"].as_str().expect("a text")
}
