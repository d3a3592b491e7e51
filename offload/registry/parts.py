"""What the source of a version consists of, as it is stored, and as people see it.

See `offload.registry.source` for how it is taken, and `offload.registry.rebuild` for what is
made of it.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field

import orjson

from offload.errors import CodeRefused
from offload.registry.pickling import Pair

__all__ = ("Module", "Source", "Step", "diff")


@dataclass
class Module:
    """What is taken of one module besides its definitions.

    Attributes:
        name: its name.
        imports: names and what they are imported as: a module, and maybe a name in it.
        loads: modules that have to be imported for `imports` to have them as attributes.
        modules: names that are modules that are shipped, too.
        classes: names and the versions of classes that they are, and whether something needs
            it when it is defined, not only when it is used. A name with dots is a class that
            stands within another one.
        shown: what constants are shown as to people.
    """

    name: str
    imports: dict[str, list[str]] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    classes: dict[str, tuple[str, str, bool]] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)


@dataclass
class Step:
    """What gives a name its value: a definition, or a constant.

    Attributes:
        text: the definition.
        future: whether its annotations are not evaluated (PEP 563).
        pickle: the constant, in base64.
        needs: the versions that the constant consists of.
        early: whether a definition needs it.
        aliases: other names of the same: module and name.
    """

    module: str
    name: str
    text: str = ""
    future: bool = False
    pickle: str = ""
    needs: list[Pair] = field(default_factory=list)
    early: bool = False
    aliases: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pairs(self) -> list[Pair]:
        """What it needs, also as it was read from JSON."""
        return [(name, code_hash) for name, code_hash in self.needs]


@dataclass
class Source:
    """All of it.

    Attributes:
        root: module and qualified name of what it is the source of.
        at: the number of the step that defines that.
        modules: in the order of their names.
        constants: those that name nothing else, by module and name, pickled, in base64.
        steps: in the order in which they are to be run.
    """

    root: tuple[str, str]
    at: int
    modules: list[Module]
    constants: str
    steps: list[Step]

    def to_bytes(self) -> bytes:
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> Source:
        """Read a source; raises CodeRefused if it is none."""
        try:
            found = orjson.loads(content)
            modules = [Module(**each) for each in found.pop("modules")]
            steps = [Step(**each) for each in found.pop("steps")]
            return cls(**found, modules=modules, steps=steps)
        except (ValueError, TypeError, LookupError, AttributeError) as exc:
            raise CodeRefused(f"this is no source of a class: {exc}") from exc

    def needs(self) -> dict[Pair, bool]:
        """Return the versions that it refers to, and which have to be there before it."""
        needs: dict[Pair, bool] = {}
        for module in self.modules:
            for name, code_hash, early in module.classes.values():
                needs[name, code_hash] = early or needs.get((name, code_hash), False)
        for step in self.steps:
            needs |= {pair: step.early or needs.get(pair, False) for pair in step.pairs}
        return needs


def diff(a: bytes, b: bytes, name_a: str, name_b: str) -> str:
    """Return how source *b* differs from *a*, as a unified diff."""
    old, new = ([f"{line}\n" for line in _shown(each).splitlines()] for each in (a, b))
    return "".join(difflib.unified_diff(old, new, name_a, name_b))


def _shown(source: bytes) -> str:
    """Return a source for people: module by module, the definitions as they are written."""
    content = Source.from_bytes(source)
    parts = []
    for module in content.modules:
        lines = [f"# {module.name}"]
        lines += [f"import {each}" for each in module.loads]
        for name, path in {**module.imports, **{n: [m] for n, m in module.modules.items()}}.items():
            given = "" if path[-1] == name else f" as {name}"
            where = f"from {path[0]} " if path[1:] else ""
            lines.append(f"{where}import {path[-1]}{given}")
        lines += [f"{n} = {value}" for n, value in sorted(module.shown.items())]
        lines += [f"{n} = <{c}@{h[:12]}>" for n, (c, h, _) in sorted(module.classes.items())]
        parts.append("\n".join(lines))
        its = (step.text.rstrip() for step in content.steps if step.module == module.name)
        parts += [text for text in its if text]
    return "\n\n".join(parts)
