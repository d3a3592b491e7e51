"""Only trusted code runs."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import pickle
import re
import sys
from dataclasses import replace

import pytest
from celery import Celery

from offload.classes.hashing import python_tag
from offload.classes.keys import generate, signer
from offload.classes.registry import ClassRegistry
from offload.classes.shipping import Shipping
from offload.classes.versions import (
    LATEST,
    VERSION,
    PointerNames,
    Record,
    Signature,
    Storage,
    StoredVersion,
    tag_purpose,
)
from offload.digest import digest_of
from offload.errors import CodeError, CodeRefused, ConfigurationError, UnknownClass
from offload.serializers.choose import Registry
from offload.stores.memory import MemoryStore
from tests.classes.conftest import servers, store_of
from tests.support.payload import Payload

CI, NEXT, EVIL = generate(), generate(), generate()
HMAC = "hmac:correct horse battery"
NAMES = PointerNames("__main__.F")
SOURCE = """
class P:
    def part(self): return 1
class F:
    made = P
    def go(self): return TURN
"""


def ci(**more):
    return {"key": CI[1], "name": "ci", **more}


def counted(registry, name="classes_refused"):
    return registry._versions.counters.snapshot()[name]


def storage_of(store):
    return Storage(store.pointers, lambda call: call())


def set_to(store, pointer, content):
    """Write to the store as only an attacker with access to it can."""
    assert store.pointers.swap(pointer, store.pointers.read(pointer), content)


def put(store, stored):
    """Store a version, replacing any other."""
    pointer = PointerNames(stored.record.class_name).version(stored.record.hash)
    assert storage_of(store).put(stored, store.pointers.read(pointer))


def signed(record, key=EVIL[0]):
    signing = signer(key)
    record = replace(record, signature=None)
    value = signing.sign(record.signed_bytes).hex()
    return replace(record, signature=Signature(signing.id, value))


def with_content(stored, content=None, source=None, **record):
    """Return a version with other content and a matching record."""
    content = stored.content if content is None else content
    source = stored.source if source is None else source
    fitting = {"digest": digest_of([content]), "size": len(content)}
    fitting |= {"source": digest_of([source]) if source else "", "source_size": len(source)}
    return StoredVersion(replace(stored.record, **fitting, **record), content, source)


@pytest.fixture(params=servers(("memory", "file", "redis")))
def store(request, tmp_path):
    """Return an empty store.

    Whom to trust is decided above the store, from what it has read. What S3 reads and writes is
    tested by `test_registry` and `test_storage`; each request takes longer than most tests here.
    """
    yield from store_of(request.param, request, tmp_path)


@pytest.fixture
def producer(store):
    """Return a registry that pushes signed versions."""
    return ClassRegistry(store, mode="signed", signing_key=CI[0])


@pytest.fixture
def worker(store):
    """Return a registry that only verifies."""
    return ClassRegistry(store, mode="signed", verify_keys=[ci()])


@pytest.fixture
def turn(defined):
    """Return a function that defines a numbered version of a class."""
    return lambda number: defined(SOURCE.replace("TURN", str(number)))


def every_way_to_load(registry, code_hash, name="__main__.F"):
    """Yield every call that may run code of a version, given its hash."""
    values = Registry(frozenset({"pickle"}), Shipping(registry))
    tree = {"code": [name, code_hash]}
    yield lambda: registry.pull(name, code_hash)
    yield lambda: registry.load(name, code_hash)
    yield lambda: registry.recover_class(name, code_hash)
    yield lambda: registry.check(name, code_hash)
    yield lambda: registry.verify(name, code_hash)
    yield lambda: Shipping(registry).load(*tree["code"])
    pickled = b"\x80\x04coffload.registry.pickling\nshipped\n" + pickle.dumps(
        (name, code_hash), 4
    )[2:-1] + b"R."  # fmt: skip
    yield lambda: values.decode("pickle", memoryview(pickled), [])


class TestSigned:
    @pytest.mark.parametrize("keys", (CI, (HMAC, HMAC)))
    def test_signed_code_is_loaded(self, store, turn, keys):
        """Code signed with Ed25519 or HMAC is loaded by name, hash, and tag, with all it needs."""
        producer = ClassRegistry(store, mode="signed", signing_key=keys[0])
        first = producer.push(turn(1))
        producer.push(turn(2))
        producer.tag("F", "old", first)
        worker = ClassRegistry(store, mode="signed", verify_keys=[keys[1]])
        assert worker.pull("F")().go() == 2
        assert worker.pull("F", first)().go() == worker.pull("F", tag="old")().go() == 1
        assert worker.recover_class("F", first)().made().part() == 1
        producer.rollback("F", first)
        assert worker.resolve("F") == ("__main__.F", first)
        assert counted(worker) == 0

    def test_off_by_default(self, store, producer, turn):
        """Without a mode, nothing is loaded, whoever signed it; the error says what to set."""
        code_hash = producer.push(turn(1))
        registry = ClassRegistry(store, verify_keys=[ci()])
        ways = [*every_way_to_load(registry, code_hash), lambda: registry.pull("F")]
        for i, load in enumerate(ways, 1):
            with pytest.raises(
                CodeRefused, match=r"__main__\.F.*offload_code is 'off'.*to change that, set"
            ):
                load()
            assert counted(registry) == i
        assert counted(registry, "classes_loaded") == 0

    def test_pushing_needs_a_key(self, store, worker, turn):
        """In mode signed, a process without a signing key can't push."""
        for push in (worker.push, worker.persist_class, lambda cls: worker.push_all([cls])):
            with pytest.raises(ConfigurationError, match=r"__main__.* no offload_signing_key"):
                push(turn(1))
        assert list(store.pointers.names()) == []

    def test_unsigned(self, store, worker, turn):
        """Code pushed without a key is refused in every way of loading it."""
        self.refused(store, worker, ClassRegistry(store).push(turn(1)), "is not signed")

    def test_signed_by_somebody_else(self, store, worker, turn):
        """Code signed with an unlisted key is refused, and the error names the key."""
        producer = ClassRegistry(store, signing_key=EVIL[0])
        code_hash = producer.push(turn(1))
        self.refused(store, worker, code_hash, rf"key {signer(EVIL[0]).id}, which is not among")

    def test_an_expired_key(self, store, producer, turn):
        """After a key's expiry, code signed with it is refused; loaded code stays loaded."""
        now = [99.0]
        code_hash = producer.push(turn(1))
        keys = [ci(until=100)]
        worker = ClassRegistry(store, mode="signed", verify_keys=keys, clock=lambda: now[0])
        found = worker.pull("F")
        now[0] = 100.0
        assert worker.load("__main__.F", code_hash) is found
        late = ClassRegistry(store, mode="signed", verify_keys=keys, clock=lambda: now[0])
        self.refused(store, late, code_hash, "key ci, which has expired: push it with a newer")

    def test_rotation(self, store, turn):
        """A key is rotated by adding the new one, pushing everything again, and removing the old
        one; everything keeps working, and no hash changes.
        """
        old = ClassRegistry(store, mode="signed", signing_key=CI[0])
        code_hash = old.push(turn(1))
        both = [CI[1], NEXT[1]]
        assert ClassRegistry(store, mode="signed", verify_keys=both).pull("F")().go() == 1
        new = ClassRegistry(store, mode="signed", signing_key=NEXT[0], verify_keys=both)
        assert new.push(turn(1)) == code_hash
        assert counted(new, "classes_pushed") == 0
        alone = ClassRegistry(store, mode="signed", signing_key=NEXT[0])
        with pytest.raises(CodeRefused, match="not among"):
            alone.pull("F")
        assert alone.push(turn(1)) == code_hash
        worker = ClassRegistry(store, mode="signed", verify_keys=[NEXT[1]])
        assert worker.pull("F")().go() == 1
        assert [each.hash for each in worker.versions("F")] == [code_hash]

    def test_rotation_after_a_rollback(self, store, turn):
        """Pushing everything signs the versions and also the pointers to the latest, which a
        rollback signs alone, in one round trip.
        """
        old = ClassRegistry(store, mode="signed", signing_key=CI[0])
        code_hash = old.push(turn(1))
        both = [CI[1], NEXT[1]]
        new = ClassRegistry(store, mode="signed", signing_key=NEXT[0], verify_keys=both)
        new.rollback("F", code_hash)
        alone = ClassRegistry(store, mode="signed", signing_key=NEXT[0])
        assert alone.push_all([turn(1)]) == {"__main__.F": code_hash}
        worker = ClassRegistry(store, mode="signed", verify_keys=[NEXT[1]])
        assert worker.pull("F")().go() == 1

    def test_round_trips_of_pushing_all(self, counting, defined):
        """Checking synced and signed versions takes one round trip for all, also for large ones."""
        registry = ClassRegistry(counting, mode="signed", signing_key=CI[0])
        source = "class F{0}:\n    data = {1!r}"
        classes = [defined(source.format(i, os.urandom(50_000)), f"F{i}") for i in range(20)]
        assert len(registry.push_all(classes)) == 20
        counting.pointers.calls.clear()
        assert registry.push_all(classes) == {}
        assert [call[0] for call in counting.pointers.calls] == ["read_all"]

    def test_pushing_with_an_expired_key(self, store, turn):
        """Pushing with an expired key is refused, because nobody would accept it."""
        producer = ClassRegistry(
            store, mode="signed", signing_key=CI[0], verify_keys=[ci(until=5)], clock=lambda: 6
        )
        with pytest.raises(ConfigurationError, match="offload_signing_key is ci, which has exp"):
            producer.push(turn(1))

    @pytest.mark.parametrize("mode", ("off", "signed", "trusted"))
    def test_an_unsigned_version_can_be_signed(self, store, worker, turn, mode):
        """A push with a key replaces an unsigned version with a signed one, once."""
        code_hash = ClassRegistry(store).push(turn(1))
        producer = ClassRegistry(store, mode=mode, signing_key=CI[0])
        assert producer.push_all([turn(1)]) == {"__main__.F": code_hash}
        assert producer.push_all([turn(1)]) == {}
        pushed = counted(producer, "classes_pushed")
        producer.push(turn(1))
        assert counted(producer, "classes_pushed") == pushed
        assert worker.pull("F")().made().part() == 1

    def test_two_producers_do_not_take_turns(self, store, turn):
        """A version that another trusted producer signed isn't replaced."""
        both = [CI[1], NEXT[1]]
        one = ClassRegistry(store, mode="signed", signing_key=CI[0], verify_keys=both)
        two = ClassRegistry(store, mode="signed", signing_key=NEXT[0], verify_keys=both)
        one.push(turn(1))
        assert two.push_all([turn(1)]) == {}
        two.push(turn(1))
        assert counted(two, "classes_pushed") == 0

    @staticmethod
    def refused(store, registry, code_hash, message):
        ways = [*every_way_to_load(registry, code_hash), lambda: registry.pull("F")]
        for i, load in enumerate(ways, 1):
            with pytest.raises(CodeRefused, match=message) as caught:
                load()
            assert f"__main__.F@{code_hash[:12]}" in str(caught.value)
            assert store.url in str(caught.value)
            assert caught.value.store == store.url
            assert counted(registry) == i
        assert counted(registry, "classes_loaded") == 0


