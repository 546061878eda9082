#!/usr/bin/env python3
"""`aws s3api`: one step for every operation the gateway serves, and what each must answer."""

import base64
import hashlib
import json
from datetime import datetime, timedelta, timezone

from harness import MIB, Check, expect, same, tool
from raw_s3 import checksum, quote

CLI_OPTION = {"crc32": "--checksum-crc32", "crc32c": "--checksum-crc32-c", "crc64nvme": "--checksum-crc64-nvme",
              "sha1": "--checksum-sha1", "sha256": "--checksum-sha256"}
ANSWER = {"crc32": "ChecksumCRC32", "crc32c": "ChecksumCRC32C", "crc64nvme": "ChecksumCRC64NVME",
          "sha1": "ChecksumSHA1", "sha256": "ChecksumSHA256"}
KEYS = ["a", "a/1", "a/2", "a/b/3", "b", "b/1", "plus+sign", "space key", "ü", "漢/字", "z"]


def md5(content):
    return hashlib.md5(content).hexdigest()


def stamp(moment):
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Api:
    def __init__(self, check):
        self.check, self.aws = check, tool("aws")

    def __call__(self, operation, **options):
        out = self.check.run(self.aws, "s3api", operation, "--output", "json", *self.words(options))
        return json.loads(out) if out.strip() else {}

    def fails(self, code, operation, **options):
        out = self.check.run(self.aws, "s3api", operation, *self.words(options), fails=True).decode(errors="replace")
        expect(f"({code})" in out, f"{operation}: wanted error {code}, got {out.strip()[-200:]}")

    @staticmethod
    def words(options):
        """Keyword arguments as options: True is a bare flag, a list gives several words, `args` is taken as it is."""
        out = list(options.pop("args", []))
        positional = options.pop("outfile", None)
        for name, value in options.items():
            out.append("--" + name.replace("_", "-"))
            if isinstance(value, (list, tuple)):
                out += [str(item) for item in value]
            elif isinstance(value, dict):
                out.append(json.dumps(value))
            elif value is not True:
                out.append(str(value))
        return out + ([str(positional)] if positional else [])


def buckets(check, api):
    bucket = check.new_bucket_name()
    with check.step("create-bucket"):
        api("create-bucket", bucket=bucket)
    with check.step("head-bucket"):
        api("head-bucket", bucket=bucket)
        api.fails("404", "head-bucket", bucket=bucket + "-none")
    with check.step("list-buckets"):
        names = [item["Name"] for item in api("list-buckets")["Buckets"]]
        expect(bucket in names, f"{bucket} is not in {names}")
        same(names, sorted(names), "order of buckets")
    with check.step("get-bucket-location"):
        expect("LocationConstraint" in api("get-bucket-location", bucket=bucket), "no LocationConstraint")
    if check.region != "us-east-1":  # which has no LocationConstraint
        with check.step("create-bucket with LocationConstraint"):
            other = check.new_bucket_name()
            api("create-bucket", bucket=other, create_bucket_configuration=f"LocationConstraint={check.region}")
            same(api("get-bucket-location", bucket=other)["LocationConstraint"], check.region, "location")
    with check.step("delete-bucket: full, then empty, then gone"):
        other = check.new_bucket_name()
        api("create-bucket", bucket=other)
        api("put-object", bucket=other, key="k")
        api.fails("BucketNotEmpty", "delete-bucket", bucket=other)
        api("delete-object", bucket=other, key="k")
        api("delete-bucket", bucket=other)
        api.fails("404", "head-bucket", bucket=other)
        api.fails("NoSuchBucket", "delete-bucket", bucket=other)
    return bucket


