//! Signs of danger in what a client says: suicidal thoughts, plans and acts, self-harm, harm to others. Lexical rules
//! over single messages, with the turns of speech that sound like danger and are not taken out first. It refuses to
//! say that somebody is safe: [`Level::None`] means that no rule matched. Most suicides follow a denial (Louzon 2016:
//! 71.6 % had answered "not at all" to PHQ-9 item 9), so absence of a sign is never shown as safety.

use regex::{Regex, RegexSet};
use std::sync::LazyLock;

/// How urgent the strongest sign is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No rule matched. Not a statement of safety.
    None,
    /// A sign that a clinician should see soon: past acts, passive wishes, signs in another person.
    Concern,
    /// A sign that needs a human now: present intent, plan, means or act.
    Acute,
}

/// What kind of sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignKind {
    /// Wish to be dead or to end one's life.
    SuicidalIdeation,
    /// Method, means, time, goodbye, or an act begun.
    SuicidePlan,
    /// Injury of oneself without the wish to die.
    SelfHarm,
    /// Intent or urge to harm another person.
    HarmToOthers,
}

/// One sign found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sign {
    /// What kind.
    pub kind: SignKind,
    /// How urgent.
    pub level: Level,
    /// Index of the message it stands in.
    pub message: usize,
}

/// What the rules found in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// The strongest level.
    pub level: Level,
    /// Each sign, in the order of the messages.
    pub signs: Vec<Sign>,
}

/// Messages after this many are not read; the newest come last, so the oldest are left out.
pub const MESSAGES_MAX: usize = 256;
/// Bytes of one message that are read, from its end.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Assesses what the client says, one message a turn, oldest first.
#[must_use]
pub fn assess(messages: &[&str]) -> Assessment {
    let from = messages.len().saturating_sub(MESSAGES_MAX);
    let signs: Vec<Sign> = messages
        .iter()
        .enumerate()
        .skip(from)
        .flat_map(|(message, text)| signs_in(text).into_iter().map(move |(kind, level)| Sign { kind, level, message }))
        .collect();
    let level = signs.iter().map(|sign| sign.level).max().unwrap_or(Level::None);
    Assessment { level, signs }
}

/// The signs of one message: the strongest of each kind.
fn signs_in(text: &str) -> Vec<(SignKind, Level)> {
    let text = plain(tail(text, MESSAGE_BYTES_MAX));
    let mut found: Vec<(SignKind, Level)> = Vec::new();
    for sentence in text.split(['.', '!', '?', ';', '\n']) {
        for index in RULES.set.matches(sentence) {
            let rule = &RULES.table[index];
            let level = if is_denied(sentence, &RULES.single[index]) { continue } else { rule.level };
            match found.iter_mut().find(|(kind, _)| *kind == rule.kind) {
                Some((_, known)) => *known = (*known).max(level),
                None => found.push((rule.kind, level)),
            }
        }
    }
    found
}

fn tail(text: &str, bytes_max: usize) -> &str {
    let mut from = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// Lower case, straight apostrophes, single blanks, and turns of speech that only sound like danger taken out.
fn plain(text: &str) -> String {
    let lower = text.to_lowercase().replace(['\u{2019}', '\u{2018}', '\u{00b4}', '`'], "'");
    let mut out = String::with_capacity(lower.len());
    for line in lower.lines() {
        out.extend(line.split_whitespace().flat_map(|word| [word, " "]));
        out.push('\n');
    }
    IDIOMS.replace_all(&out, " ").into_owned()
}

/// Whether every match of the rule stands right after a denial, as in "I would never kill myself".
fn is_denied(sentence: &str, rule: &Regex) -> bool {
    rule.find_iter(sentence).all(|hit| DENIAL.is_match(&sentence[..hit.start()]))
}

/// A denial within four words before the sign. "I can't go on" and "don't want to live" are signs themselves and begin
/// with their own negation, so they never reach this rule.
static DENIAL: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?:\b(?:not|never|no|without|isn't|wasn't|aren't|don't|didn't|doesn't|won't|wouldn't|haven't|hasn't|couldn't|nobody|deny|denies|denied)\b(?:[ ,]+[a-z']+){0,4}[ ,]*)$",
    )
});

