"""`make release-check` refuses a release whose changelog or contents are wrong."""

import importlib
import sys
import zipfile

import pytest


@pytest.fixture
def tool(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "tools"))
    yield importlib.import_module("release_check")
    for name in ("bootstrap", "release_check"):
        sys.modules.pop(name, None)


DATED = "## [Unreleased]\n\n## [1.2.0] - 2026-11-29\n\n### Added\n\n- A thing.\n"


@pytest.mark.parametrize(
    ("text", "final"),
    (
        (DATED, True),
        (DATED, False),
        ("## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [1.1.0] - 2026-01-01\n", False),
    ),
)
def test_a_changelog_that_describes_the_version_is_accepted(tool, text, final):
    """A version has a dated section, or its changes are under Unreleased until it is final."""
    tool.check_changelog(text, "1.2.0", final=final)


@pytest.mark.parametrize(
    ("text", "final"),
    (
        ("## [Unreleased]\n\n### Added\n\n- A thing.\n", True),
        (DATED.replace("## [1.2.0]", "- More.\n\n## [1.2.0]"), True),
        (DATED.replace("2026-11-29", "soon"), True),
        (DATED.replace("1.2.0", "1x2x0"), False),
        ("## [Unreleased]\n\n## [1.1.0] - 2026-01-01\n", False),
    ),
    ids=("unreleased", "leftover", "undated", "another version", "nothing"),
)
def test_a_changelog_that_does_not_is_refused(tool, text, final):
    """A final version without a dated section, or with unreleased changes left, is refused."""
    with pytest.raises(tool.ReleaseError, match=r"CHANGELOG\.md"):
        tool.check_changelog(text, "1.2.0", final=final)


@pytest.mark.parametrize(
    ("names", "missing"),
    (
        (("offload/py.typed", "tests/conftest.py"), ()),
        (("offload/__init__.py",), ()),
        (("offload/py.typed",), ("LICENSE",)),
    ),
    ids=("foreign file", "no types", "no license"),
)
def test_wrong_contents_are_refused(tool, tmp_path, names, missing):
    """A wheel with other packages or without types, or an incomplete source, is refused."""
    wheel = tmp_path / "offload-1.2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    source = tmp_path / "source"
    source.mkdir()
    for name in set(tool.SDIST_NEEDS) - {*missing}:
        (source / name).touch()
    with pytest.raises(tool.ReleaseError):
        tool.check_contents(source, wheel, "1.2.0")
