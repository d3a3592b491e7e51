"""botocore still builds its clients and calls its handlers as stores expect."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from botocore.awsrequest import AWSResponse

from offload.stores.s3.botocore_internals import botocore_session
from offload.stores.s3.client import body_of


@pytest.fixture
def client():
    from offload.stores import open_store

    store = open_store("s3://key:secret@bucket?endpoint_url=http://127.0.0.1:1&region=here")
    yield store.client._clients.get()
    store.close()


def test_botocore_takes_a_shared_loader():
    """botocore's sessions use the loader that is registered as their `data_loader`."""
    first, second = botocore_session(), botocore_session()
    assert first is not second
    assert first.get_component("data_loader") is second.get_component("data_loader")


@pytest.mark.parametrize("size", (0, 1000, 100_000))
def test_botocore_sends_expect_unless_it_is_removed(client, size):
    """botocore lets a handler remove ``Expect``, and sends the pieces of a file-like body
    unchanged.
    """
    sent = []

    def answer(request, **_):
        sent.append(request)
        return AWSResponse(request.url, 200, {}, SimpleNamespace(stream=list))

    client.meta.events.register("before-send.s3.PutObject", answer)
    body = body_of([bytes(size)])
    client.put_object(Bucket="bucket", Key="key", Body=body)
    (request,) = sent
    assert ("Expect" in request.headers) == (size == 100_000)
    assert int(request.headers["Content-Length"]) == size
    if size == 100_000:
        assert request.body is body
