#!/usr/bin/env python3
"""Runs real S3 clients against an endpoint, one script each, and counts their steps.

    tests/clients/run [--endpoint URL] [--only NAME[,NAME…]]… [--quick] [--list]

The endpoint and the credentials come from AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Where there
is no endpoint but HOLDFAST_BIN names the holdfast binary, a cluster of processes is started for the run and stopped
after it. Each script makes a bucket of its own and removes it. Exit status 1 if any step failed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPT_SECONDS_MAX = 1800
LINE = re.compile(r"(ok|FAIL|skip) +(\S+): ")

# In this order: the cheapest and most telling first.
CLIENTS = {
    "bad_input": "bad_input.py",
    "aws_s3api": "check_aws_s3api.py",
    "aws_s3": "check_aws_s3.py",
    "boto3": "check_boto3.py",
    "minio": "check_minio.py",
    "obstore": "check_obstore.py",
    "pyarrow": "check_pyarrow.py",
    "s5cmd": "check_s5cmd.py",
    "s3cmd": "check_s3cmd.py",
    "rclone": "check_rclone.py",
    "restic": "check_restic.py",
    "s3fs": "check_s3fs.py",
    "large": "check_large.py",
}
NOT_QUICK = {"large"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", help="the endpoint; default AWS_ENDPOINT_URL")
    parser.add_argument("--only", action="append", nargs="+", metavar="NAME", help="only these clients")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, no 2 GiB object")
    parser.add_argument("--list", action="store_true", help="print the names of the clients and stop")
    return parser.parse_args()


def chosen(options):
    if not options.only:
        return [name for name in CLIENTS if not (options.quick and name in NOT_QUICK)]
    names = [name for group in options.only for word in group for name in word.split(",") if name]
    unknown = [name for name in names if name not in CLIENTS]
    if unknown:
        sys.exit(f"unknown client {', '.join(unknown)}; there are: {', '.join(CLIENTS)}")
    return names


def environment(endpoint):
    """The environment of every client: the endpoint and nothing else that a machine may have configured."""
    out = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_", "RCLONE_", "RESTIC_"))}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if not os.environ.get(name):
            sys.exit(f"{name} is not set")
        out[name] = os.environ[name]
    out.pop("HOLDFAST_CONFIG", None)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        out.pop(name, None)
        out.pop(name.upper(), None)
    out.update(AWS_ENDPOINT_URL=endpoint, AWS_DEFAULT_REGION=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
               AWS_EC2_METADATA_DISABLED="true", AWS_PAGER="", PYTHONDONTWRITEBYTECODE="1", LC_ALL="C.UTF-8")
    out["AWS_REGION"] = out["AWS_DEFAULT_REGION"]
    out["PATH"] = f"{Path(sys.executable).parent}:{out.get('PATH', '')}"
    return out


class OwnCluster:
    """A cluster started for this run."""

    def __init__(self, binary):
        self.binary = binary
        self.directory = tempfile.mkdtemp(prefix="holdfast-clients-")
        self._dev("up", "--processes", "--detach", "--mons", "1", "--osds", "3")
        exports = subprocess.run([binary, "dev", "env", "--data", self.directory], check=True, stdout=subprocess.PIPE,
                                 text=True).stdout
        for name, value in re.findall(r"^export (\w+)=(.*)$", exports, re.MULTILINE):
            os.environ[name] = value.strip("'\"")

    def _dev(self, verb, *more):
        subprocess.run([self.binary, "dev", verb, "--data", self.directory, *more], check=True, stdout=sys.stderr)

    def stop(self, keep):
        self._dev("down")
        if keep:
            print(f"the cluster's data and logs are kept in {self.directory}", file=sys.stderr)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)


def run_script(name, env):
    """Runs one script, passes its lines on, and returns how many steps passed, failed and were skipped."""
    counts = {"ok": 0, "FAIL": 0, "skip": 0}

    def fail(reason):
        counts["FAIL"] += 1
        print(f"FAIL {name}: script: {reason}", flush=True)

    with tempfile.TemporaryFile("w+") as errors:
        # A home of its own, so that no configuration of the user's reaches a client; a session, so that all of it ends.
        with tempfile.TemporaryDirectory(prefix=f"s3-home-{name}-") as home:
            child = subprocess.Popen([sys.executable, HERE / CLIENTS[name]], env=dict(env, HOME=home), text=True,
                                     stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                                     start_new_session=True)
            deadline = time.monotonic() + SCRIPT_SECONDS_MAX
            signal.signal(signal.SIGALRM, lambda *_: os.killpg(child.pid, signal.SIGKILL))
            signal.alarm(SCRIPT_SECONDS_MAX)
            for line in child.stdout:
                print(line, end="", flush=True)
                match = LINE.match(line)
                if match:
                    counts[match.group(1)] += 1
            status = child.wait()
            signal.alarm(0)
        errors.seek(0)
        text = errors.read()
    if text:
        sys.stderr.write(text)
    if time.monotonic() >= deadline:
        fail(f"took longer than {SCRIPT_SECONDS_MAX} s and was stopped")
    elif status != 0 and not counts["FAIL"]:
        last = text.strip().splitlines()[-1:] or ["no message"]
        fail(f"exit status {status}: {last[0]}")
    elif not any(counts.values()):
        fail("reported no step")
    return counts


def main():
    options = arguments()
    if options.list:
        print("\n".join(CLIENTS))
        return 0
    names = chosen(options)
    cluster = None
    endpoint = options.endpoint or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        if not os.environ.get("HOLDFAST_BIN"):
            sys.exit("no endpoint: give --endpoint URL, or set AWS_ENDPOINT_URL, or HOLDFAST_BIN for a cluster of its own")
        cluster = OwnCluster(os.environ["HOLDFAST_BIN"])
        endpoint = os.environ["AWS_ENDPOINT_URL"]
    total = {"ok": 0, "FAIL": 0, "skip": 0}
    started = time.monotonic()
    try:
        env = environment(endpoint)
        if options.quick:
            env["CLIENTS_QUICK"] = "1"
        for name in names:
            for verdict, count in run_script(name, env).items():
                total[verdict] += count
    finally:
        if cluster:
            cluster.stop(keep=total["FAIL"] > 0 or sys.exc_info()[0] is not None)
    skipped = f", {total['skip']} skipped" if total["skip"] else ""
    print(f"{total['ok']} passed, {total['FAIL']} failed{skipped} in {time.monotonic() - started:.0f} s")
    return 1 if total["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
