"""Objects of the catalog as arguments of tasks, and results of tasks in the catalog."""

from __future__ import annotations

import datetime as dt

import pytest
from celery import chain, chord, group
from celery.utils import uuid

import offload.ref
from offload import (
    ConfigurationError,
    InvalidRef,
    ObjectNotFound,
    Ref,
    StoreUnavailable,
    UnsupportedVersion,
)
from offload.hooks.message import STAND_IN
from offload.inspect.values import describe
from offload.ref import in_message
from offload.stores.open import open_store
from offload.testing.store import unique
from tests.support.processes import wait_until
from tests.support.wire import make_wire

NAME = "churn:model"


both = pytest.mark.parametrize("wire", ("json", "pickle"), indirect=True)


@pytest.fixture
def wire(request):
    serializer = getattr(request, "param", "json")
    wire = make_wire(
        conf={"task_serializer": serializer, "result_serializer": serializer},
        retry={"max_retries": 1, "interval_start": 0.001, "interval_max": 0.001},
        grace=0.001,
    )
    add_tasks(wire)
    return wire


@pytest.fixture
def catalog(wire):
    catalog = wire.hook.catalog
    catalog.save(NAME, model(1))
    return catalog


def add_tasks(wire):
    catalog = wire.hook.catalog

    def score(model, more=None):
        return [model[0], more]

    def within(values):
        return [values["models"][0][0]]

    def lazy(model: Ref):
        catalog.remove(NAME)
        if not wire.app.conf.task_always_eager:  # only its grace keeps it for an eager call
            pass_grace(wire)
        return model.get()[0]

    def release(_before=None):
        return catalog.save(NAME, model_of(wire, 2)).version

    def scores(models):
        return [model[0] for model in models]

    def calls(callback):
        callback = wire.app.signature(dict(callback))
        callback.apply_async()
        return repr(callback.args[0])

    @wire.app.task(name="flaky", shared=False, bind=True)
    def flaky(self, model):
        if not self.request.retries:
            release()
            raise self.retry(countdown=0)
        return model[0]

    for function in (score, within, lazy, release, scores, calls):
        wire.app.task(name=function.__name__, shared=False)(function)


def model(number):
    return [number, "weights" * 2000]


def model_of(_wire, number):
    return model(number)


# -- ref


def test_a_message_keeps_the_version_it_refers_to(wire, catalog):
    """A task receives the version that was current when it was sent, even if it was removed."""
    result = wire.app.tasks["score"].delay(catalog.ref(NAME), 7)
    catalog.save(NAME, model(2))
    catalog.remove(NAME)
    pass_grace(wire)
    assert wire.get(result) == [1, 7]
    wait_until(lambda: is_swept(wire), "the version is deleted")


def sweep(wire):
    wire.app.tasks["offload.gc"]()


def digests(wire):
    return set(wire.hook.store.blobs.find(""))


def pass_grace(wire):
    """Sweep until what is released before, and isn't held, has been deleted."""
    digest = wire.hook.catalog.save("released", "now" * 2000).digest
    wire.hook.catalog.remove("released")
    wait_until(lambda: sweep(wire) or digest not in digests(wire), "released content is deleted")


def is_swept(wire):
    sweep(wire)
    return not digests(wire)


# -- late


@both
def test_a_late_reference_resolves_when_the_task_starts(wire, catalog):
    """A task receives the version that is the latest when it starts, positionally or by name."""
    late = catalog.late(NAME)
    first = wire.app.tasks["score"].delay(late, more=late.late.name)
    second = wire.app.tasks["score"].delay(model=late)
    catalog.save(NAME, model(2))
    assert wire.get(first) == [2, NAME]
    assert wire.get(second) == [2, None]


def test_versions_tags_and_buckets(wire, catalog):
    """A late reference may name a version, a tag, or an object in another bucket."""
    catalog.tag(NAME, "production")
    other = catalog.bucket("team-a")
    refs = [catalog.late(NAME, "production"), catalog.late(NAME, 1), other.late(NAME)]
    results = [wire.app.tasks["score"].delay(ref) for ref in refs]
    catalog.save(NAME, model(2))
    other.save(NAME, model(3))
    assert [wire.get(result)[0] for result in results] == [1, 1, 3]


@both
def test_late_references_within_values(wire, catalog):
    """Late references work within lists and dicts, like others."""
    assert wire.run(wire.app.tasks["within"], {"models": [catalog.late(NAME)]}) == [1]
    shared = [catalog.late(NAME)]
    assert wire.run(wire.app.tasks["within"], {"models": shared, "same": shared}) == [1]


