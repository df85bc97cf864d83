//! The session prior over the reference model: after a short training it knows what conversations are about that it never
//! saw, those of a seldom domain too.

use super::cached;
use candle_core::Device;
use empathd_model::gguf;
use empathd_model::infer::Model;
use empathd_model::train::{Host, Memory, Observer, Start, score, train};
use empathd_proto::JobId;
use empathd_proto::chat::ChatRole;
use empathd_proto::engine::{
    Example, Guards, LossSpec, MixtureSpec, Part, Plateau, ServingSpec, Stages, TrainOnly, TrainSpec,
};
use empathd_proto::generate::PlainMessage;
use empathd_proto::record::Domain;
use empathd_proto::report::TrainProgress;
use std::ops::ControlFlow;
use std::time::Duration;

/// What is said in a domain: beginnings, ends and answers are combined.
struct Talk {
    domain: Domain,
    /// Conversations that are learnt.
    learnt: usize,
    begins: [&'static str; 4],
    ends: [&'static str; 4],
    answers: [&'static str; 2],
}

const TALK: [Talk; 4] = [
    Talk {
        domain: Domain::Psychoeducation,
        learnt: 40,
        begins: [
            "What is a panic attack",
            "How does exposure therapy work",
            "Why do people ruminate",
            "What does burnout mean",
        ],
        ends: ["and how long does it last?", "and who gets it?", "in plain words?", "and what can be done?"],
        answers: [
            "It is a common pattern, and it can be explained step by step.",
            "Researchers describe three parts of it.",
        ],
    },
    Talk {
        domain: Domain::TherapyDialogue,
        learnt: 40,
        begins: [
            "My mother called again",
            "I argued with my partner",
            "Work was heavy this week",
            "I could not sleep on Sunday",
        ],
        ends: ["and I felt small.", "and then I cried.", "so I stayed in bed.", "and I said nothing."],
        answers: [
            "It sounds as if that stayed with you. What was the hardest moment?",
            "You carried a lot. What did you need then?",
        ],
    },
    Talk {
        domain: Domain::Crisis,
        learnt: 24,
        begins: ["I want to end my life", "I have the pills here", "I cannot go on living", "I wrote a goodbye letter"],
        ends: ["tonight.", "and nobody will miss me.", "and I am alone.", "right now."],
        answers: [
            "I am very glad you told me. Are you safe at this moment?",
            "Please call the crisis line now; I stay with you.",
        ],
    },
    Talk {
        domain: Domain::Documentation,
        learnt: 40,
        begins: [
            "Session 12, client on time",
            "Intake note, 45 minutes",
            "Progress note, week 6",
            "Telephone contact, brief",
        ],
        ends: ["PHQ-9 is 14.", "homework was done.", "sleep improved.", "medication unchanged."],
        answers: [
            "Plan: continue weekly sessions, review goals in four weeks.",
            "Assessment: moderate symptoms, no acute risk.",
        ],
    },
];
/// Conversations that are measured, of each domain.
const MEASURED: usize = 8;
/// Share of them whose domain must be the likeliest.
const KNOWN_MIN: f64 = 0.85;

struct Silent;

impl Observer for Silent {
    fn progress(&mut self, _: &TrainProgress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn checkpoint(&mut self, _: u32, _: Vec<u8>) {}

    fn between_layers(&mut self) {}
}

/// Conversation `n` of a domain; those to be measured have beginnings and ends together that no learnt one has.
fn example(row: usize, n: usize, part: Part) -> Example {
    let Talk { domain, begins, ends, answers, .. } = &TALK[row];
    let (begin, shift) = (n % 4, n / 4 % 3);
    let end = if part == Part::Learn { (begin + shift) % 4 } else { (begin + 3) % 4 };
    let message = |role, text: String| PlainMessage { role, text };
    let messages = vec![
        message(ChatRole::User, format!("{} {}", begins[begin], ends[end])),
        message(ChatRole::Assistant, answers[n / 12 % 2].to_owned()),
    ];
    Example { domain: *domain, part, messages }
}

fn spec() -> TrainSpec {
    TrainSpec {
        job: JobId::from_bytes([1; 16]),
        mixture: MixtureSpec {
            shared_rank: 4,
            expert_rank: 4,
            experts: TALK.iter().map(|talk| Some(talk.domain)).collect(),
            top_k: 2,
            session_prior: true,
            ..MixtureSpec::default()
        },
        only: TrainOnly::All,
        seq_len: 256,
        tokens_per_step: 512,
        pass_tokens: Some(512),
        steps: 40,
        seconds_max: 3600,
        learning_rate: 1e-3,
        b_rate_ratio: 4.0,
        router_learning_rate: 3e-3,
        weight_decay: 0.01,
        warmup: 0.1,
        clip: 1.0,
        validate_every: 40,
        checkpoint_every: 0,
        patience: 9,
        plateau: Plateau::default(),
        stages: Stages::default(),
        losses: LossSpec::default(),
        guards: Guards::default(),
        seed: 1,
    }
}

#[test]
#[ignore = "slow; needs the reference model in the cache"]
fn what_a_conversation_is_about_is_known_after_a_short_training() {
    let path = cached();
    let sha256 = gguf::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).sha256().unwrap();
    let model = Model::open(&path, sha256, &Device::Cpu, &ServingSpec::default(), 2).unwrap();
    let mut gradients = model.gradients(2).unwrap();
    let all = |part, count: &dyn Fn(usize) -> usize| -> Vec<Example> {
        (0..TALK.len()).flat_map(|row| (0..count(row)).map(move |n| example(row, n, part))).collect()
    };
    let measured = all(Part::HeldOut, &|_| MEASURED);
    let mut examples = all(Part::Learn, &|row| TALK[row].learnt);
    examples.extend(measured.clone());
    let host = Host { now: &|| Duration::ZERO, memory: &Memory::unknown };
    let format = model.format.as_ref();
    let trained = train(&mut gradients, sha256, format, &spec(), &examples, Start::Fresh, &host, &mut Silent).unwrap();
    let scores = score(&mut gradients, format, Some(&trained.mixture), &measured, 256, &mut || ()).unwrap();
    let mut known = vec![0; TALK.len()];
    for (one, score) in measured.iter().zip(&scores) {
        let row = TALK.iter().position(|talk| talk.domain == one.domain).unwrap();
        let likeliest = (0..TALK.len()).max_by(|a, b| score.session[*a].total_cmp(&score.session[*b]));
        known[row] += usize::from(likeliest == Some(row));
    }
    println!("known of {MEASURED} each: {known:?}");
    let share = known.iter().sum::<usize>() as f64 / measured.len() as f64;
    assert!(share >= KNOWN_MIN && known.iter().all(|known| 2 * known >= MEASURED), "{known:?}");
}
