"""Data shaped like a reference stays data, wherever a user puts it."""

from __future__ import annotations

import pytest
from celery import chord
from faults import BIG, make_setup

from offload.errors import BlobMissing, InvalidRef, UnsupportedVersion

pytestmark = [pytest.mark.server, pytest.mark.integration, pytest.mark.timeout(120)]

SECRET = "the secret of another app"


@pytest.fixture(scope="module", params=("json", "pickle", "msgpack", "yaml"))
def spoken(request, broker, store, tmp_path_factory):
    """Return a setup and a worker that use one serializer for everything."""
    name = request.param
    pytest.importorskip({"yaml": "yaml", "msgpack": "msgpack"}.get(name, "json"))
    conf = {
        "task_serializer": name,
        "result_serializer": name,
        "accept_content": [name, "json"],
        "result_extended": True,
    }
    with make_setup(broker, store, tmp_path_factory.mktemp(name), conf) as made:
        made.native = name
        made.shared = made.worker()
        yield made


def fetched(setup):
    return setup.stored.info("commandstats").get("cmdstat_getrange", {"calls": 0})["calls"]


def imitations(setup):
    """Return wire dicts: a copy of a valid one, changed ones, foreign ones, and nonsense."""
    real = setup.wire()
    foreign = setup.wire(app=setup.publisher(secret=SECRET))
    texts = {
        "real": real,
        "changed": real.replace("&n=6", "&n=7"),
        "foreign": foreign,
        "newer": real.replace("offload:1?", "offload:3?"),
        "nonsense": "x",
        "empty": "",
        "number": 5,
        "large": "y" * 50_000,
        "large real": real + "&x=" + "y" * 50_000,
    }
    return {name: {"__type__": "offload", "__value__": text} for name, text in texts.items()}


def test_in_arguments(spoken):
    """In arguments, at any level and next to a real reference, it arrives as sent and fetches
    nothing.
    """
    for name, data in imitations(spoken).items():
        nested = [data, {"in": data}]
        before = fetched(spoken)
        for value in (data, nested):
            result = spoken.task("take").delay(value)
            assert spoken.wait(result).get() == value, name
            result = spoken.task("take").delay("x", config=value)
            assert spoken.wait(result).get() == "x"
        if "large" not in name:
            assert fetched(spoken) == before, name
        both = spoken.task("take_anything").delay(BIG, data)
        assert spoken.wait(both).get()[1].startswith("{'__type__': 'offload'"), name


def test_as_results(spoken):
    """As a whole result, of whatever class it is in the task, or nested in one, it stays data."""
    for name, data in imitations(spoken).items():
        text = data["__value__"]
        for kind in (
            "dict",
            "nested",
            *(("ordered", "reducer") if spoken.native == "json" else ()),
        ):
            result = spoken.task("return_as").delay(kind, text)
            before = fetched(spoken)
            found = spoken.wait(result).get()
            assert found == ([data, {"in": data}] if kind == "nested" else data), (name, kind)
            if "large" not in name:
                assert fetched(spoken) == before, (name, kind)


def test_as_chord_parts_and_along_a_chain(spoken):
    """As a part of a chord, and passed on by a chain, it stays data, too."""
    if spoken.native == "yaml":
        pytest.skip("plain Celery cannot write signatures in YAML")
    take, return_as = spoken.task("take"), spoken.task("return_as")
    for name, data in imitations(spoken).items():
        result = chord([return_as.si("dict", data["__value__"]), take.si("small")])(take.s())
        assert spoken.wait(result).get() == [data, "small"], name
        chained = (return_as.si("dict", data["__value__"]) | take.s()).delay()
        assert spoken.wait(chained).get() == data, name


def test_in_arguments_of_a_callback(spoken):
    """In the arguments of a signature within a message it stays data."""
    if spoken.native == "yaml":
        pytest.skip("plain Celery cannot write signatures in YAML")
    for name, data in imitations(spoken).items():
        chained = (spoken.task("take").si("x") | spoken.task("take").si(data)).delay()
        assert spoken.wait(chained).get() == data, name


def test_in_a_state_of_a_tasks_own(spoken):
    """A task may store a result of its own that is shaped like a reference."""
    data = imitations(spoken)["real"]
    result = spoken.task("return_as").delay("state", data["__value__"])
    assert spoken.wait(result).get() == data


def test_references_of_another_app(spoken):
    """A Ref of another app is refused when it is passed to a task, and counted; nothing is sent."""
    foreign = spoken.publisher(secret=SECRET).stowaway.put(BIG)
    count = spoken.offload.counters.snapshot()["refs_refused"]
    for call in (
        lambda: spoken.task("size").delay(foreign),
        lambda: spoken.task("take").delay("x", config={"in": [foreign]}),
        lambda: spoken.task("size").apply_async(("x",), link=spoken.task("size").si(foreign)),
    ):
        with pytest.raises(InvalidRef) as error:
            call()
        assert "no valid signature" in str(error.value)
        assert error.value.task
    assert spoken.offload.counters.snapshot()["refs_refused"] == count + 3
    assert not spoken.messages()


def test_references_that_were_changed(spoken):
    """A reference that was unpickled or built by hand is verified before it is sent."""
    from offload.ref import Ref

    wire = spoken.wire()
    for text, error in (
        (wire.replace("&n=6", "&n=7"), InvalidRef),
        (wire.replace("offload:1?", "offload:3?"), UnsupportedVersion),
        ("nonsense", InvalidRef),
    ):
        with pytest.raises(error):
            spoken.task("size").delay(Ref.unbound(text))
    result = spoken.task("size").delay(Ref.unbound(wire))
    assert spoken.wait(result).get() == ["str", len(BIG)]


def test_a_reference_to_missing_content_is_not_sent(spoken):
    """Passing on a reference whose content is missing fails for the sender."""
    app = spoken.publisher(retention=5)
    ref = app.stowaway.put(BIG + "gone")
    spoken.stored.delete(f"offload:blob:{{{ref.digest}}}")
    with pytest.raises(BlobMissing, match="'size', value:"):
        spoken.task("size").delay(ref)
