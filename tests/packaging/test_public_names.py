"""The public names: what `offload` exports is exactly what it says."""

import types

import offload


def public():
    return {
        name
        for name, value in vars(offload).items()
        if not name.startswith("_")
        and name != "annotations"
        and not (isinstance(value, types.ModuleType) and value.__name__ == f"offload.{name}")
    }


def test_exported_names_are_those_of_all():
    """Nothing is public by accident, and nothing that is promised is missing."""
    assert public() == {name for name in offload.__all__ if not name.startswith("__")}


def test_exported_names_are_sorted():
    """A sorted list shows at once whether a name is in it."""
    assert list(offload.__all__) == sorted(offload.__all__)


def test_the_face():
    """The two names of the first example are there."""
    assert {"Offload", "Ref"} <= set(offload.__all__)


def test_every_error_is_public_by_its_module():
    """Users catch errors, so every error has a public place and a line of explanation."""
    from offload import errors

    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert found == set(errors.__all__)
    assert all(vars(errors)[name].__doc__ for name in found)
