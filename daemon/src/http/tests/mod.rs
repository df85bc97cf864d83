//! The door from outside: real TLS, real HTTP, an appliance that only pretends.

mod support;

use super::server::HttpLimits;
use crate::app::CertState;
use crate::certs::authority::Authority;
use crate::certs::identity::uri;
use crate::inference::AnswerEvent;
use empathd_proto::admin::{ApiRole, EngineState};
use empathd_proto::audit::{ActionKind, PrincipalKind};
use empathd_proto::chat::{CalledFunction, FinishReason, ToolCall, ToolKind};
use empathd_proto::generate::{Logprob, TokenLogprobs};
use empathd_proto::{ErrorCode, Problem};
use rcgen::{BasicConstraints, CertificateParams, IsCa, SanType};
use serde_json::{Value, json as object};
use std::sync::atomic::Ordering;
use support::{Fake, Served, ended, exchange, finished, get, json, now_ms, post, post_to, rest, said, serial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TLS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
const DAY_MS: u64 = 86_400_000;
const HELLO: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
const HELLO_STREAM: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true,"stream_options":{"include_usage":true}}"#;

const USAGE: &str = r#"{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}"#;
const NOTES: &str = r#"{"adapter":null,"expert_share":[],"crisis_signal":false,"cache":"miss","times_ms":{"queued":0.0,"prefill":0.0,"decode":0.0}}"#;

fn usage() -> Value {
    serde_json::from_str(USAGE).expect("JSON")
}

fn notes() -> Value {
    serde_json::from_str(NOTES).expect("JSON")
}

fn san(role: ApiRole, name: &str) -> SanType {
    SanType::URI(uri(role, name).try_into().expect("a URI"))
}

fn chunked(body: &str) -> String {
    let data = body.split_once("\r\n\r\n").expect("a head").1;
    let mut text = String::new();
    let mut rest = data;
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        text.push_str(&tail[..size]);
        rest = &tail[size + 2..];
    }
    text
}

#[tokio::test]
async fn certificates_that_tls_refuses_get_no_byte_and_reach_nothing() {
    let served = Served::start().await;
    let stranger = Fake::new();
    for version in TLS {
        let fake = &served.fake;
        let (_, expired) = fake.enroll_at(ApiRole::Ehr, now_ms() - 10 * DAY_MS);
        let authority = fake.odd(|params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.subject_alt_names = vec![san(ApiRole::Ehr, "ca")];
        });
        let server = fake.odd(|params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = vec![san(ApiRole::Ehr, "server")];
        });
        let (_, other) = stranger.enroll(ApiRole::Ehr);
        for (name, credentials) in [
            ("no certificate", None),
            ("another authority", Some(other)),
            ("expired", Some(expired)),
            ("an authority as a caller", Some(authority)),
            ("a server as a caller", Some(server)),
        ] {
            let seen = match served.connect(credentials, version).await {
                Ok(stream) => exchange(stream, &get("/livez")).await,
                Err(_) => String::new(),
            };
            assert_eq!(seen, "", "{name} with {version:?}");
        }
    }
    assert!(served.fake.kinds().is_empty(), "nothing was performed");
}

#[tokio::test]
async fn certificates_that_name_no_caller_are_refused_in_words_and_recorded() {
    let served = Served::start().await;
    let two = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![san(ApiRole::Ehr, "a"), san(ApiRole::Monitor, "a")];
    };
    let no_role = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![SanType::URI("spiffe://empathd/root/a".try_into().expect("a URI"))];
    };
    let no_uri = |params: &mut CertificateParams| {
        params.subject_alt_names = vec![SanType::DnsName("ehr.clinic".try_into().expect("a name"))];
    };
    for odd in [served.fake.odd(two), served.fake.odd(no_role), served.fake.odd(no_uri)] {
        let stream = served.connect(Some(odd), TLS[0]).await.expect("TLS alone is in order");
        let response = exchange(stream, &get("/livez").replace("connection: close\r\n", "")).await;
        assert!(response.starts_with("HTTP/1.1 403"), "{response}");
        assert_eq!(json(&response)["code"], "forbidden");
    }
    let performed = served.fake.performed.lock().expect("not poisoned").clone();
    assert_eq!(performed.len(), 3);
    assert!(performed.iter().all(|(who, kind)| who.kind == PrincipalKind::Certificate && *kind == ActionKind::Unknown));
}

