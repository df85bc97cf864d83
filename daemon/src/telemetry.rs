//! The operational log: to the console in development, into the systemd journal in production. Messages are fixed
//! sentences and fields are those of a closed list, so that no clinical text can reach a log; a field that is not on the
//! list is left out. Who did what is no business of this log: that is the audit trail.

use log::Log;
use std::fmt::{Debug, Write as _};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

/// Fields that may be logged: counts, states, words of closed lists, random identifiers, the operating system's errors.
const FIELDS: &[&str] = &[
    "adapter",
    "bytes",
    "certificate",
    "code",
    "count",
    "dataset",
    "elapsed_ms",
    "error",
    "exit",
    "job",
    "kind",
    "log.target",
    "message",
    "pid",
    "reason",
    "signal",
    "state",
    "status",
    "step",
    "timeout",
    "uid",
    "version",
];

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// Standard error, for people.
    Console,
    /// The systemd journal, with fields.
    Journal,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("the log filter is not valid; use for example \"info\" or \"empathd=debug\"")]
    Filter,
    /// The journal does not answer.
    #[error("the journal does not answer ({0}); start the daemon with --dev to log to the console")]
    Journal(#[source] std::io::Error),
    /// There is a log already.
    #[error("the log was set up twice")]
    Twice,
}

/// Begins to log.
///
/// # Errors
/// The filter is not valid, the journal does not answer, or there is a log already.
pub fn init(sink: Sink, filter: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(filter).map_err(|_| TelemetryError::Filter)?;
    let registry = Registry::default().with(filter);
    match sink {
        Sink::Console => {
            let fields = debug_fn(|writer: &mut Writer<'_>, field, value| match field.name() {
                "message" => write!(writer, "{value:?} "),
                name if is_allowed(name) => write!(writer, "{name}={value:?} "),
                _ => Ok(()),
            });
            let console = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).fmt_fields(fields);
            registry.with(console).try_init().map_err(|_| TelemetryError::Twice)
        }
        Sink::Journal => {
            let journal = systemd_journal_logger::JournalLog::new().map_err(TelemetryError::Journal)?;
            registry.with(ToLog(journal)).try_init().map_err(|_| TelemetryError::Twice)
        }
    }
}

fn is_allowed(field: &str) -> bool {
    FIELDS.contains(&field)
}

/// Hands events of `tracing` to a logger of the `log` crate, fields included.
struct ToLog<L>(L);

impl<S: Subscriber, L: Log + 'static> Layer<S> for ToLog<L> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let fields: Vec<(&str, &str)> = line.fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let metadata = event.metadata();
        self.0.log(
            &log::Record::builder()
                .level(level(*metadata.level()))
                .target(metadata.target())
                .module_path(metadata.module_path())
                .file(metadata.file())
                .line(metadata.line())
                .key_values(&fields.as_slice())
                .args(format_args!("{}", line.message))
                .build(),
        );
    }
}

/// The allowed parts of one event.
#[derive(Default)]
struct Line {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            // Writing to a string cannot fail.
            "message" => _ = write!(self.message, "{value:?}"),
            name if is_allowed(name) => self.fields.push((name, format!("{value:?}"))),
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

const fn level(level: Level) -> log::Level {
    match level {
        Level::ERROR => log::Level::Error,
        Level::WARN => log::Level::Warn,
        Level::INFO => log::Level::Info,
        Level::DEBUG => log::Level::Debug,
        Level::TRACE => log::Level::Trace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Log for Kept {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            use log::kv::{Error, Key, Value, VisitSource};
            struct Fields<'a>(&'a mut String);
            impl<'kvs> VisitSource<'kvs> for Fields<'_> {
                fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
                    let _ = write!(self.0, " {key}={value}");
                    Ok(())
                }
            }
            let mut line = format!("{} {}", record.level(), record.args());
            record.key_values().visit(&mut Fields(&mut line)).expect("visited");
            self.0.lock().expect("not poisoned").push(line);
        }

        fn flush(&self) {}
    }

    #[test]
    fn only_fields_of_the_list_reach_the_log() {
        let kept = Kept::default();
        let subscriber = Registry::default().with(ToLog(kept.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(certificate = 7, reason = "timeout", text = "I feel awful", "a connection was refused");
        });
        let lines = kept.0.lock().expect("not poisoned").clone();
        assert_eq!(lines, ["WARN a connection was refused certificate=7 reason=timeout"]);
    }
}
