"""Extract code from a page of documentation, as a reader would use it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

__all__ = ("Page", "read_page")

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>[a-z]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"# (?P<name>[a-z_]+\.py)\n")


@dataclass(frozen=True)
class Page:
    """A page's Python code.

    Attributes:
        files: by name, the blocks that begin with a comment such as ``# tasks.py``.
        scripts: the other blocks, each with the number of its first line.
    """

    files: dict[str, str]
    scripts: list[tuple[int, str]]


def read_page(path: Path) -> Page:
    """Return the Python blocks of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    page = Page({}, [])
    for block in _FENCE.finditer(text):
        if block["kind"] != "python":
            continue
        code = dedent(block["code"])
        if named := _FILE.match(code):
            page.files[named["name"]] = code
        else:
            page.scripts.append((text.count("\n", 0, block.start()) + 2, code))
    return page