#[tokio::test]
async fn certificates_that_are_revoked_unknown_or_run_out_are_refused_in_words() {
    let served = Served::start().await;
    for state in [CertState::Revoked, CertState::Unknown] {
        let (serial, credentials) = served.fake.enroll(ApiRole::Ehr);
        served.fake.set(&serial, state);
        let stream = served.connect(Some(credentials), TLS[0]).await.expect("connects");
        let response = exchange(stream, &get("/v1/models").replace("connection: close\r\n", "")).await;
        assert!(response.starts_with("HTTP/1.1 401"), "{response}");
        assert_eq!(json(&response)["code"], "unauthenticated");
    }
    // A certificate that runs out while its connection lives.
    let mut stream = served.ehr().await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.expect("answered");
    assert_eq!(&head, b"HTTP/1.1 200");
    served.fake.clock_ahead_ms.store(3 * DAY_MS, Ordering::Relaxed);
    let response = exchange(stream, &get("/livez")).await;
    assert!(response.contains("HTTP/1.1 401") && response.contains("expired"), "{response}");
    assert_eq!(served.fake.kinds().iter().filter(|kind| **kind == ActionKind::Unknown).count(), 3);
}

#[tokio::test]
async fn revocation_cuts_a_stream_in_the_middle_and_cancels_its_answer() {
    let served = Served::start().await;
    let answer = served.fake.will_answer();
    let (serial, credentials) = served.fake.enroll(ApiRole::Ehr);
    let mut stream = served.connect(Some(credentials), TLS[0]).await.expect("connects");
    stream.write_all(post(HELLO_STREAM).as_bytes()).await.expect("written");
    answer.send(said("one")).await.expect("taken");
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("one") {
        assert_ne!(stream.read_buf(&mut seen).await.expect("reads"), 0);
    }
    served.fake.set(&serial, CertState::Revoked);
    let more = rest(&mut stream).await;
    assert!(!more.contains("[DONE]"), "{more}");
    answer.closed().await;
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_its_answer_streamed_or_not() {
    let served = Served::start().await;
    for body in [HELLO, HELLO_STREAM] {
        let answer = served.fake.will_answer();
        let mut stream = served.ehr().await;
        // With `connection: close` the end of the caller shows only when something is written to it.
        let request = post(body).replace("connection: close\r\n", "");
        stream.write_all(request.as_bytes()).await.expect("written");
        served.fake.chat_taken().await;
        drop(stream);
        answer.closed().await;
    }
}

#[tokio::test]
async fn slow_callers_are_cut_off() {
    let short = HttpLimits { handshake_ms: 100, head_ms: 100, body_idle_ms: 100, ..HttpLimits::default() };
    let served = Served::with(short).await;
    let mut mute = TcpStream::connect(served.address).await.expect("connects");
    assert_eq!(mute.read(&mut [0; 1]).await.unwrap_or(0), 0, "no handshake");

    let mut slow = served.ehr().await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nx-a: ").await.expect("written");
    assert_eq!(rest(&mut slow).await, "", "half a head");

    let mut slow = served.ehr().await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.expect("written");
    let response = rest(&mut slow).await;
    assert!(response.starts_with("HTTP/1.1 504"), "half a body: {response}");
    assert!(!served.fake.kinds().contains(&ActionKind::Chat));
}

#[tokio::test]
async fn bad_requests_are_problems_that_name_the_next_step() {
    let served = Served::start().await;
    let oversized = format!(r#"{{"model":"{}"}}"#, "m".repeat(1024 * 1024));
    let unannounced = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{oversized}\r\n0\r\n\r\n",
        oversized.len()
    );
    for (request, status, code, named) in [
        (post(&oversized), 413, "too_large", "1048576 bytes"),
        (unannounced, 413, "too_large", "1048576 bytes"),
        (post("{\"model\":"), 400, "bad_request", "not JSON"),
        (post(&HELLO.replace("}]", "}],\"functions\":1")), 400, "bad_request", "`functions`"),
        (post(&HELLO.replace("}]", "}],\"n\":9")), 400, "bad_request", "`n`"),
        (get("/v1/chat/completions"), 405, "method_not_allowed", "POST"),
        (post("").replace("/v1/chat/completions", "/livez"), 405, "method_not_allowed", "GET"),
        (get("/v1/nothing"), 404, "not_found", "route"),
    ] {
        let response = served.ask(&request).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{response}");
        assert!(response.contains("content-type: application/problem+json"), "{response}");
        assert!(response.contains(named), "{named}: {response}");
        let problem: Problem = serde_json::from_value(json(&response)).expect("a problem");
        assert_eq!(problem.code.as_str(), code);
        let field = named.strip_prefix('`').map_or(Value::Null, |field| field.trim_end_matches('`').into());
        assert_eq!(json(&response)["error"]["param"], field);
        assert!(!problem.next.is_empty());
    }
    assert!(served.fake.kinds().iter().all(|kind| *kind == ActionKind::Unknown), "each refusal is recorded");
    assert_eq!(served.fake.kinds().len(), 8);
}

#[tokio::test]
async fn a_plain_answer_has_the_openai_shape_and_the_common_headers() {
    let served = Served::start().await;
    let answer = served.fake.will_answer();
    for event in [said("Hello"), said(" you"), ended(0), finished()] {
        answer.send(event).await.expect("queued");
    }
    let response = served.chat(HELLO).await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    let request_id = "req_07070707070707070707070707070707";
    for header in [
        "content-type: application/json",
        "cache-control: no-store",
        "empathd-audit-checkpoint: bm90ZQ==",
        &format!("x-request-id: {request_id}"),
    ] {
        assert!(response.contains(&format!("\r\n{header}\r\n")), "{header} in {response}");
    }
    let expected = serde_json::json!({
        "id": request_id, "object": "chat.completion", "created": 1_700_000_000, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello you"}, "finish_reason": "stop"}],
        "usage": usage(),
        "empathd": notes(),
    });
    assert_eq!(json(&response), expected);
}

#[tokio::test]
async fn a_streamed_answer_is_openai_s_stream_to_the_byte() {
    let served = Served::start().await;
    let answer = served.fake.will_answer();
    for event in [said("Hello"), said(" you"), ended(0), finished()] {
        answer.send(event).await.expect("queued");
    }
    let response = served.chat(HELLO_STREAM).await;
    assert!(response.contains("\r\ncontent-type: text/event-stream\r\n"), "{response}");
    let head = r#"data: {"id":"req_07070707070707070707070707070707","object":"chat.completion.chunk","created":1700000000,"model":"m","choices":["#;
    let expected = [
        r#"{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        r#"{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}"#,
        r#"{"index":0,"delta":{"content":" you"},"finish_reason":null}]}"#,
        &format!(r#"{{"index":0,"delta":{{}},"finish_reason":"stop"}}],"empathd":{NOTES}}}"#),
        &format!(r#"],"usage":{USAGE}}}"#),
    ];
    let expected: String = expected.iter().map(|event| format!("{head}{event}\n\n")).collect();
    assert_eq!(chunked(&response), expected + "data: [DONE]\n\n");
}

#[tokio::test]
async fn failures_keep_their_status_before_the_stream_and_are_said_within_it() {
    let served = Served::start().await;
    let lost = || AnswerEvent::Failed(Problem::new(ErrorCode::EngineFailed, "The engine was lost.", "Ask again"));
    let answer = served.fake.will_answer();
    answer.send(lost()).await.expect("queued");
    let response = served.chat(HELLO_STREAM).await;
    assert!(response.starts_with("HTTP/1.1 502"), "{response}");

    let answer = served.fake.will_answer();
    answer.send(said("Hel")).await.expect("queued");
    answer.send(lost()).await.expect("queued");
    let body = chunked(&served.chat(HELLO_STREAM).await);
    assert!(
        body.contains(
            r#"data: {"error":{"message":"The engine was lost.","type":"server_error","code":"engine_failed""#
        ),
        "{body}"
    );
    assert!(!body.contains("[DONE]"), "{body}");

    // A sender that vanishes is a failure too.
    drop(served.fake.will_answer());
    assert!(served.chat(HELLO).await.starts_with("HTTP/1.1 502"));

    let busy = || Problem::new(ErrorCode::Busy, "Too much waits.", "Come back");
    for (problem, seconds) in [(busy(), 2), (busy().after_s(7), 7)] {
        *served.fake.chat.lock().expect("not poisoned") = Some(Err(problem));
        let response = served.chat(HELLO).await;
        assert!(response.starts_with("HTTP/1.1 429"), "{response}");
        assert!(response.contains(&format!("\r\nretry-after: {seconds}\r\n")), "{response}");
        assert_eq!(json(&response)["error"]["type"], "rate_limit_error");
    }
}

#[tokio::test]
async fn choices_and_calls_of_tools_have_their_places_in_both_forms() {
    let served = Served::start().await;
    let call = |id: &str| {
        let function = CalledFunction { name: "look".into(), arguments: "{}".into() };
        ToolCall { id: id.into(), kind: ToolKind::Function, function }
    };
    let told = async |answer: tokio::sync::mpsc::Sender<AnswerEvent>| {
        let second = AnswerEvent::Said { choice: 1, text: "b".into(), logprobs: Vec::new() };
        let called = [call("c1"), call("c2")].map(|call| AnswerEvent::Called { choice: 0, call });
        let reason = FinishReason::ToolCalls;
        for event in
            [second].into_iter().chain(called).chain([AnswerEvent::Ended { choice: 0, reason }, ended(1), finished()])
        {
            answer.send(event).await.expect("queued");
        }
    };
    told(served.fake.will_answer()).await;
    let two = HELLO.replace("}]", "}],\"n\":2");
    let plain = json(&served.chat(&two).await);
    assert_eq!(plain["choices"][0]["message"]["content"], Value::Null);
    assert_eq!(plain["choices"][0]["message"]["tool_calls"][1]["id"], "c2");
    assert_eq!(plain["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(plain["choices"][1]["message"], object!({"role": "assistant", "content": "b"}));

    told(served.fake.will_answer()).await;
    let body = chunked(&served.chat(&HELLO_STREAM.replace("}]", "}],\"n\":2")).await);
    let choices: Vec<Value> = body
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["choices"].get(0).cloned())
        .collect();
    let delta = |place: usize| &choices[place]["delta"];
    assert_eq!((delta(0)["role"].as_str(), choices[1]["index"].as_u64()), (Some("assistant"), Some(1)));
    assert_eq!(delta(2)["content"], "b");
    let second =
        object!([{"index": 1, "id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}}]);
    assert_eq!(delta(4)["tool_calls"], second);
    assert_eq!(choices[5]["finish_reason"], "tool_calls");
    assert_eq!((choices[6]["index"].as_u64(), choices.len()), (Some(1), 7));
}

#[tokio::test]
async fn texts_embeddings_and_single_models_have_openai_s_shapes() {
    let served = Served::start().await;
    let body = r#"{"model":"m","prompt":["x","y"],"logprobs":0}"#;
    let answer = served.fake.will_answer();
    let taken = Logprob { bytes: b"Hi".to_vec(), logprob: -0.5 };
    let logprobs = vec![TokenLogprobs { taken, top: Vec::new() }];
    for event in [AnswerEvent::Said { choice: 1, text: "Hi".into(), logprobs }, ended(1), ended(0), finished()] {
        answer.send(event).await.expect("queued");
    }
    let expected = object!({
        "id": "req_07070707070707070707070707070707", "object": "text_completion", "created": 1_700_000_000, "model": "m",
        "choices": [
            {"index": 0, "text": "", "logprobs": null, "finish_reason": "stop"},
            {"index": 1, "text": "Hi", "finish_reason": "stop", "logprobs": {
                "tokens": ["Hi"], "token_logprobs": [-0.5], "top_logprobs": [{"Hi": -0.5}], "text_offset": [0]}},
        ],
        "usage": usage(), "empathd": notes(),
    });
    assert_eq!(json(&served.ask(&post_to("/v1/completions", body)).await), expected);

    let answer = served.fake.will_answer();
    for event in [said("Hi"), ended(0), finished()] {
        answer.send(event).await.expect("queued");
    }
    let streamed = served.ask(&post_to("/v1/completions", r#"{"model":"m","prompt":"x","stream":true}"#)).await;
    let streamed = chunked(&streamed);
    assert!(
        streamed.contains(r#""choices":[{"index":0,"text":"Hi","logprobs":null,"finish_reason":null}]}"#),
        "{streamed}"
    );
    assert!(streamed.ends_with("data: [DONE]\n\n"));

    let vectors = served.ask(&post_to("/v1/embeddings", r#"{"model":"m","input":"x"}"#)).await;
    let expected = object!({
        "object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}], "model": "m",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    });
    assert_eq!(json(&vectors), expected);
    assert_eq!(json(&served.ask(&get("/v1/models/m")).await)["object"], "model");
    assert!(served.ask(&get("/v1/models/x/y")).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_sealed_appliance_closes_at_once() {
    let served = Served::start().await;
    let (_, credentials) = served.fake.enroll(ApiRole::Ehr);
    served.fake.seal();
    assert!(served.connect(Some(credentials), TLS[0]).await.is_err());
}

#[tokio::test]
async fn one_address_gets_no_more_than_its_share() {
    let served = Served::with(HttpLimits { connections_per_address: 1, ..HttpLimits::default() }).await;
    let first = served.ehr().await;
    let (_, credentials) = served.fake.enroll(ApiRole::Ehr);
    assert!(served.connect(Some(credentials), TLS[0]).await.is_err());
    assert!(exchange(first, &get("/livez")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn draining_ends_answers_under_way_and_takes_no_more() {
    let served = Served::with(HttpLimits { drain_ms: 1_000, ..HttpLimits::default() }).await;
    let (quick, endless) = (served.fake.will_answer(), served.ehr().await);
    let mut endless = endless;
    endless.write_all(post(HELLO_STREAM).as_bytes()).await.expect("written");
    quick.send(said("one")).await.expect("taken");
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("one") {
        assert_ne!(endless.read_buf(&mut seen).await.expect("reads"), 0);
    }
    served.fake.stop();
    served.drain.cancel();
    let ready = served.ask(&get("/readyz")).await;
    assert!(ready.starts_with("HTTP/1.1 503") && json(&ready)["reason"] == "the appliance is stopping", "{ready}");
    let refused = served.chat(HELLO).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: "), "{refused}");
    assert_eq!(json(&refused)["code"], "shutting_down");
    let last = rest(&mut endless).await;
    assert!(last.contains("shutting_down") && !last.contains("[DONE]"), "{last}");
    served.task.await.expect("ends");
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[tokio::test]
async fn health_and_metrics_are_for_monitors_and_answers_are_not() {
    let served = Served::start().await;
    let (_, credentials) = served.fake.enroll(ApiRole::Monitor);
    let ask = async |request: String| {
        let stream = served.connect(Some((credentials.0.clone(), credentials.1.clone_key())), TLS[1]).await;
        exchange(stream.expect("connects"), &request).await
    };
    assert!(ask(get("/livez")).await.starts_with("HTTP/1.1 200"));
    let engine = |state| *served.fake.engine.lock().expect("not poisoned") = state;
    engine(EngineState::Loading);
    let starting = ask(get("/startupz")).await;
    assert!(starting.starts_with("HTTP/1.1 503") && starting.contains("loading its base model"), "{starting}");
    engine(EngineState::Ready);
    let ready = ask(get("/readyz")).await;
    assert!(ready.starts_with("HTTP/1.1 200") && json(&ready)["status"] == "ready", "{ready}");
    engine(EngineState::Down);
    let degraded = ask(get("/readyz")).await;
    assert!(degraded.starts_with("HTTP/1.1 503") && json(&degraded)["status"] == "degraded", "{degraded}");
    assert!(ask(get("/startupz")).await.starts_with("HTTP/1.1 200"), "it has started once");
    for request in [post(HELLO), get("/v1/models"), post_to("/v1/embeddings", r#"{"model":"m","input":"x"}"#)] {
        let refused = ask(request).await;
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    }
    let metrics = ask(get("/metrics")).await;
    for line in [
        "empathd_http_requests_total{route=\"/readyz\",status=\"5xx\"}",
        "empathd_engine_up 0",
        "empathd_records 3",
        "empathd_audit_entries 5",
        "process_resident_memory_bytes ",
        "empathd_http_request_duration_seconds_bucket{route=\"/livez\",le=\"0.25\"}",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn an_authority_refuses_names_and_days_out_of_range() {
    let authority = Authority::generate(serial(), now_ms()).expect("generates");
    for (name, days) in [("", 1), ("../x", 1), ("a", 0), ("a", 399)] {
        assert!(authority.issue_client(name, ApiRole::Ehr, days, serial(), now_ms()).is_err(), "{name} {days}");
    }
    let bad = crate::certs::server_config(&authority, &["not a name".into()], serial(), now_ms());
    assert!(bad.expect_err("refused").to_string().contains("server name 1"));
}
