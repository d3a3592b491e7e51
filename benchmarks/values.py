"""Values to send: each seed gives unique content that doesn't compress.

(Real text and tables do compress, which reduces offload's traffic and not plain Celery's. Without
that gain, results don't depend on the data.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def value(kind: str, size: int, seed: int) -> Any:
    return {"array": array, "str": text, "frame": frame}[kind](size, seed)


def array(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(max(1, size // 8))


def text(size: int, seed: int) -> str:
    """Return random ASCII text of 93 different characters (no quote, no backslash)."""
    codes = np.random.default_rng(seed).integers(33, 126, size, dtype=np.uint8)
    codes[codes == ord("\\")] = ord("~")
    codes[codes == ord('"')] = ord("!")
    return codes.tobytes().decode("ascii")


def frame(size: int, seed: int) -> pd.DataFrame:
    """Return ten columns: eight of floats, one of integers, one of times."""
    import pandas as pd  # not in workers that get arrays, whose memory it would increase

    rows = max(1, size // 80)
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"x{i}": rng.random(rows) for i in range(8)}
    columns["count"] = rng.integers(0, 2**62, rows)
    columns["when"] = rng.integers(0, 2**60, rows).astype("datetime64[ns]")
    return pd.DataFrame(columns)


def equal(value: Any) -> Any:
    """Return another object with the same content."""
    return "".join([value[:1], value[1:]]) if isinstance(value, str) else value.copy()
