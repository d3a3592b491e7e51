"""Run ``celery offload classes`` in this process."""

from __future__ import annotations

import json

from celery.bin.base import CLIContext
from click.testing import CliRunner

from offload.cli import offload
from tests.support.wire import make_wire

HMAC = "hmac:a secret that is long enough"


def made(name, times=2, module="shop.models"):
    """Return a class as if from a module that workers lack."""
    scope = {"__name__": module}
    exec(f"class {name}:\n    def run(self, x):\n        return x * {times}\n", scope)
    return scope[name]


class Command:
    """``celery offload classes`` for one app, in this process.

    Attributes:
        out: what it printed last.
    """

    def __init__(self, **settings):
        self.hook = make_wire(**{"code": "trusted", **settings}).hook
        self.registry = self.hook.classes

    def __call__(self, *words, code=0):
        words = ["classes", *map(str, words)]
        context = CLIContext(self.hook.app, True, None)
        done = CliRunner().invoke(offload, words, obj=context, catch_exceptions=False)
        self.out = done.output
        assert done.exit_code == code, done.output
        return self.out

    def json(self, *words, code=0):
        return json.loads(self(*words, "--json", code=code))

    def another(self, **settings):
        """Return the command for another process with the same store."""
        return Command(store=self.hook.store.url, **settings)

    def change(self, pointer, content):
        """Write to the store like an attacker."""
        pointers = self.hook.store.pointers
        assert pointers.swap(pointer, pointers.read(pointer), content)
