"""What every client script shares: steps that report themselves, a bucket of its own, data, and running a command."""

import hashlib
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raw_s3 import S3

KIB, MIB, GIB = 1024, 1024 ** 2, 1024 ** 3
COMMAND_SECONDS_MAX = 900
QUICK = os.environ.get("CLIENTS_QUICK") == "1"


class Skip(Exception):
    """Raised inside a step that this machine cannot run; the text says why."""


def one_line(text, limit=400):
    text = " ".join(str(text).split())
    return text if len(text) <= limit else text[:limit] + "…"


class Check:
    """One client's run. Each `with check.step(name):` prints one line; a failed step does not stop the next."""

    def __init__(self, name):
        self.name = name
        self.failed = 0
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            if not os.environ.get(variable):
                sys.exit(f"{name}: {variable} is not set; start it through tests/clients/run")
        self.endpoint = os.environ["AWS_ENDPOINT_URL"].rstrip("/")
        self.access_key = os.environ["AWS_ACCESS_KEY_ID"]
        self.secret_key = os.environ["AWS_SECRET_ACCESS_KEY"]
        self.region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "us-east-1"
        self.raw = S3(self.endpoint, self.access_key, self.secret_key, self.region)
        self.directory = Path(tempfile.mkdtemp(prefix=f"s3-{name}-"))
        self.buckets = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _trace):
        if error is not None and not isinstance(error, SystemExit):
            self.failed += 1
            self._line("FAIL", "script", 0.0, f"{kind.__name__}: {error}")
        for bucket in self.buckets:
            with self.step(f"clean up {bucket}", quiet=True):
                self.raw.remove_bucket(bucket)
        shutil.rmtree(self.directory, ignore_errors=True)
        sys.exit(1 if self.failed else 0)

    def _line(self, verdict, step, seconds, reason=""):
        text = f"{verdict:4} {self.name}: {step}"
        text += f" ({seconds:.1f} s)" if verdict == "ok" else f": {one_line(reason)}"
        print(text, flush=True)

    def step(self, name, quiet=False):
        return _Step(self, name, quiet)

    def new_bucket_name(self):
        """A name of its own; the bucket, if it comes to be, is removed at the end."""
        bucket = f"clients-{self.name.replace('_', '-')}-{secrets.token_hex(4)}"
        self.buckets.append(bucket)
        return bucket

    def bucket(self):
        bucket = self.new_bucket_name()
        self.raw.create_bucket(bucket)
        return bucket

    def file(self, name, size):
        """A file of `size` bytes that nothing compresses, the same in every run."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data(size, name))
        return path

    def tree(self, name, count):
        """A directory of `count` files of mixed sizes, in folders, with awkward names among them."""
        sizes = [0, 1, 100, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 70 * KIB]
        names = ["plain.txt", "with space.txt", "plus+and&amp.txt", "per%cent.txt", "ünïcödé-漢字.txt", "par(en)'s.txt"]
        for index in range(count):
            leaf = f"{index:03d}-{names[index % len(names)]}"
            self.file(f"{name}/folder{index % 3}/{leaf}", sizes[index % len(sizes)])
        self.file(f"{name}/big.bin", 6 * MIB)
        return self.directory / name

    def run(self, *command, stdin=None, env=None, fails=False, cwd=None):
        """Runs a command to its end and returns stdout as bytes; a wrong exit status fails the step with its stderr."""
        environment = dict(os.environ)
        environment.update(env or {})
        command = [str(part) for part in command]
        done = subprocess.run(command, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=cwd,
                              timeout=COMMAND_SECONDS_MAX)
        if fails:
            expect(done.returncode != 0, f"{' '.join(command[:4])} succeeded but had to fail")
            return done.stdout + done.stderr
        if done.returncode != 0:
            text = (done.stderr or done.stdout).decode(errors="replace")
            raise AssertionError(f"{' '.join(command[:5])}: exit {done.returncode}: {text.strip()[-600:]}")
        return done.stdout

    def missing(self, command):
        """Whether a program is not installed; if so, says that its steps are skipped."""
        if tool(command):
            return False
        self._line("skip", "all steps", 0.0, f"{command} is not installed (tests/clients/setup installs it)")
        return True


class _Step:
    def __init__(self, check, name, quiet):
        self.check, self.name, self.quiet = check, name, quiet

    def __enter__(self):
        self.started = time.monotonic()

    def __exit__(self, kind, error, _trace):
        seconds = time.monotonic() - self.started
        if error is None:
            if not self.quiet:
                self.check._line("ok", self.name, seconds)
        elif isinstance(error, Skip):
            self.check._line("skip", self.name, seconds, error)
        elif isinstance(error, Exception):
            self.check.failed += 1
            reason = error if isinstance(error, AssertionError) else f"{kind.__name__}: {error}"
            self.check._line("FAIL", self.name, seconds, reason)
        else:
            return False
        return True


def expect(condition, reason):
    if not condition:
        raise AssertionError(reason)


def same(found, wanted, what):
    if found != wanted:
        found, wanted = (f"{len(v)} bytes {v[:40]!r}" if isinstance(v, bytes) else repr(v) for v in (found, wanted))
        raise AssertionError(f"{what}: found {one_line(found, 180)}, wanted {one_line(wanted, 180)}")


def data(size, seed="data"):
    return random.Random(f"{seed}:{size}").randbytes(size)


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file):
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(MIB), b""):
        digest.update(block)
    return digest.hexdigest()


def tree_digest(root):
    """Path and content of every file below `root`, to compare two trees."""
    root = Path(root)
    return {str(path.relative_to(root)): sha256_of(path) for path in sorted(root.rglob("*")) if path.is_file()}


def tool(name):
    """The path of a program: beside this interpreter (the environment of the clients), else on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)
