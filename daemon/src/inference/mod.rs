//! Answers: from a checked call to a stream of events. A crisis signal puts the clinic's own words before the model's, and
//! they are said also when no engine can say more. How an answer is written to a connection is not known here.
//!
//! Reading order: [`call`] (what is asked), [`answering`] (an answer under way), [`choice`] (one work of the engine),
//! [`shape`] and [`tools`] (its text), [`salts`], [`admission`], [`kept`], [`embed`].

mod admission;
mod answering;
pub mod call;
mod choice;
pub(crate) mod embed;
mod kept;
mod salts;
mod shape;
#[cfg(test)]
mod tests;
pub mod tools;

use crate::actor::Actor;
use crate::answer_cache::AnswerCache;
use crate::app::App;
use crate::config::Serving;
use crate::engine::Ready;
use crate::problem::defect;
use admission::Admission;
use answering::Answering;
use call::{AnswerCall, Form, Question};
use empathd_clinic::crisis::{self, Level};
use empathd_clinic::scaffold;
use empathd_proto::chat::{AnswerNotes, CacheNote, FinishReason, Model, ModelList, TimesMs, ToolCall, Usage};
use empathd_proto::engine::ToEngineBody;
use empathd_proto::generate::{GenerateSpec, Prompt, SamplingSpec, ServiceClass, TokenLogprobs};
use empathd_proto::ids::RequestId;
use empathd_proto::problem::{ErrorCode, Problem};
use empathd_store::Entropy;
use kept::KeptAnswer;
use salts::Salts;
use shape::Shaper;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Events of an answer that may wait for a slow connection.
const EVENTS_WAITING_MAX: usize = 64;
/// Name of the model before an engine has said its own.
const OWNER: &str = "empathd";
/// How long answers under way may take to end when the store is sealed.
const ENDED_WITHIN: Duration = Duration::from_secs(2);
/// How long the engine may take to overwrite what it keeps of ended answers.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(5);

/// How often kept answers whose time is over are looked for.
const AGED_EVERY: Duration = Duration::from_secs(60);

/// What all answers share.
pub(crate) struct Inference {
    pub(crate) admission: Admission,
    pub(crate) cache: AnswerCache,
    salts: Salts,
    embedding: Semaphore,
    under_way: TaskTracker,
    /// Cancelled while the store is sealed.
    sealing: RwLock<CancellationToken>,
}

impl Inference {
    /// With room for so many answers, and random keys.
    ///
    /// # Errors
    /// When there is no memory for the keys.
    pub(crate) fn new(serving: &Serving, entropy: &Arc<dyn Entropy>) -> std::io::Result<Self> {
        let mut key = [0; 32];
        entropy.fill(&mut key);
        Ok(Self {
            admission: Admission::new(serving.answers_max),
            cache: AnswerCache::new(serving.answer_cache_bytes, entropy.clone())?,
            salts: Salts::new(key),
            embedding: Semaphore::new(embed::UNDER_WAY_MAX),
            under_way: TaskTracker::new(),
            sealing: RwLock::default(),
        })
    }

    fn sealing(&self) -> CancellationToken {
        self.sealing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An answer under way. Dropping the receiver cancels all of it.
#[derive(Debug)]
pub struct Answer {
    /// The request.
    pub id: RequestId,
    /// Model that answers.
    pub model: String,
    /// Seconds since the Unix epoch.
    pub created_s: u64,
    /// How many choices there are.
    pub choices: u32,
    /// What is told of them, then exactly one `Finished` or `Failed`.
    pub events: mpsc::Receiver<AnswerEvent>,
}

/// One event of an answer.
pub enum AnswerEvent {
    /// More text of a choice.
    Said {
        /// Which.
        choice: u32,
        /// The text; empty when only probabilities came.
        text: String,
        /// Probabilities of the tokens that came meanwhile, when they were asked for.
        logprobs: Vec<TokenLogprobs>,
    },
    /// A choice asks for a tool.
    Called {
        /// Which.
        choice: u32,
        /// The tool.
        call: ToolCall,
    },
    /// A choice is complete.
    Ended {
        /// Which.
        choice: u32,
        /// Why.
        reason: FinishReason,
    },
    /// The answer is complete.
    Finished {
        /// Tokens used.
        usage: Usage,
        /// What Empathd adds.
        notes: AnswerNotes,
    },
    /// The answer ended before it was complete.
    Failed(Problem),
}

impl std::fmt::Debug for AnswerEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AnswerEvent::Said { choice, text, .. } => write!(f, "Said({choice}, {} bytes)", text.len()),
            AnswerEvent::Called { choice, .. } => write!(f, "Called({choice})"),
            AnswerEvent::Ended { choice, reason } => write!(f, "Ended({choice}, {reason:?})"),
            AnswerEvent::Finished { .. } => f.write_str("Finished"),
            AnswerEvent::Failed(problem) => write!(f, "Failed({})", problem.code),
        }
    }
}

