"""Define classes and functions from source, like a script, a module, or a notebook."""

from __future__ import annotations

import linecache
import sys
import types
from contextlib import contextmanager

from offload.classes.hashing import identify
from offload.classes.scope import Scope


def define(source, name="F"):
    """Return what *source* defines, as in ``__main__``."""
    names = {"__name__": "__main__"}
    exec(compile(source, "<source>", "exec", dont_inherit=True), names)
    return names[name]


def in_notebook(source, number):
    """Return what *source* defines in a notebook's cell."""
    file = f"<ipython-input-{number}-0123456789ab>"
    lines = source.splitlines(keepends=True)
    linecache.cache[file] = (len(source), None, lines, file)
    names = {"__name__": "__main__", "In": [source], "Out": {}, "__file__": file}
    exec(compile(source, file, "exec", dont_inherit=True), names)
    return names["F"]


def get_class_hash(obj, modules=()):
    """Return the hash of a class or function that ships with *modules*."""
    return identify(obj, Scope(modules)).hash


@contextmanager
def module(name, source="", file="shop.py"):
    """Yield a module that can be imported as *name*."""
    made = types.ModuleType(name)
    made.__file__ = file
    sys.modules[name] = made
    try:
        exec(compile(source, file, "exec", dont_inherit=True), vars(made))
        yield made
    finally:
        del sys.modules[name]
