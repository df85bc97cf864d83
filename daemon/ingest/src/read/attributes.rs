//! What a source says about a record beside its words: domain, category, difficulty, labels, whose it is. It reads fields and
//! judges nothing: what a label means for training is in the profile.

use crate::profile::{Field, NegativeRule, Profile, common};
use crate::read::fields::{Cell, Fields, pick_text};
use empathd_proto::record::{Difficulty, Domain, EdgeCategory, Purpose};
use serde_json::Value;

/// The attributes of one record.
#[derive(Clone)]
pub(crate) struct Attributes {
    pub(crate) domain: Domain,
    pub(crate) category: Option<EdgeCategory>,
    pub(crate) difficulty: Option<Difficulty>,
    pub(crate) purpose: Purpose,
    pub(crate) blocked: bool,
    pub(crate) client: Option<String>,
}

impl Attributes {
    /// Those of a record without fields.
    pub(crate) fn of_profile(profile: &Profile) -> Self {
        let domain = profile.domain.default;
        Self { domain, category: None, difficulty: None, purpose: Purpose::Target, blocked: false, client: None }
    }

    /// Those that the fields give.
    pub(crate) fn of(profile: &Profile, fields: &dyn Fields) -> Self {
        let category = word(fields, &profile.category)
            .and_then(|word| EdgeCategory::parse(&word).or_else(|| common().categories.get(&word).copied()));
        let difficulty = word(fields, &profile.difficulty)
            .and_then(|word| Difficulty::parse(&word).or_else(|| common().difficulties.get(&word).copied()));
        let mut rules = profile.negative.iter().chain(&common().negative);
        let purpose =
            rules.find(|rule| applies(rule, fields)).map_or(Purpose::Target, |rule| Purpose::Negative(rule.reason));
        let client = pick_text(fields, &common().client).or_else(|| pick_text(fields, &profile.client));
        let domain = domain(profile, fields, category);
        Self { domain, category, difficulty, purpose, blocked: is_blocked(fields), client }
    }
}

/// A value as one word: lower case, joined by underscores.
fn word(fields: &dyn Fields, names: &Field) -> Option<String> {
    pick_text(fields, names).map(|text| underscored(&text))
}

fn underscored(text: &str) -> String {
    text.trim().to_lowercase().replace([' ', '-', '/'], "_")
}

fn domain(profile: &Profile, fields: &dyn Fields, category: Option<EdgeCategory>) -> Domain {
    let rule = &profile.domain;
    let said = rule.field.iter().filter_map(|field| fields.cell(field)?.text()).find_map(|value| {
        let value = value.trim().to_lowercase();
        rule.values.get(&value).copied().or_else(|| Domain::parse(&underscored(&value)))
    });
    let by_category = category.filter(|category| common().crisis.contains(category)).map(|_| Domain::Crisis);
    said.or(by_category).unwrap_or(rule.default)
}

/// Texts that say that nothing is there.
const NOTHING: &[&str] = &["", "[]", "{}", "none", "null", "false", "no", "0", "n/a"];

/// Whether a label holds. A number that is none counts as below every bound: an unreadable score is no recommendation.
fn applies(rule: &NegativeRule, fields: &dyn Fields) -> bool {
    rule.field.iter().filter_map(|field| fields.cell(field)).filter(|cell| !cell.is_empty()).any(|cell| {
        let text = cell.text().map(|text| text.trim().to_lowercase());
        match (&text, rule.below) {
            (Some(text), Some(bound)) => text.parse::<f64>().is_ok_and(|number| number.is_nan() || number < bound),
            (Some(text), None) if rule.present => !NOTHING.contains(&text.as_str()),
            (Some(text), None) => rule.values.contains(text) || listed(cell, &rule.values),
            (None, None) => rule.present && has_true(cell),
            (None, Some(_)) => false,
        }
    })
}

/// Whether one entry of a list is one of the values.
fn listed(cell: Cell<'_>, values: &[String]) -> bool {
    let Cell::Json(Value::Array(items)) = cell else { return false };
    items.iter().filter_map(Value::as_str).any(|item| values.contains(&item.trim().to_lowercase()))
}

/// Whether an object of flags has one that is set.
fn has_true(cell: Cell<'_>) -> bool {
    let Cell::Json(Value::Object(flags)) = cell else { return true };
    flags.values().any(|flag| !matches!(flag, Value::Bool(false) | Value::Null) && flag.as_f64() != Some(0.0))
}

fn is_blocked(fields: &dyn Fields) -> bool {
    let named = common().blocked_fields.iter().filter_map(|names| word(fields, names));
    named
        .map(|name| format!("_{name}"))
        .any(|name| common().blocked.iter().any(|word| name.contains(&format!("_{word}"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::profiles;
    use empathd_proto::record::NegativeReason;
    use serde_json::json;

    fn of(value: Value) -> Attributes {
        Attributes::of(profiles().iter().find(|profile| profile.key == "edge_case").unwrap(), &value)
    }

    #[test]
    fn labels_of_any_source_keep_a_record_from_being_a_target() {
        let unsafe_ = Purpose::Negative(NegativeReason::LabelledUnsafe);
        let low = Purpose::Negative(NegativeReason::LabelledLowQuality);
        assert_eq!(of(json!({"label": "Unsafe"})).purpose, unsafe_);
        assert_eq!(of(json!({"metadata": {"is_safe": false}})).purpose, unsafe_);
        assert_eq!(of(json!({"metadata": {"bias_flags": ["age"]}})).purpose, unsafe_);
        assert_eq!(of(json!({"metadata": {"bias_flags": {"age": false}}})).purpose, Purpose::Target);
        assert_eq!(of(json!({"quality": "LOW"})).purpose, low);
        assert_eq!(of(json!({"quality_score": 0.1})).purpose, low);
        assert_eq!(of(json!({"quality_score": "NaN"})).purpose, low);
        assert_eq!(of(json!({"quality_score": 0.9, "label": "Safe", "bias_flags": []})).purpose, Purpose::Target);
    }

    #[test]
    fn categories_have_aliases_and_some_are_blocked_by_name() {
        let case = of(json!({"category": "Suicidal Ideation", "difficulty": "extreme"}));
        assert_eq!((case.category, case.difficulty), (Some(EdgeCategory::Suicidality), Some(Difficulty::VeryHigh)));
        assert_eq!(case.domain, Domain::Crisis);
        assert!(of(json!({"category": "ultra_nightmare_7"})).blocked);
        assert!(!of(json!({"category": "child_abuse_reporting"})).blocked);
    }
}
