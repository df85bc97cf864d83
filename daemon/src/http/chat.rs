//! `POST /v1/chat/completions`: a body into a call whose every value is within its range. Knows nothing of how an answer
//! comes about and how it is written.

use super::face::Face;
use super::problem::{Refusal, bad_request};
use super::request::{Asked, Common, MAX_WORD_BYTES, parse, require};
use super::routes::Caller;
use super::{Door, answer};
use crate::action::Action;
use crate::inference::call::{Form, Question, Turn};
use crate::inference::tools::{Demand, Offered, Tools};
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::Response;
use empathd_proto::Problem;
use empathd_proto::chat::{
    ChatMessage, ChatRequest, FormatKind, MessageRole, RawJson, ResponseFormat, Tool, ToolChoice, ToolMode,
};
use empathd_proto::generate::{Grammar, MAX_GRAMMAR_BYTES, MAX_TOP_LOGPROBS};
use hyper::Request;
use std::collections::HashSet;
use std::sync::Arc;

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 1_024;
/// Most tools on offer.
const MAX_TOOLS: usize = 64;
/// Longest name of a tool, in bytes.
const MAX_NAME_BYTES: usize = 64;

pub(super) async fn complete(
    State(door): State<Arc<Door>>,
    Extension(Caller(actor)): Extension<Caller>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let perform = |call| Action::Chat(Box::new(call));
    answer::give(&door, &actor, request.into_body(), Face::Chat, |bytes| checked(parse(bytes)?), perform).await
}

/// Ranges of every field.
pub(super) fn checked(request: ChatRequest) -> Result<Asked, Problem> {
    require((1..=MAX_MESSAGES).contains(&request.messages.len()), "`messages` has 1 to 1024 messages.")?;
    require(request.store != Some(true), "`store` can only be false: nothing is kept.")?;
    let both = matches!((request.max_tokens, request.max_completion_tokens), (Some(a), Some(b)) if a != b);
    require(!both, "`max_tokens` and `max_completion_tokens` say different things.")?;
    let logprobs = logprobs(request.logprobs, request.top_logprobs)?;
    let form = form(request.response_format, request.tools, request.tool_choice, request.parallel_tool_calls)?;
    let question = Question::Conversation(turns(request.messages)?);
    let common = Common {
        model: request.model,
        temperature: request.temperature,
        top_p: request.top_p,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logit_bias: request.logit_bias,
        n: request.n,
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        stop: request.stop,
        seed: request.seed,
        stream: request.stream,
        stream_options: request.stream_options,
        user: request.user,
        safety_identifier: request.safety_identifier,
        prompt_cache_key: request.prompt_cache_key,
        service_tier: request.service_tier,
    };
    let mut asked = common.checked(question, logprobs)?;
    asked.call.form = form;
    Ok(asked)
}

fn logprobs(wanted: Option<bool>, top: Option<u32>) -> Result<Option<u8>, Problem> {
    let wanted = wanted.unwrap_or(false);
    require(wanted || top.is_none_or(|top| top == 0), "`top_logprobs` needs `logprobs`.")?;
    let top = u8::try_from(top.unwrap_or(0)).ok().filter(|top| *top <= MAX_TOP_LOGPROBS);
    let top = top.ok_or_else(|| bad_request("`top_logprobs` is from 0 to 20."))?;
    Ok(wanted.then_some(top))
}

fn turns(messages: Vec<ChatMessage>) -> Result<Vec<Turn>, Problem> {
    let mut asked_for = HashSet::new();
    messages.into_iter().map(|message| turn(message, &mut asked_for)).collect()
}

