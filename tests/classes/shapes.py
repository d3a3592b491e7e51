"""Modules to ship: their source, an expression that uses ``F``, and its value."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A module.

    Attributes:
        source: defines ``F``.
        expression: what is asked of ``F``.
        value: what is answered, as JSON has it.
    """

    source: str
    expression: str
    value: object


def shape(source, expression, value):
    return Shape(textwrap.dedent(source).lstrip(), expression, value)


SHAPES = {
    "method": shape(
        """
        class F:
            limit = 3

            def run(self, x):
                return x * self.limit
        """,
        "F().run(2)",
        6,
    ),
    "function": shape(
        """
        FACTOR = 5

        def helper(x, by=FACTOR):
            return x * by

        def F(x):
            return helper(x) + FACTOR
        """,
        "F(2)",
        15,
    ),
    "imports": shape(
        """
        import json
        import os.path
        import xml.etree.ElementTree
        import xml.etree.ElementTree as tree
        from collections import OrderedDict as Ordered
        from concurrent.futures import Future
        from math import sqrt
        from pathlib import Path
        from types import FunctionType

        class F:
            def run(self):
                element = xml.etree.ElementTree.fromstring("<a>b</a>")
                return [
                    json.dumps(Ordered(a=1)), os.path.join("a", "b"), element.text,
                    tree.tostring(element).decode(), sqrt(4), Path("/a/b").name,
                    isinstance(len, FunctionType), Future.__name__,
                ]
        """,
        "F().run()",
        ['{"a": 1}', "a/b", "b", "<a>b</a>", 2.0, "b", False, "Future"],
    ),
    "import under a condition": shape(
        """
        try:
            import no_such_module
        except ImportError:
            no_such_module = None

        def F():
            return no_such_module is None
        """,
        "F()",
        True,
    ),
    "constants": shape(
        """
        import re
        from decimal import Decimal
        from pathlib import Path

        MISSING = object()
        TABLE = {"a": [1, 2], "nothing": MISSING}
        PATTERN = re.compile("b+")
        PRICE = Decimal("1.5")
        WHERE = Path("/a/b")
        SET = frozenset("ab")

        class F:
            def get(self, key, default=MISSING):
                found = TABLE.get(key, default)
                return "missing" if found is MISSING else found

            def run(self):
                return [self.get("a"), self.get("x"), self.get("nothing"), bool(PATTERN.match("b")),
                        str(PRICE), WHERE.name, sorted(SET)]
        """,
        "F().run()",
        [[1, 2], "missing", "missing", True, "1.5", "b", ["a", "b"]],
    ),
    "counter": shape(
        """
        count = 0

        def F():
            global count
            count += 1
            return count
        """,
        "[F(), F()]",
        [1, 2],
    ),
    "module globals": shape(
        """
        import logging

        logger = logging.getLogger(__name__)

        def F():
            logger.debug("called")
            return [logger.name == __name__, F.__module__ == __name__]
        """,
        "F()",
        [True, True],
    ),
    "base": shape(
        """
        class Base:
            def run(self):
                return "base"

        class Middle(Base):
            def run(self):
                return ["middle", super().run()]

        class F(Middle):
            def run(self):
                return ["F", super().run()]
        """,
        "[F().run(), [each.__name__ for each in F.__mro__]]",
        [["F", ["middle", "base"]], ["F", "Middle", "Base", "object"]],
    ),
    "cycle": shape(
        """
        class Other:
            def other(self):
                return F()

        class F:
            def run(self):
                return isinstance(Other().other(), F)
        """,
        "F().run()",
        True,
    ),
    "cycle with a base": shape(
        """
        class Base:
            def make(self):
                return F()

        class F(Base):
            pass
        """,
        "[type(F().make()) is F, isinstance(F().make(), F.__base__)]",
        [True, True],
    ),
    "cycle from the base": shape(
        """
        class F:
            def make(self):
                return Derived()

        class Derived(F):
            def run(self):
                return "derived"
        """,
        "[F().make().run(), isinstance(F().make(), F)]",
        ["derived", True],
    ),
    "cycle of constants": shape(
        """
        class Other:
            def origin(self):
                return ORIGIN

        class F:
            def __init__(self, x=0):
                self.x = x

            def other(self):
                return OTHER

        ORIGIN = F(7)
        OTHER = Other()
        """,
        "[F().other().origin().x, isinstance(F().other().origin(), F)]",
        [7, True],
    ),
    "constant of itself": shape(
        """
        class F:
            def __init__(self, x):
                self.x = x

            def zero(self):
                return helper()

        ZERO = F(0)

        def helper(of=ZERO):
            return [of.x, of is ZERO, type(of) is F]
        """,
        "F(3).zero()",
        [0, True, True],
    ),
    "constant of a class early": shape(
        """
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class Unit:
            name: str

        METRE = Unit("m")

        class F:
            unit = METRE

            def run(self, unit=METRE):
                return [self.unit.name, unit is METRE, unit == Unit("m"), self.unit is METRE]
        """,
        "F().run()",
        ["m", True, True, True],
    ),
    "decorators": shape(
        """
        import functools

        CALLS = []

        def traced(function):
            @functools.wraps(function)
            def wrapper(*args):
                CALLS.append(named(function))
                return function(*args)
            return wrapper

        def named(function):
            return function.__name__

        def plain(function):
            def inner(*args):
                return ["plain", function(*args)]
            return inner

        @functools.lru_cache(maxsize=None)
        def square(x):
            return x * x

        def marked(cls):
            cls.mark = named(cls)
            return cls

        @marked
        class F:
            @traced
            def run(self, x):
                return [square(x), square.cache_info().maxsize, CALLS, self.mark]

            @plain
            def other(self):
                return 1

            @functools.cached_property
            def kept(self):
                return [1]
        """,
        "[F().run(3), F().other(), (lambda f: f.kept is f.kept)(F())]",
        [[9, None, ["run"], "F"], ["plain", 1], True],
    ),
    "functions made by calls": shape(
        """
        import functools

        def plain(function):
            def inner(*args):
                return ["plain", function(*args)]
            return inner

        def named(function):
            return function.__name__

        cached = functools.lru_cache(maxsize=4)(named)
        twice = lambda x: 2 * x

        @plain
        def unwrapped(x):
            return x

        class F:
            def run(self, x):
                return [cached.cache_info().maxsize, twice(x), unwrapped(x)]
        """,
        "F().run(3)",
        [4, 6, ["plain", 3]],
    ),
    "a decorator that knows its class": shape(
        """
        import functools

        def checked(method):
            @functools.wraps(method)
            def wrapper(self, other):
                if not isinstance(other, (F, Other)):
                    return None
                return method(self, other)
            return wrapper

        class Other:
            @checked
            def run(self, other):
                return "other"

        class F:
            @checked
            def run(self, other):
                return [type(other).__name__, other.run(self) if isinstance(other, Other) else 0]

            def all(self):
                return [self.run(Other()), self.run(F()), self.run(1)]
        """,
        "F().all()",
        [["Other", "other"], ["F", 0], None],
    ),
    "context manager": shape(
        """
        from contextlib import contextmanager

        @contextmanager
        def noted(log):
            log.append("in")
            try:
                yield log
            finally:
                log.append("out")

        def F():
            log = []
            with noted(log):
                log.append("within")
            return log
        """,
        "F()",
        ["in", "within", "out"],
    ),
    "dataclass": shape(
        """
        from dataclasses import asdict, dataclass, field
        from typing import ClassVar

        def default():
            return [1]

        @dataclass(order=True)
        class F:
            x: int
            y: list = field(default_factory=default)
            kind: ClassVar[str] = "f"

            def run(self):
                return asdict(self)
        """,
        "[F(1).run(), F(1) < F(2), F.kind]",
        [{"x": 1, "y": [1]}, True, "f"],
    ),
    "dataclass with texts as annotations": shape(
        """
        from __future__ import annotations

        from dataclasses import InitVar, dataclass, fields
        from typing import ClassVar

        @dataclass(frozen=True)
        class Inner:
            z: int = 0

        @dataclass
        class F:
            x: int
            kind: ClassVar[str] = "f"
            start: InitVar[int] = 4
            inner: Inner = Inner(3)

            def __post_init__(self, start):
                self.x += start

            def names(self) -> Later:
                return [each.name for each in fields(self)]

        class Later:
            pass
        """,
        "[F(1).x, F(1).names(), F(1).inner.z, F.__annotations__['inner']]",
        [5, ["x", "inner"], 3, "Inner"],
    ),
    "quoted annotations": shape(
        """
        from dataclasses import dataclass
        from typing import Optional

        @dataclass
        class F:
            next: "Optional[F]" = None
            x: "int" = 1
        """,
        "[F(F()).next.x, F.__annotations__['x']]",
        [1, "int"],
    ),
    "slots and frozen": shape(
        """
        from dataclasses import dataclass

        @dataclass(frozen=True, slots=True)
        class F:
            x: int = 2
        """,
        "[F().x, hasattr(F(), '__dict__'), hash(F()) == hash(F())]",
        [2, False, True],
    ),
    "enum": shape(
        """
        import enum

        class Weight(enum.IntEnum):
            LIGHT = 1
            HEAVY = 2

        class F(enum.Enum):
            A = ("a", Weight.LIGHT)
            B = ("b", Weight.HEAVY)
            ALIAS = A

            def __init__(self, letter, weight):
                self.letter = letter
                self.weight = weight

            @property
            def text(self):
                return self.letter * self.weight
        """,
        "[F.B.text, F.ALIAS is F.A, F(('a', 1)).name, [each.name for each in F]]",
        ["bb", True, "A", ["A", "B"]],
    ),
    "enum without methods": shape(
        """
        from enum import Flag, auto

        class F(Flag):
            A = auto()
            B = auto()
        """,
        "[(F.A | F.B).value, F.B.name]",
        [3, "B"],
    ),
    "made by a call": shape(
        """
        from collections import namedtuple
        from enum import Enum

        Point = namedtuple("Point", "x y", defaults=[0])
        Color = Enum("Color", "RED GREEN")

        class F:
            def run(self):
                return [list(Point(1)), Color.GREEN.value, Point(1, 2)._asdict()]
        """,
        "F().run()",
        [[1, 0], 2, {"x": 1, "y": 2}],
    ),
    "named tuple": shape(
        """
        from typing import NamedTuple

        class F(NamedTuple):
            x: int
            y: int = 2
        """,
        "[list(F(1)), F(3)._replace(y=4).y]",
        [[1, 2], 4],
    ),
    "without a body": shape(
        """
        class F(Exception):
            pass
        """,
        "[str(F('no')), issubclass(F, Exception)]",
        ["no", True],
    ),
    "properties": shape(
        """
        class F:
            def __init__(self):
                self._x = 1

            @property
            def x(self):
                return self._x

            @x.setter
            def x(self, value):
                self._x = value + 1

            @staticmethod
            def fixed():
                return "static"

            @classmethod
            def name(cls):
                return cls.__name__

            def changed(self):
                self.x = 5
                return self.x

            __private = 4

            def private(self):
                return self.__private

            key = lambda self: "key"
        """,
        "[F().changed(), F.fixed(), F.name(), F().private(), F().key()]",
        [6, "static", "F", 4, "key"],
    ),
    "nested": shape(
        """
        import enum

        class F:
            class Kind(enum.Enum):
                A = 1

            class Inner:
                class Deeper:
                    def run(self):
                        return ["deeper", F.Kind.A.value]

                def run(self):
                    return self.Deeper().run()

            default = Kind.A
            made = Inner()

            def run(self):
                return [self.default is F.Kind.A, isinstance(self.made, F.Inner), F.Inner().run(),
                        type(self).Inner.__qualname__]
        """,
        "F().run()",
        [True, True, ["deeper", 1], "F.Inner"],
    ),
    "shadows": shape(
        """
        list = tuple

        def len(x):
            return "len"

        class F:
            def run(self):
                return [list([1]) == (1,), len([]), max([1, 2])]
        """,
        "F().run()",
        [True, "len", 2],
    ),
    "a local with the name of a global": shape(
        """
        import threading

        lock = threading.Lock()

        def F(lock=3):
            x = [lock for lock in (1, 2)]
            return [lock, x]
        """,
        "F()",
        [3, [1, 2]],
    ),
    "types": shape(
        """
        from typing import Dict, Generic, List, NewType, Optional, TypeVar

        T = TypeVar("T", bound="Item")
        Id = NewType("Id", int)

        class Item:
            pass

        Many = List[T]
        Items = Dict[str, int]

        class Box(Generic[T]):
            def __init__(self, inner: Optional[T] = None, many: "Many[T]" = ()) -> None:
                self.inner = inner

        class F(Box[T]):
            def run(self):
                return [Id(3), T.__name__, Items.__args__[1] is int,
                        Many[Item].__args__[0] is Item, Many.__parameters__[0] is T]
        """,
        "[F().run(), F[int]().inner]",
        [[3, "T", True, True, True], None],
    ),
    "aliases of shipped types": shape(
        """
        from typing import Union

        class Item:
            pass

        Found = Union[Item, None]

        class F:
            def run(self):
                return Found.__args__[0] is Item
        """,
        "F().run()",
        True,
    ),
    "tables of functions": shape(
        """
        import functools
        import operator

        def add(x, y):
            return x + y + BIAS

        BIAS = 100

        class Shift:
            def __call__(self, x, y):
                return x - y

        OPERATORS = {"add": add, "mul": operator.mul, "sub": Shift(), "type": Shift}
        add_one = functools.partial(add, 1)

        class F:
            first = OPERATORS["add"](1, 1)

            def run(self):
                return [OPERATORS["add"](1, 2), OPERATORS["mul"](2, 3), OPERATORS["sub"](2, 3),
                        isinstance(OPERATORS["sub"], Shift), OPERATORS["type"] is Shift,
                        add_one(1), self.first]
        """,
        "F().run()",
        [103, 6, -1, True, True, 102, 102],
    ),
    "texts": shape(
        '''
        if True:
            class F:
                """A class.

            With a docstring that is not indented as it is.
                """

                text = """
        outermost
            indented
        """

                def run(self):
                    return self.text
        ''',
        "F().run()",
        "\noutermost\n    indented\n",
    ),
    "one line": shape(
        """
        LIMIT = 2; HALF = lambda x: x / LIMIT  # and a comment
        class F: run = staticmethod(lambda x: HALF(x))
        """,
        "F.run(4)",
        2.0,
    ),
    "metaclass": shape(
        """
        class Meta(type):
            made = []

            def __new__(cls, name, bases, names, tag="none"):
                names["tag"] = tag
                return super().__new__(cls, name, bases, names)

            def __call__(cls, *args):
                return [cls.tag, super().__call__(*args).x]

        class Base:
            def __init_subclass__(cls, plus=0, **kwargs):
                super().__init_subclass__(**kwargs)
                cls.x = 4 + plus

        class F(Base, metaclass=Meta):
            pass
        """,
        "F()",
        ["none", 4],
    ),
    "closures": shape(
        """
        def adder(n):
            def add(x):
                return x + n
            return add

        add_two = adder(2)

        def F(x):
            def inner():
                return [add_two(y) for y in range(x)]
            return inner()
        """,
        "F(2)",
        [2, 3],
    ),
    "generators and coroutines": shape(
        """
        import asyncio

        async def double(x):
            await asyncio.sleep(0)
            return 2 * x

        class F:
            async def run(self):
                return [await double(x) async for x in self.numbers()]

            async def numbers(self):
                for x in range(3):
                    yield x
        """,
        "__import__('asyncio').run(F().run())",
        [0, 2, 4],
    ),
    "pydantic": shape(
        """
        from typing import List, Optional

        from pydantic import BaseModel, field_validator

        LEAST = 1

        class Part(BaseModel):
            n: int = LEAST

        class F(BaseModel):
            x: int
            parts: List[Part] = []
            next: Optional["F"] = None

            @field_validator("x")
            @classmethod
            def more(cls, x):
                return x + LEAST
        """,
        "[F(x='3').x, F(x=1, parts=[{'n': 4}]).parts[0].n, F(x=1, next={'x': 2}).next.x]",
        [4, 4, 3],
    ),
    "pydantic with texts as annotations": shape(
        """
        from __future__ import annotations

        from typing import List, Optional

        from pydantic import BaseModel

        class F(BaseModel):
            parts: List[Part] = []
            name: Optional[str] = None

        class Part(BaseModel):
            n: int = 0
            whole: Optional[F] = None

        F.model_rebuild()
        """,
        "[F(parts=[{'n': '4', 'whole': {}}]).model_dump()]",
        [{"parts": [{"n": 4, "whole": {"parts": [], "name": None}}], "name": None}],
    ),
    "one line within another": shape(
        """
        def other(cls): cls.mark = 1; return cls
        if True: F = 3; x = 2
        if x:
            @other
            class F: y = x; z = [y]  # and a comment
        """,
        "[F.y, F.z, F.mark]",
        [2, [2], 1],
    ),
    "abstract and generic": shape(
        """
        from abc import ABC, abstractmethod
        from functools import total_ordering, wraps
        from typing import (Annotated, Any, Callable, Generic, Iterable, Literal, NamedTuple,
                            Protocol, TypedDict, TypeVar, runtime_checkable)

        from typing_extensions import ParamSpec

        T_co = TypeVar("T_co", covariant=True)
        P = ParamSpec("P")
        Key = Literal["a", "b"]

        @runtime_checkable
        class Runs(Protocol[T_co]):
            def run(self) -> T_co: ...

        class Options(TypedDict, total=False):
            key: Key

        class Pair(NamedTuple):
            first: "Options"
            second: Annotated[int, "more"] = 2

        def logged(function: Callable[P, T_co]) -> Callable[P, T_co]:
            @wraps(function)
            def call(*args: P.args, **kwargs: P.kwargs) -> T_co:
                return function(*args, **kwargs)
            return call

        class Base(ABC, Generic[T_co]):
            @abstractmethod
            def run(self) -> T_co:
                raise NotImplementedError

        @total_ordering
        class F(Base[int]):
            def __init__(self, x: int = 1) -> None:
                self.x = x

            def __eq__(self, other: Any) -> bool:
                return self.x == other.x

            def __lt__(self, other: Any) -> bool:
                return self.x < other.x

            @logged
            def run(self) -> Pair:
                return Pair({"key": "a"})
        """,
        "[F().run(), F(2) >= F(1), F.__abstractmethods__ == set()]",
        [[{"key": "a"}, 2], True, True],
    ),
    "constants of shipped classes": shape(
        """
        import enum
        import re
        from collections import defaultdict
        from dataclasses import dataclass, field

        class Unit(enum.Enum):
            METRE = "m"
            FOOT = "ft"

        class Access(enum.Flag):
            READ = enum.auto()
            WRITE = enum.auto()

        @dataclass(frozen=True)
        class Point:
            x: int
            y: int = field(default_factory=lambda: ORIGIN_Y)

        ORIGIN_Y = 3
        ALL = Access.READ | Access.WRITE
        FACTORS = {Unit.METRE: 1.0, Unit.FOOT: 0.3}
        NAMES = {Point(1, 2): "a", Point(0): "b"}
        UNITS = frozenset({Unit.METRE})
        COUNTS = defaultdict(list, {Unit.FOOT: [1]})
        CLASSES = [Unit, Point, dict, re.Pattern]

        class F:
            def run(self, unit=Unit.FOOT):
                COUNTS[Unit.METRE].append(2)
                return [FACTORS[unit], NAMES[Point(0)], Unit("m") in UNITS, COUNTS[Unit.METRE],
                        CLASSES[0] is Unit, CLASSES[1] is Point, ALL == Access(3),
                        [each for each in FACTORS] == list(Unit)]
        """,
        "F().run()",
        [0.3, "b", True, [2], True, True, True, True],
    ),
    "a function that is decorated": shape(
        """
        from contextlib import contextmanager

        class Opened(list):
            pass

        @contextmanager
        def F(x, kind=Opened):
            opened = kind([x])
            try:
                yield opened
            finally:
                opened.append("closed")
        """,
        "(lambda c: [c.__enter__(), c.__exit__(None, None, None)])(F(1))",
        [[1, "closed"], False],
    ),
    "code at the outermost level of a class": shape(
        """
        import sys

        NAMES = ("a", "b")

        def maker(name):
            return lambda self: name + SUFFIX

        SUFFIX = "!"

        class F:
            if sys.version_info >= (3, 0):
                def run(self):
                    return [self.a(), self.b(), self.table, self.lengths]

            table = {name: [name + SUFFIX for _ in range(1)] for name in NAMES}
            lengths = sorted(NAMES, key=lambda name: -ord(name))
            for _name in NAMES:
                locals()[_name] = maker(_name)
        """,
        "F().run()",
        ["a!", "b!", {"a": ["a!"], "b": ["b!"]}, ["b", "a"]],
    ),
    "syntax": shape(
        """
        class F:
            def run(self, x, /, *args, key=None, **kwargs):
                match x:
                    case {"a": [int(first), *rest]} if (found := first):
                        return [found, rest, args, key, kwargs, f"{x!r:>20}"]
                    case _:
                        nonlocal_ = 0
                        def inner():
                            nonlocal nonlocal_
                            nonlocal_ += 1
                            return nonlocal_
                        return [inner(), inner()]
        """,
        "[F().run({'a': [1, 2]}, 3, key=4, more=5), F().run(0)]",
        [[1, [2], [3], 4, {"more": 5}, "       {'a': [1, 2]}"], [1, 2]],
    ),
}

WITHOUT_SOURCE = {
    "aliases of shipped types": "Item is within a constant",
    "closures": "add_two isn't defined by a function statement of its own",
    "constant of a class early": "Unit is within a constant",
    "constant of itself": "F is within a constant",
    "constants of shipped classes": "Access is within a constant",
    "cycle of constants": "Other is within a constant",
    "functions made by calls": "cached isn't defined by a function statement of its own",
    "made by a call": "the class or function statement of Color can't be found",
    "one line": "HALF isn't defined by a function statement of its own",
    "tables of functions": "add is within a constant",
}
"""Shapes that only the Python version that pushed them can load, with the reason."""

FROM_SOURCE = {name: each for name, each in SHAPES.items() if name not in WITHOUT_SOURCE}
