"""Settings and options: what can be configured."""

from __future__ import annotations

from offload.settings.core import RetryPolicy
from offload.settings.options import TaskOptions
from offload.settings.settings import Settings

__all__ = ("RetryPolicy", "Settings", "TaskOptions")
