//! Certificates, and the command line that tries a new one.

use super::table::{Side, Table, facts};
use super::words::{day, duration};
use crate::commands::cert::Files;
use crate::session::Edge;
use empathd_proto::admin::CertSummary;
use std::net::SocketAddr;
use std::path::Path;

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// A new certificate: where its files are and how to try it.
pub(crate) fn enrolled(cert: &CertSummary, files: &Files, try_it: Option<&str>, edge: &Edge) -> String {
    let shown = |path: &Path| path.display().to_string();
    let facts = facts(&[
        ("certificate", shown(&files.cert)),
        ("private key", format!("{} (kept nowhere else)", shown(&files.key))),
        ("authority", shown(&files.ca)),
        ("serial", cert.serial.clone()),
        ("good until", day(cert.not_after_ms, edge)),
    ]);
    let next = match try_it {
        Some(command) => format!("Try it:\n  {command}\n"),
        None => "The API is not bound: see empathctl status\n".into(),
    };
    format!("Issued to {} for role {}.\n\n{facts}\n{next}", cert.name, cert.role)
}

/// All certificates.
pub(crate) fn list(certs: &[CertSummary], edge: &Edge) -> String {
    use Side::Left;
    let mut table =
        Table::new([("NAME", Left), ("ROLE", Left), ("GOOD UNTIL", Left), ("STATE", Left), ("SERIAL", Left)]);
    for cert in certs {
        let cells = [
            cert.name.clone(),
            cert.role.to_string(),
            day(cert.not_after_ms, edge),
            state(cert, edge),
            cert.serial.clone(),
        ];
        table.row(cells);
    }
    table.text("No certificates yet. Next: empathctl cert enroll NAME --out DIR")
}

fn state(cert: &CertSummary, edge: &Edge) -> String {
    if let Some(at_ms) = cert.revoked_at_ms {
        return format!("revoked {}", day(at_ms, edge));
    }
    match cert.not_after_ms.checked_sub(edge.now_ms) {
        None => "expired".into(),
        Some(left_ms) if left_ms >= DAY_MS => format!("good, {} d left", left_ms / DAY_MS),
        Some(left_ms) => format!("good, {} left", duration(left_ms / 1_000)),
    }
}

/// A request that works from this machine with these files.
pub(crate) fn curl(files: &Files, api: &str) -> String {
    let quoted = |path: &Path| quote(&path.display().to_string());
    format!(
        "curl --cacert {} --cert {} --key {} https://{}/v1/models",
        quoted(&files.ca),
        quoted(&files.cert),
        quoted(&files.key),
        reachable(api)
    )
}

/// The address as this machine reaches it: a listener on all addresses is asked on the loopback one.
fn reachable(api: &str) -> String {
    match api.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("localhost:{}", address.port()),
        _ => api.to_owned(),
    }
}

/// The text as one word of a POSIX shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::words::tests::edge;
    use empathd_proto::admin::ApiRole;
    use expect_test::expect;

    fn cert(name: &str, not_after_ms: u64, revoked_at_ms: Option<u64>) -> CertSummary {
        CertSummary {
            serial: "5b1f".repeat(10),
            name: name.into(),
            role: ApiRole::Ehr,
            uri: format!("spiffe://empathd/ehr/{name}"),
            not_after_ms,
            revoked_at_ms,
        }
    }

    #[test]
    fn the_list_fits_and_says_how_each_one_is() {
        let now = edge().now_ms;
        let certs =
            [cert("ehr-1", now + 7_776_000_000, None), cert("old", now - 1, None), cert("lost", now, Some(now))];
        expect![[r#"
            NAME   ROLE  GOOD UNTIL  STATE               SERIAL
            ehr-1  ehr   2026-05-30  good, 90 d left     5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f
            old    ehr   2026-03-01  expired             5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f
            lost   ehr   2026-03-01  revoked 2026-03-01  5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f5b1f
        "#]]
        .assert_eq(&list(&certs, &edge()));
    }

    #[test]
    fn the_command_is_one_that_works() {
        let files = Files { cert: "o'd d/x.pem".into(), key: "k".into(), ca: "ca.pem".into() };
        expect![[r#"curl --cacert ca.pem --cert 'o'\''d d/x.pem' --key k https://localhost:8443/v1/models"#]]
            .assert_eq(&curl(&files, "0.0.0.0:8443"));
        assert!(curl(&files, "[::1]:8443").contains("https://[::1]:8443/"));
    }
}
