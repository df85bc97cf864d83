//! Faults and hostile input against a whole appliance: killed processes, wrong keys and certificates, prompts and files
//! that do not fit, a full disk. Each is answered clearly, and nothing acknowledged is lost.

use crate::stage::{SOON, Stage, chat, engine_ready, status};
use empathd_model::tiny::CONTROL_IDS;
use empathd_proto::admin::{EngineState, SealState};
use empathd_proto::report::{AdapterSummary, IngestReport, JobState, TrainStatus};
use empathd_tests::corpus;
use empathd_tests::harness::appliance::{Appliance, CtlFailure};
use empathd_tests::harness::ehr::{self, Ehr};
use serde_json::json;
use std::fs;

#[test]
fn an_answer_survives_the_death_of_the_engine() {
    let stage = Stage::new();
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    // Two users, so that the second is not given the kept answer of the first; no end before the last token.
    let question = |user: &str| {
        let mut question = chat(&client, "Tell me about sleep.", 300);
        question["user"] = user.into();
        question["logit_bias"] = CONTROL_IDS.map(|id| (id.to_string(), json!(-100))).collect();
        question
    };
    let undisturbed = client.stream(&question("one"), &mut |_| ()).expect("a stream");
    assert_eq!(undisturbed.usage.as_ref().map(|usage| usage.completion_tokens), Some(300));
    let mut killed = None;
    let disturbed = client
        .stream(&question("two"), &mut |_| {
            if killed.is_none() {
                killed = Some(appliance.kill_engine().expect("an engine"));
            }
        })
        .expect("a stream that goes on");
    assert_eq!(disturbed.text, undisturbed.text);
    assert_eq!(disturbed.usage, undisturbed.usage);
    engine_ready(&appliance);
    assert_ne!(appliance.engine_pid(), killed, "a new engine runs");
}

#[test]
fn training_survives_the_death_of_the_engine() {
    let stage = Stage::new();
    let appliance = stage.open();
    stage.ingest_dialogues(&appliance);
    appliance.ctl(&["dataset", "cut"]).expect("a cut");
    let job: TrainStatus = appliance.ask(&["train", "start", "--steps", "40"]).expect("begun");
    let step = |appliance: &Appliance| {
        let status: TrainStatus = appliance.ask(&["train", "status"]).ok()?;
        status.progress.filter(|progress| progress.step >= 3).map(|progress| progress.step)
    };
    let reached = appliance.wait_for("the third step", SOON, step).expect("steps");
    assert!(reached < 40, "the engine was too quick to be killed in time");
    appliance.kill_engine().expect("an engine");
    let status: TrainStatus = appliance.ask(&["train", "status", &job.job.to_string(), "--follow"]).expect("followed");
    assert_eq!(status.state, JobState::Finished, "{:?}", status.error);
    let adapter = the_adapter(&appliance);
    assert_eq!(adapter.train.steps, 40);
    assert!(adapter.train.resumed_from.is_some_and(|from| from >= 1), "{:?}", adapter.train.resumed_from);
}

fn the_adapter(appliance: &Appliance) -> AdapterSummary {
    let list = appliance.ctl(&["adapter", "list"]).expect("listed");
    serde_json::from_value(list["adapters"][0].clone()).expect("an adapter")
}

#[test]
fn what_was_acknowledged_survives_the_death_of_the_daemon() {
    let stage = Stage::new();
    let appliance = stage.open();
    stage.ingest_dialogues(&appliance);
    let before = status(&appliance);
    appliance.kill().expect("killed");
    assert!(stage.verify(&stage.launch.state).ok, "the state as the kill left it holds");
    let appliance = stage.reopen();
    let after = status(&appliance);
    assert_eq!(after.records, before.records);
    assert!(after.audit_entries > before.audit_entries);
    appliance.ctl(&["audit", "verify"]).expect("the trail holds");
    appliance.stop().expect("stopped");
    assert!(stage.verify(&stage.launch.state).ok);
}

