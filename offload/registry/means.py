"""What a registry works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from offload.registry.keys import Signer, signer
from offload.registry.policy import Policy
from offload.stores.protocols import Store

__all__ = ("Means",)


@dataclass(frozen=True)
class Means:
    """What a registry works with.

    Attributes:
        policy: what may be loaded.
        signing_key: signs what is pushed; None: nothing does.
        ship_source: whether source is pushed along, and used where the Python is another.
        retrying: calls what may be called twice again while the store is away.
        app: the Celery app that code which is loaded refers to; None: the current one.
    """

    store: Store
    policy: Policy
    signing_key: str | None = field(default=None, repr=False)
    ship_source: bool = False
    retrying: Callable[[Callable[[], Any]], Any] = lambda call: call()
    app: Any = None

    @cached_property
    def signer(self) -> Signer | None:
        """Raises ConfigurationError if the key is none."""
        return None if self.signing_key is None else signer(self.signing_key)
