#!/usr/bin/env python3
"""The S3 error table, one wrong request at a time, over bare HTTP.

Each step sends what no well-behaved client sends and checks the status, the error code, and that the answer is a whole
S3 error: XML with Code, Message and a RequestId equal to the `x-amz-request-id` header; and, where the request carried
an object, that nothing of it is visible afterwards.
"""

import http.client
import socket
import time

from harness import KIB, MIB, Check, data, expect, same
from raw_s3 import (SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED, UNSIGNED_CHUNKS_TRAILER, checksum, content_md5,
                    minutes_ago, read_response, signed_chunks, unsigned_chunks)

GIB5 = 5 * 1024 ** 3


def whole_error(response, status, *codes):
    """Checks that `response` is the S3 error with one of `codes`."""
    same(response.status, status, f"status (of {response})")
    expect(response.code() in codes, f"wanted {' or '.join(codes)}, got {response}")
    root = response.xml()
    expect(root.findtext("Message"), "the error has no Message")
    same(root.findtext("RequestId"), response.headers.get("x-amz-request-id"), "RequestId beside x-amz-request-id")
    expect(root.findtext("RequestId"), "empty request id")
    same(response.headers.get("content-type", "").split(";")[0], "application/xml", "Content-Type")


class Bad:
    def __init__(self, check):
        self.check, self.raw, self.bucket = check, check.raw, check.bucket()

    def path(self, key):
        return f"/{self.bucket}/{key}"

    def gone(self, key):
        same(self.raw.call("HEAD", self.path(key)).status, 404, f"status of {key}, which must not be visible")
        expect(key not in self.raw.list_keys(self.bucket), f"{key} is listed")

    def refused(self, name, status, codes, method, path, query=(), headers=None, body=b"", **options):
        """One step: a request that must be refused; a PUT of an object must leave nothing."""
        with self.check.step(f"{name}: {status} {codes}"):
            whole_error(self.raw.call(method, path, query, headers, body, **options), status, *codes.split(" or "))
            if method == "PUT" and path.startswith(self.path("")) and not query and len(path) < 300 and "%FF" not in path:
                self.gone(path[len(self.path("")):])


def authentication(bad):
    raw, refused, step = bad.raw, bad.refused, bad.check.step
    raw.call("PUT", bad.path("there"), body=b"there")
    refused("wrong secret", 403, "SignatureDoesNotMatch", "PUT", bad.path("a1"), body=b"x", secret_key="not the secret")
    refused("unknown access key", 403, "InvalidAccessKeyId", "GET", bad.path("there"), access_key="AKIANOSUCHKEY0000000")
    for minutes in (16, -16, 60 * 24):
        refused(f"clock {minutes} minutes off", 403, "RequestTimeTooSkewed", "GET", bad.path("there"),
                now=minutes_ago(minutes))
    refused("wrong region in the scope", 400, "AuthorizationHeaderMalformed", "GET", bad.path("there"), region="xx-none-9")
    with step("no authentication: 403 AccessDenied"):
        for method, path in (("GET", bad.path("there")), ("PUT", bad.path("anonymous")), ("GET", f"/{bad.bucket}"), ("GET", "/")):
            request = raw.prepare(method, path)
            del request.headers["authorization"]
            whole_error(raw.send(request), 403, "AccessDenied")
    with step("malformed Authorization: 400"):
        for text in ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=a", "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=0",
                     "Nonsense", "AWS4-HMAC-SHA256 Credential=////, SignedHeaders=, Signature="):
            request = raw.prepare("GET", bad.path("there"))
            request.headers["authorization"] = text
            whole_error(raw.send(request), 400, "AuthorizationHeaderMalformed", "InvalidArgument", "InvalidRequest")
    with step("changed after signing (method, path, query, header, body): 403 or 400"):
        request = raw.prepare("GET", bad.path("there"))
        request.target = bad.path("other")
        whole_error(raw.send(request), 403, "SignatureDoesNotMatch")
        request = raw.prepare("GET", bad.path("there"))
        request.method = "DELETE"
        whole_error(raw.send(request), 403, "SignatureDoesNotMatch")
        request = raw.prepare("GET", f"/{bad.bucket}", [("prefix", "a")])
        request.target = f"/{bad.bucket}?prefix=b"
        whole_error(raw.send(request), 403, "SignatureDoesNotMatch")
        request = raw.prepare("PUT", bad.path("changed"), headers={"x-amz-meta-a": "1"}, body=b"x")
        request.headers["x-amz-meta-a"] = "2"
        whole_error(raw.send(request), 403, "SignatureDoesNotMatch")
        request = raw.prepare("PUT", bad.path("changed"), body=b"signed body")
        request.body = b"another one"
        whole_error(raw.send(request), 400, "XAmzContentSHA256Mismatch")
        bad.gone("changed")
        same(raw.call("GET", bad.path("there")).body, b"there", "the object that was there")
    with step("an unsigned x-amz- header: 403"):
        request = raw.prepare("PUT", bad.path("unsigned-header"), body=b"x")
        request.headers["x-amz-meta-sneaked"] = "in"
        whole_error(raw.send(request), 403, "AccessDenied", "SignatureDoesNotMatch")
        bad.gone("unsigned-header")
    with step("no x-amz-content-sha256, or not a hash: 400"):
        request = raw.prepare("GET", bad.path("there"))
        del request.headers["x-amz-content-sha256"]
        whole_error(raw.send(request), 400, "InvalidRequest", "MissingSecurityHeader")
        whole_error(raw.call("PUT", bad.path("nohash"), body=b"x", payload="nonsense"), 400, "InvalidArgument")
        bad.gone("nohash")


