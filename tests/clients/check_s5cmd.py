#!/usr/bin/env python3
"""s5cmd: parallel copies of a tree, sync, parts, listing, cat, move, wildcards."""

import os

from harness import KIB, MIB, Check, data, expect, same, sha256_of, tool, tree_digest


def main():
    with Check("s5cmd") as check:
        if check.missing("s5cmd"):
            return
        program = tool("s5cmd")

        def s5(*words, **options):
            return check.run(program, "--endpoint-url", check.endpoint, *words, env={"S3_ENDPOINT_URL": check.endpoint}, **options)

        bucket = check.new_bucket_name()
        url = f"s3://{bucket}"
        with check.step("mb, ls"):
            s5("mb", url)
            expect(bucket in s5("ls").decode(), "not listed")
        for size in (0, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1):
            with check.step(f"cp up and down, {size} B"):
                path, back = check.file(f"s{size}", size), check.directory / "back"
                s5("cp", path, f"{url}/s{size}")
                s5("cp", f"{url}/s{size}", back)
                same(back.read_bytes(), path.read_bytes(), "body")
        with check.step("cp 33 MiB in 5 MiB parts, 8 at once"):
            path, back = check.file("big", 33 * MIB + 7), check.directory / "big.back"
            s5("cp", "--part-size", "5", "--concurrency", "8", path, f"{url}/big")
            s5("cp", "--part-size", "5", "--concurrency", "8", f"{url}/big", back)
            same(sha256_of(back), sha256_of(path), "sha256")
        with check.step("pipe and cat"):
            s5("pipe", f"{url}/piped", stdin=data(6 * MIB))
            same(s5("cat", f"{url}/piped"), data(6 * MIB), "body")
        tree = check.tree("tree", 40)
        with check.step("sync up, again, down"):
            s5("sync", f"{tree}/", f"{url}/sync/")
            same(sorted(check.raw.list_keys(bucket, "sync/")), sorted(f"sync/{name}" for name in tree_digest(tree)), "keys")
            same(s5("sync", "--size-only", f"{tree}/", f"{url}/sync/"), b"", "second sync")
            s5("sync", f"{url}/sync/*", f"{check.directory / 'down'}/")
            same(tree_digest(check.directory / "down"), tree_digest(tree), "trees")
        with check.step("500 small files at once by a command file"):
            many = check.directory / "many"
            many.mkdir()
            for index in range(500):
                (many / f"{index:04d}").write_bytes(data(index, "many"))
            s5("cp", f"{many}{os.sep}", f"{url}/many/")
            same(len(check.raw.list_keys(bucket, "many/")), 500, "keys")
            s5("cp", f"{url}/many/*", f"{check.directory / 'many.back'}/")
            same(tree_digest(check.directory / "many.back"), tree_digest(many), "bodies")
        with check.step("ls with wildcard, du"):
            same(len(s5("ls", f"{url}/many/01*").splitlines()), 100, "lines")
            expect(b"500 objects" in s5("du", f"{url}/many/*"), "du does not count 500 objects")
        with check.step("cp and mv within the bucket"):
            s5("cp", f"{url}/big", f"{url}/copied")
            s5("mv", f"{url}/copied", f"{url}/moved")
            same(check.raw.call("HEAD", f"/{bucket}/copied").status, 404, "status of the old key")
            same(check.raw.call("HEAD", f"/{bucket}/moved").headers["content-length"], str(33 * MIB + 7), "length")
        with check.step("rm with wildcard, rb"):
            s5("rm", f"{url}/*")
            same(check.raw.list_keys(bucket), [], "left")
            s5("rb", url)


if __name__ == "__main__":
    main()
