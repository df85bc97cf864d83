//! With the feature `cuda`: compiles the kernels of `src/device/kernels.cu` for the card's virtual architecture. Without
//! it does nothing.

#![expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts through the environment")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const SOURCE: &str = "src/device/kernels.cu";
/// When `CUDA_COMPUTE_CAP` is not set: H100 and H200.
const COMPUTE_CAP: &str = "90";

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed={SOURCE}");
    for name in ["NVCC", "CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let to = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("kernels.ptx");
    let cap = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| COMPUTE_CAP.to_owned());
    let mut nvcc = Command::new(nvcc());
    nvcc.args(["-ptx", "-O3", "-std=c++17", "--Werror", "all-warnings", "-arch"]).arg(format!("compute_{cap}"));
    match nvcc.arg("-o").arg(to).arg(SOURCE).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => failed("nvcc refuses src/device/kernels.cu"),
        Err(error) => failed(&format!("nvcc cannot be started ({error}); see packaging/build-engine-cuda.sh")),
    }
}

fn failed(words: &str) -> ExitCode {
    println!("cargo::error={words}");
    ExitCode::FAILURE
}

fn nvcc() -> PathBuf {
    let in_home = || env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    env::var_os("NVCC").map(PathBuf::from).or_else(in_home).unwrap_or_else(|| "nvcc".into())
}
