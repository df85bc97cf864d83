//! The seven linear maps of a layer, by the names that Hugging Face and PEFT give them.

use crate::config::BackboneConfig;
use empathd_proto::engine::LinearName;

/// One of the linear maps of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linear {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Heads back into the stream.
    Output,
    /// Gate of the feed-forward part.
    Gate,
    /// Its other half.
    Up,
    /// Back into the stream.
    Down,
}

impl Linear {
    /// All, in the order in which weights are kept.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Its name within a layer.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The word that a mixture's shape says for it.
    #[must_use]
    pub const fn word(self) -> LinearName {
        match self {
            Self::Query => LinearName::Query,
            Self::Key => LinearName::Key,
            Self::Value => LinearName::Value,
            Self::Output => LinearName::Output,
            Self::Gate => LinearName::Gate,
            Self::Up => LinearName::Up,
            Self::Down => LinearName::Down,
        }
    }

    /// Width of its input and of its output.
    #[must_use]
    pub const fn sides(self, config: &BackboneConfig) -> (usize, usize) {
        match self {
            Self::Query => (config.hidden, config.query_width()),
            Self::Key | Self::Value => (config.hidden, config.kv_width()),
            Self::Output => (config.query_width(), config.hidden),
            Self::Gate | Self::Up => (config.hidden, config.ffn),
            Self::Down => (config.ffn, config.hidden),
        }
    }

    /// Whether routed experts work on it.
    #[must_use]
    pub const fn is_routed(self) -> bool {
        matches!(self, Self::Gate | Self::Up | Self::Down)
    }
}
