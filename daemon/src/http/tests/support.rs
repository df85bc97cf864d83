//! An appliance that only pretends, certificates of a real authority, and a caller that sees every byte.

use crate::action::Action;
use crate::actor::Actor;
use crate::app::{CertState, Readiness, Reply};
use crate::certs::authority::Authority;
use crate::certs::identity::{fixed_serial, serial_text};
use crate::clock::{Clock, OsEntropy, SystemClock};
use crate::http::appliance::{Appliance, Performing};
use crate::http::server::{HttpLimits, serve_on};
use crate::inference::{Answer, AnswerEvent};
use empathd_proto::admin::{ApiRole, EngineState, SealState};
use empathd_proto::audit::{ActionKind, Principal};
use empathd_proto::chat::{AnswerNotes, CacheNote, FinishReason, Model, ModelList, TimesMs, Usage};
use empathd_proto::generate::Embedded;
use empathd_proto::ids::RequestId;
use empathd_proto::{ErrorCode, Problem};
use rcgen::CertificateParams;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn now_ms() -> u64 {
    SystemClock::start().now_ms()
}

pub(super) fn serial() -> [u8; 16] {
    let mut bytes = [0; 16];
    OsEntropy.fill(&mut bytes);
    fixed_serial(bytes)
}

/// A certificate and its key, as a caller holds them.
pub(super) type Credentials = (CertificateDer<'static>, PrivateKeyDer<'static>);

/// The appliance that pretends.
pub(super) struct Fake {
    pub(super) authority: Authority,
    tls: Mutex<Option<Arc<rustls::ServerConfig>>>,
    states: Mutex<HashMap<String, CertState>>,
    changed: watch::Sender<u64>,
    /// Added to the wall clock.
    pub(super) clock_ahead_ms: AtomicU64,
    pub(super) performed: Mutex<Vec<(Principal, ActionKind)>>,
    /// What the next chat gives.
    pub(super) chat: Mutex<Option<Result<mpsc::Receiver<AnswerEvent>, Problem>>>,
    pub(super) engine: Mutex<EngineState>,
    draining: AtomicBool,
}

impl Fake {
    pub(super) fn new() -> Arc<Self> {
        let authority = Authority::generate(serial(), now_ms()).expect("generates");
        let tls = crate::certs::server_config(&authority, &[], serial(), now_ms()).expect("configures");
        Arc::new(Self {
            authority,
            tls: Mutex::new(Some(tls)),
            states: Mutex::default(),
            changed: watch::Sender::new(0),
            clock_ahead_ms: AtomicU64::new(0),
            performed: Mutex::default(),
            chat: Mutex::default(),
            engine: Mutex::new(EngineState::Ready),
            draining: AtomicBool::new(false),
        })
    }

    /// A good certificate.
    pub(super) fn enroll(&self, role: ApiRole) -> (String, Credentials) {
        self.enroll_at(role, now_ms())
    }

    /// A certificate for one day from then on.
    pub(super) fn enroll_at(&self, role: ApiRole, at_ms: u64) -> (String, Credentials) {
        let serial = serial();
        let issued = self.authority.issue_client("test", role, 1, serial, at_ms).expect("issues");
        self.set(&serial_text(&serial), CertState::Valid);
        (serial_text(&serial), from_pem(&issued.cert_pem, &issued.key_pem))
    }

    /// A certificate of the authority that says whatever `change` makes it say.
    pub(super) fn odd(&self, change: impl FnOnce(&mut CertificateParams)) -> Credentials {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let (certificate, key) = self.authority.sign_as_is(&params).expect("signs");
        from_pem(&certificate.pem(), &key.serialize_pem())
    }

    pub(super) fn set(&self, serial: &str, state: CertState) {
        self.states.lock().expect("not poisoned").insert(serial.to_owned(), state);
        self.changed.send_modify(|version| *version += 1);
    }

