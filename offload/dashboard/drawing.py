"""The JavaScript that draws charts: it comes with Plotly's package."""

from __future__ import annotations

import gzip
import hashlib
from functools import lru_cache
from importlib import util
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from offload.errors import ConfigurationError

__all__ = ("plotly",)


def plotly(request: Request) -> Response:
    """Answer with it, compressed once (4.8 MB are 1.4), or that the browser has it already."""
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
    found = util.find_spec("plotly")  # it takes long to be imported, and need not be
    if found is None or found.origin is None:
        raise ConfigurationError('the dashboard needs Plotly: pip install "offload[dashboard]"')
    script = (Path(found.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    return gzip.compress(script, 6), f'"{hashlib.sha256(script).hexdigest()[:32]}"'
