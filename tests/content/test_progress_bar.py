"""Progress of uploads."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest

from offload import ConfigurationError
from offload.content import progress_bar
from tests.support.wire import make_wire

MB = 1_000_000
VALUE = random.Random(1).randbytes(2 * MB)


class Bar:
    """Records what a bar shows."""

    def __init__(self, total):
        self.total, self.steps, self.closed = total, [], False

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    """Return the bars that are shown."""
    made = []

    def start(total):
        bar = Bar(total)
        made.append(bar)
        return bar.steps.append, bar.close

    monkeypatch.setattr(progress_bar, "_starter", lambda: start)
    return made


@pytest.fixture
def hook():
    store = f"memory://{uuid.uuid4()}?chunk_size=65536"
    return make_wire(watch=False, store=store, compression="none").hook


def test_a_bar_counts_the_bytes_that_are_uploaded(hook, bars):
    """A bar's steps add up to the value's size, and it is closed."""
    ref = hook.put(VALUE, progress=True)
    (bar,) = bars
    assert sum(bar.steps) == bar.total == ref.size
    assert len(bar.steps) > 3
    assert bar.closed


def test_no_bar_is_shown_unless_wanted(hook, bars):
    """Nothing is shown by default, nor for what the store has already."""
    value = bytes(2 * MB)
    hook.put(value)
    hook.put(value, progress=True)
    assert bars == []


def test_a_bar_is_closed_when_the_upload_fails(hook, bars, monkeypatch):
    """The error is raised, and the bar doesn't end as if all were stored."""
    put, calls = hook.store.blobs.put, []

    def failing(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise OSError("lost")
        return put(*given, **options)

    monkeypatch.setattr(hook.store.blobs, "put", failing)
    with pytest.raises(OSError, match="lost"):
        hook.put(VALUE, progress=True)
    (bar,) = bars
    assert sum(bar.steps) < bar.total
    assert bar.closed


def test_coroutines_show_progress(hook, bars):
    """`aput` shows the progress of its own upload."""
    asyncio.run(hook.aput(VALUE, progress=True))
    assert len(bars) == 1


@pytest.mark.parametrize("name", ("tqdm", "rich"))
def test_installed_packages_show_bars(name, hook, monkeypatch, capsys):
    """tqdm and rich both show bars, whichever is installed."""
    pytest.importorskip(name)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich shows bars on terminals only
    hidden = {"tqdm": "rich", "rich": "tqdm"}[name]
    find = progress_bar.find_spec
    monkeypatch.setattr(
        progress_bar, "find_spec", lambda wanted: None if wanted == hidden else find(wanted)
    )
    hook.put(VALUE, progress=True)
    assert "uploading" in "".join(capsys.readouterr())


def test_without_a_package_the_error_names_the_extra(hook, monkeypatch):
    """Without tqdm and rich, nothing is stored, and the error says what to install."""
    monkeypatch.setattr(progress_bar, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'offload\[progress\]'"):
        hook.put(bytes(2 * MB), progress=True)
