//! Errors as a user meets them: what, why, what next, and the exit code that scripts rely on.

use std::fmt::Write as _;
use std::process::ExitCode;

use holdfast_devcluster::DevError;
use holdfast_net::mon_session::MonSessionError;
use holdfast_wire::mon::MonError;

/// Exit codes; stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Not done, for a reason that is none of the others.
    Error = 1,
    /// The command line or a configuration file is wrong.
    Usage = 2,
    /// There is no such thing.
    NotFound = 3,
    /// It is there already, or is not as was assumed.
    Conflict = 4,
    /// Refused, because data or service would be at risk.
    Unsafe = 5,
    /// No answer in time.
    Timeout = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command was not done.
#[derive(Debug)]
pub struct Failure {
    /// For scripts.
    pub exit: Exit,
    /// What was not done, and each deeper reason.
    what: Vec<String>,
    /// The next command or act.
    next: Option<String>,
}

impl Failure {
    /// A failure with its first line.
    pub fn new(exit: Exit, what: impl Into<String>) -> Failure {
        Failure { exit, what: vec![what.into()], next: None }
    }

    /// A wrong command line or configuration.
    pub fn usage(what: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, what)
    }

    /// Adds an error and all its sources as reasons.
    pub fn because(mut self, error: &(dyn std::error::Error + 'static)) -> Failure {
        let mut next = Some(error);
        while let Some(error) = next {
            self.what.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds what to do next.
    pub fn next(mut self, next: impl Into<String>) -> Failure {
        self.next = Some(next.into());
        self
    }

    /// As printed.
    pub fn text(&self) -> String {
        let mut text = format!("holdfast: {}\n", self.what.first().map_or("failed", String::as_str));
        for why in self.what.iter().skip(1) {
            let _ = writeln!(text, "  because: {why}");
        }
        if let Some(next) = &self.next {
            let _ = writeln!(text, "  next: {next}");
        }
        text
    }

    /// Prints to stderr.
    pub fn print(&self) {
        eprint!("{}", self.text());
    }

    /// What the monitors refused: `what` says what was asked, such as `make pool x`.
    pub fn refused(what: &str, error: &MonError) -> Failure {
        let exit = match error {
            MonError::NotFound { .. } => Exit::NotFound,
            MonError::Exists { .. } | MonError::Stale { .. } => Exit::Conflict,
            MonError::Invalid { .. } => Exit::Usage,
            MonError::Unsafe { .. } => Exit::Unsafe,
            MonError::NotLeader { .. } | MonError::Unavailable => Exit::Timeout,
        };
        Failure::new(exit, format!("cannot {what}")).because(error)
    }

    /// The monitors could not be asked.
    pub fn unreachable(what: &str, error: &MonSessionError) -> Failure {
        let (exit, next) = match error {
            MonSessionError::Timeout { .. } => {
                (Exit::Timeout, "check that the monitors run: `holdfast dev ps`, or their logs")
            }
            MonSessionError::Refused { .. } => (Exit::Error, "check that HOLDFAST_CONFIG names this cluster's file"),
            MonSessionError::NoAddress { .. } => {
                (Exit::Usage, "check `monitors` in the file that HOLDFAST_CONFIG names")
            }
        };
        Failure::new(exit, format!("cannot {what}")).because(error).next(next)
    }

    /// Of the embedded cluster.
    pub fn dev(what: &str, error: &DevError) -> Failure {
        let (exit, next) = match error {
            DevError::NoCluster { .. } => (Exit::NotFound, Some("start one with `holdfast dev up --data DIR`")),
            DevError::NoDaemon { .. } => (Exit::NotFound, None),
            DevError::Running { .. } => {
                (Exit::Conflict, Some("use it (`holdfast dev env`) or stop it (`holdfast dev down`)"))
            }
            DevError::OtherShape { .. } => (Exit::Conflict, None),
            DevError::Impossible { .. } => (Exit::Usage, None),
            DevError::Timeout { .. } | DevError::Monitors(MonSessionError::Timeout { .. }) => (Exit::Timeout, None),
            DevError::Malformed { .. } => (Exit::Error, Some("mend the file, or use another --data directory")),
            DevError::File { .. }
            | DevError::NoPort { .. }
            | DevError::Spawn { .. }
            | DevError::Ended { .. }
            | DevError::Monitors(_)
            | DevError::Refused { .. }
            | DevError::Unexpected { .. }
            | DevError::Stopped => (Exit::Error, None),
        };
        let failure = Failure::new(exit, format!("cannot {what}")).because(error);
        match next {
            Some(next) => failure.next(next),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_next() {
        let error = MonError::NotFound { what: "pool".to_owned(), name: "x".to_owned() };
        let failure = Failure::refused("delete pool x", &error).next("holdfast pool ls");
        assert_eq!(
            failure.text(),
            "holdfast: cannot delete pool x\n  because: no such pool: x\n  next: holdfast pool ls\n"
        );
        assert_eq!(failure.exit, Exit::NotFound);
    }
}
