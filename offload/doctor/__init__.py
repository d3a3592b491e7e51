"""Diagnostics for an app, its stores, and its workers: see `examine` and `round_trip`."""

from __future__ import annotations

from offload.doctor.examination import Examined, examine
from offload.doctor.round_trip import Measured, round_trip

__all__ = ("Examined", "Measured", "examine", "round_trip")
