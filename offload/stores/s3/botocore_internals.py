"""botocore: partly documented parameters and events of its clients.

`tests/stores/test_botocore_internals.py` checks that against the installed botocore.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from botocore.loaders import create_loader
from botocore.session import get_session


def botocore_session() -> Any:
    """Return a new session, which shares only the data in botocore's files.

    Sessions are not made for several threads. Reading these files takes 70 ms of 80.
    """
    session = get_session()
    session.register_component("data_loader", _loader())
    return session


@cache
def _loader() -> Any:
    return create_loader(get_session().get_config_variable("data_path"))


def handle_before_call(client: Any, handler: Any, operation: str = "") -> None:
    """Have *handler* called with each request's ``params`` after botocore's own handlers.

    *operation*: only with those of ``.DeleteObjects``, for example.
    """
    client.meta.events.register_last(f"before-call.s3{operation}", handler)