class TestTampered:
    """A producer pushes two signed versions, and then an attacker writes to the store."""

    @pytest.fixture
    def hashes(self, producer, turn):
        return [producer.push(turn(1)), producer.push(turn(2))]

    @pytest.fixture
    def refused(self, store, worker, hashes, turn):
        """Return a function that checks that the second version is refused and can be repushed."""

        def check(message, *, version=True, latest=True):
            ways = [*(every_way_to_load(worker, hashes[1]) if version else ())]
            ways += [lambda: worker.pull("F")] if latest else []
            for i, load in enumerate(ways, 1):
                with pytest.raises(CodeRefused, match=message) as caught:
                    load()
                assert "__main__.F" in str(caught.value)
                assert store.url in str(caught.value)
                assert counted(worker) == i
            assert counted(worker, "classes_loaded") == 0
            again = ClassRegistry(store, mode="signed", signing_key=CI[0])
            assert again.push(turn(2)) == hashes[1]
            assert worker.pull("F")().go() == 2

        return check

    def test_content(self, store, hashes, refused):
        """A changed byte of the pickle is refused, whatever its record says."""
        pointer = NAMES.version(hashes[1])
        content = store.pointers.read(pointer)
        set_to(store, pointer, bytes([content[0] ^ 1]) + content[1:])
        refused(r"__main__\.F@.* was altered: .*push it again")

    def test_content_with_its_digest(self, store, producer, hashes, refused):
        """A record that was changed to match the pickle has no valid signature."""
        stored = producer.stored("F", hashes[1])
        put(store, with_content(stored, stored.content + b"x"))
        refused("was altered, as the signature by key ci is wrong")

    def test_signed_again_by_somebody_else(self, store, producer, hashes, refused):
        """Another key's signature is refused, also under a trusted key's id."""
        stored = with_content(producer.stored("F", hashes[1]), b"x")
        put(store, replace(stored, record=signed(stored.record)))
        forged = signed(stored.record).signature
        record = replace(stored.record, signature=replace(forged, key=signer(CI[0]).id))
        put(store, replace(stored, record=record))
        refused("signature by key ci is wrong")

    @pytest.mark.parametrize(
        "changed",
        (
            {"python": "cpython-399"},
            {"kind": "function"},
            {"needs": ()},
            {"modules": ("shop",)},
            {"created": 5},
            {"signature": None},
            {"signature": Signature("", "")},
        ),
        ids=str,
    )
    def test_every_field(self, store, producer, hashes, refused, changed):
        """Every change of a record, such as its Python tag, needs, or modules, is refused."""
        stored = producer.stored("F", hashes[1])
        put(store, replace(stored, record=replace(stored.record, **changed)))
        refused(r"wrong|is not signed|not among")

    def test_another_version_in_its_place(self, store, hashes, refused):
        """A signed version of the same class under another hash is refused."""
        set_to(store, NAMES.version(hashes[1]), store.pointers.read(NAMES.version(hashes[0])))
        refused("another record was moved there")

    def test_another_class_in_its_place(self, store, producer, hashes, refused, defined):
        """A signed version of another class is refused."""
        other = producer.push(defined("class G:\n    pass", "G"))
        content = store.pointers.read(PointerNames("__main__.G").version(other))
        set_to(store, NAMES.version(hashes[1]), content)
        refused("another record was moved there")

    def test_another_classs_signature(self, store, producer, hashes, refused, defined):
        """The signature of another class is refused."""
        other = producer.stored("G", producer.push(defined("class G:\n    pass", "G")))
        stored = producer.stored("F", hashes[1])
        record = replace(stored.record, signature=other.record.signature)
        put(store, replace(stored, record=record))
        refused("wrong")
        renamed = replace(other.record, class_name="__main__.F", hash=hashes[1])
        put(store, replace(other, record=renamed))
        refused_again = ClassRegistry(store, mode="signed", verify_keys=[ci()])
        with pytest.raises(CodeRefused, match="wrong"):
            refused_again.pull("F", hashes[1])

    def test_the_signature_of_another_version(self, store, producer, hashes, refused):
        """The signature of another version is refused."""
        first, second = (producer.stored("F", each) for each in hashes)
        record = replace(second.record, signature=first.record.signature)
        put(store, replace(second, record=record))
        refused("wrong")

    def test_the_latest_for_another_class(self, store, producer, hashes, refused, defined):
        """``latest.json`` of another class is refused; versions are unaffected."""
        producer.push(defined("class G:\n    pass", "G"))
        set_to(store, NAMES.latest, store.pointers.read(PointerNames("__main__.G").latest))
        refused(r"latest\.json contains latest of __main__\.G.*another.*push", version=False)

    def test_the_latest_for_a_versions_record(self, store, producer, hashes, refused):
        """A record signed as a version isn't accepted as the latest."""
        for code_hash in hashes:
            record = producer.stored("F", code_hash).record
            set_to(store, NAMES.latest, record.to_bytes())
        refused(r"latest\.json contains version of __main__\.F", version=False)

    def test_the_latest_changed_by_hand(self, store, producer, hashes, refused):
        """A latest record with a changed purpose or hash is refused."""
        record = producer.stored("F", hashes[0]).record
        set_to(store, NAMES.latest, replace(record, purpose=LATEST).to_bytes())
        refused("latest of __main__.F@.*wrong", version=False)

    def test_the_latest_for_a_tag(self, store, producer, worker, hashes, refused):
        """A record signed as a tag isn't accepted as the latest or another tag, nor vice versa."""
        producer.tag("F", "old", hashes[0])
        old, latest = store.pointers.read(NAMES.tag("old")), store.pointers.read(NAMES.latest)
        set_to(store, NAMES.tag("new"), old)
        set_to(store, NAMES.tag("last"), latest)
        for tag in ("new", "last"):
            with pytest.raises(CodeRefused, match="another record was moved there"):
                worker.pull("F", tag=tag)
        set_to(store, NAMES.latest, old)
        with pytest.raises(CodeRefused, match=r"latest\.json contains tag old"):
            worker.pull("F")

    def test_a_version_for_a_pointer(self, store, hashes, refused):
        """The record of the latest isn't accepted as a version."""
        record = store.pointers.read(NAMES.latest)
        set_to(store, NAMES.version(hashes[1]), record + len(record).to_bytes(4, "big"))
        refused("another record was moved there")

    @pytest.mark.parametrize("content", (b"", b"x", b"{}", b"null", pickle.dumps(5), bytes(9)))
    def test_anything_else(self, store, hashes, refused, content):
        """Anything else in a pointer's place is refused."""
        set_to(store, NAMES.version(hashes[1]), content)
        set_to(store, NAMES.latest, content)
        refused("isn't a version|isn't a class record")

    def test_a_version_that_it_needs(self, store, producer, worker, hashes, refused):
        """A dependency is verified like any version, before the code that needs it runs."""
        [(name, code_hash)] = producer.stored("F", hashes[1]).record.needs
        assert name == "__main__.P"
        put(store, with_content(producer.stored("P", code_hash), b"x"))
        for i, ask in enumerate((worker.pull, worker.recover_class, worker.check), 1):
            with pytest.raises(CodeRefused, match=r"__main__\.P@.* wrong"):
                ask("F", hashes[1])
            assert counted(worker) == i
        assert counted(worker, "classes_loaded") == 0

    def test_forged_records_do_not_cause_uploads(self, store, producer, hashes, turn):
        """Dependencies are taken from signed records only, so that nobody can make a producer store
        classes that it wouldn't send.
        """
        [need] = producer.stored("F", hashes[1]).record.needs
        part = producer.stored("P", need[1])
        wanted = (("json.decoder.JSONDecoder", "e" * 64),)
        put(store, replace(part, record=replace(part.record, needs=wanted)))
        sending = ClassRegistry(store, mode="signed", signing_key=CI[0])
        sending.ship(turn(2))
        assert sending.must_ship(turn(2).made)
        assert not sending.must_ship(json.decoder.JSONDecoder)

    def test_an_unsigned_version_is_signed_before_it_is_sent(self, store, turn, defined):
        """A stored version that nobody would load isn't sent."""
        cls = defined("class F:\n    pass")
        ClassRegistry(store).push(cls)
        sending = ClassRegistry(store, mode="signed", signing_key=CI[0])
        sending.register(cls, push="manual")
        with pytest.raises(CodeRefused, match="is not signed"):
            sending.ship(cls)
        sending.push(cls)
        assert sending.ship(cls)[0] == "__main__.F"

    def test_status_and_tags_are_not_taken_from_forged_pointers(
        self, store, producer, hashes, turn
    ):
        """A forged ``latest.json``, or an unsigned one in mode ``signed``, doesn't count as a
        status.
        """
        record = replace(producer.stored("F", hashes[0]).record, purpose=LATEST)
        set_to(store, NAMES.latest, replace(record, signature=None).to_bytes())
        for ask in (
            lambda: producer.check_status(turn(1)),
            lambda: producer.sync_statuses([turn(1)]),
        ):
            with pytest.raises(CodeRefused, match="is not signed"):
                ask()
        assert counted(producer) == 2

    def test_an_old_signed_latest(self, store, producer, worker, hashes, turn):
        """An old signed ``latest.json`` that was put back can't be detected. It names a version
        that was trusted, like a rollback; hashes in messages are unaffected.
        """
        newest = store.pointers.read(NAMES.latest)
        producer.rollback("F", hashes[0])
        set_to(store, NAMES.latest, newest)
        assert worker.pull("F")().go() == 2
        assert worker.pull("F", hashes[0])().go() == 1


