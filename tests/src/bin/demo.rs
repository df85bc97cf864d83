//! `cargo demo`: takes a real appliance through its main job. The story is told in the library.

use clap::Parser;
use empathd_tests::demo::{Options, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    run(&Options::parse())
}
