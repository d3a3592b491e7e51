"""Pillow images: mode, size, pixels, palette, and info."""

from __future__ import annotations

from typing import Any

from PIL import Image

from offload.serializers.base import NotData
from offload.serializers.types.registry import NotDecoded, RegisteredType

_BITS = {
    "1": 1,
    "L": 8,
    "P": 8,
    "I": 32,
    "F": 32,
    "LA": 16,
    "La": 16,
    "PA": 16,
    "I;16": 16,
    "I;16L": 16,
    "I;16B": 16,
    "RGB": 24,
    "YCbCr": 24,
    "LAB": 24,
    "HSV": 24,
    "RGBA": 32,
    "RGBa": 32,
    "RGBX": 32,
    "CMYK": 32,
}
"""Bits per pixel in an image's bytes, by mode."""

_MAX_PALETTE = 256 * 4
_MAX_EMPTY = 1024  # pixels in width and height of an image without any


def _encode(image: Any) -> Any:
    if image.mode not in _BITS:
        raise NotData(f"its mode is {image.mode}")
    if 0 in image.size and max(image.size) > _MAX_EMPTY:
        raise NotData("it is empty, but too wide or high")
    palette = image.palette if image.mode in ("P", "PA") else None
    return [
        image.mode,
        list(image.size),
        image.tobytes(),
        None if palette is None else [palette.mode, bytes(image.getpalette(palette.mode))],
        dict(image.info),
    ]


def _decode(data: Any, version: int) -> Any:
    mode, (width, height), pixels, palette, info = data
    if mode not in _BITS or type(width) is not int or type(height) is not int:
        raise NotDecoded("its mode or size is unknown")
    if type(pixels) is not bytes:
        raise NotDecoded("its pixels aren't bytes")
    row = (width * _BITS[mode] + 7) // 8
    if not row * height and max(width, height) > _MAX_EMPTY:  # Pillow allocates memory for rows
        raise NotDecoded("it is empty, but too wide or high")
    if width < 0 or height < 0 or row * height != len(pixels):
        raise NotDecoded("its size doesn't fit its pixels")
    image: Any = (
        Image.frombytes(mode, (width, height), pixels)
        if pixels
        else Image.new(mode, (width, height))
    )
    if palette is not None:
        kind, colors = palette
        if kind not in ("RGB", "RGBA") or type(colors) is not bytes or len(colors) > _MAX_PALETTE:
            raise NotDecoded("not a palette")
        image.putpalette(colors, kind)
        image.palette.mode = kind
    if type(info) is not dict:
        raise NotDecoded("its info isn't a dict")
    image.info = info
    return image


TYPES = [
    RegisteredType(Image.Image, "PIL.Image", 1, _encode, _decode, "offload[pillow]", built_in=True)
]
