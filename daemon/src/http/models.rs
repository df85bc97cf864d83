//! `GET /v1/models`. Knows nothing of what a model is.

use super::Door;
use super::problem::{Refusal, unexpected_reply};
use super::routes::Caller;
use crate::action::Action;
use crate::app::Reply;
use axum::Json;
use axum::extract::{Extension, State};
use empathd_proto::chat::ModelList;
use std::sync::Arc;

pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
) -> Result<Json<ModelList>, Refusal> {
    match door.appliance.perform(&actor, Action::ModelList).await? {
        Reply::Models(models) => Ok(Json(models)),
        _ => Err(unexpected_reply().into()),
    }
}