def presigned(bad):
    raw, step = bad.raw, bad.check.step

    def fetch(target, method="GET", body=b""):
        connection = raw.connect()
        try:
            connection.request(method, target, body=body or None)
            return read_response(connection.getresponse())
        finally:
            connection.close()

    with step("presigned: good for a control"):
        same(fetch(raw.presign("GET", bad.path("there"))).body, b"there", "body")
    with step("presigned and expired: 403 AccessDenied"):
        whole_error(fetch(raw.presign("GET", bad.path("there"), expires=60, now=minutes_ago(3))), 403, "AccessDenied")
    with step("presigned for the future: 403"):
        whole_error(fetch(raw.presign("GET", bad.path("there"), now=minutes_ago(-60))), 403, "AccessDenied",
                    "RequestTimeTooSkewed")
    with step("presigned for more than 7 days, -1 and nonsense seconds: 400 AuthorizationQueryParametersError"):
        for expires in (604801, -1, "soon"):
            whole_error(fetch(raw.presign("GET", bad.path("there"), expires=expires)), 400,
                        "AuthorizationQueryParametersError")
    with step("presigned, then changed: 403 SignatureDoesNotMatch"):
        target = raw.presign("GET", bad.path("there"))
        whole_error(fetch(target.replace("there", "other")), 403, "SignatureDoesNotMatch")
        whole_error(fetch(target, "DELETE"), 403, "SignatureDoesNotMatch")
        whole_error(fetch(target + "&versionId=x"), 403, "SignatureDoesNotMatch")
    with step("presigned by an unknown key: 403 InvalidAccessKeyId"):
        whole_error(fetch(raw.presign("GET", bad.path("there"), access_key="AKIANOSUCHKEY0000000")), 403, "InvalidAccessKeyId")
    with step("presigned without one of its parameters: 400 AuthorizationQueryParametersError"):
        target = raw.presign("GET", bad.path("there"))
        head, _, query = target.partition("?")
        for missing in ("X-Amz-Date", "X-Amz-Expires", "X-Amz-Credential", "X-Amz-SignedHeaders"):
            rest = "&".join(part for part in query.split("&") if not part.startswith(missing))
            whole_error(fetch(f"{head}?{rest}"), 400, "AuthorizationQueryParametersError")


