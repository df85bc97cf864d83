//! The table of routes, and what every request and response have in common. Knows no action's inside.

use super::identity::Peer;
use super::problem::Refusal;
use super::{Door, chat, completions, embeddings, health, metrics, models, request_id};
use crate::action::Action;
use crate::actor::Actor;
use crate::app::CertState;
use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use empathd_proto::{ErrorCode, Problem};
use hyper::Request;
use hyper::header::{CACHE_CONTROL, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER};
use std::sync::Arc;
use tokio::time::Instant;
use tower::ServiceExt;

/// Newest audit checkpoint, so that callers can hold the appliance to it.
const CHECKPOINT: HeaderName = HeaderName::from_static("empathd-audit-checkpoint");
/// The request's id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Seconds after which a caller may try again when too much work waits.
const RETRY_BUSY_S: u64 = 2;
/// Seconds after which a caller may try again when the appliance is not ready.
const RETRY_UNAVAILABLE_S: u64 = 10;

/// Who asks; put on each request.
#[derive(Clone)]
pub(super) struct Caller(pub(super) Actor);

/// The routes, as metrics name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Chat,
    Completions,
    Embeddings,
    Models,
    Model,
    Live,
    Ready,
    Startup,
    Metrics,
    Other,
}

impl Route {
    const NAMED: &[Route] = &[
        Route::Chat,
        Route::Completions,
        Route::Embeddings,
        Route::Models,
        Route::Model,
        Route::Live,
        Route::Ready,
        Route::Startup,
        Route::Metrics,
    ];

    /// Its path; requests for any other path are all called `other`.
    pub(super) const fn path(self) -> &'static str {
        match self {
            Route::Chat => "/v1/chat/completions",
            Route::Completions => "/v1/completions",
            Route::Embeddings => "/v1/embeddings",
            Route::Models => "/v1/models",
            Route::Model => "/v1/models/{*id}",
            Route::Live => "/livez",
            Route::Ready => "/readyz",
            Route::Startup => "/startupz",
            Route::Metrics => "/metrics",
            Route::Other => "other",
        }
    }

    fn of(path: &str) -> Self {
        if path.strip_prefix("/v1/models/").is_some_and(|id| !id.is_empty()) {
            return Route::Model;
        }
        Self::NAMED.iter().copied().find(|route| route.path() == path).unwrap_or(Route::Other)
    }
}

/// The table.
pub(super) fn router(door: Arc<Door>) -> Router {
    Router::new()
        .route(Route::Chat.path(), post(chat::complete))
        .route(Route::Completions.path(), post(completions::complete))
        .route(Route::Embeddings.path(), post(embeddings::embed))
        .route(Route::Models.path(), get(models::list))
        .route(Route::Model.path(), get(models::one))
        .route(Route::Live.path(), get(health::live))
        .route(Route::Ready.path(), get(health::ready))
        .route(Route::Startup.path(), get(health::startup))
        .route(Route::Metrics.path(), get(metrics::read))
        .method_not_allowed_fallback(wrong_method)
        .fallback(no_such_route)
        .with_state(door)
}

/// One request from its head to its response's head.
pub(super) async fn handle<B>(door: Arc<Door>, peer: Arc<Peer>, router: Router, request: Request<B>) -> Response
where
    B: hyper::body::Body<Data = axum::body::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    let started = Instant::now();
    let route = Route::of(request.uri().path());
    let mut response = match admit(&door, &peer).await {
        Ok(actor) => {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Caller(actor));
            // A router's error type has no values.
            router.oneshot(request).await.unwrap_or_else(|never| match never {})
        }
        Err(problem) => {
            let mut response = Refusal(problem).into_response();
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        }
    };
    finish(&door, &mut response);
    metrics::request(route, response.status(), started.elapsed());
    response
}

/// The actor of a connection, if its certificate is still good for anything. A refusal is recorded.
async fn admit(door: &Door, peer: &Peer) -> Result<Actor, Problem> {
    let Peer { serial, number, .. } = peer;
    let identity = match &peer.identity {
        Ok(identity) => identity,
        Err(error) => {
            let next = "Use a certificate that this appliance issued: empathctl cert enroll";
            let problem = Problem::new(ErrorCode::Forbidden, sentence(error), next);
            return Err(recorded(door, &Actor::Stranger { number: *number }, problem).await.0);
        }
    };
    let (name, role) = (identity.name.clone(), identity.role);
    let actor = Actor::Certificate { serial: serial.clone(), number: *number, name, role };
    let detail = match door.appliance.certificate(serial) {
        _ if door.appliance.tls_config().is_none() => return Err(sealed()),
        CertState::Valid if door.appliance.now_ms() < peer.not_after_ms => return Ok(actor),
        CertState::Valid => "The certificate has expired.",
        CertState::Revoked => "The certificate was revoked.",
        CertState::Unknown => "The certificate is not enrolled.",
    };
    let next = "Ask the clinic's administrator for a new one: empathctl cert enroll";
    Err(recorded(door, &actor, Problem::new(ErrorCode::Unauthenticated, detail, next)).await.0)
}

/// The keys left memory after this connection had begun.
fn sealed() -> Problem {
    Problem::new(ErrorCode::Sealed, "The store is sealed.", "Ask the clinic's administrator to run: empathctl unseal")
}

fn sentence(error: &impl std::fmt::Display) -> String {
    format!("The caller cannot be told from its certificate: {error}.")
}

async fn no_such_route(State(door): State<Arc<Door>>, Extension(Caller(actor)): Extension<Caller>) -> Refusal {
    let next = "The routes are listed in docs/API.md";
    recorded(&door, &actor, Problem::new(ErrorCode::NotFound, "There is no such route.", next)).await
}

async fn wrong_method(State(door): State<Arc<Door>>, Extension(Caller(actor)): Extension<Caller>) -> Refusal {
    let next = "The header Allow names the method of this route";
    let problem = Problem::new(ErrorCode::MethodNotAllowed, "This route does not answer that method.", next);
    recorded(&door, &actor, problem).await
}

/// A request that never becomes an action, recorded as such. When recording it fails, that is the answer.
pub(super) async fn recorded(door: &Door, actor: &Actor, problem: Problem) -> Refusal {
    match door.appliance.perform(actor, Action::Unknown).await {
        Err(worse) if worse.status >= 500 => Refusal(worse),
        _ => Refusal(problem),
    }
}

/// Headers of every response.
fn finish(door: &Door, response: &mut Response) {
    let retry_s = match response.status().as_u16() {
        429 => Some(RETRY_BUSY_S),
        503 => Some(RETRY_UNAVAILABLE_S),
        _ => None,
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = retry_s {
        // What was computed says more.
        headers.entry(RETRY_AFTER).or_insert(seconds.into());
    }
    if !headers.contains_key(REQUEST_ID) {
        headers.extend(id_value(&request_id().to_string()).map(|value| (REQUEST_ID, value)));
    }
    let note = door.appliance.checkpoint_note();
    headers.extend(note.as_deref().and_then(id_value).map(|value| (CHECKPOINT, value)));
}

/// A text that the appliance made, as a header value.
pub(super) fn id_value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}
