"""Making a class or function from its source. See `offload.registry.source`."""

from __future__ import annotations
import __future__

import importlib
import linecache
import pickle
from base64 import b64decode
from operator import attrgetter
from types import ModuleType
from typing import Any

import orjson

from offload.errors import CodeRefused
from offload.registry.pickling import Loader, loading
from offload.registry.record import Record
from offload.registry.source import Source

__all__ = ("rebuild",)


def rebuild(content: bytes, record: Record, loader: Loader) -> Any:
    """Return what a source defines. Runs it: it is to be trusted before.

    Raises CodeRefused if it defines nothing of that name.
    """
    found = orjson.loads(content)
    sources = [Source(**each) for each in found["modules"]]
    modules = {source.module: ModuleType(source.module) for source in sources}
    with loading(loader):
        for source in sources:
            _prepare(source, modules, loader)
        for source in sources:
            _others(source, modules)
            _define(source, modules[source.module], record)
        module, name = found["root"]
        try:
            obj = attrgetter(name)(modules[module])
        except (AttributeError, KeyError):
            raise CodeRefused(f"the source of {record.class_name} does not define it") from None
        loader.begin(record.class_name, record.hash, obj)
        for source in sources:
            _others(source, modules)
            for target, (other, code_hash, early) in source.classes.items():
                if not early:
                    setattr(modules[source.module], target, loader.load(other, code_hash))
    return obj


def _prepare(source: Source, modules: dict[str, ModuleType], loader: Loader) -> None:
    module = modules[source.module]
    for target, path in source.imports.items():
        imported = importlib.import_module(path[0])
        setattr(module, target, attrgetter(path[1])(imported) if path[1:] else imported)
    for target, (name, code_hash, early) in source.classes.items():
        if early:
            setattr(module, target, loader.load(name, code_hash))
    for target, pickled in source.constants.items():
        setattr(module, target, pickle.loads(b64decode(pickled)))


def _others(source: Source, modules: dict[str, ModuleType]) -> None:
    """Set the names of what stands in other modules, as far as it is defined."""
    for target, (name, qualname) in source.others.items():
        if hasattr(modules[name], qualname):
            setattr(modules[source.module], target, getattr(modules[name], qualname))


def _define(source: Source, module: ModuleType, record: Record) -> None:
    flags = __future__.annotations.compiler_flag if source.future else 0
    for number, (_line, text) in enumerate(source.definitions):
        file = f"<{record.class_name}@{record.hash[:12]}#{source.module}.{number}>"
        # Tracebacks show lines of it.
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        code = compile(text, file, "exec", flags=flags, dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 (that is what is asked for, and was checked)
