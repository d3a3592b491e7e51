"""Make the packages' long description from README, with links that work on a package index."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"!?\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


class Readme(MetadataHookInterface):
    """Sets the field ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        base = f"{repository.rstrip('/')}/blob/v{metadata['version']}/" if repository else None
        metadata["readme"] = {"content-type": "text/markdown", "text": portable(text, base)}


def portable(text: str, base: str | None) -> str:
    """Return a page whose links to files of the repository are below *base*.

    Without one, as long as the project has no public address, they become plain text.
    """

    def link(found: re.Match[str]) -> str:
        if "://" in found["target"] or found["target"].startswith("#"):
            return found[0]
        if base is None:
            return found["text"]
        return found[0].replace(f"({found['target']})", f"({base}{found['target']})")

    return _LINK.sub(link, text)
