#!/usr/bin/env python3
"""rclone: sync, check, copy, move, cat, listing, delete, purge. Go clients take no AWS_CA_BUNDLE: the runner unsets it."""

import os
import time

from harness import MIB, Check, data, expect, same, tool, tree_digest


def main():
    with Check("rclone") as check:
        if check.missing("rclone"):
            return
        env = {"RCLONE_CONFIG_S_TYPE": "s3", "RCLONE_CONFIG_S_PROVIDER": "Other", "RCLONE_CONFIG_S_ENDPOINT": check.endpoint,
               "RCLONE_CONFIG_S_ACCESS_KEY_ID": check.access_key, "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": check.secret_key,
               "RCLONE_CONFIG_S_REGION": check.region, "RCLONE_S3_CHUNK_SIZE": "5M", "RCLONE_S3_UPLOAD_CUTOFF": "5M",
               "RCLONE_CONFIG": str(check.directory / "none.conf"), "RCLONE_RETRIES": "1", "RCLONE_LOW_LEVEL_RETRIES": "1"}

        def rclone(*words, **options):
            return check.run(tool("rclone"), *words, env=env, **options)

        bucket = check.new_bucket_name()
        remote = f"S:{bucket}"
        with check.step("mkdir, lsd"):
            rclone("mkdir", remote)
            expect(bucket in rclone("lsd", "S:").decode(), "not listed")
        tree = check.tree("tree", 60)
        check.file("tree/parts.bin", 23_456_789)
        with check.step("sync up (one file in parts), check"):
            rclone("sync", tree, f"{remote}/tree")
            rclone("check", tree, f"{remote}/tree")
            same(sorted(check.raw.list_keys(bucket)), sorted(f"tree/{name}" for name in tree_digest(tree)), "keys")
        with check.step("check --download"):
            rclone("check", "--download", tree, f"{remote}/tree")
        with check.step("sync again transfers nothing, after changes only these"):
            before = {key: check.raw.call("HEAD", f"/{bucket}/tree/{key}").headers["last-modified"] for key in ("big.bin",)}
            (tree / "folder0/added").write_bytes(b"added")
            next(iter(sorted((tree / "folder1").iterdir()))).unlink()
            rclone("sync", tree, f"{remote}/tree")
            rclone("check", tree, f"{remote}/tree")
            same(check.raw.call("HEAD", f"/{bucket}/tree/big.bin").headers["last-modified"], before["big.bin"], "big.bin")
        with check.step("check finds a difference"):
            check.raw.call("PUT", f"/{bucket}/tree/folder0/added", body=b"other")
            rclone("check", tree, f"{remote}/tree", fails=True)
            rclone("sync", tree, f"{remote}/tree", "--checksum")
        with check.step("sync down"):
            rclone("sync", f"{remote}/tree", check.directory / "down")
            same(tree_digest(check.directory / "down"), tree_digest(tree), "trees")
        with check.step("modification time is kept"):
            old = 1_234_567_890
            os.utime(tree / "big.bin", (old, old))
            rclone("copy", tree / "big.bin", f"{remote}/tree")
            found = rclone("lsf", "--format", "t", f"{remote}/tree/big.bin", "--use-server-modtime=false").decode().strip()
            local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(old))
            same(found, local, "time")
        with check.step("server-side copy and move"):
            rclone("copyto", f"{remote}/tree/parts.bin", f"{remote}/copied.bin")
            rclone("moveto", f"{remote}/copied.bin", f"{remote}/moved bin")
            same(check.raw.call("HEAD", f"/{bucket}/copied.bin").status, 404, "status of the old key")
            same(check.raw.call("HEAD", f"/{bucket}/moved%20bin").headers["content-length"], "23456789", "length")
        with check.step("rcat and cat, also a part"):
            rclone("rcat", f"{remote}/streamed", stdin=data(7 * MIB))
            same(rclone("cat", f"{remote}/streamed"), data(7 * MIB), "body")
            same(rclone("cat", "--offset", "100", "--count", "50", f"{remote}/streamed"), data(7 * MIB)[100:150], "part")
        with check.step("size, lsf"):
            expect(str(len(tree_digest(tree))) in rclone("size", f"{remote}/tree").decode(), "size counts other objects")
            expect("streamed" in rclone("lsf", remote).decode().splitlines(), "lsf does not list")
        with check.step("delete, purge"):
            rclone("delete", f"{remote}/tree")
            same(check.raw.list_keys(bucket, "tree/"), [], "left")
            rclone("purge", remote)
            same(check.raw.call("HEAD", f"/{bucket}").status, 404, "status of the bucket")


if __name__ == "__main__":
    main()