@both
def test_a_step_of_a_chain_resolves_when_it_starts(wire, catalog):
    """In a chain, a step receives what an earlier step has just saved."""
    tasks = wire.app.tasks
    result = chain(tasks["release"].si(), tasks["score"].si(catalog.late(NAME)))()
    assert wire.get(result) == [2, None]


@both
def test_groups_chords_and_callbacks(wire, catalog):
    """Parts of groups and chords, bodies, and callbacks receive late objects."""
    tasks, late = wire.app.tasks, catalog.late(NAME)
    parts = group(tasks["score"].s(late, n) for n in range(3))()
    wire.work()
    assert parts.get(timeout=10) == [[1, n] for n in range(3)]
    body = tasks["score"].s(late).set(immutable=True)
    result = chord([tasks["release"].si(), tasks["score"].s(late)], body)()
    assert wire.get(result) == [2, None]
    linked = uuid()
    tasks["release"].apply_async(link=tasks["score"].si(late).set(task_id=linked))
    wire.work()
    assert wire.app.AsyncResult(linked).get(timeout=10)[0] == 2


@both
def test_a_signature_as_an_argument_stays_late(wire, catalog):
    """In a signature that a task receives, a late reference is for the task of the signature."""
    tasks = wire.app.tasks
    called = uuid()
    callback = tasks["score"].si(catalog.late(NAME)).set(task_id=called)
    result = tasks["calls"].delay(callback)
    message = wire.take()
    wire.execute(message)
    catalog.save(NAME, model(5))
    assert wire.get(result) == f"<Ref late {NAME}@latest>"
    assert wire.app.AsyncResult(called).get(timeout=10)[0] == 5


@both
def test_a_retry_receives_the_same_value(wire, catalog):
    """A task that retries receives the same value again, even if there is a newer version."""
    assert wire.run(wire.app.tasks["flaky"], catalog.late(NAME)) == 1
    assert catalog.list_versions(NAME) == ["1", "2"]


def test_a_task_that_takes_a_ref_keeps_the_version(wire, catalog):
    """A parameter annotated Ref receives a reference to the version, which lasts as the task."""
    assert wire.run(wire.app.tasks["lazy"], catalog.late(NAME)) == 1
    wait_until(lambda: is_swept(wire), "the version is deleted")


def test_a_value_can_be_passed_on_after_its_version_was_removed(wire, catalog):
    """A task can publish what it received late, even if the object was removed meanwhile."""
    text = "immutable, so published by a known reference" * 100
    catalog.save("text", text)
    sent = []

    def passes(value):
        catalog.remove("text")
        wait_until(lambda: sweep(wire) or digest not in digests(wire), "the version is deleted")
        sent.append(wire.app.tasks["within"].delay({"models": [[value]]}))

    digest = catalog.info("text", 1).digest
    wire.run(wire.app.task(name="passes", shared=False)(passes), catalog.late("text"))
    assert wire.get(sent[0]) == [text]


@both
def test_a_missing_object_fails_the_task(wire, catalog):
    """Without the object, version, or tag, the task fails, and names argument and object."""
    wanted = {
        "task 'score', model: the catalog has no object 'other'": catalog.late("other"),
        f"task 'score', model: the catalog has no version '{NAME}@3'": catalog.late(NAME, 3),
        f"task 'score', model: the catalog has no version '{NAME}@live'": catalog.late(
            NAME, "live"
        ),
    }
    for message, late in wanted.items():
        with pytest.raises(ObjectNotFound) as raised:
            wire.run(wire.app.tasks["score"], model=late)
        assert str(raised.value) == message
        assert (raised.value.task, raised.value.argument) == ("score", "model")


@pytest.mark.parametrize(("part", "name"), (("pointers", "read_all"), ("blobs", "get")))
def test_an_outage_sends_the_message_again(wire, catalog, monkeypatch, part, name):
    """If record or content is unavailable, the task is sent again, and resolves when it starts."""
    result = wire.app.tasks["score"].delay(catalog.late(NAME))
    part = getattr(wire.hook.store, part)
    read, failures = getattr(part, name), [1, 2]  # with one retry, one call makes two attempts

    def fails(*given):
        if failures:
            failures.pop()
            raise StoreUnavailable("down")
        return read(*given)

    monkeypatch.setattr(part, name, fails)
    wire.execute(wire.take())
    assert not failures
    assert not result.ready()
    catalog.save(NAME, model(2))
    assert wire.get(result) == [2, None]
    assert wire.hook.counters.snapshot()["task_retries"] == 1


