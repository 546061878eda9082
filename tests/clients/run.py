"""Real S3 clients, unmodified, against a fresh cluster of processes: every suite, one line each.

    python tests/clients/run.py [--quick] [--only NAME]
"""

import argparse
import importlib
import pathlib
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from world import Cluster, World  # noqa: E402

SUITES = [
    "aws_s3api",
    "aws_s3",
    "boto",
    "bad_input",
    "races",
    "minio_py",
    "s5",
    "arrow",
    "s3cmd",
    "rclone",
    "restic",
    "s3fs",
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="small sizes only")
    arguments.add_argument("--only", default="", help="only suites whose name contains this")
    options = arguments.parse_args()
    chosen = [name for name in SUITES if options.only in name]
    if not chosen:
        sys.exit(f"no suite's name contains {options.only!r}: {', '.join(SUITES)}")
    failed = []
    with Cluster("--processes", "--mons", "1", "--osds", "3") as cluster:
        for name in chosen:
            since = time.monotonic()
            try:
                note = importlib.import_module(f"suites.{name}").run(World(cluster, name, options.quick)) or ""
                print(f"ok      {name:12} {time.monotonic() - since:7.1f} s  {note}", flush=True)
            except Exception:
                failed.append(name)
                print(f"FAILED  {name:12} {time.monotonic() - since:7.1f} s", flush=True)
                traceback.print_exc()
        if failed:
            cluster.show_log()
    if failed:
        sys.exit(f"real clients: {len(failed)} of {len(chosen)} suites failed: {', '.join(failed)}")
    print(f"real clients: all {len(chosen)} suites passed")


if __name__ == "__main__":
    main()
