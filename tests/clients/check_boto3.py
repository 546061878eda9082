#!/usr/bin/env python3
"""boto3 as it comes: default checksums, threaded multipart, awkward sizes, keys and metadata."""

import io
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import boto3
import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from harness import KIB, MIB, Check, Skip, data, expect, same
from raw_s3 import checksum

SIZES = [0, 1, 2, 255, 4096, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 65535, 65537, 1 * MIB - 1, 4 * MIB, 4 * MIB + 1,
         5 * MIB, 5_242_881, 7_777_777]
KEYS = ["simple", "a/b/c", "with space", " lead and trail ", "plus+plus", "per%cent", "%2F", "a%20b", "new\nline", "tab\there",
        "ünïcödé/漢字/😀", "quote'\"<>&", "a//b", "/lead", "trail/", "a/../b", "./a", "a/./b", "?query#hash",
        "~!@$^*()=;:,[]{}|\\`", "é", "e\u0301", "k" * 1024]


class Stream(io.RawIOBase):
    """A body without length or seek, as a pipe is."""

    def __init__(self, content):
        super().__init__()
        self.inner = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.inner.readinto(buffer)


def main():
    with Check("boto3") as check:
        bucket = check.new_bucket_name()
        s3 = boto3.client("s3", config=Config(retries={"max_attempts": 1}))

        def get(key, **more):
            return s3.get_object(Bucket=bucket, Key=key, **more)

        with check.step("create_bucket, list_buckets"):
            s3.create_bucket(Bucket=bucket)
            expect(bucket in [item["Name"] for item in s3.list_buckets()["Buckets"]], "not listed")
        for size in SIZES:
            with check.step(f"put and get {size} B with default checksums"):
                content = data(size)
                answer = s3.put_object(Bucket=bucket, Key=f"size-{size}", Body=content)
                same(answer.get("ChecksumCRC32"), checksum("crc32", content),
                     "checksum in the answer")
                same(get(f"size-{size}")["Body"].read(), content, "body")
        with check.step("every checksum algorithm as trailer"):
            content = data(100_001)
            for name in ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"):
                s3.put_object(Bucket=bucket, Key=name, Body=content, ChecksumAlgorithm=name)
                answer = get(name, ChecksumMode="ENABLED")
                same((answer["Body"].read(), answer.get(f"Checksum{name}")), (content, checksum(name.lower(), content)), name)
        with check.step("awkward keys: put, get, list, delete"):
            for key in KEYS:
                s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
            same([key for key in KEYS if get(key)["Body"].read() != key.encode()], [], "keys with another body")
            listed = {item["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
                      for item in page.get("Contents", [])}
            same([key for key in KEYS if key not in listed], [], "keys not listed")
            for key in KEYS:
                s3.delete_object(Bucket=bucket, Key=key)
            left = {item["Key"] for item in s3.list_objects(Bucket=bucket)["Contents"]}
            same([key for key in KEYS if key in left], [], "keys left after their deletion")
        with check.step("metadata: case, empty value, spaces, all standard headers"):
            metadata = {"lower": "v", "with-dash": "a  b", "empty": "", "encoded": "=?UTF-8?B?w7w=?="}
            s3.put_object(Bucket=bucket, Key="meta", Body=b"x", Metadata=metadata, ContentType="text/plain",
                          CacheControl="no-cache", ContentLanguage="en", ContentDisposition="inline",
                          ContentEncoding="identity")
            answer = s3.head_object(Bucket=bucket, Key="meta")
            # The signature folds runs of blanks, so a server may see one blank or two; everything else is exact.
            found = {name: " ".join(value.split()) for name, value in answer["Metadata"].items()}
            same(found, dict(metadata, **{"with-dash": "a b"}), "metadata")
            same([answer[name] for name in ("ContentType", "CacheControl", "ContentLanguage", "ContentDisposition",
                                            "ContentEncoding")],
                 ["text/plain", "no-cache", "en", "inline", "identity"], "headers")
        with check.step("content-encoding gzip survives, aws-chunked does not"):
            s3.put_object(Bucket=bucket, Key="gzip", Body=data(9000), ContentEncoding="gzip")
            same(s3.head_object(Bucket=bucket, Key="gzip").get("ContentEncoding"), "gzip", "Content-Encoding")
            s3.put_object(Bucket=bucket, Key="plain", Body=data(9000))
            same(s3.head_object(Bucket=bucket, Key="plain").get("ContentEncoding"), None, "Content-Encoding of a plain put")
        with check.step("upload_fileobj of a 3 MiB stream"):
            content = data(3 * MIB, "stream")
            s3.upload_fileobj(Stream(content), bucket, "stream")
            same(get("stream")["Body"].read(), content, "body")
        with check.step("streamed read in odd pieces"):
            content, body = data(7_777_777), get("size-7777777")["Body"]
            same(b"".join(iter(lambda: body.read(100_003), b"")), content, "body")
        config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=8)
        for size in (5 * MIB, 5 * MIB + 1, 23_456_789, 40 * MIB):
            with check.step(f"threaded multipart of {size} B in 5 MiB parts"):
                content, back = data(size), io.BytesIO()
                s3.upload_fileobj(io.BytesIO(content), bucket, "threaded", Config=config)
                s3.download_fileobj(bucket, "threaded", back, Config=config)
                expect(back.getvalue() == content, f"{len(back.getvalue())} bytes came back, not the same")
                parts = -(-size // (5 * MIB))
                expect(s3.head_object(Bucket=bucket, Key="threaded")["ETag"].endswith(f'-{parts}"'), "ETag without part count")
        with check.step("managed copy in parts"):
            s3.copy({"Bucket": bucket, "Key": "threaded"}, bucket, "threaded copy", Config=config)
            expect(get("threaded copy")["Body"].read() == data(40 * MIB), "not the same bytes")
        with check.step("64 puts and gets by 16 threads"):
            def both(index):
                content = data(50_000 + index, index)
                s3.put_object(Bucket=bucket, Key=f"many/{index:03d}", Body=content)
                return get(f"many/{index:03d}")["Body"].read() == content
            with ThreadPoolExecutor(16) as pool:
                same([i for i, good in enumerate(pool.map(both, range(64))) if not good], [], "wrong bodies")
        with check.step("pages and delete_objects with default checksum"):
            keys = [item["Key"] for page in s3.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix="many/", PaginationConfig={"PageSize": 7}) for item in page["Contents"]]
            same(keys, [f"many/{index:03d}" for index in range(64)], "keys")
            answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
            same(len(answer["Deleted"]), 64, "deleted")
            same(s3.list_objects_v2(Bucket=bucket, Prefix="many/")["KeyCount"], 0, "left")
        with check.step("keys with newline and control characters are listed by v1, v2 and delimiter"):
            odd = ["odd/line\nfeed", "odd/car\rriage", "odd/bell\x07", "odd/<tag>&amp;"]
            for key in odd:
                s3.put_object(Bucket=bucket, Key=key)
            for call in (s3.list_objects, s3.list_objects_v2):
                same([item["Key"] for item in call(Bucket=bucket, Prefix="odd/")["Contents"]], sorted(odd), call.__name__)
            answer = s3.list_objects_v2(Bucket=bucket, Prefix="odd/", Delimiter="\n")
            same([item["Prefix"] for item in answer["CommonPrefixes"]], ["odd/line\n"], "common prefixes")
        with check.step("presigned GET and PUT"):
            signer = boto3.client("s3", config=Config(signature_version="s3v4"))
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            link = signer.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "signed ü+"})
            opener.open(urllib.request.Request(link, data=b"by url", method="PUT"))
            link = signer.generate_presigned_url("get_object", Params={
                "Bucket": bucket, "Key": "signed ü+", "ResponseContentType": "text/x-other"})
            with opener.open(link) as answer:
                same((answer.read(), answer.headers["content-type"]), (b"by url", "text/x-other"), "body and type")
        with check.step("ranges from and to every edge of chunk and stripe"):
            content = data(9 * MIB + 7, "edges")
            s3.put_object(Bucket=bucket, Key="edges", Body=content)
            edges = [0, 1, 65535, 65536, 4 * MIB - 1, 4 * MIB, 8 * MIB, len(content) - 1]
            for first, last in ((first, last) for first in edges for last in edges if first <= last):
                expect(get("edges", Range=f"bytes={first}-{last}")["Body"].read() == content[first:last + 1],
                       f"bytes={first}-{last} are other bytes")
        with check.step("virtual-host style, signed by hand"):
            virtual_host(check, bucket)
        with check.step("virtual-host style by boto3"):
            virtual_host_by_boto3(check, bucket)
        with check.step("typed errors"):
            for code, call in (("NoSuchKey", lambda: get("none")), ("NoSuchBucket", lambda: s3.list_objects_v2(
                    Bucket=bucket + "-none")), ("404", lambda: s3.head_object(Bucket=bucket, Key="none"))):
                try:
                    call()
                    raise AssertionError(f"no {code}")
                except botocore.exceptions.ClientError as error:
                    same(error.response["Error"]["Code"], code, "code")