#[test]
fn a_wrong_passphrase_opens_nothing_and_says_so() {
    let stage = Stage::new();
    stage.open().stop().expect("stopped");
    fs::write(stage.path("wrong"), "incorrect horse battery staple\n").expect("written");
    let appliance = stage.launch.start().expect("started");
    let failure = appliance.ctl(&["unseal", "--passphrase-file", &stage.word("wrong")]).expect_err("refused");
    assert_eq!((failure.code(), failure.exit_code), ("wrong_passphrase", 4), "{failure}");
    assert_eq!(status(&appliance).state, SealState::Sealed);
    appliance.ctl(&["unseal", "--passphrase-file", &stage.word("passphrase")]).expect("the right one opens");
}

#[test]
fn a_sealed_appliance_answers_nobody() {
    let stage = Stage::new();
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    assert_eq!(client.get("/livez").expect("answered").status, 200);
    appliance.ctl(&["seal"]).expect("sealed");
    assert!(client.get("/livez").is_err(), "a sealed appliance closes the connection");
    let failure = appliance.ctl(&["dataset", "cut"]).expect_err("refused");
    assert_eq!((failure.code(), failure.exit_code), ("sealed", 3), "{failure}");
    appliance.ctl(&["unseal", "--passphrase-file", &stage.word("passphrase")]).expect("unsealed");
    assert_eq!(client.get("/livez").expect("answered").status, 200);
}

#[test]
fn only_a_valid_certificate_with_the_right_role_gets_answers() {
    let stage = Stage::new();
    let appliance = stage.open();
    let good = stage.ehr(&appliance, "good", "ehr");
    let question = chat(&good, "Hello.", 4);
    assert_eq!(good.post("/v1/chat/completions", &question).expect("answered").status, 200);

    let monitor = stage.ehr(&appliance, "monitor", "monitor");
    let refused = monitor.post("/v1/chat/completions", &question).expect("answered");
    assert_eq!((refused.status, refused.body["code"].as_str()), (403, Some("forbidden")), "{}", refused.body);
    assert_eq!(monitor.get("/livez").expect("answered").status, 200);

    let revoked = stage.ehr(&appliance, "revoked", "ehr");
    let list = appliance.ctl(&["cert", "list"]).expect("listed");
    let certs = list["certs"].as_array().expect("certificates");
    let entry = certs.iter().find(|cert| cert["name"] == "revoked").expect("on the list");
    appliance.ctl(&["cert", "revoke", entry["serial"].as_str().expect("a serial")]).expect("revoked");
    assert_gets_nothing(&revoked, "a revoked certificate");

    let stranger = foreign_certificate(&stage, &appliance);
    assert_gets_nothing(&stranger, "a certificate of another authority");
}

fn assert_gets_nothing(client: &Ehr, who: &str) {
    if let Ok(reply) = client.get("/v1/models") {
        assert!(matches!(reply.status, 401 | 403), "{who} got {}", reply.status);
        assert!(reply.body.get("data").is_none(), "{who} got models");
    }
}

