#!/usr/bin/env python3
"""restic: init, backup, second backup, check --read-data, restore and compare, forget --prune."""

import json

from harness import MIB, QUICK, Check, expect, same, tool, tree_digest


def main():
    with Check("restic") as check:
        if check.missing("restic"):
            return
        bucket = check.bucket()
        env = {"RESTIC_REPOSITORY": f"s3:{check.endpoint}/{bucket}/repository", "RESTIC_PASSWORD": "correct horse",
               "RESTIC_CACHE_DIR": str(check.directory / "cache")}

        def restic(*words, **options):
            return check.run(tool("restic"), *words, env=env, **options)

        tree = check.tree("tree", 50)
        check.file("tree/random.bin", (20 if QUICK else 100) * MIB)
        with check.step("init, and again is refused"):
            restic("init")
            restic("init", fails=True)
        with check.step("backup"):
            restic("backup", ".", cwd=tree)
        first = tree_digest(tree)
        with check.step("backup after changes"):
            check.file("tree/added.bin", 3 * MIB)
            (tree / "big.bin").unlink()
            restic("backup", ".", cwd=tree)
            same(restic("snapshots", "--json").count(b'"short_id"'), 2, "snapshots")
        with check.step("check --read-data"):
            expect("no errors were found" in restic("check", "--read-data").decode(), "errors were found")
        with check.step("restore the last snapshot and compare"):
            restic("restore", "latest", "--target", check.directory / "restored")
            same(tree_digest(check.directory / "restored"), tree_digest(tree), "trees")
        with check.step("restore the first snapshot and compare"):
            oldest = json.loads(restic("snapshots", "--json"))[0]["short_id"]
            restic("restore", oldest, "--target", check.directory / "older")
            same(tree_digest(check.directory / "older"), first, "trees")
        with check.step("forget --prune, check again"):
            restic("forget", "--keep-last", "1", "--prune", "--group-by", "")
            restic("check", "--read-data")
        with check.step("no lock is left"):
            same(restic("list", "locks").strip(), b"", "locks")


if __name__ == "__main__":
    main()
