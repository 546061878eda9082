//! `holdfast dev up|down|ps|env`: a whole cluster on this machine.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use holdfast_devcluster::{
    ClusterDir, Credentials, DevCluster, Launcher, Layout, READY_MARK, Restart, Settings, Wishes, write_config_files,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::args::{Common, DataArg, DevVerb, Format, UpArgs};
use crate::embedded::Embedded;
use crate::failure::{Exit, Failure};
use crate::output::Align::{Left, Right};
use crate::output::{Table, print, write};
use crate::process::{init_logging, runtime, say_ready, watch_signals};

/// `dev up --detach` waits this long for the cluster to serve: replay after a hard stop on a slow disk included.
const DETACH_LIMIT: Duration = Duration::from_secs(300);
/// `dev down` waits this long for the cluster to end in order.
const DOWN_LIMIT: Duration = Duration::from_secs(60);

/// Runs the verb.
pub fn run(common: &Common, verb: DevVerb) -> Result<(), Failure> {
    match verb {
        DevVerb::Up(args) if args.detach => detach(common, &args),
        DevVerb::Up(args) => up(common, &args),
        DevVerb::Down(data) => down(common, &data),
        DevVerb::Ps(data) => ps(common, &data),
        DevVerb::Env(data) => env(common, &data),
    }
}

fn data_dir(data: &DataArg) -> Result<PathBuf, Failure> {
    if let Some(dir) = &data.data {
        return Ok(dir.clone());
    }
    let base = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    base.map(|base| base.join("holdfast/dev"))
        .ok_or_else(|| Failure::usage("there is no home directory to put the cluster in").next("use --data DIR"))
}

fn open(data: &DataArg) -> Result<(ClusterDir, Layout), Failure> {
    let fail = |error| Failure::dev("find the cluster", &error);
    let dir = ClusterDir::open(&data_dir(data)?).map_err(fail)?;
    let layout = Layout::open(&dir).map_err(fail)?;
    Ok((dir, layout))
}

fn wishes(args: &UpArgs) -> Wishes {
    let capacity_bytes = args.capacity.map(|capacity| capacity.0);
    Wishes { mons: args.mons, osds: args.osds, s3: args.s3, capacity_bytes, hosts: None }
}

fn up(common: &Common, args: &UpArgs) -> Result<(), Failure> {
    let since = Instant::now();
    if args.background {
        // A session of its own: the terminal's end does not reach it.
        let _ = rustix::process::setsid();
    }
    init_logging(if args.background { "info,openraft=warn" } else { "warn" })?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        watch_signals(stop.clone())?;
        if args.processes {
            up_processes(common, args, since, stop).await
        } else {
            up_embedded(common, args, since, stop).await
        }
    });
    runtime.shutdown_background();
    outcome
}

async fn up_embedded(common: &Common, args: &UpArgs, since: Instant, stop: CancellationToken) -> Result<(), Failure> {
    let fail = |error| Failure::dev("start the cluster", &error);
    let dir = ClusterDir::create(&data_dir(&args.data)?).map_err(fail)?;
    let lock = dir.lock().map_err(fail)?;
    dir.record_owner().map_err(fail)?;
    let mut layout = Layout::open_or_create(&dir, &wishes(args)).map_err(fail)?;
    let credentials = Credentials::open_or_create(&dir).map_err(fail)?;
    write_config_files(&dir, &layout).map_err(fail)?;
    let cluster = tokio::select! {
        cluster = Embedded::start(&dir, &mut layout, &credentials) => cluster?,
        () = stop.cancelled() => return Ok(()),
    };
    announce(common, args, &dir, &layout, &credentials, "in one process", since)?;
    tokio::select! {
        () = stop.cancelled() => {}
        () = cluster.failed() => {}
    }
    let outcome = cluster.stop().await;
    drop(lock);
    outcome
}

