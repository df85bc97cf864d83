//! Identifiers with a form of their own, most with a check digit, and identifiers that the words before them announce. It
//! knows neither dates nor names nor places.

use crate::deid::{Found, checks};
use empathd_proto::record::PhiKind;
use regex::Regex;
use std::sync::LazyLock;

/// A form, the kind it shows, and what must hold beside it.
struct Form {
    pattern: Regex,
    kind: PhiKind,
    holds: fn(&str) -> bool,
}

fn any(_: &str) -> bool {
    true
}

fn has_digit(text: &str) -> bool {
    text.bytes().any(|c| c.is_ascii_digit())
}

/// Where the pattern has a group, the group is the identifier; else the whole match is.
static FORMS: LazyLock<Vec<Form>> = LazyLock::new(|| {
    let form = |kind, holds, pattern: &str| Form {
        pattern: Regex::new(pattern).expect("a constant pattern that tests use"),
        kind,
        holds,
    };
    let mut forms = vec![
        form(PhiKind::Email, any, r"[\p{L}\p{N}._%+-]+@[\p{L}\p{N}-]+(?:\.[\p{L}\p{N}-]+)+"),
        form(
            PhiKind::Email,
            any,
            r"(?i)\b[a-z0-9._-]+ (?:at|\(at\)|\[at\]) [a-z0-9-]+ (?:dot|\(dot\)) (?:com|org|net|edu|co|uk|de)\b",
        ),
        form(PhiKind::Url, any, r#"(?i)\b(?:https?|ftp)://[^\s<>"')\]]*[^\s<>"')\].,;:!?]"#),
        form(PhiKind::Url, any, r#"(?i)\bwww\.[^\s<>"')\]]*[^\s<>"')\].,;:!?]"#),
        form(
            PhiKind::Url,
            any,
            r#"(?i)\b(?:[a-z0-9-]+\.)+(?:com|org|net|edu|gov|info|io|app|(?:co|org|ac)\.[a-z]{2})\b(?:/[^\s<>"')\]]*)?"#,
        ),
        form(PhiKind::Ip, is_ip, r"\b\d{1,3}(?:\.\d{1,3}){3}\b"),
        form(PhiKind::Ip, is_ip, r"(?i)[0-9a-f]{0,4}(?::{1,2}[0-9a-f]{1,4}){2,8}(?:::)?"),
        form(PhiKind::Ip, any, r"(?i)\b[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}\b"),
        form(PhiKind::Ssn, checks::ssn, r"\b\d{3}([- .])\d{2}[- .]\d{4}\b"),
        form(
            PhiKind::Ssn,
            has_digit,
            r"(?i)\b(?:ssn|social security(?: number| no\.?)?)\W{0,3}(?:is |of |as |on file is |ends? in |ending in )?\W{0,2}(\d[\d -]{2,12}\d)",
        ),
        form(PhiKind::Account, is_card, r"\b\d(?:[ -]?\d){11,18}\b"),
        form(PhiKind::Licence, checks::npi, r"\b[12]\d{9}\b"),
        form(PhiKind::Licence, checks::dea, r"\b[A-Za-z][A-Za-z9]\d{7}\b"),
        form(PhiKind::Vehicle, checks::vin, r"\b[A-HJ-NPR-Za-hj-npr-z0-9]{17}\b"),
        form(
            PhiKind::HealthPlan,
            any,
            r"\b[1-9][AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?[AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?[AC-HJKMNP-RT-Y]{2}\d{2}\b",
        ),
        form(PhiKind::Mrn, any, r"\b\d{3} \d{3} \d{4}\b"),
        form(PhiKind::OtherId, any, r"(?i)\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"),
        form(
            PhiKind::OtherId,
            any,
            r"(?i)\b[\w-]+\.(?:jpe?g|png|gif|heic|tiff?|bmp|dcm|mp[34]|wav|m4a|mov|pdf|docx?|xlsx?)\b",
        ),
        form(PhiKind::OtherId, any, r"\b[A-Z]{2,}(?:-[A-Z0-9]+)*-\d{3,}[A-Z0-9]*\b"),
        form(PhiKind::OtherId, any, r"(?:^|[\s(])(@[A-Za-z0-9_][A-Za-z0-9_.]{2,})"),
        form(PhiKind::OtherId, any, r"\b/?u/[A-Za-z0-9_-]{3,}"),
        form(PhiKind::OtherId, any, r"\b\d{9,}\b"),
    ];
    forms.extend(ANNOUNCED.iter().map(|(kind, words)| form(*kind, has_digit, &announced(words))));
    forms
});

/// Words that announce an identifier of no particular form.
const ANNOUNCED: &[(PhiKind, &str)] = &[
    (PhiKind::Mrn, r"mrn|medical record|record number|record no|chart|patient id|patient number|hospital number|nhs"),
    (
        PhiKind::HealthPlan,
        r"\b(?:health plan|member id|member number|policy|insurance|subscriber|beneficiary|group number|medicaid|medicare|payer id)",
    ),
    (PhiKind::Account, r"\b(?:account|acct|routing|sort code|bank|iban|card number|credit card|debit card)"),
    (PhiKind::Licence, r"\b(?:licen[sc]e|certificate|npi|dea|driver'?s licen[sc]e|dl)"),
    (PhiKind::Device, r"\b(?:serial|device|udi|imei|pacemaker|implant)"),
    (PhiKind::Vehicle, r"\b(?:plate|licen[sc]e plate|vin|registration)"),
    (
        PhiKind::OtherId,
        r"\b(?:case|claim|reference|study|study code|confirmation|badge|employee id|student id|passport|ticket|template|voiceprint|fingerprint|biometric|id)",
    ),
];

/// An announcing word, at most a few small words, and a token with digits in it.
fn announced(words: &str) -> String {
    const BETWEEN: &str =
        r"(?:[\s:#=(.-]|mrn|\b(?:is|was|number|no|num|nr|id|code|member|serial|template|under)\b){0,6}";
    const TOKEN: &str = r"([A-Z]{0,6}-?\d[A-Z0-9/-]{2,}|[A-Z]{1,6}(?:-[A-Z0-9]+)*-[A-Z0-9]*\d[A-Z0-9]*)\b";
    format!(r"(?i)(?:{words})(?:s|'s)?{BETWEEN}{TOKEN}")
}

fn is_ip(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

/// Payment cards have 12 to 19 digits; the first one is never 0, 7, 8 or 9 (ISO/IEC 7812-1), save a few retired ranges.
fn is_card(text: &str) -> bool {
    matches!(text.as_bytes()[0], b'1'..=b'6') && checks::luhn(text)
}

/// Adds what is found.
pub(super) fn find(text: &str, found: &mut Vec<Found>) {
    for form in FORMS.iter() {
        for captures in form.pattern.captures_iter(text) {
            let Some(part) = captures.get(1).filter(|part| part.len() > 1).or(captures.get(0)) else { continue };
            if (form.holds)(part.as_str()) && !is_year(part.as_str()) {
                found.push(Found::new(part.start(), part.end(), form.kind));
            }
        }
    }
    ibans(text, found);
}

/// A bare year is no identifier.
fn is_year(text: &str) -> bool {
    text.len() == 4 && text.parse::<u16>().is_ok_and(|year| (1900..2100).contains(&year))
}

static IBAN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)\b[a-z]{2}\d{2}(?:[ -]?[a-z0-9]){11,40}").expect("a constant pattern that tests use")
});

