"""s5cmd: many workers at once, wildcards, sync, du, and a batch file."""

from world import check, files


def run(world):
    s5 = lambda *words, **more: world.sh("s5cmd", "--endpoint-url", world.endpoint, *words, **more)
    bucket = f"s3://{world.bucket}"
    s5("mb", bucket)
    tree = world.dir / "tree"
    for number in range(200):
        world.file(f"tree/d{number % 7}/f{number}", number * 131)
    s5("--numworkers", "32", "cp", f"{tree}/*", f"{bucket}/tree/")
    check(len(s5("ls", f"{bucket}/tree/*").splitlines()) == 200, "200 are listed")
    s5("--numworkers", "32", "cp", f"{bucket}/tree/*", f"{world.dir}/back/")
    check(files(tree) == files(world.dir / "back"), "a tree comes back as it went")
    s5("sync", "--delete", f"{tree}/d1/", f"{bucket}/synced/")
    check("f1" in s5("ls", f"{bucket}/synced/*").decode(), "sync")
    big = world.file("big", world.huge() // 8)
    s5("cp", "--part-size", "5", "--concurrency", "8", big, f"{bucket}/big")
    s5("cp", f"{bucket}/big", f"{world.dir}/big-back")
    check(big.read_bytes() == (world.dir / "big-back").read_bytes(), "parts in parallel")
    batch = "\n".join(f"rm {bucket}/tree/d{n}/*" for n in range(7)).encode()
    s5("run", data=batch)
    s5("rm", f"{bucket}/*")
    s5("rb", bucket)