async fn up_processes(common: &Common, args: &UpArgs, since: Instant, stop: CancellationToken) -> Result<(), Failure> {
    let fail = |error| Failure::dev("start the cluster", &error);
    let binary = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Error, "cannot find this program").because(&error))?;
    let settings = Settings {
        binary,
        dir: data_dir(&args.data)?,
        wishes: wishes(args),
        restart: if args.no_restart { Restart::Never } else { Restart::Always },
        environment: Vec::new(),
        launcher: Launcher::default(),
    };
    let cluster = tokio::select! {
        cluster = DevCluster::start(settings) => cluster.map_err(fail)?,
        () = stop.cancelled() => return Ok(()),
    };
    announce(common, args, cluster.dir(), cluster.layout(), cluster.credentials(), "as processes", since)?;
    stop.cancelled().await;
    cluster.shutdown().await.map_err(|error| Failure::dev("stop the cluster", &error))
}

/// Tells the user, or the process that waits for this one.
fn announce(
    common: &Common,
    args: &UpArgs,
    dir: &ClusterDir,
    layout: &Layout,
    credentials: &Credentials,
    how: &str,
    since: Instant,
) -> Result<(), Failure> {
    if args.background {
        say_ready();
        return Ok(());
    }
    print_summary(common, dir, layout, credentials, how, since)
}

fn print_summary(
    common: &Common,
    dir: &ClusterDir,
    layout: &Layout,
    credentials: &Credentials,
    how: &str,
    since: Instant,
) -> Result<(), Failure> {
    let took = since.elapsed().as_secs_f64();
    let value = json!({
        "data": dir.root(), "cluster": layout.cluster, "endpoint": layout.endpoint(), "region": layout.region,
        "access_key": credentials.access_key, "secret_key": credentials.secret_key,
        "config": dir.client_config(), "mons": layout.mons.len(), "osds": layout.osds.len(), "seconds": took,
    });
    let data = shell_quoted(&dir.root().display().to_string());
    print(common.output, &value, || {
        format!(
            "Holdfast is up {how} after {took:.2} s: {} monitors, {} OSDs, S3\n\
             \n  data        {}\n  endpoint    {}\n  access key  {}\n  secret key  {}\n\n\
             Try in another terminal:\n  eval \"$(holdfast dev env --data {data})\"\n  \
             aws s3 mb s3://photos && aws s3 cp README.md s3://photos/ && aws s3 ls s3://photos\n  holdfast status\n\n\
             Stop with {}holdfast dev down --data {data}\n",
            layout.mons.len(),
            layout.osds.len(),
            dir.root().display(),
            layout.endpoint(),
            credentials.access_key,
            credentials.secret_key,
            if how.contains("background") { "" } else { "Ctrl-C or " },
        )
    })
}

/// Starts this program again in the background and returns when that one serves.
fn detach(common: &Common, args: &UpArgs) -> Result<(), Failure> {
    let since = Instant::now();
    let fail = |error| Failure::dev("start the cluster", &error);
    let dir = ClusterDir::create(&data_dir(&args.data)?).map_err(fail)?;
    drop(dir.lock().map_err(fail)?);
    // Wrong wishes and ports that cannot be had show here, not in a log.
    Layout::open_or_create(&dir, &wishes(args)).map_err(fail)?;

    let log = dir.own_log();
    let cannot = |error: std::io::Error| Failure::new(Exit::Error, "cannot start in the background").because(&error);
    let stderr = OpenOptions::new().create(true).append(true).open(&log).map_err(cannot)?;
    let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
    command.args(["dev", "up", "--background", "--data"]).arg(dir.root());
    if args.processes {
        command.arg("--processes");
    }
    if args.no_restart {
        command.arg("--no-restart");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).process_group(0);
    let mut child = command.spawn().map_err(cannot)?;
    let (sender, word) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let ready = BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line == READY_MARK);
            let _ = sender.send(ready);
        });
    }
    match word.recv_timeout(DETACH_LIMIT) {
        Ok(true) => {}
        Err(mpsc::RecvTimeoutError::Timeout) => {
            let failure = Failure::new(Exit::Timeout, format!("the cluster did not serve within {DETACH_LIMIT:?}"));
            return Err(failure.next(format!("look into {}; it may still come up", log.display())));
        }
        Ok(false) | Err(mpsc::RecvTimeoutError::Disconnected) => {
            let _ = child.wait();
            let failure = Failure::new(Exit::Error, "the cluster ended before it served");
            return Err(failure.next(format!("look at the end of {}", log.display())));
        }
    }
    let layout = Layout::open(&dir).map_err(fail)?;
    let credentials = Credentials::open(&dir).map_err(fail)?;
    print_summary(common, &dir, &layout, &credentials, "in the background", since)
}