/// Figures of speech, and talk of work, play and food.
static IDIOMS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"\b(?:dying (?:to (?:know|see|meet|try|hear|go|get|eat|tell)|of (?:laughter|boredom|curiosity|hunger|thirst|heat)|laughing|for a)",
        r"|to die for|die[ds]? (?:laughing|of (?:laughter|boredom|embarrassment|shame))|(?:bored|scared|worried|tickled|starved|frozen) to death",
        r"|kill(?:ing|ed|s)? (?:time|it|the (?:mood|vibe|lights?|engine|process|pain|weeds?|bacteria|germs|virus|deal))",
        r"|(?:traffic|work|homework|job|feet|back|head|heat|stress|suspense|shoes|knees?|commute|boss|deadline|exams?|pain|it|that|this|which|he|she|they|you)(?: is| are|'s|'re| was| were)? (?:just |really |absolutely )?killing me",
        r"|(?:my (?:mum|mom|mother|dad|father|parents|boss|wife|husband|partner|teacher|girlfriend|boyfriend|sister|brother)|she|he|they)(?:'ll| will|'d| would|'s going to| is going to| are going to)? (?:literally )?(?:kill|murder)s? me (?:if|when|for)",
        r"|i(?:'d| could| would|'ll) (?:just )?kill for (?:a|an|some)|shoot (?:me|you|us|him|her) (?:an?|the) (?:email|e-mail|mail|message|text|note)",
        r"|suicide (?:squad|prevention|awareness|hotline|bomber|run|mission)|dead (?:tired|serious|line|end|battery|weight))\b",
    ))
});

struct Rule {
    kind: SignKind,
    level: Level,
    pattern: &'static str,
}

struct Rules {
    table: &'static [Rule],
    set: RegexSet,
    single: Vec<Regex>,
}

static RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
    table: TABLE,
    // The table is constant; a pattern that does not compile fails every test of this file.
    set: RegexSet::new(TABLE.iter().map(|rule| rule.pattern)).unwrap_or_else(|_| RegexSet::empty()),
    single: TABLE.iter().map(|rule| pattern(rule.pattern)).collect(),
});

/// A constant pattern. One that cannot be compiled matches nothing, and the tests below then fail.
fn pattern(text: &str) -> Regex {
    Regex::new(text).unwrap_or_else(|_| Regex::new(r"[^\s\S]").expect("the empty class compiles"))
}

macro_rules! rules {
    ($($kind:ident $level:ident $pattern:expr;)*) => {
        &[$(Rule { kind: SignKind::$kind, level: Level::$level, pattern: $pattern },)*]
    };
}