def objects(check, api, bucket):
    body = check.file("body", 100_000)
    content, back = body.read_bytes(), check.directory / "back"
    etag = f'"{md5(content)}"'
    with check.step("put-object"):
        same(api("put-object", bucket=bucket, key="k", body=body)["ETag"], etag, "ETag")
    with check.step("get-object"):
        answer = api("get-object", bucket=bucket, key="k", outfile=back)
        same(back.read_bytes(), content, "body")
        same((answer["ETag"], answer["ContentLength"], answer["AcceptRanges"]), (etag, len(content), "bytes"), "headers")
        same(answer["ContentType"], "binary/octet-stream", "default content type")
        api.fails("NoSuchKey", "get-object", bucket=bucket, key="none", outfile=back)
    with check.step("head-object"):
        answer = api("head-object", bucket=bucket, key="k")
        same((answer["ETag"], answer["ContentLength"]), (etag, len(content)), "headers")
        api.fails("404", "head-object", bucket=bucket, key="none")
    with check.step("metadata and standard headers"):
        expires = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=30)
        headers = dict(content_type="text/x-test; charset=utf-8", cache_control="max-age=60, private",
                       content_disposition='attachment; filename="f.txt"', content_encoding="gzip",
                       content_language="de-CH", expires=expires.strftime("%a, %d %b %Y %H:%M:%S GMT"))
        api("put-object", bucket=bucket, key="m", body=body, metadata="one=1,Mixed-Case=Some Value", **headers)
        answer = api("head-object", bucket=bucket, key="m")
        same(answer["Metadata"], {"one": "1", "mixed-case": "Some Value"}, "user metadata")
        for name, value in headers.items():
            field = "".join(word.capitalize() for word in name.split("_"))
            found = answer.get("ExpiresString", answer.get(field)) if name == "expires" else answer.get(field)
            if name == "expires" and found and found[0].isdigit():
                found = datetime.fromisoformat(found).strftime("%a, %d %b %Y %H:%M:%S GMT")
            same(found, value, field)
    with check.step("response-* overrides"):
        answer = api("get-object", bucket=bucket, key="k", response_content_type="text/overridden",
                     response_cache_control="no-store", response_content_disposition="inline", outfile=back)
        same((answer["ContentType"], answer["CacheControl"], answer["ContentDisposition"]),
             ("text/overridden", "no-store", "inline"), "overridden headers")
    with check.step("get-object ranges"):
        size = len(content)
        for wanted, first, last in [("bytes=0-0", 0, 0), ("bytes=10-19", 10, 19), ("bytes=99990-", 99990, size - 1),
                                    ("bytes=-5", size - 5, size - 1), ("bytes=99999-200000", size - 1, size - 1),
                                    ("bytes=-200000", 0, size - 1)]:
            answer = api("get-object", bucket=bucket, key="k", range=wanted, outfile=back)
            same(back.read_bytes(), content[first:last + 1], wanted)
            same(answer["ContentRange"], f"bytes {first}-{last}/{size}", f"Content-Range of {wanted}")
        api.fails("InvalidRange", "get-object", bucket=bucket, key="k", range=f"bytes={size}-", outfile=back)
    with check.step("conditional get-object and head-object, all pairs"):
        conditional(api, bucket, "k", etag, back)
    with check.step("put-object --if-none-match '*'"):
        api("put-object", bucket=bucket, key="once", body=body, if_none_match="*")
        api.fails("PreconditionFailed", "put-object", bucket=bucket, key="once", if_none_match="*")
        same(api("head-object", bucket=bucket, key="once")["ETag"], etag, "the first body stays")
    with check.step("put-object --if-match"):
        new = api("put-object", bucket=bucket, key="once", if_match=etag)["ETag"]
        same(new, f'"{md5(b"")}"', "ETag after the swap")
        api.fails("PreconditionFailed", "put-object", bucket=bucket, key="once", body=body, if_match=etag)
        api.fails("NoSuchKey", "put-object", bucket=bucket, key="never", if_match=etag)
        same(api("head-object", bucket=bucket, key="once")["ContentLength"], 0, "length after the refused swap")
    with check.step("copy-object keeps, then replaces metadata"):
        answer = api("copy-object", bucket=bucket, key="copy of m+1", copy_source=f"{bucket}/m")
        same(answer["CopyObjectResult"]["ETag"], etag, "ETag of the copy")
        same(api("head-object", bucket=bucket, key="copy of m+1")["Metadata"]["one"], "1", "copied metadata")
        api("copy-object", bucket=bucket, key="m", copy_source=f"{bucket}/m", metadata="two=2",
            metadata_directive="REPLACE", content_type="text/new")
        answer = api("head-object", bucket=bucket, key="m")
        same((answer["Metadata"], answer["ContentType"]), ({"two": "2"}, "text/new"), "replaced metadata")
        api("get-object", bucket=bucket, key="copy of m+1", outfile=back)
        same(back.read_bytes(), content, "body of the copy")
        api.fails("InvalidRequest", "copy-object", bucket=bucket, key="m", copy_source=f"{bucket}/m")
        api.fails("NoSuchKey", "copy-object", bucket=bucket, key="x", copy_source=f"{bucket}/none")
    with check.step("copy-object conditions"):
        source = dict(bucket=bucket, key="cond", copy_source=f"{bucket}/k")
        api("copy-object", copy_source_if_match=etag, **source)
        api("copy-object", copy_source_if_none_match='"other"', **source)
        api.fails("PreconditionFailed", "copy-object", copy_source_if_match='"other"', **source)
        api.fails("PreconditionFailed", "copy-object", copy_source_if_none_match=etag, **source)
    with check.step("delete-object, also of a missing key"):
        api("delete-object", bucket=bucket, key="cond")
        api.fails("404", "head-object", bucket=bucket, key="cond")
        api("delete-object", bucket=bucket, key="cond")
    with check.step("delete-objects"):
        keys = ["d 1", "d+2", "d/ü", "d<&>"]
        for key in keys:
            api("put-object", bucket=bucket, key=key)
        wanted = [{"Key": key} for key in keys + ["never there"]]
        answer = api("delete-objects", bucket=bucket, delete={"Objects": wanted})
        same(sorted(item["Key"] for item in answer["Deleted"]), sorted(keys + ["never there"]), "deleted keys")
        expect(not answer.get("Errors"), f"errors: {answer.get('Errors')}")
        api("put-object", bucket=bucket, key="d 1")
        expect("Deleted" not in api("delete-objects", bucket=bucket, delete={"Objects": wanted[:1], "Quiet": True}),
               "a quiet delete lists what it deleted")
        same([key for key in check.raw.list_keys(bucket) if key.startswith("d")], [], "keys left")


