"""The annotations of a class or function, as they are at run time."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ("annotations_of",)


def annotations_of(obj: Any) -> dict[str, Any]:
    """Return what *obj* itself is annotated with.

    From Python 3.14 on annotations are code that runs when they are asked for; names that are
    not known then are taken as they are written.
    """
    if sys.version_info >= (3, 14):
        import annotationlib

        found = annotationlib.get_annotations(obj, format=annotationlib.Format.FORWARDREF)
        return {
            k: v.__forward_arg__ if isinstance(v, annotationlib.ForwardRef) else v
            for k, v in found.items()
        }
    if isinstance(obj, type):
        return dict(vars(obj).get("__annotations__") or {})
    return dict(obj.__annotations__)
