//! Connections: how many, for how long, how much of each; TLS first, then HTTP/1.1 on hyper with a timer for every wait.
//! Refuses to know what is asked.

use super::appliance::Appliance;
use super::identity::Peer;
use super::metrics::{self, Lost, Open};
use super::places::{Place, Places};
use super::{Door, routes};
use crate::app::{App, CertState};
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// Largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Largest read buffer of a connection, in bytes.
const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// Most header lines.
const MAX_HEADERS: usize = 64;
/// Pause after an accept that failed, for example because no file descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often timings are moved into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// From telling answers to end until connections are cut.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Limits of the API's door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Most connections.
    pub connections: usize,
    /// Most connections from one address.
    pub connections_per_address: usize,
    /// Milliseconds for a TLS handshake.
    pub handshake_ms: u64,
    /// Milliseconds for the head of a request, from the end of the one before.
    pub head_ms: u64,
    /// Largest body, in bytes.
    pub body_bytes: usize,
    /// Milliseconds between two parts of a body.
    pub body_idle_ms: u64,
    /// Milliseconds for a whole body.
    pub body_total_ms: u64,
    /// Milliseconds for a whole answer.
    pub answer_ms: u64,
    /// Milliseconds after which a connection takes no further request.
    pub connection_age_ms: u64,
    /// Milliseconds that work under way may take when the daemon stops.
    pub drain_ms: u64,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            connections_per_address: 128,
            handshake_ms: 5_000,
            head_ms: 5_000,
            body_bytes: 1024 * 1024,
            body_idle_ms: 10_000,
            body_total_ms: 60_000,
            answer_ms: 300_000,
            connection_age_ms: 3_600_000,
            drain_ms: 20_000,
        }
    }
}

/// Serves the API until `drain` is cancelled and the work under way has ended, at most [`HttpLimits::drain_ms`] later.
/// Meanwhile each new connection gets one response, so that whoever asks is told that the appliance is stopping.
pub async fn serve(listener: TcpListener, app: Arc<App>, limits: HttpLimits, drain: CancellationToken) {
    serve_on(listener, Arc::new(app), limits, drain).await;
}

/// [`serve`] for whatever stands behind the door.
pub(super) async fn serve_on(
    listener: TcpListener,
    appliance: Arc<dyn Appliance>,
    limits: HttpLimits,
    drain: CancellationToken,
) {
    metrics::install();
    let places = Places::new(limits.connections, limits.connections_per_address);
    let (ending, cut) = (CancellationToken::new(), CancellationToken::new());
    let drain_limit = Duration::from_millis(limits.drain_ms);
    let door = Arc::new(Door { appliance, limits, ending: ending.clone(), started: AtomicBool::new(false) });
    let server = Server { router: routes::router(door.clone()), door, drain: drain.clone(), cut: cut.clone() };
    let (connections, late) = (TaskTracker::new(), TaskTracker::new());
    tokio::select! {
        () = drain.cancelled() => {}
        never = server.accept(&listener, &places, &connections) => match never {},
    }
    connections.close();
    let ended = tokio::select! {
        ended = timeout(drain_limit, connections.wait()) => ended.is_ok(),
        never = server.accept(&listener, &places, &late) => match never {},
    };
    drop(listener);
    if !ended {
        ending.cancel();
    }
    late.close();
    let all = async { tokio::join!(connections.wait(), late.wait()) };
    if timeout(LAST_WORDS, all).await.is_err() {
        cut.cancel();
        tokio::join!(connections.wait(), late.wait());
    }
    info!("the API takes no more connections");
}

async fn pause(error: &io::Error) {
    warn!(kind = ?error.kind(), "a connection could not be accepted");
    sleep(ACCEPT_PAUSE).await;
}

/// What every connection shares.
#[derive(Clone)]
struct Server {
    door: Arc<Door>,
    router: Router,
    /// No further requests.
    drain: CancellationToken,
    /// Not even the one under way.
    cut: CancellationToken,
}