def conditional(api, bucket, key, etag, back):
    """RFC 9110 §13.2.2 as S3 applies it: If-Match outranks If-Unmodified-Since, If-None-Match outranks If-Modified-Since."""
    now = datetime.now(timezone.utc)
    past, future = stamp(now - timedelta(days=1)), stamp(now + timedelta(days=1))
    bare, other = etag.strip('"'), '"0123456789abcdef0123456789abcdef"'
    matrix = [
        (dict(if_match=etag), 200), (dict(if_match=bare), 200), (dict(if_match="*"), 200), (dict(if_match=other), 412),
        (dict(if_match=f"{other}, {etag}"), 200),
        (dict(if_none_match=etag), 304), (dict(if_none_match="*"), 304), (dict(if_none_match=other), 200),
        (dict(if_none_match=f"W/{etag}"), 304),
        (dict(if_modified_since=past), 200), (dict(if_unmodified_since=past), 412), (dict(if_unmodified_since=future), 200),
        (dict(if_match=etag, if_unmodified_since=past), 200), (dict(if_match=other, if_unmodified_since=future), 412),
        (dict(if_none_match=other, if_modified_since=past), 200), (dict(if_none_match=etag, if_modified_since=past), 304),
        (dict(if_match=etag, if_none_match=etag), 304), (dict(if_match=other, if_none_match=etag), 412),
    ]
    for conditions, status in matrix:
        for operation, more in (("get-object", {"outfile": back}), ("head-object", {})):
            if operation == "head-object" and len(conditions) == 1 and "modified" in next(iter(conditions)):
                continue  # the same code path, a second of Python each
            named = dict(bucket=bucket, key=key, **conditions, **more)
            try:
                if status == 200:
                    api(operation, **named)
                else:
                    # The CLI names an error without a body by its status.
                    code = "PreconditionFailed" if (status, operation) == (412, "get-object") else str(status)
                    api.fails(code, operation, **named)
            except AssertionError as error:
                raise AssertionError(f"{conditions} must be {status}: {error}") from None