    /// From here on it says that it is stopping, and takes no chat.
    pub(super) fn stop(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn seal(&self) {
        *self.tls.lock().expect("not poisoned") = None;
    }

    pub(super) fn kinds(&self) -> Vec<ActionKind> {
        self.performed.lock().expect("not poisoned").iter().map(|(_, kind)| *kind).collect()
    }

    /// What the next chat answers; the events come from the returned sender.
    pub(super) fn will_answer(&self) -> mpsc::Sender<AnswerEvent> {
        let (sender, events) = mpsc::channel(16);
        *self.chat.lock().expect("not poisoned") = Some(Ok(events));
        sender
    }

    /// Returns when the planned chat has been asked for.
    pub(super) async fn chat_taken(&self) {
        while self.chat.lock().expect("not poisoned").is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn reply(&self, actor: &Actor, action: &Action) -> Result<Reply, Problem> {
        let refused = |code| Problem::new(code, "Refused.", "Nothing");
        match action {
            Action::Unknown => Err(refused(ErrorCode::NotFound)),
            action if !action.allowed(actor) => Err(refused(ErrorCode::Forbidden)),
            Action::Chat(_) if self.draining.load(Ordering::Relaxed) => Err(refused(ErrorCode::ShuttingDown)),
            Action::Chat(call) | Action::Complete(call) => {
                let events = self.chat.lock().expect("not poisoned").take().expect("a chat was planned")?;
                let (id, model) = (RequestId::from_bytes([7; 16]), call.model.clone());
                let choices = call.choices * u32::try_from(call.question.prompts()).expect("few");
                Ok(Reply::Answer(Answer { id, model, created_s: 1_700_000_000, choices, events }))
            }
            Action::Embed(call) => {
                let vectors = call.texts.iter().map(|_| vec![0.5, -0.5]).collect();
                Ok(Reply::Embedded(Embedded { vectors, tokens: 4 }))
            }
            Action::ModelList => {
                let model = Model { id: "m".into(), object: "model".into(), created: 1, owned_by: "empathd".into() };
                Ok(Reply::Models(ModelList { object: "list".into(), data: vec![model] }))
            }
            _ => Ok(Reply::Granted),
        }
    }
}

impl Appliance for Arc<Fake> {
    fn perform<'a>(&'a self, actor: &'a Actor, action: Action) -> Performing<'a> {
        self.performed.lock().expect("not poisoned").push((actor.principal(), action.kind()));
        Box::pin(async move { self.reply(actor, &action) })
    }

    fn tls_config(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.tls.lock().expect("not poisoned").clone()
    }

    fn certificate(&self, serial: &str) -> CertState {
        self.states.lock().expect("not poisoned").get(serial).copied().unwrap_or(CertState::Unknown)
    }

    fn revocations(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn readiness(&self) -> Readiness {
        let engine = *self.engine.lock().expect("not poisoned");
        Readiness { store: SealState::Unsealed, engine, draining: self.draining.load(Ordering::Relaxed) }
    }

    fn adapter(&self) -> Option<empathd_proto::AdapterId> {
        None
    }

    fn counts(&self) -> Option<(u64, u64)> {
        Some((3, 5))
    }

    fn checkpoint_note(&self) -> Option<String> {
        Some("bm90ZQ==".to_owned())
    }

    fn now_ms(&self) -> u64 {
        now_ms() + self.clock_ahead_ms.load(Ordering::Relaxed)
    }
}

/// More text of the first choice.
pub(super) fn said(text: &str) -> AnswerEvent {
    AnswerEvent::Said { choice: 0, text: text.to_owned(), logprobs: Vec::new() }
}

/// The end of a choice.
pub(super) fn ended(choice: u32) -> AnswerEvent {
    AnswerEvent::Ended { choice, reason: FinishReason::Stop }
}

/// The end of a whole answer.
pub(super) fn finished() -> AnswerEvent {
    AnswerEvent::Finished {
        usage: Usage { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5, ..Usage::default() },
        notes: AnswerNotes {
            adapter: None,
            expert_share: Vec::new(),
            crisis_signal: false,
            crisis_words: None,
            cache: CacheNote::Miss,
            times_ms: TimesMs::default(),
        },
    }
}

fn from_pem(certificate: &str, key: &str) -> Credentials {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
    (certificate, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"))
}

/// A served door.
pub(super) struct Served {
    pub(super) fake: Arc<Fake>,
    pub(super) address: SocketAddr,
    pub(super) drain: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

impl Served {
    pub(super) async fn with(limits: HttpLimits) -> Self {
        let fake = Fake::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let drain = CancellationToken::new();
        let task = tokio::spawn(serve_on(listener, Arc::new(fake.clone()), limits, drain.clone()));
        Self { fake, address, drain, task }
    }

    pub(super) async fn start() -> Self {
        Self::with(HttpLimits::default()).await
    }

    /// A TLS connection, as far as the caller can tell.
    pub(super) async fn connect(
        &self,
        credentials: Option<Credentials>,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.fake.authority.certificate().clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots);
        let config = match credentials {
            Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).expect("fits"),
            None => builder.with_no_client_auth(),
        };
        let socket = TcpStream::connect(self.address).await?;
        let name = "localhost".try_into().expect("a name");
        timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, socket)).await.expect("in time")
    }

    pub(super) async fn ehr(&self) -> TlsStream<TcpStream> {
        let (_, credentials) = self.fake.enroll(ApiRole::Ehr);
        self.connect(Some(credentials), &rustls::version::TLS13).await.expect("connects")
    }

    /// One request on a fresh connection of an `ehr` certificate: the whole response as text.
    pub(super) async fn ask(&self, request: &str) -> String {
        exchange(self.ehr().await, request).await
    }

    pub(super) async fn chat(&self, body: &str) -> String {
        self.ask(&post(body)).await
    }
}

/// Sends a request and reads until the end of the connection.
pub(super) async fn exchange(mut stream: TlsStream<TcpStream>, request: &str) -> String {
    // The server may have hung up before it took everything in.
    let _ = stream.write_all(request.as_bytes()).await;
    rest(&mut stream).await
}

/// Everything up to the end of the connection, however it ends.
pub(super) async fn rest(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection ends in time");
    String::from_utf8(bytes).expect("UTF-8")
}

pub(super) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

pub(super) fn post(body: &str) -> String {
    post_to("/v1/chat/completions", body)
}

pub(super) fn post_to(path: &str, body: &str) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: ");
    format!("{head}{}\r\n\r\n{body}", body.len())
}

/// The body of a response whose length is announced.
pub(super) fn json(response: &str) -> serde_json::Value {
    let (_, body) = response.split_once("\r\n\r\n").expect("a head");
    serde_json::from_str(body).expect("JSON")
}
