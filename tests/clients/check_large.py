#!/usr/bin/env python3
"""One object of 2 GiB: up in parts by boto3 from a generated stream, down as a stream, SHA-256 on both sides.

Neither side holds the object or writes it to disk, so the machine needs memory for a few parts only.
"""

import hashlib
import io

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from harness import GIB, MIB, Check, data, same

SIZE = 2 * GIB
PART = 16 * MIB
BLOCK = 1 * MIB


class Generated(io.RawIOBase):
    """`SIZE` bytes: a random block, each copy headed by its number, so that no two blocks and no two parts are equal."""

    def __init__(self):
        super().__init__()
        self.block, self.at, self.digest = data(BLOCK, "large"), 0, hashlib.sha256()

    def readable(self):
        return True

    def readinto(self, buffer):
        number, offset = divmod(self.at, BLOCK)
        block = number.to_bytes(8, "big") + self.block[8:]
        count = min(len(buffer), BLOCK - offset, SIZE - self.at)
        piece = block[offset:offset + count]
        buffer[:count] = piece
        self.digest.update(piece)
        self.at += count
        return count


def main():
    with Check("large") as check:
        bucket = check.bucket()
        s3 = boto3.client("s3", config=Config(retries={"max_attempts": 1}, read_timeout=300))
        source = Generated()
        with check.step(f"upload 2 GiB in {SIZE // PART} parts, 4 at once"):
            s3.upload_fileobj(io.BufferedReader(source, BLOCK), bucket, "large",
                              Config=TransferConfig(multipart_chunksize=PART, max_concurrency=4))
            same(source.at, SIZE, "bytes sent")
        wanted = source.digest.hexdigest()
        with check.step("head: size and ETag of all parts"):
            head = s3.head_object(Bucket=bucket, Key="large")
            same((head["ContentLength"], head["ETag"][-5:]), (SIZE, f'-{SIZE // PART}"'), "size and ETag")
        with check.step("download as one stream: SHA-256"):
            digest, length = hashlib.sha256(), 0
            for piece in s3.get_object(Bucket=bucket, Key="large")["Body"].iter_chunks(BLOCK):
                digest.update(piece)
                length += len(piece)
            same((length, digest.hexdigest()), (SIZE, wanted), "length and SHA-256")
        with check.step("ranges at the edges of parts, in the middle and at the end"):
            block = data(BLOCK, "large")
            for at in (PART - 4, SIZE // 2 - 4, SIZE - 16):
                first = s3.get_object(Bucket=bucket, Key="large", Range=f"bytes={at}-{at + 15}")["Body"].read()
                same(first, b"".join(byte_at(block, at + index) for index in range(16)), f"16 bytes at {at}")
        with check.step("copy in parts, compare by SHA-256"):
            s3.copy({"Bucket": bucket, "Key": "large"}, bucket, "copy", Config=TransferConfig(multipart_chunksize=256 * MIB))
            digest = hashlib.sha256()
            for piece in s3.get_object(Bucket=bucket, Key="copy")["Body"].iter_chunks(BLOCK):
                digest.update(piece)
            same(digest.hexdigest(), wanted, "SHA-256")
        with check.step("delete"):
            s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "large"}, {"Key": "copy"}]})
            same(check.raw.list_keys(bucket), [], "left")


def byte_at(block, position):
    number, offset = divmod(position, BLOCK)
    return (number.to_bytes(8, "big") + block[8:])[offset:offset + 1]


if __name__ == "__main__":
    main()
