"""Links between pages lead somewhere, and every page can be reached."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), ROOT / "tests" / "README.md"]
_LINK = re.compile(r"\]\((?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def test_no_link_between_pages_is_broken() -> None:
    """Each relative link names a file that exists, and its anchor is a heading there."""
    broken = [
        f"{page.relative_to(ROOT)}: {path}#{anchor or ''}"
        for page in PAGES
        for path, anchor in links(page)
        if not (target := page.parent / path if path else page).exists()
        or (anchor and anchor not in anchors(target))
    ]
    assert broken == []


def test_every_page_can_be_reached() -> None:
    """Links lead from README to every page of the documentation."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            waiting += [(page.parent / path).resolve() for path, _ in links(page) if path]
    assert {page for page in PAGES if DOCS in page.parents} - seen == set()


def links(page: Path) -> list[tuple[str, str | None]]:
    """Return the relative links of a page: path and anchor."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [
        (found["path"], found["anchor"])
        for found in _LINK.finditer(text)
        if "://" not in found["path"] and not found["path"].startswith("mailto:")
    ]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts and the site make them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_in_the_navigation() -> None:
    """The site's navigation lists each page once, and no other."""
    listed = re.findall(r'= "(\S+\.md)"', (ROOT / "zensical.toml").read_text())
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    code = (ROOT / "tools" / "docs.py").read_text()
    copied = re.findall(r'^    "(?:\S+/)?[A-Z]+\.md": "(\S+)",$', code, re.MULTILINE)
    assert sorted(listed) == sorted([*pages, *copied])
