//! The clinic's record system: an HTTPS client with a certificate, and strangers who have none. Plain calls block; a
//! stream hands over each piece of text as it comes. It knows the API from outside only.

use anyhow::{Context, bail, ensure};
use empathd_proto::chat::{AnswerNotes, ChatChunk, Usage};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest wait for a whole answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);
/// Longest wait for a stranger to be turned away.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
/// Most bytes read of one body.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// What the system may take in for a caller that shall be noticed when it does not read.
const NARROW_BYTES: u32 = 4096;
/// What a stranger asks for.
const KNOCK: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A client of the API.
pub struct Ehr {
    runtime: Runtime,
    caller: Caller,
}

/// The same client for programs that run many requests at once.
#[derive(Clone)]
pub struct Caller {
    address: String,
    tls: TlsConnector,
    /// Bytes that the system may take in before they are read; its own choice when absent.
    window: Option<u32>,
}

/// A connection that is kept from one request to the next, as a record system keeps its own.
pub struct Line {
    sender: SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
}

/// The end of a streamed answer: the answer, or the refusal before it began.
#[derive(Debug, Clone)]
pub enum Answered {
    /// It was given to its end.
    Whole(Streamed),
    /// It was refused.
    Refused(Reply),
}

/// A plain answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body, as JSON when it is JSON and as text otherwise.
    pub body: Value,
}

/// A streamed answer.
#[derive(Debug, Clone)]
pub struct Streamed {
    /// The whole text.
    pub text: String,
    /// Milliseconds until its first piece.
    pub ttft_ms: f64,
    /// Milliseconds until its end.
    pub total_ms: f64,
    /// Tokens used, when the stream told.
    pub usage: Option<Usage>,
    /// What the appliance adds.
    pub notes: Option<AnswerNotes>,
    /// Why it ended.
    pub finish_reason: Option<Value>,
}

/// How a caller without a certificate fared.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Bytes of the application that came back. Alerts of TLS are none.
    pub application_bytes: usize,
    /// How the connection ended.
    pub ended: String,
}

impl Ehr {
    /// A client of the API at `api` with `NAME.pem`, `NAME.key` and `ca.pem` of `folder`.
    ///
    /// # Errors
    /// When the files are not a certificate, its key and an authority.
    pub fn new(api: &str, folder: &Path, name: &str) -> anyhow::Result<Self> {
        let chain = certificates(&folder.join(format!("{name}.pem")))?;
        let key_path = folder.join(format!("{name}.key"));
        let key = private_key(&key_path)?;
        let config = config_builder(&folder.join("ca.pem"))?
            .with_client_auth_cert(chain, key)
            .with_context(|| format!("{} does not fit its certificate", key_path.display()))?;
        Self::with_config(api, config)
    }

