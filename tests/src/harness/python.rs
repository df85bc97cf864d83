//! Python programs of others, as pip gives them, each in an environment of its own that is made once for a target folder.

use super::build;
use anyhow::{Context, ensure};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The Python of an environment with what `tests/NAME/requirements.txt` asks for.
///
/// # Errors
/// There is no Python, or pip has nowhere to install from.
pub fn environment(name: &str) -> anyhow::Result<PathBuf> {
    let folder = build::target_folder()?.join(format!("python-{name}"));
    let python = folder.join("bin/python");
    if folder.join("complete").exists() {
        return Ok(python);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).context("an environment that was begun cannot be removed")?;
    }
    let requirements = build::repository().join("tests").join(name).join("requirements.txt");
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r"];
    run(Command::new(&python).args(install).arg(requirements))?;
    fs::write(folder.join("complete"), "")?;
    Ok(python)
}

/// Runs a program to its end; what it said.
///
/// # Errors
/// It cannot be run, or ended with a failure; both its outputs are then in the error.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed:\n{said}\n{error}");
    Ok(said)
}
