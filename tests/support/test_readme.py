"""tests/README.md names files that exist."""

from __future__ import annotations

import re

from tests.support.processes import ROOT

README = ROOT / "tests" / "README.md"


def test_every_file_and_module_that_it_names_exists():
    """Each path in tests/README.md exists, and its table lists every module of tests/support."""
    text = README.read_text()
    paths = re.findall(r"`(tests/[\w/.]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    table = text.partition("`tests/support` has")[2].partition("\n\nImporting")[0]
    rows = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
    modules = re.findall(r"`(\w+)`", " ".join(rows))
    files = (ROOT / "tests" / "support").glob("*.py")
    assert set(modules) == {path.stem for path in files if path.stem[:5] != "test_"}
