//! Tools in the words of a model: how it is told of them, what forces it to ask for one, and how what it asks for is read
//! from its text as it comes. One way for all models, whatever their chat templates know. Who runs a tool is not known here.

use super::call::Turn;
use empathd_proto::chat::{CalledFunction, ChatRole};
use empathd_proto::generate::{Grammar, PlainMessage};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt::Write as _;

/// Encloses a call in the model's text.
const OPEN: &str = "<tool_call>";
/// Ends it.
pub(crate) const CLOSE: &str = "</tool_call>";
/// Longest text that is held back because it may become a call, in bytes; beyond it is shown as text.
const HELD_BYTES_MAX: usize = 64 * 1024;
/// Schema of arguments that are not held to one.
const ANY_OBJECT: &str = r#"{"type":"object"}"#;
/// Most calls of one choice; further ones are shown as text.
const CALLS_MAX: usize = 32;

/// Tools on offer.
#[derive(Clone, PartialEq, Serialize)]
pub struct Tools {
    /// At least one.
    pub offered: Vec<Offered>,
    /// Whether one must be asked for.
    pub demand: Demand,
    /// Whether several may be asked for at once.
    pub parallel: bool,
}

/// One tool.
#[derive(Clone, PartialEq, Serialize)]
pub struct Offered {
    /// Its name.
    pub name: String,
    /// All that the caller says of it: JSON.
    pub described: String,
    /// JSON schema of its arguments, if it has one.
    pub parameters: Option<String>,
    /// Whether a call that is not demanded follows it too.
    pub strict: bool,
}

/// Whether a tool must be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Demand {
    /// The model may.
    Free,
    /// It must, whichever.
    Any,
    /// It must, this one.
    Named(usize),
}

impl Tools {
    /// The one tool whose arguments are all that the model has to say, if it has no choice.
    fn only(&self) -> Option<&Offered> {
        match self.demand {
            Demand::Free => None,
            Demand::Any if self.offered.len() == 1 => self.offered.first(),
            Demand::Any => None,
            Demand::Named(which) => self.offered.get(which),
        }
    }

    fn is_offered(&self, name: &str) -> bool {
        self.offered.iter().any(|tool| tool.name == name)
    }

    /// Whether calls that are not demanded are held to a schema.
    fn is_strict(&self) -> bool {
        self.demand == Demand::Free && self.offered.iter().any(|tool| tool.strict)
    }

    /// What makes the model ask for a tool when it must, and follow its schema.
    pub(crate) fn grammar(&self) -> Option<Grammar> {
        if let Some(only) = self.only() {
            return Some(Grammar::JsonSchema(only.schema().to_owned()));
        }
        match self.demand {
            Demand::Free if !self.is_strict() => None,
            Demand::Free => {
                let schema = self.calls(|tool| if tool.strict { tool.schema() } else { ANY_OBJECT });
                Some(Grammar::Marked { open: OPEN.to_owned(), close: CLOSE.to_owned(), schema })
            }
            Demand::Any | Demand::Named(_) => Some(Grammar::JsonSchema(self.calls(Offered::schema))),
        }
    }

