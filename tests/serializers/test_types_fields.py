"""Dataclasses, pydantic models, and enums travel by their fields."""

from __future__ import annotations

import enum
import functools
import tracemalloc
from collections import OrderedDict
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from inspect import signature
from typing import Generic, TypeVar
from uuid import UUID

import numpy as np
import orjson
import pandas as pd
import pytest
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, field_validator

from offload import ConfigurationError, DeserializationError, SerializationError, register_type
from offload.memo.keys import digest_of_value
from offload.serializers import Registry
from offload.serializers.types import registry
from tests.serializers.conftest import stored, through
from tests.support.wire import make_wire

T = TypeVar("T")
SECRET = "hunter2"


class Status(str, enum.Enum):
    NEW = "new"
    DONE = "done"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Part:
    name: str
    status: Status = Status.NEW


@dataclass(frozen=True)
class Line:
    part: Part
    count: int = 1
    price: Decimal = Decimal("1.50")


@dataclass
class Order:
    id: UUID
    lines: list[Line]
    day: date | None = None
    best: Line | None = None
    by_name: dict[str, tuple[Line, ...]] = field(default_factory=dict)
    access: Access = Access.READ
    data: object = None
    twice: InitVar[int] = 0
    total: int = field(init=False, default=0)

    def __post_init__(self, twice):
        self.total += twice * 2

    @functools.cached_property
    def slow(self):
        return len(self.lines)


class Keyed:
    __slots__ = ("key",)


@dataclass
class Sealed(Keyed):
    __slots__ = ("name",)
    name: str


@dataclass
class Box(Generic[T]):
    content: T


