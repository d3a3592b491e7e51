"""Content digests."""

from __future__ import annotations

import subprocess
import sys

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from offload.digest import digest_of, parse_digest


def test_is_blake3():
    """The digest of empty input is that published for BLAKE3."""
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert digest_of([]) == digest_of([b""]) == f"b3:{empty}"


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_parts_are_one_content(parts):
    """The digest doesn't depend on the number and type of buffers."""
    whole = digest_of([b"".join(parts)])
    assert digest_of(parts) == whole
    assert digest_of(map(bytearray, parts)) == whole
    assert digest_of([memoryview(part) for part in parts]) == whole


@pytest.mark.parametrize("size", ((1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9 << 20))
def test_threads_do_not_change_the_digest(size):
    """Content large enough for a second thread has the same digest."""
    content = bytes(range(256)) * (size // 256 + 1)
    parts = [content[:1000], memoryview(content)[1000:size]]
    assert digest_of(parts) == "b3:" + blake3(content[:size]).hexdigest()


def test_is_the_same_in_another_process():
    """The digest depends on neither the process nor its hash seed."""
    code = "from offload.digest import digest_of; print(digest_of([b'same']))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert out.stdout.strip() == digest_of([b"same"])


@pytest.mark.parametrize(
    "text",
    ("", "b3:", "b3:" + "0" * 63, "b3:" + "0" * 65, "b3:" + "G" * 64, "b3:" + "A" * 64,
     "sha256:" + "0" * 64, "b3:" + "0" * 64 + "\n",
     "b3:" + "\N{ARABIC-INDIC DIGIT ZERO}" * 64, "../" + "0" * 64),
)  # fmt: skip
def test_only_digests_are_parsed(text):
    """Anything but an exact digest is refused, because it becomes a key or path."""
    with pytest.raises(ValueError, match="not a content digest"):
        parse_digest(text)


def test_a_digest_is_parsed_unchanged():
    """Parsing a valid digest returns it unchanged."""
    digest = digest_of([b"x"])
    assert parse_digest(digest) == digest
