"""Pages of shipped classes: the list, and one class with its versions."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from offload.dashboard.caching import Refreshed
from offload.dashboard.rendering import Column, Table, moment, render
from offload.dashboard.state import Classes, state_of
from offload.inspect.classes import ClassState, VersionState, format_version, short_hash
from offload.text import UNKNOWN, human_number, human_size

_PATIENCE = 3.0  # seconds that the first request waits for data
_NEEDS = 3  # dependencies listed in a row


def _pushed(state: ClassState | VersionState) -> float:
    record = state.latest if isinstance(state, ClassState) else state.record
    return record.created if record is not None else 0.0


def _moment(state: ClassState | VersionState) -> object:
    return moment(_pushed(state) or None)


def _loads(refused: str, *, asked: bool) -> str:
    if not asked:
        return UNKNOWN
    return "no" if refused else "yes"


def _source(state: VersionState) -> int | None:
    return state.record.source_size if state.record and state.record.source else None


def _needs(state: VersionState) -> str:
    needs = state.record.needs if state.record else ()
    named = ", ".join(format_version(*need) for need in needs[:_NEEDS])
    return f"{named} and {len(needs) - _NEEDS} more" if len(needs) > _NEEDS else named or UNKNOWN


_CLASSES: list[Column[ClassState]] = [
    Column(
        "name",
        "Name",
        lambda state: state.name,
        lambda state: state.name,
        wide=True,
        link=lambda state: "/class?" + urlencode({"name": state.name}),
    ),
    Column(
        "latest",
        "Latest",
        lambda state: (
            "broken" if state.broken else short_hash(state.latest.hash) if state.latest else UNKNOWN
        ),
        wide=True,
    ),
    Column(
        "versions",
        "Versions",
        lambda state: human_number(len(state.versions)),
        lambda state: len(state.versions),
    ),
    Column("tags", "Tags", lambda state: ", ".join(state.tags) or UNKNOWN, wide=True),
    Column(
        "status",
        "Status",
        lambda state: state.status or UNKNOWN,
        lambda state: state.status,
        wide=True,
        hint="compares the class registered here with the latest version in the store",
    ),
    Column(
        "loads",
        "Loads here",
        lambda state: _loads(state.refused, asked=state.latest is not None),
        lambda state: bool(state.refused or state.broken),
    ),
    Column(
        "python",
        "Python",
        lambda state: state.latest.python if state.latest else UNKNOWN,
        lambda state: state.latest.python if state.latest else "",
        wide=True,
    ),
    Column("pushed", "Latest since", _moment, _pushed),
    Column(
        "signer",
        "Signed by",
        lambda state: state.signer or UNKNOWN,
        lambda state: state.signer,
        wide=True,
    ),
]

_VERSIONS: list[Column[VersionState]] = [
    Column(
        "hash", "Version", lambda state: short_hash(state.hash), lambda state: state.hash, wide=True
    ),
    Column("tags", "Tags", lambda state: ", ".join(state.tags) or UNKNOWN, wide=True),
    Column(
        "here",
        "Registered here",
        lambda state: "yes" if state.here else UNKNOWN,
        lambda state: state.here,
    ),
    Column("pushed", "Pushed", _moment, _pushed),
    Column(
        "loads",
        "Loads here",
        lambda state: _loads(state.refused, asked=True),
        lambda state: bool(state.refused),
    ),
    Column("kind", "Kind", lambda state: state.record.kind if state.record else UNKNOWN, wide=True),
    Column(
        "python",
        "Python",
        lambda state: state.record.python if state.record else UNKNOWN,
        wide=True,
    ),
    Column(
        "size",
        "Size",
        lambda state: human_size(state.record.size if state.record else None),
        lambda state: state.record.size if state.record else 0,
    ),
    Column(
        "source",
        "Source",
        lambda state: human_size(_source(state)),
        lambda state: _source(state) or 0,
        hint="size of the source code pushed with the version",
    ),
    Column("needs", "Needs", _needs, wide=True),
    Column("signer", "Signed by", lambda state: state.signer or UNKNOWN, wide=True),
]


def _classes(request: Request) -> Response:
    classes = state_of(request).classes
    wanted = request.query_params.get("q", "").casefold()
    kept = _all(classes)
    states = [each for each in kept.value or () if wanted in each.name.casefold()]
    table = Table.of(
        request.query_params,
        _CLASSES,
        states,
        caption="Classes and functions",
        identify=lambda state: state.name,
        sort="name",
        descending=False,
        empty="No classes yet: they appear when an app ships one (see offload_code).",
    )
    return render(
        request,
        "classes.html",
        title="Classes",
        kept=kept,
        mode=classes.registry.policy.mode,
        refused={each.name: why for each in table.rows if (why := each.broken or each.refused)},
        table=table,
    )


def _all(classes: Classes) -> Refreshed[list[ClassState]]:
    """Return all classes; raises the error if they could never be read."""
    kept = classes.all.get(_PATIENCE)
    if kept.value is None and kept.error is not None:
        raise kept.error
    return kept


def _class(request: Request) -> Response:
    name = request.query_params.get("name", "")
    classes = state_of(request).classes
    kept = _all(classes)
    history = classes.history(name) if kept.value is not None else None
    versions = history.versions if history is not None else ()
    a, b = (_asked(request, which, versions) for which in ("a", "b"))
    return render(
        request,
        "class.html",
        title=name or "(none)",
        history=history,
        mode=classes.registry.policy.mode,
        refused={short_hash(each.hash): each.refused for each in versions if each.refused},
        a=a,
        b=b,
        difference=classes.diff(name, a, b) if a and b and a != b else "",
        table=Table.of(
            request.query_params,
            _VERSIONS,
            versions,
            caption="Versions",
            identify=lambda state: state.hash,
            sort="pushed",
        ),
    )


def _asked(request: Request, which: str, versions: Sequence[VersionState]) -> str:
    """Return the hash of the requested version; "" if it isn't one of *versions*."""
    asked = request.query_params.get(which, "")
    return asked if any(each.hash == asked for each in versions) else ""


ROUTES = [
    Route("/classes", _classes, name="classes"),
    Route("/class", _class, name="class"),
]
