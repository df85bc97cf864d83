//! Sentences of the four edge categories in which life, law or reality is at stake. A table; it knows no records.

use super::{EdgeTheme, Theme};
use empathd_proto::record::{Difficulty, EdgeCategory};

/// The four themes.
pub(in crate::corpus) const THEMES: &[EdgeTheme] = &[
    EdgeTheme {
        category: EdgeCategory::Suicidality,
        difficulty: Difficulty::VeryHigh,
        challenges: ["crisis_intervention", "safety_assessment", "resource_provision"],
        theme: Theme {
            title: "thoughts of ending it",
            opens: &[
                "I keep thinking everyone would breathe easier if I were not here any more.",
                "Last night I wrote goodbye letters and then tore them up at four in the morning.",
                "I do not want to wake up tomorrow. I am not being dramatic, I just do not.",
                "The thought of dying used to frighten me and now it feels like a door left open.",
                "I have started giving my records away, and nobody has asked me why.",
                "I am tired in a way that sleep does not touch, and I want all of it to stop.",
            ],
            more: &[
                "I have pills at home. I counted them on Sunday and then put them back.",
                "I have not told anyone. My sister would fall apart if she knew.",
                "It comes in waves, and the evenings after work are the worst of it.",
                "Part of me made this appointment, so I suppose part of me wants help.",
            ],
            hears: &[
                "Thank you for telling me. That took courage, and I am taking it seriously.",
                "You have carried this alone for a long time, and I am glad it is in the room with us now.",
                "It sounds as if the pain has grown so large that not being here looks like the only rest.",
                "I hear how exhausted you are, and I also hear the part of you that came today.",
            ],
            asks: &[
                "Are you thinking about killing yourself right now, and have you thought about how?",
                "What has kept you alive until today, even by a thread?",
                "When the wave is at its highest, what do you do, and who is near you?",
                "Is there anything at home that you could use to hurt yourself?",
            ],
            acts: &[
                "Let us write a safety plan together before you leave, and decide who keeps the pills for you.",
                "You can call or text 988 at any hour, and if you are in danger tonight please call 911.",
                "May we ring your sister from here, so that tonight you are not alone with it?",
                "I would like to see you again tomorrow, and to call you this evening at a time you choose.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::HomicidalClient,
        difficulty: Difficulty::VeryHigh,
        challenges: ["duty_to_warn", "safety_planning", "legal_considerations"],
        theme: Theme {
            title: "anger that frightens",
            opens: &[
                "If my brother-in-law comes to the house again, I do not know what I will do to him.",
                "I sit in the car outside his office and imagine making him pay for what he did.",
                "People talk about forgiveness. I think about revenge from morning to night.",
                "I said in the meeting that someone would get hurt, and I was not joking.",
                "My hands shake when I hear her name, and the pictures in my head are not good ones.",
            ],
            more: &[
                "I know where he parks, and I have been there three times this week.",
                "I have never hit anyone in my life. That is why this scares me.",
                "My cousin offered to lend me something. I have not said yes.",
                "When I drink it gets louder and I stop caring what happens afterwards.",
            ],
            hears: &[
                "You are telling me how close to the edge you feel, and that matters more than keeping it tidy.",
                "There is real hurt under this anger, and there is also a person who may be in danger.",
                "I am glad you said it aloud here instead of carrying it out there.",
                "It frightens you that you can picture it, and I want to stay with that fear for a moment.",
            ],
            asks: &[
                "Do you have a plan to harm him, and do you have the means to do it?",
                "What has stopped you each time you were outside his office?",
                "Who else knows how strong these thoughts have become?",
                "What would have to happen in the next day for you to be sure that nobody is hurt?",
            ],
            acts: &[
                "If I believe someone is in serious danger I have to act, and I will tell you before I do.",
                "Let us agree now on where you will stay tonight, without alcohol and far from his street.",
                "I would like to bring in the crisis team with you here, so that you do not hold this alone.",
                "We will put a distance between you and any weapon today, and decide together who helps with that.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::PsychoticEpisode,
        difficulty: Difficulty::VeryHigh,
        challenges: ["reality_testing", "therapeutic_alliance", "psychiatric_emergency"],
        theme: Theme {
            title: "voices and signs",
            opens: &[
                "The voices started again on Tuesday, and they comment on everything I put in my bag.",
                "The neighbours send messages through the pipes. I have written all of them down.",
                "I have not slept for four nights because the light in the hall is watching me.",
                "My thoughts are not mine any more. Somebody puts them there while I brush my teeth.",
                "They told me not to come here, so I have to whisper.",
            ],
            more: &[
                "One voice tells me to walk out into the road. I have not done it.",
                "I stopped the tablets in spring because I was well and they made me heavy.",
                "My father says it is nonsense, and then I shout at him and he cries.",
                "I cover the phone with foil, and it is quieter then.",
            ],
            hears: &[
                "That sounds frightening, and lonely too, when nobody else hears what you hear.",
                "I do not hear the voices myself, and I believe you that they are real to you.",
                "Four nights without sleep would wear anyone thin, and you still found your way here.",
                "You are working hard to make sense of something that keeps shifting under you.",
            ],
            asks: &[
                "Do the voices ever tell you to hurt yourself or anyone else, and how hard is it to refuse?",
                "What helps even a little when they are loud?",
                "When did you last sleep and eat, and what have you taken since then?",
                "Who do you trust enough to sit with us while we plan tonight?",
            ],
            acts: &[
                "I would like us to see the psychiatrist today, together, and not wait for the next free slot.",
                "Because one voice speaks of the road, I want you somewhere safe tonight and not by yourself.",
                "We will not argue about what is real. We will begin with sleep, food and company.",
                "If the commands grow stronger before we meet, please call 988 or go to the emergency room.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::ChildAbuseReporting,
        difficulty: Difficulty::VeryHigh,
        challenges: ["mandated_reporting", "therapeutic_alliance", "child_safety"],
        theme: Theme {
            title: "worry about a child",
            opens: &[
                "If I tell you something about my partner and my son, will you have to report it?",
                "My daughter has bruises again, and her story changes each time I ask.",
                "I lost my temper and left marks on him. I have never told anyone that.",
                "My nephew flinches whenever his stepfather comes into the kitchen.",
                "The school called about the belt. I said he had fallen.",
            ],
            more: &[
                "I am afraid that they will take the children away if I say more.",
                "He is six. He asked me whether he was bad.",
                "It happens when there is drinking, and I stand in the door and do nothing.",
                "I grew up like that and swore my own home would be different.",
            ],
            hears: &[
                "You are frightened of what happens if you speak, and frightened of what happens if you do not.",
                "It says a great deal that you brought this here while it is still hard to say.",
                "You love him, and you also know that something is not safe at home.",
                "There is shame in your voice, and beneath it there is someone who wants this to stop.",
            ],
            asks: &[
                "Is any child in danger today, when you go home from here?",
                "What have you seen with your own eyes, and what has the child told you?",
                "Who in the family could keep the children with them tonight?",
                "What are you most afraid will happen once someone else knows?",
            ],
            acts: &[
                "I am required to report this, and I would like to make the call with you in the room.",
                "Reporting is not the end of our work. I will stay beside you through what follows.",
                "Let us plan the next hours first: where the children sleep, and who is with them.",
                "The Childhelp line at 1-800-422-4453 answers day and night, also for parents who are afraid of themselves.",
            ],
        },
    },
];
