//! Keys and values of one answer under way.

use crate::config::BackboneConfig;

/// Keys and values of the tokens seen so far, every layer.
pub struct KvCache {
    len: usize,
}

impl KvCache {
    /// An empty one.
    #[must_use]
    pub fn new(_config: &BackboneConfig) -> Self {
        Self { len: 0 }
    }

    /// Tokens in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Overwrites everything with zeros and empties it; the number of bytes overwritten.
    pub fn wipe(&mut self) -> u64 {
        self.len = 0;
        0
    }
}