/// One message; `asked_for` has the ids of the calls before it.
fn turn(message: ChatMessage, asked_for: &mut HashSet<String>) -> Result<Turn, Problem> {
    let ChatMessage { role, content, name, refusal, tool_calls, tool_call_id } = message;
    let short = name.iter().chain(&tool_call_id).all(|word| word.len() <= MAX_WORD_BYTES);
    require(short, "`name` and `tool_call_id` have at most 256 bytes.")?;
    let from_model = role == MessageRole::Assistant;
    let calls = tool_calls.unwrap_or_default();
    require(from_model || calls.is_empty(), "Only an assistant's message has `tool_calls`.")?;
    require(from_model || refusal.is_none(), "Only an assistant's message has a `refusal`.")?;
    require(
        (role == MessageRole::Tool) == tool_call_id.is_some(),
        "A tool's message, and no other, has `tool_call_id`.",
    )?;
    let text = content.map(|content| content.into_text()).or(refusal);
    require(text.is_some() || !calls.is_empty(), "A message has `content`, or `tool_calls` of an assistant.")?;
    let text = text.unwrap_or_default();
    Ok(match role {
        MessageRole::System => Turn::System(text),
        MessageRole::User => Turn::Person(text),
        MessageRole::Assistant => {
            require(calls.len() <= MAX_TOOLS, "A message has at most 64 `tool_calls`.")?;
            let fit = calls.iter().all(|call| call.id.len() <= MAX_WORD_BYTES && is_name(&call.function.name));
            require(fit, "Each of `tool_calls` has an `id` of at most 256 bytes and the name of a function.")?;
            asked_for.extend(calls.iter().map(|call| call.id.clone()));
            Turn::Model { text, calls: calls.into_iter().map(|call| call.function).collect() }
        }
        MessageRole::Tool => {
            let known = tool_call_id.is_some_and(|id| asked_for.contains(&id));
            require(known, "`tool_call_id` names no call of an earlier message.")?;
            Turn::Tool(text)
        }
    })
}

fn form(
    format: Option<ResponseFormat>,
    tools: Option<Vec<Tool>>,
    choice: Option<ToolChoice>,
    parallel: Option<bool>,
) -> Result<Form, Problem> {
    let grammar = format.map(grammar).transpose()?.flatten();
    let tools = tools.unwrap_or_default();
    if tools.is_empty() {
        let none = choice.is_none_or(|choice| choice == ToolChoice::Mode(ToolMode::None));
        require(none, "`tool_choice` needs `tools`.")?;
        require(parallel.is_none(), "`parallel_tool_calls` needs `tools`.")?;
        return Ok(grammar.map_or(Form::Text, Form::Json));
    }
    require(tools.len() <= MAX_TOOLS, "`tools` has at most 64 tools.")?;
    let offered = tools.into_iter().map(offered).collect::<Result<Vec<_>, _>>()?;
    let names: HashSet<&str> = offered.iter().map(|tool| tool.name.as_str()).collect();
    require(names.len() == offered.len(), "Each of `tools` has a name of its own.")?;
    let demand = match choice.unwrap_or(ToolChoice::Mode(ToolMode::Auto)) {
        ToolChoice::Mode(ToolMode::None) => return Ok(grammar.map_or(Form::Text, Form::Json)),
        ToolChoice::Mode(ToolMode::Auto) => Demand::Free,
        ToolChoice::Mode(ToolMode::Required) => Demand::Any,
        ToolChoice::Named(named) => {
            let place = offered.iter().position(|tool| tool.name == named.function.name);
            Demand::Named(place.ok_or_else(|| bad_request("`tool_choice` names none of `tools`."))?)
        }
    };
    require(grammar.is_none(), "`response_format` other than text needs `tool_choice` none when there are `tools`.")?;
    let tools = Tools { offered, demand, parallel: parallel.unwrap_or(true) };
    let grammar = tools.grammar();
    let schema = grammar.as_ref().and_then(Grammar::schema);
    require(
        schema.is_none_or(|schema| schema.len() <= MAX_GRAMMAR_BYTES),
        "The schemas of `tools` have at most 65536 bytes together.",
    )?;
    Ok(Form::Tools(tools))
}

fn grammar(format: ResponseFormat) -> Result<Option<Grammar>, Problem> {
    let ResponseFormat { kind, json_schema } = format;
    require((kind == FormatKind::JsonSchema) == json_schema.is_some(), "`json_schema` goes with its own type.")?;
    let Some(named) = json_schema else {
        return Ok((kind == FormatKind::JsonObject).then_some(Grammar::JsonObject));
    };
    require(is_name(&named.name), "The name of `json_schema` has 1 to 64 letters, digits, `_` and `-`.")?;
    let Some(schema) = named.schema else { return Ok(Some(Grammar::JsonObject)) };
    Ok(Some(Grammar::JsonSchema(schema_text(&schema, "`json_schema`")?)))
}

