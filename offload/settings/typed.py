"""Settings and options as dicts, for type checkers and editors.

They have the same names as `Settings` and `TaskOptions`, which check values at run time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, Union

from offload.settings.options import TaskOptions
from offload.settings.settings import RetryPolicy
from offload.settings.units import Duration, Size

_Key = Union[str, "os.PathLike[str]", Callable[[], Union[str, bytes]]]


class RetryDict(TypedDict, total=False):
    """``offload_retry``; see `RetryPolicy`."""

    max_retries: int
    interval_start: Duration
    interval_step: Duration
    interval_max: Duration


class SettingsDict(TypedDict, total=False):
    """What `offload.Offload` takes by keyword; see `Settings`."""

    store: str | Sequence[str] | None
    store_options: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    tier_sizes: Size | Sequence[Size]
    mode: Literal["on", "observe", "off"]
    threshold: Size
    message_limit: Size | Literal["auto"]
    results: bool
    inline: Sequence[str] | set[str] | frozenset[str]
    max_size: Size
    retention: Duration | None
    grace: Duration
    retry: RetryPolicy | RetryDict
    on_outage: Literal["raise", "inline"]
    inline_limit: Size
    accept: Sequence[str] | set[str] | frozenset[str]
    types: Sequence[str]
    secret: str | Sequence[str]
    encryption_keys: _Key | Sequence[_Key]
    encryption: Literal["optional", "required"]
    short_refs: bool
    compression: Literal["auto", "zstd", "none"]
    memo_size: Size
    stats_interval: Duration
    cache: str | os.PathLike[str]
    cache_size: Size
    cache_write: Literal["auto", "on", "off"]
    cache_plain: bool
    prefetch: Literal["auto", "on", "off"]
    verify: Literal["none", "entry", "always"]
    code: Literal["off", "signed", "trusted"]
    code_allow: Sequence[str]
    signing_key: str | os.PathLike[str] | None
    verify_keys: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
    ship_source: bool


class CallDict(TypedDict, total=False):
    """Options of one call, ``apply_async(offload={…})``; see `TaskOptions`."""

    enabled: bool
    inline: Sequence[str]
    results: bool
    threshold: Size
    retention: Duration
    memo: bool | Duration
    memo_scope: str
    wait: Literal["requeue", "block"]


class TaskDict(CallDict, total=False):
    """Options of a task, ``@app.task(offload={…})``; see `TaskOptions`."""

    version: str
    memo_ignore: Sequence[str]
    memo_key: Callable[[dict[str, Any]], Any]
    memo_lease: Duration
    save_as: str


TaskGiven = Union[TaskDict, TaskOptions, bool]
