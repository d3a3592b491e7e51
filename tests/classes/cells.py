"""Classes, functions, and instances as in notebooks.

Tests run this file as ``__main__``, so that nothing in it can be imported. `run` of each value
returns what its code does, and `state` returns its content.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import typing

import numpy as np
import pydantic

FACTOR = 1000
T = typing.TypeVar("T")


def scale(n):
    return n * FACTOR


@dataclasses.dataclass
class Point:
    x: int
    y: list = dataclasses.field(default_factory=list)

    def run(self):
        return self.x + scale(1)


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int

    def run(self):
        return hash(self) == hash((self.x,))


@dataclasses.dataclass(slots=True)
class Slotted:
    x: int
    y: int = 2

    def run(self):
        return hasattr(self, "__dict__"), self.x + self.y


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FrozenSlotted:
    x: int

    def run(self):
        return hasattr(self, "__dict__"), self < FrozenSlotted(x=self.x + 1)


class Color(enum.Enum):
    RED = 1
    BLUE = "b"

    def run(self):
        return [each.name for each in type(self)], self is Color.RED


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2

    def run(self):
        return self.name


class Kind(str, enum.Enum):
    A = "a"

    def run(self):
        return self.name


class Right(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()

    def run(self):
        return Right.READ in self


class Pair(typing.NamedTuple):
    a: int
    b: str = "b"

    def run(self):
        return self._fields


Old = collections.namedtuple("Old", "a b")  # noqa: PYI024 (that is what is tested)
Old.run = lambda self: self._asdict()


class Model(pydantic.BaseModel):
    a: int
    tags: list[str] = []
    _secret: int = pydantic.PrivateAttr(default=3)

    @pydantic.field_validator("a")
    @classmethod
    def positive(cls, value):
        if value < 0:
            raise ValueError("a is negative")
        return value

    def run(self):
        try:
            type(self)(a=-1)
        except pydantic.ValidationError as exc:
            return exc.error_count(), self._secret, self.model_dump()


class Nested(pydantic.BaseModel):
    model: Model
    color: Color = Color.RED
    more: Nested | None = None

    @pydantic.computed_field
    @property
    def total(self) -> int:
        return self.model.a

    def run(self):
        again = type(self).model_validate({"model": {"a": "7"}, "color": "b"})
        return again.model.a, again.color.name, self.model_dump(mode="json")


class Response(pydantic.BaseModel, typing.Generic[T]):
    value: T

    def run(self):
        return type(self).__name__


class Box(typing.Generic[T]):
    def __init__(self, value: T):
        self.value = value

    def run(self):
        return str(getattr(self, "__orig_class__", None)), [str(b) for b in Box.__orig_bases__]


class Error(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code

    def run(self):
        return self.args, issubclass(type(self), Error)


class Base:
    registry: typing.ClassVar[list] = []

    def __init_subclass__(cls, *, tag=None, **more):
        super().__init_subclass__(**more)
        cls.tag = tag or getattr(cls, "tag", None)

    def __init__(self):
        self.names = ["base"]

    def run(self):
        return "base"


class Child(Base, tag="child"):
    def __init__(self):
        super().__init__()
        self.names.append("child")

    def run(self):
        return super().run() + "+child", self.tag, __class__.__name__


class Grandchild(Child):
    def run(self):
        return super().run(), [each.__name__ for each in type(self).__mro__]


class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...


class Square(Shape):
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side**2

    def run(self):
        try:
            Shape()
        except TypeError:
            return self.area(), isinstance(self, Shape)


class Meta(type):
    def __new__(meta, name, bases, attributes, **options):
        made = super().__new__(meta, name, bases, attributes)
        made.options = options or getattr(made, "options", {})
        return made

    def __init__(cls, name, bases, attributes, **options):
        super().__init__(name, bases, attributes)

    def __len__(cls):
        return 0  # such a class is false


class WithMeta(metaclass=Meta, size=3):
    def run(self):
        return type(self).options, len(type(self)), type(type(self)).__name__


class Outer:
    class Inner:
        def __init__(self, value):
            self.value = value

    def __init__(self):
        self.inner = Outer.Inner(3)

    def run(self):
        return type(self.inner).__qualname__, isinstance(self.inner, self.Inner)


class Slots:
    __slots__ = ("__weakref__", "_b", "a")

    def __init__(self):
        self.a, self._b = 1, 2

    def run(self):
        return hasattr(self, "__dict__"), self.a + self._b


class Stateful:
    def __init__(self):
        self.opened = True

    def __getstate__(self):
        return {"was": self.opened}

    def __setstate__(self, state):
        self.opened = state["was"]

    def run(self):
        return self.opened


class Empty:
    """Its state is false, and wanted all the same."""

    def __init__(self):
        self.got = ()

    def __getstate__(self):
        return ()

    def __setstate__(self, state):
        self.got = state

    def run(self):
        return type(self).__name__


class ByArguments:
    def __new__(cls, x, *, k):
        made = super().__new__(cls)
        made.x, made.k = x, k
        return made

    def __getnewargs_ex__(self):
        return (self.x,), {"k": self.k}

    def run(self):
        return self.x, self.k


class ByFunction:
    def __init__(self, x):
        self.x = x

    def __reduce__(self):
        return made_by_function, (self.x,)

    def run(self):
        return self.x


def made_by_function(x):
    return ByFunction(x)


class ByMethod:
    def __init__(self, x):
        self.x = x

    @classmethod
    def of(cls, x):
        return cls(x)

    def __reduce__(self):
        return ByMethod.of, (self.x,)

    def run(self):
        return self.x


class Rows(list):
    def run(self):
        return len(self)


class Table(dict):
    def __init__(self, *args):
        super().__init__(*args)
        self.title = "t"

    def run(self):
        return self.title, sorted(self)


class Name(str):  # noqa: SLOT000 (as people write them)
    def run(self):
        return self.upper()


class Node:
    """It knows its parent, which knows it."""

    def __init__(self, parent=None):
        self.parent = parent
        self.children = []
        self.kind = float
        if parent is not None:
            parent.children.append(self)

    def run(self):
        return [child.parent is self for child in self.children], self.kind.__name__


class Rich:
    """What classes may be made of besides methods."""

    limit: int = 5

    @property
    def doubled(self):
        """Twice the limit."""
        return self.limit * 2

    @functools.cached_property
    def once(self):
        return ["once"]

    @functools.lru_cache  # noqa: B019 (that is what is tested)
    def cached(self, n):
        return n + self.limit

    @staticmethod
    def static(n):
        return n + 1

    @classmethod
    def named(cls):
        return cls.__name__

    later = functools.partialmethod(cached, 4)

    def run(self):
        return (
            self.doubled,
            self.once is self.once,
            self.cached(1),
            self.static(1),
            self.named(),
            self.later(),
            type(self).doubled.__doc__,
        )


class Network:
    def __init__(self, weights):
        self.weights = weights
        self.point = Point(1)
        self.color = Color.BLUE

    def run(self):
        return float(self.weights.sum()), self.point.run(), self.color.run()


def local(n):
    class Local:
        def __init__(self):
            self.n = n

        def run(self):
            return __class__.__name__, n + self.n

    return Local()


def plus(n):
    def add(x):
        return x + n + scale(1)

    return add


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


@functools.lru_cache(maxsize=7)
def cached(n):
    return n + FACTOR


def family():
    parent = Node()
    Node(parent)
    Node(parent)
    return parent


VALUES = {
    "dataclass": lambda: Point(1, [2]),
    "frozen dataclass": lambda: Frozen(1),
    "dataclass with slots": lambda: Slotted(1),
    "frozen dataclass with slots": lambda: FrozenSlotted(x=1),
    "enum": lambda: Color.RED,
    "int enum": lambda: Level.HIGH,
    "str enum": lambda: Kind.A,
    "flag": lambda: Right.READ | Right.WRITE,
    "named tuple": lambda: Pair(1),
    "pydantic": lambda: Model(a=1, tags=["t"]),
    "pydantic, nested": lambda: Nested(model=Model(a=1), more=Nested(model=Model(a=2))),
    "pydantic, generic": lambda: Response[int](value=3),
    "generic": lambda: Box(3),
    "generic of a type": lambda: Box[int](3),
    "generic of a class": lambda: Box[list[Point]]([Point(1)]),
    "exception": lambda: Error(3, "three"),
    "base": Base,
    "child": Child,
    "grandchild": Grandchild,
    "of an abstract class": lambda: Square(3),
    "of a metaclass": WithMeta,
    "inner class": Outer,
    "slots": Slots,
    "own state": Stateful,
    "empty state": Empty,
    "by arguments": lambda: ByArguments(1, k=2),
    "by a function": lambda: ByFunction(1),
    "by a class method": lambda: ByMethod(1),
    "list": lambda: Rows([1, Point(2)]),
    "dict": lambda: Table({"a": Point(1)}),
    "old named tuple": lambda: Old(1, [2]),
    "str": lambda: Name("text"),
    "parents": family,
    "rich": Rich,
    "arrays": lambda: Network(np.arange(100_000.0)),
    "closure": lambda: local(3),
}
"""Instances, by their special property."""

CALLABLES = {
    "function": (scale, 2),
    "lambda": (lambda x: x + scale(1), 1),
    "closure": (plus(4), 1),
    "recursive": (factorial, 5),
    "partial": (functools.partial(plus(1), 3),),
    "method": (Rich().static, 3),
    "bound": (Rich().cached, 3),
    "class method": (Rich.named,),
    "class": (Point, 3),
}
"""Callables with their arguments."""


def state(value):
    """Return the content of *value* for comparisons."""
    if isinstance(value, Node):
        return len(value.children), value.kind
    if isinstance(value, Network):
        return value.weights.tolist()
    parts = getattr(value, "__dict__", None) or {}
    slots = {
        name: getattr(value, name)
        for name in getattr(type(value), "__slots__", ())
        if name != "__weakref__"
    }
    plain = {
        name: part if type(part).__eq__ is not object.__eq__ else type(part)
        for name, part in {**parts, **slots}.items()
    }
    return type(value), plain, value.args if isinstance(value, Exception) else None