    /// The schema of a call of any of them.
    fn calls<'a>(&'a self, schema: impl Fn(&'a Offered) -> &'a str) -> String {
        let call = |(place, tool): (usize, &'a Offered)| {
            let name = serde_json::Value::from(tool.name.as_str());
            let arguments = rooted(schema(tool), &format!("/anyOf/{place}/properties/arguments"));
            format!(
                r#"{{"type":"object","properties":{{"name":{{"const":{name}}},"arguments":{arguments}}},"required":["name","arguments"],"additionalProperties":false}}"#
            )
        };
        let calls: Vec<String> = self.offered.iter().enumerate().map(call).collect();
        format!(r#"{{"anyOf":[{}]}}"#, calls.join(","))
    }

    /// What the model is told.
    fn told(&self) -> String {
        let list: Vec<&str> = self.offered.iter().map(|tool| tool.described.as_str()).collect();
        let mut text = format!("# Tools\n\nThese functions may be called:\n<tools>\n{}\n</tools>\n\n", list.join("\n"));
        let written = match (self.only(), self.demand) {
            (Some(only), _) => write!(
                text,
                "Call the function {}: answer with one JSON object of its arguments and nothing else.",
                only.name
            ),
            (None, Demand::Free) => write!(
                text,
                "To call a function, write a JSON object with its name and arguments within {OPEN}{CLOSE} tags:\n\
                 {OPEN}\n{{\"name\": <function name>, \"arguments\": <object of arguments>}}\n{CLOSE}"
            ),
            (None, _) => write!(
                text,
                "Call one of them: answer with one JSON object {{\"name\": <function name>, \"arguments\": <object of \
                 arguments>}} and nothing else."
            ),
        };
        // Writing into a text cannot fail.
        let _ = written;
        text
    }
}

impl Offered {
    fn schema(&self) -> &str {
        self.parameters.as_deref().unwrap_or(r#"{"type":"object","properties":{},"additionalProperties":false}"#)
    }
}

/// A schema moved to `place` of another one: what it refers to within itself moves with it.
fn rooted(schema: &str, place: &str) -> String {
    const KEY: &str = "\"$ref\"";
    let mut moved = String::with_capacity(schema.len());
    let mut rest = schema;
    while let Some(at) = rest.find(KEY) {
        let (before, after) = rest.split_at(at + KEY.len());
        moved.push_str(before);
        let value = after.trim_start().strip_prefix(':').map(str::trim_start);
        rest = match value.and_then(|value| value.strip_prefix("\"#")) {
            Some(pointer) => {
                let _ = write!(moved, ":\"#{place}");
                pointer
            }
            None => after,
        };
    }
    moved + rest
}

/// The conversation as every chat template can take it: tools are described in the instructions, calls stand in the
/// model's own text, and what a tool gave comes as a message of the person.
pub(crate) fn messages(turns: Vec<Turn>, tools: Option<&Tools>) -> Vec<PlainMessage> {
    let mut messages: Vec<PlainMessage> = Vec::with_capacity(turns.len() + 1);
    let mut after_tool = false;
    let mut told = tools.map(Tools::told);
    if told.is_some() && !matches!(turns.first(), Some(Turn::System(_))) {
        messages.push(PlainMessage { role: ChatRole::System, text: told.take().unwrap_or_default() });
    }
    for turn in turns {
        let from_tool = matches!(turn, Turn::Tool(_));
        let (role, text) = match turn {
            Turn::System(text) => (ChatRole::System, told.take().map_or(text.clone(), |told| text + "\n\n" + &told)),
            Turn::Person(text) => (ChatRole::User, text),
            Turn::Model { text, calls } => (ChatRole::Assistant, with_calls(text, &calls)),
            Turn::Tool(text) => (ChatRole::User, format!("<tool_response>\n{text}\n</tool_response>")),
        };
        match messages.last_mut() {
            // Templates that want the roles to alternate take what several tools gave as one message.
            Some(last) if from_tool && after_tool => {
                last.text.push('\n');
                last.text.push_str(&text);
            }
            _ => messages.push(PlainMessage { role, text }),
        }
        after_tool = from_tool;
    }
    messages
}

fn with_calls(mut text: String, calls: &[CalledFunction]) -> String {
    for call in calls {
        let name = serde_json::Value::from(call.name.as_str());
        let arguments = match serde_json::from_str::<&RawValue>(&call.arguments) {
            Ok(_) => call.arguments.clone(),
            Err(_) => serde_json::Value::from(call.arguments.as_str()).to_string(),
        };
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = write!(text, "{OPEN}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{CLOSE}");
    }
    text
}

/// One thing the model said.
#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    /// Words.
    Text(String),
    /// A tool it asks for.
    Call(CalledFunction),
}

/// Reads calls from the text of a choice as it comes. No half of a call is ever given out as words.
pub(crate) struct Reader {
    tools: Tools,
    held: String,
    calls: usize,
    spoken: bool,
}

impl Reader {
    pub(crate) fn new(tools: Tools) -> Self {
        Self { tools, held: String::new(), calls: 0, spoken: false }
    }

    /// Whether a call was read.
    pub(crate) fn has_called(&self) -> bool {
        self.calls > 0
    }

