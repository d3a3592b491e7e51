"""Settings and options: what can be configured."""

from __future__ import annotations

from offload.settings.options import TaskOptions
from offload.settings.settings import RetryPolicy, Settings

__all__ = ("RetryPolicy", "Settings", "TaskOptions")
