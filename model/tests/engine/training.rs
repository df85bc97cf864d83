//! Training beside answers.

use super::support::*;
use empathd_proto::engine::{EngineFailure, FromEngine, FromEngineBody, ToEngineBody};
use empathd_proto::generate::GenerateSpec;
use std::time::{Duration, Instant};

#[test]
fn training_survives_a_lost_engine_and_its_adapter_answers() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    daemon.begin_training(training(12), None);
    let (whole, report) = daemon.follow(|_| false);
    let report = report.expect("trained");
    assert_eq!(report.steps, 12);
    assert!(report.val_loss_after < report.val_loss_before, "{report:?}");
    assert!(!whole.adapter.is_empty() && !whole.checkpoints.is_empty());

    daemon.begin_training(training(12), None);
    let (part, _) = daemon.follow(|received| received.checkpoints.len() == 2);
    drop(daemon);
    drop(engine);
    let (step, checkpoint) = part.checkpoints.last().expect("two");

    let engine = Engine::start();
    let mut daemon = engine.loaded();
    daemon.begin_training(training(12), Some(checkpoint));
    let (resumed, report) = daemon.follow(|_| false);
    assert_eq!(report.expect("trained").resumed_from, Some(*step));
    assert!(resumed.steps.iter().all(|found| found >= step));
    assert!(resumed.adapter == whole.adapter, "the resumed adapter differs from the uninterrupted one");

    assert!(matches!(daemon.put_adapter(&resumed.adapter), FromEngineBody::AdapterReady));
    let before = daemon.evaluate(None);
    let after = daemon.evaluate(Some(ADAPTER));
    assert!(after.loss < before.loss && after.target_tokens == before.target_tokens, "{before:?} {after:?}");
    let (tokens, finished) = daemon.generate(GenerateSpec { adapter: Some(ADAPTER), ..spec(20) });
    assert_ne!(text(&tokens), text(&daemon.generate(spec(20)).0));
    assert_eq!(finished.expert_share.len(), 3);
    assert!((finished.expert_share.iter().sum::<f32>() - 1.0).abs() < 1e-3);
    let tag = daemon.open(ToEngineBody::DropAdapter { adapter: ADAPTER });
    assert!(matches!(daemon.last(tag), FromEngineBody::AdapterDropped));
    assert!(daemon.status().adapters.is_empty());
}

#[test]
fn answers_are_the_same_while_training_goes_on() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let (alone, _) = daemon.generate(spec(30));
    let job = daemon.begin_training(training(5000), None);
    daemon.follow(|received| !received.steps.is_empty());
    let answer = daemon.open(ToEngineBody::Generate(spec(30)));
    let mut beside = Vec::new();
    let begun = Instant::now();
    loop {
        match daemon.read() {
            FromEngine { tag, body: FromEngineBody::Token { index, text, .. } } if tag == answer => {
                beside.push((index, text));
            }
            FromEngine { tag, body: FromEngineBody::Finished(_) } if tag == answer => break,
            message => assert!(message.tag == job && !message.body.is_last(), "{message:?}"),
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(beside, alone);
    assert!(daemon.training_goes_on(job));
}

#[test]
fn a_training_job_stops_on_command_and_leaves_an_adapter() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    let tag = daemon.begin_training(training(5000), None);
    daemon.follow(|received| received.steps.iter().any(|step| *step >= 3));
    let second = daemon.open(ToEngineBody::Train(training(5)));
    assert_ne!(second, tag);
    daemon.send(tag, ToEngineBody::Cancel);
    let mut busy = false;
    let report = loop {
        match daemon.read().body {
            FromEngineBody::Failed(failure) => {
                assert!(matches!(failure, EngineFailure::Busy { .. }));
                busy = true;
            }
            FromEngineBody::Trained(report) => break report,
            FromEngineBody::Finished(finished) => panic!("{finished:?}"),
            _ => {}
        }
    };
    assert!(busy && report.stopped_early && report.steps < 5000, "{report:?}");
}
