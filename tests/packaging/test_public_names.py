"""`offload` exports exactly its documented names."""

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest

import offload

OWN_MEANS = {"Any", "TYPE_CHECKING", "annotations", "import_module"}


def public():
    return {
        name
        for name in dir(offload)
        if not name.startswith("_")
        and name not in OWN_MEANS
        and not (
            isinstance(value := getattr(offload, name), types.ModuleType)
            and value.__name__ == f"offload.{name}"
        )
    }


def test_exported_names_are_those_of_all():
    """Nothing is public by accident, and no promised name is missing."""
    assert public() == set(offload.__all__)


def test_type_checkers_see_the_same_names():
    """Each name is the same object that type checkers import."""
    tree = ast.parse(Path(offload.__file__).read_text())
    checking = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in checking.body
        for alias in node.names
        if alias.asname is None
    }
    assert sorted(seen) == list(offload.__all__)
    for name, module in seen.items():
        assert getattr(offload, name) is getattr(sys.modules[module], name)


def test_importing_the_package_imports_nothing_else():
    """Celery imports the package at every call of ``celery``, so that import must be cheap."""
    code = (
        "import sys, offload; print(sorted(n for n in sys.modules if n.startswith('offload.')));"
        "print([n for n in ('celery', 'redis', 'blake3') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_an_unknown_name_is_an_attribute_error():
    """An unknown name raises AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="'offload' has no attribute 'Ofload'"):
        _ = offload.Ofload


def test_exported_names_are_sorted():
    """The list is sorted, so that names are easy to find."""
    assert list(offload.__all__) == sorted(offload.__all__)


def test_names_of_the_first_example():
    """The two names of the first example exist."""
    assert {"Offload", "Ref"} <= set(offload.__all__)


def test_every_error_is_public_by_its_module():
    """Users catch errors, so every error has a public name and a docstring."""
    from offload import errors

    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert found == set(errors.__all__)
    assert all(vars(errors)[name].__doc__ for name in found)
