"""s3fs: a bucket mounted as a file system. Needs /dev/fuse."""

import os
import shutil

from world import MIB, check, files


def run(world):
    if not os.path.exists("/dev/fuse") or not shutil.which("s3fs"):
        return "left out: no /dev/fuse or no s3fs on this machine"
    world.sh("aws", "s3", "mb", f"s3://{world.bucket}")
    passwd = world.dir / "passwd"
    passwd.write_text(f"{world.access}:{world.secret}\n")
    passwd.chmod(0o600)
    mount = world.dir / "mount"
    mount.mkdir()
    options = f"passwd_file={passwd},url={world.endpoint},use_path_request_style,endpoint={world.region}"
    world.sh("s3fs", world.bucket, mount, "-o", options)
    try:
        tree = world.dir / "tree"
        for number in range(20):
            world.file(f"tree/d{number % 3}/f{number}", number * 1003)
        world.file("tree/large", 24 * MIB)
        shutil.copytree(tree, mount / "tree")
        check(files(tree) == files(mount / "tree"), "a tree is as it was copied")
        with open(mount / "tree/large", "r+b") as file:
            file.seek(7 * MIB)
            file.write(b"in the middle")
        with open(mount / "tree/large", "rb") as file:
            file.seek(7 * MIB)
            check(file.read(13) == b"in the middle", "a write in the middle")
        os.rename(mount / "tree/d0", mount / "renamed")
        check(len(list((mount / "renamed").iterdir())) == 7, "a renamed directory")
        shutil.rmtree(mount / "tree")
        check(not (mount / "tree").exists(), "a removed tree")
    finally:
        world.sh("fusermount", "-u", "-z", mount)
    listed = world.sh("aws", "s3", "ls", f"s3://{world.bucket}", "--recursive").decode()
    check("renamed/" in listed and "tree/large" not in listed, "the bucket has what the mount had")
