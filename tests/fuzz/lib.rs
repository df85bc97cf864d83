//! Finds the body of a fuzzer by its name. What is fuzzed is not known here.

/// Runs the entrance of this name once.
///
/// # Panics
/// There is none of this name, or the entrance fell over.
pub fn run(name: &str, bytes: &[u8]) {
    let target = empathd_tests::fuzz::TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(bytes);
}
