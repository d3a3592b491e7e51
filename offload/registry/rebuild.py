"""Making a class or function from its source. See `offload.registry.source`."""

from __future__ import annotations
import __future__

import ast
import importlib
import io
import linecache
import pickle
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter
from types import FunctionType, ModuleType
from typing import Any

from offload.errors import CodeRefused, OffloadError, WrongPython
from offload.registry.apps import own
from offload.registry.identity import python_tag
from offload.registry.parts import Module, Source, Step
from offload.registry.pickling import Loader, Pair, loading
from offload.registry.pydantic_internals import is_incomplete
from offload.registry.record import Record
from offload.registry.written import OWN
from offload.stores.processes import PerProcess

__all__ = ("rebuild",)

_FUTURE = __future__.annotations.compiler_flag
_modules_lock = PerProcess(threading.RLock)
_underway: ContextVar[tuple[Loader, dict[Pair, Any]] | None] = ContextVar(
    "offload_underway", default=None
)
"""What is being made from source, for whom; None for what is not defined yet."""


def rebuild(content: bytes, record: Record, loader: Loader) -> Any:
    """Return what a source defines. Runs it: it is to be trusted before.

    Raises:
        WrongPython: this Python cannot read the source, or fails when it runs it.
        CodeRefused: it defines nothing of that name.
    """
    what = f"{record.class_name}@{record.hash[:12]}, pushed by {record.python},"
    try:
        with loading(loader), _making(loader) as underway:
            return _Making(content, record, loader, underway).make()
    except OffloadError:
        raise
    except SyntaxError as exc:
        raise WrongPython(
            f"{what} cannot be made from its source by {python_tag()}, which does not know its "
            f"syntax: {exc.msg} in {(exc.text or '').strip()!r:.100}; run both sides on one minor "
            "version of Python, or write it for the older one"
        ) from exc
    except Exception as exc:
        raise WrongPython(
            f"{what} cannot be made from its source by {python_tag()}: {type(exc).__name__}: "
            f"{exc}; run both sides on one minor version of Python and with the same packages, or "
            "push it from this one, too"
        ) from exc


@contextmanager
def _making(loader: Loader) -> Iterator[dict[Pair, Any]]:
    current = _underway.get()
    if current is not None and current[0] is loader:
        yield current[1]
        return
    made: dict[Pair, Any] = {}
    token = _underway.set((loader, made))
    try:
        yield made
    finally:
        _underway.reset(token)


