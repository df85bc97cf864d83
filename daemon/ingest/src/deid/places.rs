//! Places smaller than a state: street addresses, postal codes, and towns that the words around them or a short list show.

use crate::deid::{Found, words};
use empathd_proto::record::PhiKind;
use regex::Regex;
use std::collections::HashSet;
use std::sync::LazyLock;

const NAME: &str = r"(?:St\. )?\p{Lu}[\p{L}'-]*";
const STATE: &str = r"(?:A[LKZRAEP]|C[AOT]|D[EC]|FL|GA|HI|I[DLNA]|K[SY]|LA|M[EDAINSOTHP]|N[EVHJMYCD]|O[HKR]|P[ARW]|RI|S[CD]|T[NX]|UT|V[TAI]|W[AVIY])";
const UNIT: &str = r"(?:\.?,? (?:(?i:apt|apartment|suite|ste|unit|flat|floor|room|box)\.?|#) ?[\w-]+)?";

static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let way = r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Terrace|Way|Highway|Hwy|Parkway|Pkwy|Circle|Cir|Square|Squares|Streets|Sq|Trail|Close|Crescent|Row|Alley|Gardens|Mews|Hill|Plaza|Loop|Route|Pike)";
    [
        format!(r"\b\d{{1,6}}[A-Za-z]?,? (?:(?:[NSEW]|[NS][EW]|North|South|East|West)\.? )?(?:(?:{NAME}|\d+(?:st|nd|rd|th)) ){{1,5}}{way}\b{UNIT}"),
        r"\b(?i:apt|apartment|suite|ste|flat|unit|p\.? ?o\.? box|psc|postbox)\.? #?\d[\w-]*(?:,? Box \d+)?(?:\s+[ADF]PO [A-Z]{2} \d{5})?".to_owned(),
        format!(r"\b\d{{1,5}},? (?:Rua|Via|Calle|Rue|Avenida|Piazza|Plaza|ul\.) {NAME}(?: {NAME}){{0,3}}"),
        format!(r"\b(?:Rua|Via|Calle|Rue|Avenida|Piazza|Plaza|ul\.) (?:(?:do|da|de|del|della|la|le|des|du) )?{NAME}(?: {NAME}){{0,3}},? \d{{1,5}}\b"),
        r"\b\p{Lu}\p{L}*(?:straße|strasse|gasse|weg|platz|gatan|gata|gade|vej|vägen|väg|katu|kuja|tie|laan|straat|plein|gracht|veien|vegen|utca|tér|körút)\b \d{1,5}[a-z]?\b".to_owned(),
        format!(r"\b(?:{NAME} ){{1,4}}(?:utca|út|tér|u\.) \d{{1,5}}\b\.?"),
        r"\b[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}\b".to_owned(),
        r"\b[A-Z]\d[A-Z] \d[A-Z]\d\b".to_owned(),
        format!(r"\b{NAME}(?: {NAME}){{0,3}},? {STATE},? \d{{5}}(?:-\d{{4}})?\b"),
        format!(r"\b{STATE} \d{{5}}(?:-\d{{4}})?\b"),
        r"(?i)\b(?:address(?: is|:)?|lives? at|living at|stay(?:s|ing)? at|resides? at) (\d[^\n;.?!]{4,60})".to_owned(),
        format!(r"\b\d{{1,5}} (?:{NAME} ){{1,3}}\d{{1,5}}\b"),
        r"(?i)\b(?:zip|zip ?code|postal code|postcode)\b[^\d\n]{0,30}(\d{3,5}(?:-\d{3,4})?)\b".to_owned(),
        format!(r"\b(?:City|city|Town|town|Village|village|Borough|borough) of ({NAME}(?: {NAME}){{0,2}})"),
        format!(r"\b({NAME}(?: {NAME})? (?:County|Parish|Township|Borough))\b"),
    ]
    .iter()
    .map(|pattern| Regex::new(pattern).expect("a constant pattern that tests use"))
    .collect()
});

