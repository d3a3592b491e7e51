"""Settings of shipped classes and functions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offload.errors import ConfigurationError
from offload.settings.checks import check_choice, check_flag, check_patterns

__all__ = ("ClassSettings",)

CODES = ("off", "signed", "trusted")


@dataclass(frozen=True)
class ClassSettings:
    """Which classes and functions are shipped, and which a worker loads.

    Attributes:
        code: which classes and functions a worker loads from the store: none (``off``), those
            signed by a key of *verify_keys* (``signed``), or all (``trusted``). Unless it is
            ``off``, classes are also shipped; see `offload.ClassRegistry`.
        code_allow: patterns of their names, optionally with ``@`` and a hash prefix; no others
            are loaded. Default: all.
        signing_key: signs shipped code: ``ed25519:…``, ``hmac:…`` or the path of a PEM file.
        verify_keys: keys whose signatures are accepted, in addition to *signing_key*: such texts,
            or dicts of ``key``, ``name`` and ``until`` (a date).
        ship_source: whether source is shipped along, and used where a version was made by
            another Python version.
    """

    code: str = "off"
    code_allow: tuple[str, ...] = ()
    signing_key: str | None = field(default=None, repr=False)
    verify_keys: tuple[str | Mapping[str, Any], ...] = field(default=(), repr=False)
    ship_source: bool = False

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        check_choice("offload_code", self.code, CODES)
        check_flag("offload_ship_source", self.ship_source)
        put("code_allow", check_patterns("offload_code_allow", self.code_allow))
        if isinstance(self.signing_key, os.PathLike):
            put("signing_key", os.fspath(self.signing_key))
        if self.signing_key is not None and not isinstance(self.signing_key, str):
            raise ConfigurationError("offload_signing_key: ed25519:…, hmac:… or a PEM file's path")
        keys = self.verify_keys
        keys = (keys,) if isinstance(keys, (str, Mapping)) else keys
        if not isinstance(keys, (list, tuple)) or not all(
            isinstance(key, (str, Mapping)) for key in keys
        ):
            raise ConfigurationError("offload_verify_keys: a list of keys, each a text or a dict")
        put("verify_keys", tuple(keys))
        if self.code == "signed" and not keys and self.signing_key is None:
            raise ConfigurationError(
                "offload_code is 'signed', but no key verifies signatures: set "
                "offload_verify_keys (`celery offload classes keygen` makes a pair)"
            )