def names(bad):
    raw, refused, step = bad.raw, bad.refused, bad.check.step
    for name in ("ab", "a" * 64, "Upper", "under_score", "-start", "end-", "two..dots", "192.168.5.4", "xn--start",
                 "end-s3alias", "dot-.dash"):
        refused(f"create bucket {name[:14]!r}", 400, "InvalidBucketName", "PUT", f"/{name}")
    long = "k" * 1025
    refused("key of 1,025 bytes, put", 400, "KeyTooLongError", "PUT", bad.path(long), body=b"x")
    refused("key of 1,026 bytes in 513 characters", 400, "KeyTooLongError", "PUT", bad.path("%C3%BC" * 513), body=b"x")
    with step("key of 1,024 bytes is good"):
        same(raw.call("PUT", bad.path("k" * 1024), body=b"x").status, 200, "status")
        same(raw.call("GET", bad.path("k" * 1024)).body, b"x", "body")
        raw.call("DELETE", bad.path("k" * 1024))
    refused("key that is not UTF-8", 400, "InvalidURI or InvalidArgument", "PUT", bad.path("%FF%FE"), body=b"x")
    none = bad.bucket + "-none"
    for method, path, query in (("GET", f"/{none}/k", ()), ("PUT", f"/{none}/k", ()), ("DELETE", f"/{none}/k", ()),
                                ("GET", f"/{none}", ()), ("DELETE", f"/{none}", ()), ("GET", f"/{none}", [("uploads", "")]),
                                ("POST", f"/{none}/k", [("uploads", "")]), ("GET", f"/{none}", [("location", "")])):
        refused(f"missing bucket, {method} {path[len(none) + 1:]}?{query[0][0] if query else ''}", 404, "NoSuchBucket",
                method, path, query)
    refused("missing key", 404, "NoSuchKey", "GET", bad.path("none"))
    refused("bucket with objects deleted", 409, "BucketNotEmpty", "DELETE", f"/{bad.bucket}")
    with step("the same bucket again: 200 in us-east-1, else 409"):
        again = raw.call("PUT", f"/{bad.bucket}")
        if again.status != 200:
            whole_error(again, 409, "BucketAlreadyOwnedByYou")
        same(raw.call("GET", bad.path("there")).body, b"there", "the object in it")


def sub_resources(bad):
    raw, step = bad.raw, bad.check.step
    # What AWS answers on a bucket where nothing of the kind was ever configured; as good as 501.
    unset = {"logging": "BucketLoggingStatus", "requestPayment": "RequestPaymentConfiguration",
             "accelerate": "AccelerateConfiguration"}
    not_found = ("ReplicationConfigurationNotFoundError", "NoSuchWebsiteConfiguration", "NoSuchConfiguration")
    with step("sub-resource that is not served: 501 NotImplemented, never a listing"):
        for name in ("analytics", "inventory", "logging", "metrics", "replication", "website", "requestPayment", "accelerate",
                     "intelligent-tiering", "metadataTable"):
            for method in ("GET", "PUT", "DELETE"):
                response = raw.call(method, f"/{bad.bucket}", [(name, "")])
                if method == "GET" and response.status == 200 and name in unset:
                    same(response.xml().tag, unset[name], f"root element of ?{name}")
                    continue
                if method == "GET" and response.status == 404:
                    whole_error(response, 404, *not_found)
                    continue
                if method == "DELETE" and response.status == 204 and name in ("replication", "website"):
                    continue  # nothing was configured, so nothing is left
                expect(response.status == 501, f"{method} ?{name} is answered with {response}")
                whole_error(response, 501, "NotImplemented")
        for name in ("torrent", "select", "restore", "renameObject"):
            response = raw.call("POST" if name in ("select", "restore") else "GET", bad.path("there"), [(name, "")])
            expect(response.status == 501, f"object ?{name} is answered with {response}")
        same(raw.call("GET", bad.path("there")).body, b"there", "the object")
    with step("an unknown sub-resource on PUT and DELETE does not touch the object or bucket"):
        for method in ("PUT", "DELETE"):
            for name in ("legal-hold", "retention"):
                raw.call(method, bad.path("there"), [(name, "")])
        same(raw.call("GET", bad.path("there")).body, b"there", "the object")
    bad.refused("unknown method", 405, "MethodNotAllowed", "PATCH", bad.path("there"))
    bad.refused("POST to an object without a sub-resource", 405, "MethodNotAllowed", "POST", bad.path("there"))


