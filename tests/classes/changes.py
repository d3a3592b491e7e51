"""Sources that define ``F``, before and after a change that affects behavior or doesn't."""

# ruff: noqa: E501 (sources)

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass

PREAMBLE = """
import abc, array, asyncio, collections, contextlib, copyreg, datetime, decimal, enum, fractions
import functools, logging, operator, pathlib, re, threading, types, typing, uuid, weakref
from dataclasses import InitVar, dataclass, field
from typing import *
"""


@dataclass(frozen=True)
class Change:
    """Two sources; *since* is the first Python version that can parse them."""

    before: str
    after: str
    since: tuple[int, int] = (3, 10)

    @property
    def is_possible(self):
        return sys.version_info >= self.since


def change(before, after, since=(3, 10)):
    def whole(source):
        return PREAMBLE + textwrap.dedent(source).strip("\n") + "\n"

    return Change(whole(before), whole(after), since)


def replaced(source, before, after, since=(3, 10)):
    """Return the change of one part of a source."""
    assert source.count(before) == 1, (before, source)
    return change(source, source.replace(before, after), since)


def possible(changes):
    return {name: each for name, each in changes.items() if each.is_possible}


_METHODS = """
    def decorated(by):
        def wrap(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs) * by
            return wrapper
        return wrap

    LIMIT = 3

    def helper(x):
        return x + LIMIT

    class Base:
        def base(self):
            return "base"

    class Meta(type):
        def __call__(cls, *args):
            return super().__call__(*args)

    class F(Base, metaclass=Meta):
        __slots__ = ("a", "b")
        table = {"k": [1, 2]}

        def method(self, x, *rest, y=1, z: int = 2, **more) -> int:
            return helper(x) + 10

        @property
        def prop(self):
            return 20

        @prop.setter
        def prop(self, value):
            self.a = value + 30

        @staticmethod
        def static():
            return 40

        @classmethod
        def klass(cls):
            return 50

        @decorated(60)
        def deco(self):
            return 70

        @functools.cached_property
        def cached(self):
            return 80

        @functools.lru_cache(maxsize=90)
        def lru(self):
            return 100

        partial = functools.partialmethod(method, 110)

        def nested(self):
            def inner(x):
                class Deep:
                    value = 120
                return Deep.value
            return inner

        def comprehended(self):
            return [x * 130 for x in self if x], {x for x in "ab"}, {x: 140 for x in "cd"}

        def lazy(self):
            return lambda x, y=150: x + 160

        async def waits(self):
            async with self as it:
                await it
                yield 170

        def matched(self, value):
            match value:
                case {"k": [180, *rest]} if rest:
                    return 190
                case str() | None:
                    return 200

        def walrus(self):
            if (n := len(self.a)) > 210:
                return n

        def __init_subclass__(cls, **kwargs):
            super().__init_subclass__(**kwargs)
            cls.number = 220

        def tries(self):
            try:
                return self.a
            except (KeyError, OSError) as exc:
                raise ValueError("no") from exc
            finally:
                self.b = 230

        @contextlib.contextmanager
        def context(self):
            yield 240
"""


def _in_methods(before, after):
    return replaced(_METHODS, before, after)