fn offered(tool: Tool) -> Result<Offered, Problem> {
    require(is_name(&tool.function.name), "The name of a tool has 1 to 64 letters, digits, `_` and `-`.")?;
    let parameters = tool.function.parameters.as_ref().map(|schema| schema_text(schema, "`parameters`")).transpose()?;
    let described = serde_json::to_string(&tool).map_err(|_| bad_request("A tool cannot be written as JSON."))?;
    Ok(Offered { name: tool.function.name, described, parameters, strict: tool.function.strict == Some(true) })
}

/// A schema's text; what it means is known to the engine.
fn schema_text(schema: &RawJson, field: &str) -> Result<String, Problem> {
    let text = schema.text();
    require(text.len() <= MAX_GRAMMAR_BYTES, &format!("The schema of {field} has at most 65536 bytes."))?;
    // Reading it bounds its depth.
    let object = serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| value.is_object());
    require(object, &format!("The schema of {field} is a JSON object, at most 128 levels deep."))?;
    Ok(text.to_owned())
}

fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#""model":"m","messages":[{"role":"user","content":"my secret"}]"#;
    const TOOL: &str = r#"{"type":"function","function":{"name":"look","parameters":{"type":"object","z":1,"a":2}}}"#;

    fn asked(body: &str) -> Result<Asked, Problem> {
        checked(parse(body.as_bytes())?)
    }

    fn refusal(body: &str) -> String {
        let problem = asked(body).expect_err("refused");
        assert!(!problem.detail.contains("secret"), "quotes the caller: {}", problem.detail);
        problem.detail
    }

    fn with(fields: &str) -> String {
        format!("{{{MESSAGES},{fields}}}")
    }

    fn taken(fields: &str) -> Asked {
        asked(&with(fields)).unwrap_or_else(|problem| panic!("{fields}: {}", problem.detail))
    }

    #[test]
    fn a_plain_request_gets_the_documented_defaults() {
        let asked = asked(&format!("{{{MESSAGES}}}")).expect("parses");
        assert_eq!((asked.call.temperature, asked.call.top_p), (0.7, 0.95));
        assert_eq!((asked.call.max_tokens, asked.call.seed, asked.stream), (None, None, false));
        assert_eq!((asked.call.choices, asked.call.logprobs, asked.call.form), (1, None, Form::Text));
        let asked = taken(r#""stream":true,"stream_options":{"include_usage":true},"stop":"x","max_tokens":7"#);
        assert!(asked.stream && asked.include_usage);
        assert_eq!((asked.call.max_tokens, asked.call.stop.as_slice()), (Some(7), ["x".to_owned()].as_slice()));
    }

    #[test]
    fn broken_bodies_are_located_and_never_quoted() {
        assert!(refusal("{\"model\":\"secret").contains("line 1"));
        assert!(refusal("").contains("not JSON"));
        assert!(parse::<ChatRequest>(b"{\"model\":\"\xff\"}").expect_err("refused").detail.contains("byte 10"));
        assert!(!refusal(&with(r#""my secret plan":1"#)).contains("plan"));
        assert!(refusal(&with(r#""temperature":"secret""#)).contains("`temperature`"));
        assert!(refusal(&with(r#""logit_bias":{"secret":"x"}"#)).contains("`logit_bias`"));
        assert!(refusal(&with(r#""model":"secret""#)).contains("twice"));
        assert!(refusal(r#"{"model":"m"}"#).contains("`messages` is missing"));
        assert!(refusal(r#"{"model":"m","messages":[{"role":"secret","content":"x"}]}"#).contains("`messages`"));
        assert!(refusal(&"[".repeat(100_000)).contains("line 1"));
        let deep = format!("{}1{}", "{\"a\":".repeat(500), "}".repeat(500));
        let schema =
            format!(r#""response_format":{{"type":"json_schema","json_schema":{{"name":"n","schema":{deep}}}}}"#);
        assert!(refusal(&with(&schema)).contains("levels deep"));
    }

    #[test]
    fn fields_that_are_not_honoured_are_refused_by_name_and_say_why() {
        for (field, why) in [
            ("functions", "`tools`"),
            ("function_call", "`tool_choice`"),
            ("audio", "text"),
            ("modalities", "text"),
            ("prediction", "proposed"),
            ("reasoning_effort", "reason"),
            ("verbosity", "instructions"),
            ("web_search_options", "building"),
            ("metadata", "stored"),
            ("best_of", "not known"),
            ("top_k", "not known"),
        ] {
            let detail = refusal(&with(&format!(r#""{field}":1"#)));
            assert!(detail.contains(&format!("`{field}`")) && detail.contains(why), "{detail}");
        }
    }

    #[test]
    fn values_out_of_range_are_refused_by_field() {
        let stop = format!(r#""stop":"{}""#, "x".repeat(10_000));
        let biases: Vec<String> = (0..1025).map(|token| format!(r#""{token}":1"#)).collect();
        let biases = format!(r#""logit_bias":{{{}}}"#, biases.join(","));
        let choice = format!(r#""tools":[{TOOL}],"tool_choice":{{"type":"function","function":{{"name":"rob"}}}}"#);
        let formal = format!(r#""tools":[{TOOL}],"response_format":{{"type":"json_object"}}"#);
        for (fields, named) in [
            (r#""temperature":2.1"#, "temperature"),
            (r#""temperature":-1"#, "temperature"),
            (r#""temperature":1e300"#, "temperature"),
            (r#""top_p":0"#, "top_p"),
            (r#""top_p":1.5"#, "top_p"),
            (r#""presence_penalty":3"#, "presence_penalty"),
            (r#""frequency_penalty":-3"#, "frequency_penalty"),
            (r#""max_tokens":0"#, "tokens"),
            (r#""max_tokens":-5"#, "max_tokens"),
            (r#""max_tokens":1,"max_completion_tokens":2"#, "different"),
            (r#""n":9"#, "`n`"),
            (r#""n":0"#, "`n`"),
            (r#""seed":18446744073709551616"#, "`seed`"),
            (r#""stop":["a","b","c","d","e"]"#, "stop"),
            (r#""stop":"""#, "stop"),
            (stop.as_str(), "stop"),
            (biases.as_str(), "`logit_bias`"),
            (r#""logit_bias":{"x":1}"#, "`logit_bias`"),
            (r#""logit_bias":{"1":101}"#, "`logit_bias`"),
            (r#""top_logprobs":3"#, "`top_logprobs`"),
            (r#""logprobs":true,"top_logprobs":21"#, "`top_logprobs`"),
            (r#""stream_options":{"include_usage":true}"#, "stream"),
            (r#""stream":true,"stream_options":{"include_obfuscation":true}"#, "include_obfuscation"),
            (r#""store":true"#, "`store`"),
            (r#""service_tier":"priority""#, "`service_tier`"),
            (r#""tool_choice":"required""#, "`tools`"),
            (r#""tools":[{"type":"function","function":{"name":"a b"}}]"#, "name of a tool"),
            (choice.as_str(), "`tool_choice`"),
            (formal.as_str(), "`response_format`"),
            (r#""response_format":{"type":"json_schema"}"#, "`json_schema`"),
            (r#""response_format":{"type":"json_schema","json_schema":{"name":"n","schema":[]}}"#, "object"),
        ] {
            assert!(refusal(&with(fields)).contains(named), "{fields}: {}", refusal(&with(fields)));
        }
        assert!(refusal(r#"{"model":"m","messages":[]}"#).contains("messages"));
        let long = format!(r#""user":"{}""#, "x".repeat(257));
        assert!(refusal(&with(&long)).contains("`user`"));
    }

    #[test]
    fn sampling_logprobs_and_clients_are_taken_over() {
        let asked = taken(
            r#""n":3,"seed":-1,"logit_bias":{"7":-100,"5":2.5,"6":0},"presence_penalty":0.5,"frequency_penalty":-0.5,
               "logprobs":true,"top_logprobs":4,"user":"a","safety_identifier":"b","prompt_cache_key":"c","store":false,
               "service_tier":"flex","max_completion_tokens":9,"temperature":0"#,
        );
        let call = asked.call;
        assert_eq!((call.choices, call.seed, call.logprobs, call.max_tokens), (3, Some(u64::MAX), Some(4), Some(9)));
        assert_eq!(call.logit_bias, [(5, 2.5), (7, -100.0)]);
        assert_eq!((call.presence_penalty, call.frequency_penalty, call.nobody_waits), (0.5, -0.5, true));
        assert_eq!(call.client.prompt_cache_key.as_deref(), Some("c"));
        assert!(!taken(r#""service_tier":"auto""#).call.nobody_waits);
    }

    #[test]
    fn formats_become_grammars_and_keep_the_order_of_members() {
        assert_eq!(taken(r#""response_format":{"type":"text"}"#).call.form, Form::Text);
        assert_eq!(taken(r#""response_format":{"type":"json_object"}"#).call.form, Form::Json(Grammar::JsonObject));
        let schema = r#""response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"z":1,"a":2}}}"#;
        let grammar = Grammar::JsonSchema(r#"{"z":1,"a":2}"#.into());
        assert_eq!(taken(schema).call.form, Form::Json(grammar));
    }

    #[test]
    fn tools_and_their_choice_become_a_form() {
        let form = |choice: &str| taken(&format!(r#""tools":[{TOOL}]{choice}"#)).call.form;
        let demand = |choice: &str| match form(choice) {
            Form::Tools(tools) => (tools.demand, tools.parallel),
            _ => panic!("tools"),
        };
        assert_eq!(demand(""), (Demand::Free, true));
        assert_eq!(demand(r#","parallel_tool_calls":false"#), (Demand::Free, false));
        assert_eq!(demand(r#","tool_choice":"required""#).0, Demand::Any);
        let named = r#","tool_choice":{"type":"function","function":{"name":"look"}}"#;
        assert_eq!(demand(named).0, Demand::Named(0));
        assert_eq!(form(r#","tool_choice":"none""#), Form::Text);
        let Form::Tools(tools) = form("") else { panic!("tools") };
        assert_eq!(tools.offered[0].parameters.as_deref(), Some(r#"{"type":"object","z":1,"a":2}"#));
        assert!(tools.offered[0].described.contains(r#""z":1,"a":2"#));
    }

    #[test]
    fn a_conversation_with_tools_is_read_back() {
        let call = r#"{"id":"c1","type":"function","function":{"name":"look","arguments":"{}"}}"#;
        let messages = format!(
            r#"{{"role":"developer","content":"s"}},{{"role":"user","content":"u","name":"ann"}},
               {{"role":"assistant","content":null,"tool_calls":[{call}]}},{{"role":"tool","tool_call_id":"c1","content":"t"}}"#
        );
        let body = |messages: &str| format!(r#"{{"model":"m","messages":[{messages}]}}"#);
        let Question::Conversation(turns) = asked(&body(&messages)).expect("parses").call.question else {
            panic!("a conversation")
        };
        assert!(matches!(&turns[0], Turn::System(text) if text == "s"));
        assert!(matches!(&turns[2], Turn::Model { calls, .. } if calls.len() == 1));
        assert!(matches!(&turns[3], Turn::Tool(text) if text == "t"));
        for (message, named) in [
            (r#"{"role":"tool","tool_call_id":"c2","content":"t"}"#, "tool_call_id"),
            (r#"{"role":"tool","content":"t"}"#, "tool_call_id"),
            (r#"{"role":"user","tool_call_id":"c1","content":"t"}"#, "tool_call_id"),
            (r#"{"role":"user"}"#, "content"),
            (r#"{"role":"assistant","content":null}"#, "content"),
            (r#"{"role":"user","content":"x","refusal":"y"}"#, "refusal"),
            (r#"{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}"#, "messages"),
        ] {
            let detail = refusal(&body(&format!("{messages},{message}")));
            assert!(detail.contains(named), "{message}: {detail}");
        }
    }
}
