"""Build the documentation site in build/site, and check it.

    .venvs/docs/bin/python tools/docs.py

Copies docs/, pages of the root such as CHANGELOG.md, and other files that they link to, to
build/docs, and adapts the links between them. Zensical then builds the site by zensical.toml. Fails
on any warning, on a link or an anchor that leads nowhere, also within the API reference, and on a
font, script, style, or image from another host.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "tests/README.md": "tests.md",
}
"""Pages outside of docs/, and what each is called on the site."""
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_EXPECTED = re.compile(r"\s*|Build started|No issues found|Build finished in .*")
_RESOURCES = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


class DocsError(Exception):
    """The site can't be published; the message says what is wrong."""


def main() -> int:
    try:
        stage()
        pages = build()
        problems = [problem for page in pages for problem in check(page)]
        if problems:
            raise DocsError("\n".join(problems))
    except DocsError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"{len(pages)} pages in {SITE.relative_to(ROOT)}: open {SITE.name}/index.html")
    return 0


def stage() -> None:
    """Copy all pages to build/docs, with links that work there."""
    shutil.rmtree(STAGED, ignore_errors=True)
    shutil.copytree(DOCS, STAGED)
    for source in [*DOCS.rglob("*.md"), *(ROOT / name for name in ROOT_PAGES)]:
        place(source).write_text(relinked(source), encoding="utf-8")


def place(source: Path) -> Path:
    """Return where a file is staged."""
    if DOCS in source.parents:
        return STAGED / source.relative_to(DOCS)
    name = source.relative_to(ROOT).as_posix()
    return STAGED / ROOT_PAGES.get(name, f"files/{name}")


def relinked(source: Path) -> str:
    """Return a page's text whose relative links lead to staged files."""
    here = place(source).parent

    def link(found: re.Match[str]) -> str:
        path, sep, anchor = found[2].partition("#")
        if not path or urlsplit(path).scheme:
            return found[0]
        target = (source.parent / path).resolve()
        staged = place(target)
        if not target.is_file() or (target.suffix == ".md" and STAGED / "files" in staged.parents):
            raise DocsError(f"{source.relative_to(ROOT)}: {path} isn't a part of the site")
        if not staged.exists():
            staged.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, staged)
        return f"{found[1]}{os.path.relpath(staged, here)}{sep}{anchor}{found[3]}"

    parts = _FENCE.split(source.read_text(encoding="utf-8"))
    return "".join(part if _FENCE.match(part) else _LINK.sub(link, part) for part in parts)


def build() -> list[Path]:
    """Build the site, and return its pages."""
    shutil.rmtree(SITE, ignore_errors=True)
    done = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"],
        cwd=ROOT,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = _COLOR.sub("", done.stdout)
    # `--strict` doesn't count what mkdocstrings logs, such as a docstring that it can't parse.
    if done.returncode or not all(map(_EXPECTED.fullmatch, said.splitlines())):
        raise DocsError(said)
    return sorted(SITE.rglob("*.html"))


class Page(HTMLParser):
    """The anchors, links, and resources of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.resources: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag in _RESOURCES and _RESOURCES[tag] in given and given.get("rel") != "canonical":
            self.resources.add(given[_RESOURCES[tag]])


_pages: dict[Path, Page] = {}


def read(path: Path) -> Page:
    if path not in _pages:
        _pages[path] = Page(path)
    return _pages[path]


def check(path: Path) -> list[str]:
    """Return what is wrong with the links and resources of a page."""
    page, name = read(path), path.relative_to(SITE)
    if name.name == "404.html":  # served for any address, so its links are absolute
        return []
    problems = [
        f"{name}: loads {resource}"
        for resource in page.resources
        if urlsplit(resource).netloc or not (path.parent / urlsplit(resource).path).exists()
    ]
    for link in page.links:
        parts = urlsplit(link)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        anchor = unquote(parts.fragment)
        if parts.scheme or parts.netloc:
            continue
        if not target.is_file():
            problems.append(f"{name}: {link} leads nowhere")
        elif anchor and target.suffix == ".html" and anchor not in read(target).anchors:
            problems.append(f"{name}: {link} has no such anchor")
    return problems


if __name__ == "__main__":
    sys.exit(main())
