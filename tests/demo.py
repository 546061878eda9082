#!/usr/bin/env python3
"""What `make demo` shows: a cluster, the aws command line, a killed storage daemon, and everything still there.

Needs HOLDFAST_BIN and the environment of tests/clients/setup. Everything lies in one temporary directory that is
removed at the end; the steps are real commands, printed as they run, so that they can be typed again.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BINARY = os.environ["HOLDFAST_BIN"]
AWS = str(Path(sys.executable).parent / "aws")
OBJECTS = 40
CLEAN_SECONDS_MAX = 120
RESULTS = []


def say(text=""):
    print(text, flush=True)


def run(*command, env=None, quiet=False):
    """Runs a command, shows it, and gives its standard output; a failure ends the demonstration."""
    shown = " ".join(["holdfast" if word == BINARY else "aws" if word == AWS else word for word in command])
    if not quiet:
        say(f"  $ {shown}")
    done = subprocess.run(command, env=env, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        say(done.stdout + done.stderr)
        sys.exit(f"demo: FAILED at: {shown}")
    return done.stdout


@contextlib.contextmanager
def step(title):
    say(f"\n{len(RESULTS) + 1}. {title}")
    since = time.monotonic()
    yield
    RESULTS.append((title, time.monotonic() - since))


def expect(condition, what):
    if not condition:
        sys.exit(f"demo: FAILED: {what}")
    say(f"    {what}")


def environment(data):
    env = dict(os.environ, AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE="/dev/null", AWS_PAGER="")
    for line in run(BINARY, "dev", "env", "--data", data, quiet=True).splitlines():
        name, value = re.fullmatch(r"export (\w+)=(.*)", line).groups()
        env[name] = value.strip("'")
    return env


def status(env):
    return json.loads(run(BINARY, "status", "-o", "json", env=env, quiet=True))


def wait(env, what, wanted):
    """Asks for the status until it is as wanted."""
    until = time.monotonic() + CLEAN_SECONDS_MAX
    while not wanted(status(env)):
        if time.monotonic() > until:
            say(run(BINARY, "status", env=env))
            sys.exit(f"demo: FAILED: not {what} within {CLEAN_SECONDS_MAX} s")
        time.sleep(0.1)
    say(f"    {what}")


def is_clean(report):
    return report["pgs"] > 0 and report["pg_states"].get("active+clean") == report["pgs"]


def tree(directory):
    """The content of all files below a directory, by name."""
    files = sorted(path for path in Path(directory).rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make_files(directory):
    Path(directory).mkdir()
    for index in range(OBJECTS):
        path = Path(directory) / f"album-{index % 4}" / f"photo {index:02}.raw"
        path.parent.mkdir(exist_ok=True)
        # From nothing to 10 MiB, which aws uploads in parts.
        path.write_bytes(os.urandom(10 << 20) if index == 7 else os.urandom(index * 3001))


def pid_of(data, role, number):
    daemons = json.loads(run(BINARY, "dev", "ps", "--data", data, "-o", "json", quiet=True))
    return next(d["pid"] for d in daemons if d["role"] == role and d["id"] == number)


def demonstrate(top):
    data, source, back = f"{top}/cluster", f"{top}/photos", f"{top}/back"
    make_files(source)
    with step("Start a cluster of real processes: 3 monitors, 5 storage daemons, an S3 gateway"):
        since = time.monotonic()
        run(BINARY, "dev", "up", "--processes", "--no-restart", "--detach", "--mons", "3", "--osds", "5", "--data", data)
        say(f"    serves S3 after {time.monotonic() - since:.2f} s")
        env = environment(data)
        wait(env, "every placement group is clean", is_clean)
    with step(f"Put {OBJECTS} objects"):
        run(AWS, "s3", "mb", "s3://photos", env=env)
        run(AWS, "s3", "cp", "--recursive", "--no-progress", source, "s3://photos/2024/", env=env)
    with step("List them"):
        listed = run(AWS, "s3", "ls", "--recursive", "s3://photos", env=env).splitlines()
        expect(len(listed) == OBJECTS, f"{len(listed)} objects are listed")
    with step("Read them back"):
        run(AWS, "s3", "cp", "--recursive", "--no-progress", "s3://photos/2024/", back, env=env)
        expect(tree(back) == tree(source), "every byte is as it was")
    with step("Kill a storage daemon (kill -9), and go on at once"):
        pid = pid_of(data, "osd", 2)
        say(f"  $ kill -9 {pid}")
        os.kill(pid, signal.SIGKILL)
        since = time.monotonic()
        run(AWS, "s3", "cp", "--no-progress", f"{source}/album-0/photo 00.raw", "s3://photos/while-degraded", env=env)
        say(f"    the next write took {time.monotonic() - since:.2f} s, the start of aws included")
        wait(env, "the status says that one is down and copies are missing",
             lambda report: report["osds_up"] == 4 and not is_clean(report))
        say(run(BINARY, "status", env=env).rstrip())
        shutil.rmtree(back)
        run(AWS, "s3", "cp", "--recursive", "--no-progress", "s3://photos/2024/", back, env=env)
        expect(tree(back) == tree(source), "every byte is still as it was")
    with step("Bring it back: nothing else has to be done"):
        run(BINARY, "dev", "down", "--data", data)
        run(BINARY, "dev", "up", "--processes", "--detach", "--data", data)
        wait(env, "every copy is counted again", is_clean)
        shutil.rmtree(back)
        run(AWS, "s3", "cp", "--recursive", "--no-progress", "s3://photos/2024/", back, env=env)
        expect(tree(back) == tree(source), "every byte is as it was")
    with step("Delete everything"):
        run(AWS, "s3", "rm", "--recursive", "s3://photos", env=env)
        run(AWS, "s3", "rb", "s3://photos", env=env)
        expect(run(AWS, "s3", "ls", env=env).strip() == "", "no object and no bucket is left")


def main():
    top = tempfile.mkdtemp(prefix="holdfast-demo-")
    since = time.monotonic()
    try:
        demonstrate(top)
    finally:
        subprocess.run([BINARY, "dev", "down", "--data", f"{top}/cluster"], capture_output=True, check=False)
        shutil.rmtree(top, ignore_errors=True)
    say("\nSummary")
    for number, (title, seconds) in enumerate(RESULTS, 1):
        say(f"  {number}. {title:<84} ok  {seconds:6.1f} s")
    say(f"\ndemo: all {len(RESULTS)} steps passed in {time.monotonic() - since:.1f} s")


if __name__ == "__main__":
    main()
