"""Print as JSON what this version writes, or what it reads of an earlier version's data.

    python -m tests.golden.produce write REDIS_URL S3_URL
    python -m tests.golden.produce read REDIS_URL


The clock and randomness stand still, so the same code prints the same text. ``written.json`` is
what ``write`` printed when the formats were frozen, and ``stored.json.gz`` all that Redis held.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import time

NOW = 1_700_000_000.0

# Before anything else is imported, which may keep a name of these.
time.time = lambda: NOW
os.urandom = lambda size: b"\x07" * size
random._urandom = os.urandom
socket.gethostname = lambda: "here"
secrets.token_bytes = lambda size=32: b"\x07" * size

# isort: off
import base64  # noqa: E402
import gzip  # noqa: E402
import hashlib  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402
from urllib.parse import parse_qs, unquote, urlsplit  # noqa: E402

import boto3  # noqa: E402
import numpy as np  # noqa: E402
from celery import Celery, chain, chord, group  # noqa: E402
from celery.app.trace import trace_task_ret  # noqa: E402
from kombu.utils.encoding import str_to_bytes  # noqa: E402

import redis  # noqa: E402
from offload import ClassRegistry, Offload, Ref  # noqa: E402
from tests.golden import shapes  # noqa: E402
# isort: on

HERE = Path(__file__).parent
SECRET = "golden, and long enough for a secret"
EARLIER_CLASSES = {
    "Plain": "463180d400370f818f61e38b499403d10532818fefd5f687da259aecc8dfc291",
    "Point": "46df7aa70bf146c0bc1a5525fcc54d64b3a025b9f719af4b53033c8996925c69",
}
"""Hashes of the versions in ``stored.json.gz``, before their computation changed."""
SIGNING_KEY = "hmac:" + base64.b64encode(b"k" * 32).decode()
PREFIX = "golden"
SERIALIZERS = ("json", "pickle", "msgpack", "yaml")
DATE = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+"
SHORTEST = 1000
"""Bytes up to which a value is printed in full; of longer ones, size and SHA-256 are."""


def text() -> str:
    return "golden " * 300


def rows() -> list[dict[str, object]]:
    return [{"id": n, "name": f"row {n}", "price": n / 4} for n in range(60)]


def array() -> np.ndarray:
    return np.arange(1_500_000, dtype=np.uint8).reshape(3, -1)


VALUES = {"text": text, "bytes": lambda: bytes(range(256)) * 8, "rows": rows, "array": array}


def make_app(url: str, serializer: str = "json", **settings: object) -> tuple[Celery, Offload]:
    app = Celery("golden", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        task_serializer=serializer,
        result_serializer=serializer,
        accept_content=["json", "pickle", "msgpack", "yaml"],
        result_extended=True,
    )
    offload = Offload(
        app,
        store=url if url.startswith("s3:") else f"{url}?prefix={PREFIX}",
        secret=SECRET,
        threshold=SHORTEST,
        compression="none",
        cache="off",
        stats_interval=3600.0,
        **settings,
    )

    app._local.oid = "golden"  # which contains this process's id in ``reply_to``

    @app.task(name="golden.work", shared=False)
    def work(*args: object, **kwargs: object) -> object:
        return [*args, kwargs.get("rows")]

    return app, offload


def shown(content: bytes, *, whole: bool = False) -> object:
    if len(content) > SHORTEST and not whole:
        return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def refs(url: str) -> dict[str, object]:
    """Return the wire text of references to several values."""
    _, offload = make_app(url)
    return {name: offload.put(make(), retention=3600.0).wire for name, make in VALUES.items()}


def dump(client: redis.Redis) -> dict[str, object]:
    """Return every key with its type, value, and lifetime in hours (None: forever)."""
    found: dict[str, object] = {}
    for key in sorted(client.scan_iter(count=1000)):
        kind = client.type(key).decode()
        if kind == "string":
            value = shown(client.get(key))
        elif kind == "hash":
            value = {k.decode(): shown(v) for k, v in sorted(client.hgetall(key).items())}
        elif kind == "zset":  # of holders, with their expiry
            seconds, micros = client.time()
            now = seconds + micros / 1e6
            value = {
                member.decode(): round((score / 1000 - now) / 3600, 1)
                for member, score in client.zrange(key, 0, -1, withscores=True)
            }
        else:
            value = sorted(map(repr, client.smembers(key)))
        left = client.pttl(key)
        hours = None if left < 0 else round(left / 3.6e6, 1)
        found[key.decode(errors="backslashreplace")] = [kind, value, hours]
    return found


def messages(url: str) -> dict[str, object]:
    """Return headers and bodies of messages in every serializer, and of Celery's canvases."""
    found = {}
    for serializer in SERIALIZERS:
        app, _ = make_app(url, serializer)
        work = app.tasks["golden.work"]
        work.apply_async((text(), 7), {"rows": rows()}, task_id=f"call-{serializer}")
        if serializer == "json":
            chain(step(work, 1), step(work, 2)).apply_async()
            work.apply_async((1,), link=step(work, 3), link_error=step(work, 4), task_id="linked")
            chord(group(step(work, 5), step(work, 6)), step(work, 7)).apply_async()
        found[serializer] = [
            [*envelope(message), shown(body_of(message), whole=True)] for message in take(app)
        ]
    return found