    fn with_config(api: &str, config: ClientConfig) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let caller = Caller { address: api.to_owned(), tls: TlsConnector::from(Arc::new(config)), window: None };
        Ok(Self { runtime, caller })
    }

    /// The same client for programs that have a runtime of their own.
    #[must_use]
    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// The same client, for which the system takes in no more than a few pages before they are read: whoever answers it
    /// notices at once that it does not read.
    #[must_use]
    pub fn narrow(mut self) -> Self {
        self.caller.window = Some(NARROW_BYTES);
        self
    }

    /// Another one with the same certificate, for another thread.
    ///
    /// # Errors
    /// When the system gives no runtime.
    pub fn again(&self) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, caller: self.caller.clone() })
    }

    /// `GET path`.
    ///
    /// # Errors
    /// When the connection fails; a status of refusal is an answer.
    pub fn get(&self, path: &str) -> anyhow::Result<Reply> {
        self.call(Method::GET, path, Vec::new())
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Ehr::get`].
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.call(Method::POST, path, serde_json::to_vec(body)?)
    }

    /// `POST path` with bytes that need not be JSON.
    ///
    /// # Errors
    /// As [`Ehr::get`].
    pub fn post_bytes(&self, path: &str, body: Vec<u8>) -> anyhow::Result<Reply> {
        self.call(Method::POST, path, body)
    }

    fn call(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Reply> {
        self.runtime.block_on(async {
            let exchange = async { self.caller.connect().await?.exchange(method, path, body).await };
            tokio::time::timeout(ANSWER_WITHIN, exchange).await.context("no answer in time")?
        })
    }

    /// A streamed answer to a chat; `on_text` is called with each piece as it comes.
    ///
    /// # Errors
    /// When it is refused, breaks off, or ends without `[DONE]`.
    pub fn stream(&self, chat: &Value, on_text: &mut dyn FnMut(&str)) -> anyhow::Result<Streamed> {
        let answered = self.runtime.block_on(async {
            let work = async { self.caller.connect().await?.stream(chat, on_text).await };
            tokio::time::timeout(ANSWER_WITHIN, work).await.context("the stream did not end in time")?
        })?;
        match answered {
            Answered::Whole(answer) => Ok(answer),
            Answered::Refused(reply) => bail!("the answer was refused with {}: {}", reply.status, reply.body),
        }
    }

    /// Asks for a streamed answer and leaves after so many bytes of it; 0 is right after the question.
    ///
    /// # Errors
    /// When the question cannot be asked.
    pub fn leave_after(&self, chat: &Value, bytes: usize) -> anyhow::Result<()> {
        self.runtime.block_on(async { self.caller.connect().await?.leave_after(chat, bytes).await })
    }
}

impl Caller {
    /// A fresh connection.
    ///
    /// # Errors
    /// When there is none to be had.
    pub async fn connect(&self) -> anyhow::Result<Line> {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(self.open().await?)).await?;
        Ok(Line { sender, connection: tokio::spawn(async move { drop(connection.await) }) })
    }

    /// The bare stream of a fresh connection.
    async fn open(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let address: SocketAddr = self.address.parse().with_context(|| format!("{} is no address", self.address))?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(bytes) = self.window {
            socket.set_recv_buffer_size(bytes)?;
        }
        let connected = socket.connect(address).await;
        let tcp = connected.with_context(|| format!("cannot reach {}", self.address))?;
        tcp.set_nodelay(true)?;
        self.tls.connect(server_name()?, tcp).await.context("the TLS handshake failed")
    }

    /// Asks for a streamed answer and takes it in byte by byte, with a pause after each, for as long as it is awaited.
    ///
    /// # Errors
    /// When the question cannot be asked or is refused, or the answer ends.
    pub async fn read_slowly(&self, chat: &Value, pause: Duration) -> anyhow::Result<()> {
        let mut tls = self.open().await?;
        let body = streamed(chat)?;
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        tls.write_all(format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes()).await?;
        tls.write_all(&body).await?;
        let mut status = [0; 12];
        tls.read_exact(&mut status).await?;
        ensure!(status == *b"HTTP/1.1 200", "refused: {}", String::from_utf8_lossy(&status));
        loop {
            tls.read_u8().await.context("the answer ended")?;
            tokio::time::sleep(pause).await;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Line {
    /// One request and its plain answer.
    ///
    /// # Errors
    /// When the connection fails; a status of refusal is an answer.
    pub async fn exchange(&mut self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Reply> {
        let response = self.send(method, path, body).await?;
        reply(response).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await.context("the connection is gone")?;
        self.sender.send_request(request).await.context("the request was not answered")
    }

    /// A streamed answer to a chat; `on_text` is called with each piece as it comes.
    ///
    /// # Errors
    /// When it breaks off or ends without `[DONE]`.
    pub async fn stream(&mut self, chat: &Value, on_text: &mut dyn FnMut(&str)) -> anyhow::Result<Answered> {
        let began = Instant::now();
        let elapsed_ms = || began.elapsed().as_secs_f64() * 1000.0;
        let response = self.send(Method::POST, "/v1/chat/completions", streamed(chat)?).await?;
        if !response.status().is_success() {
            return Ok(Answered::Refused(reply(response).await?));
        }
        let mut body = response.into_body();
        let mut events = Events::default();
        let mut answer = Streamed {
            text: String::new(),
            ttft_ms: 0.0,
            total_ms: 0.0,
            usage: None,
            notes: None,
            finish_reason: None,
        };
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the stream broke off")?;
            let Some(bytes) = frame.data_ref() else { continue };
            for event in events.feed(bytes)? {
                let new = answer.take(&event)?;
                if !new.is_empty() {
                    if answer.text.is_empty() {
                        answer.ttft_ms = elapsed_ms();
                    }
                    on_text(&new);
                    answer.text.push_str(&new);
                }
            }
        }
        ensure!(events.done, "the stream ended without [DONE]");
        answer.total_ms = elapsed_ms();
        Ok(Answered::Whole(answer))
    }

    /// Asks for a streamed answer and cuts the connection after so many bytes of it; 0 is right after the question.
    ///
    /// # Errors
    /// When the question cannot be asked.
    pub async fn leave_after(mut self, chat: &Value, bytes: usize) -> anyhow::Result<()> {
        if bytes == 0 {
            // Long enough for the question to be read, too short for an answer that is worth having.
            let asking = self.send(Method::POST, "/v1/chat/completions", streamed(chat)?);
            let _ = tokio::time::timeout(Duration::from_millis(5), asking).await;
        } else {
            let mut body = self.send(Method::POST, "/v1/chat/completions", streamed(chat)?).await?.into_body();
            let mut seen = 0;
            while seen < bytes {
                let Some(Ok(frame)) = body.frame().await else { break };
                seen += frame.data_ref().map_or(0, Bytes::len);
            }
        }
        // The socket is closed when its task has ended.
        self.connection.abort();
        let _ = (&mut self.connection).await;
        Ok(())
    }
}

/// The body that asks for the same chat as a stream.
fn streamed(chat: &Value) -> anyhow::Result<Vec<u8>> {
    let mut chat = chat.clone();
    chat["stream"] = true.into();
    chat["stream_options"] = serde_json::json!({ "include_usage": true });
    Ok(serde_json::to_vec(&chat)?)
}

async fn reply(response: Response<Incoming>) -> anyhow::Result<Reply> {
    let status = response.status().as_u16();
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let bytes = http_body_util::Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
    let bytes = bytes.map_err(|error| anyhow::anyhow!("the body broke off: {error}"))?.to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
    Ok(Reply { status, headers, body })
}

impl Reply {
    /// The value of a header; its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

impl Streamed {
    /// Takes in one event and gives its new text.
    fn take(&mut self, event: &str) -> anyhow::Result<String> {
        let value: Value = serde_json::from_str(event).with_context(|| format!("an event is not JSON: {event}"))?;
        ensure!(value.get("choices").is_some(), "the stream reports a problem: {event}");
        let chunk: ChatChunk =
            serde_json::from_value(value.clone()).with_context(|| format!("not a chunk: {event}"))?;
        self.usage = chunk.usage.or(self.usage);
        self.notes = chunk.empathd.or(self.notes.take());
        let mut new = String::new();
        for (index, choice) in chunk.choices.into_iter().enumerate() {
            if choice.finish_reason.is_some() {
                self.finish_reason = Some(value["choices"][index]["finish_reason"].clone());
            }
            new.push_str(&choice.delta.content.unwrap_or_default());
        }
        Ok(new)
    }
}

/// Server-sent events, put together from pieces of any size.
#[derive(Default)]
struct Events {
    rest: Vec<u8>,
    done: bool,
}

impl Events {
    /// The data of the events that `bytes` completed.
    fn feed(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        self.rest.extend_from_slice(bytes);
        ensure!(self.rest.len() <= MAX_BODY_BYTES, "an event has no end");
        let mut events = Vec::new();
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.rest.drain(..end + 2).collect();
            for line in String::from_utf8(event)?.lines() {
                match line.strip_prefix("data:").map(str::trim) {
                    Some("[DONE]") => self.done = true,
                    Some(data) => events.push(data.to_owned()),
                    None => {}
                }
            }
        }
        Ok(events)
    }
}

/// Comes over TLS without a certificate, asks, and counts what comes back.
///
/// # Errors
/// When nobody listens at all, or the connection stays open without an answer.
pub fn without_certificate(api: &str, ca: &Path) -> anyhow::Result<Refusal> {
    let config = config_builder(ca)?.with_no_client_auth();
    let ehr = Ehr::with_config(api, config)?;
    ehr.runtime.block_on(async {
        let tcp = TcpStream::connect(api).await.with_context(|| format!("cannot reach {api}"))?;
        match ehr.caller.tls.connect(server_name()?, tcp).await {
            Ok(tls) => knock(tls).await,
            Err(error) => Ok(Refusal { application_bytes: 0, ended: error.to_string() }),
        }
    })
}

/// Comes without TLS, asks, and counts what comes back that is not a TLS alert.
///
/// # Errors
/// As [`without_certificate`].
pub fn without_tls(api: &str) -> anyhow::Result<Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(async { knock(TcpStream::connect(api).await.with_context(|| format!("cannot reach {api}"))?).await })
}

async fn knock(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> anyhow::Result<Refusal> {
    /// First byte of a TLS record that holds an alert (RFC 8446, 5.1).
    const ALERT: u8 = 0x15;
    // Writing may fail when the door is already shut; reading then says so, too.
    let _ = stream.write_all(KNOCK).await;
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(REFUSED_WITHIN, stream.read_to_end(&mut bytes)).await;
    let ended = match read.context("the connection was left open")? {
        Ok(_) => "closed".to_owned(),
        Err(error) => error.to_string(),
    };
    let application_bytes = if bytes.first() == Some(&ALERT) { 0 } else { bytes.len() };
    Ok(Refusal { application_bytes, ended })
}

fn server_name() -> anyhow::Result<ServerName<'static>> {
    Ok(ServerName::try_from("localhost")?)
}

fn config_builder(ca: &Path) -> anyhow::Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).with_context(|| format!("{} holds no authority", ca.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = rustls_pemfile::certs(&mut open(path)?).collect();
    let found = found.with_context(|| format!("{} is not PEM", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

fn private_key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    rustls_pemfile::private_key(&mut open(path)?)?.with_context(|| format!("{} holds no private key", path.display()))
}

fn open(path: &Path) -> anyhow::Result<BufReader<std::fs::File>> {
    Ok(BufReader::new(std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_from_pieces_of_any_size() {
        let stream = b"data: {\"a\":1}\n\n: keep-alive\n\ndata: {\"b\":2}\n\ndata: [DONE]\n\n";
        for size in [1, 3, stream.len()] {
            let mut events = Events::default();
            let mut found = Vec::new();
            for piece in stream.chunks(size) {
                found.extend(events.feed(piece).expect("text"));
            }
            assert_eq!(found, ["{\"a\":1}", "{\"b\":2}"]);
            assert!(events.done);
        }
    }
}
