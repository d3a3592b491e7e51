"""A dashboard of an app with statistics, requested directly or in a browser."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner
from starlette.testclient import TestClient

from offload.cli import offload
from offload.dashboard import dashboard
from tests.support.processes import Process, environment
from tests.support.servers import unavailable
from tests.support.wire import make_wire

# The first is Chromium without a window's toolkit, and takes half the CPU.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
# As root in a container Chromium has no sandbox; it only opens these pages. The other two save a
# quarter of the CPU: no process for graphics, and functions are compiled only when called.
FLAGS = ("--no-sandbox", "--in-process-gpu", "--js-flags=--max-lazy")


class Shop:
    """An app that publishes to a store of its own in a real Redis."""

    def __init__(self, url, **settings):
        self.url = url
        self.wire = make_wire(store=url, **settings)
        self.app = self.wire.app
        self.hook = self.app._offload

        @self.app.task(name="shop.report")
        def make_report(rows, title=""):
            return None

        @self.app.task(name="shop.count")
        def count(rows):
            return None

        self.report, self.count = make_report, count

    def work(self):
        """Publish six values, four of them deduplicated, for one task, and two for another."""
        for _ in range(3):
            self.report.delay(["row"] * 50_000, title="t" * 100_000)
        self.count.delay(["other"] * 50_000)
        self.count.delay(["another"] * 50_000)

    def task(self, name):
        """Publish a large value for a task with any name."""

        @self.app.task(name=name)
        def named(value):
            return None

        named.delay("v" * 200_000)

    def client(self, **options):
        return TestClient(dashboard(self.app, hosts=["*"], **options))

    def command(self, *words):
        context = CLIContext(self.app, True, None)
        done = CliRunner().invoke(offload, words, obj=context, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture
def shop(redis):
    shop = Shop(f"{redis.url}?prefix=dashboard-{os.getpid()}-{os.urandom(3).hex()}")
    yield shop
    shop.hook.store.close()


@pytest.fixture(scope="module")
def shared(redis, tmp_path_factory):
    """A dashboard of a shop that has worked, for tests that change nothing; has its `address`."""
    shop = Shop(f"{redis.url}?prefix=shared-{os.getpid()}-{os.urandom(3).hex()}")
    shop.work()
    shop.hook.recorder.write()
    served = Served(tmp_path_factory.mktemp("shared"), shop.url)
    shop.address = served.url
    yield shop
    served.process.stop()
    shop.hook.store.close()


class Served:
    """``celery offload dashboard`` as a separate process."""

    def __init__(self, folder, store, *words, env=None, app="", broker="memory://"):
        text = f"""
from celery import Celery
from offload import Offload

app = Celery("proj", broker={broker!r}, set_as_current=True)
Offload(app, store={store!r})
{app}
"""
        (folder / "proj.py").write_text(text)
        command = [sys.executable, "-m", "celery", "-A", "proj", "offload", "dashboard"]
        self.process = Process(
            [*command, "--port", "0", *words],
            folder / "dashboard.log",
            {**environment({}, folder), **(env or {})},
            fork=True,
        )
        try:
            self.process.wait_for(lambda: " is open" in self.process.log(), "it is open", 60)
        except BaseException:
            self.process.stop()
            raise
        self.url = self.process.log().split(" is open")[0].split()[-1]

    def get(self, path="", **headers):
        """Return the status and text of a response."""
        asked = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def serve(tmp_path):
    """Serve dashboards of a store until the test ends."""
    served = []

    def start(store, *words, **options):
        folder = tmp_path / f"served-{len(served)}"
        folder.mkdir()
        served.append(Served(folder, store, *words, **options))
        return served[-1]

    yield start
    for each in served:
        each.process.stop()


@pytest.fixture(scope="module")
def browser():
    """Start the system's Chromium without a window."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        unavailable("Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(browser):
    """Return a function that returns the tab that tests share: a new one takes seconds of CPU.

    Each dashboard has an address, and thus a storage, of its own.
    """
    tabs = []

    def get_tab():
        if not tabs or tabs[-1].is_closed():
            tabs.append(browser.new_page())
        return tabs[-1]

    return get_tab


@pytest.fixture
def look(browser, tab):
    """Open a page; errors and warnings of the browser fail the test at its end.

    With *options* of the browser, such as the size of its window, it has a tab of its own.
    """
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
    looking, complaints = ExitStack(), []

    def open_page(url, *, expected=(), **options):
        if options:
            page = looking.enter_context(browser.new_context(**options)).new_page()
        else:
            page = tab()
            looking.callback(page.goto, "about:blank")
            looking.callback(page.unroute_all, behavior="wait")
        page.set_default_timeout(30_000)

        def complain(text):
            if not any(each in text for each in expected):
                complaints.append(text)

        def complain_of(entry):
            if entry.type in {"error", "warning"}:
                complain(entry.text)

        def complain_of_error(error):
            complain(str(error))

        for event, listener in (("console", complain_of), ("pageerror", complain_of_error)):
            page.on(event, listener)
            looking.callback(page.remove_listener, event, listener)
        page.goto(url)
        return page

    yield open_page
    looking.close()
    assert complaints == []
