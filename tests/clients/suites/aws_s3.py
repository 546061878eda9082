"""`aws s3`: cp, sync, mv, rm, ls, mb, rb, and streams."""

import filecmp

from world import MIB, check, files, same


def run(world):
    aws = lambda *words, **more: world.sh("aws", "s3", *words, **more)
    bucket = f"s3://{world.bucket}"
    aws("mb", bucket)
    check(world.bucket in aws("ls").decode(), "the bucket is listed")

    for size in [*world.sizes(), world.huge()]:
        there = world.file(f"up-{size}", size)
        aws("cp", there, f"{bucket}/sizes/{size}", "--only-show-errors")
        back = world.dir / "back"
        aws("cp", f"{bucket}/sizes/{size}", back, "--only-show-errors")
        same(there, back, f"{size} bytes up and down")
        there.unlink()
        back.unlink()

    tree = world.dir / "tree"
    for number in range(60):
        world.file(f"tree/d{number % 5}/näme with space & {number}.txt", number * 97)
    aws("sync", tree, f"{bucket}/tree", "--only-show-errors")
    again = aws("sync", tree, f"{bucket}/tree").decode()
    check("upload:" not in again, f"a second sync has nothing to do: {again}")
    aws("sync", f"{bucket}/tree", world.dir / "tree2", "--only-show-errors")
    check(files(tree) == files(world.dir / "tree2"), "a tree comes back as it went")

    (tree / "d1").joinpath("new").write_text("new")
    victim = next((tree / "d2").iterdir())
    victim.unlink()
    aws("sync", tree, f"{bucket}/tree", "--delete", "--only-show-errors")
    listed = aws("ls", f"{bucket}/tree/", "--recursive").decode()
    check(victim.name not in listed and "d1/new" in listed, "sync --delete deletes and adds")
    check(len(listed.splitlines()) == 60, f"60 files are listed: {len(listed.splitlines())}")

    aws("mv", f"{bucket}/tree/d1/new", f"{bucket}/moved", "--only-show-errors")
    check("tree/d1/new" not in aws("ls", f"{bucket}/tree/", "--recursive").decode(), "mv leaves nothing behind")
    big = world.file("big", 20 * MIB)
    aws("cp", big, f"{bucket}/big", "--only-show-errors")
    aws("cp", f"{bucket}/big", f"{bucket}/big-copy", "--only-show-errors")
    aws("cp", f"{bucket}/big-copy", world.dir / "big-back", "--only-show-errors")
    check(filecmp.cmp(big, world.dir / "big-back", shallow=False), "a copy within the bucket is whole")

    aws("cp", "-", f"{bucket}/stream", data=b"through a pipe")
    check(aws("cp", f"{bucket}/stream", "-") == b"through a pipe", "a stream comes back")

    aws("rb", bucket, status=None)
    aws("rm", bucket, "--recursive", "--only-show-errors")
    check(aws("ls", bucket) == b"", "an emptied bucket lists nothing")
    aws("rb", bucket)
    check(world.bucket not in aws("ls").decode(), "the bucket is gone")