class TestAllowed:
    def test_patterns(self, store, producer, defined):
        """Only allowed names are loaded, also if they are signed."""
        for module in ("shop.models", "jobs"):
            producer.push(defined("class A:\n    x = 1", "A", module))
        for mode in ("signed", "trusted"):
            worker = ClassRegistry(store, mode=mode, verify_keys=[ci()], allow=["shop.*"])
            assert worker.pull("shop.models.A").x == 1
            with pytest.raises(CodeRefused, match=r"jobs\.A is not.* offload_code_allow.*add one"):
                worker.pull("jobs.A")
            code_hash = ClassRegistry(store, mode="trusted").resolve("jobs.A")[1]
            for i, load in enumerate(every_way_to_load(worker, code_hash, "jobs.A"), 2):
                with pytest.raises(CodeRefused, match=rf"jobs\.A@{code_hash[:12]} is not loaded"):
                    load()
                assert counted(worker) == i

    def test_a_pinned_hash(self, store, producer, worker, turn):
        """A pattern with a hash allows only that version, also if another is the latest."""
        first, second = (producer.push(turn(i)) for i in (1, 2))
        part = producer.stored("F", first).record.needs[0]
        allow = [f"__main__.F@{first[:12]}", "@".join(part)]
        pinned = ClassRegistry(store, mode="signed", verify_keys=[ci()], allow=allow)
        assert pinned.pull("F", first)().go() == 1
        for ask in (lambda: pinned.pull("F"), lambda: pinned.pull("F", second)):
            with pytest.raises(CodeRefused, match=rf"__main__\.F@{second[:12]}.*no pattern"):
                ask()
        assert counted(pinned) == 2

    def test_dependencies_of_an_allowed_class(self, store, producer, turn):
        """Dependencies must be allowed, too; otherwise nothing is loaded."""
        code_hash = producer.push(turn(1))
        worker = ClassRegistry(store, mode="signed", verify_keys=[ci()], allow=["__main__.F"])
        for i, ask in enumerate((worker.pull, worker.recover_class, worker.check), 1):
            with pytest.raises(CodeRefused, match=r"__main__\.P@.* is not loaded: no pattern"):
                ask("__main__.F", code_hash)
            assert counted(worker) == i
        assert counted(worker, "classes_loaded") == 0

    def test_pushing_is_not_loading(self, store, turn):
        """Patterns restrict loading, not pushing."""
        registry = ClassRegistry(store, mode="signed", signing_key=CI[0], allow=["other.*"])
        registry.push(turn(1))
        registry.push(turn(1))
        assert registry.check_status(turn(1)) == "synced"


