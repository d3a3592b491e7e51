"""Masks store credentials where Celery shows its configuration.

``celery report`` and ``inspect conf`` mask what Celery knows: passwords in the broker's and the
backend's URL, and settings named like secrets, as ours of keys are. Store URLs are unknown to it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from celery.app import utils

from offload.stores.url import shown_url

__all__ = ("install",)

_PATCH = "_offload_original"
_NAME = "filter_hidden_settings"
_MASK = "********"
_STORE = re.compile(r"(?:.*_)?offload_store", re.IGNORECASE)
_OPTIONS = re.compile(r"(?:.*_)?offload_store_options", re.IGNORECASE)


def install() -> None:
    """Extend Celery's filter of settings to mask offload's; once per process."""
    original = getattr(utils, _NAME)
    if hasattr(original, _PATCH):
        return

    @functools.wraps(original)
    def filter_hidden_settings(conf: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _masked(key, value) for key, value in original(conf).items()}

    setattr(filter_hidden_settings, _PATCH, original)
    setattr(utils, _NAME, filter_hidden_settings)


def _masked(key: object, value: Any) -> Any:
    if not isinstance(key, str) or value is None:
        return value
    if _OPTIONS.fullmatch(key):
        return _MASK
    if _STORE.fullmatch(key):
        return [shown_url(url) for url in value] if _is_list(value) else shown_url(value)
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
