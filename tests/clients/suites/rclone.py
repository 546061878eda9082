"""rclone: sync, check, copy of large files in parts, and hashes."""

from world import check, files


def run(world):
    remote = (
        f":s3,provider=Other,access_key_id={world.access},secret_access_key={world.secret},"
        f"endpoint='{world.endpoint}',region={world.region},chunk_size=5Mi,upload_cutoff=8Mi:{world.bucket}"
    )
    rclone = lambda *words, **more: world.sh("rclone", "--config", "/dev/null", "--retries", "1", *words, **more)
    rclone("mkdir", remote)
    tree = world.dir / "tree"
    for number in range(120):
        world.file(f"tree/d{number % 6}/näme {number}.bin", number * 317)
    world.file("tree/large", world.huge() // 16 + 1)
    rclone("sync", tree, f"{remote}/tree", "--transfers", "8")
    rclone("check", tree, f"{remote}/tree")
    rclone("check", "--download", tree, f"{remote}/tree")
    next((tree / "d0").iterdir()).unlink()
    world.file("tree/d1/added", 5000)
    rclone("check", tree, f"{remote}/tree", status=None)
    rclone("sync", tree, f"{remote}/tree")
    rclone("check", tree, f"{remote}/tree")
    rclone("copy", f"{remote}/tree", world.dir / "back", "--multi-thread-streams", "4")
    check(files(tree) == files(world.dir / "back"), "a tree comes back as it went")
    rclone("moveto", f"{remote}/tree/large", f"{remote}/moved")
    check("moved" in rclone("lsf", remote).decode(), "a server-side move")
    rclone("purge", remote)
