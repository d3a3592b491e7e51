"""Save, load, and remove objects of the catalog, with counts known in advance."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from offload import ObjectNotFound, VersionConflict

__all__ = ("COUNTED", "use_catalog")

COUNTED = {"saves": 5, "conflicts": 2, "loads": 4, "refs": 1, "late": 3, "removed": 2}
"""What `use_catalog` counts."""


def use_catalog(wire: Any) -> None:
    """Use the catalog of a wire's app so that its counters become `COUNTED`.

    Leaves ``churn:model`` with versions 1, 2, and 3.
    """
    catalog = wire.hook.catalog

    @wire.app.task(name="catalog.score", shared=False)
    def score(model: Any) -> Any:
        return len(model)

    @wire.app.task(name="catalog.train", shared=False, offload={"save_as": "churn:model"})
    def train() -> Any:
        return ["weights"] * 3

    catalog.save("churn:model", ["weights"])  # 1
    catalog.save(["churn:model", "a"], [["weights"] * 2, 1])  # 3
    with suppress(VersionConflict):
        catalog.save("churn:model", 1, "2")
    catalog.save(["a", "b"], [1, 2], ["1", "1"])  # 4, and another conflict
    wire.run(train)  # 5
    catalog.load("churn:model")
    catalog.load(["a", "b", "c"])
    _ = catalog["churn:model@1"]
    with suppress(ObjectNotFound):
        catalog.load("c")
    catalog.ref("a", "1")
    late = catalog.late("churn:model")
    wire.run(score, late)
    wire.run(score, late)
    wire.hook._runtime.pinned_ref(late)
    with suppress(ObjectNotFound):
        wire.run(score, catalog.late("c"))
    del catalog["a"]
    catalog.remove("b")
