//! One real appliance in a folder: `empathd --dev`, its engine beside it, and `empathctl` to rule it. It ends only
//! processes it started. What travels on the sockets is not known here.

use super::build::Programs;
use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longest wait for the line that says the appliance is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for an orderly stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// How often a state is asked again.
const POLL: Duration = Duration::from_millis(20);

/// How to start an appliance.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The programs.
    pub programs: Programs,
    /// Its state folder.
    pub state: PathBuf,
    /// Where it writes what it has to say; appended to.
    pub log: PathBuf,
    /// Base model other than the reference model.
    pub model: Option<PathBuf>,
    /// Further arguments of the daemon.
    pub arguments: Vec<OsString>,
    /// A program, with arguments, that starts the daemon, such as `prlimit`; empty for none.
    pub wrapper: Vec<OsString>,
}

impl Launch {
    /// An appliance with its state in `folder/state` and its log beside it.
    #[must_use]
    pub fn in_folder(programs: &Programs, folder: &Path) -> Self {
        Self {
            programs: programs.clone(),
            state: folder.join("state"),
            log: folder.join("empathd.log"),
            model: None,
            arguments: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    fn command(&self) -> Command {
        let mut words = self.wrapper.clone();
        words.push(self.programs.daemon.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--dev").arg("--state").arg(&self.state);
        if let Some(model) = &self.model {
            command.arg("--model").arg(model);
        }
        command.args(&self.arguments);
        command
    }

    /// Starts it and waits until its sockets are bound.
    ///
    /// # Errors
    /// When it does not start, or says nothing in time; the error holds the end of its log.
    pub fn start(&self) -> anyhow::Result<Appliance> {
        fs::create_dir_all(&self.state).with_context(|| format!("cannot make {}", self.state.display()))?;
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.programs.daemon.display()))?;
        let output = child.stdout.take().context("the daemon has no standard output")?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut appliance =
            Appliance { child, ctl: self.programs.ctl.clone(), ready: Ready::default(), log: self.log.clone() };
        let line = receiver
            .recv_timeout(READY_WITHIN)
            .map_err(|_| anyhow!("the appliance did not become ready. Its log ends with:\n{}", appliance.log_end()))?;
        appliance.ready =
            serde_json::from_str(&line).with_context(|| format!("not the line of a ready daemon: {line}"))?;
        Ok(appliance)
    }
}

/// What the daemon prints when its sockets are bound.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Ready {
    /// Address of the API, `host:port`.
    pub api: String,
    /// Path of the admin socket.
    pub admin_socket: PathBuf,
    /// The authority's certificate; written at `init`.
    pub ca: PathBuf,
}

/// Why `empathctl` did not do it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("empathctl {command}: {body}")]
pub struct CtlFailure {
    /// What was asked.
    pub command: String,
    /// Exit code; -1 when it was ended by a signal.
    pub exit_code: i32,
    /// The problem, as it printed it.
    pub body: Value,
}

impl CtlFailure {
    /// The stable error code.
    #[must_use]
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// A running appliance. Dropping it kills the daemon; the engine ends by itself when its peer is gone.
#[derive(Debug)]
pub struct Appliance {
    child: Child,
    ctl: PathBuf,
    log: PathBuf,
    /// Where it listens.
    pub ready: Ready,
}

impl Appliance {
    /// Runs `empathctl --json` with these words and gives the document it prints.
    ///
    /// # Errors
    /// [`CtlFailure`] with the problem when it ends with anything but success.
    pub fn ctl<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Result<Value, CtlFailure> {
        let command = words.iter().map(|word| word.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
        let failure = |exit_code, body| CtlFailure { command: command.clone(), exit_code, body };
        let output = Command::new(&self.ctl)
            .arg("--socket")
            .arg(&self.ready.admin_socket)
            .arg("--json")
            .args(words)
            .env("XDG_STATE_HOME", self.log.with_extension("ctl"))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failure(-1, Value::from(error.to_string())))?;
        let text = if output.status.success() { &output.stdout } else { &output.stderr };
        let value = serde_json::from_slice(text).unwrap_or_else(|_| String::from_utf8_lossy(text).trim().into());
        if output.status.success() { Ok(value) } else { Err(failure(output.status.code().unwrap_or(-1), value)) }
    }

    /// As [`Appliance::ctl`], with the document as a value of a known shape.
    ///
    /// # Errors
    /// Also when the document has another shape.
    pub fn ask<T: DeserializeOwned>(&self, words: &[&str]) -> anyhow::Result<T> {
        let value = self.ctl(words)?;
        serde_json::from_value(value.clone()).with_context(|| format!("{}: unexpected {value}", words.join(" ")))
    }

    /// Process id of the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process id of the engine it started, if one runs now.
    #[must_use]
    pub fn engine_pid(&self) -> Option<u32> {
        let children = fs::read_dir(format!("/proc/{}/task", self.pid())).ok()?;
        let pids: Vec<u32> = children
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        pids.into_iter().find(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "empathd-engine")
        })
    }

    /// Kills the engine without warning, as a fault would. Gives its process id.
    ///
    /// # Errors
    /// When no engine runs.
    pub fn kill_engine(&self) -> anyhow::Result<u32> {
        let pid = self.engine_pid().context("no engine runs")?;
        send(pid, Signal::KILL)?;
        Ok(pid)
    }

    /// Waits until `done` gives something, asking again and again.
    ///
    /// # Errors
    /// When it did not in time; `what` says what was awaited.
    pub fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        mut done: impl FnMut(&Self) -> Option<T>,
    ) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            if let Some(value) = done(self) {
                return Ok(value);
            }
            if began.elapsed() > within {
                bail!("{what} did not happen within {} s. The log ends with:\n{}", within.as_secs(), self.log_end());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Tells it to stop in order, and waits for nothing.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn begin_stop(&self) -> anyhow::Result<()> {
        send(self.pid(), Signal::TERM)
    }

    /// Stops it in order and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time or ends with an error.
    pub fn stop(mut self) -> anyhow::Result<()> {
        send(self.pid(), Signal::TERM)?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return self.judge(status);
            }
            if began.elapsed() > STOP_WITHIN {
                bail!("the appliance did not stop within {} s", STOP_WITHIN.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }

    fn judge(&self, status: ExitStatus) -> anyhow::Result<()> {
        if status.success() {
            return Ok(());
        }
        bail!("the appliance stopped with {status}. Its log ends with:\n{}", self.log_end())
    }

    /// Kills it without warning, as a power switch would.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // After an orderly end both are refused, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn send(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process id")?;
    kill_process(pid, signal).with_context(|| format!("cannot send {signal:?}"))
}

/// `empathd verify` of a stopped appliance's state.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Whether it ended with success.
    pub ok: bool,
    /// Exit code; -1 when it was ended by a signal.
    pub exit_code: i32,
    /// The document it printed.
    pub document: Value,
}

/// Checks the state of a stopped appliance.
///
/// # Errors
/// When the daemon cannot be run at all.
pub fn verify(programs: &Programs, state: &Path, passphrase_file: &Path) -> anyhow::Result<Verdict> {
    let output = Command::new(&programs.daemon)
        .args(["verify", "--json", "--state"])
        .arg(state)
        .arg("--passphrase-file")
        .arg(passphrase_file)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", programs.daemon.display()))?;
    let text = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    let document = serde_json::from_slice(text).unwrap_or_else(|_| String::from_utf8_lossy(text).trim().into());
    Ok(Verdict { ok: output.status.success(), exit_code: output.status.code().unwrap_or(-1), document })
}