CHANGES = {
    "constant in a method": _in_methods("+ 10", "+ 11"),
    "operator": _in_methods("helper(x) + 10", "helper(x) - 10"),
    "property": _in_methods("return 20\n", "return 21\n"),
    "property setter": _in_methods("+ 30", "+ 31"),
    "static method": _in_methods("return 40", "return 41"),
    "class method": _in_methods("return 50", "return 51"),
    "decorator's argument": _in_methods("decorated(60)", "decorated(61)"),
    "decorator's body": _in_methods("* by", "+ by"),
    "decorator away": _in_methods("@decorated(60)\n", "\n"),
    "decorated": _in_methods("return 70", "return 71"),
    "cached property": _in_methods("return 80", "return 81"),
    "lru_cache's size": _in_methods("maxsize=90", "maxsize=91"),
    "lru_cache's function": _in_methods("return 100", "return 101"),
    "partialmethod": _in_methods("(method, 110)", "(method, 111)"),
    "class within a function": _in_methods("value = 120", "value = 121"),
    "comprehension": _in_methods("x * 130", "x * 131"),
    "comprehension's condition": _in_methods("if x]", "if not x]"),
    "set comprehension": _in_methods('for x in "ab"', 'for x in "abc"'),
    "dict comprehension": _in_methods("x: 140", "x: 141"),
    "lambda": _in_methods("x + 160", "x + 161"),
    "lambda's default": _in_methods("y=150", "y=151"),
    "async generator": _in_methods("yield 170", "yield 171"),
    "async away": _in_methods(
        "async with self as it:\n                await it",
        "with self as it:\n                await it",
    ),
    "match pattern": _in_methods("[180,", "[181,"),
    "match guard": _in_methods("if rest:", "if not rest:"),
    "match alternative": _in_methods("case str() | None", "case int() | None"),
    "walrus": _in_methods("> 210", "> 211"),
    "__init_subclass__": _in_methods("cls.number = 220", "cls.number = 221"),
    "what is caught": _in_methods("(KeyError, OSError)", "(KeyError, IndexError)"),
    "how it is raised": _in_methods("from exc", "from None"),
    "finally": _in_methods("self.b = 230", "self.b = 231"),
    "context manager": _in_methods("yield 240", "yield 241"),
    "positional parameter": _in_methods("self, x, *rest", "self, w, *rest"),
    "keyword default": _in_methods("y=1,", "y=2,"),
    "annotation": _in_methods("z: int", "z: float"),
    "returned annotation": _in_methods("-> int", "-> float"),
    "variable keywords": _in_methods(", **more)", ")"),
    "helper": _in_methods("x + LIMIT", "x - LIMIT"),
    "constant of a helper": _in_methods("LIMIT = 3", "LIMIT = 4"),
    "type of a constant": _in_methods("LIMIT = 3", "LIMIT = 3.0"),
    "class attribute": _in_methods('"k": [1, 2]}', '"k": [1, 3]}'),
    "kind of class attribute": _in_methods('"k": [1, 2]}', '"k": (1, 2)}'),
    "base's method": _in_methods('return "base"', 'return "other"'),
    "base away": _in_methods("class F(Base, metaclass=Meta)", "class F(metaclass=Meta)"),
    "metaclass' method": _in_methods("super().__call__(*args)", "super().__call__()"),
    "metaclass away": _in_methods("(Base, metaclass=Meta)", "(Base)"),
    "slot": _in_methods('("a", "b")', '("a", "b", "c")'),
    "slots away": _in_methods('__slots__ = ("a", "b")\n', "\n"),
    "method's name": _in_methods("def static()", "def statisch()"),
    "static or class": _in_methods("@staticmethod", "@classmethod"),
    "method or property": change(
        "class F:\n    def x(self): return 1", "class F:\n    @property\n    def x(self): return 1"
    ),
    "name": change("class G: pass\nF = G", "class H: pass\nF = H"),
    "default of a function": change("def F(x=1): pass", "def F(x=2): pass"),
    "default that changes": change("def F(x=[]): pass", "def F(x=[0]): pass"),
    "no default": change("def F(x=None): pass", "def F(x): pass"),
    "positional only": change("def F(x, /, y): pass", "def F(x, y, /): pass"),
    "generator": change("def F(): return 1", "def F():\n    return 1\n    yield"),
    "coroutine": change("async def F(): pass", "def F(): pass"),
    "lambda itself": change("F = lambda x: x", "F = lambda x: -x"),
    "1 and True": change("def F(): return 1", "def F(): return True"),
    "1 and 1.0": change("def F(): return 1", "def F(): return 1.0"),
    "0.0 and -0.0": change("def F(): return 0.0", "def F(): return -0.0"),
    "text and bytes": change("def F(): return 'a'", "def F(): return b'a'"),
    "tuple and list": change("def F(): return (1, 2)", "def F(): return [1, 2]"),
    "set of 1 and True": change("def F(): return {1, True}", "def F(): return {True, 1}"),
    "is and ==": change("def F(x): return x is None", "def F(x): return x == None"),
    "and and or": change("def F(x, y): return x and y", "def F(x, y): return x or y"),
    "branches exchanged": change(
        "def F(x):\n    if x:\n        return 1\n    return 2",
        "def F(x):\n    if not x:\n        return 1\n    return 2",
    ),
    "order of calls": change(
        "def F(x, y): return x(), y()", "def F(x, y):\n    b = y()\n    return x(), b"
    ),
    "order of statements": change(
        "def F(x, y):\n    x()\n    y()", "def F(x, y):\n    y()\n    x()"
    ),
    "order of a dict": change(
        "def F(): return {'a': 1, 'b': 2}", "def F(): return {'b': 2, 'a': 1}"
    ),
    "break and continue": change(
        "def F(x):\n    for y in x:\n        if y: break\n    else:\n        return 1",
        "def F(x):\n    for y in x:\n        if y: continue\n    else:\n        return 1",
    ),
    "what is in a try": change(
        "def F(x):\n    x(1)\n    try:\n        x(2)\n    except E:\n        pass",
        "def F(x):\n    try:\n        x(1)\n        x(2)\n    except E:\n        pass",
    ),
    "which handler": change(
        "def F(x):\n    try:\n        x()\n    except (A):\n        return 1\n    except B:\n        return 1\n",
        "def F(x):\n    try:\n        x()\n    except (B):\n        return 1\n    except A:\n        return 1\n",
    ),
    "with and without": change(
        "def F(x):\n    with x:\n        pass\n    x()", "def F(x):\n    with x:\n        x()"
    ),
    "exchanged": change(
        "def F(a, b):\n    a, b = b, a\n    return a", "def F(a, b):\n    a, b = a, b\n    return a"
    ),
    "unpacked": change(
        "def F(x):\n    a, b = x\n    return a", "def F(x):\n    b, a = x\n    return a"
    ),
    "attribute or item": change("def F(x): return x.a", "def F(x): return x['a']"),
    "attribute's name": change("def F(x): return x.a", "def F(x): return x.b"),
    "method's name that is called": change("def F(x): return x.a()", "def F(x): return x.b()"),
    "global's name": change("def F(): return len", "def F(): return max"),
    "global or local": change("def F():\n    global a\n    a = 1", "def F():\n    a = 1"),
    "attribute of super": change(
        "class F(dict):\n    def x(self): return super().keys()",
        "class F(dict):\n    def x(self): return super().values()",
    ),
    "imported name": change("def F():\n    import os.path", "def F():\n    import os"),
    "imported from": change(
        "def F():\n    from os import path", "def F():\n    from os import sep"
    ),
    "formatted": change("def F(x): return f'{x}'", "def F(x): return f'{x!r}'"),
    "format": change("def F(x): return f'{x:>3}'", "def F(x): return f'{x:>4}'"),
    "slice": change("def F(x): return x[1:2]", "def F(x): return x[1:3]"),
    "global that replaces a builtin": change(
        "def F(x): return len(x)", "def len(x): return 0\ndef F(x): return len(x)"
    ),
    "builtin that is none": change(
        "def F(x): return missing(x)", "missing = None\ndef F(x): return missing(x)"
    ),
    "closure": change(
        "def make(n):\n    def F(): return n\n    return F\nF = make(1)",
        "def make(n):\n    def F(): return n\n    return F\nF = make(2)",
    ),
    "closure in a class": change(
        "def make(n):\n    class F:\n        def x(self): return n\n    return F\nF = make([1])",
        "def make(n):\n    class F:\n        def x(self): return n\n    return F\nF = make([2])",
    ),
    "variable that is shared": change(
        """
        def make():
            n = 0
            class F:
                def up(self):
                    nonlocal n
                    n += 1
                def get(self): return n
            return F
        F = make()
        """,
        """
        def make():
            n = 0
            class F:
                def up(self):
                    nonlocal n
                    n += 1
            return F
        def other():
            n = 0
            def get(self): return n
            return get
        F = make()
        F.get = other()
        """,
    ),
    "list that is shared": change(
        "A = []\nB = A\ndef F(x):\n    A.append(x)\n    return B",
        "A = []\nB = []\ndef F(x):\n    A.append(x)\n    return B",
    ),
    "helper's helper": change(
        "def a(): return 1\ndef b(): return a()\ndef F(): return b()",
        "def a(): return 2\ndef b(): return a()\ndef F(): return b()",
    ),
    "helper in a nested function": change(
        "def a(): return 1\ndef F():\n    def b():\n        return [a() for x in ()]\n    return b",
        "def a(): return 2\ndef F():\n    def b():\n        return [a() for x in ()]\n    return b",
    ),
    "constant in a class within a function": change(
        "LIMIT = 1\ndef F():\n    class C:\n        x = LIMIT\n    return C",
        "LIMIT = 2\ndef F():\n    class C:\n        x = LIMIT\n    return C",
    ),
    "constant that a class within a function sets itself": change(
        "x = 1\ndef F():\n    class C:\n        x = x\n    return C",
        "x = 2\ndef F():\n    class C:\n        x = x\n    return C",
    ),
    "class it names": change(
        "class A:\n    def x(self): return 1\ndef F(): return A()",
        "class A:\n    def x(self): return 2\ndef F(): return A()",
    ),
    "class that a class names": change(
        "class B:\n    x = 1\nclass A:\n    def x(self): return B\nclass F:\n    def x(self): return A",
        "class B:\n    x = 2\nclass A:\n    def x(self): return B\nclass F:\n    def x(self): return A",
    ),
    "class that names it": change(
        "class F:\n    def x(self): return A\nclass A(F):\n    y = 1",
        "class F:\n    def x(self): return A\nclass A(F):\n    y = 2",
    ),
    "two classes exchanged": change(
        "class A: pass\nclass B: pass\ndef F(): return A, B",
        "class A: pass\nclass B: pass\ndef F(): return B, A",
    ),
    "which class it names": change(
        "class A: pass\nclass B: pass\nclass F:\n    x = {'k': A}",
        "class A: pass\nclass B: pass\nclass F:\n    x = {'k': B}",
    ),
    "which of two classes of one name": change(
        """
        def leaf(n):
            class Leaf:
                x = n
            return Leaf
        def inner(leaf):
            class Inner:
                def f(self): return leaf
            return Inner
        class F:
            x, y = inner(leaf(1)), inner(leaf(2))
        """,
        """
        def leaf(n):
            class Leaf:
                x = n
            return Leaf
        def inner(leaf):
            class Inner:
                def f(self): return leaf
            return Inner
        class F:
            x, y = inner(leaf(2)), inner(leaf(1))
        """,
    ),
    "set of classes": change(
        "class A: pass\nclass B: pass\nclass C: pass\nX = {A, B}\ndef F(): return X",
        "class A: pass\nclass B: pass\nclass C: pass\nX = {A, C}\ndef F(): return X",
    ),
    "class in a set": change(
        "class A: x = 1\nclass B: pass\nX = frozenset({A, B})\ndef F(): return X",
        "class A: x = 2\nclass B: pass\nX = frozenset({A, B})\ndef F(): return X",
    ),
    "order of bases": change(
        "class A: pass\nclass B: pass\nclass F(A, B): pass",
        "class A: pass\nclass B: pass\nclass F(B, A): pass",
    ),
    "nested class": change(
        "class F:\n    class Inner:\n        x = 1", "class F:\n    class Inner:\n        x = 2"
    ),
    "dataclass field": change(
        "@dataclass\nclass F:\n    a: int", "@dataclass\nclass F:\n    a: int\n    b: int = 0"
    ),
    "dataclass default": change(
        "@dataclass\nclass F:\n    a: int = 1", "@dataclass\nclass F:\n    a: int = 2"
    ),
    "dataclass type": change(
        "@dataclass\nclass F:\n    a: int", "@dataclass\nclass F:\n    a: str"
    ),
    "dataclass order of fields": change(
        "@dataclass\nclass F:\n    a: int\n    b: int",
        "@dataclass\nclass F:\n    b: int\n    a: int",
    ),
    "dataclass factory": change(
        "@dataclass\nclass F:\n    a: list = field(default_factory=list)",
        "@dataclass\nclass F:\n    a: list = field(default_factory=lambda: [1])",
    ),
    "dataclass repr": change(
        "@dataclass\nclass F:\n    a: list = field(repr=True)",
        "@dataclass\nclass F:\n    a: list = field(repr=False)",
    ),
    "dataclass metadata": change(
        "@dataclass\nclass F:\n    a: int = field(metadata={'u': 1})",
        "@dataclass\nclass F:\n    a: int = field(metadata={'u': 2})",
    ),
    "dataclass frozen": change(
        "@dataclass\nclass F:\n    a: int", "@dataclass(frozen=True)\nclass F:\n    a: int"
    ),
    "dataclass order": change(
        "@dataclass\nclass F:\n    a: int", "@dataclass(order=True)\nclass F:\n    a: int"
    ),
    "dataclass slots": change(
        "@dataclass\nclass F:\n    a: int", "@dataclass(slots=True)\nclass F:\n    a: int"
    ),
    "dataclass kw_only": change(
        "@dataclass\nclass F:\n    a: int", "@dataclass(kw_only=True)\nclass F:\n    a: int"
    ),
    "dataclass InitVar": change(
        "@dataclass\nclass F:\n    a: int", "@dataclass\nclass F:\n    a: InitVar[int]"
    ),
    "dataclass ClassVar": change(
        "@dataclass\nclass F:\n    a: int = 1", "@dataclass\nclass F:\n    a: ClassVar[int] = 1"
    ),
    "enum member": change(
        "class F(enum.Enum):\n    A = 1", "class F(enum.Enum):\n    A = 1\n    B = 2"
    ),
    "enum value": change("class F(enum.Enum):\n    A = 1", "class F(enum.Enum):\n    A = 2"),
    "enum name": change("class F(enum.Enum):\n    A = 1", "class F(enum.Enum):\n    B = 1"),
    "enum alias": change(
        "class F(enum.Enum):\n    A = 1\n    B = 2", "class F(enum.Enum):\n    A = 1\n    B = 1"
    ),
    "enum order": change(
        "class F(enum.Enum):\n    A = 1\n    B = 2", "class F(enum.Enum):\n    B = 2\n    A = 1"
    ),
    "enum method": change(
        "class F(enum.Enum):\n    A = 1\n    def x(self): return 1",
        "class F(enum.Enum):\n    A = 1\n    def x(self): return 2",
    ),
    "enum __new__": change(
        "class F(enum.Enum):\n    A = 1\n    def __new__(cls, v):\n        o = object.__new__(cls)\n        o._value_ = v\n        o.x = 1\n        return o",
        "class F(enum.Enum):\n    A = 1\n    def __new__(cls, v):\n        o = object.__new__(cls)\n        o._value_ = v\n        o.x = 2\n        return o",
    ),
    "enum kind": change("class F(enum.Enum):\n    A = 1", "class F(enum.IntEnum):\n    A = 1"),
    "enum _missing_": change(
        "class F(enum.Enum):\n    A = 1\n    @classmethod\n    def _missing_(cls, v): return cls.A",
        "class F(enum.Enum):\n    A = 1\n    @classmethod\n    def _missing_(cls, v): return None",
    ),
    "flag": change(
        "class F(enum.Flag):\n    A = 1\n    B = 2", "class F(enum.Flag):\n    A = 1\n    B = 4"
    ),
    "member as default": change(
        "class E(enum.Enum):\n    A = 1\n    B = 2\ndef F(x=E.A): pass",
        "class E(enum.Enum):\n    A = 1\n    B = 2\ndef F(x=E.B): pass",
    ),
    "NamedTuple field": change(
        "class F(NamedTuple):\n    a: int", "class F(NamedTuple):\n    b: int"
    ),
    "NamedTuple default": change(
        "class F(NamedTuple):\n    a: int = 1", "class F(NamedTuple):\n    a: int = 2"
    ),
    "NamedTuple method": change(
        "class F(NamedTuple):\n    a: int\n    def x(self): return 1",
        "class F(NamedTuple):\n    a: int\n    def x(self): return 2",
    ),
    "namedtuple": change(
        "F = collections.namedtuple('F', 'a b')", "F = collections.namedtuple('F', 'b a')"
    ),
    "generic's parameter": change(
        "T = TypeVar('T')\nclass A(Generic[T]): pass\nclass F(A[int]): pass",
        "T = TypeVar('T')\nclass A(Generic[T]): pass\nclass F(A[str]): pass",
    ),
    "TypeVar's bound": change(
        "T = TypeVar('T', bound=int)\nclass F(Generic[T]): pass",
        "T = TypeVar('T', bound=str)\nclass F(Generic[T]): pass",
    ),
    "protocol": change(
        "class F(Protocol):\n    def a(self): ...", "class F(Protocol):\n    def b(self): ..."
    ),
    "protocol at run time": change(
        "class F(Protocol):\n    def a(self): ...",
        "@runtime_checkable\nclass F(Protocol):\n    def a(self): ...",
    ),
    "TypedDict": change(
        "class F(TypedDict):\n    a: int", "class F(TypedDict, total=False):\n    a: int"
    ),
    "NewType": change(
        "I = NewType('I', int)\ndef F(x: I): pass", "I = NewType('I', str)\ndef F(x: I): pass"
    ),
    "abstract": change(
        "class F(abc.ABC):\n    def a(self): ...",
        "class F(abc.ABC):\n    @abc.abstractmethod\n    def a(self): ...",
    ),
    "registered subclass": change(
        "class A: pass\nclass F(abc.ABC):\n    def a(self): return A",
        "class A: pass\nclass F(abc.ABC):\n    def a(self): return A\nF.register(A)",
    ),
    "which registered subclass": change(
        "class F(abc.ABC): pass\nF.register(int)", "class F(abc.ABC): pass\nF.register(str)"
    ),
    "singledispatch": change(
        """
        @functools.singledispatch
        def F(x): return 1
        @F.register
        def _(x: int): return 2
        """,
        """
        @functools.singledispatch
        def F(x): return 1
        @F.register
        def _(x: int): return 3
        """,
    ),
    "singledispatch's type": change(
        "@functools.singledispatch\ndef g(x): return 1\n@g.register(int)\ndef _(x): return 2\ndef F(): return g",
        "@functools.singledispatch\ndef g(x): return 1\n@g.register(str)\ndef _(x): return 2\ndef F(): return g",
    ),
    "singledispatchmethod": change(
        """
        class F:
            @functools.singledispatchmethod
            def a(self, x): return 1
            @a.register
            def _(self, x: int): return 2
        """,
        """
        class F:
            @functools.singledispatchmethod
            def a(self, x): return 1
            @a.register
            def _(self, x: int): return 3
        """,
    ),
    "partial": change(
        "def g(a, b): pass\nclass F:\n    x = functools.partial(g, 1)",
        "def g(a, b): pass\nclass F:\n    x = functools.partial(g, 2)",
    ),
    "partial's function": change(
        "def g(a, b): return a\nclass F:\n    x = functools.partial(g, 1)",
        "def g(a, b): return b\nclass F:\n    x = functools.partial(g, 1)",
    ),
    "descriptor's state": change(
        """
        class D:
            def __init__(self, n): self.n = n
            def __get__(self, obj, cls): return self.n
        class F:
            x = D(1)
        """,
        """
        class D:
            def __init__(self, n): self.n = n
            def __get__(self, obj, cls): return self.n
        class F:
            x = D(2)
        """,
    ),
    "descriptor's class": change(
        "class D:\n    def __get__(self, obj, cls): return 1\nclass F:\n    x = D()",
        "class D:\n    def __get__(self, obj, cls): return 2\nclass F:\n    x = D()",
    ),
    "function's attribute": change("def F(): pass\nF.x = 1", "def F(): pass\nF.x = 2"),
    "bound method": change(
        "class A:\n    def a(self): return 1\n    def b(self): return 1\nX = A().a\ndef F(): return X",
        "class A:\n    def a(self): return 1\n    def b(self): return 1\nX = A().b\ndef F(): return X",
    ),
    "what an instance is of": change(
        "class A:\n    x = 1\nX = A()\ndef F(): return X",
        "class A:\n    x = 2\nX = A()\ndef F(): return X",
    ),
    "one object or two": change(
        "A = object()\nB = A\ndef F(): return A is B",
        "A = object()\nB = object()\ndef F(): return A is B",
    ),
    "logger": change(
        "log = logging.getLogger('a')\ndef F(): return log",
        "log = logging.getLogger('b')\ndef F(): return log",
    ),
    "import under another name": change(
        "import os as m\ndef F(): return m", "import sys as m\ndef F(): return m"
    ),
    "docstring that is read": change(
        "def F():\n    'a'\n    return F.__doc__", "def F():\n    'b'\n    return F.__doc__"
    ),
    "docstring that a helper reads": change(
        "def g(x): return getattr(x, '__doc__')\nclass F:\n    'a'\n    def x(self): return g(self)",
        "def g(x): return getattr(x, '__doc__')\nclass F:\n    'b'\n    def x(self): return g(self)",
    ),
    "docstring of a nested function that is read": change(
        "def F():\n    def g():\n        'a'\n    return g.__doc__",
        "def F():\n    def g():\n        'b'\n    return g.__doc__",
    ),
    "docstring of a nested class that is read": change(
        "def F():\n    class C:\n        'a'\n    return C.__doc__",
        "def F():\n    class C:\n        'b'\n    return C.__doc__",
    ),
    "type parameter": change(
        "class F[T: int]:\n    def x(self, y: T): pass",
        "class F[T: str]:\n    def x(self, y: T): pass",
        (3, 12),
    ),
    "except*": change(
        "def F(x):\n    try:\n        x()\n    except ValueError:\n        pass",
        "def F(x):\n    try:\n        x()\n    except* ValueError:\n        pass",
        (3, 11),
    ),
    "StrEnum": change(
        "class F(enum.StrEnum):\n    A = 'a'", "class F(enum.StrEnum):\n    A = 'b'", (3, 11)
    ),
}