def heads(bad):
    raw, step = bad.raw, bad.check.step
    with step("HEAD errors have no body and keep the connection"):
        connection = raw.connect()
        for path, status, more in ((bad.path("none"), 404, {}), (f"/{bad.bucket}-none", 404, {}), (bad.path("there"), 403,
                                   {"secret_key": "wrong"}), (bad.path("there"), 412, {"headers": {"if-match": '"x"'}}),
                                   (bad.path("there"), 416, {"headers": {"range": "bytes=100-"}})):
            request = raw.prepare("HEAD", path, **more)
            connection.request("HEAD", request.target, headers=request.headers)
            answer = connection.getresponse()
            same((answer.status, answer.read()), (status, b""), f"HEAD {path[-20:]}")
            expect(answer.getheader("x-amz-request-id"), "no request id")
        request = raw.prepare("GET", bad.path("there"))
        connection.request("GET", request.target, headers=request.headers)
        same(connection.getresponse().read(), b"there", "body of the next request on the connection")
        connection.close()
    with step("request ids differ from request to request"):
        ids = {raw.call("GET", bad.path("none")).headers.get("x-amz-request-id") for _ in range(5)}
        same(len(ids), 5, "distinct ids")


def ranges_and_conditions(bad):
    raw, refused, step = bad.raw, bad.refused, bad.check.step
    raw.call("PUT", bad.path("ten"), body=b"0123456789")
    raw.call("PUT", bad.path("zero"))
    for text in ("bytes=10-", "bytes=10-20", "bytes=-0"):
        refused(f"range {text} of 10 bytes", 416, "InvalidRange", "GET", bad.path("ten"), headers={"range": text})
    refused("range of an empty object", 416, "InvalidRange", "GET", bad.path("zero"), headers={"range": "bytes=0-0"})
    with step("range that does not parse is ignored"):
        for text in ("bytes=5-2", "bytes=a-b", "lines=0-1", "bytes=", "0-1"):
            response = raw.call("GET", bad.path("ten"), headers={"range": text})
            same((response.status, response.body), (200, b"0123456789"), text)
    refused("If-Match of another ETag", 412, "PreconditionFailed", "GET", bad.path("ten"), headers={"if-match": '"x"'})
    with step("304 has no body and carries the ETag"):
        etag = raw.call("HEAD", bad.path("ten")).headers["etag"]
        response = raw.call("GET", bad.path("ten"), headers={"if-none-match": etag})
        same((response.status, response.body, response.headers.get("etag")), (304, b"", etag), "answer")
    for what, value, query in (("max-keys nonsense", "x", "max-keys"), ("max-keys negative", "-1", "max-keys"),
                               ("encoding-type nonsense", "x", "encoding-type"), ("continuation-token nonsense", "§", "continuation-token")):
        refused(what, 400, "InvalidArgument", "GET", f"/{bad.bucket}", [("list-type", "2"), (query, value)])
    refused("PUT If-None-Match of an ETag", 501, "NotImplemented", "PUT", bad.path("inm"), headers={"if-none-match": '"x"'}, body=b"x")
    refused("copy from nowhere", 404, "NoSuchKey", "PUT", bad.path("copy"), headers={"x-amz-copy-source": f"{bad.bucket}/none"})
    refused("copy source without a key", 400, "InvalidArgument", "PUT", bad.path("copy"), headers={"x-amz-copy-source": "nonsense"})
    refused("metadata directive nonsense", 400, "InvalidArgument", "PUT", bad.path("copy"),
            headers={"x-amz-copy-source": f"{bad.bucket}/ten", "x-amz-metadata-directive": "MAYBE"})
    refused("user metadata over 2 KiB", 400, "MetadataTooLarge", "PUT", bad.path("meta"), headers={"x-amz-meta-a": "v" * 2100}, body=b"x")


