"""The catalog: named, versioned objects in a store."""

from offload.catalog.batches import BatchResult
from offload.catalog.offline import Catalog
from offload.catalog.records import Record

__all__ = ("BatchResult", "Catalog", "Record")
