#!/usr/bin/env python3
"""s3cmd: put, get, sync, ls, info, cp, mv, del, multipart, signed URL."""

import urllib.parse

from harness import KIB, MIB, Check, data, expect, same, sha256_of, tool, tree_digest


def main():
    with Check("s3cmd") as check:
        if check.missing("s3cmd"):
            return
        host = urllib.parse.urlsplit(check.endpoint).netloc
        config = check.directory / "s3cfg"
        config.write_text(f"[default]\naccess_key = {check.access_key}\nsecret_key = {check.secret_key}\nhost_base = {host}\n"
                          f"host_bucket = {host}\nuse_https = False\nbucket_location = {check.region}\nsignature_v2 = False\n"
                          "multipart_chunk_size_mb = 5\nprogress_meter = False\n")

        def s3cmd(*words, **options):
            return check.run(tool("s3cmd"), "-c", config, *words, **options)

        bucket = check.new_bucket_name()
        url = f"s3://{bucket}"
        with check.step("mb, ls"):
            s3cmd("mb", url)
            expect(url in s3cmd("ls").decode(), "not listed")
        for size in (0, 1, 16 * KIB + 1):
            with check.step(f"put and get {size} B"):
                path, back = check.file(f"s{size}", size), check.directory / "back"
                s3cmd("put", path, f"{url}/dir/s {size}+ü")
                s3cmd("get", "--force", f"{url}/dir/s {size}+ü", back)
                same(back.read_bytes(), path.read_bytes(), "body")
        with check.step("multipart put of 23 MB in 5 MiB parts, get"):
            path, back = check.file("big", 23_456_789), check.directory / "big.back"
            s3cmd("put", path, f"{url}/big")
            expect(check.raw.call("HEAD", f"/{bucket}/big").headers["etag"].endswith('-5"'), "not in five parts")
            s3cmd("get", f"{url}/big", back)
            same(sha256_of(back), sha256_of(path), "sha256")
        with check.step("multipart put from stdin"):
            s3cmd("put", "-", f"{url}/stdin", stdin=data(11 * MIB))
            same(s3cmd("get", f"{url}/stdin", "-"), data(11 * MIB), "body")
        with check.step("get --continue (range)"):
            content = (check.directory / "big").read_bytes()
            back.write_bytes(content[:1_000_000])
            s3cmd("get", "--continue", f"{url}/big", back)
            same(sha256_of(back), sha256_of(path), "sha256")
        tree = check.tree("tree", 20)
        with check.step("sync up, again, down"):
            s3cmd("sync", f"{tree}/", f"{url}/sync/")
            same(sorted(check.raw.list_keys(bucket, "sync/")), sorted(f"sync/{name}" for name in tree_digest(tree)), "keys")
            expect(b"upload:" not in s3cmd("sync", f"{tree}/", f"{url}/sync/"), "the second sync uploads again")
            (check.directory / "down").mkdir()
            s3cmd("sync", f"{url}/sync/", f"{check.directory / 'down'}/")
            same(tree_digest(check.directory / "down"), tree_digest(tree), "trees")
        with check.step("ls of a folder, ls --recursive, du"):
            out = s3cmd("ls", f"{url}/").decode()
            expect("DIR" in out and f"{url}/big" in out and "folder0" not in out, out)
            expect("folder0" in s3cmd("ls", "--recursive", url).decode(), "no recursive listing")
            s3cmd("du", url)
        with check.step("info, cp, mv, modify metadata"):
            expect("23456789" in s3cmd("info", f"{url}/big").decode(), "no size")
            s3cmd("cp", f"{url}/dir/s 1+ü", f"{url}/copied", "--add-header=x-amz-meta-a:1")
            s3cmd("mv", f"{url}/copied", f"{url}/moved")
            s3cmd("modify", f"{url}/moved", "--mime-type=text/x-modified")
            same(check.raw.call("HEAD", f"/{bucket}/moved").headers["content-type"], "text/x-modified", "Content-Type")
            same(check.raw.call("HEAD", f"/{bucket}/copied").status, 404, "status of the old key")
        with check.step("multipart, abortmp"):
            upload = check.raw.call("POST", f"/{bucket}/unfinished", [("uploads", "")]).xml().findtext("UploadId")
            expect(upload in s3cmd("multipart", url).decode(), "the upload is not listed")
            s3cmd("abortmp", f"{url}/unfinished", upload)
            expect(upload not in s3cmd("multipart", url).decode(), "the upload is still listed")
        with check.step("del, del --recursive, rb"):
            s3cmd("del", f"{url}/big")
            s3cmd("del", "--recursive", "--force", url)
            same(check.raw.list_keys(bucket), [], "left")
            s3cmd("rb", url)


if __name__ == "__main__":
    main()
