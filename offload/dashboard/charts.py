"""Charts as data for the browser, as tables for everyone, and the script that draws them."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from offload.errors import ConfigurationError
from offload.text import human_time

__all__ = ("Chart", "along_time", "plotly")


@dataclass(frozen=True)
class Chart:
    """Lines or bars over a common x axis.

    Attributes:
        name: on its page.
        title: its caption.
        x: labels, or ISO 8601 times.
        series: numbers by label.
        unit: ``bytes``, ``seconds`` or "" (numbers).
        kind: ``lines`` or ``bars``.
    """

    name: str
    title: str
    x: Sequence[str]
    series: Mapping[str, Sequence[float]]
    unit: str = ""
    kind: str = "lines"

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(any(numbers) for numbers in self.series.values())

    @property
    def data(self) -> dict[str, Any]:
        """The data that the browser draws."""
        return {
            "x": list(self.x),
            "series": [
                {"label": label, "y": list(numbers)} for label, numbers in self.series.items()
            ],
            "unit": self.unit,
            "kind": self.kind,
        }


def along_time(
    name: str,
    title: str,
    times: Sequence[float],
    series: Mapping[str, Sequence[float]],
    **more: Any,
) -> Chart:
    """Return a chart over times (seconds since 1970)."""
    return Chart(name, title, [human_time(at) for at in times], series, **more)


def plotly(request: Request) -> Response:
    """Serve Plotly's script, compressed once (1.4 of 4.8 MB); 304 if the browser has it."""
    content, tag = _compressed()
    headers = {"etag": tag, "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
    else:
        content = gzip.decompress(content)
    return Response(content, headers=headers, media_type="text/javascript")


@lru_cache(maxsize=1)
def _compressed() -> tuple[bytes, str]:
    found = util.find_spec("plotly")  # importing it takes long, and isn't needed
    if found is None or found.origin is None:
        raise ConfigurationError('the dashboard needs Plotly: pip install "offload[dashboard]"')
    script = (Path(found.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    return gzip.compress(script, 6), f'"{hashlib.sha256(script).hexdigest()[:32]}"'
