//! Differentiable operations of our own.
