"""s3cmd: its own signer and multipart, sync with MD5, cp, mv, info."""

from world import check, files, same


def run(world):
    config = world.dir / "s3cfg"
    config.write_text(
        f"[default]\naccess_key = {world.access}\nsecret_key = {world.secret}\nhost_base = {world.host}\n"
        f"host_bucket = {world.host}\nuse_https = False\nbucket_location = {world.region}\n"
        "multipart_chunk_size_mb = 5\n"
    )
    s3 = lambda *words, **more: world.sh("s3cmd", "-c", config, "--no-progress", *words, **more)
    bucket = f"s3://{world.bucket}"
    s3("mb", bucket)
    for size in world.sizes():
        there = world.file(f"f{size}", size)
        s3("put", there, f"{bucket}/sizes/{size}")
        s3("get", "--force", f"{bucket}/sizes/{size}", world.dir / "back")
        same(there, world.dir / "back", f"{size} bytes")
    tree = world.dir / "tree"
    for number in range(40):
        world.file(f"tree/d{number % 3}/f {number}", number * 111)
    s3("sync", f"{tree}/", f"{bucket}/tree/")
    again = s3("sync", f"{tree}/", f"{bucket}/tree/").decode()
    check("upload:" not in again, f"a second sync has nothing to do: {again}")
    s3("sync", f"{bucket}/tree/", f"{world.dir}/tree2/")
    check(files(tree) == files(world.dir / "tree2"), "a tree comes back as it went")
    s3("cp", f"{bucket}/sizes/1", f"{bucket}/copied")
    s3("mv", f"{bucket}/copied", f"{bucket}/moved")
    info = s3("info", f"{bucket}/moved").decode().split()
    check(info[info.index("size:") + 1] == "1", f"info shows the size: {info}")
    check("moved" in s3("ls", f"{bucket}/").decode(), "ls")
    s3("rb", "--recursive", "--force", bucket)