def listings(check, api):
    bucket = check.bucket()
    for key in KEYS:
        check.raw.call("PUT", f"/{bucket}/{quote(key, '-_.~/')}")
    ordered = sorted(KEYS, key=lambda key: key.encode())

    def listed(operation, **options):
        answer = api(operation, bucket=bucket, no_paginate=True, **options)
        keys = [item["Key"] for item in answer.get("Contents", [])]
        return keys, [item["Prefix"] for item in answer.get("CommonPrefixes", [])], answer

    for operation in ("list-objects", "list-objects-v2"):
        with check.step(f"{operation}: all keys in order of their bytes"):
            keys, prefixes, answer = listed(operation)
            same((keys, prefixes, answer["IsTruncated"]), (ordered, [], False), "listing")
            expect(all(item["Size"] == 0 and item["ETag"] for item in answer["Contents"]), "size or ETag missing")
        with check.step(f"{operation}: prefix and delimiter"):
            same(listed(operation, prefix="a/")[0], ["a/1", "a/2", "a/b/3"], "prefix")
            keys, prefixes, _ = listed(operation, delimiter="/")
            same((keys, prefixes), (["a", "b", "plus+sign", "space key", "z", "ü"], ["a/", "b/", "漢/"]), "delimiter")
            keys, prefixes, _ = listed(operation, delimiter="/", prefix="a/")
            same((keys, prefixes), (["a/1", "a/2"], ["a/b/"]), "prefix and delimiter")
            keys, prefixes, _ = listed(operation, delimiter="/b/")
            same(prefixes, ["a/b/"], "a delimiter of several characters")
            same(listed(operation, prefix="none")[:2], ([], []), "a prefix of nothing")
        with check.step(f"{operation}: encoding-type url"):
            keys, _, answer = listed(operation, encoding_type="url")
            same(answer.get("EncodingType"), "url", "EncodingType")
            expect("plus%2Bsign" in keys and "%C3%BC" in keys, f"keys are not encoded: {keys}")
        with check.step(f"{operation}: pages of 1, 2 and 3"):
            for size in (1, 2, 3):
                same(pages(operation, listed, size, {}), ordered, f"max-keys {size}")
            same(pages(operation, listed, 2, {"delimiter": "/"}),
                 sorted(["a", "a/", "b", "b/", "plus+sign", "space key", "z", "ü", "漢/"], key=str.encode),
                 "max-keys 2 with delimiter")
        with check.step(f"{operation}: max-keys 0"):
            keys, prefixes, answer = listed(operation, max_keys=0)
            same((keys, prefixes, answer["IsTruncated"]), ([], [], False), "empty page")
    with check.step("list-objects: marker"):
        same(listed("list-objects", marker="b")[0], ordered[ordered.index("b") + 1:], "after the marker")
    with check.step("list-objects-v2: start-after and fetch-owner"):
        same(listed("list-objects-v2", start_after="a/2")[0], ordered[ordered.index("a/2") + 1:], "after a key")
        same(listed("list-objects-v2", start_after="a/9")[0], ordered[ordered.index("a/b/3"):], "after a gap")
        _, _, answer = listed("list-objects-v2", fetch_owner=True)
        expect(all("Owner" in item for item in answer["Contents"]), "no owner")
        same(answer["KeyCount"], len(KEYS), "KeyCount")
    with check.step("list-objects-v2: the CLI's own paging"):
        answer = api("list-objects-v2", bucket=bucket, page_size=2)
        same([item["Key"] for item in answer["Contents"]], ordered, "keys")
    with check.step("list-objects of a missing bucket"):
        for operation in ("list-objects", "list-objects-v2"):
            api.fails("NoSuchBucket", operation, bucket=bucket + "-none")


def pages(operation, listed, size, options):
    """Follows the pages of a listing; every page but the last must be full."""
    found, more = [], {}
    for _ in range(2 * len(KEYS)):
        keys, prefixes, answer = listed(operation, max_keys=size, **options, **more)
        page = sorted(keys + prefixes, key=str.encode)
        found += page
        if not answer["IsTruncated"]:
            return found
        same(len(page), size, "entries on a page that is not the last")
        if operation == "list-objects-v2":
            more = {"continuation_token": answer["NextContinuationToken"]}
        else:
            expect(("NextMarker" in answer) == bool(options), f"NextMarker comes with a delimiter only: {answer.keys()}")
            more = {"marker": answer.get("NextMarker", page[-1])}
    raise AssertionError(f"the listing does not end: {found[:20]}")


