"""`aws s3api`: each operation that the gateway offers, by its own name."""

import json

from world import MIB, check, same


def run(world):
    bucket = world.bucket

    def api(verb, *words, **more):
        out = world.sh("aws", "s3api", verb, *words, **more)
        return json.loads(out) if out.strip().startswith(b"{") else {}

    def refused(code, verb, *words):
        said = world.sh("aws", "s3api", verb, *words, status=None).decode()
        check(code in said, f"{verb} must be refused with {code}: {said}")

    b = ("--bucket", bucket)
    api("create-bucket", *b)
    api("head-bucket", *b)
    check(api("get-bucket-location", *b).get("LocationConstraint") is None, "us-east-1 has no location constraint")
    check(bucket in [one["Name"] for one in api("list-buckets")["Buckets"]], "the bucket is listed")

    body = world.file("body", 100_000)
    put = api("put-object", *b, "--key", "a/b/c", "--body", body, "--content-type", "text/x-test",
              "--cache-control", "max-age=60", "--content-disposition", "inline", "--content-language", "de",
              "--metadata", "colour=blue,size=large")
    head = api("head-object", *b, "--key", "a/b/c")
    check(head["ETag"] == put["ETag"] and head["ContentLength"] == 100_000, f"head shows what was put: {head}")
    check(head["Metadata"] == {"colour": "blue", "size": "large"}, f"user metadata: {head['Metadata']}")
    shown = (head["ContentType"], head["CacheControl"], head["ContentDisposition"], head["ContentLanguage"])
    check(shown == ("text/x-test", "max-age=60", "inline", "de"), f"standard headers: {shown}")
    out = world.dir / "out"
    api("get-object", *b, "--key", "a/b/c", out)
    same(body, out, "the object")
    part = api("get-object", *b, "--key", "a/b/c", "--range", "bytes=10-19", out)
    check(part["ContentRange"] == "bytes 10-19/100000" and out.read_bytes() == body.read_bytes()[10:20], "a range")
    api("get-object", *b, "--key", "a/b/c", "--range", "bytes=-7", out)
    check(out.read_bytes() == body.read_bytes()[-7:], "a range from the end")
    refused("InvalidRange", "get-object", *b, "--key", "a/b/c", "--range", "bytes=100000-", out)

    refused("304", "get-object", *b, "--key", "a/b/c", "--if-none-match", put["ETag"], out)
    refused("PreconditionFailed", "get-object", *b, "--key", "a/b/c", "--if-match", '"0"', out)
    refused("PreconditionFailed", "put-object", *b, "--key", "a/b/c", "--if-none-match", "*")
    refused("PreconditionFailed", "put-object", *b, "--key", "a/b/c", "--if-match", '"0"')
    api("put-object", *b, "--key", "a/b/c", "--if-match", put["ETag"], "--body", body)
    refused("404", "head-object", *b, "--key", "nothing")
    refused("NoSuchKey", "get-object", *b, "--key", "nothing", out)

    for algorithm in ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"):
        sent = api("put-object", *b, "--key", f"sum/{algorithm}", "--body", body, "--checksum-algorithm", algorithm)
        name = f"Checksum{algorithm}"
        seen = api("head-object", *b, "--key", f"sum/{algorithm}", "--checksum-mode", "ENABLED")
        check(sent[name] == seen[name], f"{algorithm} is returned as it was sent")

    for key in ("l/1", "l/2", "l/x/1", "l/x/2", "l/y/1", "l/z w&+ü"):
        api("put-object", *b, "--key", key)
    listed = api("list-objects-v2", *b, "--prefix", "l/", "--delimiter", "/")
    check([one["Key"] for one in listed["Contents"]] == ["l/1", "l/2", "l/z w&+ü"], "keys under a delimiter")
    check([one["Prefix"] for one in listed["CommonPrefixes"]] == ["l/x/", "l/y/"], "common prefixes")
    page = api("list-objects-v2", *b, "--prefix", "l/", "--page-size", "2")
    check(len(page["Contents"]) == 6, "pages add up")
    after = api("list-objects-v2", *b, "--prefix", "l/", "--start-after", "l/2")
    check(after["Contents"][0]["Key"] == "l/x/1", "start-after")
    old = api("list-objects", *b, "--prefix", "l/", "--delimiter", "/", "--max-items", "10")
    check(len(old["Contents"]) == 3 and len(old["CommonPrefixes"]) == 2, "the first list operation")

    api("copy-object", *b, "--key", "copy", "--copy-source", f"{bucket}/a/b/c", "--metadata-directive", "REPLACE",
        "--metadata", "colour=red")
    check(api("head-object", *b, "--key", "copy")["Metadata"] == {"colour": "red"}, "a copy with new metadata")

    multipart(world, api, refused, b)

    quiet = json.dumps({"Objects": [{"Key": "l/1"}, {"Key": "l/2"}, {"Key": "never there"}]})
    gone = api("delete-objects", *b, "--delete", quiet)
    check(len(gone["Deleted"]) == 3 and not gone.get("Errors"), f"many at once, absent ones included: {gone}")
    refused("BucketNotEmpty", "delete-bucket", *b)
    keys = [one["Key"] for one in api("list-objects-v2", *b)["Contents"]]
    for key in keys:
        api("delete-object", *b, "--key", key)
    api("delete-bucket", *b)
    refused("NoSuchBucket", "list-objects-v2", *b)


