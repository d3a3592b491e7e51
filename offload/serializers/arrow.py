"""pyarrow tables and arrays, and polars frames and series, which use Arrow's memory layout.

Arrays are written as their own buffers, without a copy, and keep their chunks. Only slices are
copied, to omit the memory outside of them. https://arrow.apache.org/docs/format/Columnar.html

The layout of strings in polars depends on how a frame was created, so they are first converted to
Arrow's plain layout (a copy). Equal frames then have equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from offload.errors import DeserializationError
from offload.serializers.base import NotData
from offload.serializers.scalars import Node
from offload.serializers.tree import Reader, Writer
from offload.text import type_name

_EXTENSION = b"ARROW:extension:name"
"""Key in a field's metadata that marks an extension type."""

_VIEWS = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
"""Types whose memory depends on how an array was created, and the types to convert them to."""


def write(value: Any, writer: Writer) -> Node:
    """Return the node of a pyarrow or polars object. Raises NotData."""
    kind = type(value)
    if kind is pa.Table:
        return _write_table(value, writer)
    if kind is pa.RecordBatch:
        return {**_write_table(pa.Table.from_batches([value]), writer), "kind": "RecordBatch"}
    if kind is pa.ChunkedArray:
        return {"kind": "ChunkedArray", **write_chunks(value.type, value.chunks, writer)}
    if isinstance(value, pa.Array):
        return {"kind": "Array", **write_chunks(value.type, [value], writer)}
    if kind.__module__.startswith("polars."):
        return _write_polars(value, writer)
    raise NotData(f"no accepted serializer supports values of type {type_name(value)}")


def read(body: Node, reader: Reader) -> Any:
    """Return the object of a node; it uses the buffers' memory. Raises ValueError."""
    kind = body["kind"]
    if kind == "Table":
        return _read_table(body, reader)
    if kind == "RecordBatch":
        table = _read_table(body, reader)
        batches = table.to_batches()
        if len(batches) > 1:
            raise ValueError("not one batch")
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
    if kind in ("DataFrame", "Series"):
        return _read_polars(body, reader)
    chunks = read_chunks(body, reader)
    if kind == "ChunkedArray":
        return chunks
    if kind == "Array" and chunks.num_chunks == 1:
        return chunks.chunk(0)
    raise ValueError("not an Arrow value")


def write_chunks(kind: pa.DataType, chunks: Iterable[pa.Array], writer: Writer) -> Node:
    """Return the node of a chunked array: its type and chunks."""
    schema = pa.schema([pa.field("", kind)])
    return {
        "schema": _write_schema(schema, writer),
        "chunks": [_write_array(chunk, writer) for chunk in chunks],
    }


def read_chunks(body: Node, reader: Reader) -> pa.ChunkedArray:
    """Return the chunked array of a node. Raises ValueError if the node is malformed."""
    schema = read_schema(body["schema"], reader)
    if len(schema) != 1:
        raise ValueError("not the schema of an array")
    return _read_column(schema.field(0), body["chunks"], reader)


# -- tables -----------------------------------------------------------------------------


def _write_table(table: pa.Table, writer: Writer) -> Node:
    return {
        "kind": "Table",
        "schema": _write_schema(table.schema, writer),
        "columns": [[_write_array(c, writer) for c in column.chunks] for column in table.columns],
        "rows": table.num_rows,
    }


