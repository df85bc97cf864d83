//! The scheduler over a tiny real model.