def multipart(check, api, bucket):
    first, second = check.file("part1", 5 * MIB), check.file("part2", 1 * MIB + 1)
    contents = [first.read_bytes(), second.read_bytes()]
    back, target = check.directory / "whole", dict(bucket=bucket, key="multi part+1")
    upload = {}
    with check.step("create-multipart-upload"):
        upload.update(target, upload_id=api("create-multipart-upload", **target, metadata="m=1",
                                            content_type="text/multi")["UploadId"])
        api.fails("404", "head-object", **target)
    with check.step("upload-part"):
        for number, path in ((1, second), (1, first), (2, second)):  # part 1 twice: the later one counts
            answer = api("upload-part", **upload, part_number=number, body=path)
            same(answer["ETag"], f'"{md5(path.read_bytes())}"', "ETag of the part")
    with check.step("upload-part-copy, whole and by range"):
        api("put-object", bucket=bucket, key="source", body=first)
        source = dict(copy_source=f"{bucket}/source")
        answer = api("upload-part-copy", **upload, part_number=3, **source)
        same(answer["CopyPartResult"]["ETag"], f'"{md5(contents[0])}"', "ETag of the copied part")
        answer = api("upload-part-copy", **upload, part_number=4, copy_source_range="bytes=10-99", **source)
        same(answer["CopyPartResult"]["ETag"], f'"{md5(contents[0][10:100])}"', "ETag of the copied range")
        api.fails("NoSuchKey", "upload-part-copy", **upload, part_number=5, copy_source=f"{bucket}/none")
    parts = contents + [contents[0], contents[0][10:100]]
    with check.step("list-parts, in pages"):
        answer = api("list-parts", **upload)
        same([(part["PartNumber"], part["Size"]) for part in answer["Parts"]],
             [(n + 1, len(p)) for n, p in enumerate(parts)], "parts")
        answer = api("list-parts", **upload, max_parts=2, no_paginate=True)
        same((answer["IsTruncated"], answer["NextPartNumberMarker"]), (True, 2), "first page")
        answer = api("list-parts", **upload, part_number_marker=2, no_paginate=True)
        same([part["PartNumber"] for part in answer["Parts"]], [3, 4], "second page")
    with check.step("list-multipart-uploads"):
        found = [(item["Key"], item["UploadId"]) for item in api("list-multipart-uploads", bucket=bucket)["Uploads"]]
        expect((target["key"], upload["upload_id"]) in found, f"the upload is not in {found}")
        expect("Uploads" not in api("list-multipart-uploads", bucket=bucket, prefix="none"), "prefix is not applied")
    listed = [{"PartNumber": n + 1, "ETag": f'"{md5(p)}"'} for n, p in enumerate(parts)]
    with check.step("complete-multipart-upload refuses a small part, a wrong ETag and disorder"):
        api.fails("EntityTooSmall", "complete-multipart-upload", **upload, multipart_upload={"Parts": listed})
        wrong = [dict(listed[0], ETag='"0123456789abcdef0123456789abcdef"')]
        api.fails("InvalidPart", "complete-multipart-upload", **upload, multipart_upload={"Parts": wrong})
        api.fails("InvalidPartOrder", "complete-multipart-upload", **upload,
                  multipart_upload={"Parts": [listed[2], listed[0]]})
    chosen = [listed[0], listed[2], listed[3]]
    whole = parts[0] + parts[2] + parts[3]
    etag = f'"{md5(b"".join(hashlib.md5(p).digest() for p in (parts[0], parts[2], parts[3])))}-3"'
    with check.step("complete-multipart-upload, leaving a part out"):
        same(api("complete-multipart-upload", **upload, multipart_upload={"Parts": chosen})["ETag"], etag, "ETag")
        answer = api("get-object", **target, outfile=back)
        same(back.read_bytes(), whole, "body")
        same((answer["Metadata"], answer["ContentType"], answer["ETag"]), ({"m": "1"}, "text/multi", etag), "headers")
    with check.step("complete-multipart-upload again answers the same"):
        same(api("complete-multipart-upload", **upload, multipart_upload={"Parts": chosen})["ETag"], etag, "ETag")
    with check.step("get-object by part number, range across parts"):
        answer = api("get-object", **target, part_number=1, outfile=back)
        same((back.read_bytes(), answer["PartsCount"]), (parts[0], 3), "part 1")
        edge = len(parts[0])
        api("get-object", **target, range=f"bytes={edge - 3}-{edge + 2}", outfile=back)
        same(back.read_bytes(), whole[edge - 3:edge + 3], "range across the edge of two parts")
    with check.step("abort-multipart-upload"):
        other = dict(bucket=bucket, key="aborted")
        other["upload_id"] = api("create-multipart-upload", **other)["UploadId"]
        api("upload-part", **other, part_number=1, body=second)
        api("abort-multipart-upload", **other)
        api.fails("NoSuchUpload", "list-parts", **other)
        api.fails("NoSuchUpload", "upload-part", **other, part_number=1, body=second)
        api.fails("NoSuchUpload", "complete-multipart-upload", **other,
                  multipart_upload={"Parts": [{"PartNumber": 1, "ETag": "x"}]})
        api.fails("404", "head-object", bucket=bucket, key="aborted")
    with check.step("complete-multipart-upload --if-none-match '*'"):
        again = dict(target, upload_id=api("create-multipart-upload", **target)["UploadId"])
        part = api("upload-part", **again, part_number=1, body=second)["ETag"]
        api.fails("PreconditionFailed", "complete-multipart-upload", **again, if_none_match="*",
                  multipart_upload={"Parts": [{"PartNumber": 1, "ETag": part}]})
        api("abort-multipart-upload", **again)
        same(api("head-object", **target)["ETag"], etag, "the object that was there")


