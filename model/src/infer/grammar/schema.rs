//! A stranger's JSON schema within bounds, before the library reads it. The library bounds most of its own work by fuel;
//! what it does not bound is bounded here: recursion, names compared with names, and patterns that must hold together,
//! whose alternatives it multiplies. Refuses to know tokens.

use super::GrammarError;
use empathd_proto::generate::MAX_GRAMMAR_BYTES;
use serde_json::{Map, Value};

/// Deepest nesting.
const MAX_DEPTH: usize = 48;
/// Most values, all levels together.
const MAX_VALUES: usize = 8192;
/// Largest count (of items, properties or characters); each is spelled out while it is read.
const MAX_COUNT: u64 = 4096;
/// Most named properties, all objects together; the work grows with the square of those of one object.
const MAX_PROPERTIES: usize = 512;
/// Most patterns of names, all objects together, and the longest; each is compared with each.
const MAX_NAME_PATTERNS: usize = 8;
const MAX_NAME_PATTERN_BYTES: usize = 256;
/// Most alternatives that patterns which may have to hold together can make at one character, their product.
const MAX_ALTERNATIVES: usize = 1 << 17;
/// Alternatives of a named format; no pattern of the library has more.
const FORMAT_ALTERNATIVES: usize = 32;
const COUNTS: [&str; 6] = ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];
/// Keywords that bring another schema to hold beside their neighbours.
const JOINS: [&str; 4] = ["$ref", "$dynamicRef", "anyOf", "oneOf"];
/// Keywords that restrict nothing.
const REMARKS: [&str; 14] = [
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$id",
    "$anchor",
    "$schema",
    "$defs",
    "definitions",
];

/// Reads a schema that is within its bounds.
pub(super) fn read(text: &str) -> Result<Value, GrammarError> {
    if text.len() > MAX_GRAMMAR_BYTES {
        return Err(too_large("bytes", MAX_GRAMMAR_BYTES));
    }
    let schema: Value = serde_json::from_str(text).map_err(|_| GrammarError::Unreadable)?;
    if !schema.is_object() {
        return Err(GrammarError::Unreadable);
    }
    let mut census = Census { alternatives: 1, ..Census::default() };
    census.take(&schema, MAX_DEPTH)?;
    census.judge()?;
    Ok(schema)
}

const fn too_large(what: &'static str, limit: usize) -> GrammarError {
    GrammarError::TooLarge { what, limit: limit as u64 }
}

/// What a schema has, all levels together.
#[derive(Default)]
struct Census {
    values: usize,
    properties: usize,
    name_patterns: usize,
    /// Product over all patterns and formats.
    alternatives: usize,
    /// Whether one string may have to match several of them.
    joined: bool,
}

impl Census {
    fn take(&mut self, value: &Value, depth_left: usize) -> Result<(), GrammarError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(too_large("values", MAX_VALUES));
        }
        let Some(depth_left) = depth_left.checked_sub(1) else {
            return Err(too_large("nesting", MAX_DEPTH));
        };
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.take(item, depth_left)),
            Value::Object(members) => {
                self.look(members)?;
                members.values().try_for_each(|member| self.take(member, depth_left))
            }
            _ => Ok(()),
        }
    }

    /// Counts the keywords of one object. A property that is named like a keyword counts like one.
    fn look(&mut self, members: &Map<String, Value>) -> Result<(), GrammarError> {
        for (name, member) in members {
            match (name.as_str(), member) {
                (name, Value::Number(count))
                    if COUNTS.contains(&name) && count.as_u64().is_some_and(|count| count > MAX_COUNT) =>
                {
                    return Err(GrammarError::TooLarge { what: "a count of items or characters", limit: MAX_COUNT });
                }
                ("properties", Value::Object(named)) => self.properties += named.len(),
                ("patternProperties", Value::Object(named)) => {
                    self.joined = true;
                    self.name_patterns += named.len();
                    if named.keys().any(|pattern| pattern.len() > MAX_NAME_PATTERN_BYTES) {
                        return Err(too_large("bytes of a pattern of names", MAX_NAME_PATTERN_BYTES));
                    }
                }
                // Each class of characters in a pattern is an alternative at most once.
                ("pattern", Value::String(pattern)) => self.multiply(pattern.len() + 2),
                ("format", Value::String(_)) => self.multiply(FORMAT_ALTERNATIVES),
                ("allOf", _) => self.joined = true,
                _ => {}
            }
        }
        let joins = members.keys().any(|name| JOINS.contains(&name.as_str()));
        let restricts = members.keys().filter(|name| !REMARKS.contains(&name.as_str())).count() > 1;
        self.joined |= joins && restricts || members.contains_key("pattern") && members.contains_key("format");
        Ok(())
    }

    const fn multiply(&mut self, alternatives: usize) {
        self.alternatives = self.alternatives.saturating_mul(alternatives);
    }

    const fn judge(&self) -> Result<(), GrammarError> {
        if self.properties > MAX_PROPERTIES {
            return Err(too_large("named properties", MAX_PROPERTIES));
        }
        if self.name_patterns > MAX_NAME_PATTERNS {
            return Err(too_large("patterns of names", MAX_NAME_PATTERNS));
        }
        if self.joined && self.alternatives > MAX_ALTERNATIVES {
            return Err(too_large("patterns that may have to hold together, alternatives", MAX_ALTERNATIVES));
        }
        Ok(())
    }
}
