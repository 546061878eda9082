"""boto3 with its defaults: checksums, threaded multipart, presigned URLs, paginators, streaming bodies."""

import io
import urllib.error
import urllib.request

import boto3
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from world import MIB, check, pattern, same


def client(world, **more):
    return boto3.client(
        "s3", endpoint_url=world.endpoint, aws_access_key_id=world.access, aws_secret_access_key=world.secret,
        region_name=world.region, **more,
    )


def run(world):
    s3 = client(world)
    bucket = world.bucket
    s3.create_bucket(Bucket=bucket)

    for size in world.sizes():
        body = b"".join(pattern(size, size))
        s3.put_object(Bucket=bucket, Key=f"put/{size}", Body=body)
        got = s3.get_object(Bucket=bucket, Key=f"put/{size}")
        check(got["Body"].read() == body, f"{size} bytes come back")
        check(got["ContentLength"] == size, f"{size} is the length")

    threaded = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=5 * MIB, max_concurrency=8)
    there = world.file("threaded", world.huge() + 12345)
    s3.upload_file(str(there), bucket, "threaded", Config=threaded)
    s3.download_file(bucket, "threaded", str(world.dir / "back"), Config=threaded)
    same(there, world.dir / "back", "threaded multipart")
    (world.dir / "back").unlink()
    there.unlink()
    s3.upload_fileobj(io.BytesIO(b"x" * (9 * MIB)), bucket, "fileobj", Config=threaded)
    check(s3.head_object(Bucket=bucket, Key="fileobj")["ContentLength"] == 9 * MIB, "a file object of unknown length")

    ranged(s3, bucket)
    presigned(s3, bucket)
    styles(world, bucket)
    paginated(s3, bucket)
    checksums(s3, bucket)

    names = [one["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
             for one in page.get("Contents", [])]
    for start in range(0, len(names), 1000):
        chunk = [{"Key": key} for key in names[start : start + 1000]]
        check(not s3.delete_objects(Bucket=bucket, Delete={"Objects": chunk}).get("Errors"), "many are deleted at once")
    s3.delete_bucket(Bucket=bucket)


def ranged(s3, bucket):
    body = b"".join(pattern("ranges", 9 * MIB + 7))
    s3.put_object(Bucket=bucket, Key="ranges", Body=body)
    edges = [0, 1, 65535, 65536, 4 * MIB - 1, 4 * MIB, 8 * MIB, len(body) - 1]
    for first in edges:
        for last in edges:
            if first <= last:
                got = s3.get_object(Bucket=bucket, Key="ranges", Range=f"bytes={first}-{last}")
                check(got["Body"].read() == body[first : last + 1], f"bytes {first}-{last}")


def presigned(s3, bucket):
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "pre signed/ü+&"}, ExpiresIn=60)
    urllib.request.urlopen(urllib.request.Request(url, data=b"by URL", method="PUT")).read()
    url = s3.generate_presigned_url(
        "get_object",
        Params={"Bucket": bucket, "Key": "pre signed/ü+&", "ResponseContentType": "text/x-other"},
        ExpiresIn=60,
    )
    with urllib.request.urlopen(url) as got:
        check(got.read() == b"by URL" and got.headers["content-type"] == "text/x-other", "a presigned URL reads")
    try:
        urllib.request.urlopen(url.replace("X-Amz-Signature=", "X-Amz-Signature=0"))
        check(False, "a changed signature must be refused")
    except urllib.error.HTTPError as error:
        check(error.code == 403, f"403, not {error.code}")


def styles(world, bucket):
    # bucket.localhost resolves to this machine; the gateway is told of the domain `localhost`.
    port = world.endpoint.rsplit(":", 1)[1]
    virtual = boto3.client(
        "s3", endpoint_url=f"http://localhost:{port}", aws_access_key_id=world.access,
        aws_secret_access_key=world.secret, region_name=world.region,
        config=Config(s3={"addressing_style": "virtual"}),
    )
    try:
        virtual.put_object(Bucket=bucket, Key="virtual", Body=b"host style")
        check(virtual.get_object(Bucket=bucket, Key="virtual")["Body"].read() == b"host style", "virtual-host style")
    except botocore.exceptions.EndpointConnectionError:
        return  # this machine does not resolve *.localhost


def paginated(s3, bucket):
    for number in range(25):
        s3.put_object(Bucket=bucket, Key=f"page/{number:03}", Body=b"")
    pages = list(s3.get_paginator("list_objects_v2").paginate(
        Bucket=bucket, Prefix="page/", PaginationConfig={"PageSize": 10}))
    check([len(page["Contents"]) for page in pages] == [10, 10, 5], "pages of ten")
    keys = [one["Key"] for page in pages for one in page["Contents"]]
    check(keys == [f"page/{n:03}" for n in range(25)], "in order, each once")


def checksums(s3, bucket):
    try:
        s3.put_object(Bucket=bucket, Key="bad", Body=b"123456789", ChecksumCRC32="AAAAAA==")
        check(False, "a wrong checksum must be refused")
    except botocore.exceptions.ClientError as error:
        check(error.response["Error"]["Code"] in ("BadDigest", "InvalidRequest"), f"{error}")
    s3.put_object(Bucket=bucket, Key="good", Body=b"123456789", ChecksumCRC64NVME="rosUhgp5mIg=")
    seen = s3.head_object(Bucket=bucket, Key="good", ChecksumMode="ENABLED")
    check(seen["ChecksumCRC64NVME"] == "rosUhgp5mIg=", "the checksum given is the checksum kept")
    try:
        s3.head_object(Bucket=bucket, Key="bad")
        check(False, "a refused object must not be there")
    except botocore.exceptions.ClientError as error:
        check(error.response["Error"]["Code"] == "404", f"{error}")
