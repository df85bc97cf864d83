//! One way to ask for a field, whether the record is a JSON object or a row of a table. It knows no profile.

use crate::limits::COLUMNS_MAX;
use crate::profile::Field;
use serde_json::Value;

/// A value as its source holds it.
#[derive(Clone, Copy)]
pub(crate) enum Cell<'a> {
    /// Text of a table.
    Text(&'a str),
    /// A JSON value.
    Json(&'a Value),
}

impl Cell<'_> {
    /// The value as text: scalars as written, lists joined, parts of a message joined by lines. Objects have none.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Cell::Text(text) => Some((*text).to_owned()),
            Cell::Json(value) => json_text(value),
        }
    }

    /// Whether nothing is said.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Cell::Text(text) => text.trim().is_empty(),
            Cell::Json(Value::Null) => true,
            Cell::Json(Value::String(text)) => text.trim().is_empty(),
            Cell::Json(Value::Array(items)) => items.is_empty(),
            Cell::Json(Value::Object(map)) => map.is_empty(),
            Cell::Json(_) => false,
        }
    }
}

fn json_text(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(items) => {
            let in_parts = items.iter().any(Value::is_object);
            let part = |item: &Value| json_text(if item.is_object() { item.get("text")? } else { item });
            Some(items.iter().filter_map(part).collect::<Vec<_>>().join(if in_parts { "\n" } else { "; " }))
        }
    }
}

/// A record whose fields can be asked for. Names are compared without regard to ASCII case.
pub(crate) trait Fields {
    /// The value under `path`, which a dot takes into an object.
    fn cell(&self, path: &str) -> Option<Cell<'_>>;

    /// Whether the field is there, with or without a value.
    fn has(&self, path: &str) -> bool {
        self.cell(path).is_some()
    }
}

impl Fields for Value {
    fn cell(&self, path: &str) -> Option<Cell<'_>> {
        let mut value = self;
        for name in path.split('.') {
            let map = value.as_object()?;
            // An object with more keys than a table has columns is no record; walking it for each name would be slow.
            let keys = || map.iter().take(COLUMNS_MAX);
            let same = || keys().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
            value = map.get(name).or_else(same)?;
        }
        Some(Cell::Json(value))
    }
}

/// The first of the names that says something; else the first that is there.
pub(crate) fn pick<'a>(source: &'a dyn Fields, names: &Field) -> Option<Cell<'a>> {
    let present = || names.iter().filter_map(|name| source.cell(name));
    present().find(|cell| !cell.is_empty()).or_else(|| present().next())
}

/// [`pick`] as text, trimmed; `None` when it says nothing.
pub(crate) fn pick_text(source: &dyn Fields, names: &Field) -> Option<String> {
    let text = pick(source, names)?.text()?;
    let trimmed = text.trim();
    (!trimmed.is_empty()).then(|| trimmed.to_owned())
}

/// Fills the `{names}` of a template. Parts between bars that lack a value are left out; without any part, `None`.
pub(crate) fn fill(template: &str, value: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let parts: Vec<String> =
        template.split('|').filter(|part| !part.is_empty()).filter_map(|part| fill_part(part, value)).collect();
    let filled = parts.concat().trim().to_owned();
    (!filled.is_empty()).then_some(filled)
}

fn fill_part(part: &str, value: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let mut out = String::new();
    let mut rest = part;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, tail) = after.split_once('}')?;
        out.push_str(before);
        out.push_str(value(name)?.trim_end_matches('.'));
        rest = tail;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_found_by_path_and_in_any_case() {
        let value =
            json!({"Context": "a", "meta": {"Tags": ["x", "y"]}, "n": 3, "parts": [{"type": "text", "text": "hi"}]});
        assert_eq!(value.cell("context").unwrap().text().unwrap(), "a");
        assert_eq!(value.cell("meta.tags").unwrap().text().unwrap(), "x; y");
        assert_eq!(value.cell("parts").unwrap().text().unwrap(), "hi");
        assert!(value.cell("n.x").is_none() && value.cell("missing").is_none());
    }

    #[test]
    fn a_template_leaves_out_what_it_lacks() {
        let value = |name: &str| (name == "a").then(|| "one.".to_owned());
        assert_eq!(fill("A: {a}.| B: {b}.|", &value).unwrap(), "A: one.");
        assert_eq!(fill("{b}", &value), None);
    }
}
