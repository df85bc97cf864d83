//! The observer's checklist: what about this machine and this appliance keeps keys and records safe, point by point, each
//! with what to do next. It looks and changes nothing; how keys are kept is not known here.

use crate::app::{Acted, App};
use crate::care;
use empathd_proto::admin::{AdminReply, SealState};
use empathd_proto::keys::{Care, Check, CheckState};
use empathd_proto::problem::Problem;
use rustix::process::{DumpableBehavior, Resource};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Free space below which the disk has to be mended, in percent.
const FREE_PERCENT_MIN: u64 = 5;
/// Free space below which it is told, in percent.
const FREE_PERCENT_LOW: u64 = 15;
/// Age of the last backup above which it is told.
const BACKUP_AGE_MS_MAX: u64 = 2 * DAY_MS;
/// Age of the last drill above which it is told.
const DRILL_AGE_MS_MAX: u64 = 92 * DAY_MS;
const DAY_MS: u64 = 86_400_000;
/// Bits of a mode that give something to others than the owner.
const OTHERS: u32 = 0o077;
/// The kernel's list of what it swaps to.
const SWAPS: &str = "/proc/swaps";
/// There when the machine has a TPM2.
const TPM2: &str = "/sys/class/tpmrm/tpmrm0";

/// Goes through all of it.
pub(crate) async fn run(app: &Arc<App>) -> Result<Acted, Problem> {
    let checks = app.blocking(|app| checks(app)).await?;
    let count = checks.len() as u64;
    Ok(Acted::unrecorded(AdminReply::Checklist(checks), count))
}

fn checks(app: &App) -> Result<Vec<Check>, Problem> {
    let state = &app.config.state;
    let mut checks = vec![sealed(app), swap(), core_dumps(), credential(app), space(state), folder(state), socket(app)];
    if let Ok(store) = app.vault.unsealed() {
        checks.insert(1, locked(store.keys_are_locked_in_memory()));
        let (care, now_ms) = (care::report(&store)?, app.clock.now_ms());
        checks.extend([backup(&care, now_ms), drill(&care, now_ms), key_file(&care), clock(&store, now_ms)]);
    }
    Ok(checks)
}

fn check(name: &str, state: CheckState, found: impl Into<String>, next: &str) -> Check {
    let next = if state == CheckState::Ok { "" } else { next };
    Check { name: name.to_owned(), state, found: found.into(), next: next.to_owned() }
}

fn sealed(app: &App) -> Check {
    match app.vault.state() {
        SealState::Unsealed => check("store", CheckState::Ok, "unsealed", ""),
        SealState::Sealed => check("store", CheckState::Warn, "sealed: nobody is answered", "empathctl unseal"),
        SealState::Uninitialised => check("store", CheckState::Warn, "there is none yet", "empathctl init"),
    }
}

fn locked(locked: bool) -> Check {
    let next = "Raise LimitMEMLOCK in the unit of empathd, then restart it.";
    match locked {
        true => check("keys in memory", CheckState::Ok, "locked, never swapped out", ""),
        false => check("keys in memory", CheckState::Fail, "the kernel may swap them out", next),
    }
}

fn swap() -> Check {
    let next = "Turn swap off, or encrypt it with a key that is made at each start (crypttab: swap).";
    match std::fs::read_to_string(SWAPS) {
        Ok(text) if text.lines().count() <= 1 => check("swap", CheckState::Ok, "none", ""),
        Ok(_) => check("swap", CheckState::Warn, "there is swap; answers and records may reach it", next),
        Err(_) => check("swap", CheckState::Warn, "the kernel does not say whether there is any", next),
    }
}

fn core_dumps() -> Check {
    let next = "Start it as a service: the unit and `empathd serve` forbid them.";
    let dumpable = rustix::process::dumpable_behavior() != Ok(DumpableBehavior::NotDumpable);
    let limit = rustix::process::getrlimit(Resource::Core).maximum;
    match (dumpable, limit) {
        (false, _) | (_, Some(0)) => check("core dumps", CheckState::Ok, "forbidden", ""),
        _ => check("core dumps", CheckState::Warn, "possible: a crash could write records to the disk", next),
    }
}

