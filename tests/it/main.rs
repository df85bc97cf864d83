//! The one integration binary. Each line below says what belongs to it; try not to add more.

/// The repository as files, for the tests that read it.
mod tree;

/// Which crate may know which, and which calls stand in one place only.
mod deps;
/// Every entrance of strangers' bytes, on altered seeds.
mod fuzz;
/// Taste that a machine can hold: file heads, lengths, leftovers.
mod tidy;

/// The reference model of embeddings against published figures.
mod minilm;
/// The reference model against published figures.
mod smollm2;

/// A scratch appliance with the tiny model, for the tests that need a whole one.
mod stage;

/// Backups, key files, erasure and restore with the real programs.
mod copies;
/// Curves of training, read by TensorBoard.
mod curves;
/// Killed processes, wrong keys, hostile input, a full disk.
mod faults;
/// The main job, end to end.
mod flow;
/// OpenAI's own client, from pip.
mod openai;
/// Many at once: callers who leave, more than can be answered, a change of generation, a stop.
mod serving;
