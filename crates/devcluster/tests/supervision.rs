//! The supervisor against real processes: small shell scripts that behave as daemons do, or do not.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use holdfast_devcluster::{
    ClusterDir, DaemonName, DaemonState, DevError, ProcessIdentity, READY_MARK, Restart, Supervisor,
};
use tempfile::TempDir;

const DAEMON: DaemonName = DaemonName::osd(0);

/// A cluster directory and a "binary" that runs `body` as a shell script.
fn world(body: &str) -> (TempDir, ClusterDir, PathBuf) {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let dir = ClusterDir::create(&temp.path().join("cluster")).expect("made");
    let binary = temp.path().join("daemon");
    std::fs::write(&binary, format!("#!/bin/sh\n{body}\n")).expect("written");
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    (temp, dir, binary)
}

/// Serves at once and ends when its standard input does, as a daemon must.
fn good() -> String {
    format!("echo '{READY_MARK}'; exec cat")
}

fn supervisor(world: &(TempDir, ClusterDir, PathBuf), restart: Restart) -> Supervisor {
    Supervisor::new(world.2.clone(), &world.1, &[DAEMON], restart, Vec::new())
}

fn process(supervisor: &Supervisor) -> ProcessIdentity {
    supervisor.state(DAEMON).expect("it has the daemon").process().expect("it has a process").clone()
}

#[tokio::test]
async fn a_start_returns_when_the_daemon_says_that_it_serves_and_a_kill_when_it_is_gone() {
    let world = world(&good());
    let supervisor = supervisor(&world, Restart::Always);
    supervisor.start(DAEMON).await.expect("it serves");
    let first = process(&supervisor);
    assert!(first.is_alive());
    assert_eq!(world.1.process_of(DAEMON), Some(first.clone()));

    supervisor.kill9(DAEMON).await.expect("killed");
    assert!(!first.is_alive());
    assert_eq!(supervisor.state(DAEMON).expect("known"), DaemonState::Stopped, "an ordered kill is not undone");

    supervisor.start(DAEMON).await.expect("it serves again");
    assert_ne!(process(&supervisor), first);
}

#[tokio::test]
async fn a_daemon_killed_from_outside_comes_back_when_restarts_are_on() {
    let world = world(&good());
    let supervisor = supervisor(&world, Restart::Always);
    supervisor.start(DAEMON).await.expect("it serves");
    let first = process(&supervisor);
    first.signal(rustix::process::Signal::KILL).expect("it is ours");
    loop {
        supervisor.serving(DAEMON).await.expect("it comes back");
        if process(&supervisor) != first {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_daemon_that_ends_before_it_serves_is_an_error_with_the_end_of_its_log() {
    let world = world("echo 'line 3: unknown key lissten' >&2; exit 2");
    let supervisor = supervisor(&world, Restart::Never);
    match supervisor.start(DAEMON).await {
        Err(DevError::Ended { daemon, status, tail, .. }) => {
            assert_eq!(daemon, DAEMON);
            assert!(status.contains('2') && tail.contains("unknown key lissten"), "{status} {tail}");
        }
        other => panic!("it never served: {other:?}"),
    }
}

#[tokio::test]
async fn a_daemon_ends_with_its_supervisor() {
    let world = world(&good());
    let supervisor = supervisor(&world, Restart::Always);
    supervisor.start(DAEMON).await.expect("it serves");
    let first = process(&supervisor);
    let mut orders_closed = tokio::task::JoinSet::new();
    drop(supervisor);
    orders_closed.spawn(async move {
        while first.is_alive() {
            tokio::task::yield_now().await;
        }
    });
    orders_closed.join_next().await.expect("one task").expect("the process has ended");
}
