"""restic: init, backup twice, check with all data read, restore, forget and prune."""

from world import check, files


def run(world):
    env = {"RESTIC_PASSWORD": "for this test only", "RESTIC_CACHE_DIR": str(world.dir / "cache")}
    repository = f"s3:{world.endpoint}/{world.bucket}"
    restic = lambda *words, **more: world.sh("restic", "-r", repository, "-q", *words, env=env, **more)
    restic("init")
    tree = world.dir / "tree"
    for number in range(80):
        world.file(f"tree/d{number % 4}/f{number}", number * 2311)
    world.file("tree/large", world.huge() // 16)
    restic("backup", tree)
    world.file("tree/d1/f1", 70_000, seed=2)
    restic("backup", tree)
    restic("check", "--read-data")
    restic("restore", "latest", "--target", world.dir / "back")
    restored = next((world.dir / "back").rglob("large")).parent
    check(files(tree) == files(restored), "what was backed up is restored")
    restic("forget", "--keep-last", "1", "--prune")
    restic("check", "--read-data")
