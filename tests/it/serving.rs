//! Many callers at once against a whole appliance: those who leave, more than can be answered, a generation that changes
//! under them, one who reads a byte a second, a stop. How fast it is, is not judged here.

use crate::stage::{SOON, Stage, chat, status};
use empathd_proto::engine::ServingStatus;
use empathd_proto::ids::AdapterId;
use empathd_proto::report::{AdapterSummary, JobState, TrainStatus};
use empathd_tests::harness::appliance::Appliance;
use empathd_tests::harness::ehr::{Ehr, Reply};
use serde_json::Value;
use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A question that nobody has asked before, so that no cache answers it.
fn question(client: &Ehr, number: u64, tokens: u32) -> Value {
    let mut question = chat(client, &format!("Question {number}: what helps with sleep?"), tokens);
    question["seed"] = number.into();
    question
}

fn serving(appliance: &Appliance) -> ServingStatus {
    status(appliance).serving.unwrap_or_default()
}

/// The value of a metric without labels.
fn metric(client: &Ehr, name: &str) -> Option<f64> {
    let text = client.get("/metrics").expect("answered").body;
    let line = text.as_str()?.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// Further settings behind those of the stage.
fn configure(stage: &Stage, settings: &str) {
    let file = stage.path("config.toml");
    let before = fs::read_to_string(&file).expect("read");
    fs::write(file, before + settings).expect("written");
}

#[test]
fn a_hundred_callers_who_leave_and_one_who_crawls_leave_nothing_behind() {
    let stage = Stage::new();
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let questions: Vec<Value> = (0..100).map(|number| question(&client, number, 300)).collect();
    let crawling = question(&client, 1_000, 300);
    thread::scope(|scope| {
        let crawler = client.caller();
        let slow = tokio::runtime::Runtime::new().expect("a runtime");
        slow.spawn(async move { crawler.read_slowly(&crawling, Duration::from_secs(1)).await });
        for part in questions.chunks(25) {
            let client = client.again().expect("a client");
            scope.spawn(move || {
                for (at, question) in part.iter().enumerate() {
                    // Some leave at once, some after the head, some in the middle of their answer.
                    client.leave_after(question, [0, 1, 2_000][at % 3]).expect("asked");
                }
            });
        }
        let answered = client.post("/v1/chat/completions", &question(&client, 2_000, 8)).expect("answered");
        assert_eq!(answered.status, 200, "others are answered meanwhile: {}", answered.body);
        slow.shutdown_background();
    });
    let idle = |appliance: &Appliance| {
        let now = serving(appliance);
        let running = metric(&client, "empathd_requests_running");
        (now.running == 0 && now.waiting == [0; 3] && running == Some(0.0)).then_some(now)
    };
    let after = appliance.wait_for("the end of all answers", SOON, idle).expect("no zombies");
    assert!(after.cancel_steps_max <= 1, "cancelled after {} steps", after.cancel_steps_max);
    assert_eq!(client.get("/readyz").expect("answered").status, 200);
    let answered = client.post("/v1/chat/completions", &question(&client, 3_000, 8)).expect("answered");
    assert_eq!(answered.status, 200, "{}", answered.body);
}

#[test]
fn too_many_are_told_when_to_come_back() {
    let stage = Stage::new();
    configure(&stage, "[serving]\nanswers_max = 2\n");
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let replies: Vec<Reply> = thread::scope(|scope| {
        let callers: Vec<_> = (0..12)
            .map(|number| {
                let (client, question) = (client.again().expect("a client"), question(&client, number, 300));
                scope.spawn(move || {
                    let ask = || client.post("/v1/chat/completions", &question).expect("answered");
                    [ask(), ask()]
                })
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().expect("no panic")).collect()
    });
    let shed: Vec<_> = replies.iter().filter(|reply| reply.status != 200).collect();
    assert!(!shed.is_empty() && shed.len() < replies.len(), "{} of {} were shed", shed.len(), replies.len());
    for reply in shed {
        assert_eq!((reply.status, reply.body["code"].as_str()), (429, Some("busy")), "{}", reply.body);
        let after: u32 = reply.header("retry-after").and_then(|value| value.parse().ok()).expect("when to come back");
        assert!((1..=60).contains(&after), "{after}");
    }
}

#[test]
fn a_change_of_generation_under_load_fails_no_answer() {
    let stage = Stage::new();
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    stage.ingest_dialogues(&appliance);
    appliance.ctl(&["dataset", "cut"]).expect("a cut");
    let generations: Vec<String> = ["1", "2"].map(|seed| trained(&appliance, seed).to_string()).into();
    let over = AtomicBool::new(false);
    let told: Vec<Option<AdapterId>> = thread::scope(|scope| {
        let callers: Vec<_> = (0..3)
            .map(|number| {
                let (client, over) = (client.again().expect("a client"), &over);
                scope.spawn(move || {
                    let ask = |at: u64| {
                        let question = question(&client, 10_000 * number + at, 24);
                        let answer = client.stream(&question, &mut |_| ()).expect("no answer fails");
                        answer.notes.expect("notes").adapter
                    };
                    (0..).take_while(|_| !over.load(Ordering::Relaxed)).map(ask).collect::<Vec<_>>()
                })
            })
            .collect();
        for words in [&["adapter", "promote", &generations[0]][..], &["adapter", "promote", &generations[1]]]
            .into_iter()
            .chain([&["adapter", "rollback"][..]; 2])
        {
            appliance.ctl(words).expect("changed");
            thread::sleep(Duration::from_millis(300));
        }
        over.store(true, Ordering::Relaxed);
        callers.into_iter().flat_map(|caller| caller.join().expect("no answer failed")).collect()
    });
    let seen: HashSet<String> = told.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(seen, generations.into_iter().collect(), "each generation answered, and no other");
}

/// A generation that has passed its gate and does not answer yet.
fn trained(appliance: &Appliance, seed: &str) -> AdapterId {
    let words = ["train", "start", "--steps", "4", "--seed", seed, "--follow"];
    let job: TrainStatus = appliance.ask(&words).expect("trained");
    assert_eq!(job.state, JobState::Finished, "{:?}", job.error);
    let list = appliance.ctl(&["adapter", "list"]).expect("listed");
    let adapters: Vec<AdapterSummary> = serde_json::from_value(list["adapters"].clone()).expect("adapters");
    let made = adapters.iter().find(|adapter| Some(adapter.id) == job.adapter).expect("on the list");
    assert!(made.gate.as_ref().expect("a gate").passed(), "{:?}", made.gate);
    made.id
}

#[test]
fn a_stop_lets_an_answer_finish_and_tells_others_to_come_back() {
    let stage = Stage::new();
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let (watcher, late) = (client.again().expect("a client"), client.again().expect("a client"));
    let (long, refused) = (question(&client, 1, 400), question(&client, 2, 8));
    let (begun, first_words) = mpsc::channel();
    let (said, seen) = mpsc::channel::<()>();
    let stopping = &appliance;
    let (answer, told) = thread::scope(|scope| {
        let watching = scope.spawn(move || {
            first_words.recv().expect("the answer begins");
            stopping.begin_stop().expect("told to stop");
            // Until it says so, or has finished and is gone.
            let asked = || watcher.get("/readyz").ok();
            let ready = std::iter::from_fn(asked).find(|reply| reply.status == 503);
            let refused = ready.is_some().then(|| late.post("/v1/chat/completions", &refused).ok()).flatten();
            drop(said);
            [ready, refused]
        });
        let answer = client.stream(&long, &mut |_| {
            let _ = begun.send(());
            // Its caller takes in no more until the others have been told.
            let _ = seen.recv_timeout(SOON);
        });
        (answer.expect("the answer comes to its end"), watching.join().expect("no panic"))
    });
    assert!(answer.usage.is_some_and(|usage| usage.completion_tokens > 0));
    for reply in told.iter().flatten() {
        assert_eq!(reply.status, 503, "{}", reply.body);
        assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);
    }
    appliance.stop().expect("an orderly end");
    assert!(stage.verify(&stage.launch.state).ok, "the trail is whole");
}