CONSTANTS = {
    "none": ("None", "0"),
    "large": ("10**30", "10**30 + 1"),
    "negative": ("-1", "255"),
    "complex": ("1j", "2j"),
    "nan": ("float('nan')", "float('inf')"),
    "text": ("'a'", "'b'"),
    "surrogate": ("'\\udc80'", "'\\udc81'"),
    "bytearray": ("bytearray(b'a')", "bytearray(b'b')"),
    "memoryview": ("memoryview(b'a')", "memoryview(b'b')"),
    "array": ("array.array('i', [1])", "array.array('i', [2])"),
    "array's type": ("array.array('i', [1])", "array.array('l', [1])"),
    "range": ("range(3)", "range(4)"),
    "slice": ("slice(3)", "slice(4)"),
    "set": ("{1, 'a'}", "{1, 'b'}"),
    "frozenset": ("frozenset('ab')", "frozenset('ac')"),
    "set or frozenset": ("{1}", "frozenset({1})"),
    "nested": ("{'a': [({1}, {'b': 2})]}", "{'a': [({1}, {'b': 3})]}"),
    "OrderedDict": ("collections.OrderedDict(a=1, b=2)", "collections.OrderedDict(b=2, a=1)"),
    "defaultdict": ("collections.defaultdict(list)", "collections.defaultdict(set)"),
    "Counter": ("collections.Counter('ab')", "collections.Counter('aab')"),
    "deque": ("collections.deque([1])", "collections.deque([2])"),
    "deque's length": ("collections.deque([1], 3)", "collections.deque([1], 4)"),
    "Decimal": ("decimal.Decimal('1.0')", "decimal.Decimal('1.00')"),
    "Fraction": ("fractions.Fraction(1, 2)", "fractions.Fraction(1, 3)"),
    "datetime": ("datetime.datetime(2020, 1, 1)", "datetime.datetime(2020, 1, 2)"),
    "time zone": (
        "datetime.datetime(2020, 1, 1)",
        "datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)",
    ),
    "UUID": ("uuid.UUID(int=1)", "uuid.UUID(int=2)"),
    "path": ("pathlib.PurePosixPath('a')", "pathlib.PurePosixPath('b')"),
    "pattern": ("re.compile('a')", "re.compile('b')"),
    "flags of a pattern": ("re.compile('a')", "re.compile('a', re.I)"),
    "itemgetter": ("operator.itemgetter(1)", "operator.itemgetter(2)"),
    "namespace": ("types.SimpleNamespace(a=1)", "types.SimpleNamespace(a=2)"),
    "proxy": ("types.MappingProxyType({'a': 1})", "types.MappingProxyType({'a': 2})"),
    "builtin": ("len", "max"),
    "builtin method": ("'a'.join", "'b'.join"),
    "slot wrapper": ("dict.keys", "dict.values"),
    "function that is imported": ("functools.wraps", "functools.partial"),
    "class that is imported": ("decimal.Decimal", "fractions.Fraction"),
    "module": ("re", "abc"),
    "exception": ("ValueError('a')", "ValueError('b')"),
    "alias": ("list[int]", "list[str]"),
    "typing": ("Optional[int]", "Optional[str]"),
    "union": ("int | str", "int | bytes"),
    "literal": ("Literal['a']", "Literal['b']"),
    "callable": ("Callable[[int], str]", "Callable[[str], str]"),
    "annotated": ("Annotated[int, 1]", "Annotated[int, 2]"),
    "forward": ("List['A']", "List['B']"),
    "weak set": ("weakref.WeakSet([int])", "weakref.WeakSet([str])"),
    "not implemented": ("NotImplemented", "Ellipsis"),
}

