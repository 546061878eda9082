//! A process that is one daemon: start, say that it serves, end in order.
//!
//! It ends on SIGTERM and SIGINT, and, under a supervisor, when its standard input ends, which happens when the
//! supervisor is gone for whatever reason.

use std::future::Future;
use std::io::{Read, Write};
use std::num::NonZero;
use std::path::Path;

use holdfast_devcluster::{READY_MARK, SUPERVISED_ENV};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::config::{MonFile, OsdFile, S3File, load};
use crate::failure::{Exit, Failure};
use crate::roles::{self, Role};

/// `holdfast mon [--bootstrap] --config FILE`.
pub fn run_mon(args: &RunArgs, bootstrap: bool) -> Result<(), Failure> {
    let file: MonFile = load(file(args, "mon")?)?;
    crash_on_panic();
    run(runtime()?, |stop| roles::start_mon(file, bootstrap, stop))
}

/// `holdfast osd --config FILE`.
pub fn run_osd(args: &RunArgs) -> Result<(), Failure> {
    let file: OsdFile = load(file(args, "osd")?)?;
    crash_on_panic();
    run(network_runtime()?, |stop| roles::start_osd(file, stop))
}

/// `holdfast s3 --config FILE`.
pub fn run_s3(args: &RunArgs) -> Result<(), Failure> {
    let file: S3File = load(file(args, "s3")?)?;
    run(runtime()?, |stop| roles::start_s3(file, stop))
}

fn file<'a>(args: &'a RunArgs, role: &str) -> Result<&'a Path, Failure> {
    args.config.as_deref().ok_or_else(|| {
        let failure = Failure::usage(format!("holdfast {role} needs a configuration file or a verb"));
        failure.next(format!("holdfast {role} --config FILE, or holdfast {role} --help"))
    })
}

/// Logging as the environment says.
pub fn init_logging(default_filter: &str) -> Result<(), Failure> {
    holdfast_telemetry::init_from_env(default_filter)
        .map_err(|error| Failure::usage("cannot set up logging").because(&error))
}

/// A broken invariant ends the daemon: one replica is lost for a moment, no wrong byte spreads. Without this, a panic
/// would only end one task and leave a daemon that looks alive.
fn crash_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

/// The runtime of daemons: a worker for each core.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    build(&mut tokio::runtime::Builder::new_multi_thread())
}

/// The runtime of a daemon whose work is done by threads of its own, so that its tasks only move bytes. More workers
/// than that takes would hand the same bytes to each other; a host has many such daemons.
fn network_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    build(tokio::runtime::Builder::new_multi_thread().worker_threads((cores / 4).clamp(1, 4)))
}

/// Lets this process have as many files and connections open as it may: many systems give a daemon 1,024 at first, which a
/// storage daemon among some dozens of others has used up.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, ?limit, "the limit of open files stays as it is");
    }
}

fn build(builder: &mut tokio::runtime::Builder) -> Result<tokio::runtime::Runtime, Failure> {
    raise_file_limit();
    let built = builder.enable_all().build();
    built.map_err(|error| Failure::new(Exit::Error, "cannot start the runtime").because(&error))
}

fn run<F>(runtime: tokio::runtime::Runtime, start: impl FnOnce(CancellationToken) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<Role, Failure>>,
{
    init_logging("info,openraft=warn")?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        watch_signals(stop.clone())?;
        if std::env::var_os(SUPERVISED_ENV).is_some() {
            watch_stdin(stop.clone());
        }
        let role = tokio::select! {
            role = start(stop.clone()) => role?,
            () = stop.cancelled() => return Ok(()),
        };
        serve(role, stop).await
    });
    // Blocking threads of a store that is stuck in the kernel must not keep the process.
    runtime.shutdown_background();
    outcome
}

async fn serve(role: Role, stop: CancellationToken) -> Result<(), Failure> {
    let Role { admin, ready, mut end } = role;
    tokio::select! {
        () = ready => {
            admin.set_ready(true);
            say_ready();
        }
        end = &mut end => return end,
        () = stop.cancelled() => {}
    }
    let outcome = end.await;
    admin.set_ready(false);
    outcome
}

/// Tells whoever started this process: a supervisor by the mark, systemd by its socket.
pub fn say_ready() {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{READY_MARK}").and_then(|()| stdout.flush());
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET")
        && let Ok(socket) = std::os::unix::net::UnixDatagram::unbound()
    {
        let _ = socket.send_to(b"READY=1", Path::new(&path));
    }
}

/// Cancels `stop` on SIGTERM or SIGINT.
pub fn watch_signals(stop: CancellationToken) -> Result<(), Failure> {
    let of = |kind| signal(kind).map_err(|error| Failure::new(Exit::Error, "cannot watch for signals").because(&error));
    let (mut terminate, mut interrupt) = (of(SignalKind::terminate())?, of(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("asked to stop by SIGTERM"),
            _ = interrupt.recv() => tracing::info!("asked to stop by SIGINT"),
        }
        stop.cancel();
    });
    Ok(())
}

/// A thread of its own: a blocking read that the runtime would wait for at its end.
fn watch_stdin(stop: CancellationToken) {
    std::thread::spawn(move || {
        let mut buffer = [0u8; 64];
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut buffer), Ok(1..)) {}
        tracing::info!("the supervisor is gone");
        stop.cancel();
    });
}
