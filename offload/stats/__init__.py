"""What was counted by all processes: read from a store, for people and for Prometheus."""

from __future__ import annotations

from offload.stats.estimate import Estimate, estimate
from offload.stats.figures import Figures
from offload.stats.report import Report, report, timeline

__all__ = ("Estimate", "Figures", "Report", "estimate", "report", "timeline")