fn down(common: &Common, data: &DataArg) -> Result<(), Failure> {
    let (dir, _) = open(data)?;
    let Some(owner) = dir.owner() else {
        return print(common.output, &json!({ "stopped": false }), || "it was not running\n".to_owned());
    };
    if let Err(error) = owner.signal(Signal::TERM)
        && owner.is_alive()
    {
        return Err(Failure::new(Exit::Error, format!("cannot stop process {}", owner.pid)).because(&error));
    }
    let (sender, unlocked) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(dir.wait_unlocked());
    });
    match unlocked.recv_timeout(DOWN_LIMIT) {
        Ok(outcome) => outcome.map_err(|error| Failure::dev("wait for the cluster's end", &error))?,
        Err(_) => {
            let failure =
                Failure::new(Exit::Timeout, format!("process {} did not end within {DOWN_LIMIT:?}", owner.pid));
            return Err(failure.next(format!("look into its log, then: kill -9 {}", owner.pid)));
        }
    }
    let value = json!({ "stopped": true, "pid": owner.pid });
    print(common.output, &value, || format!("stopped process {}; the data are kept\n", owner.pid))
}

fn ps(common: &Common, data: &DataArg) -> Result<(), Failure> {
    let (dir, layout) = open(data)?;
    let mut rows: Vec<Value> = Vec::new();
    let mut table = Table::new(&[
        ("ROLE", Left),
        ("ID", Right),
        ("PID", Right),
        ("STATE", Left),
        ("ADDRESS", Left),
        ("ADMIN", Left),
    ]);
    for daemon in layout.daemons() {
        let place = layout.place(daemon).map_err(|error| Failure::dev("list the daemons", &error))?;
        let pid = dir.process_of(daemon).map(|process| process.pid);
        let state = if pid.is_some() { "running" } else { "stopped" };
        rows.push(json!({
            "role": daemon.role.command(), "id": daemon.id, "pid": pid, "state": state,
            "address": place.address.to_string(), "admin": place.admin.to_string(),
        }));
        table.row(vec![
            daemon.role.command().to_owned(),
            daemon.id.to_string(),
            pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            state.to_owned(),
            place.address.to_string(),
            place.admin.to_string(),
        ]);
    }
    print(common.output, &rows, || table.text())
}

fn env(common: &Common, data: &DataArg) -> Result<(), Failure> {
    let (dir, layout) = open(data)?;
    let credentials = Credentials::open(&dir).map_err(|error| Failure::dev("read the credentials", &error))?;
    let config = dir.client_config().display().to_string();
    let lines = [
        ("AWS_ACCESS_KEY_ID", credentials.access_key),
        ("AWS_SECRET_ACCESS_KEY", credentials.secret_key),
        ("AWS_DEFAULT_REGION", layout.region.clone()),
        ("AWS_REGION", layout.region.clone()),
        ("AWS_ENDPOINT_URL", layout.endpoint()),
        (crate::monitors::CONFIG_ENV, config),
    ];
    if common.output == Format::Json {
        let map: serde_json::Map<String, Value> =
            lines.into_iter().map(|(name, value)| (name.to_owned(), Value::String(value))).collect();
        return print(common.output, &map, String::new);
    }
    let text: String = lines.iter().map(|(name, value)| format!("export {name}={}\n", shell_quoted(value))).collect();
    write(&text)
}

/// As one word for a POSIX shell.
fn shell_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_for_the_shell() {
        assert_eq!(shell_quoted("/tmp/hf-1"), "/tmp/hf-1");
        assert_eq!(shell_quoted("/tmp/it's here"), r"'/tmp/it'\''s here'");
        assert_eq!(shell_quoted(""), "''");
    }

    #[test]
    fn the_grammar_has_no_contradictions() {
        use clap::CommandFactory;
        crate::args::Cli::command().debug_assert();
    }
}
