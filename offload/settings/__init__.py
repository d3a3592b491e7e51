"""What can be configured."""

from __future__ import annotations

from offload.settings.options import TaskOptions
from offload.settings.retry import RetryPolicy
from offload.settings.settings import Settings

__all__ = ("RetryPolicy", "Settings", "TaskOptions")
