//! `GET /v1/models` and `GET /v1/models/{id}`. Knows nothing of what a model is.

use super::Door;
use super::problem::{Refusal, unexpected_reply};
use super::routes::Caller;
use crate::action::Action;
use crate::actor::Actor;
use crate::app::Reply;
use axum::Json;
use axum::extract::{Extension, Path, State};
use empathd_proto::chat::{Model, ModelList};
use empathd_proto::{ErrorCode, Problem};
use std::sync::Arc;

pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
) -> Result<Json<ModelList>, Refusal> {
    Ok(Json(models(&door, &actor).await?))
}

pub(super) async fn one(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Model>, Refusal> {
    let models = models(&door, &actor).await?;
    let found = models.data.into_iter().find(|model| model.id == id);
    found.map(Json).ok_or_else(|| {
        Problem::new(ErrorCode::NotFound, "No model of that name answers here.", "GET /v1/models lists all.").into()
    })
}

async fn models(door: &Door, actor: &Actor) -> Result<ModelList, Refusal> {
    match door.appliance.perform(actor, Action::ModelList).await? {
        Reply::Models(models) => Ok(models),
        _ => Err(unexpected_reply().into()),
    }
}