/// The rules. Wordings follow the questions of the C-SSRS screener (wish to be dead, thoughts, method, intent, plan, act)
/// and the forms in which people say them.
static TABLE: &[Rule] = rules! {
    SuicidalIdeation Acute r"\b(?:kill(?:ing|ed)?|hang(?:ing)?|shoot(?:ing)?|drown(?:ing)?|poison(?:ing)?|off(?:ing)?) (?:myself|my self)\b";
    SuicidalIdeation Acute r"\b(?:end(?:ing)?|take|taking|finish(?:ing)?) (?:my|my own) life\b|\bend it all\b|\bending it all\b";
    SuicidalIdeation Acute r"\b(?:commit(?:ting)?|attempt(?:ing)?|complete) suicide\b|\b(?:i am|i'm|i feel|feeling|been|i was|i've been) (?:so |very |really |actively )?suicidal\b";
    SuicidalIdeation Acute r"\b(?:i|i'd|i just|i really|i only) (?:want|wanna|wanted|need|wish|would like|plan|intend|am going|'m going|going)(?: to)? (?:just |to )*(?:die|be dead|disappear forever|not wake up|never wake up)\b";
    SuicidalIdeation Acute r"\b(?:don't|do not|dont|didn't|no longer|never) (?:really |even |just )?(?:want|wanna|wish|care) (?:to )?(?:live|be alive|exist|wake up|be here|keep living|go on living|stay alive)(?: any ?more| anymore)?\b";
    SuicidalIdeation Acute r"\b(?:thoughts?|thinking|think|thought|idea|ideas|urges?) (?:of|about|to) (?:\w+ ){0,2}(?:suicide|dying|killing myself|ending (?:it|things|my life)|taking my life|my own death)\b";
    SuicidalIdeation Acute r"\b(?:tired|sick|done) (?:of|with) (?:living|being alive|life|existing)\b|\bno (?:reason|point) (?:in |to |for )?(?:me to )?(?:living|live|go on|going on|be alive|being alive|keep going)\b|\blife (?:is not|isn't|is no longer) worth (?:living|it)\b";
    SuicidalIdeation Acute r"\b(?:i|i just|i really|just) (?:wish|hope|pray) (?:that )?(?:i|i could|i would|to) (?:just |could |would )*(?:die|be dead|not exist|stop existing)\b|\b(?:wanting|wish(?:ing)?|hoping|ready|want) to (?:just )?(?:die|be dead)\b";
    SuicidalIdeation Acute r"\b(?:quickest|easiest|fastest|best|painless|least painful) way (?:for me )?to (?:die|kill|end|go|commit)\b|\bsuicidal (?:thoughts|ideation|feelings|urges|again|every|right now|today|lately)\b";
    SuicidalIdeation Acute r"\b(?:dream|dreaming|dreamed|fantasi[sz]e|fantasi[sz]ing) (?:of|about) (?:suicide|dying|death|being dead|killing)\b|\b(?:suicide|death|dying) is (?:(?:always|constantly|all) )?(?:on my mind|i (?:can )?think about|the only (?:way|option|answer))\b|\bsuicide (?:for me|tonight|tomorrow|is my)\b";
    SuicidalIdeation Concern r"\bwhy am i (?:still )?(?:even )?(?:alive|here|living)\b|\bhate (?:being alive|living|my life so much)\b|\bwhy would i want to live\b|\bworld would be better (?:off )?without me\b|\bgoing to kill yourself\b";
    SuicidalIdeation Concern r"\b(?:better off|be happier|be easier) (?:without me|if i (?:was|were) (?:dead|gone|not here))\b|\bbetter off dead\b|\bi (?:shouldn't|should not) (?:be here|exist|be alive)\b|\bwish i(?:'d| had)? (?:was|were|had) (?:never (?:been )?born|dead|not been born)\b|\bwish i (?:could )?(?:go to sleep|fall asleep|sleep) and (?:not|never) wake\b";
    SuicidalIdeation Concern r"\b(?:can't|cannot|can not) (?:go on|take it any ?more|do this any ?more|keep (?:living|going)) ?(?:like this|any ?more|with (?:my )?life)?\b(?:.{0,40}\b(?:life|live|living|alive|die|dead|end)\b)";
    SuicidalIdeation Concern r"\b(?:tried|attempted) (?:to )?(?:kill myself|suicide|end my life|take my life|hang myself|overdose)\b|\bsuicide attempts?\b|\b(?:my|his|her|their|the) suicide\b|\b(?:he|she|they|friend|brother|sister|son|daughter|husband|wife|partner|mother|father|mum|mom|dad)(?: is| was|'s| has been| talks? about| keeps? talking about)? (?:suicidal|suicide|killing (?:him|her|them)sel(?:f|ves))\b";
    SuicidePlan Acute r"\b(?:overdos(?:e|ed|ing)|od'd)\b(?:.{0,30}\b(?:tonight|on purpose|myself|pills|tablets|myself)\b)?";
    SuicidePlan Acute r"\b(?:took|taken|swallowed|swallow|take|saved?|saving|stockpil\w+|hoard\w+|counted|counting) (?:\w+ ){0,4}(?:pills|tablets|paracetamol|tylenol|insulin|medication|sleeping pills|bottle of pills)\b.{0,60}\b(?:die|end|enough|all|tonight|myself|goodbye|sleep forever)\b";
    SuicidePlan Acute r"\b(?:have|got|bought|loaded|found|hid|hidden|keep) (?:\w+ ){0,3}(?:gun|pistol|rope|noose|blade|razor|knife)\b.{0,60}\b(?:myself|my (?:head|wrists?|neck|life)|end it|tonight|ready|use it on)\b";
    SuicidePlan Acute r"\b(?:jump(?:ing)?|throw(?:ing)? myself) (?:off|from|in front of) (?:\w+ ){0,3}(?:bridge|roof|building|balcony|cliff|train|bus|car|traffic)\b";
    SuicidePlan Acute r"\b(?:suicide|goodbye|farewell) (?:note|letter|letters|notes|video)\b|\b(?:wrote|writing|written|left) (?:\w+ ){0,2}(?:goodbyes|goodbye|a will)\b.{0,40}\b(?:kids|family|everyone|wife|husband|mum|mom|parents|friends)\b";
    SuicidePlan Acute r"\b(?:plan|planned|planning|know how|figured out how|decided how|decided when|date set) (?:\w+ ){0,4}(?:to (?:die|do it|end it|end my life|kill myself)|my (?:own )?(?:death|suicide)|i(?:'ll| will|'m going to) (?:do it|end it))\b";
    SuicidePlan Acute r"\b(?:tonight|this) (?:is|will be) (?:my|the) last (?:night|day|time|message|conversation)\b|\b(?:won't|will not) be (?:here|around|alive) (?:tomorrow|next week|by morning|much longer|when you)\b";
    SelfHarm Acute r"\b(?:cut|cutting|burn|burning|hurt|hurting|harm|harming|hitting|scratching) (?:myself|my (?:arms?|wrists?|legs?|thighs?|skin))\b";
    SelfHarm Concern r"\bself[- ]?(?:harm|harming|harmed|injur\w+|mutilat\w+)\b|\b(?:used to|would|started to|began to) cut\b";
    HarmToOthers Acute r"\b(?:i|i'm|i'll|i'd|i'm gonna|gonna|going to|want to|wanna|urge to|could|thinking (?:of|about)|thoughts of|thoughts about) (?:\w+ ){0,4}(?:kill|killing|murder|murdering|stab|stabbing|shoot|shooting|strangle|strangling|hurt|hurting) (?:him|her|them|my (?:\w+ )?(?:wife|husband|boss|ex|partner|mother|father|mum|mom|dad|son|daughter|kids?|baby|child|children|brother|sister|neighbou?r|girlfriend|boyfriend|teacher|roommate|family)|someone|somebody|people|everyone|that (?:man|woman|guy|bitch|bastard))\b";
    HarmToOthers Acute r"\b(?:he|she|they|you)(?:'ll| will|'s going to| are going to|'re going to| is going to)? (?:deserves? to die|pay for (?:it|this) with (?:his|her|their|your) life)\b|\b(?:bring|take|got) (?:a|my|the) (?:gun|knife) to (?:work|school|church|the office)\b";
};

