//! Tools as the API names them: what a caller offers, what it demands, what the model asks for. Refuses to know how a model
//! is told of them.

use super::RawJson;
use serde::{Deserialize, Serialize};

/// The only kind of tool there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToolKind {
    /// A function of the caller.
    #[default]
    #[serde(rename = "function")]
    Function,
}

/// One tool on offer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// The function.
    pub function: ToolFunction,
}

/// A function that the model may ask for.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolFunction {
    /// Its name.
    pub name: String,
    /// What it is for, in words for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments; none when it takes no arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<RawJson>,
    /// Taken; a forced call always follows its schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

impl std::fmt::Debug for ToolFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ToolFunction(…)")
    }
}

/// Whether the model must ask for a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ToolChoice {
    /// In a word.
    Mode(ToolMode),
    /// This one.
    Named(NamedTool),
}

/// Whether the model must ask for a tool, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolMode {
    /// It must not.
    None,
    /// As it likes.
    Auto,
    /// It must, whichever.
    Required,
}

/// A tool by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedTool {
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// Which.
    pub function: FunctionName,
}

/// The name of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionName {
    /// The name.
    pub name: String,
}

/// A tool that the model asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// Names this call in the message that answers it.
    pub id: String,
    /// Its kind.
    #[serde(rename = "type", default)]
    pub kind: ToolKind,
    /// What is asked.
    pub function: CalledFunction,
}

/// A function with its arguments.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalledFunction {
    /// Its name.
    pub name: String,
    /// Its arguments: JSON in a string.
    pub arguments: String,
}

impl std::fmt::Debug for CalledFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CalledFunction({} bytes)", self.arguments.len())
    }
}
