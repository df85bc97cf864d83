//! What can be typed. Only shapes and help texts: the commands are in [`crate::commands`].

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use empathd_proto::admin::{ApiRole, MAX_AUDIT_TAIL};
use empathd_proto::keys::EraseReason;
use empathd_proto::record::Domain;
use empathd_proto::{AdapterId, DatasetId, JobId};
use std::path::PathBuf;

/// Where the daemon listens when it was installed from the package.
pub const DEFAULT_SOCKET: &str = "/run/empathd/admin.sock";

/// The table of exit codes, as `--help` ends with it.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  anything else
  2  bad usage or input
  3  not running, not initialised or sealed
  4  not allowed: permissions or passphrase
  5  no such thing
  6  the present state does not allow it
  7  integrity: stored data or the audit trail does not hold
  8  try again later

With --json the answer is one JSON document on standard output, an error one on standard error
(RFC 9457 problem details with `code`, `next` and `exit_code`).";

/// The administrator's tool of the Empathd appliance.
#[derive(Debug, Parser)]
#[command(name = "empathctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The daemon's admin socket
    #[arg(long, global = true, env = "EMPATHD_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    pub socket: PathBuf,
    /// Answer with one JSON document
    #[arg(long, global = true)]
    pub json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How the appliance is, and what to do next
    Status,
    /// Create the store; ends unsealed and serving
    Init(InitArgs),
    /// Bring the keys into memory, after every start
    Unseal(UnsealArgs),
    /// Take the keys out of memory
    Seal,
    /// Client certificates of the clinic's own authority
    #[command(subcommand)]
    Cert(CertCommand),
    /// Names that de-identification searches for
    #[command(subcommand)]
    Roster(RosterCommand),
    /// Take in source files, or folders of them
    Ingest(IngestArgs),
    /// Frozen cuts of the records
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// Training jobs
    #[command(subcommand)]
    Train(TrainCommand),
    /// Generations of trained adapters
    #[command(subcommand)]
    Adapter(AdapterCommand),
    /// Who did what, provably
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Keys: epochs, ways in, key files
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Clients: erase, hold, export
    #[command(subcommand)]
    Client(ClientCommand),
    /// Backups, and the drill that proves that they come back
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Go through what keeps keys and records safe, and what to do next
    Doctor,
    /// Print completions for a shell
    Completions {
        /// Which
        shell: Shell,
    },
}

/// Where the passphrase comes from. Never an argument: those are seen by everyone on the machine.
#[derive(Debug, Args)]
pub struct PassphraseArg {
    /// Read the passphrase from the first line of this file instead of asking
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where the passphrase comes from.
    #[command(flatten)]
    pub passphrase: PassphraseArg,
    /// Write the three recovery shares into this new file instead of showing them; print it, part it, destroy it
    #[arg(long, value_name = "FILE")]
    pub shares_file: Option<PathBuf>,
}

/// Where recovery shares come from: typed without echo, or out of files.
#[derive(Debug, Args)]
pub struct SharesArg {
    /// Read recovery shares from this file, parted by empty lines; repeat it for shares in several files
    #[arg(long, value_name = "FILE")]
    pub shares_file: Vec<PathBuf>,
}

/// `unseal`.
#[derive(Debug, Args)]
pub struct UnsealArgs {
    /// Where the passphrase comes from.
    #[command(flatten)]
    pub passphrase: PassphraseArg,
    /// Ask for two recovery shares instead of the passphrase
    #[arg(long, conflicts_with = "passphrase_file")]
    pub shares: bool,
    /// Where the shares come from.
    #[command(flatten)]
    pub shares_from: SharesArg,
}

/// `keys`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Epoch, ways in, and when copies were last made
    Status,
    /// Begin a new epoch: every data key is wrapped again, and old copies of the state open nothing
    Rotate,
    /// Exchange, make or take away a way in
    Rekey(RekeyArgs),
    /// Write a key file: with a backup and two recovery shares it restores the store. Keep only the newest, away from backups
    Escrow {
        /// The file; refused when it exists
        file: PathBuf,
    },
}

/// `keys rekey`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("way").required(true).args(["passphrase", "shares", "credential", "no_credential"]))]
pub struct RekeyArgs {
    /// A new passphrase; the present one is asked first
    #[arg(long)]
    pub passphrase: bool,
    /// Three new recovery shares; the earlier ones open nothing any more
    #[arg(long)]
    pub shares: bool,
    /// Let the systemd credential that the service loads unseal it at its start
    #[arg(long)]
    pub credential: bool,
    /// Take that way away
    #[arg(long)]
    pub no_credential: bool,
    /// Read the present passphrase from the first line of this file instead of asking
    #[arg(long, value_name = "FILE", requires = "passphrase")]
    pub passphrase_file: Option<PathBuf>,
    /// Read the new passphrase from the first line of this file instead of asking
    #[arg(long, value_name = "FILE", requires = "passphrase")]
    pub new_passphrase_file: Option<PathBuf>,
    /// Write the new shares into this new file instead of showing them
    #[arg(long, value_name = "FILE", requires = "shares")]
    pub shares_file: Option<PathBuf>,
}

