//! Many callers at once against a whole appliance: a full batch, those who leave, one who reads a byte a second, more than
//! can be answered, a generation that changes under them, a stop. How fast it is, is not judged here.

use crate::stage::{SOON, Stage, chat, status, text_of};
use empathd_proto::engine::ServingStatus;
use empathd_proto::ids::AdapterId;
use empathd_proto::report::{AdapterSummary, JobState, TrainStatus};
use empathd_tests::harness::appliance::Appliance;
use empathd_tests::harness::ehr::{Ehr, Reply, Streamed};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Longer than the pulse of the engine that status reports tell of.
const PULSE: Duration = Duration::from_millis(1_500);
/// Most of the small model's context: an answer that is under way for a while.
const LONG: u32 = 400;

/// A question that nobody has asked before, so that no cache answers it.
fn question(client: &Ehr, number: u64, tokens: u32) -> Value {
    let mut question = chat(client, &format!("Question {number}: what helps with sleep?"), tokens);
    question["seed"] = number.into();
    question
}

/// One whose answer has all its tokens: none of those that end it is ever drawn.
fn long(client: &Ehr, number: u64) -> Value {
    let mut question = question(client, number, LONG);
    question["logit_bias"] = json!({ "0": -100, "1": -100, "2": -100 });
    question
}

/// One whose answer no connection can hold that is not read from: four megabytes, where the system takes in less than three.
fn voluminous(client: &Ehr, number: u64) -> Value {
    let mut question = long(client, number);
    (question["logprobs"], question["top_logprobs"], question["n"]) = (true.into(), 20.into(), 8.into());
    question
}

fn ask(client: &Ehr, question: &Value) -> Reply {
    client.post("/v1/chat/completions", question).expect("answered")
}

fn serving(appliance: &Appliance) -> ServingStatus {
    status(appliance).serving.unwrap_or_default()
}

/// Steps of the engine, as soon as it takes no more.
fn settled_steps(appliance: &Appliance) -> u64 {
    let mut before = None;
    let settled = |appliance: &Appliance| {
        let steps = serving(appliance).steps;
        let same = before.replace(steps) == Some(steps);
        thread::sleep(PULSE);
        same.then_some(steps)
    };
    appliance.wait_for("the end of all steps", SOON, settled).expect("it comes to rest")
}

/// The value of a metric, by its name and its labels as they are written.
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

/// An answer that is under way until its caller reads on.
struct Held<'scope> {
    answer: ScopedJoinHandle<'scope, anyhow::Result<Streamed>>,
    /// Dropped when it may read on.
    reads_on: mpsc::Sender<()>,
}

impl<'scope> Held<'scope> {
    /// Asks and waits for the first words.
    fn begin(scope: &'scope Scope<'scope, '_>, client: &Ehr, number: u64) -> Self {
        let (client, question) = (client.again().expect("a client").narrow(), voluminous(client, number));
        let (begun, first_words) = mpsc::channel();
        let (reads_on, waiting) = mpsc::channel::<()>();
        let answer = scope.spawn(move || {
            client.stream(&question, &mut |_| {
                let _ = begun.send(());
                let _ = waiting.recv();
            })
        });
        first_words.recv_timeout(SOON).expect("the answer begins");
        Self { answer, reads_on }
    }

    /// Reads to the end.
    fn finish(self) -> Streamed {
        drop(self.reads_on);
        self.answer.join().expect("no panic").expect("the answer comes to its end")
    }
}

