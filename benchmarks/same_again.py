"""Question 4: how much does content cost that is already stored?

The cases alternate in one warm process. The floor is the unavoidable work: hashing the bytes once,
and asking the store once.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.app import OFFLOAD
from benchmarks.measure import alternately, commands, median, ratio, reset_counters, timed
from benchmarks.processes import setting
from benchmarks.report import Judge, Scale
from benchmarks.values import array, equal, text
from offload.content.manifest import CHUNK
from offload.digest import digest_of

TITLE = "The same content again"
_UPLOADS = ("set", "getrange", "get")


def run(scale: Scale, judge: Judge) -> None:
    with setting(separate=True) as servers:
        app = servers.app(OFFLOAD)
        broker, store = servers.client("broker"), servers.client("store")
        take = app.tasks["take"]
        numbers, words = array(scale.again, 1), text(scale.again, 1)
        ref = app.offload.put(numbers)
        reset_counters(store)
        app.offload.put(numbers)
        trips = commands(store)
        take.delay(words)
        shared = text(min(scale.again, app.offload.settings.memo_size // 2), 2)
        take.delay(shared)

        def floor(pieces: memoryview) -> float:
            broker.flushall()
            return timed(lambda: hashed(pieces))

        def hashed(pieces: memoryview) -> None:
            for at in range(0, len(pieces), CHUNK):
                digest_of([pieces[at : at + CHUNK]])
            store.ping()

        def publish(large: Any, *, fresh: bool = False) -> Callable[[], float]:
            def measured() -> float:
                broker.flushall()
                argument = equal(large) if fresh else large
                return timed(lambda: take.delay(argument))

            return measured

        found = alternately(
            {
                "array floor": lambda: floor(memoryview(numbers).cast("B")),
                "array": publish(numbers),
                # Also in new memory, which takes longer to read.
                "str floor": lambda: floor(memoryview(words.encode())),
                "other str": publish(words, fresh=True),
                "same str": publish(shared),
                "ref": publish(ref),
                "small": publish([1, 2]),
            },
            max(1, 6 * scale.rounds),
        )
    ms = {name: median(times) * 1e3 for name, times in found.items()}
    size = f"{scale.again / 1e6:g} MB"
    for floor_of, name, what in (
        ("array floor", "array", f"array of {size} again"),
        ("str floor", "other str", f"str of {size} again, another object"),
    ):
        judge.row(
            what,
            "ms",
            {"bare hash and round trip": ms[floor_of], "offload": ms[name]},
            ratio=ratio(found[name], found[floor_of]),
            at_most=1.5,
        )
    judge.row(
        f"str of {len(shared) / 1e6:.3g} MB again, the same object",
        "ms",
        {"small task": ms["small"], "offload": ms["same str"]},
        ratio=ratio(found["same str"], found["small"]),
    )
    judge.row(
        f"uploads or reads for an array of {size} again",
        "",
        {"offload": sum(trips.get(name, 0) for name in _UPLOADS)},
        at_most=0,
    )
    judge.row("round trips to the store", "", {"offload": sum(trips.values())}, at_most=1)
    judge.row(
        "put() once, its Ref passed",
        "ms",
        {"small task": ms["small"], "offload": ms["ref"]},
        ratio=ratio(found["ref"], found["small"]),
        at_most=2,
    )