/// `client`. A client is named by its identifier (`client_...`), or as its source names it: `PROFILE:NAME`, or `NAME` alone
/// when one source has it.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Erase a client for good: records, keys, everything that learned from them, and every copy in earlier backups
    Erase {
        /// Identifier, PROFILE:NAME or NAME
        client: String,
        /// Why: asked by the client (GDPR Article 17), end of retention, an order, or taken in by mistake
        #[arg(long, value_parser = reason)]
        reason: EraseReason,
        /// First write the whole record into this folder, as `client export` does
        #[arg(long, value_name = "DIR")]
        export: Option<PathBuf>,
        /// Do not ask again
        #[arg(long)]
        yes: bool,
    },
    /// Put a client under a legal hold: nothing is erased until it is lifted
    Hold {
        /// Identifier, PROFILE:NAME or NAME
        client: String,
    },
    /// Lift a legal hold
    Release {
        /// Identifier, PROFILE:NAME or NAME
        client: String,
    },
    /// Write a client's whole record: one JSON object a line, with signed manifest
    Export {
        /// Identifier, PROFILE:NAME or NAME
        client: String,
        /// Folder for the files; made when it is missing, refused when it is not empty
        dir: PathBuf,
    },
}

fn reason(text: &str) -> Result<EraseReason, String> {
    let words = EraseReason::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>().join(", ");
    EraseReason::parse(text).ok_or_else(|| format!("say one of: {words}"))
}

/// `backup`.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Write a backup into a folder, checked before and after; it holds no key
    Create {
        /// The folder; made when it is missing
        dir: PathBuf,
        /// Only what changed since the newest backup in the folder
        #[arg(long)]
        incremental: bool,
    },
    /// Restore the present state into a scratch folder, check all of it, and remove it; asks for two recovery shares
    Drill(SharesArg),
}

/// `cert`.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Issue a certificate; writes NAME.pem, NAME.key and ca.pem
    Enroll {
        /// Name of the system that will hold it: letters, digits, `-`, `_`, `.`; at most 64
        name: String,
        /// What it may do
        #[arg(long, value_enum, default_value_t = RoleArg::Ehr)]
        role: RoleArg,
        /// Days until it expires
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u16).range(1..=398))]
        days: u16,
        /// Folder for the files; made when it is missing
        #[arg(long, default_value = ".", value_name = "DIR")]
        out: PathBuf,
    },
    /// All certificates
    List,
    /// Refuse a certificate from now on, its live connections included
    Revoke {
        /// Serial number, as `cert list` shows it
        serial: String,
    },
}

/// [`ApiRole`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// The clinic's record system: answers and models
    Ehr,
    /// Monitoring: health and metrics only
    Monitor,
}

impl From<RoleArg> for ApiRole {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Ehr => Self::Ehr,
            RoleArg::Monitor => Self::Monitor,
        }
    }
}

/// `roster`.
#[derive(Debug, Subcommand)]
pub enum RosterCommand {
    /// Replace the roster: one name a line
    Set {
        /// The list
        file: PathBuf,
    },
}

/// `ingest`.
#[derive(Debug, Args)]
pub struct IngestArgs {
    /// Files or folders. In folders, files of a form that no source profile knows are passed over with a note;
    /// named one by one, they are an error
    #[arg(required = true, value_name = "FILE")]
    pub paths: Vec<PathBuf>,
    /// Only report what would happen
    #[arg(long)]
    pub dry_run: bool,
}

/// `dataset`.
#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    /// Freeze a cut of all records, split by client
    Cut {
        /// Share of clients held out for validation, in percent
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=50))]
        validation_percent: u8,
        /// Seed of the split
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// All cuts
    List,
}

