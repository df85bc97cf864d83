//! Sentences of ordinary counselling, and what two personas talk about. A table; it knows no records.

use super::Theme;

/// Twelve matters that fill most weeks of a clinic.
pub(in crate::corpus) const THEMES: &[Theme] = &[
    Theme {
        title: "worry",
        opens: &[
            "My head makes lists all night, and each item ends in a disaster.",
            "I check the stove four times, and then I worry about the worrying.",
            "Everyone says to relax, as if I had not thought of that.",
            "I cannot open an email from my boss without my stomach turning over.",
        ],
        more: &[
            "It is quieter when I am busy, so I am always busy.",
            "My father was the same. We called it being careful.",
            "I know it is unlikely. Knowing does not help at all.",
        ],
        hears: &[
            "Your mind is working very hard to keep you safe from things that may never come.",
            "Being told to relax can feel like being told you are doing it on purpose.",
            "You have found that being busy helps, and it also leaves you worn out.",
        ],
        asks: &[
            "When the list starts, which item is usually the first one?",
            "What does the worry promise you, if you keep listening to it?",
            "What would you do with an evening that the worry did not take?",
        ],
        acts: &[
            "Let us set a worry time of fifteen minutes, at five o'clock, with paper and a pen.",
            "This week, notice one worry, write it down, and leave it without solving it.",
            "We could test one of the predictions together and see what happens.",
        ],
    },
    Theme {
        title: "low mood",
        opens: &[
            "Nothing is wrong, exactly. Everything is just grey.",
            "I used to sing in the car, and I noticed that the radio has been off for months.",
            "I get up, I work, I lie down. Somebody could replace me with a lamp.",
            "My friends stopped asking me along, and I do not blame them.",
        ],
        more: &[
            "The mornings are the heaviest. By night it is almost bearable.",
            "I feel guilty, because other people have real problems.",
            "I have not cried. I think I would like to.",
        ],
        hears: &[
            "Grey is a good word for it, and it sounds as if it has been grey for a long while.",
            "You miss the person who sang in the car.",
            "It is hard to ask for help when you think you have no right to feel this way.",
        ],
        asks: &[
            "What was the last thing that gave you a little pleasure, even a small one?",
            "How have your sleep, your appetite and your energy been in the last two weeks?",
            "Have there been moments when you thought that life was not worth living?",
        ],
        acts: &[
            "Let us choose one small thing for each day, and rate it before and after.",
            "I would like us to fill in a short questionnaire today and again in a month.",
            "Could you answer one friend this week, with one honest sentence?",
        ],
    },
    Theme {
        title: "sleep",
        opens: &[
            "I am exhausted, and the moment I lie down I am wide awake.",
            "I look at the clock at two, at three and at four, and then I hate the day already.",
            "I have tried tea, pills and podcasts about the sea.",
            "I nap at my desk, and then I cannot sleep at night, and round it goes.",
        ],
        more: &[
            "The bed has become a place where I fail.",
            "At weekends I stay in bed until noon to catch up.",
            "I do my best worrying between three and five.",
        ],
        hears: &[
            "The harder you try to sleep, the further away it moves.",
            "By now the bed itself seems to wake you up.",
            "You have tried so many things, and each one that failed made the night longer.",
        ],
        asks: &[
            "What time do you get up, on workdays and on free days?",
            "What goes through your mind when you see the clock at three?",
            "What did you do in the last hour before bed yesterday?",
        ],
        acts: &[
            "Let us turn the clock to the wall and keep one rising time for all seven days.",
            "If you are awake for twenty minutes, leave the bed and read something dull.",
            "Please keep a short sleep diary until we meet, two lines each morning.",
        ],
    },
    Theme {
        title: "work and strain",
        opens: &[
            "I sat in the car park for forty minutes before I could go in.",
            "Two people left, and I do their work as well as mine.",
            "I snapped at a trainee, and I saw myself become my old manager.",
            "Sunday at four in the afternoon my chest gets tight.",
        ],
        more: &[
            "If I say no, somebody else has to do it.",
            "I used to love this job. That is the saddest part.",
            "My doctor says my heart is fine.",
        ],
        hears: &[
            "You have held the place together, and it has cost you more than anyone sees.",
            "Your body began to say no before you could.",
            "It hurt to hear yourself speak like that.",
        ],
        asks: &[
            "Which part of the work would you keep, if you could keep only one?",
            "What do you fear would happen if you left on time for one week?",
            "Who at work would not be surprised to hear how you are?",
        ],
        acts: &[
            "Let us write the sentence you would say to your manager, and practise it here.",
            "This week, take one real break at noon, away from the desk, and tell me how it went.",
            "We might look at what may be dropped, what may be shared, and what must be you.",
        ],
    },
    Theme {
        title: "loneliness",
        opens: &[
            "I moved here in March, and I have spoken to the man at the bakery.",
            "My phone rings when something is broken. Otherwise it does not ring.",
            "I am surrounded by people all day, and not one of them knows me.",
            "Since the children left I lay the table in front of the television.",
        ],
        more: &[
            "I rehearse a sentence, and then the moment is gone.",
            "I do not want to be a burden to anyone.",
            "There was a choir. I went as far as the door.",
        ],
        hears: &[
            "You are longing for someone who knows you, and not only for company.",
            "Going as far as the door was a real step, even if it felt like a defeat.",
            "The silence at home has become loud.",
        ],
        asks: &[
            "Who was the last person with whom you felt at ease?",
            "What do you tell yourself in front of that door?",
            "Which kind of contact would be small enough for this week?",
        ],
        acts: &[
            "Let us plan the door in steps: the street, the door, ten minutes, the first song.",
            "Could you ask the man at the bakery one question more than usual?",
            "I would like us to write to one old friend together, three lines and no apology.",
        ],
    },
    Theme {
        title: "panic",
        opens: &[
            "In the supermarket my heart ran off, and I was sure I would die between the shelves.",
            "I have not taken the motorway since spring.",
            "It comes from nowhere. My hands go numb and the room tilts.",
            "I always sit next to the exit now, even here.",
        ],
        more: &[
            "The hospital sent me home with a paper that says anxiety.",
            "I carry water, tablets and my sister's number everywhere.",
            "What if it happens while I am holding the baby?",
        ],
        hears: &[
            "It felt like dying, and then people told you that it was nothing.",
            "Your world has become smaller, one road at a time.",
            "Your body sounded an alarm, a very loud one, without a fire.",
        ],
        asks: &[
            "What was the very first sign, before the heart?",
            "What do you do when it starts, and what do you think that prevents?",
            "Which of the lost places would you like to have back first?",
        ],
        acts: &[
            "Let us bring on a little of the dizziness here, safely, and see what it does.",
            "We will draw a ladder of places, and you choose the lowest rung for this week.",
            "Next time, stay, breathe slowly, and watch it rise and fall like a wave.",
        ],
    },
    Theme {
        title: "a couple drifting",
        opens: &[
            "We are very polite to each other. Like colleagues.",
            "He comes home and goes to his screen, and I go to mine.",
            "We argue about the dishwasher, but it is not about the dishwasher.",
            "She wants to talk when I am asleep on my feet.",
        ],
        more: &[
            "I miss him, and he is sitting right there.",
            "If I start, it turns into a list of my faults.",
            "We have not been alone for one evening since the twins.",
        ],
        hears: &[
            "You miss each other while living in the same rooms.",
            "The dishwasher seems to stand for something you have not been able to say.",
            "You stopped starting because it ended in hurt so often.",
        ],
        asks: &[
            "When did you last feel on the same side, and what were you doing?",
            "If the dishwasher could speak, what would it say that you need?",
            "What do you do in the first minute when the other comes home?",
        ],
        acts: &[
            "Let us try ten minutes each evening, one speaks and one only listens.",
            "Each of you, notice one kind thing a day and say it aloud.",
            "We could begin the hard talk here, with me keeping the time.",
        ],
    },
    Theme {
        title: "self-worth",
        opens: &[
            "I got the job, and all I can think is that they will find me out.",
            "When someone praises me I look for what they want.",
            "I apologised to a chair this morning.",
            "My sister is the clever one. I am the one who helps.",
        ],
        more: &[
            "My mother never said anything bad. She simply never said anything.",
            "If I rest, the voice says lazy.",
            "I would never speak to a friend the way I speak to myself.",
        ],
        hears: &[
            "There is a strict voice in you that allows no success to count.",
            "You learned early that being useful was the way to be loved.",
            "It is tiring to stand trial every day with only a prosecutor.",
        ],
        asks: &[
            "Whose voice does it sound like, when it says lazy?",
            "What would you say to a friend who had just got that job?",
            "What do you fear would happen if you were kinder to yourself?",
        ],
        acts: &[
            "Let us write down what the strict voice says, and answer it as you would a friend.",
            "This week, take one compliment with only the words thank you.",
            "We might collect evidence for three weeks, on both sides, as a fair court would.",
        ],
    },
    Theme {
        title: "being a parent",
        opens: &[
            "I swore I would never shout, and yesterday I shouted about a shoe.",
            "The baby cries from five to nine, and I stand in the bathroom and count.",
            "My son asked why I never laugh. He is four.",
            "The other mothers seem to have received a manual.",
        ],
        more: &[
            "I love her. I am just so tired that I cannot feel it.",
            "My own father used to leave the room. I leave the room too.",
            "My partner says that I should ask for help. From whom?",
        ],
        hears: &[
            "The shoe was the last drop in a bucket that was full for weeks.",
            "You can love her and be too tired to feel it. That happens to many parents.",
            "You noticed what you do, and you want something else for him.",
        ],
        asks: &[
            "How much sleep do you get in one piece?",
            "Do you ever have thoughts that frighten you, about yourself or the baby?",
            "What happens after the shouting, when it is quiet again?",
        ],
        acts: &[
            "Repair counts more than never breaking. Let us find words for after the shouting.",
            "I would like us to look at two nights a week on which somebody else gets up.",
            "The Maternal Mental Health line, 1-833-852-6262, answers at five in the evening too.",
        ],
    },
    Theme {
        title: "exams",
        opens: &[
            "I know it all at home, and in the hall my head is white.",
            "If I fail this one, four years were for nothing.",
            "I study until two, and I remember nothing at eight.",
            "Everyone in my family is a doctor. I am in my third attempt.",
        ],
        more: &[
            "I read the same page nine times.",
            "I have not told my parents about the second attempt.",
            "I feel sick on the bus, every single time.",
        ],
        hears: &[
            "So much hangs on this hour that your mind has no room left for the questions.",
            "You carry your own hopes and those of a whole family into the hall.",
            "You work hard, and it hurts that it does not show.",
        ],
        asks: &[
            "What exactly goes through your mind in the first minute in the hall?",
            "What would it say about you, if you failed?",
            "When do you learn well, and what is different then?",
        ],
        acts: &[
            "Let us practise the first minute: feet, breath, read one question twice.",
            "Plan two hours fewer of study and one more hour of sleep, for one week only.",
            "We could rehearse what you will tell your parents, so that the secret weighs less.",
        ],
    },
    Theme {
        title: "shyness",
        opens: &[
            "When I have to introduce myself my face turns red before my turn comes.",
            "I order by app so that I do not have to speak to anybody.",
            "I said something stupid in 2019, and I still hear it.",
            "They asked me to give the toast at my brother's wedding.",
        ],
        more: &[
            "I plan every sentence, and then the talk has moved on.",
            "They must think I am arrogant. I am terrified.",
            "Afterwards I go through it all, like a film of mistakes.",
        ],
        hears: &[
            "You feel everyone's eyes on you, and you look at yourself through them.",
            "Your silence is fear, and others may be reading it as distance.",
            "The film afterwards seems to be worse than the evening was.",
        ],
        asks: &[
            "Where is your attention when you start to blush?",
            "What do you suppose the others remember of that evening in 2019?",
            "What would you like your brother to hear from you?",
        ],
        acts: &[
            "Let us try a talk here with your attention on me, and then one with it on yourself.",
            "This week, ask one stranger for the time, on purpose, and note what happened.",
            "We can write the toast in three sentences, and you read it to me until it is dull.",
        ],
    },
    Theme {
        title: "change and loss of a role",
        opens: &[
            "I retired in June, and on Mondays I still iron a shirt.",
            "The diagnosis is not the worst. The worst is that they now speak to my wife instead of me.",
            "After the divorce I do not know which coffee I like.",
            "I came back from service, and everybody complains about parking.",
        ],
        more: &[
            "I was somebody there. They asked me things.",
            "I do not want pity. I want to be of use.",
            "My grandson asked what I do all day.",
        ],
        hears: &[
            "You lost more than a timetable. You lost a place where you counted.",
            "It stings to be spoken about while you sit right there.",
            "You are learning who you are without the other person, down to the coffee.",
        ],
        asks: &[
            "What did people come to you for, and where is that needed now?",
            "What of the old life would you keep, and what are you glad to be rid of?",
            "What would a good Monday look like, half a year from now?",
        ],
        acts: &[
            "Let us list what you are good at, and find one place this month that lacks it.",
            "Next visit, tell the doctor in your first sentence to whom he should speak.",
            "Try three kinds of coffee this week. I mean it as homework.",
        ],
    },
];

