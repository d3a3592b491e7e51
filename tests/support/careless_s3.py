"""An S3 server that ignores conditions, as some do, and whose clock can be wrong."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

HOST = "127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        kept = {k: v for k, v in self.headers.items() if k.lower().startswith("x-amz-meta-")}
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        self.server.objects[self.key] = (body, etag, self.server.now(), kept)
        self.answer(200, ETag=etag)

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "lifecycle" in query:
            self.error("NoSuchLifecycleConfiguration")
        elif "list-type" in query:
            (prefix,) = query["prefix"]
            keys = [key for key in self.server.objects if key.startswith(prefix)]
            listed = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in keys)
            self.answer(200, f"<ListBucketResult>{listed}</ListBucketResult>".encode())
        else:
            self.give()

    def do_HEAD(self):
        self.give()

    def do_DELETE(self):
        self.server.objects.pop(self.key, None)
        self.answer(204)

    def do_POST(self):  # deletes several
        body = self.rfile.read(int(self.headers["Content-Length"]))
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()
        if self.server.needs_md5 and self.headers["Content-MD5"] != digest:
            self.error("InvalidDigest" if "Content-MD5" in self.headers else "InvalidRequest", 400)
            return
        text = body.decode()
        for part in text.split("<Key>")[1:]:
            self.server.objects.pop(part.partition("</Key>")[0], None)
        self.answer(200, b"<DeleteResult/>")

    @property
    def key(self):
        return unquote(urlsplit(self.path).path).split("/", 2)[2]

    def give(self):
        if self.key not in self.server.objects:
            self.error("NoSuchKey")
            return
        body, etag, modified, kept = self.server.objects[self.key]
        self.answer(
            200, body, ETag=etag, **{"Last-Modified": formatdate(modified, usegmt=True)}, **kept
        )

    def error(self, code, status=404):
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def date_time_string(self, timestamp=None):
        return formatdate(self.server.now(), usegmt=True)

    def log_message(self, *args):
        pass


@contextmanager
def careless_s3(ahead=0.0, *, needs_md5=False):
    """Serve on a free port and yield a store's URL.

    The clock is *ahead* seconds of this machine's. With *needs_md5*, several objects are only
    deleted by a request with Content-MD5.
    """
    server = ThreadingHTTPServer((HOST, 0), Handler)
    server.daemon_threads = True
    server.objects = {}
    server.needs_md5 = needs_md5
    server.now = lambda: time.time() + ahead
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        port = server.server_address[1]
        yield f"s3://key:secret@bucket/pre?endpoint_url=http://{HOST}:{port}&region=here"
    finally:
        server.shutdown()
        server.server_close()
