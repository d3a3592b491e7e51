"""The content store of the tests of `offload.content`."""

from tests.content.conftest import make_parts

__all__ = ("make_parts",)
