"""minio-py: its own signer, streaming uploads of unknown length, compose, and remove_objects."""

import io

from minio import Minio
from minio.commonconfig import ComposeSource, CopySource
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from world import MIB, check, pattern, same


def run(world):
    s3 = Minio(world.host, access_key=world.access, secret_key=world.secret, secure=False, region=world.region)
    bucket = world.bucket
    s3.make_bucket(bucket)
    check(s3.bucket_exists(bucket) and not s3.bucket_exists("never-made"), "buckets are told apart")
    for size in world.sizes():
        body = b"".join(pattern(size, size))
        s3.put_object(bucket, f"size/{size}", io.BytesIO(body), size, metadata={"x-amz-meta-size": str(size)})
        got = s3.get_object(bucket, f"size/{size}")
        check(got.read() == body, f"{size} bytes come back")
        got.close()
        got.release_conn()
        check(s3.stat_object(bucket, f"size/{size}").metadata["x-amz-meta-size"] == str(size), "metadata")
    s3.put_object(bucket, "unknown", io.BytesIO(b"y" * (11 * MIB)), -1, part_size=5 * MIB)
    check(s3.stat_object(bucket, "unknown").size == 11 * MIB, "a stream of unknown length")
    there = world.file("file", 30 * MIB)
    s3.fput_object(bucket, "file", str(there), part_size=5 * MIB)
    s3.fget_object(bucket, "file", str(world.dir / "back"))
    same(there, world.dir / "back", "a file")
    s3.copy_object(bucket, "copy", CopySource(bucket, "file"))
    s3.compose_object(bucket, "composed", [ComposeSource(bucket, "file"), ComposeSource(bucket, "unknown")])
    check(s3.stat_object(bucket, "composed").size == 41 * MIB, "composed of two")
    names = [one.object_name for one in s3.list_objects(bucket, recursive=True)]
    check(names == sorted(names) and "composed" in names, f"listed in order: {names}")
    check(not list(s3.remove_objects(bucket, [DeleteObject(name) for name in names])), "all are removed")
    try:
        s3.get_object(bucket, "copy")
        check(False, "it must be gone")
    except S3Error as error:
        check(error.code == "NoSuchKey", f"{error}")
    s3.remove_bucket(bucket)
