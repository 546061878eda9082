//! Logs to stderr, as text for people or as JSON for machines.
//!
//! `HOLDFAST_LOG` filters (`info`, `warn,holdfast_osd=debug`); `HOLDFAST_LOG_FORMAT` is `text` or `json`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// What a log line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line for people; coloured only on a terminal and without `NO_COLOR`.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter does not parse.
    #[error("HOLDFAST_LOG is {filter:?}: {reason}; write such as `info` or `warn,holdfast_osd=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// What the parser says.
        reason: String,
    },
    /// The format is unknown.
    #[error("HOLDFAST_LOG_FORMAT is {format:?}: write `text` or `json`")]
    Format {
        /// What was given.
        format: String,
    },
    /// Somebody set up logging before.
    #[error("logging is set up already")]
    AlreadySet,
}

/// Sets up logging as the environment says; `default_filter` when `HOLDFAST_LOG` is not set.
///
/// # Errors
/// [`InitError`].
pub fn init_from_env(default_filter: &str) -> Result<(), InitError> {
    let format = match std::env::var("HOLDFAST_LOG_FORMAT").as_deref() {
        Ok("json") => LogFormat::Json,
        Ok("text" | "") | Err(_) => LogFormat::Text,
        Ok(other) => return Err(InitError::Format { format: other.to_owned() }),
    };
    let filter = std::env::var("HOLDFAST_LOG").ok().filter(|text| !text.is_empty());
    init(format, filter.as_deref().unwrap_or(default_filter))
}

/// Sets up logging; once for each process.
///
/// # Errors
/// [`InitError`].
pub fn init(format: LogFormat, filter: &str) -> Result<(), InitError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|error| InitError::Filter { filter: filter.to_owned(), reason: error.to_string() })?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    let outcome = match format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    outcome.map_err(|_| InitError::AlreadySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = init(LogFormat::Text, "holdfast=loud").expect_err("no such level");
        assert!(error.to_string().contains("holdfast=loud"), "{error}");
    }
}