#[cfg(test)]
mod tests {
    use super::*;

    fn level(text: &str) -> Level {
        assess(&[text]).level
    }

    #[test]
    fn plain_statements_of_danger_are_acute() {
        for text in [
            "I want to die.",
            "I\u{2019}m going to kill myself tonight",
            "I don't want to be here anymore",
            "I have been thinking about suicide every night.",
            "I saved all my pills and I have enough to sleep forever",
            "I bought a rope and I am ready",
            "I keep cutting my arms when he shouts",
            "I just want to end my life",
            "I could kill my boss, I have the urge to hurt him",
            "I wrote goodbye letters to my kids",
            "there's no point in living any more",
            "This is my last night. Thank you for listening.",
            "what is the quickest way to die",
            "I wish I could just die",
            "I have suicidal thoughts again",
        ] {
            assert_eq!(level(text), Level::Acute, "{text}");
        }
    }

    #[test]
    fn weaker_signs_are_a_concern() {
        for text in [
            "They would be better off without me.",
            "I attempted suicide when I was nineteen",
            "My brother is suicidal and I do not know what to do",
            "I used to self-harm at school.",
            "I wish I had never been born",
        ] {
            assert!(level(text) >= Level::Concern, "{text}");
        }
    }

    #[test]
    fn figures_of_speech_and_denials_are_not_signs() {
        for text in [
            "I'm dying to know what she said",
            "This homework is killing me",
            "My mum will kill me if I fail",
            "We were just killing time and shot some hoops",
            "The cake was to die for",
            "I would never kill myself, I love my children",
            "I am not suicidal, just sad",
            "No thoughts of suicide at the moment",
            "I can't go on holiday this year",
            "I want to stop smoking before I die of it at ninety",
            "The plant died and I laughed",
        ] {
            assert_eq!(level(text), Level::None, "{text}");
        }
    }

    /// The rules prefer a needless look to a missed sign.
    #[test]
    fn a_doubtful_sentence_counts() {
        assert_eq!(level("I don't want to live in this city"), Level::Acute);
    }

    #[test]
    fn one_denial_does_not_hide_a_later_sign() {
        assert_eq!(level("I did not kill myself then. Now I want to kill myself."), Level::Acute);
        assert_eq!(assess(&["hello", "I want to die", "sorry"]).signs[0].message, 1);
    }

    #[test]
    fn long_and_strange_text_is_bounded() {
        let long = format!("{} I want to die", "é".repeat(200_000));
        assert_eq!(level(&long), Level::Acute);
        assert_eq!(level("\u{0}\u{fffd} \n\n \t"), Level::None);
    }
}