impl Server {
    /// Takes connections for as long as it is awaited.
    async fn accept(&self, listener: &TcpListener, places: &Arc<Places>, connections: &TaskTracker) -> Infallible {
        let mut upkeep = interval(UPKEEP);
        loop {
            let (socket, address) = tokio::select! {
                _ = upkeep.tick() => { metrics::upkeep(); continue }
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => { pause(&error).await; continue }
                },
            };
            match places.take(address.ip()) {
                Some(place) => _ = connections.spawn(self.clone().connection(socket, place)),
                None => metrics::connection_lost(Lost::NoPlace),
            }
        }
    }

    /// One connection, from its first byte to its last.
    async fn connection(self, socket: TcpStream, place: Place) {
        let _open = (place, Open::connection());
        match self.handshake(socket).await {
            Err(why) => {
                metrics::connection_lost(why);
                debug!(reason = why.as_str(), "a connection was refused");
            }
            Ok((stream, peer)) => tokio::select! {
                () = self.cut.cancelled() => {}
                () = self.revoked(&peer) => info!(certificate = peer.number, "a connection was cut: certificate refused"),
                () = self.requests(stream, peer.clone()) => {}
            },
        }
    }

    /// Nothing of HTTP is read before the certificate has been verified.
    async fn handshake(&self, socket: TcpStream) -> Result<(TlsStream<TcpStream>, Arc<Peer>), Lost> {
        let config = self.door.appliance.tls_config().ok_or(Lost::Sealed)?;
        let _ = socket.set_nodelay(true);
        let limit = Duration::from_millis(self.door.limits.handshake_ms);
        let accepting = TlsAcceptor::from(config).accept(socket);
        let stream = timeout(limit, accepting).await.map_err(|_| Lost::Timeout)?.map_err(|error| lost(&error))?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = certificates.first().and_then(|der| Peer::from_der(der)).ok_or(Lost::BadCertificate)?;
        Ok((stream, Arc::new(peer)))
    }

    /// Returns when a certificate that was good is good no longer, or when the store is sealed.
    async fn revoked(&self, peer: &Peer) {
        let mut changes = self.door.appliance.revocations();
        let good = || self.door.appliance.certificate(&peer.serial) == CertState::Valid;
        if !good() {
            // It gets its refusal in words, once, and the connection is closed after it.
            return std::future::pending().await;
        }
        while good() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Requests one after another until the caller leaves, the connection is old or the daemon drains.
    async fn requests(&self, stream: TlsStream<TcpStream>, peer: Arc<Peer>) {
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let handled = routes::handle(self.door.clone(), peer.clone(), self.router.clone(), request);
            async { Ok::<_, Infallible>(handled.await) }
        });
        let limits = &self.door.limits;
        let late = self.drain.is_cancelled();
        let connection = http1::Builder::new()
            .keep_alive(!late)
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(limits.head_ms))
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(MAX_BUFFER_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let age = Duration::from_millis(limits.connection_age_ms);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            // A connection that has not asked yet would be closed by this before it could.
            () = either(self.drain.cancelled(), sleep(age)), if !late => {
                connection.as_mut().graceful_shutdown();
                // One more answer and a minute to take it in; then a caller that does not read is cut.
                let grace = Duration::from_millis(limits.answer_ms) + Duration::from_secs(60);
                timeout(grace, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            debug!(timeout = error.is_timeout(), broken = error.is_parse(), "a connection ended early");
        }
    }
}

/// Waits for the first of two things.
async fn either(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    tokio::select! { () = a => {}, () = b => {} }
}

/// Why a handshake failed.
fn lost(error: &io::Error) -> Lost {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::NoCertificatesPresented) => Lost::NoCertificate,
        Some(rustls::Error::InvalidCertificate(_)) => Lost::BadCertificate,
        _ => Lost::Protocol,
    }
}