@both
def test_data_cannot_imitate_a_late_reference(wire, catalog):
    """Data that looks like a late reference stays data, and an altered one is refused."""
    late = catalog.late(NAME)
    for data in (in_message(late.wire), late.__json__(), late.wire):
        assert wire.run(wire.app.tasks["within"], {"models": [[data]]}) == [data]
    altered = Ref.unbound(late.wire.replace(NAME, "churn:other"))
    with pytest.raises(InvalidRef, match="has no valid signature"):
        wire.app.tasks["score"].delay(altered)


def test_other_workers_never_run_the_task_on_it(wire, catalog, monkeypatch):
    """A worker without offload is given the stand-in, and one of an older version fails."""
    result = wire.app.tasks["score"].delay(catalog.late(NAME))
    message = wire.take()
    assert message.headers["task"] == STAND_IN
    monkeypatch.setattr(offload.ref, "_LATE_VERSION", 1)
    wire.execute(message)
    with pytest.raises(UnsupportedVersion, match="upgrade offload"):
        result.get(timeout=10)


def test_a_late_reference_has_no_value_elsewhere(wire, catalog):
    """`get` of a late reference says what to do; `Offload.get` returns the object."""
    late = catalog.late(NAME)
    with pytest.raises(InvalidRef, match="pass it to a task"):
        late.get()
    for refused in (wire.hook.put, lambda ref: wire.hook.pin(ref, "pin")):
        with pytest.raises(InvalidRef, match=r"use Catalog\.ref"):
            refused(late)
    assert wire.hook.get(late) == model(1)
    described = describe(wire.app._offload, late.wire)
    assert (described["late"], described["type"]) == (f"{NAME}@latest", "list")
    with pytest.raises(ObjectNotFound):
        describe(wire.app._offload, catalog.late("other").wire)
    wire.run(wire.app.tasks["score"], late)
    assert wire.app.tasks["score"](late) == [1, None]
    for wrong in (("..",), (NAME, ""), (NAME, "not a version")):
        with pytest.raises(ValueError, match="not a"):
            catalog.late(*wrong)


@pytest.mark.parametrize("serializer", ("json", "pickle"))
def test_eager_calls(serializer):
    """Eager calls resolve late references, and save results."""
    wire = make_wire(conf={"task_serializer": serializer, "task_always_eager": True})
    add_tasks(wire)
    catalog = wire.hook.catalog
    catalog.save(NAME, model(1))
    tasks, late = wire.app.tasks, catalog.late(NAME)
    assert tasks["score"].delay(late, more=3).get() == [1, 3]
    steps = chain(tasks["release"].si(), tasks["score"].si(late))
    assert steps().get() == [2, None]
    assert tasks["lazy"].delay(late).get() == 2
    saving = saving_task(wire, "daily:{task}")
    saving.delay(4)
    assert catalog["daily:saving"] == model(4)


# -- save_as


def saving_task(wire, save_as, **options):
    def saving(number):
        return model(number)

    options = {"shared": False, **options}
    return wire.app.task(name="saving", offload={"save_as": save_as}, **options)(saving)


def test_results_are_saved(wire, catalog):
    """With save_as, a task's result becomes the next version of the object it names."""
    saving = saving_task(wire, "daily:{task}")
    for number in (1, 2):
        assert wire.run(saving, number) == model(number)
    assert catalog.list_versions("daily:saving") == ["1", "2"]
    assert catalog["daily:saving"] == model(2)
    metadata = catalog.info("daily:saving", 1).metadata
    assert metadata["task"] == "saving"


def test_fields_of_names(wire, catalog):
    """Fields stand for the task's id, that of its workflow, and the day."""
    saving = saving_task(wire, "x/{task_id}:{root_id}/{date}")
    result = chain(wire.app.tasks["release"].si(), saving.si(3)).apply_async()
    wire.get(result)
    day = dt.datetime.now(dt.timezone.utc).date()
    (name,) = catalog.list_objects("x/")
    assert name.startswith(f"x/{result.id}:{result.parent.id}/")
    assert abs(dt.date.fromisoformat(name[-10:]) - day) <= dt.timedelta(days=1)


def test_a_stored_result_is_not_stored_again(wire, catalog, monkeypatch):
    """A large result is serialized and sent once, for the result backend and the catalog."""
    saving = saving_task(wire, "daily")
    result = saving.delay(3)
    wire.calls.clear()
    serializers, encoded = wire.app._offload.content.serializers, []
    encode = serializers.encode
    monkeypatch.setattr(
        serializers, "encode", lambda *given: (encoded.append(1), encode(*given))[1]
    )
    wire.work()
    assert (len(encoded), wire.calls.count("put")) == (1, 1)
    sweep(wire)
    assert result.get(timeout=10) == catalog["daily"] == model(3)


