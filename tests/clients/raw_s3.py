"""S3 over bare HTTP: SigV4, aws-chunked bodies and checksums written out here, so that a test can break each of them.

Nothing here retries, normalises or hides an answer. The signing follows "Signature Version 4 signing process" and
"Signature calculations for the Authorization header: transferring payload in multiple chunks" of the S3 API reference.
"""

import base64
import hashlib
import hmac
import http.client
import socket
import urllib.parse
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
UNSIGNED = "UNSIGNED-PAYLOAD"
SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_CHUNKS_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
TIMEOUT_SECONDS = 60


def _table(polynomial):
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ polynomial if byte & 1 else byte >> 1
        table.append(byte)
    return table


_CRC32C = _table(0x82F63B78)
_CRC64NVME = _table(0x9A6C9329AC4BC9B5)


def _reflected_crc(table, bits, data):
    ones = (1 << bits) - 1
    crc = ones
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return (crc ^ ones).to_bytes(bits // 8, "big")


def checksum(algorithm, data):
    """The value of `x-amz-checksum-<algorithm>` for `data`."""
    raw = {
        "crc32": lambda: zlib.crc32(data).to_bytes(4, "big"),
        "crc32c": lambda: _reflected_crc(_CRC32C, 32, data),
        "crc64nvme": lambda: _reflected_crc(_CRC64NVME, 64, data),
        "sha1": lambda: hashlib.sha1(data).digest(),
        "sha256": lambda: hashlib.sha256(data).digest(),
    }[algorithm]()
    return base64.b64encode(raw).decode()


def content_md5(data):
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def quote(text, safe="-_.~"):
    return urllib.parse.quote(text, safe=safe)


def _hmac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signing_key(secret, day, region):
    key = ("AWS4" + secret).encode()
    for part in (day, region, "s3", "aws4_request"):
        key = _hmac(key, part)
    return key


@dataclass
class Response:
    status: int
    headers: dict
    body: bytes

    def xml(self):
        """The root element with the namespace taken off every tag."""
        root = ElementTree.fromstring(self.body)
        for element in root.iter():
            element.tag = element.tag.rsplit("}", 1)[-1]
        return root

    def code(self):
        """The S3 error code, or None if the body is not an error document."""
        try:
            root = self.xml()
        except ElementTree.ParseError:
            return None
        return root.findtext("Code") if root.tag == "Error" else None

    def __str__(self):
        return f"{self.status} {self.code() or ''} {self.body[:200]!r}".strip()


@dataclass
class Request:
    """A request before it goes out; a test changes any field after signing."""

    method: str
    target: str
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    signature: str = ""
    key: bytes = b""
    scope: str = ""
    stamp: str = ""


class S3:
    def __init__(self, endpoint, access_key, secret_key, region="us-east-1"):
        url = urllib.parse.urlsplit(endpoint)
        if url.scheme != "http":
            raise ValueError(f"the raw client speaks plain http only, not {endpoint}")
        self.host, self.port = url.hostname, url.port or 80
        self.access_key, self.secret_key, self.region = access_key, secret_key, region

    def host_header(self):
        return self.host if self.port == 80 else f"{self.host}:{self.port}"

    def prepare(self, method, path, query=(), headers=None, body=b"", *, payload=None, now=None, access_key=None,
                secret_key=None, region=None):
        """Signs a request. `path` is raw: what is given is what is sent; `query` is pairs of plain text."""
        now = now or datetime.now(timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        region = region or self.region
        payload = payload or hashlib.sha256(body).hexdigest()
        out = {"host": self.host_header(), "x-amz-date": stamp, "x-amz-content-sha256": payload}
        out.update({name.lower(): value for name, value in (headers or {}).items()})
        signed = sorted(name for name in out if name not in ("content-length", "expect", "transfer-encoding"))
        pairs = sorted((quote(name), quote(value)) for name, value in query)
        canonical_query = "&".join(f"{name}={value}" for name, value in pairs)
        canonical = "\n".join([
            method, path, canonical_query,
            "".join(f"{name}:{' '.join(out[name].split())}\n" for name in signed), ";".join(signed), payload,
        ])
        scope = f"{day}/{region}/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = signing_key(secret_key or self.secret_key, day, region)
        signature = _hmac(key, to_sign).hex()
        out["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={access_key or self.access_key}/{scope}, "
            f"SignedHeaders={';'.join(signed)}, Signature={signature}"
        )
        target = path + ("?" + canonical_query if pairs else "")
        return Request(method, target, out, body, signature, key, scope, stamp)

    def presign(self, method, path, query=(), *, expires=300, now=None, access_key=None):
        """The path and query of a presigned URL."""
        now = now or datetime.now(timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        scope = f"{day}/{self.region}/s3/aws4_request"
        pairs = list(query) + [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"), ("X-Amz-Credential", f"{access_key or self.access_key}/{scope}"),
            ("X-Amz-Date", stamp), ("X-Amz-Expires", str(expires)), ("X-Amz-SignedHeaders", "host"),
        ]
        canonical_query = "&".join(f"{n}={v}" for n, v in sorted((quote(n), quote(v)) for n, v in pairs))
        canonical = "\n".join([method, path, canonical_query, f"host:{self.host_header()}\n", "host", UNSIGNED])
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = _hmac(signing_key(self.secret_key, day, self.region), to_sign).hex()
        return f"{path}?{canonical_query}&X-Amz-Signature={signature}"

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_SECONDS)

    def send(self, request):
        connection = self.connect()
        try:
            connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
            headers = dict(request.headers)
            if request.body or request.method in ("PUT", "POST"):
                headers.setdefault("content-length", str(len(request.body)))
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            if request.body:
                try:
                    connection.send(request.body)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # an early answer may be waiting
            return read_response(connection.getresponse())
        finally:
            connection.close()

    def call(self, method, path, query=(), headers=None, body=b"", **options):
        return self.send(self.prepare(method, path, query, headers, body, **options))

    def open_socket(self, request):
        """Sends the head of `request` exactly as its fields say, and returns the socket."""
        head = f"{request.method} {request.target} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in request.headers.items()) + "\r\n"
        connection = socket.create_connection((self.host, self.port), timeout=TIMEOUT_SECONDS)
        connection.sendall(head.encode())
        return connection

    def create_bucket(self, bucket):
        response = self.call("PUT", f"/{bucket}")
        if response.status != 200:
            raise RuntimeError(f"cannot create bucket {bucket}: {response}")

    def list_keys(self, bucket, prefix=""):
        keys, token = [], None
        while True:
            query = [("list-type", "2"), ("encoding-type", "url"), ("prefix", prefix)]
            if token:
                query.append(("continuation-token", token))
            response = self.call("GET", f"/{bucket}", query)
            if response.status != 200:
                raise RuntimeError(f"cannot list {bucket}: {response}")
            root = response.xml()
            keys += [urllib.parse.unquote_plus(item.findtext("Key")) for item in root.iter("Contents")]
            token = root.findtext("NextContinuationToken")
            if root.findtext("IsTruncated") != "true" or not token:
                return keys

    def remove_bucket(self, bucket):
        """Takes away everything in the bucket, unfinished uploads too, and the bucket."""
        uploads = self.call("GET", f"/{bucket}", [("uploads", "")])
        if uploads.status == 404:
            return
        if uploads.status == 200:
            for upload in uploads.xml().iter("Upload"):
                path = f"/{bucket}/{quote(upload.findtext('Key'), '-_.~/')}"
                self.call("DELETE", path, [("uploadId", upload.findtext("UploadId"))])
        for key in self.list_keys(bucket):
            self.call("DELETE", f"/{bucket}/{quote(key, '-_.~/')}")
        response = self.call("DELETE", f"/{bucket}")
        if response.status not in (204, 404):
            raise RuntimeError(f"cannot delete bucket {bucket}: {response}")


def read_response(response):
    return Response(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())


def unsigned_chunks(data, trailers=(), chunk_bytes=65536):
    """The aws-chunked body of STREAMING-UNSIGNED-PAYLOAD-TRAILER."""
    out = bytearray()
    for start in range(0, len(data), chunk_bytes):
        chunk = data[start:start + chunk_bytes]
        out += b"%x\r\n%s\r\n" % (len(chunk), chunk)
    out += b"0\r\n"
    for name, value in trailers:
        out += f"{name}:{value}\r\n".encode()
    return bytes(out + b"\r\n")


def signed_chunks(request, data, trailers=None, chunk_bytes=65536):
    """The aws-chunked body whose chunks continue the signature of `request`; with `trailers` they are signed too."""
    previous, out = request.signature, bytearray()
    for start in list(range(0, len(data), chunk_bytes)) + [len(data)]:
        chunk = data[start:start + chunk_bytes] if start < len(data) else b""
        to_sign = "\n".join(["AWS4-HMAC-SHA256-PAYLOAD", request.stamp, request.scope, previous, EMPTY_SHA256,
                             hashlib.sha256(chunk).hexdigest()])
        previous = _hmac(request.key, to_sign).hex()
        out += f"{len(chunk):x};chunk-signature={previous}\r\n".encode()
        if chunk or trailers is None:
            out += chunk + b"\r\n"
    if trailers is not None:
        text = "".join(f"{name}:{value}\n" for name, value in trailers)
        to_sign = "\n".join(["AWS4-HMAC-SHA256-TRAILER", request.stamp, request.scope, previous,
                             hashlib.sha256(text.encode()).hexdigest()])
        signature = _hmac(request.key, to_sign).hex()
        out += "".join(f"{name}:{value}\r\n" for name, value in trailers).encode()
        out += f"x-amz-trailer-signature:{signature}\r\n\r\n".encode()
    return bytes(out)


def minutes_ago(minutes):
    return datetime.now(timezone.utc) - timedelta(minutes=minutes)


assert checksum("crc32c", b"123456789") == base64.b64encode(bytes.fromhex("e3069283")).decode()
assert checksum("crc64nvme", b"123456789") == base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode()