/// A certificate with the right name, of an authority that the clinic does not know.
fn foreign_certificate(stage: &Stage, appliance: &Appliance) -> Ehr {
    let folder = stage.path("foreign");
    fs::create_dir_all(&folder).expect("made");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    let uri = "spiffe://empathd/ehr/good".try_into().expect("a URI");
    parameters.subject_alt_names.push(rcgen::SanType::URI(uri));
    let certificate = parameters.self_signed(&key).expect("signed by itself");
    fs::write(folder.join("foreign.pem"), certificate.pem()).expect("written");
    fs::write(folder.join("foreign.key"), key.serialize_pem()).expect("written");
    fs::copy(&appliance.ready.ca, folder.join("ca.pem")).expect("copied");
    Ehr::new(&appliance.ready.api, &folder, "foreign").expect("a client")
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_what_is_wrong() {
    let stage = Stage::new();
    let appliance = stage.open();
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let long = chat(&client, &"why ".repeat(2000), 4);
    let reply = client.post("/v1/chat/completions", &long).expect("answered");
    assert_eq!((reply.status, reply.body["code"].as_str()), (400, Some("prompt_too_long")), "{}", reply.body);
    let detail = reply.body["detail"].as_str().expect("a detail");
    let numbers: Vec<u32> = detail.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    assert!(numbers.iter().any(|n| *n >= 2000) && numbers.iter().any(|n| (400..=512).contains(n)), "{detail}");

    for (body, name) in [
        (
            json!({ "model": "x", "messages": [{ "role": "user", "content": "why" }], "colour": "blue" }).to_string(),
            "colour",
        ),
        (json!({ "model": "x", "messages": [] }).to_string(), "messages"),
        ("{\"model\": ".to_owned(), ""),
    ] {
        let reply = client.post_bytes("/v1/chat/completions", body.into_bytes()).expect("answered");
        assert_eq!((reply.status, reply.body["code"].as_str()), (400, Some("bad_request")), "{}", reply.body);
        assert!(reply.body["detail"].as_str().is_some_and(|detail| detail.contains(name)), "{}", reply.body);
    }
    let huge = vec![b' '; 64 * 1024 * 1024];
    match client.post_bytes("/v1/chat/completions", huge) {
        Ok(reply) => assert_eq!(reply.status, 413, "{}", reply.body),
        Err(error) => {
            assert!(!error.to_string().is_empty(), "a connection cut in the middle of the body is an answer, too")
        }
    }
    assert_eq!(client.get("/livez").expect("answered").status, 200, "it goes on answering");
}

#[test]
fn files_that_cannot_be_read_are_refused_and_change_nothing() {
    let stage = Stage::new();
    let appliance = stage.open();
    let refuse = |name: &str, bytes: &[u8]| -> CtlFailure {
        fs::write(stage.path(name), bytes).expect("written");
        appliance.ctl(&["ingest", &stage.word(name)]).expect_err(name)
    };
    let endless = vec![b'x'; 64 * 1024 * 1024];
    for (name, bytes) in [
        ("nonsense.jsonl", &b"this is no json\nand neither is this\n"[..]),
        ("unknown.csv", b"colour,size\nred,3\n"),
        ("binary.json", &[0xff, 0xfe, 0, 1, 2, 3]),
        ("empty.jsonl", b""),
        ("endless.jsonl", &endless),
    ] {
        let failure = refuse(name, bytes);
        assert_eq!(failure.exit_code, 2, "{failure}");
        assert!(failure.body["next"].as_str().is_some_and(|next| !next.is_empty()), "{failure}");
    }
    assert_eq!(status(&appliance).records, Some(0));
}

#[test]
fn a_model_file_that_is_none_is_named_in_the_status() {
    let mut stage = Stage::new();
    let whole = fs::read(stage.path("tiny.gguf")).expect("read");
    fs::write(stage.path("short.gguf"), &whole[..whole.len() / 2]).expect("written");
    stage.launch.model = Some(stage.path("short.gguf"));
    let appliance = stage.launch.start().expect("it starts without a usable model");
    appliance.ctl(&["init", "--passphrase-file", &stage.word("passphrase")]).expect("initialised");
    let client = stage.ehr(&appliance, "ehr", "ehr");
    let ready = client.get("/readyz").expect("answered");
    assert_eq!(ready.status, 503, "{}", ready.body);
    assert_ne!(status(&appliance).engine, EngineState::Ready);
    let question = json!({ "model": "m", "messages": [{ "role": "user", "content": "Hello." }] });
    let refused = client.post("/v1/chat/completions", &question).expect("answered");
    assert!(matches!(refused.status, 404 | 503), "{}", refused.body);
    let report: IngestReport = {
        let truth = corpus::write(&stage.path("corpus"), 1).expect("written");
        appliance.ask(&["ingest", truth.files[0].to_str().expect("UTF-8")]).expect("records need no model")
    };
    assert!(report.accepted > 0);
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    // No file of the daemon may grow beyond this many blocks of 512 bytes: enough for a store, too little for the corpus
    // again and again. The signal that would come with it is ignored, so that writes fail as they do on a full disk.
    const LIMIT: &str = "trap '' XFSZ; ulimit -f 7168; exec \"$0\" \"$@\"";
    let mut stage = Stage::new();
    stage.launch.wrapper = ["sh", "-c", LIMIT].map(Into::into).to_vec();
    let appliance = stage.open();
    let mut acknowledged = 0;
    let mut full = None;
    for seed in 0..40 {
        let truth = corpus::write(&stage.path("corpus"), seed).expect("written");
        let file = truth.files.iter().find(|file| file.ends_with("conversations.jsonl")).expect("in the corpus");
        match appliance.ask::<IngestReport>(&["ingest", file.to_str().expect("UTF-8")]) {
            Ok(report) => acknowledged += report.accepted,
            Err(error) => {
                full = Some(error.downcast::<CtlFailure>().expect("a problem"));
                break;
            }
        }
    }
    let full = full.expect("the disk fills up");
    assert_eq!((full.code(), full.exit_code), ("storage", 8), "{full}");
    assert!(ehr::without_certificate(&appliance.ready.api, &appliance.ready.ca).is_ok(), "it lives on");
    appliance.kill().expect("killed");

    stage.launch.wrapper.clear();
    let appliance = stage.reopen();
    assert!(status(&appliance).records >= Some(acknowledged), "what was acknowledged is there");
    appliance.ctl(&["audit", "verify"]).expect("the trail holds");
}

#[test]
fn a_disk_that_is_full_at_a_checkpoint_ends_the_job_and_touches_nothing_else() {
    // Files may grow to 5 MiB: enough for the store, too little for a checkpoint of weights and moments of this rank.
    const LIMIT: &str = "trap '' XFSZ; ulimit -f 10240; exec \"$0\" \"$@\"";
    let mut stage = Stage::new();
    let config = fs::read_to_string(stage.path("config.toml")).expect("read");
    let config = config.replacen("[training]", "[training]\nshared_rank = 256", 1);
    fs::write(stage.path("config.toml"), config).expect("written");
    stage.launch.wrapper = ["sh", "-c", LIMIT].map(Into::into).to_vec();
    let appliance = stage.open();
    stage.ingest_dialogues(&appliance);
    appliance.ctl(&["dataset", "cut"]).expect("a cut");
    let records = status(&appliance).records;
    let job: TrainStatus = appliance.ask(&["train", "start", "--steps", "2", "--promote"]).expect("begun");
    let failed = appliance.ask::<TrainStatus>(&["train", "status", &job.job.to_string(), "--follow"]);
    let failed = failed.expect_err("no room for its state").downcast::<CtlFailure>().expect("a problem");
    assert_eq!(failed.code(), "engine_failed", "{failed}");
    assert_eq!((status(&appliance).adapter, status(&appliance).records), (None, records));
    let client = stage.ehr(&appliance, "ehr", "ehr");
    assert_eq!(client.post("/v1/chat/completions", &chat(&client, "Hello.", 4)).expect("answered").status, 200);
    appliance.stop().expect("in order");
    assert!(stage.verify(&stage.launch.state).ok, "nothing half-written is left");

    stage.launch.wrapper.clear();
    let appliance = stage.reopen();
    let job: TrainStatus = appliance.ask(&["train", "start", "--steps", "2"]).expect("begun again");
    let done: TrainStatus = appliance.ask(&["train", "status", &job.job.to_string(), "--follow"]).expect("followed");
    assert_eq!(done.state, JobState::Finished, "{:?}", done.error);
}
