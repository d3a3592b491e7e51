"""Classes in values: which go by name and hash, and where those come from."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

from offload.registry.imported import importer, resolve
from offload.registry.pickling import Pair, cached_by, loading, reduce_cached, reduce_pair
from offload.registry.policy import OFF
from offload.registry.registry import ClassRegistry

__all__ = ("Shipping",)


class Shipping:
    """What serializers ask of a registry; see `offload.serializers.base.Code`."""

    def __init__(self, registry: ClassRegistry) -> None:
        self._registry = registry

    def shipped(self, obj: Any) -> Pair | None:
        registry = self._registry
        if registry.policy.mode == OFF or not registry.ships(obj):
            return None
        if not registry.can_push and not registry.claims(obj):
            return None  # as ever: a worker without a key may make classes within its functions
        return registry.ship(obj)

    def claims(self, kind: type) -> bool:
        registry = self._registry
        return registry.policy.mode != OFF and registry.claims(kind)

    def importer(self, obj: Any) -> Any:
        return importer(obj)

    def imported(self, getter: Any) -> Any:
        return resolve(getter)

    def advice(self, kind: type) -> str:
        package = kind.__module__.partition(".")[0]
        if self._registry.policy.mode == OFF or package in sys.stdlib_module_names:
            return ""
        return f"register it: offload.classes.register({kind.__module__})"

    def reduced(self, obj: Any) -> tuple[Any, ...] | None:
        if isinstance(obj, (type, FunctionType)):
            pair = self.shipped(obj)
            return None if pair is None else reduce_pair(pair)
        wrapped = cached_by(obj)
        return None if wrapped is None or self.shipped(wrapped) is None else reduce_cached(obj)

    def named_in(self, pickled: bytes) -> bool:
        registry = self._registry
        return registry.policy.mode != OFF and any(
            module.encode() in pickled for module in registry.shipped_modules
        )

    @property
    def may_load(self) -> bool:
        return self._registry.policy.mode != OFF

    def check_name(self, name: str, code_hash: str) -> None:
        self._registry.check_name(name, code_hash)

    def is_version(self, cls: type) -> bool:
        return self._registry.is_version(cls)

    def load(self, name: str, code_hash: str) -> Any:
        return self._registry.load(name, code_hash)

    def loading(self) -> AbstractContextManager[None]:
        return loading(self._registry)
