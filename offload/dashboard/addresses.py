"""Which page is asked for."""

from __future__ import annotations

from starlette.types import Scope

__all__ = ("HEALTH", "path_of", "root_of")

HEALTH = "/healthz"
"""Where it says to everybody that it is alive."""


def root_of(scope: Scope) -> str:
    """Return the path that the dashboard is mounted at; "" if at none."""
    return str(scope.get("root_path", ""))


def path_of(scope: Scope) -> str:
    """Return the path below that, as it is routed.

    Starlette's ``request.url`` is made with the Host header, whose text a client chooses: up to
    some version ``Host: x/healthz?`` made every page one of another path.
    """
    return str(scope["path"]).removeprefix(root_of(scope)) or "/"
