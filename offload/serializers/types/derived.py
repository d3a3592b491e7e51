"""Encoders and decoders derived from a type's own fields.

A dataclass is written as its fields, and created from them without calling its code, as pickle
does. Pydantic validates the data that a model is created from. An enum member is written as its
name.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from enum import Enum, Flag
from itertools import chain
from typing import Any

from offload.serializers.base import NotData
from offload.serializers.methods import slots_of
from offload.serializers.types.registry import BUILT_IN, TREE_PACKAGES, NotDecoded, as_list
from offload.text import reason_of

_NO_FIELDS = "it has attributes that aren't fields"
_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_BITS = 1 << 14  # of a number: converting it takes quadratic time
_EXPANDED = frozenset({*TREE_PACKAGES, *BUILT_IN})
"""Packages whose values may have any number of items that take no memory."""
_Derived = tuple[str, Callable[[Any], Any], Callable[[Any, int], Any]]


def derive(kind: type[Any]) -> _Derived | None:
    """Return a description of *kind*, its encoder, and its decoder.

    Return None if *kind* is neither a dataclass, a pydantic model, nor an enum.
    """
    if _is_model(kind):
        return ("pydantic model", *_model(kind))
    if dataclasses.is_dataclass(kind):
        return ("dataclass", *_dataclass(kind))
    if issubclass(kind, Enum):
        return ("enum", *_enum(kind))
    return None


def nested_types(kind: type[Any]) -> list[type[Any]] | None:
    """Return the types in the annotations of *kind* that `derive` supports.

    Return None if an annotation names something that isn't defined yet.
    """
    try:
        if _is_model(kind):
            hints = [field.annotation for field in _fields(kind).values()]
        else:
            hints = [*typing.get_type_hints(kind).values()]
    except Exception:  # annotations are the user's expressions, which can raise anything
        return None
    found = dict.fromkeys(each for hint in hints for each in _types_in(hint))
    return [each for each in found if each is not kind and _has_fields(each)]


def _types_in(hint: Any, depth: int = 20) -> Iterator[type[Any]]:
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
        return
    for part in (typing.get_origin(hint), *typing.get_args(hint)) if depth else ():
        yield from _types_in(part, depth - 1)


def _has_fields(kind: type[Any]) -> bool:
    if issubclass(kind, Enum):
        return len(kind) > 0
    return _is_model(kind) or (dataclasses.is_dataclass(kind) and _is_plain_object(kind))


def _is_plain_object(kind: type[Any]) -> bool:
    """Return whether instances have no content besides their attributes."""
    try:
        object.__new__(kind)
    except TypeError:  # a subclass of dict, an exception, or an abstract class
        return False
    return True


# -- dataclasses


def _dataclass(kind: type[Any]) -> tuple[Callable[[Any], Any], Callable[[Any, int], Any]]:
    if not _is_plain_object(kind):
        raise TypeError("its instances have content besides their fields")
    fields = dataclasses.fields(kind)
    names = frozenset(field.name for field in fields)
    known = names | _derived_attributes(kind)
    hidden = [slot for name, slot in slots_of(kind).items() if name not in names]

    def encode(value: Any) -> Any:
        found = {name: getattr(value, name) for name in ordered if hasattr(value, name)}
        if getattr(value, "__dict__", {}).keys() - known or any(_is_set(s, value) for s in hidden):
            raise NotData(_NO_FIELDS)
        return found

    def decode(data: Any, version: int) -> Any:
        if type(data) is not dict or not data.keys() <= names:
            raise NotDecoded("it has fields that this process's class lacks")
        made = object.__new__(kind)
        for field in fields:
            if field.name in data:
                content = data[field.name]
            elif field.default is not dataclasses.MISSING:
                content = field.default
            elif field.default_factory is not dataclasses.MISSING:
                content = field.default_factory()
            elif field.init:
                raise NotDecoded(f"field {field.name!r} is missing and has no default")
            else:
                continue
            object.__setattr__(made, field.name, content)
        return made

    ordered = [field.name for field in fields]
    return encode, decode


def _derived_attributes(kind: type[Any]) -> frozenset[str]:
    """Return the names of attributes to omit: cached properties, and what ``Box[int](…)`` sets."""
    cached = (
        name
        for base in kind.__mro__
        for name, attribute in vars(base).items()
        if isinstance(attribute, functools.cached_property)
    )
    return frozenset(cached) | {"__orig_class__"}


def _is_set(slot: Any, value: Any) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


# -- enums


def _enum(kind: type[Any]) -> tuple[Callable[[Any], Any], Callable[[Any, int], Any]]:
    if issubclass(kind, Flag):
        return (lambda value: value.value), _flag(kind)

    def decode(data: Any, version: int) -> Any:
        if type(data) is not str or data not in kind.__members__:
            raise NotDecoded("this process's enum has no member with this name")
        return kind.__members__[data]

    return (lambda value: value.name), decode


def _flag(kind: type[Any]) -> Callable[[Any, int], Any]:
    def decode(data: Any, version: int) -> Any:
        if type(data) is not int:
            raise NotDecoded("not the number of a flag")
        return kind(data)

    return decode


# -- pydantic models


def _is_model(kind: type[Any]) -> bool:
    pydantic = sys.modules.get("pydantic")
    model = getattr(pydantic, "BaseModel", None)
    return model is not None and issubclass(kind, model)


def _fields(kind: type[Any]) -> dict[str, Any]:
    rebuild: Any = getattr(kind, "model_rebuild", None)
    if not getattr(kind, "__pydantic_complete__", True):
        rebuild()
    found: dict[str, Any] = getattr(kind, "model_fields", {})
    return found


def _model(kind: Any) -> tuple[Callable[[Any], Any], Callable[[Any, int], Any]]:
    from pydantic import RootModel, ValidationError

    is_root = issubclass(kind, RootModel)
    derived = _derived_attributes(kind)
    by_name = "by_name" in inspect.signature(kind.model_validate).parameters

    def encode(value: Any) -> Any:
        attributes = vars(value)
        names = list(_fields(kind))
        if attributes.keys() - names - derived:
            raise NotData(_NO_FIELDS)
        found: dict[str, Any] = {
            "fields": {name: attributes[name] for name in names if name in attributes}
        }
        if extra := value.model_extra:
            found["extra"] = dict(extra)
        given = value.model_fields_set
        if given != found["fields"].keys() | (extra or {}).keys():
            found["set"] = sorted(given)
        if private := value.__pydantic_private__:
            found["private"] = dict(private)
        return found

    def decode(data: Any, version: int) -> Any:
        fields, extra, private = map(_as_dict, map(data.get, ("fields", "extra", "private")))
        if not private.keys() <= kind.__private_attributes__.keys():
            raise NotDecoded("it has private attributes that this process's model lacks")
        # Pydantic would make a list of a range, and an int of a Decimal, however large.
        strict = None if all(map(_is_bounded, (fields, extra))) else True
        try:
            if is_root:
                made = kind.model_validate(fields["root"], strict=strict)
            elif by_name:
                given = {**extra, **fields}
                made = kind.model_validate(given, strict=strict, by_name=True, by_alias=False)
            else:
                made = kind.model_validate({**extra, **_by_alias(kind, fields)}, strict=strict)
        except ValidationError as error:
            raise NotDecoded(_reasons(error, kind)) from None
        if "set" in data:
            names = {*fields, *extra}.intersection(as_list(data["set"]))
            object.__setattr__(made, "__pydantic_fields_set__", names)
        for name, content in private.items():
            setattr(made, name, content)
        return made

    return encode, decode


def _as_dict(data: Any) -> dict[Any, Any]:
    """Return *data*, or {} for None. Raises NotDecoded for others, such as a defaultdict."""
    if data is not None and type(data) is not dict:
        raise NotDecoded("a dict of fields is missing")
    return data or {}


def _is_bounded(value: Any) -> bool:
    """Return whether converting *value* takes no more memory and time than its size suggests."""
    if isinstance(value, _CONTAINERS):
        items = chain(value, value.values()) if isinstance(value, dict) else value
        return all(map(_is_bounded, items))
    if isinstance(value, int):
        return value.bit_length() < _BITS
    if isinstance(value, Decimal):
        return not value.is_finite() or abs(value.adjusted()) < _BITS
    if not isinstance(value, Iterable):
        return True
    package = type(value).__module__.partition(".")[0]
    if package == "numpy":
        return bool(getattr(value, "itemsize", 0))
    return type(value) is not range and package not in _EXPANDED


def _by_alias(kind: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Return *fields* under the names that pydantic before 2.11 validates."""
    found = {}
    for name, content in fields.items():
        field = _fields(kind).get(name)
        alias = name if field is None else (field.validation_alias or field.alias or name)
        alias = getattr(alias, "choices", [alias])[0]
        if not isinstance(alias, str):
            raise NotDecoded(f"field {name!r} has an alias that needs pydantic 2.11")
        found[alias] = content
    return found


def _reasons(error: Any, kind: Any) -> str:
    """Name the invalid fields and the kind of each error, without any value."""
    names = _fields(kind)
    try:
        details = error.errors(include_url=False, include_context=False, include_input=False)
    except Exception as failed:
        return reason_of(failed)
    texts = []
    for each in details[:5]:
        field = each["loc"][0] if each["loc"] else "the model"
        texts.append(f"{field if field in names else 'a field'} ({str(each['type'])[:60]})")
    more = len(details) - len(texts)
    return "invalid: " + ", ".join([*texts, *([f"{more} more"] if more > 0 else [])])
