//! OpenAI's own Python client against a whole appliance over mutual TLS, as pip gives it and unmodified. What it asks and
//! expects stands in tests/openai/drive.py. Where pip has nowhere to get it from, it is skipped, and says so.

use crate::stage::{SOON, Stage, status};
use empathd_model::embed::tiny;
use empathd_proto::admin::EmbedderState;
use empathd_tests::harness::appliance::Appliance;
use empathd_tests::harness::{build, python};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// What must have passed, in its order.
const CHECKS: [&str; 12] = [
    "models",
    "plain_chat",
    "streamed_chat",
    "choices_and_probabilities",
    "sampling",
    "texts",
    "embeddings",
    "json_answers",
    "tools",
    "refusals",
    "danger",
    "too_many",
];

/// An appliance with two tiny models, room for eight answers, and a context that tools fit into.
fn open(stage: &Stage) -> Appliance {
    for (name, bytes) in tiny::files(1) {
        fs::write(stage.path(name), bytes).expect("written");
    }
    let embedder = stage.word(tiny::WEIGHTS_FILE);
    let settings = format!(
        "[engine]\nembedder = \"{embedder}\"\ncontext = 2048\nrope_scaling = \"linear\"\nrope_factor = 4.0\n\
         [serving]\nanswers_max = 8\n[help]\ncrisis_line = \"ring 0800 111\"\n"
    );
    let file = stage.path("config.toml");
    let before = fs::read_to_string(&file).expect("read");
    fs::write(file, before + &settings).expect("written");
    let appliance = stage.open();
    let embeds = |appliance: &Appliance| (status(appliance).embedder == EmbedderState::Ready).then_some(());
    appliance.wait_for("the model of embeddings being ready", SOON, embeds).expect("ready");
    appliance
}

#[test]
fn the_python_client_of_openai_works_unmodified() {
    let python = match python::environment("openai") {
        Ok(python) => python,
        Err(error) => {
            // Written past the capture of passing tests: nobody should believe that this was checked.
            let _ = writeln!(std::io::stderr(), "SKIPPED: pip could not install the client of OpenAI, {error:#}");
            return;
        }
    };
    let stage = Stage::new();
    let appliance = open(&stage);
    stage.ehr(&appliance, "ehr", "ehr");
    stage.ehr(&appliance, "monitor", "monitor");
    let port = appliance.ready.api.rsplit(':').next().expect("a port");
    let script: &Path = &build::repository().join("tests/openai/drive.py");
    let mut drive = Command::new(python);
    drive.arg("-I").arg(script).arg(format!("https://localhost:{port}/v1")).arg(stage.path("certs"));
    let said = python::run(&mut drive).unwrap_or_else(|error| panic!("{error:#}\n{}", appliance.log_end()));
    let passed: Vec<&str> = said.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(passed, CHECKS, "{said}");
    appliance.stop().expect("stopped");
}
