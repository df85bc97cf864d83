//! An appliance for tests: a real store in a scratch folder, a clock that stands still, and an engine that is played by
//! the test at the other end of a socket pair.

use crate::action::Action;
use crate::actor::{Actor, AdminRole};
use crate::admin::upload::{FilePart, FileSink};
use crate::app::{App, Reply};
use crate::clock::{Clock, OsEntropy};
use crate::config::{Config, Overrides};
use crate::engine::link::Link;
use crate::engine::{Engine, Ready, View};
use crate::inference::call::{AnswerCall, Client, Form, Question, Turn};
use crate::wire;
use empathd_proto::admin::AdminReply;
use empathd_proto::engine::{BaseModel, FromEngine, FromEngineBody, ToEngine, ToEngineBody};
use empathd_proto::problem::Problem;
use empathd_proto::secret::Secret;
use empathd_store::KdfCost;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

/// The root user.
pub(crate) const ROOT: Actor = Actor::LocalUser { uid: 0, role: AdminRole::Administrator };
/// The time at which every test begins, milliseconds: eight in the morning, UTC.
pub(crate) const NOW_MS: u64 = 1_800_000_000_000;

/// A clock that a test moves.
pub(crate) struct Still(AtomicU64);

impl Still {
    /// Moves it.
    pub(crate) fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::Relaxed);
    }
}

impl Clock for Still {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn utc_offset_s(&self, _at_ms: u64) -> i32 {
        0
    }
}

/// An appliance and the scratch folder of its state.
pub(crate) struct Fixture {
    pub(crate) app: Arc<App>,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) clock: Arc<Still>,
    view: watch::Sender<View>,
    epoch: u64,
}

/// Performs an action of an administrator and gives its answer, with the files that came before it.
pub(crate) async fn ask(
    app: &Arc<App>,
    action: impl FnOnce(FileSink) -> Action,
) -> Result<(AdminReply, BTreeMap<String, Vec<u8>>), Problem> {
    let (sender, mut parts) = mpsc::channel(1);
    let gathered = tokio::spawn(async move {
        let (mut files, mut last) = (BTreeMap::<String, Vec<u8>>::new(), String::new());
        while let Some(part) = parts.recv().await {
            match part {
                FilePart::Begin { path, .. } => last = path,
                FilePart::Chunk(chunk) => files.entry(last.clone()).or_default().extend(chunk),
            }
        }
        files
    });
    let done = app.perform(&ROOT, action(FileSink::new(sender))).await;
    let files = gathered.await.expect("gathered");
    match done? {
        Reply::Admin(reply) => Ok((*reply, files)),
        _ => panic!("a reply of another kind"),
    }
}

/// A short, deterministic chat of one message.
pub(crate) fn call(text: &str) -> AnswerCall {
    AnswerCall {
        model: "empathd".to_owned(),
        question: Question::Conversation(vec![Turn::Person(text.to_owned())]),
        choices: 1,
        max_tokens: Some(8),
        temperature: 0.0,
        top_p: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        logprobs: None,
        seed: Some(5),
        stop: Vec::new(),
        form: Form::Text,
        client: Client::default(),
        nobody_waits: false,
    }
}

pub(crate) fn passphrase() -> Secret {
    Secret::new("correct horse battery".to_owned())
}

impl Fixture {
    /// An appliance without a store, whose engine is down.
    pub(crate) fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let overrides = Overrides { state: Some(folder.path().to_owned()), ..Overrides::default() };
        let config = Config::parse(settings, overrides).expect("valid settings");
        let (view, engine) = watch::channel(View::Down("no engine in this test".to_owned()));
        let clock = Arc::new(Still(AtomicU64::new(NOW_MS)));
        let app = App::new(config, clock.clone(), Arc::new(OsEntropy), KdfCost::Light, Engine::new(engine));
        Self { app: app.expect("an appliance"), folder, clock, view, epoch: 0 }
    }

    /// One that is unsealed.
    pub(crate) async fn unsealed(settings: &str) -> Self {
        let fixture = Self::new(settings);
        let init = Action::Init { passphrase: passphrase() };
        fixture.app.perform(&ROOT, init).await.expect("init");
        fixture
    }

    /// Connects an engine, which the test plays.
    pub(crate) async fn connect(&mut self) -> Played {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut played = Played { stream: theirs };
        played.say(0, FromEngineBody::Hello { version: "test".into(), device: "test".into() }).await;
        let link = Link::open(ours).await.expect("a link");
        let base = BaseModel {
            name: "tiny".into(),
            architecture: "llama".into(),
            parameters: 1,
            context: 512,
            sha256: [0; 32],
        };
        self.epoch += 1;
        self.view.send_replace(View::Ready(Arc::new(Ready::new(link, base, self.epoch))));
        played
    }
}

/// An engine, played by a test. Dropping it is its death.
pub(crate) struct Played {
    stream: UnixStream,
}

impl Played {
    /// The next thing it is asked.
    pub(crate) async fn hear(&mut self) -> (u64, ToEngineBody) {
        let message = wire::read::<ToEngine>(&mut self.stream).await.expect("readable").expect("connected");
        (message.tag, message.body)
    }

    /// The next thing it is asked that fits.
    pub(crate) async fn hear_until<T>(&mut self, fits: impl Fn(&ToEngineBody) -> Option<T>) -> (u64, T) {
        loop {
            let (tag, body) = self.hear().await;
            if let Some(found) = fits(&body) {
                return (tag, found);
            }
        }
    }

    /// Says something.
    pub(crate) async fn say(&mut self, tag: u64, body: FromEngineBody) {
        wire::write(&mut self.stream, &FromEngine { tag, body }).await.expect("writable");
    }
}