class _Making:
    """Makes one version.

    Classes may need each other. Those that a definition needs are made before it; others, too,
    unless they are being made already and wait for this one: these are filled in at the end.
    """

    def __init__(
        self, content: bytes, record: Record, loader: Loader, underway: dict[Pair, Any]
    ) -> None:
        self.source = Source.from_bytes(content)
        self.modules = {module.name: ModuleType(module.name) for module in self.source.modules}
        self.record = record
        self.pair = (record.class_name, record.hash)
        self.loader = loader
        self.underway = underway

    def make(self) -> Any:
        self.underway.setdefault(self.pair, None)
        for module in self.source.modules:
            self._import(module)
        needed = self.source.needs()
        for pair in sorted(needed, key=lambda pair: not needed[pair]):
            if pair != self.pair and (needed[pair] or not self._waits(pair)):
                self.loader.load(*pair)
        if self.underway[self.pair] is not None:  # one of them needed this one, and made it
            return self.underway[self.pair]
        self._set_classes(waiting=False)
        for name, values in self._unpickled(self.source.constants).items():
            vars(self.modules[name]).update(values)

        obj: Any = None
        put_off = []
        for number, step in enumerate(self.source.steps):
            if not step.early and any(map(self._waits, step.pairs)):
                put_off.append(step)
            else:
                self._run(step, number)
            if number == self.source.at:
                obj = self._begin()
        self._set_classes(waiting=True)
        for step in put_off:
            self._run(step, 0)
        if is_incomplete(obj):
            names = vars(self.modules[self.source.root[0]])
            obj.model_rebuild(raise_errors=False, _types_namespace=names)
        return obj

    def _waits(self, pair: Pair) -> bool:
        """Return whether a version is being made, and not defined yet."""
        return self.underway.get(pair, self) is None

    def _begin(self) -> Any:
        module, name = self.source.root
        obj: Any = self.modules[module]
        for part in name.split("."):
            obj = getattr(obj, part, None)
        if not isinstance(obj, (type, FunctionType)):
            raise CodeRefused(f"the source of {self.record.class_name} does not define it")
        self.underway[self.pair] = obj
        self.loader.begin(*self.pair, obj)
        return obj

    # -- modules

    def _import(self, source: Module) -> None:
        names = vars(self.modules[source.name])
        names["__package__"] = source.name.rpartition(".")[0]
        for loaded in source.loads:
            importlib.import_module(loaded)
        names |= {name: _imported(*path) for name, path in source.imports.items()}
        names |= {name: self.modules[module] for name, module in source.modules.items()}

    def _set_classes(self, *, waiting: bool) -> None:
        """Set the names of classes; only with *waiting* those that wait for this one.

        Then also those that definitions have set: a name may stand for a newer version by now.
        """
        for module in self.source.modules:
            for target, (name, code_hash, early) in module.classes.items():
                if early or waiting or not self._waits((name, code_hash)):
                    vars(self.modules[module.name])[target] = self.loader.load(name, code_hash)

    # -- steps

    def _run(self, step: Step, number: int) -> None:
        module = self.modules[step.module]
        if step.pickle:
            setattr(module, step.name, self._unpickled(step.pickle))
        else:
            self._define(step, module, number)
        for other, name in step.aliases:
            setattr(self.modules[other], name, attrgetter(step.name)(module))

    def _define(self, step: Step, module: ModuleType, number: int) -> None:
        file = f"{OWN}{self.record.class_name}@{self.record.hash[:12]} {number}>"
        # Tracebacks show lines of it.
        lines = step.text.splitlines(keepends=True)
        linecache.cache[file] = (len(step.text), None, lines, file)
        [source] = [each for each in self.source.modules if each.name == step.module]
        tree = _Nested(source.classes).visit(ast.parse(step.text, file))
        flags = _FUTURE if step.future else 0
        code = compile(ast.fix_missing_locations(tree), file, "exec", flags, dont_inherit=True)
        with _known(self.modules):
            exec(code, vars(module))  # noqa: S102 (that is what is asked for, and was checked)

    def _unpickled(self, text: str) -> Any:
        return _Unpickler(self, b64decode(text)).load()


@contextmanager
def _known(modules: dict[str, ModuleType]) -> Iterator[None]:
    """Within this, modules are found under their names: dataclasses and others look there."""
    with _modules_lock.get():
        before = {name: sys.modules[name] for name in modules if name in sys.modules}
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                sys.modules.pop(name, None)
            sys.modules.update(before)


class _Nested(ast.NodeTransformer):
    """Puts the versions of classes that stand within another one in place of their definitions."""

    def __init__(self, classes: dict[str, Any]) -> None:
        self._classes = classes
        self._path = ""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        path = f"{self._path}.{node.name}".lstrip(".")
        if self._path and path in self._classes:
            value = ast.Name(path, ast.Load())
            return ast.copy_location(ast.Assign([ast.Name(node.name, ast.Store())], value), node)
        before, self._path = self._path, path
        self.generic_visit(node)
        self._path = before
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node


class _Unpickler(pickle.Unpickler):
    def __init__(self, making: _Making, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._making = making

    def persistent_load(self, pid: tuple[str, ...]) -> Any:
        kind, *rest = pid
        if kind == "version":
            name, code_hash = rest
            return self._making.loader.load(name, code_hash)
        if kind == "name":
            module, name = rest
            return getattr(self._making.modules[module], name)
        if kind == "own":
            return own(*rest)
        return _imported(*rest)


def _imported(module: str, name: str | None = None) -> Any:
    imported = importlib.import_module(module)
    return imported if name is None else attrgetter(name)(imported)
