//! Adapter generations: which there are, which one answers, and that the engine has it in memory. Only what passed its
//! gate is loaded for answers. How a generation is trained or judged is not known here.

mod card;
mod description;
pub(crate) mod export;
#[cfg(test)]
mod tests;

pub(crate) use description::{Description, Lineage};

use crate::app::{Acted, App};
use crate::engine::link::{Event, Work, head_of};
use crate::engine::{self, Ready};
use crate::problem::{self, Fault, defect};
use crate::stored;
use empathd_proto::admin::AdminReply;
use empathd_proto::audit::AuditObject;
use empathd_proto::engine::{FromEngineBody, ToEngineBody};
use empathd_proto::ids::AdapterId;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_proto::report::{AdapterState, AdapterSummary, GateReport};
use empathd_store::{AuditDraft, Store, StoredAdapter};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use zeroize::Zeroizing;

/// Most events of a load that wait.
const WAITING_MAX: usize = 4;
/// How long the engine may take over one generation.
const ENGINE_WITHIN: Duration = Duration::from_secs(120);

/// Which generation answers, and which the engine has.
pub(crate) struct Adapters {
    active: watch::Sender<Option<AdapterId>>,
    /// By connection: what one engine had, the next one has not.
    loaded: Mutex<HashSet<(u64, AdapterId)>>,
    loading: tokio::sync::Mutex<()>,
}

impl Default for Adapters {
    fn default() -> Self {
        Self { active: watch::Sender::new(None), loaded: Mutex::default(), loading: tokio::sync::Mutex::default() }
    }
}

impl Adapters {
    /// The generation that answers; `None` for the plain base model, and while sealed.
    pub(crate) fn active(&self) -> Option<AdapterId> {
        *self.active.borrow()
    }

    fn is_loaded(&self, epoch: u64, id: AdapterId) -> bool {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).contains(&(epoch, id))
    }

    fn set_loaded(&self, epoch: u64, id: AdapterId) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|(known, _)| *known >= epoch);
        loaded.insert((epoch, id));
    }

    fn take_loaded(&self, epoch: u64, only: Option<AdapterId>) -> Vec<AdapterId> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = |(known, id): &(u64, AdapterId)| *known == epoch && only.is_none_or(|only| only == *id);
        let taken: Vec<_> = loaded.iter().copied().filter(chosen).collect();
        loaded.retain(|entry| !chosen(entry));
        taken.into_iter().map(|(_, id)| id).collect()
    }
}

pub(crate) fn summary(stored: &StoredAdapter) -> Result<AdapterSummary, Problem> {
    let description: Description = stored::decode(&stored.body)?;
    Ok(AdapterSummary {
        id: stored.id,
        state: stored.state,
        dataset: stored.dataset,
        job: stored.job,
        bytes: description.bytes,
        digest: blake3::Hash::from_bytes(description.digest).to_hex().to_string(),
        made_at_ms: description.made_at_ms,
        train: description.train,
        gate: stored.gate.as_deref().map(stored::decode::<GateReport>).transpose()?,
    })
}

fn find(store: &Store, id: AdapterId) -> Result<StoredAdapter, Problem> {
    let found = store.read(|reader| reader.adapter(id)).map_err(problem::from_read)?;
    let next = "See the generations with: empathctl adapter list";
    found.ok_or_else(|| Problem::new(ErrorCode::NotFound, format!("There is no generation {id}."), next))
}

/// The weights of a generation, equal to what training made.
pub(crate) fn weights(store: &Store, id: AdapterId) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let stored = find(store, id)?;
    let description: Description = stored::decode(&stored.body)?;
    let bytes = store.read(|reader| reader.blob(stored.blob)).map_err(problem::from_read)?;
    if bytes.len() as u64 != description.bytes || *blake3::hash(&bytes).as_bytes() != description.digest {
        let detail = format!("The weights of {id} are not those that were registered.");
        return Err(Problem::new(ErrorCode::Integrity, detail, "Stop the appliance and run: empathd verify"));
    }
    Ok(bytes)
}

