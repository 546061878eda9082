"""A cluster for the client suites: started from the release binary, stopped and removed at the end."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20


class Failed(Exception):
    """A check of a suite does not hold."""


def check(holds, what):
    if not holds:
        raise Failed(what)


def binary():
    given = os.environ.get("HOLDFAST_BIN")
    path = pathlib.Path(given) if given else TOP / "target/release/holdfast"
    if not path.exists():
        sys.exit(f"{path} is not there: make build, or set HOLDFAST_BIN")
    return str(path)


class Cluster:
    """`holdfast dev up --detach` in a temporary directory; a context manager."""

    def __init__(self, *options):
        self.options = options
        self.dir = tempfile.mkdtemp(prefix="holdfast-clients-")
        self.data = os.path.join(self.dir, "cluster")

    def __enter__(self):
        try:
            up = self.holdfast("dev", "up", "--data", self.data, "--detach", *self.options)
            self.up = json.loads(up)
            self.env = json.loads(self.holdfast("dev", "env", "--data", self.data))
        except BaseException:
            self.show_log()
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_):
        subprocess.run([binary(), "dev", "down", "--data", self.data], capture_output=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def holdfast(self, *arguments):
        """Runs `holdfast … -o json` and gives what it printed."""
        env = dict(os.environ, **getattr(self, "env", {}))
        done = subprocess.run([binary(), *arguments, "-o", "json"], capture_output=True, text=True, env=env)
        if done.returncode != 0:
            raise Failed(f"holdfast {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def show_log(self):
        for log in sorted(pathlib.Path(self.data, "log").glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-15:]
            print(f"--- end of {log.name}", *lines, sep="\n", file=sys.stderr)


class World:
    """What a suite gets: the endpoint, the key, a directory of its own, and whether to be quick."""

    def __init__(self, cluster, name, quick):
        self.cluster = cluster
        self.name = name
        self.quick = quick
        self.endpoint = cluster.env["AWS_ENDPOINT_URL"]
        self.host = self.endpoint.removeprefix("http://")
        self.access = cluster.env["AWS_ACCESS_KEY_ID"]
        self.secret = cluster.env["AWS_SECRET_ACCESS_KEY"]
        self.region = cluster.env["AWS_REGION"]
        self.dir = pathlib.Path(cluster.dir, name)
        self.dir.mkdir()
        self.bucket = f"{name.replace('_', '-')}-bucket"
        # Nothing of the user's own configuration may leak into a suite.
        home = self.dir / "home"
        home.mkdir()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RCLONE_", "RESTIC_", "S3_"))}
        path = f"{TOP / 'build/clients/bin'}:{clean.get('PATH', '')}"
        self.env = dict(clean, **cluster.env, HOME=str(home), PATH=path, AWS_EC2_METADATA_DISABLED="true")
        self.env.pop("HOLDFAST_CONFIG", None)

    def sh(self, *words, status=0, data=None, env=None, timeout=1200):
        """Runs a program; its output. `status` is the exit status that it must have (None: any but 0)."""
        done = subprocess.run(
            [str(w) for w in words],
            input=data,
            capture_output=True,
            env=dict(self.env, **(env or {})),
            cwd=self.dir,
            timeout=timeout,
        )
        wrong = done.returncode == 0 if status is None else done.returncode != status
        if wrong:
            said = (done.stdout + done.stderr).decode(errors="replace")[-3000:]
            raise Failed(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{said}")
        return done.stdout if status is not None else done.stdout + done.stderr

    def sizes(self):
        """The sizes that every client must carry, in bytes."""
        small = [0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 5 * MIB, 5 * MIB + 1, 17 * MIB]
        return small if self.quick else small + [100 * MIB]

    def huge(self):
        """One large object: 2 GiB, or 64 MiB in a hurry."""
        return 64 * MIB if self.quick else 2048 * MIB

    def file(self, name, size, seed=0):
        """A file of `size` bytes that differ for each name and seed; its path."""
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            for block in pattern(f"{name}/{seed}", size):
                out.write(block)
        return path


def pattern(seed, size):
    """Blocks of reproducible, incompressible bytes, together `size` of them."""
    block = hashlib.shake_128(str(seed).encode()).digest(min(size, MIB))
    done = 0
    while done < size:
        # Each MiB differs in its first bytes, so that swapped parts are noticed.
        stamp = done.to_bytes(8, "big")
        piece = (stamp + block[8:])[: min(MIB, size - done)]
        yield piece
        done += len(piece)


def digest(path):
    result = hashlib.sha256()
    with open(path, "rb") as source:
        while piece := source.read(MIB):
            result.update(piece)
    return result.hexdigest()


def same(left, right, what):
    check(digest(left) == digest(right), f"{what}: the bytes differ")


def files(directory):
    """Relative path → digest of all files beneath a directory."""
    directory = pathlib.Path(directory)
    return {str(p.relative_to(directory)): digest(p) for p in directory.rglob("*") if p.is_file()}