EMPTY = Record("__main__.F", "a" * 64, "b3:" + "0" * 64, 0, python_tag(), "class", 1)


def as_content(stored, payload, store):
    return with_content(stored, pickle.dumps(payload))


def as_other_python(stored, payload, store):
    """Return a version that is rebuilt from its source."""
    return with_content(stored, source=stored.source, python="cpython-399")


def as_definition(stored, payload, store):
    run = f"__import__('os').open('{payload.path}', 64)"
    source = stored.source.replace(b"return 1", f"return {run}".encode())
    source = source.replace(b"TRAP = 1", f"TRAP = {run}".encode())
    assert source != stored.source
    return with_content(stored, source=source, python="cpython-399")


def as_constant(stored, payload, store):
    """Put the payload in place of every pickle in the source."""

    def replaced(match):
        with contextlib.suppress(ValueError):
            if base64.b64decode(match[1], validate=True)[:1] == b"\x80":
                return b'"' + base64.b64encode(pickle.dumps(payload, 4)) + b'"'
        return match[0]

    source = re.sub(rb'"([A-Za-z0-9+/=]{8,})"', replaced, stored.source)
    assert source != stored.source
    return with_content(stored, source=source, python="cpython-399")


def as_need(stored, payload, store):
    """Put the payload into a dependency that the record lists."""
    record = Record(
        "__main__.Evil", "e" * 64, "b3:" + "0" * 64, 0, stored.record.python, "class", 1
    )
    put(store, with_content(StoredVersion(record, b""), pickle.dumps(payload)))
    content = b"\x80\x04coffload.registry.pickling\nshipped\n" + pickle.dumps(
        ("__main__.Evil", "e" * 64), 4
    )[2:-1] + b"R."  # fmt: skip
    return with_content(stored, content, needs=(("__main__.Evil", "e" * 64),))


