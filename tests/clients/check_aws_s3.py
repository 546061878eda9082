#!/usr/bin/env python3
"""`aws s3`: cp (small, 20 MB in parts, stdin and stdout), sync, mv, rm, and a presigned URL fetched with curl."""

from harness import MIB, Check, data, expect, same, sha256_of, tool, tree_digest


def main():
    with Check("aws_s3") as check:
        aws = tool("aws")

        def s3(*words, **options):
            return check.run(aws, "s3", *words, **options)

        bucket = check.new_bucket_name()
        url = f"s3://{bucket}"
        with check.step("mb"):
            s3("mb", url)
        with check.step("ls shows the bucket"):
            expect(bucket in s3("ls").decode(), "not listed")
        for name, size in (("empty", 0), ("one", 1), ("small.txt", 1000), ("big 20 MB.bin", 20 * 1000 * 1000)):
            with check.step(f"cp up and down, {size} B"):
                path, back = check.file(name, size), check.directory / "back"
                s3("cp", path, f"{url}/{name}")
                s3("cp", f"{url}/{name}", back)
                same(sha256_of(back), sha256_of(path), "sha256")
        with check.step("cp from stdin and to stdout, 9 MiB"):
            content = data(9 * MIB, "stdin")
            s3("cp", "-", f"{url}/stdin", stdin=content)
            same(s3("cp", f"{url}/stdin", "-"), content, "body")
        with check.step("cp bucket to bucket, in parts"):
            s3("cp", f"{url}/big 20 MB.bin", f"{url}/copies/big")
            s3("cp", f"{url}/copies/big", check.directory / "copied")
            same(sha256_of(check.directory / "copied"), sha256_of(check.directory / "big 20 MB.bin"), "sha256")
        with check.step("cp with metadata and content type"):
            s3("cp", check.file("typed", 10), f"{url}/typed", "--content-type", "text/x-y", "--metadata", "k=v")
            head = check.raw.call("HEAD", f"/{bucket}/typed").headers
            same((head.get("content-type"), head.get("x-amz-meta-k")), ("text/x-y", "v"), "headers")
        tree = check.tree("tree", 30)
        with check.step("sync up"):
            s3("sync", tree, f"{url}/sync/")
            wanted = sorted(f"sync/{name}" for name in tree_digest(tree))
            same(sorted(check.raw.list_keys(bucket, "sync/")), wanted, "keys")
        with check.step("sync up again transfers nothing"):
            same(s3("sync", tree, f"{url}/sync/"), b"", "output")
        with check.step("sync down"):
            s3("sync", f"{url}/sync/", check.directory / "down")
            same(tree_digest(check.directory / "down"), tree_digest(tree), "trees")
        with check.step("sync --delete"):
            victim = next(path for path in sorted(tree.rglob("*")) if path.is_file())
            victim.unlink()
            s3("sync", "--delete", tree, f"{url}/sync/")
            same(len(check.raw.list_keys(bucket, "sync/")), len(tree_digest(tree)), "number of keys")
        with check.step("ls --recursive --summarize"):
            out = s3("ls", f"{url}/sync/", "--recursive", "--summarize").decode()
            expect(f"Total Objects: {len(tree_digest(tree))}" in out, out[-200:])
        with check.step("mv within the bucket, up and down"):
            s3("mv", f"{url}/small.txt", f"{url}/moved/small.txt")
            same(check.raw.call("HEAD", f"/{bucket}/small.txt").status, 404, "status of the old key")
            s3("mv", f"{url}/moved/small.txt", check.directory / "moved.txt")
            same((check.directory / "moved.txt").read_bytes(), data(1000, "small.txt"), "body")
            s3("mv", check.directory / "moved.txt", f"{url}/up again.txt")
            expect(not (check.directory / "moved.txt").exists(), "the local file is still there")
        with check.step("presign, fetched with curl"):
            config = check.directory / "aws-config"
            config.write_text("[default]\ns3 =\n    signature_version = s3v4\n")
            for key in ("up again.txt", "stdin"):
                signed = s3("presign", f"{url}/{key}", env={"AWS_CONFIG_FILE": str(config)}).decode().strip()
                expect("X-Amz-Signature" in signed, f"not SigV4: {signed}")
                body = check.run("curl", "-sS", "--fail", "--noproxy", "*", signed)
                same(body, check.raw.call("GET", f"/{bucket}/{key.replace(' ', '%20')}").body, key)
            status = check.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", signed + "0")
            same(status, b"403", "status with a changed signature")
        with check.step("rm, rm --recursive"):
            s3("rm", f"{url}/stdin")
            s3("rm", f"{url}/", "--recursive")
            same(check.raw.list_keys(bucket), [], "keys left")
        with check.step("rb --force"):
            s3("cp", check.file("last", 1), f"{url}/last")
            s3("rb", "--force", url)
            same(check.raw.call("HEAD", f"/{bucket}").status, 404, "status")


if __name__ == "__main__":
    main()
