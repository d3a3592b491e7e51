"""The page on security lists what a stored value may contain."""

from __future__ import annotations

import re
from pathlib import Path

from offload.serializers import objects, scalars, tree

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "security.md"


def test_the_grammar_lists_exactly_the_nodes_that_are_read():
    """Each node that a reader knows is in the table of its kind, and nothing else is."""
    text = PAGE.read_text().partition("## Reach of a stored value")[2].partition("\n## ")[0]
    always, code = text.split("These nodes are known only where")

    def listed(part):
        rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
        return set(re.findall(r'`\{"(\w+)": ', "".join(rows)))

    assert listed(always) == {*scalars.READERS, *tree._READERS, *tree._MODULES}
    assert listed(code) | {"shipped"} == {*objects.READERS}
    assert "`shipped`" in code