def as_hidden_need(stored, payload, store):
    """Put the payload into a dependency that the record doesn't list."""
    made = as_need(stored, payload, store)
    return replace(made, record=replace(made.record, needs=()))


PLACES = (as_content, as_definition, as_constant, as_need, as_hidden_need)


class TestNothingRuns:
    """Payloads that write a file, put everywhere in a store that can contain code, don't run."""

    @pytest.fixture
    def cls(self, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "trapped.py").write_text(
            "LIMITS = [{1, 2}, b'x']\nclass F:\n    TRAP = 1\n"
            "    def go(self): return LIMITS and self.TRAP\n"
        )
        import trapped

        yield trapped.F
        sys.modules.pop("trapped", None)

    @pytest.fixture
    def trap(self, tmp_path):
        return tmp_path / "it-ran"

    @pytest.fixture
    def planted(self, cls, trap):
        """Return a store with this payload, signed or not."""

        def plant(place, how):
            store = MemoryStore()
            producer = ClassRegistry(store, mode="signed", signing_key=CI[0], ship_source=True)
            code_hash = producer.push(cls)
            stored = producer.stored("trapped.F", code_hash)
            made = place(stored, Payload(trap), store)
            keys = {"unsigned": None, "evil": EVIL[0]}
            record = made.record
            if how != "kept":
                record = replace(record, signature=None)
                if keys[how] is not None:
                    record = signed(record, keys[how])
            put(store, replace(made, record=record))
            names = PointerNames("trapped.F")
            for pointer, purpose in ((names.latest, LATEST), (names.tag("t"), tag_purpose("t"))):
                pointing = replace(record, purpose=purpose)
                if how == "evil":
                    pointing = signed(pointing)
                if how != "kept" or purpose != LATEST:
                    set_to(store, pointer, pointing.to_bytes())
            return store, code_hash

        return plant

    @staticmethod
    def everything(registry, code_hash, cls):
        """Yield every operation of a registry."""
        name = "trapped.F"
        yield from every_way_to_load(registry, code_hash, name)
        yield lambda: registry.pull(name)
        yield lambda: registry.pull("F")
        yield lambda: registry.pull(name, tag="t")
        yield lambda: registry.diff(name, code_hash, code_hash)
        yield lambda: registry.versions(name)
        yield registry.classes
        yield registry.listing
        yield lambda: registry.tags(name)
        yield lambda: registry.stored(name, code_hash)
        yield lambda: registry.find_hash(name, code_hash[:12], tags=True)
        yield lambda: registry.check_status(cls)
        yield lambda: registry.tag(name, "u", code_hash)
        yield lambda: registry.rollback(name, code_hash)
        yield lambda: registry.persist_class(cls)
        yield lambda: registry.ship(cls)
        yield lambda: registry.push_all([cls])
        yield lambda: registry.push(cls)

    @pytest.fixture
    def elsewhere(self, cls):
        """Return a process that doesn't have the class itself."""
        sys.modules.pop("trapped")

    @pytest.mark.parametrize("place", PLACES)
    def test_the_payloads_are_live(self, planted, trap, place, elsewhere):
        """In mode trusted, each payload writes its file, so the tests below are meaningful."""
        store, code_hash = planted(place, "unsigned")
        registry = ClassRegistry(store, mode="trusted", ship_source=True)
        with contextlib.suppress(Exception):
            registry.load("trapped.F", code_hash)().go()
        assert trap.exists()

    @pytest.mark.parametrize("how", ("unsigned", "kept", "evil"))
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("mode", ("off", "signed"))
    @pytest.mark.parametrize("key", (None, CI[0]), ids=("worker", "producer"))
    def test_payloads_do_not_run(self, planted, trap, cls, elsewhere, mode, place, how, key):
        """In mode off or signed, no operation writes a file; those that would run the payload raise
        CodeRefused and are counted.
        """
        store, code_hash = planted(place, how)

        def registry():
            return ClassRegistry(
                store, mode=mode, verify_keys=[ci()], signing_key=key, ship_source=True
            )

        for load in every_way_to_load(registry(), code_hash, "trapped.F"):
            with pytest.raises(CodeRefused):
                load()
        for number, _ in enumerate(self.everything(registry(), code_hash, cls)):
            fresh = registry()
            with contextlib.suppress(CodeError, ConfigurationError):
                [*self.everything(fresh, code_hash, cls)][number]()
            assert not trap.exists()
            assert counted(fresh, "classes_loaded") == 0 or key is not None
        several = registry()
        for load in every_way_to_load(several, "e" * 64, "__main__.Evil"):
            with contextlib.suppress(CodeError):
                load()
        assert not trap.exists()

    @pytest.mark.parametrize("allowed", (True, False))
    def test_dependencies_are_verified_before_a_class_runs(self, store, trap, allowed):
        """A signed version doesn't run if a dependency is unsigned or not allowed, and runs
        otherwise.
        """
        here = pickle.dumps(None)
        part = with_content(StoredVersion(replace(EMPTY, class_name="__main__.P"), b""), here)
        part = replace(part, record=signed(part.record, CI[0] if not allowed else EVIL[0]))
        put(store, part)
        content = pickle.dumps(Payload(trap))
        whole = with_content(StoredVersion(EMPTY, b""), content, needs=(part.record.pair,))
        put(store, replace(whole, record=signed(whole.record, CI[0])))
        allow = ["__main__.*"] if allowed else ["__main__.F"]
        worker = ClassRegistry(store, mode="signed", verify_keys=[ci()], allow=allow)
        for load in every_way_to_load(worker, EMPTY.hash):
            with contextlib.suppress(Exception):
                load()
        assert not trap.exists()
        put(store, replace(part, record=signed(part.record, CI[0])))
        worker = ClassRegistry(store, mode="signed", verify_keys=[ci()])
        with contextlib.suppress(Exception):
            worker.load(*EMPTY.pair)
        assert trap.exists()

    @pytest.mark.parametrize("mode", ("off", "signed"))
    def test_a_pickle_in_every_pointer(self, producer, store, trap, turn, mode):
        """A pickle in place of any pointer is refused and never unpickled."""
        code_hash = producer.push(turn(1))
        producer.tag("F", "t", code_hash)
        payload = pickle.dumps(Payload(trap))
        registry = ClassRegistry(store, mode=mode, verify_keys=[ci()])
        for pointer in list(store.pointers.names("plugins/")):
            for content in (payload, payload + len(payload).to_bytes(4, "big")):
                set_to(store, pointer, content)
        ways = [
            *every_way_to_load(registry, code_hash),
            lambda: registry.pull("__main__.F"),
            lambda: registry.pull("__main__.F", tag="t"),
        ]
        for i, load in enumerate(ways, 1):
            with pytest.raises(CodeRefused):
                load()
            assert counted(registry) == i
        for look in (registry.versions, registry.tags, lambda name: registry.listing()):
            with contextlib.suppress(CodeError):
                look("__main__.F")
        assert not trap.exists()