/// What the rules of danger say of a request.
#[derive(Clone)]
struct Danger {
    /// What must be said first.
    words: Option<String>,
    /// Any sign at all.
    signal: bool,
    /// A sign that needs somebody now.
    acute: bool,
}

impl Danger {
    fn of(app: &App, question: &Question) -> Self {
        let assessment = crisis::assess(&question.said());
        let words = scaffold::guard(&assessment, &app.config.help);
        Self { words, signal: assessment.level > Level::None, acute: assessment.level >= Level::Acute }
    }
}

/// Begins an answer; it has begun when the first token or the end is there.
pub(crate) async fn answer(app: &Arc<App>, actor: &Actor, call: AnswerCall) -> Result<Answer, Problem> {
    let danger = Danger::of(app, &call.question);
    let (works, formal) = (call.question.prompts() * call.choices as usize, call.form != Form::Text);
    let notes = AnswerNotes {
        adapter: app.adapters.active(),
        expert_share: Vec::new(),
        crisis_signal: danger.signal,
        crisis_words: danger.words.clone().filter(|_| matches!(call.form, Form::Json(_))),
        cache: CacheNote::None,
        times_ms: TimesMs::default(),
    };
    let ready = match (app.engine.ready(), &danger.words) {
        (Ok(ready), _) => ready,
        // A person in danger is not sent away.
        (Err(_), Some(words)) => return Ok(words_alone(app, call.model, words, works, formal, notes)),
        (Err(problem), None) => return Err(problem),
    };
    let model = served(&ready, &call.model)?;
    let deterministic = call.seed.is_some() || call.temperature == 0.0;
    let (form, choices) = (call.form.clone(), call.choices as usize);
    let specs = specs(app, actor, call, danger.acute);
    let mut keep = None;
    if deterministic && !danger.signal {
        let key = key(app, &ready, &model, &form, &specs)?;
        match app.inference.cache.get(&key, app.clock.uptime()) {
            Ok(found) => {
                let kept = KeptAnswer::decode(&found).ok_or_else(|| defect("A kept answer cannot be read."))?;
                return Ok(told(app, model, works, kept.told()));
            }
            Err(ticket) => keep = Some((key, ticket, KeptAnswer::new(works))),
        }
    }
    let permit = app.inference.admission.enter(specs[0].class, works)?;
    let (events, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    let (begun, first) = oneshot::channel();
    let shapers = specs.iter().map(|_| Shaper::new(&form, danger.words.as_deref())).collect();
    let cache = if keep.is_some() { CacheNote::Miss } else { CacheNote::None };
    let (notes, begun) = (AnswerNotes { cache, ..notes }, Some(begun));
    let (app_held, sealing) = (app.clone(), app.inference.sealing());
    let answering = Answering {
        app: app_held,
        specs,
        choices,
        shapers,
        danger,
        formal,
        events,
        begun,
        notes,
        keep,
        sealing,
        permit,
    };
    app.inference.under_way.spawn(answering.run(ready));
    first.await.unwrap_or_else(|_| Err(defect("An answer ended without a word.")))?;
    Ok(told(app, model, works, receiver))
}

fn told(app: &App, model: String, choices: usize, events: mpsc::Receiver<AnswerEvent>) -> Answer {
    let (id, created_s) = (RequestId::from_bytes(app.random()), app.clock.now_ms() / 1000);
    Answer { id, model, created_s, choices: u32::try_from(choices).unwrap_or(u32::MAX), events }
}

/// An answer of the clinic's own words only, when there is no engine.
fn words_alone(app: &App, model: String, words: &str, works: usize, formal: bool, notes: AnswerNotes) -> Answer {
    let said = answering::alone(words, works, formal, AnswerNotes { adapter: None, ..notes });
    let (events, receiver) = mpsc::channel(said.len());
    for event in said {
        // The channel has room for all of them.
        let _ = events.try_send(event);
    }
    told(app, model, works, receiver)
}

/// The models that answer: the base model under the appliance's name and its own, and the model of embeddings.
pub(crate) fn models(app: &App) -> Result<ModelList, Problem> {
    let ready = app.engine.ready()?;
    let created = app.clock.now_ms().saturating_sub(u64::try_from(app.clock.uptime().as_millis()).unwrap_or(0)) / 1000;
    let embedder = embed::width(&ready).is_ok().then_some(embed::EMBEDDER);
    let names = [Some(OWNER), Some(ready.base.name.as_str()), embedder];
    let model = |id: &str| Model { id: id.to_owned(), object: "model".into(), created, owned_by: OWNER.into() };
    Ok(ModelList { object: "list".into(), data: names.into_iter().flatten().map(model).collect() })
}

fn served(ready: &Ready, name: &str) -> Result<String, Problem> {
    if name == OWNER || name == ready.base.name {
        return Ok(name.to_owned());
    }
    let next = format!("Ask for \"{OWNER}\"; GET /v1/models lists all.");
    Err(Problem::new(ErrorCode::NotFound, "No model of that name answers here.", next))
}

/// What is asked of the engine: the choices of the first prompt, then those of the second.
fn specs(app: &App, actor: &Actor, call: AnswerCall, acute: bool) -> Vec<GenerateSpec> {
    let serving = &app.config.serving;
    let (caller, scope) = app.inference.salts.of(actor, &call.client);
    let (mut stop, mut grammar) = (call.stop, None);
    let mut tools_told = None;
    match call.form {
        Form::Text => {}
        Form::Json(wanted) => grammar = Some(wanted),
        Form::Tools(tools) => {
            grammar = tools.grammar();
            if tools.demand == tools::Demand::Free && !tools.parallel {
                stop.push(tools::CLOSE.to_owned());
            }
            tools_told = Some(tools);
        }
    }
    let prompts = match call.question {
        Question::Texts(texts) => texts,
        Question::Conversation(turns) => {
            vec![Prompt::Chat { messages: tools::messages(turns, tools_told.as_ref()), tools: Vec::new() }]
        }
    };
    let class = match (acute, call.nobody_waits) {
        (true, _) => ServiceClass::Crisis,
        (false, false) => ServiceClass::Interactive,
        (false, true) => ServiceClass::Batch,
    };
    let seed = match call.seed {
        Some(seed) => seed,
        // Greedy answers draw nothing.
        None if call.temperature == 0.0 => 0,
        None => u64::from_le_bytes(app.random()),
    };
    let within_ms = u32::try_from(serving.first_token_within.as_millis()).ok();
    let spec = |prompt: &Prompt, choice: u32| GenerateSpec {
        adapter: app.adapters.active(),
        prompt: prompt.clone(),
        class,
        caller,
        scope,
        // Those in danger wait as long as it takes, and where nobody waits nothing is late.
        first_token_within_ms: within_ms.filter(|_| class == ServiceClass::Interactive),
        max_tokens: call.max_tokens.unwrap_or(serving.answer_tokens).min(serving.answer_tokens_max),
        sampling: SamplingSpec {
            temperature: call.temperature,
            top_p: call.top_p,
            seed: seed_of(seed, choice),
            presence_penalty: call.presence_penalty,
            frequency_penalty: call.frequency_penalty,
            logit_bias: call.logit_bias.clone(),
            logprobs: call.logprobs,
        },
        stop: stop.clone(),
        grammar: grammar.clone(),
        skip_tokens: 0,
    };
    prompts
        .iter()
        .flat_map(|prompt| (0..call.choices).map(move |choice| (prompt, choice)))
        .map(|(p, c)| spec(p, c))
        .collect()
}

/// The seed of one choice; the first one has that of the request.
fn seed_of(seed: u64, choice: u32) -> u64 {
    // Odd multiples of the golden ratio are far apart.
    seed.wrapping_add(u64::from(choice).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// What makes a request the same as another: everything that is asked of the engine, by whom (the scope is a part of it),
/// of which weights, and how the text is read.
fn key(
    app: &App,
    ready: &Ready,
    model: &str,
    form: &Form,
    specs: &[GenerateSpec],
) -> Result<crate::answer_cache::Key, Problem> {
    let encoded = postcard::to_stdvec(&(form, specs)).map(zeroize::Zeroizing::new);
    let encoded = encoded.map_err(|_| defect("A request cannot be encoded."))?;
    Ok(app.inference.salts.hash(&[b"answer", model.as_bytes(), &ready.base.sha256, &encoded]))
}

/// From here on answers are given.
pub(crate) fn open(app: &App) {
    app.inference.salts.renew(app.random());
    *app.inference.sealing.write().unwrap_or_else(PoisonError::into_inner) = CancellationToken::new();
}

/// Ends all answers, and overwrites what is kept of those that have ended.
pub(crate) async fn close(app: &App) {
    app.inference.sealing().cancel();
    app.inference.under_way.close();
    if tokio::time::timeout(ENDED_WITHIN, app.inference.under_way.wait()).await.is_err() {
        tracing::warn!("answers under way did not end in time");
    }
    app.inference.under_way.reopen();
    forget(app).await;
    app.inference.salts.renew(app.random());
}

/// Forgets kept answers when their time is over, for as long as it is awaited.
pub(crate) async fn keep_young(app: Arc<App>) {
    let mut every = tokio::time::interval(AGED_EVERY);
    loop {
        every.tick().await;
        app.inference.cache.forget_older(app.clock.uptime());
    }
}

/// Overwrites what is kept of answers that have ended, here and in the engine.
pub(crate) async fn forget(app: &App) {
    app.inference.cache.wipe();
    let Ok(ready) = app.engine.ready() else { return };
    let forgotten = async {
        let mut work = ready.link.begin(ToEngineBody::ForgetPrefixes, 1).await?;
        work.next().await
    };
    if !matches!(tokio::time::timeout(FORGOTTEN_WITHIN, forgotten).await, Ok(Ok(_))) {
        tracing::warn!("the engine did not confirm that it forgot ended answers");
    }
}
