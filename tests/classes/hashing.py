"""Hash classes: run as a process, which prints one line of JSON for each that it reads.

Given a ``source``, it prints the hash of ``F``; given a ``url``, too, it pushes ``F`` there and
prints its name and hash. Given such a ``pair``, it loads the class and prints its hash. Errors
are printed as text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from offload.classes.registry import ClassRegistry
from offload.classes.versions import name_of


def answer(asked, number):
    from tests.classes.definitions import define, get_class_hash, in_notebook, module

    if "pair" in asked:
        return get_class_hash(
            ClassRegistry(asked["url"], mode="trusted").recover_class(*asked["pair"])
        )
    source = asked["source"]
    if asked["where"] == "module":
        with module(f"shop_{number}", source, f"/a/{number}.py") as made:
            return get_class_hash(made.F)
    obj = in_notebook(source, number) if asked["where"] == "notebook" else define(source)
    if "url" in asked:
        return name_of(obj), ClassRegistry(asked["url"], mode="trusted").persist_class(obj)
    return get_class_hash(obj)


def main():
    sys.path.insert(0, str(Path(__file__).parents[2]))
    for number, line in enumerate(sys.stdin):
        try:
            answered = answer(json.loads(line), number)
        except Exception as exc:
            answered = f"{type(exc).__name__}: {exc}"
        print(json.dumps(answered), flush=True)


if __name__ == "__main__":
    main()
