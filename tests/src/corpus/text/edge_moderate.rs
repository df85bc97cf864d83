//! Sentences of the nine edge categories within ordinary practice. A table; it knows no records.

use super::{EdgeTheme, Theme};
use empathd_proto::record::{Difficulty, EdgeCategory};

/// The nine themes.
pub(in crate::corpus) const THEMES: &[EdgeTheme] = &[
    EdgeTheme {
        category: EdgeCategory::StalkingHarassment,
        difficulty: Difficulty::Moderate,
        challenges: ["safety_measures", "documentation", "legal_resources"],
        theme: Theme {
            title: "being followed",
            opens: &[
                "My ex knows where I am each evening, and I never tell him.",
                "There was another note under the wiper this morning, the sixth one.",
                "He makes new accounts as fast as I can block the old ones.",
                "I changed my route to work three times, and she was there each time.",
            ],
            more: &[
                "The police said that flowers are not a crime.",
                "I check the windows twice and then I cannot sleep.",
                "My friends think that I should be flattered.",
            ],
            hears: &[
                "This is not flattery. Someone is taking away your sense of being safe.",
                "You have changed your whole day around a person you told to stop.",
                "It is tiring to be the only one who sees the pattern.",
            ],
            asks: &[
                "Has he threatened you or come near your home since you told him to stop?",
                "Could there be something on your phone or car that shares where you are?",
                "Who at work or at home knows what he looks like?",
            ],
            acts: &[
                "Let us begin a log with date, place and a photograph of each note, kept in two places.",
                "A victim advocate can go with you to ask for a protective order.",
                "Please do not answer the messages, not even to say no, and keep every one of them.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::MedicationRefusal,
        difficulty: Difficulty::Moderate,
        challenges: ["medication_adherence", "autonomy_vs_safety", "psychoeducation"],
        theme: Theme {
            title: "not taking the tablets",
            opens: &[
                "I flushed the tablets. I am not a chemistry set.",
                "They made me gain fifteen pounds, and nobody had warned me.",
                "If I take them it means I am really ill.",
                "My grandmother never took anything, and she lived to ninety.",
            ],
            more: &[
                "I felt flat, as if someone had turned the colours down.",
                "The doctor had four minutes for me.",
                "When I stopped, I was fine for a month. Then it all came back.",
            ],
            hears: &[
                "It is your body, and the weight gain was something you never agreed to.",
                "Feeling flat is a real loss, and it makes sense that you want your colours back.",
                "The tablets seem to stand for being ill, and you would rather not be.",
            ],
            asks: &[
                "What did the tablets do for you, on the good side and on the bad side?",
                "What would have to be different for you to consider any medicine at all?",
                "How will we both notice early if things begin to slide?",
            ],
            acts: &[
                "Stopping at once can be rough, so may we call the prescriber together this week?",
                "Let us write down the side effects, so that the next four minutes are used well.",
                "You decide. I would only like us to agree on three early signs and what we do then.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::FamilyTherapyConflict,
        difficulty: Difficulty::Moderate,
        challenges: ["de_escalation", "session_management", "safety_for_children"],
        theme: Theme {
            title: "a quarrel in the room",
            opens: &[
                "He never lets me finish. You see? He is doing it now.",
                "If she rolls her eyes once more, I am leaving this session.",
                "The children hear all of it through the wall, and we both know that.",
                "My mother-in-law runs our house, and nobody may say so.",
            ],
            more: &[
                "We have had this same fight every Sunday for a year.",
                "Our youngest started to wet the bed again.",
                "I only shout because nobody listens before I do.",
            ],
            hears: &[
                "I would like to slow us down, because each of you has something to say that matters.",
                "You both sound worn out, and you both came.",
                "Under the shouting I hear someone who wants very much to be heard.",
            ],
            asks: &[
                "What would each of you notice first if next Sunday went a little better?",
                "What do you imagine your youngest feels on the other side of the wall?",
                "Could you tell him what you needed in that moment, in one sentence, beginning with I?",
            ],
            acts: &[
                "One speaks and one repeats what was heard, two minutes each, and I keep the clock.",
                "Let us agree on a word that stops any quarrel for half an hour.",
                "I would like to see the children once, so that they know none of it is their fault.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::AdolescentDefiance,
        difficulty: Difficulty::Moderate,
        challenges: ["engagement", "boundary_setting", "family_dynamics"],
        theme: Theme {
            title: "sent here by parents",
            opens: &[
                "My mum makes me come. I have nothing to say to you.",
                "Whatever. You get paid either way.",
                "I am only here because the school said therapy or suspension.",
                "You are just going to tell my parents everything I say.",
            ],
            more: &[
                "They read my messages and then they talk about trust.",
                "Nobody ever asks me. They ask each other about me.",
                "I sleep in class because nights are the only time that is mine.",
            ],
            hears: &[
                "You did not choose this, and sitting here anyway is not nothing.",
                "It is annoying when everybody has an opinion about your life except you.",
                "Fair point. You have no reason to trust me yet.",
            ],
            asks: &[
                "If this hour could be useful to you and not to them, what would we do with it?",
                "What do the grown-ups keep getting wrong about you?",
                "What would have to change for your mum to say that you need not come any more?",
            ],
            acts: &[
                "What you say stays here unless someone is in danger, and I will tell your parents so in front of you.",
                "We can walk while we talk, or play cards. Talking is not the only way to be here.",
                "Let us write down together what I may tell them after each session.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::CoupleTherapyBetrayal,
        difficulty: Difficulty::Moderate,
        challenges: ["emotional_safety", "neutrality", "relationship_assessment"],
        theme: Theme {
            title: "an affair",
            opens: &[
                "I found the messages while I was looking for a photograph of our dog.",
                "It was over before she found out. Does that count for nothing?",
                "I want to know every detail, and each detail makes me sick.",
                "Everyone tells me to leave. I do not even know what I want for breakfast.",
            ],
            more: &[
                "He sleeps, and I lie there and look at the ceiling.",
                "I have answered the same question a hundred times.",
                "We laugh sometimes, and then I remember, and I hate that I laughed.",
            ],
            hears: &[
                "The ground you stood on is gone, and you are asked to make decisions on it.",
                "You feel guilty and tired, and you do not know what would ever be enough.",
                "It makes sense that your mind circles around it, looking for where it is safe.",
            ],
            asks: &[
                "What do you need to know, and what would only hurt?",
                "What does each of you still hope for when you come into this room?",
                "How do the two of you get through the evenings at present?",
            ],
            acts: &[
                "Nobody has to decide about the marriage for the next six weeks. Shall we agree on that?",
                "Let us set a time each day for questions, twenty minutes, and then it rests.",
                "I am on the side of both of you being safe and honest, and I will say so when I am not.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::CulturalConflicts,
        difficulty: Difficulty::Moderate,
        challenges: ["cultural_competence", "identity_exploration", "family_dynamics"],
        theme: Theme {
            title: "between two worlds",
            opens: &[
                "My parents have chosen someone for me, and I have chosen someone else.",
                "At home I am too foreign, and at work I am not from here.",
                "If I move out before I marry, my father loses his face in front of everyone.",
                "In my language there is no word for depression. There is a word for lazy.",
            ],
            more: &[
                "I owe them everything, and I cannot breathe.",
                "My brother does as he likes. I am the daughter.",
                "You probably think I should simply do what I want.",
            ],
            hears: &[
                "You love your family, and you are trying to keep a life of your own as well.",
                "It is hard work to translate yourself in both directions every day.",
                "Honour and duty are not obstacles to you. They are part of who you are.",
            ],
            asks: &[
                "Which values of your parents would you wish to hand on, whatever you decide?",
                "What would a good outcome look like in the eyes of someone at home whom you respect?",
                "What should I understand about your community before I ask more?",
            ],
            acts: &[
                "I will not tell you to choose between them and yourself. Let us look for a third way.",
                "Would it help to invite the aunt who understands both sides?",
                "Let us practise the first two sentences you might say to your father, in your own language.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::TherapistBoundaries,
        difficulty: Difficulty::Moderate,
        challenges: ["boundary_maintenance", "therapeutic_frame", "exploitation_prevention"],
        theme: Theme {
            title: "more than a therapist",
            opens: &[
                "You understand me better than anyone. Could we have dinner some time?",
                "I looked up where you live. It is a lovely street.",
                "Could you give me your private number? I promise I would not overuse it.",
                "I brought you a watch. You cannot refuse, it is engraved.",
            ],
            more: &[
                "My last therapist came to my birthday.",
                "If you will not, it means that I am only a case to you.",
                "I think about our hour all week long.",
            ],
            hears: &[
                "Being understood is precious, and of course you would want more of it.",
                "It took some courage to ask me, and my answer may sting.",
                "You matter to me as my client, and that is exactly why I keep this frame.",
            ],
            asks: &[
                "What do you imagine would change if we met outside of this room?",
                "When else in your life did you have to bring gifts so that someone would stay?",
                "How is it for you to hear a no from me?",
            ],
            acts: &[
                "I will not meet you privately, now or later, and I will go on seeing you here each week.",
                "I cannot take the watch. I would like to understand with you what it was meant to say.",
                "Please do not come to my street. If you need someone at night, the clinic's line is open.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::TherapyResistance,
        difficulty: Difficulty::Moderate,
        challenges: ["motivation", "engagement", "involuntary_treatment"],
        theme: Theme {
            title: "here by order",
            opens: &[
                "The judge sent me. Sign the paper and we are both done.",
                "I have seen six of you people. Talking changes nothing.",
                "There is nothing wrong with me. There is something wrong with my boss.",
                "I will sit here for the fifty minutes, but do not expect anything.",
            ],
            more: &[
                "The last one looked at the clock the whole time.",
                "What would you know about working nights?",
                "My wife says I have changed. Maybe she has.",
            ],
            hears: &[
                "You would rather be anywhere else, and I appreciate that you say so plainly.",
                "Six times you told your story, and six times it came to nothing.",
                "You do not see a problem, and others keep handing you one.",
            ],
            asks: &[
                "Since we have the time anyway, what would make it less of a waste for you?",
                "On a scale from zero to ten, how much does any of this bother you yourself?",
                "What did the six of us miss?",
            ],
            acts: &[
                "I will tell you exactly what goes to the court: that you were here, and nothing you said.",
                "You set the subject today, and I will only ask when I do not follow.",
                "Let us try three sessions, and then you tell me honestly whether to stop.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::ChronicPainDespair,
        difficulty: Difficulty::Moderate,
        challenges: ["pain_psychology", "medical_collaboration", "quality_of_life"],
        theme: Theme {
            title: "pain without end",
            opens: &[
                "The pain clinic said that this is as good as it will get.",
                "I was a roofer. Now I need help to put on my socks.",
                "They think it is in my head because you are a psychologist.",
                "I wake at three, and the pain is already sitting there, waiting.",
            ],
            more: &[
                "My wife has stopped asking how I am.",
                "On a good day I do too much, and then I lie down for three.",
                "I do not want to die. I do not want this either.",
            ],
            hears: &[
                "The pain is real. My work is about how to live beside it, and not about doubting it.",
                "You have lost work, strength and the man you knew, and nobody held a funeral for that.",
                "It is wearying to prove, again and again, something that nobody can see.",
            ],
            asks: &[
                "What does the pain keep you from that you miss the most?",
                "When you say that you do not want this either, do thoughts of dying come with it?",
                "What is different on the days when it takes up a little less room?",
            ],
            acts: &[
                "Let us plan rest before the pain demands it, and see what two weeks of pacing do.",
                "With your leave I will speak with the pain clinic, so that we pull in one direction.",
                "Could we invite your wife once, so that she learns how to ask again?",
            ],
        },
    },
];
