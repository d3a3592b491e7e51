"""Two sides of a store on different Pythons: one pushes shapes, and one loads them.

Arguments: what to do, the store's URL, and a folder (to push) or what was pushed.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from offload import ClassRegistry
from offload.classes.hashing import python_tag
from offload.errors import OffloadError
from tests.classes.shapes import FROM_SOURCE

KEY = "hmac:a secret for two Pythons"


def registry(url, **more):
    return ClassRegistry(url, mode="signed", signing_key=KEY, **{"ship_source": True, **more})


def push(url, folder):
    """Push each shape as a module of its own; return names and hashes."""
    sys.path.insert(0, folder)
    pushed = {}
    for number, (name, shape) in enumerate(FROM_SOURCE.items()):
        module = f"shape_{number}"
        (Path(folder) / f"{module}.py").write_text(shape.source)
        importlib.invalidate_caches()
        made = importlib.import_module(module).F
        pushed[name] = [f"{module}.F", registry(url).push(made)]
    return pushed


def pull(url, pushed):
    """Load each version and evaluate its expression."""
    classes = registry(url)
    return {name: pulled(classes, FROM_SOURCE[name], *pair) for name, pair in pushed.items()}


def pulled(classes, shape, name, code_hash):
    try:
        made = classes.pull(name)
        return {
            "value": eval(shape.expression, {"F": made}),
            "is one": classes.pull(name, code_hash) is made,
            "pair": list(classes.ship(made)),
            "status": classes.check_status(made),
            "name": f"{made.__module__}.{made.__qualname__}",
            "recovered": eval(shape.expression, {"F": classes.recover_class(name, code_hash)}),
            "imported": made.__module__ in sys.modules,
        }
    except Exception as exc:
        return {"error": type(exc).__name__, "text": traceback.format_exc()}


def refused(url, pushed):
    """Return how each version fails if no source may be used."""
    classes = registry(url, ship_source=False)
    errors = {}
    for name, pair in pushed.items():
        try:
            errors[name] = str(classes.pull(*pair))
        except OffloadError as exc:
            errors[name] = f"{type(exc).__name__}: {exc}"
    return errors


if __name__ == "__main__":
    what, url, argument = sys.argv[1:]
    do = {"push": push, "pull": pull, "refused": refused}[what]
    given = argument if what == "push" else json.loads(argument)
    print(json.dumps({"python": python_tag(), "done": do(url, given)}))
