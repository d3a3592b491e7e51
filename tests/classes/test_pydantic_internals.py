"""pydantic still has the undocumented parts that the class registry uses."""

from __future__ import annotations

import pytest

pydantic = pytest.importorskip("pydantic")

from pydantic._internal import _decorators  # noqa: E402 (after importorskip)
from pydantic.fields import ComputedFieldInfo, ModelPrivateAttr  # noqa: E402

from offload.classes.hashing.values import attributes_of  # noqa: E402
from offload.classes.library_internals import (  # noqa: E402
    model_attributes,
    state_of,
)


class Model(pydantic.BaseModel):
    x: int = pydantic.Field(1, gt=0)
    _p: int = pydantic.PrivateAttr(3)

    @pydantic.field_validator("x")
    @classmethod
    def check(cls, value):
        return value

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.x * 2


def test_pydantic_makes_the_attributes_we_know():
    """The attributes that pydantic adds to a model are derived, or declarations."""
    Model(x=2).model_dump_json()
    assert {"__pydantic_core_schema__", "__pydantic_validator__"} <= model_attributes(vars(Model))
    assert not model_attributes(vars(int))
    left = {name for name in attributes_of(Model) if "pydantic" in name}
    assert left <= {
        "__pydantic_computed_fields__",
        "__pydantic_custom_init__",
        "__pydantic_decorators__",
        "__pydantic_extra__",
        "__pydantic_extra_info__",
        "__pydantic_fields__",
        "__pydantic_fields_set__",
        "__pydantic_generic_metadata__",
        "__pydantic_post_init__",
        "__pydantic_private__",
        "__pydantic_root_model__",
    }


def state(value):
    return state_of(value, value.__reduce_ex__(4)[2])


def test_pydantic_describes_fields_and_decorators_by_the_attributes_we_know():
    """pydantic pickles descriptions of fields and decorators, of which we omit derived parts."""
    field = state(Model.model_fields["x"])
    assert field["default"] == 1
    assert field["metadata"]
    assert "annotation" not in field
    private = Model.__private_attributes__["_p"]
    assert isinstance(private, ModelPrivateAttr)
    assert state(private)["default"] == 3
    decorators = Model.__pydantic_decorators__
    validator = decorators.field_validators["check"]
    assert isinstance(validator, _decorators.Decorator)
    assert state(validator)["func"] is not None
    assert "cls_ref" not in state(validator)
    computed = decorators.computed_fields["double"].info
    assert isinstance(computed, ComputedFieldInfo)
    assert "return_type" not in state(computed)


def test_pydantic_marks_incomplete_models():
    """pydantic marks a model whose annotations contain undefined names."""
    made = pydantic.create_model("Made", later=("NotDefinedYet", ...))
    assert made.__pydantic_complete__ is False
    assert Model.__pydantic_complete__ is True
