#!/usr/bin/env python3
"""s3fs: mounts a bucket, writes, reads, renames and removes through the kernel, and looks at the bucket from beside."""

import hashlib
import os
import shutil
import subprocess
import time

from harness import KIB, MIB, Check, Skip, data, expect, same, sha256_of, tool, tree_digest

MOUNT_SECONDS_MAX = 20


def fuse_missing():
    """Why this machine cannot mount, or None."""
    if not tool("s3fs"):
        return "s3fs is not installed (tests/clients/setup installs it)"
    if not tool("fusermount") and not tool("fusermount3"):
        return "fusermount is not installed"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened ({error.strerror}): this machine has no FUSE"
    return None


def main():
    with Check("s3fs") as check:
        reason = fuse_missing()
        if reason:
            with check.step("mount"):
                raise Skip(reason)
            return
        bucket = check.bucket()
        secret, mount = check.directory / "passwd", check.directory / "mount"
        secret.write_text(f"{check.access_key}:{check.secret_key}\n")
        secret.chmod(0o600)
        mount.mkdir()
        command = [tool("s3fs"), bucket, str(mount), "-f", "-o", f"passwd_file={secret}", "-o", f"url={check.endpoint}",
                   "-o", "use_path_request_style", "-o", f"endpoint={check.region}", "-o", "multipart_size=5", "-o", "retries=1"]
        log = open(check.directory / "s3fs.log", "w+")
        server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            mounted = False
            with check.step("mount"):
                wait_for_mount(server, mount, log)
                mounted = True
            if mounted:
                steps(check, bucket, mount)
        finally:
            unmount = tool("fusermount") or tool("fusermount3")
            subprocess.run([unmount, "-u", "-z", str(mount)], stderr=subprocess.DEVNULL)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def wait_for_mount(server, mount, log):
    until = time.monotonic() + MOUNT_SECONDS_MAX
    while not os.path.ismount(mount):
        if server.poll() is not None or time.monotonic() > until:
            log.seek(0)
            text = log.read()
            if "Operation not permitted" in text or "Permission denied" in text or "fuse: device not found" in text:
                raise Skip(f"this machine does not let us mount FUSE: {text.strip()}")
            raise AssertionError(f"s3fs did not mount: {text.strip()[-300:]}")
        time.sleep(0.05)


def steps(check, bucket, mount):
    for size in (0, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1):
        with check.step(f"write and read {size} B"):
            (mount / f"s{size}").write_bytes(data(size))
            same((mount / f"s{size}").read_bytes(), data(size), "body")
            same(check.raw.call("GET", f"/{bucket}/s{size}").body, data(size), "object")
    with check.step("20 MiB, in parts"):
        (mount / "big").write_bytes(data(20 * MIB))
        same(sha256_of(mount / "big"), hashlib.sha256(data(20 * MIB)).hexdigest(), "sha256")
        same(len(check.raw.call("GET", f"/{bucket}/big").body), 20 * MIB, "object")
    with check.step("append and write in the middle"):
        with open(mount / "big", "r+b") as file:
            file.seek(6 * MIB)
            file.write(b"in the middle")
            file.seek(0, os.SEEK_END)
            file.write(b"at the end")
        body = check.raw.call("GET", f"/{bucket}/big").body
        same((body[6 * MIB:6 * MIB + 13], body[-10:]), (b"in the middle", b"at the end"), "object")
    tree = check.tree("tree", 15)
    with check.step("copy a tree in and out"):
        shutil.copytree(tree, mount / "tree")
        same(tree_digest(mount / "tree"), tree_digest(tree), "trees")
    with check.step("an object put from beside appears"):
        check.raw.call("PUT", f"/{bucket}/from-beside", body=b"x")
        expect("from-beside" in os.listdir(mount), "not listed")
    with check.step("rename, remove, rmdir"):
        os.rename(mount / "s1", mount / "renamed ü")
        same((mount / "renamed ü").read_bytes(), data(1), "body")
        os.rename(mount / "tree/folder0", mount / "tree/moved")
        same(len(tree_digest(mount / "tree")), len(tree_digest(tree)), "files")
        shutil.rmtree(mount / "tree")
        expect(not (mount / "tree").exists(), "the tree is still there")
        same(check.raw.list_keys(bucket, "tree"), [], "keys left")


if __name__ == "__main__":
    main()