def virtual_host(check, bucket):
    """The bucket as the first label of the Host header, signed so; over the raw client, which needs no name server."""
    raw = check.raw
    plain = raw.host_header
    port = "" if raw.port == 80 else f":{raw.port}"
    try:
        raw.host_header = lambda: f"{bucket}.localhost{port}"
        response = raw.call("PUT", "/virtual/key", body=b"by host")
        same(response.status, 200, f"status of PUT ({response})")
    finally:
        raw.host_header = plain
    same(raw.call("GET", f"/{bucket}/virtual/key").body, b"by host", "body read in path style")


def virtual_host_by_boto3(check, bucket):
    """Needs a resolver that knows *.localhost for the loopback address (RFC 6761)."""
    if check.raw.host not in ("127.0.0.1", "localhost"):
        raise Skip("the endpoint is not on this machine, so bucket.localhost does not lead there")
    s3 = boto3.client("s3", endpoint_url=f"http://localhost:{check.raw.port}",
                      config=Config(s3={"addressing_style": "virtual"}, retries={"max_attempts": 1}))
    try:
        s3.put_object(Bucket=bucket, Key="virtual by boto3", Body=b"host style")
    except botocore.exceptions.EndpointConnectionError:
        raise Skip("this machine does not resolve *.localhost") from None
    same(check.raw.call("GET", f"/{bucket}/virtual%20by%20boto3").body, b"host style", "body read in path style")


if __name__ == "__main__":
    main()
