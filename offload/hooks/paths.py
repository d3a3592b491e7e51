"""Paths to references in a message, and functions that replace the nodes they lead to.

A path is a list of keys from the root ``{"args": …, "kwargs": …, "chain": …, …}``. Messages list
the paths of their references, so that no other data is mistaken for one, whatever it looks like.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain, compress
from math import inf
from typing import Any, Union

from celery.canvas import Signature

from offload.errors import InvalidRef
from offload.ref import Ref
from offload.serializers.plain import MANY

Key = Union[str, int]
Path = Sequence[Key]

_SIGNATURE = frozenset({"task", "args", "kwargs", "options", "subtask_type"})
_CONTAINERS = (list, tuple, dict)
_HOLDERS = (list, tuple, dict, set, frozenset, deque)
_ARGUMENT = 2  # keys in the path of an argument


def is_signature(value: object, *, plain: bool = False) -> bool:
    """Return whether *value* is a Celery signature that a task can be called by; with *plain*, also
    one that a message has turned into a dict.
    """
    if not (isinstance(value, Signature) or (plain and type(value) is dict)):
        return False
    return (
        value.keys() >= _SIGNATURE
        and isinstance(value["task"], str)
        and isinstance(value["args"] or (), (list, tuple))
        and isinstance(value["kwargs"] or {}, dict)
        and isinstance(value["options"] or {}, dict)
    )


def node_at(root: Any, path: Path) -> Any:
    """Return the node that *path* leads to from *root*."""
    for key in path:
        root = root[str(key) if isinstance(root, dict) and key not in root else key]
    return root


def is_in_signature(root: Any, path: Path) -> bool:
    """Return whether *path* leads through a signature in an argument, which a task can publish."""
    ends = range(_ARGUMENT, len(path))
    return any(is_signature(node_at(root, path[:end]), plain=True) for end in ends)


def contains(
    value: object,
    kinds: tuple[type, ...],
    is_data: Callable[[object], bool] | None = None,
) -> bool:
    """Return whether *value* is one of *kinds*, or a list, tuple, dict, set, deque, or an instance
    of a subclass of these, that holds one.

    Each container is visited once, however often it occurs.

    Args:
        is_data: returns whether a value of many containers certainly has none of *kinds*, in less
            time than it takes to look at each of them.
    """
    level: Any = (value,)
    seen: set[int] = set()
    while True:  # level by level, so that most of it runs in C: this runs for each message
        types, inner = set(map(type, level)), set[type]()
        for kind in types:
            if issubclass(kind, kinds):
                return True
            if issubclass(kind, _HOLDERS):
                inner.add(kind)
        if not inner:
            return False
        if inner != types:
            level = list(compress(level, map(inner.__contains__, map(type, level))))
        found = dict(zip(map(id, level), level, strict=True))
        for each in found.keys() & seen:
            del found[each]
        if is_data is not None and len(found) > MANY and len(seen) <= MANY and is_data(value):
            return False
        seen.update(found)
        level = _items_of(list(found.values()), inner)


def _items_of(containers: Sequence[Any], types: set[type]) -> Collection[Any]:
    """Return the items of *containers*, whose types are among *types*."""
    if len(containers) == 1:
        return _items(containers[0])
    if types <= {list, tuple}:
        return list(chain.from_iterable(containers))
    return list(chain.from_iterable(map(dict.values if types == {dict} else _items, containers)))


def _items(container: Any) -> Collection[Any]:
    """Return the items of a container, without calling methods that its class overrides."""
    if isinstance(container, dict):
        return dict.values(container)
    if type(container) in _CONTAINERS:
        return container  # type: ignore[no-any-return]
    base = next(each for each in _HOLDERS if isinstance(container, each))
    return list(base.__iter__(container))


def container_without_paths(value: object, kinds: tuple[type, ...]) -> Any | None:
    """Return the first container in *value* that no path leads into, such as a set, and that holds
    one of *kinds*; None if there is none.
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting: list[Any] = [value]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if not has_paths(each):
            found.append(each)
        else:
            items = each.values() if isinstance(each, dict) else each
            waiting += [item for item in items if isinstance(item, _HOLDERS)]
    found = [each for each in found if not isinstance(each, kinds)]
    if not contains(found, kinds):  # looks once at what several of them share
        return None
    return next(each for each in found if contains(each, kinds))


def has_sharing(value: object) -> bool:
    """Return whether a list, tuple, dict or signature occurs in *value* more than once."""
    seen = {id(value)}
    waiting: list[Any] = [value]
    while waiting:
        container = waiting.pop()
        for item in container.values() if isinstance(container, dict) else container:
            if _is_container(type(item)):
                if id(item) in seen and item != ():  # there is only one empty tuple
                    return True
                seen.add(id(item))
                waiting.append(item)
    return False


