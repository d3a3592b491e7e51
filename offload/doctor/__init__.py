"""Looking at an app and its stores for what goes wrong, or will: `examine`."""

from __future__ import annotations

from offload.doctor.examination import Examined, examine

__all__ = ("Examined", "examine")
