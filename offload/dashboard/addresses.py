"""Paths of requests: the dashboard's root, and the path below it."""

from __future__ import annotations

from starlette.types import Scope

__all__ = ("HEALTH", "path_of", "root_of")

HEALTH = "/healthz"
"""The path of the health check, which needs no authentication."""


def root_of(scope: Scope) -> str:
    """Return the path at which the dashboard is mounted; "" at the root."""
    return str(scope.get("root_path", ""))


def path_of(scope: Scope) -> str:
    """Return the routed path below the root.

    Starlette's ``request.url`` contains the Host header, which the client chooses: in some
    versions, ``Host: x/healthz?`` changed the path of every page.
    """
    return str(scope["path"]).removeprefix(root_of(scope)) or "/"
