"""PyTorch tensors in the CPU's memory: dtype, shape, strides, and requires_grad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from offload.serializers.base import NotData, alias
from offload.serializers.types.registry import NotDecoded, RegisteredType

_NAMES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_DTYPES: dict[str, Any] = {name: getattr(torch, name) for name in _NAMES if hasattr(torch, name)}
_BY_DTYPE = {dtype: name for name, dtype in _DTYPES.items()}
_FREE = 1 << 20
"""Maximum number of items that may share memory; larger tensors may have more."""

_GAPS = 8
"""Maximum bytes between items per byte of items; a tensor with more is copied without gaps."""

_MAX_DIMENSIONS = 64


def _encode(value: Any) -> Any:
    _check(value)
    dtype = _BY_DTYPE.get(value.dtype)
    if dtype is None:
        raise NotData(f"its dtype is {value.dtype}")
    tensor = _compact(value.detach().resolve_conj().resolve_neg())
    shape, strides = list(tensor.shape), list(tensor.stride())
    size = _span(shape, strides) * tensor.element_size()
    memory = alias(tensor.data_ptr(), size, tensor).toreadonly() if size else memoryview(b"")
    return [dtype, shape, strides, bool(value.requires_grad), memory]


def _check(value: Any) -> None:
    if value.device.type != "cpu":
        raise NotData(f"it is on {value.device}", advice="send .cpu() of it")
    if value.layout is not torch.strided or value.is_quantized:
        raise NotData("its memory isn't strided", advice="send .to_dense() of it")
    if not value.is_leaf:
        raise NotData("it is part of an autograd graph", advice="send .detach() of it")
    if vars(value):
        raise NotData("it has attributes of its own")


def _compact(tensor: Any) -> Any:
    """Return *tensor*, or a copy if its memory contains bytes of other tensors.

    The copy has the same strides unless items overlap or are far apart.
    """
    shape, strides = list(tensor.shape), list(tensor.stride())
    if not tensor.numel():
        return tensor
    distinct = [(n, step) for n, step in zip(shape, strides, strict=True) if n > 1 and step]
    items = math.prod(n for n, _ in distinct)
    span = _span(shape, strides)
    if tensor.numel() > max(_FREE, _GAPS * items) or _overlaps(distinct):
        return tensor.contiguous().clone() if _overlaps(distinct) else tensor.contiguous()
    if items == span:
        return tensor
    if span > _GAPS * items:
        return tensor.contiguous()
    memory = torch.zeros(span, dtype=tensor.dtype)
    copy = memory.as_strided(shape, strides)
    at = tuple(slice(0, 1) if not step else slice(None) for step in strides)
    copy[at].copy_(tensor[at])
    return copy


def _overlaps(distinct: Sequence[tuple[int, int]]) -> bool:
    """Return whether items along dimensions of these lengths and strides may share memory."""
    reach = 0
    for n, step in sorted(distinct, key=lambda each: each[1]):
        if step <= reach:
            return True
        reach += (n - 1) * step
    return False


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return the distance in memory from the first to the last item, both included, in items."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _decode(kind: Any, data: Any, version: int) -> Any:
    name, shape, strides, requires_grad, memory = data
    dtype = _DTYPES.get(name) if type(name) is str else None
    if dtype is None:
        raise NotDecoded("its dtype is unknown here: this version of torch may be too old")
    for numbers in (shape, strides):
        if type(numbers) is not list or not len(shape) == len(numbers) <= _MAX_DIMENSIONS:
            raise NotDecoded("not a shape")
        if any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
            raise NotDecoded("not a shape")
    span, width = _span(shape, strides), dtype.itemsize
    if type(memory) is not memoryview or span * width != memory.nbytes:
        raise NotDecoded("its shape doesn't fit its memory")
    if math.prod(shape) > max(_FREE, _GAPS * span):
        raise NotDecoded("more items share memory than its size justifies")
    flat = torch.frombuffer(memory, dtype=dtype) if span else torch.empty(0, dtype=dtype)
    made = flat.as_strided(shape, strides)
    if kind is not torch.Tensor:
        return kind(made, requires_grad=bool(requires_grad))
    return made.requires_grad_(True) if requires_grad else made


TYPES = [
    RegisteredType(kind, name, 1, _encode, partial(_decode, kind), "offload[torch]", built_in=True)
    for name, kind in (("torch.Tensor", torch.Tensor), ("torch.Parameter", torch.nn.Parameter))
]