def short(url: str) -> dict[str, object]:
    """Return messages with short references in every serializer."""
    found: dict[str, object] = {}
    for serializer in SERIALIZERS:
        app, _ = make_app(url, serializer, short_refs=True)
        work = app.tasks["golden.work"]
        work.apply_async((text(), 7), {"rows": rows()}, task_id=f"short-{serializer}")
        if serializer == "json":
            work.apply_async(
                (array(), 1), link=step(work, 3), link_error=step(work, 4), task_id="array"
            )
        found[serializer] = [
            [*envelope(message), shown(body_of(message), whole=True)] for message in take(app)
        ]
    return found


def step(work: Any, number: int) -> Any:
    return work.si(rows(), number).set(task_id=f"step-{number}")


def take(app: Celery) -> Iterator[Any]:
    """Yield the messages in the broker."""
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        while message := queue.get():
            message.ack()
            yield message


def envelope(message: Any) -> tuple[object, str, str]:
    headers = {key: value for key, value in message.headers.items() if key != "origin"}
    return headers, message.content_type, message.content_encoding


def body_of(message: Any) -> bytes:
    return message.body.encode() if isinstance(message.body, str) else message.body


def execute(app: Celery, headers: Any, content_type: str, encoding: str, body: object) -> None:
    """Run a task like a worker that received its message."""
    name = headers["offload"].get("task", headers["task"])
    request = {**headers, "task": name, "delivery_info": {"exchange": ""}, "hostname": "here"}
    trace_task_ret(name, headers["id"], request, body, content_type, encoding, app=app)


def results(url: str) -> dict[str, object]:
    """Return what a key-value result backend holds for a large result."""
    found = {}
    for serializer in ("json", "pickle"):
        app, _ = make_app(url, serializer)
        app.tasks["golden.work"].apply_async((text(), 7), task_id=f"done-{serializer}")
        for message in take(app):
            execute(app, *envelope(message), message.body)
        row = app.backend.get(app.backend.get_key_for_task(f"done-{serializer}"))
        found[serializer] = shown(
            re.sub(DATE, b"2023-11-14T22:13:20.000000", str_to_bytes(row)), whole=True
        )
    return found


def classes(url: str) -> dict[str, object]:
    """Return hashes, and what is stored of a signed version, on this version of Python."""
    _, offload = make_app(url, code="trusted", signing_key=SIGNING_KEY)
    registry: ClassRegistry = offload.classes
    found: dict[str, object] = {}
    shapes.__file__ = "tests/golden/shapes.py"  # is pickled, and differs between checkouts
    for shape in (shapes.Point, shapes.Plain):
        registry.register(shape)
        found[shape.__name__] = registry.push(shape)
    return found


