"""Errors about unserializable values show type, place, and advice, but no content."""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading
import traceback

import numpy as np
import pandas as pd
import polars as pl
import pydantic
import pytest

from offload import Ref
from offload.errors import DeserializationError, SerializationError
from offload.serializers import Registry


@dataclasses.dataclass
class Thing:
    password: object = "hunter2"


class Attrs:
    """Marks classes as attrs does."""

    __attrs_attrs__ = ()
    password: str = "hunter2"


class Model(pydantic.BaseModel):
    password: str = "hunter2"


class Loud:
    """Shows its content in its repr and in errors of its reduction."""

    def __repr__(self):
        return "hunter2"

    def __reduce_ex__(self, protocol):
        raise ValueError("hunter2")


HUNTED = {"hunter2": 1, "more": ["hunter2"]}
TABLE = pd.DataFrame({"a": [1, "hunter2", {1, Loud()}]})
IN_THE_TASK = "create it in the task"
VALUES = {
    "dataclass": (Thing(), "", "send dataclasses.asdict() of it; or, if all senders"),
    "attrs": (Attrs(), "", "send attrs.asdict() of it; or, if all senders"),
    "pydantic": ({"rows": [1, Model()]}, "['rows'][1]", "send its .model_dump(); or, if"),
    "loud": ([{"a": Loud()}], "[0]['a']", IN_THE_TASK),
    "in a set": ({Loud()}, "[<ellipsis>]", IN_THE_TASK),
    "a key": ({Loud(): 1}, "[<Loud>]", IN_THE_TASK),
    "lock": ({"data": HUNTED, "lock": threading.Lock()}, "['lock']", IN_THE_TASK),
    "generator": ((x for x in HUNTED), "", "send a list of its items"),
    "partial": (functools.partial(len, "hunter2"), "", "send plain data; or, if all"),
    "bound": ([Thing().__repr__], "[0]", "send plain data; or, if all"),
    "frame": (pd.DataFrame({"a": [Thing()]}), "['a'][0]", "send dataclasses.asdict() of it"),
    "table": (TABLE, "['a'][2]", ""),
    "index": (pd.DataFrame({"a": [1]}, index=pd.Index([Thing()], dtype=object)), "", ""),
    "dtype": (np.zeros(1, np.dtype("i4", metadata={"p": "hunter2"})), "", ""),
    "polars": (pl.DataFrame({"a": [Loud()]}, schema={"a": pl.Object}), "", ""),
    "ref": (Thing(Ref.local("hunter2")), "", "send dataclasses.asdict() of it"),
}


@pytest.mark.parametrize("native", ("json", "msgpack", "yaml"))
@pytest.mark.parametrize("name", VALUES)
def test_an_error_shows_types_and_places_and_no_value(name, native):
    """Neither the text nor the traceback with its causes shows a value's content; the advice fits,
    and pickle comes last.
    """
    value, where, advice = VALUES[name]
    with pytest.raises(SerializationError) as caught:
        Registry({native}).encode(value, native)
    message = str(caught.value)
    assert message.startswith(f"cannot serialize {type(value).__qualname__}: ")
    assert where in message
    assert advice in message
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert ("'pickle'" in message.rpartition("; ")[2]) == ("'pickle'" in message)


def test_a_frame_that_needs_arrow_names_the_extra(monkeypatch):
    """The error names the extra to install instead of pickle or the package's own error."""
    frame = pd.DataFrame({"a": pd.array(["hunter2"], dtype="string[python]")})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "offload.serializers.arrow", raising=False)
    with pytest.raises(SerializationError, match=r'pip install "offload\[pandas\]"$') as caught:
        Registry({"json"}).encode(frame, "json")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_an_error_of_reading_shows_no_value():
    """What YAML says about text that it can't read quotes it; the error names the kind only."""
    body = memoryview(b"password: hunter2: x")
    with pytest.raises(
        DeserializationError, match=r"yaml cannot read the value: \w+Error$"
    ) as caught:
        Registry({"yaml"}).decode("native:yaml", b"utf-8", [body])
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
