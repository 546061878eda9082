//! Asking the monitors that `HOLDFAST_CONFIG` names.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_net::mon_session::MonSession;
use holdfast_types::{ClientId, Incarnation};
use holdfast_wire::mon::{MonCommand, MonReply};

use crate::args::Common;
use crate::config::{ClientFile, load};
use crate::failure::{Exit, Failure};

/// Environment variable that names the file with the monitors' addresses.
pub const CONFIG_ENV: &str = "HOLDFAST_CONFIG";
/// Where it is when the variable is not set.
const CONFIG_DEFAULT: &str = "/etc/holdfast/holdfast.toml";

/// Asks one thing; `what` says it in an error, such as `list the pools`.
pub fn ask(common: &Common, what: &str, command: MonCommand) -> Result<MonReply, Failure> {
    match ask_raw(common, what, command)? {
        MonReply::Failed(error) => Err(Failure::refused(what, &error)),
        reply => Ok(reply),
    }
}

/// As [`ask`], with a refusal as an answer.
pub fn ask_raw(common: &Common, what: &str, command: MonCommand) -> Result<MonReply, Failure> {
    let config = client_file()?;
    let limit = Duration::from_secs(common.timeout);
    let client = getrandom::u64()
        .map_err(|error| Failure::new(Exit::Error, "the system has no randomness to give").because(&error))?;
    let reply = runtime()?.block_on(async {
        let session = MonSession::new(config.cluster, &config.monitors, ClientId(client), Incarnation(1));
        match session {
            Ok(session) => session.execute_within(command, limit).await,
            Err(error) => Err(error),
        }
    });
    reply.map_err(|error| Failure::unreachable(what, &error))
}

/// For an answer that does not fit the question.
pub fn unexpected(what: &str) -> Failure {
    let failure = Failure::new(Exit::Error, format!("cannot {what}: the monitors' answer does not fit the question"));
    failure.next("check that this program and the monitors are of the same version")
}

/// The file that names the cluster and its monitors.
pub fn client_file() -> Result<ClientFile, Failure> {
    load(&config_file()?)
}

fn config_file() -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os(CONFIG_ENV).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let default = PathBuf::from(CONFIG_DEFAULT);
    if default.exists() {
        return Ok(default);
    }
    let failure = Failure::usage(format!("{CONFIG_ENV} is not set, and there is no {CONFIG_DEFAULT}"));
    Err(failure.next("eval \"$(holdfast dev env --data DIR)\", or set it to a file with `cluster` and `monitors`"))
}

/// For an async command.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Error, "cannot start").because(&error))
}
