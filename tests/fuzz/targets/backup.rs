//! Fuzzer of the entrance `backup`; its body is in `tests/src/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| empathd_fuzz::run("backup", bytes));