_FORMATTED = """
    @functools.lru_cache(maxsize=3)
    def g(a, b=(1, 2)):
        x, y = a, b
        if a and (b or not x):
            return {"k": [1, 2, 3], "l": f"{a}-{b}"}
        while True:
            try:
                x = y + 1; y = x
            except ValueError:
                pass
            finally:
                print(x)
            if x > 3: break
        assert x, "no"
        return (x if y else None), [z for z in a if z]

    class F:
        x: int = 1
        names = {"a", "b", "c"}

        def f(self, a, *, b=2):
            def inner():
                class C:
                    y = 1
                    def m(self): return y
                return C
            for _, _, z in a:
                if not z:
                    continue
                yield from g(z)
            return inner, self.x in {1, 2, "c", None}
"""

SAME = {
    "comments and lines": change(
        _FORMATTED,
        """
        # A comment.


        @functools.lru_cache( maxsize = 3 )  # another one
        def g( a,
               # of a parameter
               b = (1, 2) ):

            x, y = a, b
            # a comment
            if a  and  ( b or not x ):
                # and here
                return {"k":[1,2,3], "l": f"{a}-{b}"}

            while   True:
                # a comment
                try:
                    x = y+1; y = x

                except ValueError:
                    pass  # nothing
                finally:
                    print( x )
                if x>3: break
            assert x , "no"

            return (x if y else None), [ z for z in a if z ]



        class F():
            x : int=1
            names = { 'a', 'b', 'c' }
            def f(self, a, *, b=2):
                def inner():

                    class C:
                        y = 1

                        # A comment.
                        def m(self): return y

                    return C

                for _, _, z in a:

                    if not z:
                        continue
                    yield from g( z )
                return inner, self.x in { 1, 2, 'c', None }
        """,
    ),
    "docstrings": change(
        """
        class F:
            def f(self):
                def g(): return 1
                class C:
                    x = 1
                    def m(self): return "text"
                return g, C, lambda: 2
            @property
            def p(self): return 1
            @staticmethod
            def s(): ...
            @functools.cached_property
            def c(self): return 1
        """,
        '''
        """Of the module."""

        class F:
            """Of the class.

            And more.
            """

            def f(self):
                """Of the method."""
                def g():
                    """Of a nested function."""
                    return 1
                class C:
                    """Of a nested class."""
                    x = 1
                    def m(self):
                        "text"
                        return "text"
                return g, C, lambda: 2

            @property
            def p(self):
                """Of the property."""
                return 1

            @staticmethod
            def s():
                """Of the static method."""

            @functools.cached_property
            def c(self):
                """Of the cached property."""
                return 1
        ''',
    ),
    "docstring and many constants": change(
        "def F():\n    return [" + ", ".join(f"'{n}', x{n}" for n in range(300)) + "]",
        "def F():\n    'doc'\n    return [" + ", ".join(f"'{n}', x{n}" for n in range(300)) + "]",
    ),
    "order of methods": change(
        "class F:\n    x = 1\n    def a(self): pass\n    def b(self): pass",
        "class F:\n    def b(self): pass\n    def a(self): pass\n    x = 1",
    ),
    "order in the module": change(
        "A = 1\ndef g(): return A\ndef h(): return g()\nclass F:\n    def x(self): return h()",
        "class F:\n    def x(self): return h()\ndef h(): return g()\nA = 1\ndef g(): return A",
    ),
    "what else is in the module": change(
        "def F(): return 1", "A = 1\ndef other(): return A\nclass Other: pass\ndef F(): return 1"
    ),
    "order of sets": change(
        "A = {'x', 'y', 1, None}\nB = frozenset(['p', 'q'])\ndef F(x): return x in {'a', 'b', 'c'}, A, B",
        "A = {None, 1, 'y', 'x'}\nB = frozenset(['q', 'p'])\ndef F(x): return x in {'c', 'b', 'a'}, A, B",
    ),
    "order of sets of tuples": change(
        "def F(x): return x in {(1, 2), (3, 4)}, x in {(1,), 2}",
        "def F(x): return x in {(3, 4), (1, 2)}, x in {2, (1,)}",
    ),
    "order of a set of classes": change(
        "class A: pass\nclass B: pass\nX = {A, B, len}\ndef F(): return X",
        "class B: pass\nclass A: pass\nX = {len, B, A}\ndef F(): return X",
    ),
    "order of a set of functions": change(
        "def a(): return 1\ndef b(): return 2\nX = {a, b}\ndef F(): return X",
        "def b(): return 2\ndef a(): return 1\nX = {b, a}\ndef F(): return X",
    ),
    "order of registering": change(
        "class F(abc.ABC): pass\nF.register(int)\nF.register(str)",
        "class F(abc.ABC): pass\nF.register(str)\nF.register(int)",
    ),
    "order of dispatching": change(
        "@functools.singledispatch\ndef F(x): pass\n@F.register(int)\ndef a(x): return 1\n@F.register(str)\ndef b(x): return 2",
        "@functools.singledispatch\ndef F(x): pass\n@F.register(str)\ndef b(x): return 2\n@F.register(int)\ndef a(x): return 1",
    ),
    "written otherwise": change(
        "def F(x):\n    if x:\n        return 1\n    else:\n        return 2",
        "def F(x):\n    if x: return 1\n    return 2",
    ),
    "constant that is computed": change("def F(): return 60 * 60", "def F(): return 3600"),
    "global that a nested class sets": change(
        "x = 1\ndef F():\n    class C:\n        x = 2\n        y = x\n    return C",
        "x = 3\ndef F():\n    class C:\n        x = 2\n        y = x\n    return C",
    ),
    "where it stands": change(
        "class F:\n    def x(self): return 1",
        "def make():\n    class F:\n        def x(self): return 1\n    return F\nF = make()",
    ),
    "typing's cache": change(
        "A = Optional[List[int]]\nB = Optional[List[int]]\ndef F(): return A, B",
        "A = Optional[List[int]]\nfor f in typing._cleanups: f()\nB = Optional[List[int]]\ndef F(): return A, B",
    ),
    "re's cache": change(
        "A = re.compile('x+')\nB = re.compile('x+')\ndef F(): return A, B",
        "A = re.compile('x+')\nre.purge()\nB = re.compile('x+')\ndef F(): return A, B",
    ),
    "forward reference that was resolved": change(
        "class F:\n    x: Optional['F'] = None",
        "class F:\n    x: Optional['F'] = None\nget_type_hints(F, globals())",
    ),
    "instance of a protocol": change(
        "class P(Protocol):\n    def a(self): ...\nclass F(P):\n    pass",
        "class P(Protocol):\n    def a(self): ...\nclass F(P):\n    pass\nF()",
    ),
    "instance of a protocol with __init__": change(
        "class P(Protocol):\n    def __init__(self): self.x = 1\nclass F(P):\n    pass",
        "class P(Protocol):\n    def __init__(self): self.x = 1\nclass F(P):\n    pass\nF()",
    ),
    "protocol that was asked": change(
        "@runtime_checkable\nclass F(Protocol):\n    def a(self): ...",
        "@runtime_checkable\nclass F(Protocol):\n    def a(self): ...\nisinstance(1, F), issubclass(int, F)",
    ),
    "what was pickled": change(
        "class F:\n    __slots__ = ('a',)\n    def __reduce_ex__(self, p): return object.__reduce_ex__(self, p)",
        "class F:\n    __slots__ = ('a',)\n    def __reduce_ex__(self, p): return object.__reduce_ex__(self, p)\nF().__reduce_ex__(4)",
    ),
    "what was cached": change(
        """
        class F:
            @functools.lru_cache
            def a(self, x=1): return x
            @functools.cached_property
            def b(self): return 1
            @functools.singledispatchmethod
            def c(self, x): return x
        """,
        """
        class F:
            @functools.lru_cache
            def a(self, x=1): return x
            @functools.cached_property
            def b(self): return 1
            @functools.singledispatchmethod
            def c(self, x): return x
        f = F()
        f.a(), f.b, f.c(1)
        """,
    ),
    "abstract class that was asked": change(
        "class F(abc.ABC):\n    @abc.abstractmethod\n    def a(self): ...",
        "class F(abc.ABC):\n    @abc.abstractmethod\n    def a(self): ...\nisinstance(1, F), issubclass(str, F)",
    ),
    "flag that was combined": change(
        "class F(enum.Flag):\n    A = 1\n    B = 2\n    C = 4",
        "class F(enum.Flag):\n    A = 1\n    B = 2\n    C = 4\nF.A | F.B, ~F.C, F(5)",
    ),
    "dataclass that was used": change(
        "@dataclass(order=True)\nclass F:\n    a: 'list[int]' = field(default_factory=list)",
        "@dataclass(order=True)\nclass F:\n    a: 'list[int]' = field(default_factory=list)\nf = F()\nrepr(f), f == f, hash(F)",
    ),
}
