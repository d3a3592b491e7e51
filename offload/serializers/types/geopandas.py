"""geopandas series and frames: geometries as well-known binary (WKB), their CRS, and columns.

https://libgeos.org/specifications/wkb/
"""

from __future__ import annotations

import re
import struct
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from geopandas.array import GeometryDtype
from pyproj import CRS

from offload.serializers.base import NotData
from offload.serializers.types.registry import NotDecoded, RegisteredType

_NAMED = re.compile(r"(?:EPSG|ESRI|OGC|IGNF):[A-Za-z0-9]{1,20}")
"""Text of a CRS that PROJ finds in its database. Other text may name files."""
_LONGEST_CRS = 64 * 1024
_LINEAR_RING = 2  # in shapely; well-known binary has no such type
_POINT, _LINE, _POLYGON, _COLLECTION = 1, 2, 3, 7
_Z, _M, _SRID = 1 << 31, 1 << 30, 1 << 29
_DEEPEST = 16
"""Maximum depth of collections. GEOS reads them recursively, and a stack overflow is fatal."""


# -- geometries


def _encode_geometries(array: Any) -> Any:
    if (shapely.get_type_id(array) == _LINEAR_RING).any():
        raise NotData("it has linear rings", advice="send shapely.LineString of each")
    texts = shapely.to_wkb(np.asarray(array), include_srid=True)
    sizes = np.array([-1 if text is None else len(text) for text in texts], np.int64)
    data = b"".join(text for text in texts if text is not None)
    try:
        _check(memoryview(data), sizes)
    except NotDecoded as error:
        raise NotData(str(error)) from None
    return [_encode_crs(array.crs), sizes, memoryview(data)]


def _decode_geometries(data: Any) -> Any:
    crs, sizes, content = data
    if not isinstance(sizes, np.ndarray) or sizes.dtype != np.int64 or sizes.ndim != 1:
        raise NotDecoded("its sizes aren't an array of numbers")
    if type(content) is not memoryview or int(np.maximum(sizes, 0).sum()) != content.nbytes:
        raise NotDecoded("its sizes don't fit its geometries")
    texts = _check(content, sizes)
    return gpd.array.from_wkb(texts, crs=_decode_crs(crs))


def _check(content: memoryview, sizes: Any) -> Any:
    """Return each geometry's bytes. Raises NotDecoded if collections are nested too deeply."""
    texts = np.empty(len(sizes), object)
    start = 0
    for at, size in enumerate(sizes.tolist()):
        if size >= 0:
            text = content[start : start + size]
            if size < 5 or text[1 if text[0] else 4] > _POLYGON:
                _check_depth(text)
            texts[at] = bytes(text)
            start += size
    return texts


def _check_depth(text: memoryview) -> None:
    left = [1]  # number of geometries to read, by level
    at = 0
    try:
        while left:
            if not left[-1]:
                left.pop()
                continue
            left[-1] -= 1
            order = "<" if text[at] else ">"
            (kind,) = struct.unpack_from(f"{order}I", text, at + 1)
            at += 9 if kind & _SRID else 5
            base, iso = kind & 0xFFFF, (kind & 0xFFFF) // 1000
            width = 8 * (2 + bool(kind & _Z or iso in (1, 3)) + bool(kind & _M or iso in (2, 3)))
            base %= 1000
            if base == _POINT:
                at += width
                continue
            (count,) = struct.unpack_from(f"{order}I", text, at)
            at += 4
            if base == _LINE:
                at += count * width
            elif base == _POLYGON:
                for _ in range(count):
                    at += 4 + width * struct.unpack_from(f"{order}I", text, at)[0]
            elif base <= _COLLECTION and len(left) < _DEEPEST:
                left.append(count)
            else:
                raise NotDecoded("a geometry is nested too deeply, or of an unknown type")
    except (struct.error, IndexError):
        raise NotDecoded("a geometry is truncated") from None


def _encode_crs(crs: Any) -> str | None:
    if crs is None:
        return None
    for text in (crs.srs, crs.to_wkt()):
        if (_NAMED.fullmatch(text) or text is not crs.srs) and _decode_crs(text) == crs:
            return str(text)
    raise NotData("its CRS can't be written exactly")


def _decode_crs(text: Any) -> Any:
    if text is None:
        return None
    if type(text) is not str or len(text) > _LONGEST_CRS:
        raise NotDecoded("not a CRS")
    return CRS.from_user_input(text) if _NAMED.fullmatch(text) else CRS.from_wkt(text)


# -- series and frames


def _encode_series(series: Any) -> Any:
    return [_encode_geometries(series.array), series.index, series.name, dict(series.attrs)]


def _decode_series(data: Any, version: int) -> Any:
    content, index, name, attrs = data
    if not isinstance(index, (pd.Index, type(None))):  # pandas would expand an array without width
        raise NotDecoded("it has no index")
    made = gpd.GeoSeries(_decode_geometries(content), index=index, name=name)
    made.attrs = attrs
    return made


def _encode_frame(frame: Any) -> Any:
    plain = pd.DataFrame(frame)
    columns = plain.columns
    plain.columns = pd.Index(np.arange(len(columns)))
    places = [at for at, each in enumerate(plain.dtypes) if isinstance(each, GeometryDtype)]
    arrays = [_encode_geometries(plain.iloc[:, at].array) for at in places]
    rest = plain.drop(columns=places)
    rest.attrs = dict(frame.attrs)
    return [rest, columns, places, arrays, frame.active_geometry_name]


def _decode_frame(data: Any, version: int) -> Any:
    rest, columns, places, arrays, active = data
    if not isinstance(rest, pd.DataFrame) or not isinstance(columns, pd.Index):
        raise NotDecoded("it has no columns")
    attrs = rest.attrs
    for at, content in zip(places, arrays, strict=True):
        rest.insert(at, at, _decode_geometries(content), allow_duplicates=True)
    rest.columns = columns
    made = gpd.GeoDataFrame(rest)
    if active is not None:
        made = made.set_geometry(active)
    made.attrs = attrs
    return made


TYPES = [
    RegisteredType(kind, name, 1, encode, decode, "offload[geopandas]", built_in=True)
    for kind, name, encode, decode in (
        (gpd.GeoSeries, "geopandas.GeoSeries", _encode_series, _decode_series),
        (gpd.GeoDataFrame, "geopandas.GeoDataFrame", _encode_frame, _decode_frame),
    )
]
