"""Large answers are received as they are, however they arrive."""

from __future__ import annotations

import random
import socket
import threading

import pytest
from redis import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from offload.stores import open_store
from offload.stores.redis.reader import PARSER
from offload.testing.store import HOUR, blobs, contents

LARGE = random.Random(1).randbytes(700_000)


def bulk(content):
    return b"$%d\r\n%b\r\n" % (len(content), content)


@pytest.fixture
def line():
    """A connection with our parser, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    connection = Connection(parser_class=PARSER, socket_read_size=1 << 16)
    connection._sock = ours
    connection._parser.on_connect(connection)
    yield connection, theirs
    theirs.close()
    connection.disconnect()


def send(line, data, pieces=()):
    """Send from a thread; it ends when all is taken."""
    connection, theirs = line

    def run():
        at = 0
        for size in (*pieces, len(data)):
            theirs.sendall(data[at : at + size])
            at += size

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return connection


@pytest.mark.parametrize("pieces", ((), (1,), (3, 1), (9,), (10, 64), (65_536,), (700_009, 1)))
def test_a_large_string_arrives_whole(line, pieces):
    connection = send(line, bulk(LARGE), pieces)

    assert bytes(connection.read_response()) == LARGE


def test_answers_of_all_kinds_follow_each_other(line):
    data = b"".join(
        (b"+OK\r\n", bulk(LARGE), b":7\r\n", b"$-1\r\n", bulk(LARGE[:5]), bulk(LARGE), b"*0\r\n")
    )
    connection = send(line, data)

    answers = [connection.read_response() for _ in range(7)]

    answers = [bytes(a) if isinstance(a, memoryview) else a for a in answers]
    assert answers == [b"OK", LARGE, 7, None, LARGE[:5], LARGE, []]


def test_large_strings_that_follow_each_other_are_their_own(line):
    other = LARGE[::-1]
    connection = send(line, bulk(LARGE) + bulk(other))

    first, second = connection.read_response(), connection.read_response()

    assert (bytes(first), bytes(second)) == (LARGE, other)
    assert isinstance(first, memoryview), "it was not copied by hiredis"


def test_an_error_is_an_error(line):
    connection = send(line, b"-ERR no\r\n")

    with pytest.raises(ResponseError, match="no"):
        connection.read_response()


def test_a_line_that_ends_half_way_is_an_error(line):
    connection = send(line, bulk(LARGE)[:600_000])
    threading.Timer(0.2, line[1].shutdown, (socket.SHUT_RDWR,)).start()

    with pytest.raises(RedisConnectionError):
        connection.read_response()


def test_a_string_of_another_length_is_refused(line):
    connection = send(line, b"$%d\r\n%b" % (len(LARGE) - 2, LARGE))

    with pytest.raises(InvalidResponse):
        connection.read_response()


def test_what_a_server_claims_is_not_reserved(line):
    connection, theirs = line
    theirs.sendall(b"$99999999999\r\nx")
    theirs.close()

    with pytest.raises(RedisConnectionError):
        connection.read_response()


@pytest.mark.server
@pytest.mark.parametrize("form", ("redis", "redis_tls", "sentinel", "cluster"))
def test_large_blobs_come_back_in_every_form(request, form):
    store = open_store(request.getfixturevalue(form).url)
    try:
        large = blobs(6, 4_000_000)
        store.blobs.put(large, HOUR)

        assert contents(store, large, 1 << 23) == [content for (content,) in large.values()]
    finally:
        store.close()
