//! `cert`: client certificates. The private key of a new one is written here, readable by its owner only, and exists
//! nowhere else.

use super::store::ask_status;
use crate::cli::CertCommand;
use crate::error::CtlError;
use crate::render;
use crate::session::Session;
use empathd_proto::admin::{AdminReply, AdminRequest, CertSummary, EnrolledCert};
use serde::Serialize;
use serde_json::json;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest name of a certificate.
const MAX_NAME: usize = 64;

/// Where the three files of a certificate are.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Files {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
}

#[derive(Serialize)]
struct Enrolled {
    #[serde(flatten)]
    summary: CertSummary,
    files: Files,
    /// A command that works with them, once the API's address is known.
    try_it: Option<String>,
}

pub(super) fn run(session: &mut Session<'_>, command: CertCommand) -> Result<(), CtlError> {
    match command {
        CertCommand::Enroll { name, role, days, out } => {
            let files = files(&name, &out)?;
            let request = AdminRequest::CertEnroll { name, role: role.into(), valid_days: days };
            let AdminReply::Enrolled(enrolled) = session.ask(request)? else { return Err(CtlError::UnexpectedReply) };
            write(&files, &enrolled)
                .map_err(|why| CtlError::KeyLost { serial: enrolled.summary.serial.clone(), why: why.to_string() })?;
            let try_it = ask_status(session)?.api.map(|api| render::cert::curl(&files, &api));
            let answer = Enrolled { summary: enrolled.summary, files, try_it };
            session.show(&answer, |edge| {
                render::cert::enrolled(&answer.summary, &answer.files, answer.try_it.as_deref(), edge)
            })
        }
        CertCommand::List => {
            let AdminReply::Certs(certs) = session.ask(AdminRequest::CertList)? else {
                return Err(CtlError::UnexpectedReply);
            };
            session.show(&json!({ "certs": certs }), |edge| render::cert::list(&certs, edge))
        }
        CertCommand::Revoke { serial } => {
            let AdminReply::Ok = session.ask(AdminRequest::CertRevoke { serial: serial.clone() })? else {
                return Err(CtlError::UnexpectedReply);
            };
            session.show(&json!({ "revoked": serial }), |_| format!("Revoked {serial}. It is refused from now on.\n"))
        }
    }
}

/// The paths, after everything was checked that could fail once the certificate is issued.
fn files(name: &str, out: &Path) -> Result<Files, CtlError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) || name.starts_with('.') || name == "ca" {
        return Err(CtlError::input(
            "this is no name for a certificate",
            "use letters, digits, `-`, `_` and `.`, at most 64, not beginning with `.`, and not `ca`",
        ));
    }
    let failed = |source| CtlError::File { doing: "create", path: out.to_owned(), source };
    fs::create_dir_all(out).map_err(failed)?;
    let at = |extension: &str| out.join(format!("{name}.{extension}"));
    let files = Files { cert: at("pem"), key: at("key"), ca: out.join("ca.pem") };
    for path in [&files.cert, &files.key] {
        if path.symlink_metadata().is_ok() {
            return Err(CtlError::input(
                format!("{} exists and is not overwritten", path.display()),
                "give another name or another folder with --out",
            ));
        }
    }
    Ok(files)
}

fn write(files: &Files, enrolled: &EnrolledCert) -> io::Result<()> {
    let create = |path: &Path, mode: u32, text: &str| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    create(&files.key, 0o600, &enrolled.key_pem)?;
    create(&files.cert, 0o644, &enrolled.cert_pem)?;
    // The authority is the same for every certificate of a store; another one belongs to an earlier store.
    match fs::remove_file(&files.ca) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => create(&files.ca, 0o644, &enrolled.ca_pem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_folder_or_overwrite_are_refused() {
        let out = tempfile::tempdir().expect("folder");
        for bad in ["", "../x", "a/b", ".hidden", "ca", "ü", "a b", &"x".repeat(65)] {
            assert_eq!(files(bad, out.path()).expect_err(bad).exit_code(), 2);
        }
        assert!(files("ehr-1", out.path()).is_ok());
        fs::write(out.path().join("ehr-1.key"), "mine").expect("written");
        assert!(files("ehr-1", out.path()).expect_err("taken").to_string().contains("not overwritten"));
    }
}
