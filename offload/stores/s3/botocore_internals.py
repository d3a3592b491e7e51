"""Partly documented parameters and events of botocore's clients.

`tests/stores/test_botocore_internals.py` checks them against the installed botocore.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from botocore.loaders import create_loader
from botocore.session import get_session


def botocore_session() -> Any:
    """Return a new session that shares only the data of botocore's files.

    Sessions aren't thread-safe, and reading these files takes 70 of the 80 ms to create one.
    """
    session = get_session()
    session.register_component("data_loader", _loader())
    return session


@cache
def _loader() -> Any:
    return create_loader(get_session().get_config_variable("data_path"))


def handle_before_call(client: Any, handler: Any, operation: str = "") -> None:
    """Call *handler* with each request's ``params``, after botocore's own handlers.

    Args:
        operation: restricts it to requests of one kind, such as ``.DeleteObjects``.
    """
    client.meta.events.register_last(f"before-call.s3{operation}", handler)