fn credential(app: &App) -> Check {
    let name = "credential";
    let next = "Make it with: systemd-creds encrypt --with-key=host+tpm2 (docs/INSTALL.md, \"Keys, backup, erasure\").";
    match (&app.config.credential, Path::new(TPM2).exists()) {
        (None, _) => check(name, CheckState::Ok, "none: a person unseals after each start", ""),
        (Some(_), true) => check(name, CheckState::Ok, "loaded; this machine has a TPM2 to bind it to", ""),
        (Some(_), false) => {
            check(name, CheckState::Warn, "host-only, there is no TPM2: who copies the disk has it", next)
        }
    }
}

fn space(state: &Path) -> Check {
    let next = "Free some space, or move the state folder to a larger disk: a full one takes no records.";
    let Ok(disk) = rustix::fs::statvfs(state) else {
        return check("disk", CheckState::Fail, "the state folder's disk does not answer", "Check the disk.");
    };
    let percent = 100 * disk.f_bavail / disk.f_blocks.max(1);
    let free = format!("{percent} % free, {} MB", disk.f_bavail.saturating_mul(disk.f_frsize) / 1_000_000);
    match percent {
        _ if percent < FREE_PERCENT_MIN => check("disk", CheckState::Fail, free, next),
        _ if percent < FREE_PERCENT_LOW => check("disk", CheckState::Warn, free, next),
        _ => check("disk", CheckState::Ok, free, ""),
    }
}

fn folder(state: &Path) -> Check {
    let name = "state folder";
    let Ok(facts) = state.metadata() else {
        return check(name, CheckState::Fail, "it cannot be looked at", "Check its permissions.");
    };
    let own = facts.uid() == rustix::process::geteuid().as_raw();
    match (facts.mode() & OTHERS, own) {
        (0, true) => check(name, CheckState::Ok, "its owner's alone", ""),
        (0, false) => check(name, CheckState::Fail, "it belongs to another user", "chown -R empathd: FOLDER"),
        _ => check(name, CheckState::Fail, "others than its owner may enter it", "chmod 700 FOLDER"),
    }
}

/// Anyone may ask how the appliance is; who may do more is decided by the kernel's word on who asks. So what counts is that
/// nobody else can put a socket of their own into its place.
fn socket(app: &App) -> Check {
    let name = "admin socket";
    let folder = app.config.admin.socket.parent().and_then(|folder| folder.metadata().ok());
    match folder {
        Some(facts) if facts.mode() & 0o022 == 0 => check(name, CheckState::Ok, "nobody else can replace it", ""),
        Some(_) => {
            check(name, CheckState::Fail, "others may write into its folder", "chmod go-w the folder of admin.socket")
        }
        None => check(name, CheckState::Warn, "its folder cannot be looked at", "Check admin.socket."),
    }
}

fn backup(care: &Care, now_ms: u64) -> Check {
    let next = "empathctl backup create DIR; a timer each night is best";
    match care.backup_at_ms {
        None => check("backup", CheckState::Fail, "none was ever made", next),
        Some(at_ms) => aged("backup", at_ms, now_ms, BACKUP_AGE_MS_MAX, next),
    }
}

fn drill(care: &Care, now_ms: u64) -> Check {
    let next = "empathctl backup drill, with two of the recovery shares";
    match &care.drill {
        None => check("drill", CheckState::Warn, "no restore was ever tried", next),
        Some(drill) => aged("drill", drill.at_ms, now_ms, DRILL_AGE_MS_MAX, next),
    }
}

fn aged(name: &str, at_ms: u64, now_ms: u64, age_ms_max: u64, next: &str) -> Check {
    let age_ms = now_ms.saturating_sub(at_ms);
    let found = format!("{} h ago", age_ms / 3_600_000);
    check(name, if age_ms > age_ms_max { CheckState::Warn } else { CheckState::Ok }, found, next)
}

fn key_file(care: &Care) -> Check {
    let next = "empathctl keys escrow FILE; then destroy every older key file";
    match &care.key_file_due {
        None => check("key file", CheckState::Ok, "newer than the last backup and the last erasure", ""),
        Some(why) => check("key file", CheckState::Fail, why.clone(), next),
    }
}

/// A clock that went back behind the trail makes every later entry lie.
fn clock(store: &empathd_store::Store, now_ms: u64) -> Check {
    let last = store.audit_tail(1).ok().and_then(|entries| entries.first().map(|entry| entry.at_ms));
    match last {
        Some(at_ms) if at_ms > now_ms => {
            check("clock", CheckState::Fail, "it is behind the newest audit entry", "Set it: timedatectl set-ntp true")
        }
        _ => check("clock", CheckState::Ok, "not behind the audit trail", ""),
    }
}