/// `train`.
#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// Begin training, or go on with a paused job of the same cut
    Start {
        /// Optimiser steps [default: as configured]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        steps: Option<u32>,
        /// Most wall-clock minutes [default: as configured]
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=720))]
        minutes: Option<u16>,
        /// The cut [default: the newest]
        #[arg(long, value_name = "ID")]
        dataset: Option<DatasetId>,
        /// Have it ended by this time of day, the next time the clock shows it, such as 06:30
        #[arg(long, value_name = "HH:MM")]
        until: Option<String>,
        /// Seed of initialisation and order
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Promote the adapter when it passes its gate
        #[arg(long)]
        promote: bool,
        /// Show progress until it ends; interrupting the tool leaves the job running
        #[arg(long)]
        follow: bool,
    },
    /// The last job, or one
    Status {
        /// Which job
        job: Option<JobId>,
        /// Show progress until it ends; interrupting the tool leaves the job running
        #[arg(long)]
        follow: bool,
    },
    /// What a job learnt, how its losses went, and what its gate found
    Report {
        /// Which job; the last one when absent
        job: Option<JobId>,
    },
    /// Pause training after a checkpoint; `train start` goes on from it
    Stop,
}

/// `adapter`.
#[derive(Debug, Subcommand)]
pub enum AdapterCommand {
    /// All generations
    List,
    /// Make an approved generation the active one
    Promote {
        /// Which
        id: AdapterId,
    },
    /// Go back to the generation that was active before
    Rollback,
    /// Write a generation as files: PEFT LoRA, GGUF, router, manifest with signature, model card
    Export {
        /// Which; it must have passed its gate
        id: AdapterId,
        /// Folder for the files; made when it is missing, refused when it is not empty
        dir: PathBuf,
    },
    /// Make a PEFT LoRA one more expert of the active generation, train the routers to use it, and send it through the gate
    Import(ImportArgs),
    /// Check that the files of an export are those that were signed; needs no appliance
    Verify {
        /// The folder
        dir: PathBuf,
        /// The clinic's key, as `adapter export` shows it
        #[arg(long, value_name = "BASE64")]
        key: Option<String>,
    },
}

/// `adapter import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Folder with adapter_config.json and adapter_model.safetensors
    pub dir: PathBuf,
    /// What the expert is for, such as `crisis`; free when not given
    #[arg(long, value_parser = domain)]
    pub domain: Option<Domain>,
    /// A mixture of this expert alone, instead of the active generation with one more
    #[arg(long)]
    pub alone: bool,
    /// Let the attention part of the LoRA be added to the shared part, where every conversation then uses it
    #[arg(long)]
    pub attention_to_shared: bool,
    /// Steps in which only the routers learn [default: 100]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: Option<u32>,
    /// The cut that they learn from [default: the newest]
    #[arg(long, value_name = "ID")]
    pub dataset: Option<DatasetId>,
    /// Seed of the order of examples
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Promote the adapter when it passes its gate
    #[arg(long)]
    pub promote: bool,
    /// Show progress until it ends; interrupting the tool leaves the job running
    #[arg(long)]
    pub follow: bool,
}

fn domain(word: &str) -> Result<Domain, String> {
    let all = || Domain::ALL.iter().map(|domain| domain.as_str()).collect::<Vec<_>>().join(", ");
    Domain::ALL.iter().copied().find(|domain| domain.as_str() == word).ok_or_else(|| format!("it is one of {}", all()))
}

/// `audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// The newest entries
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20,
              value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_AUDIT_TAIL)))]
        lines: u32,
    },
    /// Check the whole trail, and that it only extends the newest checkpoint this user has seen
    Verify {
        /// Check the files of an export instead; needs no appliance
        #[arg(long, value_name = "DIR")]
        export: Option<PathBuf>,
        /// The key that must have signed the export, as an earlier check showed it
        #[arg(long, value_name = "BASE64", requires = "export")]
        key: Option<String>,
    },
    /// Write the whole trail as files: one entry a line, and the signed checkpoint over all of them
    Export {
        /// Folder for the files; made when it is missing, refused when it is not empty
        dir: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::CtlError;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn values_out_of_range_are_refused_before_anything_is_asked() {
        for bad in [
            &["cert", "enroll", "x", "--days", "399"][..],
            &["cert", "enroll", "x", "--role", "root"],
            &["dataset", "cut", "--validation-percent", "51"],
            &["train", "start", "--minutes", "721"],
            &["train", "start", "--dataset", "job_00000000000000000000000000000000"],
            &["adapter", "import", "dir", "--domain", "poetry"],
            &["audit", "tail", "-n", "10001"],
            &["init", "--passphrase", "secret"],
            &["keys", "rekey"],
            &["keys", "rekey", "--shares", "--credential"],
            &["client", "erase", "x", "--reason", "because"],
            &["client", "erase", "x"],
            &["ingest"],
        ] {
            let words = ["empathctl"].iter().chain(bad);
            let error = CtlError::usage(&Cli::try_parse_from(words).expect_err("out of range"));
            assert_eq!(error.exit_code(), 2);
            assert!(!error.to_string().is_empty() && !error.to_string().contains("Usage:"), "{error}");
        }
    }
}
