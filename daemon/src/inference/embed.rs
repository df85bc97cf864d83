//! Embeddings: texts to the engine's model of embeddings, vectors back. How they are written is not known here.

use super::call::EmbedCall;
use crate::app::App;
use crate::engine::link::Event;
use crate::engine::{self, Embedder, Ready};
use crate::problem::defect;
use empathd_proto::engine::{FromEngineBody, ToEngineBody};
use empathd_proto::generate::Embedded;
use empathd_proto::problem::{ErrorCode, Problem};
use std::time::Duration;

/// Name of the model of embeddings.
pub(crate) const EMBEDDER: &str = "all-MiniLM-L6-v2";
/// Its short name.
const SHORT: &str = "minilm";
/// Requests that may be with the engine at once; further ones are refused.
pub(super) const UNDER_WAY_MAX: usize = 4;
/// How long the engine may take over one request.
const ENGINE_WITHIN: Duration = Duration::from_secs(60);

/// The vectors of the texts, in their order.
pub(crate) async fn embed(app: &App, call: EmbedCall) -> Result<Embedded, Problem> {
    if !call.model.eq_ignore_ascii_case(EMBEDDER) && !call.model.eq_ignore_ascii_case(SHORT) {
        let next = format!("Ask for \"{EMBEDDER}\"; GET /v1/models lists all.");
        return Err(Problem::new(ErrorCode::NotFound, "No model of embeddings of that name answers here.", next));
    }
    let ready = app.engine.ready()?;
    let width = width(&ready)?;
    if call.dimensions.is_some_and(|dimensions| dimensions != width) {
        let detail = format!("`dimensions` can only be {width}, the width of the model.");
        return Err(Problem::new(ErrorCode::BadRequest, detail, "Leave `dimensions` out."));
    }
    let _permit = app.inference.embedding.try_acquire().map_err(|_| {
        let next = "Try again later; the header Retry-After says when.";
        Problem::new(ErrorCode::Busy, "As many embeddings as can be are being made.", next).after_s(1)
    })?;
    let texts = call.texts.len();
    let asked = async {
        let mut work = ready.link.begin(ToEngineBody::Embed(call.texts), 1).await?;
        work.next().await
    };
    match tokio::time::timeout(ENGINE_WITHIN, asked).await {
        Ok(Ok(Event::Said(FromEngineBody::Embedded(embedded)))) if embedded.vectors.len() == texts => Ok(embedded),
        Ok(Ok(Event::Said(FromEngineBody::Failed(failure)))) => Err(engine::failed(&failure)),
        Ok(Ok(_)) => Err(defect("The engine answered out of turn.")),
        Ok(Err(_)) => Err(engine::lost()),
        Err(_) => {
            Err(Problem::new(ErrorCode::Timeout, "The embeddings took too long.", "Send fewer or shorter texts."))
        }
    }
}

/// Numbers of one vector, when the model is there.
pub(super) fn width(ready: &Ready) -> Result<u32, Problem> {
    let unavailable = |detail: &str, next: &str| Problem::new(ErrorCode::EngineUnavailable, detail, next);
    match ready.embedder() {
        Embedder::Ready { width } => Ok(width),
        Embedder::Loading => {
            Err(unavailable("The model of embeddings is being loaded.", "Try again in a few seconds."))
        }
        Embedder::Failed(why) => {
            let detail = format!("The model of embeddings cannot be used: {why}.");
            Err(unavailable(&detail, "Check engine.embedder in the configuration and its files."))
        }
        Embedder::None => {
            let next = "Install the package empathd-model-minilm, or set engine.embedder in the configuration to the \
                        model.safetensors of all-MiniLM-L6-v2, config.json and tokenizer.json beside it.";
            Err(Problem::new(ErrorCode::NotFound, "There is no model of embeddings.", next))
        }
    }
}