class TestLogging:
    @pytest.fixture
    def messages(self, caplog):
        caplog.set_level(logging.INFO, "offload.classes")
        return lambda: [record.getMessage() for record in caplog.records]

    def test_loaded_versions_are_logged(self, store, producer, worker, turn, messages):
        """Each loaded version is logged once, with its store and the key's name."""
        code_hash = producer.push(turn(1))
        del messages()[:]
        worker.pull("F", code_hash)
        worker.pull("F", code_hash)
        loaded = [each for each in messages() if each.startswith("loaded")]
        assert len(loaded) == 2
        shown = f"loaded class __main__.F@{code_hash[:12]} from {store.url}, signed by ci"
        assert shown in loaded
        assert any("class __main__.P@" in each for each in loaded)

    def test_recovered_classes_are_logged(self, producer, worker, turn, messages):
        """Recovering a class, which runs code, is logged, too."""
        worker.recover_class("F", producer.push(turn(1)))
        assert len([each for each in messages() if each.startswith("loaded")]) == 2

    def test_the_task_is_logged(self, memory, turn, messages):
        """Within a task, its name and id are logged with loaded and refused versions."""
        code_hash = ClassRegistry(memory).push(turn(1))
        app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.task_always_eager = True
        trusting = ClassRegistry(memory, mode="trusted")
        refusing = ClassRegistry(memory)

        @app.task(name="jobs.score")
        def score():
            with contextlib.suppress(CodeRefused):
                refusing.pull("F", code_hash)
            return trusting.pull("F", code_hash)().go()

        result = score.delay()
        assert result.get() == 1
        [loaded] = [each for each in messages() if each.startswith("loaded class __main__.F")]
        assert f"for task jobs.score[{result.id}]" in loaded
        assert "signed" not in loaded
        [refused] = [each for each in messages() if each.startswith("refused")]
        assert f"for task jobs.score[{result.id}]" in refused
        assert f"__main__.F@{code_hash[:12]}" in refused

    def test_replacing_an_untrusted_version_is_logged(self, store, producer, turn, messages):
        """Replacing an untrusted version is logged."""
        ClassRegistry(store).push(turn(1))
        producer.push(turn(1))
        assert any(
            "replacing the version in" in each and "not signed" in each for each in messages()
        )


def test_mode_off_reads_nothing(store, producer, turn):
    """In mode off, the store isn't asked for a version."""
    code_hash = producer.push(turn(1))

    class Silent:
        url = store.url

        @property
        def pointers(self):
            raise AssertionError

    registry = ClassRegistry(Silent())
    for load in every_way_to_load(registry, code_hash):
        with pytest.raises(CodeRefused):
            load()


def test_missing_names_are_not_refused(worker):
    """A missing name is reported as missing if names are allowed at all."""
    with pytest.raises(UnknownClass):
        worker.pull("shop.Nope")
    assert counted(worker) == 0


def test_the_record_of_a_version_can_be_read_by_anybody(producer, turn):
    """Signed records are JSON in the store, so that any program can list and verify them."""
    code_hash = producer.push(turn(1))
    content = producer.store.pointers.read(NAMES.version(code_hash))
    length = int.from_bytes(content[-4:], "big")
    record = json.loads(content[-4 - length : -4])
    assert (record["class_name"], record["hash"], record["purpose"]) == (
        *("__main__.F", code_hash),
        VERSION,
    )
    assert set(record["signature"]) == {"key", "value"}