def bodies(bad):
    raw, refused, step = bad.raw, bad.refused, bad.check.step
    refused("Content-MD5 of another body", 400, "BadDigest", "PUT", bad.path("md5"), headers={"content-md5": content_md5(b"y")}, body=b"x")
    refused("Content-MD5 that is none", 400, "InvalidDigest", "PUT", bad.path("md5"), headers={"content-md5": "nonsense"}, body=b"x")
    for algorithm in ("crc32", "crc32c", "crc64nvme", "sha1", "sha256"):
        header = f"x-amz-checksum-{algorithm}"
        refused(f"{header} of another body", 400, "BadDigest", "PUT", bad.path("sum"), headers={header: checksum(algorithm, b"y")}, body=b"x")
        refused(f"{header} that is none", 400, "InvalidRequest", "PUT", bad.path("sum"), headers={header: "AAA"}, body=b"x")
    refused("two checksums at once", 400, "InvalidRequest", "PUT", bad.path("sum"), body=b"x",
            headers={"x-amz-checksum-crc32": checksum("crc32", b"x"), "x-amz-checksum-sha1": checksum("sha1", b"x")})
    refused("unknown checksum algorithm", 400, "InvalidRequest", "PUT", bad.path("sum"), headers={"x-amz-sdk-checksum-algorithm": "MD6"}, body=b"x")
    with step("no Content-Length: 411 MissingContentLength"):
        request = raw.prepare("PUT", bad.path("nolength"), payload=UNSIGNED)
        request.headers["transfer-encoding"] = "chunked"
        connection = raw.open_socket(request)
        connection.sendall(b"1\r\nx\r\n0\r\n\r\n")
        whole_error(answer_of(connection), 411, "MissingContentLength")
        bad.gone("nolength")
    with step("object over 5 GiB by its length: 400 EntityTooLarge before the body"):
        request = raw.prepare("PUT", bad.path("huge"), payload=UNSIGNED)
        request.headers.update({"content-length": str(GIB5 + 1), "expect": "100-continue"})
        whole_error(answer_of(raw.open_socket(request)), 400, "EntityTooLarge")
    with step("body cut off in the middle leaves nothing"):
        for payload in (UNSIGNED, None):
            request = raw.prepare("PUT", bad.path("cut"), body=data(100 * KIB), payload=payload)
            request.headers["content-length"] = str(100 * KIB)
            cut(raw, request, request.body[:40 * KIB])
            settle(lambda: bad.gone("cut"))
    with step("body cut off leaves the object that was there"):
        request = raw.prepare("PUT", bad.path("there"), body=data(100 * KIB), payload=UNSIGNED)
        request.headers["content-length"] = str(100 * KIB)
        cut(raw, request, request.body[:1000])
        settle(lambda: same(raw.call("GET", bad.path("there")).body, b"there", "body"))


def xml_documents(bad):
    raw, refused, step = bad.raw, bad.refused, bad.check.step
    target = f"/{bad.bucket}"

    def delete(name, document, status=400, codes="MalformedXML", **headers):
        headers = {n.replace("_", "-"): v for n, v in headers.items()} or {"content-md5": content_md5(document)}
        refused(f"DeleteObjects {name}", status, codes, "POST", target, [("delete", "")], headers, document)

    good = b"<Delete><Object><Key>none</Key></Object></Delete>"
    delete("that is not XML", b"this is not XML")
    delete("cut off", good[:-8])
    delete("without objects", b"<Delete></Delete>")
    delete("without a key", b"<Delete><Object><Nope>x</Nope></Object></Delete>")
    delete("with the wrong root", b"<Remove><Object><Key>x</Key></Object></Remove>")
    delete("of 1,001 keys", b"<Delete>" + b"".join(b"<Object><Key>%d</Key></Object>" % n for n in range(1001)) + b"</Delete>")
    delete("of nothing at all", b"", codes="MalformedXML or MissingRequestBodyError")
    delete("nested 10,000 deep", b"<Delete>" + b"<a>" * 10_000)
    delete("with entities", b'<!DOCTYPE x [<!ENTITY a "bbbb"><!ENTITY c "&a;&a;">]><Delete><Object><Key>&c;</Key></Object></Delete>')
    delete("with the wrong MD5", good, codes="BadDigest", content_md5=content_md5(b"other"))
    delete("with the wrong CRC32", good, codes="BadDigest", x_amz_checksum_crc32=checksum("crc32", b"other"))
    with step("DeleteObjects without MD5 or checksum: 400 InvalidRequest"):
        whole_error(raw.call("POST", target, [("delete", "")], body=good), 400, "InvalidRequest")
    with step("DeleteObjects with a body of 3 MiB of blanks: refused"):
        body = b"<Delete>" + b" " * (3 * MIB)
        response = raw.call("POST", target, [("delete", "")], {"content-md5": content_md5(body)}, body)
        whole_error(response, 400, "MalformedXML", "MaxMessageLengthExceeded", "EntityTooLarge")
    refused("CreateBucket with a malformed document", 400, "MalformedXML", "PUT", target + "-x", body=b"<Create")
    refused("CreateBucket in a region that is not", 400, "IllegalLocationConstraintException or InvalidLocationConstraint", "PUT",
            target + "-x", body=b"<CreateBucketConfiguration><LocationConstraint>xx-none-9</LocationConstraint></CreateBucketConfiguration>")


