//! The programs under test, always built from the present sources: whoever asks for one first waits for `cargo build` of
//! all three in the profile and target folder of the running program. It does not know what they do.

use anyhow::{Context, bail};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The three programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `empathd`.
    pub daemon: PathBuf,
    /// `empathd-engine`.
    pub engine: PathBuf,
    /// `empathctl`.
    pub ctl: PathBuf,
}

/// The root of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The target folder in which the running program was built.
///
/// # Errors
/// When the running program has no path.
pub fn target_folder() -> anyhow::Result<PathBuf> {
    Ok(profile_folder()?.parent().context("the running program lies in no target folder")?.to_owned())
}

/// `target/debug` or `target/release`, whichever the running program lies in.
fn profile_folder() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("the running program has no path")?;
    let folder = program.parent().context("the running program has no folder")?;
    Ok(if folder.ends_with("deps") { folder.parent().unwrap_or(folder).to_owned() } else { folder.to_owned() })
}

/// The programs, built once in this process. `said` receives each line that cargo prints.
///
/// # Errors
/// When cargo cannot be run or a program does not build; the error holds what cargo said.
pub fn programs(said: &mut dyn FnMut(&str)) -> anyhow::Result<&'static Programs> {
    static BUILT: OnceLock<Result<Programs, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build(said).map_err(|error| format!("{error:#}")));
    built.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// Beginnings of names that cargo sets for the program it runs.
const OF_THE_RUNNING_PACKAGE: &[&str] =
    &["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_", "OUT_DIR"];

fn build(said: &mut dyn FnMut(&str)) -> anyhow::Result<Programs> {
    let folder = profile_folder()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // `cargo run` and `cargo test` describe the running package in the environment. Build scripts that watch those names
    // would run again, here and in the next outer build.
    for (name, _) in std::env::vars_os() {
        if OF_THE_RUNNING_PACKAGE.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.arg("build").arg("--manifest-path").arg(repository().join("Cargo.toml"));
    command.arg("--target-dir").arg(target_folder()?);
    if folder.ends_with("debug") {
        // What `cargo test --workspace` builds, so that dependencies have the features they were just built with.
        command.args(["--workspace", "--all-targets"]);
    } else {
        command.args(["-p", "empathd", "-p", "empathd-model", "-p", "empathctl", "--bins"]);
    }
    if folder.ends_with("release") {
        command.arg("--release");
    } else if !folder.ends_with("debug") {
        command.arg("--profile").arg(folder.file_name().unwrap_or_default());
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo; install a Rust toolchain or set CARGO")?;
    let mut lines = Vec::new();
    for line in BufReader::new(child.stderr.take().context("cargo has no standard error")?).lines() {
        let line = line?;
        said(&line);
        lines.push(line);
    }
    if !child.wait()?.success() {
        bail!("the programs do not build:\n{}", lines.join("\n"));
    }
    Ok(Programs {
        daemon: folder.join("empathd"),
        engine: folder.join("empathd-engine"),
        ctl: folder.join("empathctl"),
    })
}
