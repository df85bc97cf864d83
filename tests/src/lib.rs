//! What the tests, the demo and the benches share: the synthetic corpus and a harness that drives the real programs. It
//! knows the appliance from outside only: its command lines, its sockets and its files.
#![expect(clippy::disallowed_methods, reason = "tests and the demo read the environment, the clock and randomness")]

pub mod corpus;
pub mod demo;
pub mod fuzz;
pub mod harness;
