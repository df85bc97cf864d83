//! Sentences of notes and of screening interviews. A table; it knows no records. The items follow the content of the
//! PHQ-9 and GAD-7, which are free to reproduce; the interviewer's wording is this project's own.

/// How a clinician asks for a note.
pub(in crate::corpus) const NOTE_REQUESTS: &[&str] = &[
    "Write a progress note in SOAP form from these points.",
    "Please summarise this session for the record, four short sections.",
    "Turn my keywords into a SOAP note. Keep it factual.",
    "Draft the note for today's session. No speculation, please.",
];

/// Points of a session: keywords, subjective, objective, assessment, plan.
pub(in crate::corpus) const NOTE_POINTS: &[[&str; 5]] = &[
    [
        "sleep worse, conflict at work, denies suicidal thoughts",
        "Client reports three weeks of poor sleep and a conflict with a supervisor.",
        "Oriented, cooperative, restless hands; affect anxious and congruent.",
        "Adjustment difficulties with insomnia. Denies suicidal ideation, plan or intent.",
        "Sleep diary, fixed rising time, rehearse one conversation with the supervisor.",
    ],
    [
        "grief, anniversary next week, passive death wish, no plan",
        "Client describes longing for the spouse and passive wishes not to wake up.",
        "Tearful, slowed speech, good eye contact towards the end.",
        "Prolonged grief with passive suicidal ideation; no plan, no intent, protective family.",
        "Safety plan reviewed, 988 saved in phone, extra session on the anniversary.",
    ],
    [
        "two drinks a day, was six, cravings at five pm",
        "Client reports a reduction from six to two drinks a day and cravings in late afternoon.",
        "Alert, no tremor, humour present; motivated.",
        "Alcohol use disorder, improving. Confidence in change rated seven of ten.",
        "Plan activity for five o'clock, continue medication, liver tests by the family doctor.",
    ],
    [
        "panic twice, took the bus once, proud",
        "Client had two panic attacks and took the bus for three stops on purpose.",
        "Animated, proud, breathing calm throughout the session.",
        "Panic disorder with agoraphobic avoidance, responding to exposure.",
        "Next rung: five stops without the water bottle, twice before next session.",
    ],
    [
        "stopped tablets, sleeps four hours, spends, wife worried",
        "Client stopped the mood stabiliser and sleeps four hours without feeling tired.",
        "Rapid speech, distractible, irritable when interrupted.",
        "Hypomanic episode, risk of escalation. Insight partial.",
        "Same-day call to psychiatry, spouse informed with consent, no major purchases.",
    ],
    [
        "teenager silent, then talked about music, mother waiting outside",
        "Adolescent spoke little at first, then described music as the only calm time.",
        "Guarded, later engaged; no signs of intoxication.",
        "Engagement difficulties in a family conflict; no acute risk identified.",
        "Agree with the family on what is shared; bring a song next time.",
    ],
    [
        "nightmares fewer, grounding card used three times",
        "Client reports fewer nightmares and three uses of the grounding card.",
        "Calmer posture; startled once and recovered within a minute.",
        "Post-traumatic stress, stabilisation phase, skills taking hold.",
        "Continue grounding, begin a timeline with headings only, no details yet.",
    ],
    [
        "pain seven of ten, paced walking, wife joined",
        "Client rates pain seven of ten and walked twelve minutes daily by the clock.",
        "Shifts position often; warm exchange with spouse in the second half.",
        "Chronic pain with low mood; pacing accepted, mood slightly better.",
        "Raise to fourteen minutes, spouse to ask once a day in the agreed words.",
    ],
    [
        "partner monitors phone, bag packed at neighbour's, no injury this week",
        "Client reports continued monitoring of the phone and no physical injury this week.",
        "Frightened, speaks quietly, decisions clear.",
        "Ongoing partner violence with high-risk markers; client plans for leaving.",
        "Advocate meeting arranged at the clinic, no written messages, code word agreed.",
    ],
    [
        "restricts, pulse forty-eight, agreed to doctor",
        "Client restricts intake to two small meals and reports dizziness on standing.",
        "Pale, cold hands; measured pulse forty-eight.",
        "Restrictive eating disorder with medical risk that outranks outpatient psychotherapy.",
        "Physician today, weekly potassium and ECG, shared meal with sister twice.",
    ],
];

/// What a note begins with.
pub(in crate::corpus) const NOTE_HEADS: &[&str] =
    &["Session note.", "Progress note.", "Summary of the session.", "Note for the record."];

/// Items of a depression screen, as an interviewer asks them.
pub(in crate::corpus) const PHQ_ITEMS: &[&str] = &[
    "Over the last two weeks, how often did you have little interest or pleasure in doing things?",
    "How often have you felt down, depressed or hopeless?",
    "How often did you have trouble falling or staying asleep, or sleep too much?",
    "How often have you felt tired or had little energy?",
    "How often did you have a poor appetite, or eat too much?",
    "How often have you felt bad about yourself, or that you have let yourself or your family down?",
    "How often did you have trouble concentrating, for instance on reading or television?",
    "How often did you move or speak so slowly, or so restlessly, that other people noticed?",
    "How often did you have thoughts that you would be better off dead, or of hurting yourself?",
];

/// Items of an anxiety screen, as an interviewer asks them.
pub(in crate::corpus) const GAD_ITEMS: &[&str] = &[
    "Over the last two weeks, how often have you felt nervous, anxious or on edge?",
    "How often were you unable to stop or control worrying?",
    "How often did you worry too much about different things?",
    "How often did you have trouble relaxing?",
    "How often were you so restless that it was hard to sit still?",
    "How often did you become easily annoyed or irritable?",
    "How often did you feel afraid, as if something awful might happen?",
];

/// Answers with their points: not at all, several days, more than half the days, nearly every day.
pub(in crate::corpus) const ANSWERS: [&[&str]; 4] = [
    &["Not at all.", "No, not that.", "Never in these two weeks."],
    &["Several days.", "A few days, when it rained.", "Now and then, three days perhaps."],
    &["More than half the days.", "Most days, I would say.", "On more days than not."],
    &["Nearly every day.", "Every day.", "All the time, to be honest."],
];

/// What an interviewer says after an answer.
pub(in crate::corpus) const THANKS: &[&str] =
    &["Thank you.", "I have noted that.", "That is clear, thank you.", "Thank you for being frank.", "All right."];