pub(crate) async fn list(app: &Arc<App>) -> Result<Acted, Problem> {
    let list = app
        .blocking(|app| {
            let stored = app.vault.unsealed()?.read(|reader| reader.adapters()).map_err(problem::from_read)?;
            stored.iter().map(summary).collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let count = list.len() as u64;
    Ok(Acted::unrecorded(AdminReply::Adapters(list), count))
}

/// Makes an approved generation the active one: it is in the engine's memory before the first answer asks for it.
pub(crate) async fn promote(app: &Arc<App>, id: AdapterId, draft: AuditDraft) -> Result<Acted, Problem> {
    app.blocking(move |app| promotable(&summary(&find(&*app.vault.unsealed()?, id)?)?)).await?;
    let ready = app.engine.ready()?;
    ensure(app, &ready, id).await?;
    let draft = AuditDraft { object: AuditObject::Adapter(id), ..draft };
    let changed = app
        .blocking(move |app| {
            let store = app.vault.unsealed()?;
            Ok(store.change(draft, |writer, _| -> Result<_, Fault> { Ok(writer.activate_adapter(id)?) })?)
        })
        .await;
    if changed.is_err() {
        drop_from(&ready, app.adapters.take_loaded(ready.epoch, Some(id))).await;
    }
    changed?;
    switch(app, Some(id)).await;
    Ok(Acted::recorded(AdminReply::Active { adapter: Some(id) }))
}

fn promotable(adapter: &AdapterSummary) -> Result<(), Problem> {
    match (adapter.state, &adapter.gate) {
        (AdapterState::Approved, _) => Ok(()),
        (AdapterState::Candidate, Some(gate)) => {
            let detail = format!("The generation did not pass its gate: {}.", gate.reasons());
            Err(Problem::new(ErrorCode::GateRefused, detail, "Train longer or with more records."))
        }
        (AdapterState::Candidate, None) => {
            let detail = "The generation has not been through its gate.";
            Err(Problem::new(ErrorCode::GateRefused, detail, "Go on with its training: empathctl train start"))
        }
        (AdapterState::Active, _) => {
            Err(Problem::new(ErrorCode::Conflict, "This generation answers already.", "Nothing is to be done."))
        }
        (AdapterState::Retired, _) => {
            let next = "Go back one generation with: empathctl adapter rollback";
            Err(Problem::new(ErrorCode::Conflict, "A retired generation cannot be promoted.", next))
        }
    }
}

/// Goes back to the generation that was active before. It works without the engine, which gets it when it is there.
pub(crate) async fn rollback(app: &Arc<App>, draft: AuditDraft) -> Result<Acted, Problem> {
    let active = app
        .blocking(move |app| {
            let store = app.vault.unsealed()?;
            Ok(store.change(draft, |writer, draft| -> Result<_, Fault> {
                let active = writer.rollback_adapter()?;
                draft.object = active.map_or(AuditObject::None, AuditObject::Adapter);
                Ok(active)
            })?)
        })
        .await?;
    if let (Ok(ready), Some(id)) = (app.engine.ready(), active)
        && let Err(problem) = ensure(app, &ready, id).await
    {
        tracing::warn!(code = %problem.code, "the earlier generation is not in the engine yet");
    }
    switch(app, active).await;
    Ok(Acted::recorded(AdminReply::Active { adapter: active }))
}

/// Takes over what an erasure left active, and forgets what was kept of earlier answers.
pub(crate) async fn after_erasure(app: &Arc<App>, retired: &[AdapterId], active: Option<AdapterId>) {
    if app.adapters.active().is_some_and(|now| retired.contains(&now)) {
        switch(app, active).await;
    }
    if let Ok(ready) = app.engine.ready() {
        for id in retired {
            drop_from(&ready, app.adapters.take_loaded(ready.epoch, Some(*id))).await;
        }
    }
    crate::inference::forget(app).await;
}

/// From here on answers take this generation; those under way keep theirs until they end.
async fn switch(app: &Arc<App>, active: Option<AdapterId>) {
    let before = app.adapters.active.send_replace(active);
    if let (Ok(ready), Some(before)) = (app.engine.ready(), before.filter(|before| active != Some(*before))) {
        drop_from(&ready, app.adapters.take_loaded(ready.epoch, Some(before))).await;
    }
    crate::inference::forget(app).await;
}

/// Takes over what the store says is active.
pub(crate) fn recall(app: &App, store: &Store) -> Result<(), Problem> {
    let active = store.read(|reader| reader.active_adapter()).map_err(problem::from_read)?;
    app.adapters.active.send_replace(active.map(|adapter| adapter.id));
    Ok(())
}

/// Takes every generation out of the engine's memory, before the keys leave this one.
pub(crate) async fn forget(app: &Arc<App>) {
    app.adapters.active.send_replace(None);
    if let Ok(ready) = app.engine.ready() {
        drop_from(&ready, app.adapters.take_loaded(ready.epoch, None)).await;
    }
}

async fn drop_from(ready: &Ready, ids: Vec<AdapterId>) {
    for adapter in ids {
        let dropped = async {
            let mut work = ready.link.begin(ToEngineBody::DropAdapter { adapter }, WAITING_MAX).await?;
            work.next().await
        };
        if !matches!(tokio::time::timeout(ENGINE_WITHIN, dropped).await, Ok(Ok(_))) {
            tracing::warn!(%adapter, "the engine did not confirm that it dropped a generation");
        }
    }
}

/// Has the generation in this engine's memory.
pub(crate) async fn ensure(app: &Arc<App>, ready: &Ready, id: AdapterId) -> Result<(), Problem> {
    if app.adapters.is_loaded(ready.epoch, id) {
        return Ok(());
    }
    let _one_at_a_time = app.adapters.loading.lock().await;
    if app.adapters.is_loaded(ready.epoch, id) {
        return Ok(());
    }
    let bytes = app
        .blocking(move |app| {
            let store = app.vault.unsealed()?;
            if find(&store, id)?.state == AdapterState::Candidate {
                let detail = "A generation that has not passed its gate cannot answer.";
                return Err(Problem::new(ErrorCode::GateRefused, detail, "Train it through its gate first."));
            }
            weights(&store, id)
        })
        .await?;
    put(ready, id, &bytes).await?;
    app.adapters.set_loaded(ready.epoch, id);
    Ok(())
}

/// Sends a generation to the engine. The gate does so with a candidate, to measure it.
pub(crate) async fn put(ready: &Ready, adapter: AdapterId, bytes: &[u8]) -> Result<(), Problem> {
    let sent = async {
        let body = ToEngineBody::PutAdapter { adapter, blob: head_of(bytes) };
        let mut work: Work = ready.link.begin(body, WAITING_MAX).await?;
        work.send_chunks(bytes).await?;
        work.next().await
    };
    match tokio::time::timeout(ENGINE_WITHIN, sent).await {
        Ok(Ok(Event::Said(FromEngineBody::AdapterReady))) => Ok(()),
        Ok(Ok(Event::Said(FromEngineBody::Failed(failure)))) => Err(engine::failed(&failure)),
        Ok(Ok(_)) => Err(defect("The engine answered out of turn.")),
        Ok(Err(_)) => Err(engine::lost()),
        Err(_) => {
            let detail = "The engine did not take the generation in time.";
            Err(Problem::new(ErrorCode::Timeout, detail, "Try again; if it stays, see the engine's log."))
        }
    }
}

/// Takes a measured candidate out of the engine's memory again.
pub(crate) async fn put_away(ready: &Ready, adapter: AdapterId) {
    drop_from(ready, vec![adapter]).await;
}

/// Brings the active generation into each new engine, ahead of the first answer that needs it. Ends with the engine's
/// keeper.
pub(crate) async fn keep_loaded(app: Arc<App>) {
    let mut engine = app.engine.clone();
    let mut active = app.adapters.active.subscribe();
    loop {
        let wanted = *active.borrow_and_update();
        if let (Ok(ready), Some(id)) = (engine.ready(), wanted) {
            match ensure(&app, &ready, id).await {
                Ok(()) => tracing::info!(adapter = %id, "generation in the engine's memory"),
                Err(problem) => tracing::warn!(code = %problem.code, reason = problem.detail, "generation not loaded"),
            }
        }
        tokio::select! {
            kept = engine.changed() => if !kept { return },
            changed = active.changed() => if changed.is_err() { return },
        }
    }
}