    /// More text.
    pub(crate) fn feed(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        if self.tools.demand == Demand::Free {
            while self.step(&mut parts) {}
        }
        parts
    }

    /// Takes the next certain thing from what is held.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        // A whole answer in braces may be a call without its tags, and without what holds those to their schemas.
        if !self.tools.is_strict() && !self.spoken && self.calls == 0 && self.held.trim_start().starts_with('{') {
            return self.overflow(parts);
        }
        let Some(at) = self.held.find(OPEN) else {
            // Space at the end is held too: nothing but a call may follow, and then it is no word.
            let words = self.held[..self.held.len() - begun(&self.held)].trim_end().len();
            self.speak(words, parts);
            return false;
        };
        let Some(end) = self.held[at..].find(CLOSE).map(|end| at + end) else {
            self.speak(self.held[..at].trim_end().len(), parts);
            return self.overflow(parts);
        };
        match self.called(&self.held[at + OPEN.len()..end]) {
            Some(call) => {
                self.speak_trimmed(at, parts);
                let whole = self.held.find(CLOSE).map_or(self.held.len(), |end| end + CLOSE.len());
                self.held.drain(..whole);
                self.calls += 1;
                if self.calls == 1 || self.tools.parallel {
                    parts.push(Part::Call(call));
                }
            }
            None => self.speak(end + CLOSE.len(), parts),
        }
        true
    }

    /// Gives up what is held when it has become too much to be a call.
    fn overflow(&mut self, parts: &mut Vec<Part>) -> bool {
        if self.held.len() > HELD_BYTES_MAX {
            self.speak(self.held.len(), parts);
        }
        false
    }

    fn speak(&mut self, bytes: usize, parts: &mut Vec<Part>) {
        if bytes > 0 {
            let text: String = self.held.drain(..bytes).collect();
            self.spoken |= !text.trim().is_empty();
            parts.push(Part::Text(text));
        }
    }

    /// Says what stands before a call, without the space between.
    fn speak_trimmed(&mut self, bytes: usize, parts: &mut Vec<Part>) {
        let words = self.held[..bytes].trim_end().len();
        self.speak(words, parts);
    }

    /// No more text comes; `cut` when the answer was cut off by its limit.
    pub(crate) fn end(&mut self, cut: bool) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut call = match self.tools.only() {
            Some(only) => self.forced(only, &self.held, cut),
            None if self.tools.is_strict() => None,
            None => self.called(&self.held),
        };
        if call.is_none() && self.tools.demand == Demand::Free {
            self.spoken = true;
            while self.step(&mut parts) {}
            // Models often leave out the last tag.
            call = self.held.trim_start().strip_prefix(OPEN).and_then(|text| self.called(text));
        }
        let held = std::mem::take(&mut self.held);
        match call {
            Some(call) => {
                self.calls += 1;
                parts.extend((self.calls == 1 || self.tools.parallel).then_some(Part::Call(call)));
            }
            // What a forced call lacks is not shown as words, nor is the space after a call.
            None if self.tools.demand != Demand::Free || (self.calls > 0 && held.trim().is_empty()) => {}
            None => parts.extend((!held.is_empty()).then_some(Part::Text(held))),
        }
        parts
    }

    /// The call of the only tool there is: its arguments are the whole text. Cut off, they are given as far as they came.
    fn forced(&self, only: &Offered, text: &str, cut: bool) -> Option<CalledFunction> {
        let arguments = text.trim();
        let whole = cut || serde_json::from_str::<&RawValue>(arguments).is_ok();
        whole.then(|| CalledFunction { name: only.name.clone(), arguments: arguments.to_owned() })
    }

    /// The call in a text, if it is one of a tool on offer.
    fn called(&self, text: &str) -> Option<CalledFunction> {
        #[derive(Deserialize)]
        struct Call<'a> {
            name: String,
            #[serde(borrow, alias = "parameters")]
            arguments: Option<&'a RawValue>,
        }
        let call: Call<'_> = serde_json::from_str(text.trim()).ok()?;
        if self.calls >= CALLS_MAX || !self.tools.is_offered(&call.name) {
            return None;
        }
        let written = call.arguments.map_or("{}", RawValue::get);
        // Some models write the arguments as JSON in a string, as the API does.
        let arguments = serde_json::from_str::<String>(written).unwrap_or_else(|_| written.to_owned());
        Some(CalledFunction { name: call.name, arguments })
    }
}

