"""Render pages from templates, which escape everything."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from offload.dashboard import forms
from offload.dashboard.addresses import path_of, root_of
from offload.dashboard.state import state_of
from offload.text import (
    UNKNOWN,
    human_duration,
    human_latency,
    human_number,
    human_percent,
    human_ratio,
    human_size,
)

__all__ = ("NAVIGATION", "moment", "render")

NAVIGATION = {
    "/": "Overview",
    "/tasks": "Tasks",
    "/blobs": "Blobs",
    "/classes": "Classes",
    "/stores": "Stores and workers",
    "/estimate": "Estimate",
}
"""Labels of pages in the navigation, by path."""


def render(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """Render a page. *context* contains at least ``title``."""
    page = _TEMPLATES.get_template(template).render(
        root=root_of(request.scope),
        path=path_of(request.scope),
        query=request.query_params,
        navigation=NAVIGATION,
        store=state_of(request).runtime.store.url,
        now=time.time(),
        form_field=forms.FIELD,
        form_token=forms.token_of(request),
        **context,
    )
    # Texts of others may contain lone surrogates, which UTF-8 can't encode.
    answer = HTMLResponse(page.encode("utf-8", "replace"), status)
    forms.sign(request, answer)
    return answer


def moment(at: float | None) -> Markup | str:
    """Return a time that browsers show in their own time zone; "-" for None."""
    if at is None:
        return UNKNOWN
    try:
        utc = datetime.fromtimestamp(at, timezone.utc)
    except (OverflowError, OSError, ValueError):  # it came from a store
        return "?"
    return Markup('<time datetime="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), utc.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


def _link(query: Mapping[str, str], **changed: object) -> str:
    """Return the page's address with changed parameters; None removes one."""
    given = {**query, **changed}
    return "?" + urlencode({name: value for name, value in given.items() if value is not None})


def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("offload.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        moment=moment,
        number=human_number,
        percent=human_percent,
        seconds=human_latency,
        size=human_size,
        span=human_duration,
        times=human_ratio,
        json=lambda value: json.dumps(value, separators=(",", ":")),
    )
    made.globals["link"] = _link
    return made


_TEMPLATES = _templates()