/// A bank account number may be followed by a word that looks like its next group: the longest prefix that checks counts.
fn ibans(text: &str, found: &mut Vec<Found>) {
    for candidate in IBAN.find_iter(text) {
        let mut compact = String::new();
        let mut best = None;
        for (at, c) in candidate.as_str().char_indices().filter(|(_, c)| c.is_ascii_alphanumeric()) {
            compact.push(c);
            if compact.len() >= 15 && compact.len() <= 34 && checks::iban(&compact) {
                best = Some(at + 1);
            }
        }
        if let Some(length) = best {
            found.push(Found::new(candidate.start(), candidate.start() + length, PhiKind::Account));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(&str, &'static str)> {
        let mut found = Vec::new();
        find(text, &mut found);
        super::super::merged(found).iter().map(|f| (&text[f.start..f.end], f.kind.as_str())).collect()
    }

    #[test]
    fn forms_are_found_with_their_check() {
        assert_eq!(kinds("pay GB82 WEST 1234 5698 7654 32 for it"), [("GB82 WEST 1234 5698 7654 32", "account")]);
        assert_eq!(kinds("card 4111-1111-1111-1111."), [("4111-1111-1111-1111", "account")]);
        assert_eq!(
            kinds("see https://a.example/x?y=1, or www.b.example."),
            [("https://a.example/x?y=1", "url"), ("www.b.example", "url")]
        );
        assert_eq!(
            kinds("at 10.34.201.7 or fe80::1:2, mac 00:1B:44:11:3A:B7"),
            [("10.34.201.7", "ip"), ("fe80::1:2", "ip"), ("00:1B:44:11:3A:B7", "ip")]
        );
        assert_eq!(
            kinds("VIN 1M8GDM9AXKP042788, NPI 1234567893"),
            [("1M8GDM9AXKP042788", "vehicle"), ("1234567893", "licence")]
        );
        assert_eq!(kinds("Medicare 1EG4-TE5-MK73"), [("1EG4-TE5-MK73", "health_plan")]);
    }

    #[test]
    fn announced_identifiers_need_no_form() {
        assert_eq!(
            kinds("seen today (chartMRN04857211), plate 8XYZ432"),
            [("04857211", "mrn"), ("8XYZ432", "vehicle")]
        );
        assert_eq!(
            kinds("member ID is HPX-77-40921, case number: 2280-B"),
            [("HPX-77-40921", "health_plan"), ("2280-B", "other_id")]
        );
        assert_eq!(kinds("In this case 2 of us left the device at 10."), []);
    }

    #[test]
    fn numbers_of_ordinary_talk_are_left_alone() {
        assert_eq!(
            kinds("I slept 3.5 hours, it was 12:30:45, version 1.2.3, the ICD-10 and PHQ-9, 10 000 steps in 2019"),
            []
        );
    }
}
