//! The curves of a training job as TensorBoard reads them: the reader is pip's, and must find what the lines of JSON say.

use crate::stage::Stage;
use empathd_proto::engine::CurvePoint;
use empathd_proto::report::{JobState, TrainStatus};
use empathd_tests::harness::{build, python};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

#[derive(Deserialize)]
struct Line {
    point: CurvePoint,
}

#[test]
#[ignore = "needs pip to install tensorboard"]
fn tensorboard_reads_what_training_wrote() {
    let python = python::environment("tensorboard").expect("pip installs it");
    let stage = Stage::new();
    let appliance = stage.open();
    stage.ingest_dialogues(&appliance);
    appliance.ctl(&["dataset", "cut"]).expect("a cut");
    let job: TrainStatus = appliance.ask(&["train", "start", "--steps", "9"]).expect("begun");
    let done: TrainStatus = appliance.ask(&["train", "status", &job.job.to_string(), "--follow"]).expect("followed");
    assert_eq!(done.state, JobState::Finished, "{:?}", done.error);
    let folder = stage.launch.state.join("training").join(job.job.to_string());
    let script = build::repository().join("tests/tensorboard/read.py");
    let said = python::run(Command::new(python).arg("-I").arg(script).arg(&folder)).expect("it reads");
    let scalars: BTreeMap<String, Vec<(u32, f32)>> = serde_json::from_str(&said).expect("JSON");

    let lines = fs::read_to_string(folder.join("curves.jsonl")).expect("read");
    let points = lines.lines().map(|line| serde_json::from_str::<Line>(line).expect("a point").point);
    let (mut steps, mut validations) = (Vec::new(), Vec::new());
    for point in points {
        match point {
            CurvePoint::Step(step) => steps.push((step.step, step.loss)),
            CurvePoint::Validation(found) => validations.push((found.step, found.macro_loss as f32)),
        }
    }
    assert_eq!(steps.len(), 9);
    assert_eq!((&scalars["loss/train"], &scalars["validation/macro"]), (&steps, &validations));
    let loads = scalars.keys().filter(|tag| tag.starts_with("experts/load_")).count();
    let adapters: Value = appliance.ctl(&["adapter", "list"]).expect("listed");
    let experts = adapters["adapters"][0]["train"]["experts"].as_array().expect("named").len();
    assert!(experts > 0 && loads == experts && scalars.contains_key("experts/entropy"), "{:?}", scalars.keys());
}