/// Bytes at the end of the text that may be the beginning of [`OPEN`].
fn begun(text: &str) -> usize {
    (1..OPEN.len()).rev().find(|&bytes| text.ends_with(&OPEN[..bytes])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(names: &[&str], demand: Demand) -> Tools {
        let offered = names.iter().map(|name| Offered {
            name: (*name).to_owned(),
            described: format!("{{\"name\":\"{name}\"}}"),
            parameters: Some("{\"type\":\"object\"}".to_owned()),
            strict: false,
        });
        Tools { offered: offered.collect(), demand, parallel: true }
    }

    /// Everything a reader gives for a text in pieces of so many bytes: the words, and the calls as `name arguments`.
    fn read(tools: &Tools, text: &str, size: usize, cut: bool) -> (String, Vec<String>) {
        let mut reader = Reader::new(tools.clone());
        let mut parts = Vec::new();
        for piece in text.as_bytes().chunks(size) {
            parts.extend(reader.feed(std::str::from_utf8(piece).expect("ASCII")));
        }
        parts.extend(reader.end(cut));
        let (mut words, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(text) => words.push_str(&text),
                Part::Call(call) => calls.push(format!("{} {}", call.name, call.arguments)),
            }
        }
        (words, calls)
    }

    #[test]
    fn calls_are_read_whole_from_pieces_of_any_size() {
        let tools = tools(&["look", "book"], Demand::Free);
        let call = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"z\": 1, \"a\": [2]}}\n</tool_call>";
        let cases: &[(&str, &str, &[&str])] = &[
            ("Just words, 1 < 2 <tool", "Just words, 1 < 2 <tool", &[]),
            (call, "", &["look {\"z\": 1, \"a\": [2]}"]),
            (&format!("Let me see.\n{call}\n{call} "), "Let me see.", &["look {\"z\": 1, \"a\": [2]}"; 2]),
            ("<tool_call>{\"name\":\"book\",\"arguments\":\"{\\\"x\\\":1}\"}", "", &["book {\"x\":1}"]),
            ("<tool_call>{\"name\":\"look\"}</tool_call>", "", &["look {}"]),
            ("{\"name\":\"look\",\"parameters\":{}}", "", &["look {}"]),
            ("{\"a\": 1} is JSON", "{\"a\": 1} is JSON", &[]),
            (
                "<tool_call>{\"name\":\"rob\",\"arguments\":{}}</tool_call>!",
                "<tool_call>{\"name\":\"rob\",\"arguments\":{}}</tool_call>!",
                &[],
            ),
            ("<tool_call>oh</tool_call> well", "<tool_call>oh</tool_call> well", &[]),
            ("Spaces stay. \n x \n", "Spaces stay. \n x \n", &[]),
        ];
        for (text, words, calls) in cases {
            for size in [1, 2, 3, 7, 1000] {
                let found = read(&tools, text, size, false);
                assert_eq!(
                    found,
                    ((*words).to_owned(), calls.iter().map(|call| (*call).to_owned()).collect()),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn no_half_call_is_spoken_and_what_is_held_is_bounded() {
        let mut reader = Reader::new(tools(&["look"], Demand::Free));
        let parts = reader.feed("Yes <tool_call>{\"name\":");
        assert_eq!(parts, [Part::Text("Yes".to_owned())]);
        let mut spoken = 0;
        for _ in 0..2000 {
            for part in reader.feed(&"x".repeat(100)) {
                let Part::Text(text) = part else { panic!("no call") };
                spoken += text.len();
            }
            assert!(reader.held.len() <= HELD_BYTES_MAX + 100);
        }
        assert!(spoken > 0, "it goes on as text");
    }

    #[test]
    fn one_call_is_enough_when_several_are_not_wanted() {
        let one = Tools { parallel: false, ..tools(&["look"], Demand::Free) };
        let call = "<tool_call>{\"name\":\"look\",\"arguments\":{}}</tool_call>";
        assert_eq!(read(&one, &call.repeat(3), 5, false), (String::new(), vec!["look {}".to_owned()]));
    }

    #[test]
    fn a_forced_call_is_the_whole_text() {
        let named = tools(&["look", "book"], Demand::Named(1));
        assert_eq!(named.grammar(), Some(Grammar::JsonSchema("{\"type\":\"object\"}".into())));
        assert_eq!(read(&named, " {\"x\": 1}\n", 2, false), (String::new(), vec!["book {\"x\": 1}".to_owned()]));
        assert_eq!(read(&named, "{\"x\": ", 2, true).1, ["book {\"x\":"], "cut off, as far as it came");
        let any = tools(&["look", "book"], Demand::Any);
        let Some(Grammar::JsonSchema(schema)) = any.grammar() else { panic!("a schema") };
        let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
        assert_eq!(schema["anyOf"][1]["properties"]["name"]["const"], "book");
        let text = "{\"name\":\"look\",\"arguments\":{\"q\":2}}";
        assert_eq!(read(&any, text, 3, false), (String::new(), vec!["look {\"q\":2}".to_owned()]));
        assert_eq!(read(&any, "{\"name\":\"lo", 3, true), (String::new(), vec![]));
    }

    #[test]
    fn a_strict_tool_is_held_to_its_schema_where_it_is_called_freely() {
        let mut both = tools(&["look", "book"], Demand::Free);
        assert_eq!(both.grammar(), None);
        both.offered[1].strict = true;
        both.offered[1].parameters = Some("{\"type\":\"object\",\"required\":[\"x\"]}".into());
        let Some(Grammar::Marked { open, close, schema }) = both.grammar() else { panic!("marked") };
        assert_eq!((open.as_str(), close.as_str()), (OPEN, CLOSE));
        let schema: serde_json::Value = serde_json::from_str(&schema).expect("JSON");
        assert_eq!(schema["anyOf"][1]["properties"]["arguments"]["required"][0], "x");
        let call = "{\"name\":\"book\",\"arguments\":{\"x\":1}}";
        assert_eq!(read(&both, call, 4, false), (call.to_owned(), vec![]), "a call without tags followed no schema");
        assert_eq!(read(&both, &format!("{OPEN}{call}{CLOSE}"), 4, false).1, ["book {\"x\":1}"]);
    }

    #[test]
    fn a_schema_keeps_its_references_when_it_moves() {
        let schema = "{\"$defs\":{\"T\":{\"x\":\"a \\\"$ref\\\" b\"}},\"p\":{\"$ref\" : \"#/$defs/T\"},\"q\":{\"$ref\":\"http://x\"}}";
        let moved = rooted(schema, "/a/0");
        let value: serde_json::Value = serde_json::from_str(&moved).expect("JSON");
        assert_eq!(value["p"]["$ref"], "#/a/0/$defs/T");
        assert_eq!(value["q"]["$ref"], "http://x");
        assert_eq!(value["$defs"]["T"]["x"], "a \"$ref\" b");
    }

    #[test]
    fn a_model_is_told_of_tools_in_its_instructions_and_of_results_by_the_person() {
        let tools = tools(&["look"], Demand::Free);
        let call = CalledFunction { name: "look".into(), arguments: "{\"q\":1}".into() };
        let turns = vec![
            Turn::System("Be kind.".into()),
            Turn::Person("Look.".into()),
            Turn::Model { text: String::new(), calls: vec![call.clone(), call] },
            Turn::Tool("one".into()),
            Turn::Tool("two".into()),
        ];
        let told = messages(turns.clone(), Some(&tools));
        let roles: Vec<_> = told.iter().map(|message| message.role).collect();
        assert_eq!(roles, [ChatRole::System, ChatRole::User, ChatRole::Assistant, ChatRole::User]);
        assert!(told[0].text.starts_with("Be kind.\n\n# Tools") && told[0].text.contains("{\"name\":\"look\"}"));
        assert_eq!(told[2].text.matches("{\"name\": \"look\", \"arguments\": {\"q\":1}}").count(), 2);
        assert_eq!(told[3].text, "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>");
        assert_eq!(messages(turns[1..2].to_vec(), Some(&tools))[0].role, ChatRole::System);
        assert_eq!(messages(turns[1..2].to_vec(), None).len(), 1);
    }
}