def has_paths(value: object) -> bool:
    """Return whether paths can lead into *value*: a list, tuple, dict, or signature."""
    return _is_container(type(value))


def unfolded_size(value: object) -> float:
    """Return how many containers *value* has, if those that occur several times are counted each
    time: infinitely many if one contains itself.
    """
    return _unfolded_size(value, {})


def _unfolded_size(value: Any, known: dict[int, float]) -> float:
    if not _is_container(type(value)):
        return 0
    if id(value) not in known:
        known[id(value)] = inf  # in a cycle
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded_size(item, known) for item in items)
    return known[id(value)]


def local_values(value: Any) -> Any:
    """Replace each Ref in *value* to a value in this process by that value."""
    return replace_refs(value, lambda ref: ref.get() if ref.is_local else ref)


def _is_container(kind: type) -> bool:
    return kind in _CONTAINERS or issubclass(kind, Signature)


def replace_refs(value: Any, make: Callable[[Any], Any], kind: type = Ref) -> Any:
    """Replace each Ref, or other object of *kind*, in *value*, and in the lists, tuples, dicts, and
    signatures in it, by ``make(ref)``.

    Containers without Refs stay the same objects. Others are copied once each, so shared and
    cyclic ones stay shared and cyclic.
    """
    return _with_refs_replaced(value, make, kind, {}) if contains(value, (kind,)) else value


def _with_refs_replaced(
    value: Any, make: Callable[[Any], Any], kind: type, copies: dict[int, Any]
) -> Any:
    if isinstance(value, kind):
        return make(value)
    if not _is_container(type(value)):
        return value
    if id(value) in copies:
        return copies[id(value)]
    items = value.values() if isinstance(value, dict) else value
    for each in set(map(type, items)):
        if each in _CONTAINERS or issubclass(each, (Signature, kind)):
            break
    else:
        return value
    if isinstance(value, tuple):
        new: Any = tuple([_with_refs_replaced(item, make, kind, copies) for item in value])
        return copies.setdefault(id(value), new)
    new = copies[id(value)] = _mutable_copy(value, ())
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        new[key] = _with_refs_replaced(item, make, kind, copies)
    return new


def replace_each(root: Any, paths: Sequence[Path], make: Callable[[Any, Path], Any]) -> Any:
    """Return a copy of *root* with ``make(node, path)`` at each path.

    Containers along the paths are copied once each; everything else is shared with *root*. Raises
    InvalidRef for a path that leads nowhere.
    """
    copied: dict[int, Any] = {}
    for path in paths:
        root = _replace(root, path, 0, make, copied)
    return root


def _replace(
    node: Any,
    path: Path,
    at: int,
    make: Callable[[Any, Path], Any],
    copied: dict[int, Any],
) -> Any:
    if at == len(path):
        return make(node, path)
    if id(node) not in copied:
        node = _mutable_copy(node, path)
        copied[id(node)] = node
    key = path[at]
    if isinstance(node, dict) and key not in node and isinstance(key, int):
        key = str(key)  # JSON turns integer keys into strings
    try:
        child = node[key]
    except (LookupError, TypeError) as exc:
        raise InvalidRef(f"no reference stands at {label(path)}, where one should be") from exc
    new = _replace(child, path, at + 1, make, copied)
    if isinstance(node, tuple) and isinstance(key, int):
        return (*node[:key], new, *node[key + 1 :])
    node[key] = new
    return node


def _mutable_copy(node: Any, path: Path) -> Any:
    if isinstance(node, Signature):
        copy = Signature.__new__(type(node))
        copy.__dict__.update(node.__dict__)
        dict.update(copy, node)
        return copy
    if type(node) is dict or isinstance(node, Mapping):
        return dict(node)
    if isinstance(node, list):
        return list(node)
    if isinstance(node, tuple):
        return node
    raise InvalidRef(f"no reference stands at {label(path)}, where one should be")


def label(path: Path, parameters: Sequence[str] = ()) -> str:
    """Format a path for people: ``frame``, ``args[2]``, ``config['table'][0]``."""
    if not path:
        return "message"
    first, rest = str(path[0]), list(path[1:])
    key = rest[0] if rest else None
    if first == "args" and isinstance(key, int) and 0 <= key < len(parameters):
        first, rest = parameters[key], rest[1:]
    elif first == "kwargs" and rest:
        first, rest = str(key), rest[1:]
    return first + "".join(f"[{key!r}]" for key in rest)
