"""Follow a page of documentation literally: save its files and run its commands, in order."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import forkserver
from tests.support.processes import Process, wait_until

__all__ = ("Command", "Follower", "SavedFile", "steps")

SECONDS = 120
_FENCE = re.compile(
    r'^```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL
)
_NAME = re.compile(r"# (?P<name>\w+\.py)\n")


@dataclass(frozen=True)
class SavedFile:
    name: str
    content: str


@dataclass(frozen=True)
class Command:
    """A command of a console block.

    Attributes:
        expected: the output on the page, in which ``…`` stands for any text.
        terminal: the terminal in which it keeps running; empty for a command that ends.
    """

    words: list[str]
    expected: str
    terminal: str


def steps(page: str) -> Iterator[SavedFile | Command]:
    """Yield what a reader of *page* does, in order."""
    for block in _FENCE.finditer(page):
        if block["kind"] == "python" and (named := _NAME.match(block["code"])):
            yield SavedFile(named["name"], block["code"])
        elif block["kind"] == "console":
            for part in re.split(r"^\$ ", block["code"], flags=re.MULTILINE)[1:]:
                line, _, expected = part.partition("\n")
                yield Command(shlex.split(line), expected, block["title"] or "")


class Follower:
    """Runs commands in a folder, on this Python, from the fork server."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self.running: dict[str, Process] = {}

    def run(self, command: Command) -> str:
        """Run *command* until it has printed what the page shows; return its output.

        A command that ends is repeated until then: what it shows may take some seconds to arrive.
        """
        python = [sys.executable, *command.words[1:]]
        words = {"celery": [sys.executable, "-m", *command.words], "python": python}
        line = words[command.words[0]]
        if command.terminal:
            process = Process(line, self.folder / "log", self.env, self.folder, fork=True)
            self.running[command.terminal] = process
            shown = command.expected
            process.wait_for(lambda: matches(shown, process.log()), shown, SECONDS)
            return process.log()
        found = forkserver.as_module(line)
        assert found is not None, command
        module, args = found
        printed = ""

        def as_shown() -> bool:
            nonlocal printed
            done = forkserver.run(args, module=module, cwd=self.folder, env=self.env)
            printed = done.stdout + done.stderr
            assert done.returncode == 0, printed
            return matches(command.expected, done.stdout)

        try:
            wait_until(as_shown, " ".join(command.words), SECONDS)
        except TimeoutError:
            raise AssertionError(f"{command}\n{printed}") from None
        return printed

    def stop(self) -> None:
        for process in self.running.values():
            process.stop()


def matches(expected: str, printed: str) -> bool:
    """Return whether *printed* contains the text on the page, whose ``…`` is any text."""
    parts = [re.escape(part.strip()) for part in expected.split("…")]
    return re.search(".*?".join(parts), printed, re.DOTALL) is not None
