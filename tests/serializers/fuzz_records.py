"""Samples of the records in stores and messages, with their decoders."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from types import SimpleNamespace
from urllib.parse import urlencode

from offload.catalog import records as catalog
from offload.catalog.journal import Entry, Journal, _checksum
from offload.catalog.names import name_pointer, record_pointer
from offload.classes.versions import Record as ClassRecord
from offload.classes.versions import Signature, _split
from offload.content.encoding import read_blob
from offload.digest import digest_of
from offload.encryption.blobs import BlobCipher
from offload.encryption.keys import Keyring
from offload.encryption.sealing import open_sealed, seal
from offload.errors import OffloadError
from offload.hooks.message import Note, refs_to_prefetch, restore_refs, waits_of
from offload.hooks.options import TaskFacts
from offload.hooks.short import expand
from offload.memo import records as memo
from offload.ref import Keys, Ref
from offload.stores.bases import Record as Seen
from offload.stores.bases import _parse
from offload.text import human_size, human_time

KEYS = Keys([b"k" * 32])
RING = Keyring([f"aes256:{base64.b64encode(bytes(32)).decode()}"])
DIGEST = digest_of([b"content"])
POINTER = record_pointer("default", "a", "1")
STATE = name_pointer("default", "a")
ALSO = KEYS.sign(
    digest=DIGEST, data=None, size=9, serializer="raw", type="str", created=1.0, until=2.0
).wire


def text_of(node):
    return json.dumps(node).encode()


def read_catalog(node):
    unsigned = b"0" * 32 + b" " + text_of(node)
    for decode_it in (
        lambda: catalog.read_record(POINTER, unsigned, None),
        lambda: catalog.read_record(POINTER, catalog.seal(POINTER, node, KEYS), KEYS),
        lambda: catalog.read_state(STATE, catalog.seal(STATE, node, KEYS), KEYS),
    ):
        with suppress(OffloadError):
            found = decode_it()
            repr(found), getattr(found, "_repr_html_", str)()


def read_memo(node):
    name = memo.record_name("t", "s", "k")
    found = memo.read_record(name, b"0 " + text_of(node))
    if found is not None:
        human_time(found.until), human_size(found.size), found.task.startswith("t")


def read_reference(node):
    query = node if isinstance(node, dict) else {"d": str(node)}
    signed = f"offload:1?{urlencode(query)}"
    mac = blake2b(signed.encode(), key=b"k" * 32, digest_size=16, person=b"offload-ref").hexdigest()
    found = KEYS.open(f"{signed}&m={mac}")
    repr(found), found._repr_html_(), human_time(found.until)


def read_note(node):
    parts = {"args": [[1, {"a": 2}]], "kwargs": {"b": 3}, "callbacks": None, "chain": None}
    restore_refs(dict(parts), node)
    refs_to_prefetch(parts["args"], parts["kwargs"], node, TaskFacts())
    waits_of(Note.read(node).holds)


def read_entry(node):
    journal = Journal.__new__(Journal)  # without files
    journal._store, journal._keyring = SimpleNamespace(url="it"), None
    text = json.dumps(node)
    journal._read("journal/1", f"{_checksum(text)} {text}".encode())


def read_lease(node):
    lease = _parse(Seen(text_of(node), 0.0, 0.0))
    assert lease.fence >= 0 <= lease.until


ENTRY = Entry(
    *("default", "a", "1", "1", {"b": 1}, "error", False, "me", 1.0, "0123", True, DIGEST, 9),
    *("raw", "str"),
)
CLASS_RECORD = ClassRecord(
    *("shop.Filter", "0" * 64, DIGEST, 9, "cpython-311", "class", 1.0),
    needs=(("shop.Base", "1" * 64),),
    signature=Signature("key", "00"),
)
CATALOG_RECORD = catalog.Record(
    *("default", "a", "1", "str", 9, 1.0, "me", {"b": [1]}, DIGEST), ref=ALSO, nonce="0123"
)
CATALOG_STATE = catalog.NameState(frozenset({"1", "2"}), {"2": 1.0}, {"production": "1"}, 3)
MEMO_FIELDS = json.loads(
    memo.write_record(memo.Record("memo/t/s/k", "t", "s", ALSO, 1.0, 1, 1.0, 2.0), KEYS).partition(
        b" "
    )[2]
)
REFERENCE = dict(pair.split("=", 1) for pair in ALSO.partition("?")[2].split("&")[:-1])
RECORDS = [
    (
        json.loads(catalog.write_record(CATALOG_RECORD, POINTER, KEYS).partition(b" ")[2]),
        read_catalog,
    ),
    (json.loads(catalog.write_state(CATALOG_STATE, STATE, KEYS).partition(b" ")[2]), read_catalog),
    (MEMO_FIELDS, read_memo),
    ({"format": 1, **asdict(ENTRY)}, read_entry),
    (REFERENCE, read_reference),
    (
        {
            "v": 2,
            "refs": [["args", 0, 1, "a"]],
            "keep": [["kwargs", "b"]],
            "also": [ALSO],
            "until": 9,
            "holds": "task:1+2.3",
            "attempt": 1,
            "call": {"threshold": 5, "memo": 3.0},
        },
        read_note,
    ),
    ({"v": 3, "k": KEYS.fingerprints[0], "refs": [0], "keep": [], "also": ["A" * 99]}, read_note),
    (asdict(CLASS_RECORD), lambda node: ClassRecord.from_bytes(text_of(node), "it")),
    ({"owner": "me", "fence": 5, "until": 9.5}, read_lease),
]
"""Records, each with its decoder."""
SEALED = [
    (seal(b"content", RING.current, "memo", "a"), lambda b: open_sealed(b, RING, "memo", "a")),
    (
        b"".join(map(bytes, BlobCipher(RING).encrypt([b"\0", b"x" * 99], DIGEST, RING.current))),
        lambda b: read_blob(b, DIGEST, 99, "it", BlobCipher(RING)),
    ),
    (b"x" * 300 + text_of(asdict(CLASS_RECORD)), lambda b: _split("it", b)),
    (
        ALSO.encode(),
        lambda b: (
            expand(b.decode("latin-1"), KEYS.fingerprints[0]),
            Ref.unbound(b.decode("latin-1")).shown,
        ),
    ),
]
"""Bytes, and their decoder."""