def s3(url: str) -> dict[str, object]:
    """Return every object that references write to a bucket, with its metadata."""
    refs(url)
    address = urlsplit(url)
    query = parse_qs(address.query)
    client = boto3.client(
        "s3",
        endpoint_url=query["endpoint_url"][0],
        region_name="us-east-1",
        aws_access_key_id=address.username,
        aws_secret_access_key=unquote(address.password),
    )
    found: dict[str, object] = {}
    for listed in client.list_objects_v2(Bucket=address.hostname, Prefix=address.path.strip("/"))[
        "Contents"
    ]:
        got = client.get_object(Bucket=address.hostname, Key=listed["Key"])
        found[listed["Key"]] = [shown(got["Body"].read()), got["Metadata"]]
    return found


def connect(url: str) -> redis.Redis:
    address = urlsplit(url)
    return redis.Redis(address.hostname, address.port, db=int(address.path.strip("/") or 0))


def write(url: str, s3_url: str) -> dict[str, object]:
    client = connect(url)
    written: dict[str, object] = {}
    for part in (refs, messages, results, classes):
        client.flushdb()
        written[part.__name__] = part(url)
        written[f"redis after {part.__name__}"] = dump(client)
    return {**written, "s3": s3(s3_url), "short": short(url)}


def store(url: str) -> None:
    """Write ``stored.json.gz``: the strings in Redis after everything was written."""
    client = connect(url)
    client.flushdb()
    for part in (refs, messages, results, classes):
        part(url)
    stored = {
        key.decode(): base64.b64encode(client.get(key)).decode()
        for key in sorted(client.scan_iter(count=1000))
        if client.type(key) == b"string"
    }
    (HERE / "stored.json.gz").write_bytes(gzip.compress(json.dumps(stored).encode(), mtime=0))


def read(url: str) -> dict[str, object]:
    """Read what an earlier version wrote; return which values arrived."""
    client = connect(url)
    client.flushdb()
    for key, value in json.loads(gzip.decompress((HERE / "stored.json.gz").read_bytes())).items():
        client.set(key, base64.b64decode(value))
    written = json.loads((HERE / "written.json").read_text())
    return {
        "refs": {name: read_ref(url, name, wire) for name, wire in written["refs"].items()},
        "messages": {
            serializer: read_message(url, serializer, *sent[0])
            for serializer, sent in written["messages"].items()
        },
        "short": {
            serializer: read_message(url, serializer, *sent[0])
            for serializer, sent in written["short"].items()
        },
        "results": {
            serializer: read_result(url, serializer, row)
            for serializer, row in written["results"].items()
        },
        "classes": {
            name: read_class(url, name, code_hash) for name, code_hash in EARLIER_CLASSES.items()
        }
        if sys.version_info[:2] == (3, 11)  # whose bytecode they are
        else {},
    }


def read_ref(url: str, name: str, wire: str) -> bool:
    _, offload = make_app(url)
    return bool(np.array_equal(offload.get(Ref.unbound(wire)), VALUES[name]()))


def read_message(
    url: str, serializer: str, headers: Any, content_type: str, encoding: str, body: object
) -> bool:
    app, _ = make_app(url, serializer)
    execute(app, headers, content_type, encoding, content(body))
    return app.AsyncResult(headers["id"]).get(timeout=10) == [text(), 7, rows()]


def read_result(url: str, serializer: str, row: object) -> bool:
    app, _ = make_app(url, serializer)
    task_id = f"done-{serializer}"
    app.backend.set(app.backend.get_key_for_task(task_id), content(row))
    return app.AsyncResult(task_id).get(timeout=10) == [text(), 7, None]


def read_class(url: str, name: str, code_hash: str) -> bool:
    _, offload = make_app(url, code="trusted", signing_key=SIGNING_KEY)
    pulled = offload.classes.pull(f"tests.golden.shapes.{name}", code_hash)
    made = pulled(1, 2).moved(9).x if name == "Point" else pulled().first
    return made == {"Point": shapes.LIMIT, "Plain": "a"}[name]


def content(shown: Any) -> bytes:
    return shown.encode() if isinstance(shown, str) else base64.b64decode(shown["base64"])


if __name__ == "__main__":
    json.dump(globals()[sys.argv[1]](*sys.argv[2:]), sys.stdout, indent=1, sort_keys=True)