def multipart(bad):
    raw, refused, step = bad.raw, bad.refused, bad.check.step
    path = bad.path("multi")

    def start():
        response = raw.call("POST", path, [("uploads", "")])
        same(response.status, 200, "status of create")
        return response.xml().findtext("UploadId")

    def part(upload, number, body):
        response = raw.call("PUT", path, [("partNumber", str(number)), ("uploadId", upload)], body=body)
        same(response.status, 200, f"status of part {number}")
        return response.headers["etag"]

    def document(*parts):
        return ("<CompleteMultipartUpload>" + "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in parts) + "</CompleteMultipartUpload>").encode()

    upload = start()
    large = data(5 * MIB)
    one, two, three = part(upload, 1, b"small"), part(upload, 2, large), part(upload, 3, b"last")

    def complete(name, code, body, identifier=upload, status=400):
        with step(f"complete with {name}: {status} {code}"):
            response = raw.call("POST", path, [("uploadId", identifier)], body=body)
            if response.status == 200:  # what AWS does once it has begun to answer
                expect(response.code() == code, f"wanted {code}, got {response}")
            else:
                whole_error(response, status, code)
            bad.gone("multi")

    complete("a part below 5 MiB", "EntityTooSmall", document((1, one), (2, two), (3, three)))
    complete("parts out of order", "InvalidPartOrder", document((3, three), (2, two)))
    complete("a part twice", "InvalidPartOrder", document((2, two), (2, two)))
    complete("a part that was not uploaded", "InvalidPart", document((2, two), (4, three)))
    complete("the ETag of another part", "InvalidPart", document((2, three), (3, three)))
    complete("no part", "MalformedXML", document())
    complete("no document", "MalformedXML", b"")
    complete("a cut-off document", "MalformedXML", document((2, two))[:-20])
    complete("a part number that is none", "MalformedXML", document(("x", two)))
    complete("an unknown upload", "NoSuchUpload", document((2, two)), "no-such-upload", 404)
    for number in ("0", "10001", "-1", "x"):
        refused(f"part number {number}", 400, "InvalidArgument", "PUT", path, [("partNumber", number), ("uploadId", upload)], body=b"x")
    refused("part of an unknown upload", 404, "NoSuchUpload", "PUT", path, [("partNumber", "1"), ("uploadId", "none")], body=b"x")
    refused("part of the upload of another key", 404, "NoSuchUpload", "PUT", bad.path("another"),
            [("partNumber", "1"), ("uploadId", upload)], body=b"x")
    refused("list parts of an unknown upload", 404, "NoSuchUpload", "GET", path, [("uploadId", "none")])
    refused("abort of an unknown upload", 404, "NoSuchUpload", "DELETE", path, [("uploadId", "none")])
    refused("part with a wrong Content-MD5", 400, "BadDigest", "PUT", path, [("partNumber", "5"), ("uploadId", upload)],
            {"content-md5": content_md5(b"y")}, b"x")
    raw.call("PUT", bad.path("source"), body=b"0123456789")
    for text in ("bytes=5-20", "bytes=-5", "5-6"):
        refused(f"part copy with range {text} of 10 bytes", 400, "InvalidArgument or InvalidRange", "PUT", path, [("partNumber", "6"), ("uploadId", upload)],
                {"x-amz-copy-source": f"{bad.bucket}/source", "x-amz-copy-source-range": text})
    with step("after all that, the upload completes"):
        response = raw.call("POST", path, [("uploadId", upload)], body=document((2, two), (3, three)))
        same((response.status, response.code()), (200, None), f"answer ({response})")
        same(raw.call("GET", path).body, large + b"last", "body")


def chunked(bad):
    raw, step = bad.raw, bad.check.step
    content = data(150 * KIB)
    crc = checksum("crc32", content)

    def unsigned(key, body, trailer="x-amz-checksum-crc32", length=len(content), **more):
        headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(length)}
        if trailer:
            headers["x-amz-trailer"] = trailer
        headers.update(more)
        return raw.call("PUT", bad.path(key), headers=headers, body=body, payload=UNSIGNED_CHUNKS_TRAILER)

    def signed(key, change=lambda body: body, trailers=None, length=len(content)):
        headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(length)}
        if trailers is not None:
            headers["x-amz-trailer"] = ",".join(name for name, _ in trailers)
        request = raw.prepare("PUT", bad.path(key), headers=headers,
                              payload=SIGNED_CHUNKS if trailers is None else SIGNED_CHUNKS_TRAILER)
        request.body = change(signed_chunks(request, content, trailers))
        return raw.send(request)

    with step("aws-chunked, good for a control: unsigned and signed, with and without trailer"):
        for number, response in enumerate((unsigned("c0", unsigned_chunks(content, [("x-amz-checksum-crc32", crc)])), signed("c1"),
                                           signed("c2", trailers=[("x-amz-checksum-crc32", crc)]),
                                           unsigned("c3", unsigned_chunks(content, [("x-amz-checksum-crc32", crc)], 8191)))):
            same(response.status, 200, f"status of c{number} ({response})")
            got = raw.call("GET", bad.path(f"c{number}"))
            same((got.body, got.headers.get("content-encoding")), (content, None), f"c{number}")
    cases = [
        ("trailer of another body", ("BadDigest",), lambda key: unsigned(key, unsigned_chunks(content, [("x-amz-checksum-crc32", checksum("crc32", b"other"))]))),
        ("trailer announced but missing", ("MalformedTrailerError", "InvalidRequest", "BadDigest"), lambda key: unsigned(key, unsigned_chunks(content))),
        ("trailer other than announced", ("MalformedTrailerError", "InvalidRequest", "BadDigest"), lambda key: unsigned(key, unsigned_chunks(content, [("x-amz-checksum-sha1", checksum("sha1", content))]))),
        ("trailer beside another x-amz-sdk-checksum-algorithm", ("InvalidRequest",), lambda key: unsigned(key, unsigned_chunks(content, [("x-amz-checksum-crc32", crc)]), **{"x-amz-sdk-checksum-algorithm": "SHA256"})),
        ("decoded length too small", ("IncompleteBody", "InvalidRequest"), lambda key: unsigned(key, unsigned_chunks(content, [("x-amz-checksum-crc32", crc)]), length=len(content) - 1)),
        ("decoded length too large", ("IncompleteBody", "InvalidRequest"), lambda key: unsigned(key, unsigned_chunks(content, [("x-amz-checksum-crc32", crc)]), length=len(content) + 1)),
        ("chunk size that is none", ("InvalidChunkSizeError", "IncompleteBody", "InvalidRequest"), lambda key: unsigned(key, b"zz\r\n" + content)),
        ("chunk size beyond 64 bits", ("InvalidChunkSizeError", "IncompleteBody", "InvalidRequest"), lambda key: unsigned(key, b"f" * 17 + b"\r\n" + content)),
        ("chunk header without end", ("InvalidChunkSizeError", "IncompleteBody", "InvalidRequest"), lambda key: unsigned(key, b"1" * 100_000)),
        ("no last chunk", ("IncompleteBody",), lambda key: unsigned(key, unsigned_chunks(content)[:-5])),
        ("changed byte in a signed chunk", ("SignatureDoesNotMatch",), lambda key: signed(key, lambda body: flip(body, 80 * KIB))),
        ("changed byte in the last signed chunk's signature", ("SignatureDoesNotMatch",), lambda key: signed(key, lambda body: flip(body, len(body) - 10))),
        ("changed signed trailer", ("SignatureDoesNotMatch", "BadDigest", "MalformedTrailerError"), lambda key: signed(key, lambda body: flip(body, len(body) - 10), [("x-amz-checksum-crc32", crc)])),
        ("signed trailer of another body", ("BadDigest",), lambda key: signed(key, trailers=[("x-amz-checksum-crc32", checksum("crc32", b"other"))])),
        ("signed chunks without the last", ("IncompleteBody", "SignatureDoesNotMatch"), lambda key: signed(key, lambda body: body[:-90])),
    ]
    for number, (name, codes, send) in enumerate(cases):
        with step(f"aws-chunked, {name}: {' or '.join(codes)}"):
            response = send(f"broken{number}")
            whole_error(response, 403 if response.code() == "SignatureDoesNotMatch" else 400, *codes)
            bad.gone(f"broken{number}")
    with step("aws-chunked body cut off on the wire leaves nothing"):
        body = unsigned_chunks(content, [("x-amz-checksum-crc32", crc)])
        for kept in (10, 70_000, len(body) - 40, len(body) - 2):
            request = raw.prepare("PUT", bad.path("cutchunk"), payload=UNSIGNED_CHUNKS_TRAILER, headers={
                "content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(len(content)), "x-amz-trailer": "x-amz-checksum-crc32"})
            request.headers["content-length"] = str(len(body))
            cut(raw, request, body[:kept])
            settle(lambda: bad.gone("cutchunk"))


def early_answers(bad):
    raw, step = bad.raw, bad.check.step

    def early(name, status, code, path, **options):
        with step(f"Expect: 100-continue, {name}: {status} {code} without 100 and without the body"):
            request = raw.prepare("PUT", path, payload=UNSIGNED, **options)
            request.headers.update({"content-length": str(100 * MIB), "expect": "100-continue"})
            connection = raw.open_socket(request)
            first = connection.recv(12, 2)  # MSG_PEEK
            expect(b"100" not in first, f"the server says {first!r} before the error")
            whole_error(answer_of(connection), status, code)

    early("wrong secret", 403, "SignatureDoesNotMatch", bad.path("expect"), secret_key="wrong")
    early("missing bucket", 404, "NoSuchBucket", f"/{bad.bucket}-none/k")
    early("long key", 400, "KeyTooLongError", bad.path("k" * 1025))
    with step("Expect: 100-continue, good: 100, then 200"):
        request = raw.prepare("PUT", bad.path("expected"), body=b"body", payload=UNSIGNED)
        request.headers.update({"content-length": "4", "expect": "100-continue"})
        connection = raw.open_socket(request)
        interim = connection.recv(100)
        expect(interim.startswith(b"HTTP/1.1 100"), f"{interim!r} and not 100")
        connection.sendall(b"body")
        same(answer_of(connection).status, 200, "status")
        same(raw.call("GET", bad.path("expected")).body, b"body", "body")
    with step("early error while the body is being sent: the answer arrives, the next request works"):
        request = raw.prepare("PUT", f"/{bad.bucket}-none/k", body=data(2 * MIB), payload=UNSIGNED)
        whole_error(raw.send(request), 404, "NoSuchBucket")
        same(raw.call("GET", bad.path("there")).body, b"there", "body of the next request")


def garbage(bad):
    raw, step = bad.raw, bad.check.step
    with step("bytes that are not HTTP: refused or closed, and the server goes on"):
        for text in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
                     b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n", b"PUT /b/k HTTP/1.1\r\ncontent-length: -5\r\n\r\n", b"\x00" * 1000):
            connection = socket.create_connection((raw.host, raw.port), timeout=30)
            try:
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                first = connection.recv(4096)
            except TimeoutError:
                raise AssertionError(f"{text[:20]!r}: no answer and not closed in 30 s") from None
            except OSError:
                first = b""  # closed on us while we were sending
            try:
                expect(first == b"" or first.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 5")), f"{text[:20]!r}: {first[:60]!r}")
            finally:
                connection.close()
        same(raw.call("GET", bad.path("there")).body, b"there", "body afterwards")


def flip(body, at):
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1:]


def answer_of(connection):
    answer = http.client.HTTPResponse(connection)
    try:
        answer.begin()
        return read_response(answer)
    finally:
        answer.close()
        connection.close()


def cut(raw, request, part):
    """Sends the head and part of the body, and goes away."""
    connection = raw.open_socket(request)
    try:
        connection.sendall(part)
    finally:
        connection.close()


def settle(check):
    """A server learns of a closed connection a little later; what must not appear must not appear then either."""
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        check()


def main():
    with Check("bad_input") as check:
        bad = Bad(check)
        for group in (authentication, presigned, names, sub_resources, heads, ranges_and_conditions, bodies, xml_documents,
                      multipart, chunked, early_answers, garbage):
            group(bad)


if __name__ == "__main__":
    main()