def multipart(world, api, refused, b):
    key = ("--key", "parts")
    upload = ("--upload-id", api("create-multipart-upload", *b, *key, "--metadata", "made=parts")["UploadId"])
    pieces = [world.file(f"part-{n}", size) for n, size in ((1, 5 * MIB), (2, 5 * MIB), (3, 12345))]
    tags = []
    for number, piece in enumerate(pieces, 1):
        done = api("upload-part", *b, *key, *upload, "--part-number", str(number), "--body", piece)
        tags.append({"PartNumber": number, "ETag": done["ETag"]})
    parts = api("list-parts", *b, *key, *upload)["Parts"]
    check([one["Size"] for one in parts] == [5 * MIB, 5 * MIB, 12345], "parts are listed with their sizes")
    check(any(one["Key"] == "parts" for one in api("list-multipart-uploads", *b)["Uploads"]), "the upload is listed")
    refused("InvalidPart", "complete-multipart-upload", *b, *key, *upload, "--multipart-upload",
            json.dumps({"Parts": [{"PartNumber": 1, "ETag": '"0"'}]}))
    refused("InvalidPartOrder", "complete-multipart-upload", *b, *key, *upload, "--multipart-upload",
            json.dumps({"Parts": [tags[1], tags[0]]}))
    done = api("complete-multipart-upload", *b, *key, *upload, "--multipart-upload", json.dumps({"Parts": tags}))
    check(done["ETag"].endswith('-3"'), f"the etag counts parts: {done['ETag']}")
    out = world.dir / "whole"
    api("get-object", *b, *key, out)
    check(out.read_bytes() == b"".join(piece.read_bytes() for piece in pieces), "parts make the whole, in order")
    second = api("get-object", *b, *key, "--part-number", "2", out)
    check(out.read_bytes() == pieces[1].read_bytes() and second["PartsCount"] == 3, "one part can be read")

    upload = ("--upload-id", api("create-multipart-upload", *b, "--key", "copied")["UploadId"])
    copied = ("--key", "copied", *upload)
    tags = []
    for number, span in enumerate(("0-5242879", "5242880-10498104"), 1):
        done = api("upload-part-copy", *b, *copied, "--part-number", str(number), "--copy-source",
                   f"{world.bucket}/parts", "--copy-source-range", f"bytes={span}")
        tags.append({"PartNumber": number, "ETag": done["CopyPartResult"]["ETag"]})
    api("complete-multipart-upload", *b, *copied, "--multipart-upload", json.dumps({"Parts": tags}))
    api("get-object", *b, "--key", "copied", out)
    check(out.read_bytes() == b"".join(piece.read_bytes() for piece in pieces), "copied parts make the same whole")

    upload = ("--upload-id", api("create-multipart-upload", *b, "--key", "given-up")["UploadId"])
    api("upload-part", *b, "--key", "given-up", *upload, "--part-number", "1", "--body", pieces[2])
    api("abort-multipart-upload", *b, "--key", "given-up", *upload)
    refused("NoSuchUpload", "list-parts", *b, "--key", "given-up", *upload)
    check(not api("list-multipart-uploads", *b).get("Uploads"), "no upload is left")

    upload = ("--upload-id", api("create-multipart-upload", *b, "--key", "small")["UploadId"])
    tags = []
    for number in (1, 2):
        done = api("upload-part", *b, "--key", "small", *upload, "--part-number", str(number), "--body", pieces[2])
        tags.append({"PartNumber": number, "ETag": done["ETag"]})
    refused("EntityTooSmall", "complete-multipart-upload", *b, "--key", "small", *upload, "--multipart-upload",
            json.dumps({"Parts": tags}))
    api("abort-multipart-upload", *b, "--key", "small", *upload)
