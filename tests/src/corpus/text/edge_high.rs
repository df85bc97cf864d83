//! Sentences of the twelve edge categories that need an experienced clinician. A table; it knows no records.

use super::{EdgeTheme, Theme};
use empathd_proto::record::{Difficulty, EdgeCategory};

/// The twelve themes.
pub(in crate::corpus) const THEMES: &[EdgeTheme] = &[
    EdgeTheme {
        category: EdgeCategory::SubstanceAbuseCrisis,
        difficulty: Difficulty::High,
        challenges: ["immediate_safety", "medical_concerns", "boundary_setting"],
        theme: Theme {
            title: "drinking and withdrawal",
            opens: &[
                "I drank before I came, so you may as well know it.",
                "I stopped cold on Friday and I have been shaking and sweating ever since.",
                "They found me on the bathroom floor, and I do not remember the evening at all.",
                "I promised my kids it was over, and I was back at the shop by Wednesday.",
            ],
            more: &[
                "My heart races and I see things at the edge of the room.",
                "If my licence goes, the job goes, and then the flat goes too.",
                "It is the only hour of the day when my head is quiet.",
            ],
            hears: &[
                "Thank you for being straight with me. You came anyway, and that counts.",
                "It sounds as if drink has been both the trouble and the only rest you had.",
                "You wanted so much to keep that promise, and it hurts to look at it now.",
            ],
            asks: &[
                "When was your last drink, and have you ever had a seizure when you stopped?",
                "What does the drinking do for you that nothing else has managed so far?",
                "Are you alone at home tonight, and is there anything else you have taken?",
            ],
            acts: &[
                "Shaking and seeing things can be dangerous, so I want a doctor to look at you today.",
                "We will meet when you are sober, and today I will stay until someone can drive you home.",
                "SAMHSA's helpline, 1-800-662-4357, is free and open at night. Shall we save it in your phone?",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::SevereDissociation,
        difficulty: Difficulty::High,
        challenges: ["continuity_of_care", "identity_validation", "grounding_techniques"],
        theme: Theme {
            title: "lost time",
            opens: &[
                "I lost Saturday. There are groceries in the kitchen that I did not buy.",
                "Sometimes I watch myself from the corner of the ceiling while I speak.",
                "A younger part of me was here last week, I think. She left a drawing.",
                "The world went flat again, like a stage set, and my hands were not mine.",
            ],
            more: &[
                "I found messages on my phone in a tone I never use.",
                "Driving is the worst, because I arrive and do not know how.",
                "I am afraid you will think I am making it up.",
            ],
            hears: &[
                "All of you is welcome here, the parts that speak and the parts that cannot yet.",
                "Losing a day is frightening, and you are doing something hard by describing it.",
                "I believe you. Going far away was once a way to survive.",
            ],
            asks: &[
                "What is the last thing you remember clearly before the gap?",
                "How near or far away do you feel from this room right now?",
                "What helps you know that it is this year and that you are an adult?",
            ],
            acts: &[
                "Let us name five things you can see, slowly, with both feet on the floor.",
                "We could keep a shared notebook in which every part may leave a line.",
                "Until the gaps are shorter, please let someone else drive, and tell me before our next session.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::ManicEpisode,
        difficulty: Difficulty::High,
        challenges: ["medication_compliance", "reality_orientation", "energy_management"],
        theme: Theme {
            title: "too much energy",
            opens: &[
                "I have slept five hours this week and I have never felt better in my life.",
                "I bought three pianos. It makes sense once you see the whole plan.",
                "Everybody is so slow. I finished a book last night, writing it, I mean.",
                "I quit my job because I am meant for something much larger.",
            ],
            more: &[
                "My wife took the bank card away and I told her she was jealous.",
                "The tablets are for people with small ideas.",
                "I drove at night with the lights off, to feel the road properly.",
            ],
            hears: &[
                "There is so much happening in you at once, and it feels wonderful and fast.",
                "I can hear how alive the plan is to you, and I can hear that sleep has gone.",
                "It must be irritating when people put the brakes on something that feels so clear.",
            ],
            asks: &[
                "What did the beginning look like the last time your sleep went this way?",
                "Which of these decisions could wait for two weeks without being lost?",
                "What does your wife see that worries her, even if you see it differently?",
            ],
            acts: &[
                "Let us protect sleep first: no screens after nine, and a call to your psychiatrist today.",
                "I would like you to let her keep the car keys until we have met twice more.",
                "Could we write down the plan here and agree to open it again when you have slept?",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::TraumaFlashback,
        difficulty: Difficulty::High,
        challenges: ["grounding", "safety", "present_moment_awareness"],
        theme: Theme {
            title: "the past returning",
            opens: &[
                "The door slammed and I was back there. I can still smell the smoke.",
                "I cannot breathe, it is happening again, please do not turn off the light.",
                "On the bus a man coughed like he used to, and I lost the next twenty minutes.",
                "I wake up on the floor, under the table, and do not know how I got there.",
            ],
            more: &[
                "My body does not believe that it is over.",
                "I am ashamed that a noise can do this to me after ten years.",
                "Talking about it makes the pictures come closer.",
            ],
            hears: &[
                "You are here with me in this room, and what you are feeling is a memory.",
                "Your body learned to keep you alive, and it has not yet heard that it may rest.",
                "There is no shame in this. Anyone's alarm would ring after what you lived through.",
            ],
            asks: &[
                "Can you tell me what you see on the wall behind me, and its colour?",
                "What tells you, even a little, that this is now and not then?",
                "Would you rather keep your eyes open, and where would you like me to sit?",
            ],
            acts: &[
                "Press your feet down, breathe out longer than in, and we will wait until it passes.",
                "We will not go into the story today. We will first build what holds you.",
                "Let us make a small card for your pocket with the steps that bring you back.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::EatingDisorderMedical,
        difficulty: Difficulty::High,
        challenges: ["medical_monitoring", "food_fear", "body_image_distortion"],
        theme: Theme {
            title: "food and fear",
            opens: &[
                "I fainted on the stairs again, but my blood test was fine last month.",
                "I eat an apple a day and I still feel enormous.",
                "My mother cries at dinner, and I count the peas so that I do not hear it.",
                "I bring it all up again. Nobody knows, and my teeth are starting to show it.",
            ],
            more: &[
                "If I stop being careful I will never be able to stop eating.",
                "My heart does a strange flutter when I climb to our floor.",
                "The coach says I look fit, so it cannot be that bad.",
            ],
            hears: &[
                "The rules around food have become very strict, and they seem to promise safety.",
                "You are frightened of eating and frightened of fainting, both at the same time.",
                "It is lonely to guard a secret at every meal.",
            ],
            asks: &[
                "How often have you fainted or felt your heart flutter this week?",
                "What does the strict part of you say would happen if you ate one thing more?",
                "Who could know about this and stay kind?",
            ],
            acts: &[
                "Fainting and a fluttering heart need a doctor today, before anything else we do.",
                "I would like your doctor to check potassium and heart rhythm every week while we work.",
                "Let us choose one small meal this week that someone shares with you.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::BorderlineCrisis,
        difficulty: Difficulty::High,
        challenges: ["emotional_regulation", "abandonment_fears", "self_harm_prevention"],
        theme: Theme {
            title: "fear of being left",
            opens: &[
                "You go on holiday for two weeks and you call that caring.",
                "She did not answer for an hour and I smashed every plate we own.",
                "You were the only good one, and now you are just like all the others.",
                "I hurt myself on Sunday because I could not stand the feeling one more minute.",
            ],
            more: &[
                "When someone leaves the room it is as if I stop existing.",
                "Then I am so ashamed that I want to do it again.",
                "I sent forty messages and deleted thirty of them.",
            ],
            hears: &[
                "When someone goes quiet it feels like proof that you are being left.",
                "You are furious with me, and underneath it you may be afraid that I will not come back.",
                "The feeling was unbearable, and you reached for the one thing that had ever made it stop.",
            ],
            asks: &[
                "What happened in the hour before, and where in your body did it start?",
                "Have you hurt yourself since Sunday, and does any of it need care today?",
                "What is one thing that has carried you through five minutes of this before?",
            ],
            acts: &[
                "Let us practise cold water and paced breathing now, before you need it tonight.",
                "I will be back on the ninth, and here is who answers for me until then, day and night.",
                "We can look at the urge like a wave: write its height each ten minutes, and call 988 if it wins.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::ParanoidAccusations,
        difficulty: Difficulty::High,
        challenges: ["therapeutic_alliance", "boundary_maintenance", "trust_building"],
        theme: Theme {
            title: "mistrust",
            opens: &[
                "You are writing all of this down for my employer, are you not?",
                "I saw you speak with my wife's lawyer. Do not tell me it was nothing.",
                "There is a recorder in that lamp. I would like it out of the room.",
                "You asked the same question as the man who followed me.",
            ],
            more: &[
                "The last one said everything was confidential, and then the letter came.",
                "I check the car each morning before I get in.",
                "If I am right about this, you would lie. If I am wrong, I am mad.",
            ],
            hears: &[
                "It must be hard to sit here when you are not sure which side I am on.",
                "You have been let down before by someone who promised you confidence.",
                "I can see that trusting me today would cost you a lot.",
            ],
            asks: &[
                "What would you need to see or hear from me to stay for the next ten minutes?",
                "What went through your mind when I asked that question?",
                "How much of your day goes into keeping yourself safe in this way?",
            ],
            acts: &[
                "You may read every note I write about you, now or at any time.",
                "Let us unplug the lamp together, and then decide what we would like to talk about.",
                "I will tell you plainly who can learn what from me, and when the law gives me no choice.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::SexualTraumaDisclosure,
        difficulty: Difficulty::High,
        challenges: ["trauma_sensitive_response", "reporting_requirements", "safety_planning"],
        theme: Theme {
            title: "first telling of an assault",
            opens: &[
                "Something happened at the party in May. I have never said it aloud.",
                "I did not say no loudly enough, so maybe it was my fault.",
                "He was a friend of the family. Nobody would have believed me.",
                "I can tell you about it if you do not look at me.",
            ],
            more: &[
                "I washed everything that night, and then I went to work.",
                "He still comes to the same church.",
                "I freeze when my partner touches my shoulder, and he thinks it is about him.",
            ],
            hears: &[
                "Thank you for trusting me with this. What was done to you was not your fault.",
                "You may go as slowly as you like, and you may stop at any point.",
                "Freezing is something a body does to survive. It is never agreement.",
            ],
            asks: &[
                "Are you safe from this person now, at home and on your way there?",
                "What would feel most helpful today: to tell more, or to rest beside what you have told?",
                "Is there any part of this for which you would like medical care?",
            ],
            acts: &[
                "Reporting is your choice as an adult, and I will help you understand each path before you choose.",
                "RAINN answers at 1-800-656-4673 at any hour, if tonight becomes hard.",
                "Let us agree on a sign you can give me when it becomes too much.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::ElderAbuseConcerns,
        difficulty: Difficulty::High,
        challenges: ["vulnerability_assessment", "reporting_decisions", "resource_coordination"],
        theme: Theme {
            title: "an older person at risk",
            opens: &[
                "My son keeps my bank card now. He says I would only lose it.",
                "I think my brother locks our father in his room during the day.",
                "There are bruises on my arm. I am old, I bruise, that is what they say.",
                "She signed the house over to the carer, and she does not remember doing it.",
            ],
            more: &[
                "I do not want him to get into trouble. He is all I have.",
                "The fridge was empty and the medicine was two weeks old.",
                "If I complain they will put me in a home.",
            ],
            hears: &[
                "You love your son, and something about this no longer feels right.",
                "It takes strength to speak about someone you depend on.",
                "You are afraid that asking for help will cost you your home.",
            ],
            asks: &[
                "Do you have food, your medicines and a telephone that you can use on your own?",
                "Has anyone hit you, frightened you, or made you sign something?",
                "What would you want to be different at home, if you could choose?",
            ],
            acts: &[
                "I may have to call adult protective services, and I would like you to hear what I say.",
                "The Eldercare Locator, 1-800-677-1116, can name help in your own street.",
                "Let us ask the nurse to visit this week, with you deciding who is in the room.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::DomesticViolenceActive,
        difficulty: Difficulty::High,
        challenges: ["safety_planning", "ambivalence", "lethality_assessment"],
        theme: Theme {
            title: "violence at home",
            opens: &[
                "He put his hands around my neck, but he apologised and bought flowers.",
                "I can only talk until he is back from parking the car.",
                "She throws things. People laugh when a man says that.",
                "He reads my phone every night, so please do not write to me.",
            ],
            more: &[
                "I still love him. I know how that sounds to you.",
                "He says that if I leave he will find me.",
                "The children sleep in my bed with the chair against the door.",
            ],
            hears: &[
                "Being choked is very dangerous, and I am worried about you.",
                "You can love someone and be afraid of him. Both are true.",
                "You have kept the children safe in ways that nobody sees.",
            ],
            asks: &[
                "Has it become more frequent or more severe, and is there a gun in the house?",
                "When is it safe to reach you, and by which way?",
                "What happened the last time you thought about leaving?",
            ],
            acts: &[
                "You decide when and whether to leave. Let us make a plan for both cases.",
                "The hotline, 1-800-799-7233, can be called from my phone, so it leaves no trace on yours.",
                "We could pack papers, keys and medicine into one bag that stays with your neighbour.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::ReligiousDelusions,
        difficulty: Difficulty::High,
        challenges: ["cultural_sensitivity", "delusion_vs_faith", "safety_assessment"],
        theme: Theme {
            title: "a mission from God",
            opens: &[
                "God chose me to carry the message, and I have eleven days left.",
                "I have been fasting since the new moon because the angel asked for it.",
                "The pastor said I was unwell. That is how I know he has fallen.",
                "I am not allowed to sleep until the city repents.",
            ],
            more: &[
                "My mother prays too, and she does not hear what I hear.",
                "I was told to give away the furniture, so I did.",
                "If I fail, it will be my fault that the others are lost.",
            ],
            hears: &[
                "Your faith means a great deal to you, and this task weighs heavily.",
                "It sounds frightening to hold the fate of so many people in your hands.",
                "You have gone many days without food or sleep for this.",
            ],
            asks: &[
                "How is this like the faith you grew up with, and how is it different?",
                "Have you been asked to harm yourself or anyone, or to give up eating altogether?",
                "Whom in your community do you still trust to sit beside you?",
            ],
            acts: &[
                "I would like a doctor to see you today, because a body without food and sleep is in danger.",
                "With your leave I would invite the pastor or an elder you trust to join us.",
                "We need not decide what is true tonight. We can decide that you rest and drink.",
            ],
        },
    },
    EdgeTheme {
        category: EdgeCategory::GriefComplicated,
        difficulty: Difficulty::High,
        challenges: ["guilt_processing", "meaning_making", "suicide_risk"],
        theme: Theme {
            title: "grief with guilt",
            opens: &[
                "It is two years, and her toothbrush is still in the glass.",
                "I was the one driving. Everyone is kind about it, and I cannot bear it.",
                "I set the table for two, every evening, and then I put one plate away.",
                "If I had called the doctor on Monday, he would be alive.",
            ],
            more: &[
                "I talk to him at night. It is the only conversation I want.",
                "People say that time heals, and I want to throw something.",
                "Some nights I think that joining her would be simpler.",
            ],
            hears: &[
                "You miss her in every room, and moving the toothbrush would feel like leaving her.",
                "You have judged yourself every day since, without ever hearing the other side.",
                "Your grief has no timetable, and nobody should hurry you through it.",
            ],
            asks: &[
                "When you say that joining her would be simpler, are you thinking of ending your life?",
                "What would she say to you about that Monday, if she sat here?",
                "What of her would you like to carry with you, and what may be set down?",
            ],
            acts: &[
                "Could you bring a photograph next time, and tell me about an ordinary day with her?",
                "Let us write the letter that you have been composing for two years, one paragraph a week.",
                "If the nights become dangerous, please call 988, and tell me the next morning.",
            ],
        },
    },
];