#[test]
fn the_same_request_has_the_same_bytes_alone_and_in_a_full_batch() {
    let stage = Stage::new();
    configure(&stage, "[serving]\nanswer_cache_mib = 0\n");
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let questions: Vec<Value> = (0..16).map(|number| long(&client, number * number * number)).collect();
    let before = settled_steps(&appliance);
    let alone: Vec<Value> = questions.iter().map(|question| ask(&client, question).body).collect();
    let one_by_one = settled_steps(&appliance);
    let line = Barrier::new(questions.len());
    let together: Vec<Value> = thread::scope(|scope| {
        let callers: Vec<_> = questions
            .iter()
            .map(|question| {
                let (client, line) = (client.again().expect("a client"), &line);
                scope.spawn(move || {
                    line.wait();
                    ask(&client, question).body
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().expect("no panic")).collect()
    });
    let all_at_once = settled_steps(&appliance);
    for (question, (alone, together)) in questions.iter().zip(alone.iter().zip(&together)) {
        assert_eq!(text_of(alone), text_of(together), "{question}");
        assert_eq!(alone["usage"]["completion_tokens"], together["usage"]["completion_tokens"]);
    }
    let (one_by_one, all_at_once) = (one_by_one - before, all_at_once - one_by_one);
    assert!(all_at_once * 3 < one_by_one, "{all_at_once} steps for all at once, {one_by_one} one by one: no batch");
}

#[test]
fn a_hundred_callers_who_leave_leave_nothing_behind() {
    let stage = Stage::new();
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let questions: Vec<Value> = (0..100).map(|number| long(&client, number)).collect();
    thread::scope(|scope| {
        for part in questions.chunks(25) {
            let client = client.again().expect("a client");
            scope.spawn(move || {
                for (at, question) in part.iter().enumerate() {
                    // Some leave at once, some after the head, some in the middle of their answer.
                    client.leave_after(question, [0, 1, 2_000][at % 3]).expect("asked");
                }
            });
        }
        let answered = ask(&client, &question(&client, 2_000, 8));
        assert_eq!(answered.status, 200, "others are answered meanwhile: {}", answered.body);
    });
    let idle = |appliance: &Appliance| {
        let now = serving(appliance);
        let running = metric(&client, "empathd_requests_running");
        (now.running == 0 && now.waiting == [0; 3] && running == Some(0.0)).then_some(now)
    };
    let after = appliance.wait_for("the end of all answers", SOON, idle).expect("no zombies");
    assert!(after.cancel_steps_max <= 1, "cancelled after {} steps", after.cancel_steps_max);
    let steps = settled_steps(&appliance);
    thread::sleep(PULSE);
    assert_eq!(serving(&appliance).steps, steps, "nobody is computed for");
    assert_eq!(client.get("/readyz").expect("answered").status, 200);
    assert_eq!(ask(&client, &question(&client, 3_000, 8)).status, 200);
}

#[test]
fn who_reads_a_byte_a_second_holds_up_nobody_and_no_engine() {
    let stage = Stage::new();
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let crawler = client.again().expect("a client").narrow().caller();
    let crawling = voluminous(&client, 1);
    let slow = tokio::runtime::Runtime::new().expect("a runtime");
    let reading = slow.spawn(async move { crawler.read_slowly(&crawling, Duration::from_secs(1)).await });
    let under_way = || metric(&client, "empathd_requests_running") == Some(1.0);
    appliance.wait_for("the slow answer", SOON, |_| under_way().then_some(())).expect("it begins");
    for number in 2..6 {
        assert_eq!(ask(&client, &long(&client, number)).status, 200, "others are answered");
    }
    let computed = |appliance: &Appliance| {
        let now = serving(appliance);
        (now.running == 0 && now.warm && now.steps > u64::from(LONG)).then_some(())
    };
    appliance.wait_for("the engine's end of it", SOON, computed).expect("the engine does not wait for readers");
    assert!(!reading.is_finished(), "the caller still reads");
    assert!(under_way(), "the answer is still being told");
    slow.shutdown_background();
    let gone = || metric(&client, "empathd_requests_running") == Some(0.0);
    appliance.wait_for("its end", SOON, |_| gone().then_some(())).expect("nothing is left of it");
}

#[test]
fn too_many_are_told_when_to_come_back_at_once_and_a_crisis_is_answered() {
    let stage = Stage::new();
    configure(&stage, "[serving]\nanswers_max = 2\n");
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let line = Barrier::new(12);
    let replies: Vec<(Duration, Reply)> = thread::scope(|scope| {
        let callers: Vec<_> = (0..12)
            .map(|number| {
                let (client, question) = (client.again().expect("a client"), long(&client, number));
                let line = &line;
                scope.spawn(move || {
                    line.wait();
                    let began = Instant::now();
                    let reply = ask(&client, &question);
                    (began.elapsed(), reply)
                })
            })
            .collect();
        for number in 30..33 {
            let mut crisis = chat(&client, "I want to die.", 8);
            crisis["seed"] = number.into();
            let reply = ask(&client, &crisis);
            assert_eq!(reply.status, 200, "a crisis is never shed: {}", reply.body);
            assert_eq!(reply.body["empathd"]["crisis_signal"], true, "{}", reply.body);
            assert!(reply.body["usage"]["completion_tokens"].as_u64() > Some(0), "the model is heard: {}", reply.body);
        }
        callers.into_iter().map(|caller| caller.join().expect("no panic")).collect()
    });
    let (whole, shed): (Vec<_>, Vec<_>) = replies.into_iter().partition(|(_, reply)| reply.status == 200);
    assert!(!whole.is_empty() && !shed.is_empty(), "{} were answered, {} were not", whole.len(), shed.len());
    for (_, reply) in &shed {
        assert_eq!((reply.status, reply.body["code"].as_str()), (429, Some("busy")), "{}", reply.body);
        let after: u32 = reply.header("retry-after").and_then(|value| value.parse().ok()).expect("when to come back");
        assert!((1..=60).contains(&after), "{after}");
    }
    let (soonest_refusal, longest_answer) =
        (shed.iter().map(|(took, _)| took).min(), whole.iter().map(|(took, _)| took).max());
    assert!(soonest_refusal < longest_answer, "who is refused does not wait for those who are answered");
}

/// Tells callers to stop when it goes, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_change_of_generation_under_load_fails_no_answer_and_mixes_none() {
    let stage = Stage::new();
    configure(&stage, "[serving]\nanswer_cache_mib = 0\n");
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    stage.ingest_dialogues(&appliance);
    appliance.ctl(&["dataset", "cut"]).expect("a cut");
    let [first, second] = ["1", "2"].map(|seed| trained(&appliance, seed).to_string());
    let (question, over) = (question(&client, 7, 48), AtomicBool::new(false));
    let told: HashSet<(Option<AdapterId>, String)> = thread::scope(|scope| {
        let _over = Over(&over);
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let (client, question, over) = (client.again().expect("a client"), &question, &over);
                scope.spawn(move || {
                    let ask = |_: u32| {
                        let answer = client.stream(question, &mut |_| ()).expect("no answer fails");
                        let notes = answer.notes.expect("notes");
                        assert_eq!(notes.adapter.is_some(), !notes.expert_share.is_empty(), "the routing is reported");
                        (notes.adapter, answer.text)
                    };
                    (0..).take_while(|_| !over.load(Ordering::Relaxed)).map(ask).collect::<HashSet<_>>()
                })
            })
            .collect();
        for words in [&["adapter", "promote", &first][..], &["adapter", "promote", &second], &["adapter", "rollback"]] {
            thread::sleep(Duration::from_millis(300));
            appliance.ctl(words).expect("changed");
        }
        thread::sleep(Duration::from_millis(300));
        over.store(true, Ordering::Relaxed);
        callers.into_iter().flat_map(|caller| caller.join().expect("no answer failed")).collect()
    });
    let by_adapter: HashMap<_, _> = told.iter().cloned().collect();
    assert_eq!(by_adapter.len(), 3, "the plain model and each generation answered");
    assert_eq!(told.len(), 3, "all answers of one generation are the same: none is mixed");
    assert_eq!(by_adapter.values().collect::<HashSet<_>>().len(), 3, "no two answer alike");
    thread::sleep(PULSE);
    for name in [
        "empathd_expert_chosen_total{expert=\"0\"}",
        "empathd_kv_wiped_bytes_total",
        "empathd_prefix_cache_hits_total",
        "empathd_queue_wait_seconds_count{class=\"interactive\"}",
    ] {
        assert!(metric(&client, name) > Some(0.0), "{name} was counted");
    }
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
    let refused = question(&client, 2, 8);
    thread::scope(|scope| {
        let held = Held::begin(scope, &client, 1);
        appliance.begin_stop().expect("told to stop");
        let stopping = |_: &Appliance| client.get("/readyz").ok().filter(|reply| reply.status == 503);
        let ready = appliance.wait_for("the word that it stops", SOON, stopping).expect("said");
        assert_eq!(ready.body["reason"], json!("the appliance is stopping"));
        let refused = ask(&client, &refused);
        assert_eq!((refused.status, refused.body["code"].as_str()), (503, Some("shutting_down")), "{}", refused.body);
        assert!(refused.header("retry-after").is_some(), "{:?}", refused.headers);
        let answer = held.finish();
        assert!(answer.usage.is_some_and(|usage| usage.completion_tokens > 0), "whole, to its last word");
    });
    appliance.stop().expect("an orderly end");
    assert!(stage.verify(&stage.launch.state).ok, "the trail is whole");
}
