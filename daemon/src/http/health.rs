//! `GET /livez`, `GET /readyz` and `GET /startupz`, for any enrolled certificate. Says how the appliance is and which part
//! of it is at fault, never what it holds.

use super::Door;
use super::problem::Refusal;
use super::routes::Caller;
use crate::action::Action;
use crate::app::Readiness;
use axum::Json;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use empathd_proto::admin::{EngineState, SealState};
use empathd_proto::{ErrorCode, Problem};
use hyper::StatusCode;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Body of `/readyz`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Health {
    status: &'static str,
    store: SealState,
    engine: EngineState,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// 200 as long as the process answers at all.
pub(super) async fn live(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
) -> Result<Response, Refusal> {
    permitted(door.appliance.perform(&actor, Action::Health).await.map(drop))?;
    Ok(Json(serde_json::json!({ "status": "live" })).into_response())
}

/// 200 when answers can be given, else 503 with the part that cannot.
pub(super) async fn ready(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
) -> Result<Response, Refusal> {
    permitted(door.appliance.perform(&actor, Action::Health).await.map(drop))?;
    Ok(told(look(&door)))
}

/// As [`ready`] until it was ready once; 200 ever after, whatever becomes of it.
pub(super) async fn startup(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
) -> Result<Response, Refusal> {
    permitted(door.appliance.perform(&actor, Action::Health).await.map(drop))?;
    let readiness = look(&door);
    if door.started.load(Ordering::Relaxed) {
        return Ok(Json(serde_json::json!({ "status": "started" })).into_response());
    }
    Ok(told(readiness))
}

/// How it is, and a note of it when it was never ready before.
fn look(door: &Door) -> Readiness {
    let readiness = door.appliance.readiness();
    if readiness.is_ready() {
        door.started.store(true, Ordering::Relaxed);
    }
    readiness
}

fn told(readiness: Readiness) -> Response {
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health(readiness))).into_response()
}

fn health(readiness: Readiness) -> Health {
    let status = match readiness.store {
        SealState::Unsealed if readiness.is_ready() => "ready",
        SealState::Unsealed => "degraded",
        SealState::Sealed | SealState::Uninitialised => "sealed",
    };
    Health { status, store: readiness.store, engine: readiness.engine, reason: reason(readiness) }
}

/// What keeps it from answering; the first of several.
fn reason(Readiness { store, engine, draining }: Readiness) -> Option<&'static str> {
    match (store, engine) {
        _ if draining => Some("the appliance is stopping"),
        (SealState::Uninitialised, _) => Some("the store has not been made"),
        (SealState::Sealed, _) => Some("the store is sealed"),
        (_, EngineState::Down) => Some("the engine is not connected"),
        (_, EngineState::Loading) => Some("the engine is loading its base model or warming up"),
        (_, EngineState::Stuck) => Some("the engine has answers and takes no step"),
        (_, EngineState::Ready) => None,
    }
}

/// A caller who may not ask is refused; a state that keeps the appliance from its work is the answer, not an error.
fn permitted(result: Result<(), Problem>) -> Result<(), Problem> {
    result.or_else(|problem| match problem.code {
        ErrorCode::Unauthenticated | ErrorCode::Forbidden | ErrorCode::Internal => Err(problem),
        _ => Ok(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_follows_the_state() {
        let of = |store, engine, draining| health(Readiness { store, engine, draining });
        let word = |store, engine, draining| of(store, engine, draining).status;
        let why = |engine, draining| of(SealState::Unsealed, engine, draining).reason.unwrap_or_default();
        assert_eq!(word(SealState::Unsealed, EngineState::Ready, false), "ready");
        assert_eq!(word(SealState::Unsealed, EngineState::Down, false), "degraded");
        assert_eq!(word(SealState::Unsealed, EngineState::Ready, true), "degraded");
        assert_eq!(word(SealState::Sealed, EngineState::Ready, false), "sealed");
        assert_eq!(word(SealState::Unsealed, EngineState::Stuck, false), "degraded");
        assert!(why(EngineState::Stuck, false).contains("no step"));
        assert!(why(EngineState::Ready, true).contains("stopping"));
        assert!(why(EngineState::Ready, false).is_empty());
    }
}
