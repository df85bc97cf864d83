//! What a peer may do wrong, and connections that end.

use super::support::*;
use empathd_proto::engine::{EngineFailure, FromEngineBody, ServingSpec, ToEngineBody};
use empathd_proto::frame::{self, HEADER_BYTES};
use empathd_proto::generate::{GenerateSpec, SamplingSpec};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn requests_that_cannot_be_answered_say_why() {
    let engine = Engine::start();
    let mut daemon = engine.connect();
    let tag = daemon.open(ToEngineBody::Generate(spec(3)));
    assert_eq!(daemon.failure(tag), EngineFailure::NoBase);
    let path = engine.folder.path().join("tiny.gguf").display().to_string();
    let tag = daemon.open(ToEngineBody::LoadBase { path, sha256: [0; 32], serving: ServingSpec::default() });
    assert!(matches!(daemon.failure(tag), EngineFailure::BadModel(words) if words.contains("SHA-256")));
    let tag = daemon.open(ToEngineBody::LoadBase {
        path: "/no/such/file".to_owned(),
        sha256: [0; 32],
        serving: ServingSpec::default(),
    });
    assert!(matches!(daemon.failure(tag), EngineFailure::BadModel(_)));

    let mut daemon = {
        drop(daemon);
        engine.loaded()
    };
    let long = GenerateSpec { prompt: chat(&"word ".repeat(400)), ..spec(3) };
    let tag = daemon.open(ToEngineBody::Generate(long));
    assert!(matches!(daemon.failure(tag), EngineFailure::PromptTooLong { tokens, limit: 511 } if tokens > 511));
    let tag = daemon.open(ToEngineBody::Generate(GenerateSpec { adapter: Some(ADAPTER), ..spec(3) }));
    assert_eq!(daemon.failure(tag), EngineFailure::UnknownAdapter(ADAPTER));
    let tag = daemon.open(ToEngineBody::Generate(GenerateSpec {
        sampling: SamplingSpec { temperature: f32::NAN, ..sampled(1) },
        ..spec(3)
    }));
    assert!(matches!(daemon.failure(tag), EngineFailure::Refused(words) if words.contains("temperature")));
    let tag = daemon.open(ToEngineBody::Go);
    assert!(matches!(daemon.failure(tag), EngineFailure::Protocol(_)));
    let tag = daemon.open(ToEngineBody::PutAdapter { adapter: ADAPTER, blob: head(b"xyz") });
    daemon.send(tag, ToEngineBody::Chunk(b"xyZ".to_vec()));
    daemon.send(tag, ToEngineBody::Chunk(b"late".to_vec()));
    assert!(matches!(daemon.failure(tag), EngineFailure::BadAdapter(_)));
    assert!(matches!(daemon.put_adapter(b"not an adapter"), FromEngineBody::Failed(EngineFailure::BadAdapter(_))));
    assert_eq!(daemon.generate(spec(3)).1.completion_tokens, 3);
}

#[test]
fn hostile_frames_close_their_connection_and_nothing_else() {
    let engine = Engine::start();
    let hostile: [&[u8]; 4] = [
        &[0xff, 0xff, 0xff, 0xff, frame::VERSION, 1, 2, 3],
        &[0, 0, 0, 0, frame::VERSION],
        &[3, 0, 0, 0, 9, 1, 2],
        &[6, 0, 0, 0, frame::VERSION, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for bytes in hostile {
        let mut daemon = engine.connect();
        daemon.stream.write_all(bytes).expect("written");
        assert!(daemon.is_closed(), "{bytes:?}");
    }
    let mut cut_short = engine.connect();
    cut_short.stream.write_all(&[200, 0, 0, 0, frame::VERSION, 1]).expect("written");
    drop(cut_short);
    assert_eq!(engine.loaded().generate(spec(3)).1.completion_tokens, 3);
}

#[test]
fn a_lost_connection_ends_its_answers_and_forgets_its_adapters() {
    let engine = Engine::start();
    let mut daemon = engine.loaded();
    for seed in 0..8 {
        daemon.open(ToEngineBody::Generate(GenerateSpec { sampling: sampled(seed), ..spec(480) }));
    }
    assert!(matches!(daemon.read().body, FromEngineBody::Token { .. }));
    drop(daemon);
    let status = engine.connect().status();
    assert!(status.base.is_some() && status.adapters.is_empty() && status.generating == 0, "{status:?}");
    assert!(status.serving.kv_wiped_bytes > 0);
}

#[test]
fn the_socket_is_for_its_user_alone_and_the_engine_can_end_with_its_peer() {
    let engine = Engine::start();
    let _daemon = engine.connect();
    let mode = std::fs::metadata(engine.socket()).expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let path = engine.folder.path().join("other.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_empathd-engine"))
        .args(["--exit-with-peer", "--threads", "1", "--socket"])
        .arg(&path)
        .spawn()
        .expect("started");
    while UnixStream::connect(&path).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(child.wait().expect("ended").success());
    assert!(!path.exists());
}

#[test]
fn systemd_can_give_the_listening_socket_as_standard_input() {
    let folder = tempfile::tempdir().expect("scratch");
    let path = folder.path().join("given.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let start = |input: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_empathd-engine"));
        command.arg("--exit-with-peer").stdin(input).stderr(Stdio::null()).spawn().expect("started")
    };
    let mut child = start(Stdio::from(OwnedFd::from(listener)));
    let mut greeting = [0; HEADER_BYTES];
    UnixStream::connect(&path).expect("listening").read_exact(&mut greeting).expect("greeted");
    assert!(child.wait().expect("ended").success());
    assert!(!start(Stdio::null()).wait().expect("ended").success());
}
