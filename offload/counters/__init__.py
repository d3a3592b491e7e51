"""What happened in this process, counted: in all, and by task and argument."""

from offload.counters.counting import Counters
from offload.counters.names import (
    BOUNDS,
    BY_TASK,
    NAMES,
    OF_STORE,
    OF_STORE_PREFIX,
    OTHER,
    SIZES,
    STEPS,
    Counted,
    size_names,
)

__all__ = (
    "BOUNDS",
    "BY_TASK",
    "NAMES",
    "OF_STORE",
    "OF_STORE_PREFIX",
    "OTHER",
    "SIZES",
    "STEPS",
    "Counted",
    "Counters",
    "size_names",
)