def _read_table(body: Node, reader: Reader) -> pa.Table:
    schema = read_schema(body["schema"], reader)
    if len(schema) != len(body["columns"]):
        raise ValueError("not as many columns as the schema has")
    columns = [
        _read_column(field, chunks, reader)
        for field, chunks in zip(schema, body["columns"], strict=True)
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    table.validate()
    if table.num_rows != body["rows"]:
        raise ValueError("not as many rows as there should be")
    return table


def _write_schema(schema: pa.Schema, writer: Writer) -> Node:
    for field in schema:
        if _has_extension(field.type):
            raise NotData(f"its column {field.name!r} is of an Arrow extension type {field.type}")
    serialized = memoryview(schema.serialize()).cast("B")
    if _EXTENSION in bytes(serialized):
        raise NotData("its schema names an Arrow extension type that is not registered here")
    return writer.buffer(serialized)


def read_schema(node: Node, reader: Reader) -> pa.Schema:
    serialized = reader.buffer(node)
    # Check before parsing, which would call code registered for an extension type.
    if _EXTENSION in bytes(serialized):
        raise ValueError("an Arrow extension type")
    return pa.ipc.read_schema(pa.py_buffer(serialized))


def _has_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    return any(map(_has_extension, _part_types(kind)))


# -- arrays -----------------------------------------------------------------------------


def _write_array(array: pa.Array, writer: Writer) -> Node:
    """Return the node of an array: its own buffers, and its child arrays."""
    kind = array.type
    if kind in _VIEWS:
        return _write_array(array.cast(_VIEWS[kind]), writer)
    if pa.types.is_dictionary(kind):
        return {"parts": [_write_array(a, writer) for a in (array.indices, array.dictionary)]}
    sizes = _sizes(array)
    if sizes is None:
        # A slice: concatenating it with an empty array copies only its own memory.
        array = pa.concat_arrays([array, array.slice(0, 0)])
        sizes = _sizes(array)
        if sizes is None:
            raise NotData(f"its memory layout isn't that of {kind}")
    buffers = [
        None if buffer is None else writer.buffer(_bytes(buffer.slice(0, size)))
        for buffer, size in zip(array.buffers(), sizes, strict=False)
    ]
    if _weighs_nothing(kind):
        writer.count(len(array))
    return {
        "length": len(array),
        "nulls": array.null_count,
        "buffers": buffers,
        "parts": [_write_array(part, writer) for part in _parts(array)],
    }


def _sizes(array: pa.Array) -> list[int] | None:
    """Return how many bytes an array uses of each of its buffers; None if it is a slice."""
    if array.offset:
        return None
    kind, length = array.type, len(array)
    sizes = [_bits(length)]
    width = _offset_width(kind)
    if width:
        size = (length + 1) * width
        end = _end(array.buffers()[1], width, size)
        inside = array.buffers()[2] if _is_text(kind) else array.values
        whole = 0 if inside is None else inside.size if _is_text(kind) else len(inside)
        if end is None or end > whole or (end < whole and not _is_text(kind)):
            return None
        sizes.append(size)
        if _is_text(kind):
            sizes.append(end)
    elif _is_fixed(kind):
        sizes.append(_bits(length * kind.bit_width))
    elif pa.types.is_fixed_size_list(kind):
        if len(array.values) != length * kind.list_size:
            return None
    elif not _is_known(kind):
        raise NotData(f"it has a column of Arrow's type {kind}")
    return sizes


def _end(offsets: pa.Buffer | None, width: int, size: int) -> int | None:
    """Return the offset where the last item ends; None if the first doesn't start at 0."""
    if offsets is None or offsets.size < size:
        return None
    view = _bytes(offsets)
    if any(view[:width]):
        return None
    return int.from_bytes(view[size - width : size], "little")


def _parts(array: pa.Array) -> list[pa.Array]:
    kind = array.type
    if pa.types.is_struct(kind):
        return [array.field(i) for i in range(kind.num_fields)]
    return [array.values] if kind.num_fields else []


def _part_types(kind: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_dictionary(kind):
        return [kind.index_type, kind.value_type]
    if pa.types.is_map(kind):
        return [pa.struct([kind.key_field, kind.item_field])]
    return [kind.field(i).type for i in range(kind.num_fields)]


def _has_texts_only(kind: pa.DataType) -> bool:
    """Return whether all dictionaries in *kind* are of strings."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type) or kind.value_type in _VIEWS
    return all(map(_has_texts_only, _part_types(kind)))


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_binary(kind)
        or types.is_large_string(kind)
        or types.is_large_binary(kind)
    )


def _offset_width(kind: pa.DataType) -> int:
    types = pa.types
    if types.is_large_string(kind) or types.is_large_binary(kind) or types.is_large_list(kind):
        return 8
    return 4 if _is_text(kind) or types.is_list(kind) or types.is_map(kind) else 0


def _is_fixed(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind)
    )


def _is_known(kind: pa.DataType) -> bool:
    """Return whether arrays of this type are supported, regardless of their children's types."""
    types = pa.types
    return bool(
        _offset_width(kind)
        or _is_fixed(kind)
        or types.is_fixed_size_list(kind)
        or types.is_struct(kind)
        or types.is_null(kind)
    )


def _weighs_nothing(kind: pa.DataType) -> bool:
    """Return whether items of this type may take no bytes."""
    types = pa.types
    return bool(
        types.is_null(kind)
        or types.is_struct(kind)
        or types.is_fixed_size_list(kind)
        or (types.is_fixed_size_binary(kind) and not kind.byte_width)
    )


def _bits(count: int) -> int:
    return (count + 7) // 8


def _bytes(buffer: pa.Buffer) -> memoryview:
    return memoryview(buffer).cast("B") if buffer.size else memoryview(b"")


def _read_column(field: pa.Field, nodes: Node, reader: Reader) -> pa.ChunkedArray:
    arrays = [_read_array(field.type, node, reader) for node in nodes]
    return pa.chunked_array(arrays, field.type)


def _read_array(kind: pa.DataType, node: Node, reader: Reader) -> pa.Array:
    if kind in _VIEWS:
        return _read_array(_VIEWS[kind], node, reader).cast(kind)
    types = _part_types(kind)
    if len(types) != len(node["parts"]):
        raise ValueError(f"no array of {kind}")
    parts = [_read_array(t, n, reader) for t, n in zip(types, node["parts"], strict=True)]
    if pa.types.is_dictionary(kind):
        array = pa.DictionaryArray.from_arrays(*parts, ordered=kind.ordered)
    else:
        array = _assemble(kind, node, parts, reader)
    # Validate the content of the buffers, not only their sizes: wrong offsets would read other
    # memory, and polars assumes that strings are valid UTF-8.
    array.validate(full=True)
    return array


def _assemble(kind: pa.DataType, node: Node, parts: list[pa.Array], reader: Reader) -> pa.Array:
    length, nulls = node["length"], node["nulls"]
    if type(length) is not int or type(nulls) is not int or not 0 <= nulls <= length < 1 << 32:
        raise ValueError("not a length")
    if not _is_known(kind):
        raise ValueError(f"an array of {kind}")
    if _weighs_nothing(kind):
        reader.count(length)
    own = [None if b is None else pa.py_buffer(reader.buffer(b)) for b in node["buffers"]]
    wanted = 1 + bool(_offset_width(kind) or _is_fixed(kind)) + _is_text(kind)
    if len(own) != wanted:
        raise ValueError(f"no array of {kind}")
    return pa.Array.from_buffers(kind, length, own, nulls, children=parts or None)


# -- polars -----------------------------------------------------------------------------


def _write_polars(value: Any, writer: Writer) -> Node:
    import polars as pl

    if type(value) is pl.Series:
        return {**_write_polars(value.to_frame(), writer), "kind": "Series"}
    if type(value) is not pl.DataFrame:
        raise NotData(f"no accepted serializer supports values of type {type_name(value)}")
    # Name columns by position: polars reads an empty name from Arrow as no name.
    names = [writer.node(name) for name in value.columns]
    numbered = value.rename({name: str(i) for i, name in enumerate(value.columns)})
    try:
        # Test with two rows of nulls: types without width make polars panic only if there are rows.
        back: Any = pl.from_arrow(numbered.clear(2).to_arrow())
    except (Exception, pl.exceptions.PanicException) as error:
        raise NotData(f"Arrow doesn't support it ({type(error).__name__})") from None
    for name, sent, got in zip(value.columns, value.dtypes, back.dtypes, strict=True):
        if sent != got:
            raise NotData(f"its column {name!r} is of dtype {sent}")
    table = _write_table(numbered.to_arrow(), writer)
    return {**table, "kind": "DataFrame", "names": names}


def _read_polars(body: Node, reader: Reader) -> Any:
    try:
        import polars as pl
    except ImportError as error:
        raise DeserializationError(
            'reading a polars value needs polars: pip install "offload[polars]"'
        ) from error
    table = _read_table(body, reader)
    if not all(map(_has_texts_only, table.schema.types)):
        raise ValueError("a dictionary whose items aren't strings")  # polars repeats these
    try:
        frame: Any = pl.from_arrow(table, rechunk=False)
    except pl.exceptions.PanicException as error:  # not a subclass of Exception
        raise ValueError(f"polars cannot read it: {error}") from error
    frame.columns = reader.items(body["names"])
    return frame.to_series() if body["kind"] == "Series" else frame
