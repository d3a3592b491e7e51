"""Read a value of a registered type from its node: name, version, and data."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from offload.errors import DeserializationError, UnknownType, UnknownTypeVersion
from offload.serializers.scalars import Node, text
from offload.serializers.types import registry
from offload.serializers.types.registry import BUILT_IN, NotDecoded, RegisteredType
from offload.text import reason_of, type_name

_SHOWN = 100  # characters of a name that anyone may have written


def read_registered(body: Node, read: Callable[[Node], Any]) -> Any:
    """Return the value that the node's body describes.

    Args:
        read: returns the value of another node.

    Raises:
        UnknownType: its type isn't registered here, or only in an older version.
        DeserializationError: the decoder failed, or returned a value of another type.
    """
    name, version, node = body
    name = text(name)
    if type(version) is not int or version < 1:
        raise ValueError("not the version of a type")
    found = registry.find_name(name)
    if found is None:
        raise _unknown_error(name)
    if version > found.version:
        raise UnknownTypeVersion(
            f"the value is of type {name!r} in version {version}, and this process registers "
            f"version {found.version}: deploy the newer registration here first"
        )
    data = read(node)
    try:
        value = found.decode(data, version)
    except Exception as error:  # whose message may show the value
        raise _decoder_error(found, version, _cause(error)) from None
    if type(value) is not found.type and not (found.subclasses and isinstance(value, found.type)):
        raise _decoder_error(found, version, f"it returned a {type_name(value)}")
    return value


def _decoder_error(found: RegisteredType, version: int, reason: str) -> DeserializationError:
    return DeserializationError(
        f"cannot decode a value of type {found.name!r}, written in version {version}: {reason}"
    )


def _cause(error: Exception) -> str:
    if isinstance(error, NotDecoded):
        return str(error)
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return reason_of(error)
    file = os.path.basename(traceback.tb_frame.f_code.co_filename)  # noqa: PTH119 (a name only)
    return f"{reason_of(error)} in {file}, line {traceback.tb_lineno}"


def _unknown_error(name: str) -> UnknownType:
    built_in = BUILT_IN.get(name.partition(".")[0])
    if built_in is not None and name in built_in.types:
        return UnknownType(
            f"the value is of type {name!r}, which is read only where the app has imported the "
            f"package: import {built_in.imported} where the task is defined "
            f"(pip install 'offload[{built_in.extra}]')"
        )
    shown = name[:_SHOWN]
    return UnknownType(
        f"the value is of type {shown!r}, which isn't registered in this process: call "
        f"offload.register_type for it here as the sender does (name={shown!r}), or list it in "
        "offload_types"
    )