/// What a clinician says between two questions.
pub(in crate::corpus) const BRIDGES: &[&str] = &[
    "Take your time.",
    "There is no hurry here.",
    "Let me check that I follow you.",
    "That is worth staying with.",
    "I would like to understand this better.",
    "Say more about that, if you are willing.",
    "I notice that you paused there.",
    "That helps me to see it.",
];

/// What a client says when something was understood.
pub(in crate::corpus) const NODS: &[&str] = &[
    "Yes. That is it, more or less.",
    "I had not thought of it in that way.",
    "Maybe. It is strange to hear it said aloud.",
    "I suppose so. It is hard to look at.",
    "Nobody has asked me that before.",
    "Right. I would like it to be different.",
    "Okay. I can try that, I think.",
    "It sounds small, but it is not small for me.",
];

/// How a session ends.
pub(in crate::corpus) const CLOSINGS: &[&str] = &[
    "Before we stop: what will you take with you from today?",
    "We have a few minutes left. What was useful, and what was not?",
    "Let us stop here and begin next week with what you noticed.",
    "Thank you for your trust today. Is there anything you need before you go out?",
    "I will write down what we agreed on, and you tell me if I got it right.",
];

/// Who speaks in dual-persona dialogues: name of the persona and its manner.
pub(in crate::corpus) const PERSONAS: &[(&str, &str)] = &[
    ("Guarded engineer", "answers briefly, dislikes metaphors, softens when asked about facts"),
    ("Cheerful avoider", "jokes when it hurts, changes the subject, is relieved when stopped"),
    ("Worn-out carer", "speaks of others first, apologises often, has not slept"),
    ("Sceptical student", "tests each sentence, wants reasons, respects plain answers"),
    ("Quiet widower", "pauses long, remembers details, does not like to be hurried"),
    ("Restless founder", "talks fast, plans everything, fears standing still"),
];

/// Manner of the clinician in dual-persona dialogues.
pub(in crate::corpus) const CLINICIANS: &[(&str, &str)] = &[
    ("Calm generalist", "warm, slow, asks one question at a time"),
    ("Behavioural therapist", "concrete, agrees on small experiments, reviews them"),
    ("Motivational interviewer", "reflects, affirms, lets the client argue for change"),
];

/// Which way a voice pair is spoken.
pub(in crate::corpus) const TONES: &[&str] = &["low", "hesitant", "hurried", "steady", "tearful", "flat"];