@pytest.mark.parametrize("options", ({"ignore_result": True}, {"offload": False}))
def test_small_and_ignored_results_are_saved(wire, catalog, options):
    """A result is saved even if it is ignored or small."""
    offload_ = {"save_as": "daily"} | ({} if "ignore_result" in options else {"enabled": False})

    def saving(number):
        return number

    options = {"ignore_result": options.get("ignore_result", False)}
    task = wire.app.task(name="saving", shared=False, offload=offload_, **options)(saving)
    task.delay(3)
    wire.work()
    assert catalog["daily"] == 3


def test_a_failure_to_save_fails_the_task(wire, catalog, monkeypatch):
    """If the result can't be saved, the task fails, after it ran, with the reason."""
    saving = saving_task(wire, "daily")
    result = saving.delay(3)

    def refuses(*_given, **_more):
        raise StoreUnavailable("down")

    monkeypatch.setattr(wire.hook.catalog, "save", refuses)
    wire.work()
    with pytest.raises(StoreUnavailable, match="task 'saving', result: down"):
        result.get(timeout=10)


def test_a_task_id_cannot_choose_another_object(wire, catalog):
    """Ids with characters that have a meaning in names fail the task before it runs."""
    saving = saving_task(wire, "daily:{task_id}")
    for task_id in ("../x", "a:b", "a/b", "é", "x" * 101, f"a..{uuid()}"):
        result = saving.apply_async((3,), task_id=task_id)
        wire.work()
        with pytest.raises(ConfigurationError, match="save_as"):
            result.get(timeout=10)
    assert catalog.list_objects() == [NAME]


@pytest.mark.parametrize(
    "save_as", ("{args}", "{task_id.x}", "{}", "{{x}}", "}", "a//b", "a@1", "..", "", 3, "é")
)
def test_wrong_names_are_refused(save_as):
    """A name with unknown fields, or that no object may have, is refused before anything runs."""
    wire = make_wire()
    saving = saving_task(wire, save_as)
    with pytest.raises(ConfigurationError, match="save_as"):
        saving.delay(3)


def test_a_call_cannot_save(wire, catalog):
    """Only the task has the option to save results; messages can't set it."""
    with pytest.raises(ConfigurationError, match="'save_as': set it for the task"):
        wire.app.tasks["score"].apply_async((model(1),), offload={"save_as": "x"})


def test_coroutine_functions_are_refused(wire):
    """A coroutine function's result can't be saved, so the option is refused."""

    async def coroutine():
        return 1

    task = wire.app.task(name="later", shared=False, offload={"save_as": "x"})(coroutine)
    with pytest.raises(ConfigurationError, match="coroutine functions"):
        task.delay()


def test_refs_of_stores_on_disk(tmp_path):
    """On a store without holds, a message's version lives though it was removed."""
    wire = make_wire(store=f"file://{tmp_path}/{unique()}", grace=0.001)
    add_tasks(wire)
    catalog = wire.hook.catalog
    catalog.save(NAME, model(1))
    result = wire.app.tasks["score"].delay(catalog.ref(NAME), 7)
    catalog.remove(NAME)
    sweep(wire)
    assert wire.get(result) == [1, 7]
    assert open_store(wire.hook.store.url).url == wire.hook.store.url


# -- memo


def test_memo_counts_the_content_of_late_objects(wire, catalog):
    """Equal calls with a late object hit while it stands for the same content, and no longer."""
    ran = []

    def remembered(model):
        ran.append(model[0])
        return model[0]

    options = {"memo": 600, "save_as": "daily:{task}"}
    task = wire.app.task(name="remembered", shared=False, offload=options)(remembered)
    late = catalog.late(NAME)
    assert [wire.run(task, late) for _ in range(2)] == [1, 1]
    catalog.save(NAME, model(2))
    assert [wire.run(task, late) for _ in range(2)] == [2, 2]
    assert ran == [1, 2]
    assert [catalog.load("daily:remembered", n) for n in range(1, 5)] == [1, 1, 2, 2]


def test_memo_runs_for_late_objects_in_signatures(wire, catalog):
    """A signature with a late object in it has no content to compare, so the task runs."""
    ran = []

    def counted(callback):
        ran.append(callback)
        return len(ran)

    task = wire.app.task(name="counted", shared=False, offload={"memo": 600})(counted)
    callback = wire.app.tasks["score"].si(catalog.late(NAME))
    assert [wire.run(task, callback) for _ in range(2)] == [1, 2]
