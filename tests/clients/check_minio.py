#!/usr/bin/env python3
"""minio-py: streaming signatures, multipart, listing, copy, compose, conditions, presigned URLs."""

import io
import urllib.parse
import urllib.request
from datetime import timedelta

from minio import Minio
from minio.commonconfig import REPLACE, ComposeSource, CopySource
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from harness import KIB, MIB, Check, data, expect, same


def main():
    with Check("minio") as check:
        client = Minio(urllib.parse.urlsplit(check.endpoint).netloc, access_key=check.access_key,
                       secret_key=check.secret_key, secure=False, region=check.region)
        bucket = check.new_bucket_name()

        def put(key, content, **more):
            return client.put_object(bucket, key, io.BytesIO(content), len(content), **more)

        def get(key, **more):
            response = client.get_object(bucket, key, **more)
            try:
                return response.read()
            finally:
                response.close()
                response.release_conn()

        with check.step("make_bucket, bucket_exists, list_buckets"):
            client.make_bucket(bucket)
            expect(client.bucket_exists(bucket), "the bucket does not exist")
            expect(not client.bucket_exists(bucket + "-none"), "a bucket that was not made exists")
            expect(bucket in [item.name for item in client.list_buckets()], "not listed")
        for size in (0, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 3 * MIB):
            with check.step(f"put and get {size} B"):
                put("k", data(size))
                same(get("k"), data(size), "body")
        with check.step("multipart of 17 MiB of unknown length, 5 MiB parts"):
            content = data(17 * MIB)
            client.put_object(bucket, "stream", io.BytesIO(content), -1, part_size=5 * MIB)
            same(get("stream"), content, "body")
            same(get("stream", offset=5 * MIB - 2, length=4), content[5 * MIB - 2:5 * MIB + 2], "range")
        with check.step("fput_object and fget_object, 12 MiB"):
            path, back = check.file("file", 12 * MIB), check.directory / "back"
            client.fput_object(bucket, "file", str(path))
            client.fget_object(bucket, "file", str(back))
            same(back.read_bytes(), path.read_bytes(), "body")
        with check.step("metadata, stat_object"):
            put("meta", b"x", content_type="text/x", metadata={"X-Amz-Meta-One": "1", "Cache-Control": "no-cache"})
            stat = client.stat_object(bucket, "meta")
            found = {name.lower(): value for name, value in stat.metadata.items()}
            same((stat.size, stat.content_type, found["x-amz-meta-one"], found["cache-control"]),
                 (1, "text/x", "1", "no-cache"), "stat")
        with check.step("list_objects: recursive, prefix, folders, start_after"):
            keys = ["dir/a b", "dir/ü+%", "dir/sub/1", "dir/sub/2"]
            for key in keys:
                put(key, b"")
            same([item.object_name for item in client.list_objects(bucket, "dir/", recursive=True)],
                 sorted(keys, key=str.encode), "recursive")
            same(sorted(item.object_name for item in client.list_objects(bucket, "dir/")),
                 sorted(["dir/a b", "dir/sub/", "dir/ü+%"]), "folders")
            same([item.object_name for item in client.list_objects(bucket, "dir/", recursive=True, start_after="dir/sub/1")],
                 ["dir/sub/2", "dir/ü+%"], "start_after")
            same([item.object_name for item in client.list_objects(bucket, "dir/", recursive=True, use_api_v1=True)],
                 sorted(keys, key=str.encode), "version 1")
        with check.step("copy_object with and without new metadata"):
            client.copy_object(bucket, "copy", CopySource(bucket, "meta"))
            same(client.stat_object(bucket, "copy").metadata.get("x-amz-meta-one"), "1", "copied metadata")
            client.copy_object(bucket, "copy", CopySource(bucket, "meta"), metadata={"two": "2"}, metadata_directive=REPLACE)
            same(client.stat_object(bucket, "copy").metadata.get("x-amz-meta-two"), "2", "new metadata")
        with check.step("compose_object of two parts"):
            client.compose_object(bucket, "composed", [ComposeSource(bucket, "file"), ComposeSource(bucket, "meta")])
            same(get("composed"), (check.directory / "file").read_bytes() + b"x", "body")
        with check.step("conditional get by ETag"):
            etag = client.stat_object(bucket, "meta").etag
            same(get("meta", request_headers={"If-Match": etag}), b"x", "body")
            try:
                get("meta", request_headers={"If-Match": "other"})
                raise AssertionError("no error")
            except S3Error as error:
                same(error.code, "PreconditionFailed", "code")
        with check.step("presigned PUT and GET"):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            link = client.presigned_put_object(bucket, "by url", expires=timedelta(minutes=5))
            opener.open(urllib.request.Request(link, data=b"signed", method="PUT", headers={"Content-Type": "text/plain"}))
            same(opener.open(client.presigned_get_object(bucket, "by url")).read(), b"signed", "body")
        with check.step("errors by code"):
            for code, call in (("NoSuchKey", lambda: get("none")), ("NoSuchKey", lambda: client.stat_object(bucket, "none")),
                               ("NoSuchBucket", lambda: list(client.list_objects(bucket + "-none"))),
                               ("BucketNotEmpty", lambda: client.remove_bucket(bucket))):
                try:
                    call()
                    raise AssertionError(f"no {code}")
                except S3Error as error:
                    same(error.code, code, "code")
        with check.step("remove_objects, remove_bucket"):
            every = [DeleteObject(item.object_name) for item in client.list_objects(bucket, recursive=True)]
            same([str(error) for error in client.remove_objects(bucket, every)], [], "errors")
            client.remove_bucket(bucket)
            expect(not client.bucket_exists(bucket), "the bucket is still there")


if __name__ == "__main__":
    main()
