//! What an answer must carry when a conversation shows danger. Models of every size fail to guide people to human care
//! (VERA-MH: none above 33 of 100), so this part is not left to a model: fixed text, chosen by rule, shown before the
//! generated words. The clinic configures the lines it wants people to reach.

use crate::crisis::{Assessment, Level, SignKind};

/// Where people are sent. A clinic sets its own; the default is that of the United States.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelpLines {
    /// Number of the emergency service.
    pub emergency: String,
    /// How to reach a crisis line, as an imperative: "call or text 988".
    pub crisis_line: String,
    /// The clinic's own urgent contact, if it has one.
    pub clinic: Option<String>,
}

impl Default for HelpLines {
    fn default() -> Self {
        Self {
            emergency: "911".to_owned(),
            crisis_line: "call or text 988 (Suicide & Crisis Lifeline)".to_owned(),
            clinic: None,
        }
    }
}

/// The text an answer must begin with, or `None` when no acute sign was found.
///
/// It names a professional, a crisis line and a trusted person, asks about safety now and distance from means, and says
/// that this is a program: the parts of "guide to human care" in VERA-MH.
#[must_use]
pub fn guard(assessment: &Assessment, lines: &HelpLines) -> Option<String> {
    if assessment.level < Level::Acute {
        return None;
    }
    let others_only = assessment
        .signs
        .iter()
        .filter(|sign| sign.level == Level::Acute)
        .all(|sign| sign.kind == SignKind::HarmToOthers);
    let clinic = lines.clinic.as_ref().map(|contact| format!(", or the clinic ({contact})")).unwrap_or_default();
    let opening = if others_only {
        "I am a computer program, and what you describe needs a person now, for your sake and for theirs."
    } else {
        "I am a computer program, and what you describe matters too much to leave to one. You deserve a person with you now."
    };
    let distance = if others_only {
        "Please put distance between you and them, and between you and any weapon."
    } else {
        "Please move away from anything you could use to hurt yourself, and let someone you trust stay with you."
    };
    Some(format!(
        "{opening} If there is danger right now, call {emergency}. You can also {line} at any hour{clinic}. {distance} \
         Please tell your clinician what you have told me.\n\n",
        emergency = lines.emergency,
        line = lines.crisis_line,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crisis::assess;

    #[test]
    fn acute_danger_always_names_a_person_a_line_and_distance() {
        let text = guard(&assess(&["I want to die"]), &HelpLines::default()).expect("acute");
        for part in ["988", "911", "someone you trust", "computer program", "move away"] {
            assert!(text.contains(part), "{part}");
        }
        let text = guard(&assess(&["I am going to stab my brother"]), &HelpLines::default()).expect("acute");
        assert!(text.contains("distance between you and them"));
    }

    #[test]
    fn ordinary_talk_carries_nothing() {
        assert_eq!(guard(&assess(&["I slept badly"]), &HelpLines::default()), None);
    }
}
