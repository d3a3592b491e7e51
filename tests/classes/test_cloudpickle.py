"""cloudpickle still has the documented parts that the class registry and pickle use."""

from __future__ import annotations

import io
import pickle
import types

import cloudpickle


def test_cloudpickle_lets_a_subclass_reduce_classes_and_functions_first():
    """cloudpickle's Pickler calls `reducer_override` for every class, function, and module."""
    asked = []

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj):
            asked.append(type(obj))
            return super().reducer_override(obj)

    Pickler(io.BytesIO(), protocol=5).dump([type("F", (), {}), lambda: None, types])
    assert {type, types.FunctionType, types.ModuleType} <= {*asked}


def test_cloudpickle_has_a_table_of_reducers():
    """cloudpickle's Pickler has a `dispatch_table`, like pickle's, to be copied and replaced."""
    table = dict(cloudpickle.Pickler.dispatch_table)
    table[complex] = lambda _: (str, ("replaced",))

    class Pickler(cloudpickle.Pickler):
        dispatch_table = table

    file = io.BytesIO()
    Pickler(file, protocol=5).dump([1j, memoryview(b"x")])
    assert pickle.loads(file.getvalue()) == ["replaced", b"x"]


def test_cloudpickle_pickles_registered_modules_by_value():
    """cloudpickle lists the modules registered for pickling by value, by name."""
    cloudpickle.register_pickle_by_value(pickle)
    try:
        assert "pickle" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(pickle)
    assert "pickle" not in cloudpickle.list_registry_pickle_by_value()