def checksums(check, api, bucket):
    body = check.file("summed", 70_001)
    content, back = body.read_bytes(), check.directory / "summed.back"
    for algorithm, option in CLI_OPTION.items():
        field, value = ANSWER[algorithm], checksum(algorithm, content)
        target = dict(bucket=bucket, key=f"sum-{algorithm}")
        with check.step(f"{field}: verified on put, given back on get and head"):
            answer = api("put-object", **target, body=body, args=[option, value])
            same(answer.get(field), value, "in the answer to put")
            answer = api("get-object", **target, checksum_mode="ENABLED", outfile=back)
            same((answer.get(field), answer.get("ChecksumType")), (value, "FULL_OBJECT"), "in the answer to get")
            same(back.read_bytes(), content, "body")
            same(api("head-object", **target, checksum_mode="ENABLED").get(field), value, "in the answer to head")
            expect(field not in api("head-object", **target), "head gives a checksum without being asked")
            answer = api("get-object", **target, checksum_mode="ENABLED", range="bytes=0-9", outfile=back)
            expect(field not in answer, "a range carries the checksum of the whole")
            wrong = checksum(algorithm, content + b"x")
            api.fails("BadDigest", "put-object", bucket=bucket, key="bad-sum", body=body, args=[option, wrong])
            api.fails("404", "head-object", bucket=bucket, key="bad-sum")
        with check.step(f"{field}: computed by the CLI as a trailer"):
            answer = api("put-object", **target, body=body, checksum_algorithm=algorithm.upper())
            same(answer.get(field), value, "in the answer to put")
        with check.step(f"{field}: multipart"):
            multipart_checksum(check, api, bucket, algorithm, field, content)


def multipart_checksum(check, api, bucket, algorithm, field, content):
    """Composite for SHA and the 32-bit CRCs, full-object for CRC64NVME: what AWS gives where no type is asked for."""
    target = dict(bucket=bucket, key=f"multi-sum-{algorithm}")
    create = api("create-multipart-upload", **target, checksum_algorithm=algorithm.upper())
    same(create.get("ChecksumAlgorithm"), algorithm.upper(), "algorithm of the upload")
    big = check.file("part-summed", 5 * MIB) if algorithm in ("crc32", "sha1", "sha256") else check.file("small", 4000)
    bodies = [big] + ([check.directory / "summed"] if big.stat().st_size >= 5 * MIB else [])
    parts = []
    for number, path in enumerate(bodies, 1):
        value = checksum(algorithm, path.read_bytes())
        answer = api("upload-part", **target, upload_id=create["UploadId"], part_number=number, body=path,
                     args=[CLI_OPTION[algorithm], value])
        same(answer.get(field), value, f"checksum of part {number}")
        parts.append({"PartNumber": number, "ETag": answer["ETag"], field: value})
    listed = api("list-parts", **target, upload_id=create["UploadId"])["Parts"]
    same([part.get(field) for part in listed], [part[field] for part in parts], "checksums in list-parts")
    answer = api("complete-multipart-upload", **target, upload_id=create["UploadId"], multipart_upload={"Parts": parts})
    raw = [path.read_bytes() for path in bodies]
    if algorithm == "crc64nvme":
        wanted, kind = checksum(algorithm, b"".join(raw)), "FULL_OBJECT"
    else:
        joined = b"".join(base64.b64decode(checksum(algorithm, part)) for part in raw)
        wanted, kind = f"{checksum(algorithm, joined)}-{len(raw)}", "COMPOSITE"
    same((answer.get(field), answer.get("ChecksumType")), (wanted, kind), "checksum of the object")
    head = api("head-object", **target, checksum_mode="ENABLED")
    same((head.get(field), head.get("ChecksumType")), (wanted, kind), "checksum in head")
    if len(raw) > 1:
        answer = api("get-object", **target, part_number=2, outfile=check.directory / "part.back")
        same(((check.directory / "part.back").read_bytes(), answer.get("PartsCount")), (raw[1], 2), "part 2")


def main():
    with Check("aws_s3api") as check:
        api = Api(check)
        bucket = buckets(check, api)
        objects(check, api, bucket)
        listings(check, api)
        multipart(check, api, bucket)
        checksums(check, api, bucket)


if __name__ == "__main__":
    main()