class Item(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    number: int = Field(alias="Number", ge=0)
    when: datetime | None = None
    status: Status = Status.NEW
    _note: str = PrivateAttr("")


class Invoice(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True)
    items: list[Item]
    first: Item | None = None
    line: Line | None = None
    array: np.ndarray | None = None
    parent: Invoice | None = None


class Names(RootModel[list[str]]):
    pass


class Page(BaseModel, Generic[T]):
    content: list[T]


class Thing:
    def __init__(self, x):
        self.x = x


ORDER = Order(
    UUID(int=5),
    [Line(Part("a")), Line(Part("b", Status.DONE), 2, Decimal("0.1"))],
    date(2026, 1, 2),
    Line(Part("c"), 3),
    {"x": (Line(Part("d")),)},
    Access.READ | Access.WRITE,
    twice=4,
)
CHECKS = {"json": {"json"}, "pickle": {"json", "pickle"}, "msgpack": {"msgpack"}}


@pytest.mark.parametrize("native", CHECKS)
def test_a_dataclass_arrives_with_all_that_it_contains(types, native):
    """Registering a dataclass is enough for the dataclasses and enums in its annotations."""
    register_type(Order)
    for value in (ORDER, [ORDER], {"a": ORDER}, [Part("x")], ORDER.lines[0]):
        payload = Registry(CHECKS[native]).encode(value, native)
        assert payload.serializer == "tree"
        arrived = through(value, native, CHECKS[native])
        assert arrived == value
        assert repr(arrived) == repr(value)
    assert type(through(ORDER).lines[1].part.status) is Status


def test_large_fields_are_not_copied(types):
    """An array in a field shares its memory with the buffer."""
    register_type(Order)
    array = np.zeros(100_000)
    payload = Registry({"json"}).encode(Order(UUID(int=1), [], data=array), "json")
    assert any(np.shares_memory(array, np.frombuffer(b, np.uint8)) for b in payload.buffers)
    assert through(Order(UUID(int=1), [], data=array)).data.tolist() == array.tolist()


def test_a_dataclass_is_rebuilt_without_a_call(types):
    """Neither ``__init__`` nor ``__post_init__`` runs again, so that fields keep their content;
    cached properties are computed again.
    """
    register_type(Order)
    order = Order(UUID(int=1), [], twice=1)
    assert order.slow == 0
    arrived = through(order)
    assert arrived.total == 2
    assert "slow" not in vars(arrived)


def test_slots_and_missing_attributes_are_kept(types):
    """A dataclass with slots arrives, and an attribute that isn't set stays unset."""

    @register_type
    @dataclass(slots=True, frozen=True)
    class Slotted:
        a: int
        b: int = field(init=False)

    arrived = through(Slotted(1))
    assert arrived.a == 1
    assert not hasattr(arrived, "b")


def test_attributes_besides_the_fields_are_refused(types):
    """An attribute that isn't a field, also one in a slot of a base class or of a model, isn't
    dropped silently.
    """
    for kind in (Part, Sealed, Item):
        register_type(kind)
    part, sealed, item = Part("x"), Sealed("x"), Item(number=1)
    assert through([part, sealed, item]) == [part, sealed, item]
    part.more = sealed.key = 1
    vars(item)["more"] = 1
    for value in (part, sealed, item):
        with pytest.raises(SerializationError, match="attributes that aren't fields"):
            through([value])


def test_a_parametrized_dataclass_arrives(types):
    """`Box[int](1)` arrives as a `Box`, without its parameter, which Python makes an attribute."""
    register_type(Box)
    arrived = through(Box[int](1))
    assert (type(arrived), arrived.content) == (Box, 1)
    assert not hasattr(arrived, "__orig_class__")


def test_a_field_that_is_no_data_is_named(types):
    """The error for a field that can't travel contains its path, and pickle isn't used."""
    register_type(Order)
    value = Order(UUID(int=1), [], data=Thing(SECRET))
    for native, accept in CHECKS.items():
        with pytest.raises(SerializationError, match=r"of type Thing at \['data'\]") as caught:
            through(value, native, accept)
        assert SECRET not in str(caught.value)


def test_added_fields_take_their_defaults(types):
    """Data without a field takes its default; without a default, or with an unknown field, the
    error names the type.
    """
    register_type(Part)
    name = registry.find(Part).name
    read = Registry({"json"}).decode
    head = orjson.dumps({"registered": [name, 1, {"json": {"name": "x"}}]})
    assert read("tree", head, []) == Part("x")
    for data, message in (
        ({"status": None}, "field 'name' is missing"),
        ({"name": "x", SECRET: 1}, "fields that this process's class lacks"),
        ([SECRET], "fields that this process's class lacks"),
    ):
        head = orjson.dumps({"registered": [name, 1, {"json": data}]})
        with pytest.raises(DeserializationError, match=message) as caught:
            read("tree", head, [])
        assert SECRET not in str(caught.value)


def test_enums_arrive_as_members(types):
    """A registered enum arrives as its member; one that is only a field's type stays as plain
    Celery delivers it outside of such a field.
    """
    register_type(Part)
    through([Part("x")])
    assert type(through([Status.NEW])[0]) is str
    register_type(Status)
    register_type(Access)
    assert through([Status.NEW])[0] is Status.NEW
    assert through(Access.READ | Access.WRITE) == Access.READ | Access.WRITE
    name = registry.find(Status).name
    for member in ("mro", "__class__", 5, None):
        with pytest.raises(DeserializationError, match="no member with this name"):
            Registry({"json"}).decode("tree", orjson.dumps({"registered": [name, 1, member]}), [])


@pytest.mark.parametrize("native", CHECKS)
def test_a_pydantic_model_arrives_exactly(types, native):
    """A model arrives with nested models, aliases, extra and private attributes, and the set of
    fields that were given.
    """
    register_type(Invoice)
    item = Item(Number=1, when=datetime(2026, 1, 1, tzinfo=timezone.utc))
    item._note = "note"
    invoice = Invoice(items=[item, Item(number=2)], first=item, line=ORDER.lines[1], more=[1, (2,)])
    nested = Invoice(items=[], parent=invoice)
    for value in (invoice, [nested], {"a": item}):
        arrived = through(value, native, CHECKS[native])
        assert arrived == value
        assert repr(arrived) == repr(value)
    arrived = through(invoice, native, CHECKS[native])
    assert arrived.model_extra == {"more": [1, (2,)]}
    assert arrived.items[0]._note == "note"
    assert arrived.model_fields_set == invoice.model_fields_set
    assert arrived.items[1].model_fields_set == {"number"}
    array = through(Invoice(items=[], array=np.arange(3)), native, CHECKS[native]).array
    assert array.tolist() == [0, 1, 2]


def test_root_and_generic_models_arrive(types):
    """Root models and parametrized generic models arrive in their class."""
    register_type(Names)
    register_type(Page[int])
    assert through([Names(["a", "b"])]) == [Names(["a", "b"])]
    assert through(Page[int](content=[1, 2])) == Page[int](content=[1, 2])


def test_pydantic_validates_what_arrives(types):
    """Data that a model doesn't accept raises an error with field and kind, without the value."""
    register_type(Item)
    name = registry.find(Item).name
    by_name = "by_name" in signature(Item.model_validate).parameters
    named = "number" if by_name else "a field"  # pydantic before 2.11 names the alias instead
    for fields in ({"number": SECRET}, {"number": -1}, {}):
        head = orjson.dumps({"registered": [name, 1, {"json": {"fields": fields}}]})
        with pytest.raises(DeserializationError, match=rf"invalid: {named} \(") as caught:
            Registry({"json"}).decode("tree", head, [])
        assert SECRET not in str(caught.value)
    for data in ({"fields": {"number": 1}, "private": {"__class__": 1}}, {"fields": 5}, 5):
        head = orjson.dumps({"registered": [name, 1, {"json": data}]})
        with pytest.raises(DeserializationError, match="cannot decode a value of type"):
            Registry({"json"}).decode("tree", head, [])


@pytest.mark.parametrize(
    ("field", "value"),
    (
        ("rows", range(10**7)),
        ("rows", np.ndarray(10**7, "S0", b"")),
        ("rows", pd.RangeIndex(10**7)),
        ("count", Decimal("1e200000")),
        ("price", 1 << 200_000),
    ),
    ids=("range", "array", "index", "Decimal", "int"),
)
def test_pydantic_converts_nothing_that_takes_no_memory(types, field, value):
    """A range isn't made a list, nor a huge Decimal an int; ordinary values are converted as ever,
    and fields of these types have them.
    """

    class Model(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        rows: list[int] = []
        count: int = 0
        price: Decimal = Decimal(0)
        any: object = None

    register_type(Model, name="Model")
    fields = orjson.loads(Registry({"json"}).encode({field: value, "any": {1}}, "json").head)
    head = orjson.dumps({"registered": ["Model", 1, {"dict": [["fields"], [fields]]}]})
    tracemalloc.start()
    try:
        with pytest.raises(DeserializationError, match=field):
            Registry({"json"}).decode("tree", head, [])
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    sent = Model(rows=(1, 2), count=Decimal(3), any=[range(10**9), Decimal("1e99999"), 1 << 99999])
    assert through(sent) == sent
    assert through(Model.model_construct(rows=(1, 2), any=np.arange(9.0))).rows == [1, 2]


@pytest.mark.parametrize("part", ("fields", "extra", "private"))
def test_a_default_factory_is_not_called(types, part):
    """A defaultdict in place of a model's fields is refused, so that its factory isn't called."""
    register_type(Item, name="Item")
    factory = {"defaultdict": ["list", [], []]}
    data = {"dict": [["fields", part], [{"dict": [[], []]}, factory]]}
    head = orjson.dumps({"registered": ["Item", 1, data]})
    with pytest.raises(DeserializationError, match="a dict of fields is missing"):
        Registry({"json"}).decode("tree", head, [])


def test_validators_run_on_what_arrives(types):
    """A validator of the model runs when a value arrives."""

    @register_type
    class Checked(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def check(cls, text):
            if text == SECRET:
                raise ValueError(f"refused: {text}")
            return text

    bad = Checked.model_construct(text=SECRET)
    with pytest.raises(DeserializationError, match=r"text \(value_error\)") as caught:
        through(bad)
    assert SECRET not in str(caught.value)
    assert through(Checked(text="x")).text == "x"


def test_equal_values_have_equal_bytes(types):
    """Values that were made in another order have the same bytes and the same memo key."""
    register_type(Invoice)
    register_type(Order)
    pairs = (
        (Part(name="x", status=Status.DONE), Part(status=Status.DONE, name="x")),
        (Item(number=1, when=None), Item(when=None, Number=1)),
        (Invoice(first=None, items=[]), Invoice(items=[], first=None)),
    )
    for one, other in pairs:
        registry_ = Registry({"json"})
        assert one == other
        first, second = registry_.encode(one, "json"), registry_.encode(other, "json")
        assert first.head == second.head
        assert [*map(bytes, stored(first))] == [*map(bytes, stored(second))]
        digests = [digest_of_value(each, serializers=registry_) for each in (one, other)]
        assert digests[0] == digests[1]


def test_tasks_take_and_return_models_and_dataclasses(types):
    """A task under JSON receives and returns registered models and dataclasses."""
    register_type(Order)
    register_type(Invoice)
    wire = make_wire(conf={"accept_content": ["json"]})

    def bill(order: Order, note: str):
        return Invoice(items=[Item(number=line.count) for line in order.lines], note=note)

    wire.app.task(name="bill", shared=False)(bill)
    wire.app.finalize()
    result = wire.app.tasks["bill"].delay(ORDER, "n" * 5000)
    wire.work()
    assert result.get(timeout=10) == Invoice(
        items=[Item(number=1), Item(number=2)], note="n" * 5000
    )


def test_what_has_no_fields_is_refused(types):
    """A class whose content isn't fields needs encode and decode."""

    @dataclass
    class Mapping(dict):
        a: int = 1

    for kind in (Thing, Mapping, OrderedDict):
        with pytest.raises(ConfigurationError):
            register_type(kind)
    with pytest.raises(ConfigurationError, match="subclasses may have other fields"):
        register_type(Part, subclasses=True)


def test_a_nested_type_can_be_registered_with_its_own_functions(types):
    """A registration takes the place of one that follows from another type's annotations."""
    register_type(Line)
    through(ORDER.lines)
    register_type(
        Part,
        encode=lambda part: part.name,
        decode=lambda data, version: Part(data, Status.DONE),
        name="part",
    )
    assert through(Line(Part("x"))).part == Part("x", Status.DONE)


def test_an_unregistered_dataclass_is_refused_with_advice(types):
    """The error for a dataclass or a model that isn't registered says how to register it."""
    for value in (Part("x"), Item(number=1)):
        with pytest.raises(SerializationError, match=r"call offload.register_type\((Part|Item)\)"):
            Registry({"json"}).encode([value], "json")