/// An address that nobody capitalised, such as speech that a machine wrote down.
static LOWER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)\b\d{1,5} ((?:[a-z'.-]+ ){1,2})(?:street|avenue|road|boulevard|lane|parkway)\b")
        .expect("a constant pattern that tests use")
});

/// Words after which a capitalised word is where somebody is.
static LIVING: LazyLock<Regex> = LazyLock::new(|| {
    let verb = r"(?i:live|lives|lived|living|moved|moving|move|born|raised|grew up|reside|resides|based|stay|stays|staying|work|works|working|located|from back|hometown|drive|drove|flew|fly|travel(?:led|ing)?|return(?:ed|ing)?|relocat(?:ed|ing))";
    Regex::new(&format!(r"\b{verb}(?: (?i:back|up|down|over|out|here|is))? (?:in|to|near|at|around|outside|from)? ?({NAME}(?:[ -]{NAME}){{0,2}})"))
        .expect("a constant pattern that tests use")
});

/// A town and its state without a postal code. States that are also words of talk ("Right, OK") are left out.
static TOWN_AND_STATE: LazyLock<Regex> = LazyLock::new(|| {
    let state = r"(?:A[LKZR]|C[AOT]|D[EC]|FL|GA|I[DLA]|K[SY]|M[DINSOT]|N[EVHJMYCD]|RI|S[CD]|T[NX]|UT|V[TA]|W[AVIY])";
    Regex::new(&format!(r"\b({NAME}(?: {NAME}){{0,2}}), {state}\b")).expect("a constant pattern that tests use")
});

/// Larger towns of the world, one a line.
static TOWNS: LazyLock<HashSet<&'static str>> = LazyLock::new(|| include_str!("towns.txt").lines().collect());

/// Adds what is found.
pub(super) fn find(text: &str, found: &mut Vec<Found>) {
    for pattern in PATTERNS.iter() {
        for captures in pattern.captures_iter(text) {
            if let Some(part) = captures.get(1).or(captures.get(0)) {
                found.push(Found::new(part.start(), part.end(), PhiKind::Location));
            }
        }
    }
    for captures in LOWER.captures_iter(text) {
        if let (Some(whole), false) = (captures.get(0), captures[1].split(' ').any(words::is_ordinary)) {
            found.push(Found::new(whole.start(), whole.end(), PhiKind::Location));
        }
    }
    let shown = LIVING.captures_iter(text).chain(TOWN_AND_STATE.captures_iter(text));
    for part in shown.filter_map(|captures| captures.get(1)) {
        let place = part.as_str().trim_end_matches(['.', '\'', '-']);
        let is_wide =
            words::is_wide_area(place) || words::is_ordinary(place.split([' ', '-', '\'']).next().unwrap_or(place));
        if place.len() > 2 && !is_wide {
            found.push(Found::new(part.start(), part.start() + place.len(), PhiKind::Location));
        }
    }
    towns(text, found);
}

/// Known towns, of one to three words.
fn towns(text: &str, found: &mut Vec<Found>) {
    let words: Vec<(usize, &str)> = words::capitalised(text).collect();
    for (index, (start, _)) in words.iter().enumerate() {
        for last in words[index..].iter().take(3) {
            let end = last.0 + last.1.len();
            if text.get(*start..end).is_some_and(|name| TOWNS.contains(name)) {
                found.push(Found::new(*start, end, PhiKind::Location));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str) -> Vec<&str> {
        let mut found = Vec::new();
        find(text, &mut found);
        super::super::merged(found).iter().map(|f| &text[f.start..f.end]).collect()
    }

    #[test]
    fn addresses_codes_and_towns() {
        assert_eq!(places("Home is 4417 Old Kettle Rd, Fresno, CA 93726."), ["4417 Old Kettle Rd", "Fresno, CA 93726"]);
        assert_eq!(places("at 12 maple street since then"), ["12 maple street"]);
        assert_eq!(
            places("in Tulare County near the city of Visalia; the ZIP on the chart is 93291"),
            ["Tulare County", "Visalia", "93291"]
        );
        assert_eq!(places("I moved to Llanwrda. We live in London, SW1A 1AA."), ["Llanwrda", "London", "SW1A 1AA"]);
        assert_eq!(places("Hauptstraße 12"), ["Hauptstraße 12"]);
    }

    #[test]
    fn wide_areas_and_distances_are_none() {
        assert_eq!(
            places(
                "I live in America. It is 2 miles down the road. I moved in with Tuesday people. He works at Night. Right, OK. Um, IN."
            ),
            Vec::<&str>::new()
        );
    }
}
