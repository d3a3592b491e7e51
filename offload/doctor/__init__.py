"""Diagnostics of an app, its stores, and its workers: see `examine`."""

from __future__ import annotations

from offload.doctor.examination import Examined, examine

__all__ = ("Examined", "examine")
