//! The one integration binary. Each line below says what belongs to it; try not to add more.

/// The repository as files, for the tests that read it.
mod tree;

/// Taste that a machine can hold: file heads, lengths, leftovers.
mod tidy;
/// Which crate may know which, and which calls stand in one place only.
mod deps;
