"""Keys of calls: which calls are equal.

The key of a call is a BLAKE3 hash over the name and the code of its function, and over the name and
the content of each of its arguments. References carry digests of their content, so that no argument
is read. Other arguments are serialized as they would be to be stored, and hashed; a value has the
same digest in both cases, unless JSON changes it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blake3 import blake3
from celery import Task

from offload.classes.hashing import identify
from offload.classes.scope import Scope
from offload.content.manifest import pack, small_root
from offload.digest import digest_of, digest_of_few
from offload.errors import OffloadError, SerializationError
from offload.ref import Ref, no_refs_within
from offload.serializers.choose import Registry
from offload.serializers.plain import SCALARS, encode_scalar

if TYPE_CHECKING:
    from offload.encryption.blobs import BlobCipher

GUARD = "_offload_guard"
"""Attribute of functions that offload has wrapped to give them values."""

SCOPE = "app"
"""The scope of a task or function that names none."""

_DIGITS = 40  # of a key
_DEEPEST = 100  # levels of containers in which references are searched for
_VERSION = b"offload memo 1"
_DEFAULT = b"default"  # content of a default that can't be hashed: it is part of the code
_EMPTY = inspect.Parameter.empty
_CONTAINERS = (list, tuple, dict)


class NotRemembered(Exception):
    """The user's key function returned None: this call isn't remembered."""


@dataclass(frozen=True)
class Function:
    """A task's function, or a plain one, whose results are remembered.

    Attributes:
        kind: ``task`` or ``function``.
        name: the task's name, or the function's module and qualified name.
        run: the function that computes.
        version: replaces the hash of the code; None: use the hash.
        ignored: names of parameters that don't identify a call.
        key: the user's function that returns what identifies a call instead of the arguments.
        context: what else must be equal, such as the serializer of the result.
    """

    kind: str
    name: str
    run: Callable[..., Any]
    version: str | None = None
    ignored: frozenset[str] = frozenset()
    key: Callable[[dict[str, Any]], Any] | None = None
    context: str = ""
    _code: _Code = field(init=False, repr=False, compare=False)
    _key_code: _Code | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_code", _Code(self.run))
        object.__setattr__(self, "_key_code", None if self.key is None else _Code(self.key))

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The parameters, without the instance that a method is bound to."""
        return inspect.signature(self.run)

    def code(self, scope: Scope) -> str:
        """Return the version, or the hash of the function and of what ships with it, and that of
        the key function, if it has code that can be hashed.

        It is computed once per process and *scope*. Raises SerializationError or TypeError for a
        function that can't be hashed.
        """
        if self.version is not None:
            return f"version {self.version}"
        found = self._code.hash(scope)
        if self._key_code is not None:
            with suppress(Exception):  # such as for operator.itemgetter
                found += " " + self._key_code.hash(scope)
        return found

    def key_of(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        serializers: Registry,
        scope: Scope,
        chunk_size: int | None = None,
        cipher: BlobCipher | None = None,
        refs: bool = True,
    ) -> str:
        """Return the key of a call.

        Args:
            args, kwargs: the arguments; references in place of values count as their values.
            serializers: serialize the other values, to hash them.
            scope: the modules whose code counts.
            chunk_size: maximum bytes of a chunk in the store.
            cipher: encrypts what the store has; None without encryption.
            refs: whether there may be references in containers.

        Raises:
            NotRemembered: the key function returned None.
            TypeError: the arguments don't fit the parameters, or the code can't be hashed.
            SerializationError: an argument can't be serialized, or the code can't be hashed.
            Exception: what the key function raises.
        """
        found = self._started(scope)
        digest = functools.partial(
            digest_of_value,
            serializers=serializers,
            chunk_size=chunk_size,
            cipher=cipher,
            refs=refs,
        )
        names, number = self._positional, len(args)
        if not kwargs and number < len(names) and names[number][1] is not _EMPTY:  # ordinary calls
            for at, (prefix, default) in enumerate(names[:-1]):
                if prefix is None:
                    continue
                try:
                    content = digest(args[at] if at < number else default)
                except OffloadError:
                    if at < number:
                        raise
                    content = _DEFAULT
                found.update(prefix + len(content).to_bytes(8, "little") + content)
            return found.hexdigest()[:_DIGITS]
        bound = self.signature.bind(*args, **kwargs)
        if self.key is not None:
            bound.apply_defaults()
            value = self.key(dict(bound.arguments))
            if value is None:
                raise NotRemembered
            _write(found, digest(value))
            return found.hexdigest()[:_DIGITS]
        given = frozenset(bound.arguments)
        bound.apply_defaults()
        for name, value in self._counted(bound.arguments):
            try:
                content = digest(value)
            except OffloadError:
                if name in given or name not in bound.arguments:
                    raise
                content = _DEFAULT
            _write(found, name.encode("utf-8", "surrogatepass"))
            _write(found, content)
        return found.hexdigest()[:_DIGITS]

    def _started(self, scope: Scope) -> blake3:
        """Return a hasher of all that every call of the function has in common."""
        started = self._code.started
        if started is None or started[0] is not scope:
            hasher = blake3(_VERSION)
            for part in (self.kind, self.name, self.code(scope), self.context):
                _write(hasher, part.encode("utf-8", "surrogatepass"))
            started = self._code.started = (scope, hasher)
        return started[1].copy()

    @functools.cached_property
    def _positional(self) -> list[tuple[bytes | None, Any]]:
        """For each parameter: the bytes to hash before its argument (None if it doesn't count), and
        its default. The last entry stands for further arguments.

        Empty if an argument can't be passed by position, or if a key function needs names.
        """
        found: list[tuple[bytes | None, Any]] = []
        for name, parameter in self.signature.parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.POSITIONAL_ONLY):
                return []
            encoded = name.encode("utf-8", "surrogatepass")
            prefix = None if name in self.ignored else _length(encoded) + encoded
            found.append((prefix, parameter.default))
        return [] if self.key is not None else [*found, (None, None)]

    def _counted(self, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield name and value of each argument that identifies the call, in a fixed order."""
        for name, parameter in self.signature.parameters.items():
            if name in self.ignored:
                continue
            value = arguments[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                for i, item in enumerate(value):
                    yield f"*{name}[{i}]", item
            elif parameter.kind is parameter.VAR_KEYWORD:
                for key in sorted(value):
                    if key not in self.ignored:
                        yield f"**{name}[{key}]", value[key]
            else:
                yield name, value


def _write(found: Any, part: bytes) -> None:
    found.update(_length(part) + part)


def _length(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little")


class Remembered:
    """A callable that remembers the results of a function; see `stands_for`."""

    _function: Function


def stands_for(obj: Any) -> Any:
    """Return the function that a task or a `Remembered` object calls, or the version that replaces
    the function's code; None for other objects.
    """
    if isinstance(obj, type):
        return None
    if isinstance(obj, Remembered):
        function: Function = vars(obj)["_function"]
        return function.version or function.run
    if isinstance(obj, Task):
        options = getattr(obj, "offload", None)
        version = options.get("version") if isinstance(options, dict) else None
        run = plain_function(obj.run)
        return version or getattr(run, "__func__", run)
    return None


def plain_function(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task's function without the wrappers that offload and Celery put around it."""
    while (inner := inspect.getattr_static(run, "__wrapped__", None)) is not None:
        module = getattr(run, "__globals__", {}).get("__name__", "")
        if not hasattr(run, GUARD) and module.partition(".")[0] != "celery":
            break
        run = inner
    return run


class _Code:
    """The hash of a function's code, computed once per process and scope.

    Attributes:
        started: what is derived from it in a scope, for `Function`.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._known: tuple[Scope, str | Exception] | None = None
        self.started: tuple[Scope, blake3] | None = None

    def hash(self, scope: Scope) -> str:
        known = self._known
        if known is None or known[0] is not scope:
            known = self._known = (scope, self._compute(scope))
        if isinstance(known[1], Exception):
            raise known[1].with_traceback(None)  # without the frames of earlier calls
        return known[1]

    def _compute(self, scope: Scope) -> str | Exception:
        function = getattr(self._run, "__func__", self._run)
        try:
            return identify(function, scope, stands_for).hash
        except Exception as exc:
            return exc.with_traceback(None)


# -- contents


def digest_of_value(
    value: Any,
    *,
    serializers: Registry,
    chunk_size: int | None = None,
    cipher: BlobCipher | None = None,
    refs: bool = True,
    known: dict[int, bytes] | None = None,
) -> bytes:
    """Return the digest of a value's content; a reference has that of the value it stands for.

    Args:
        known: the digests of containers that this call has found already, by id.

    Raises SerializationError for a value that can't be serialized.
    """
    named_by = None if cipher is None else cipher.keyring.current
    if type(value) in SCALARS:
        scalar = encode_scalar(value)
        if scalar is not None and (root := small_root(*scalar, limit=chunk_size)) is not None:
            return digest_of_few(root, None if named_by is None else named_by.names).encode()
    if isinstance(value, Ref):
        if value.is_local:
            value = value.get()
        elif value.digest is not None:
            return str(value.digest).encode()
        elif value.late is not None:
            raise SerializationError(f"{value!r} stands for no content yet")
        else:
            data = value.data or b""
            if cipher is None:
                return str(digest_of([data])).encode()
            data = cipher.open_inline(data, repr(value))
            return str(cipher.keyring.current.digest_of([data])).encode()
    if known is not None and id(value) in known:
        return known[id(value)]
    if refs and type(value) in _CONTAINERS and _holds_ref(value):
        known = {} if known is None else known
        found = blake3(type(value).__name__.encode())
        each = functools.partial(
            digest_of_value,
            serializers=serializers,
            chunk_size=chunk_size,
            cipher=cipher,
            known=known,
        )
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _write(found, each(key))
            _write(found, each(item))
        return known.setdefault(id(value), found.digest())
    with no_refs_within():
        payload = serializers.encode_exactly(value)
    return str(pack(payload, limit=chunk_size, key=named_by).digest).encode()


def _holds_ref(value: Any) -> bool:
    """Return whether a container holds a Ref, within some levels of containers."""
    seen: set[int] = set()
    level = [value]
    for _ in range(_DEEPEST + 1):
        deeper = []
        for each in level:
            for item in each.values() if type(each) is dict else each:
                if isinstance(item, Ref):
                    return True
                if type(item) in _CONTAINERS and id(item) not in seen:
                    seen.add(id(item))
                    deeper.append(item)
        level = deeper
    return False
