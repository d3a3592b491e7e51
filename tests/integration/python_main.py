"""A script that sends objects of its own classes to a worker on any version of Python."""

from __future__ import annotations

import enum
import json
import sys
from dataclasses import dataclass, field

from offload.classes.hashing import python_tag
from tests.integration.python_app import again, offload, run

BIAS = 100


class Unit(enum.Enum):
    METRE = 1
    FOOT = 2


def biased(x: int) -> int:
    return x + BIAS


class Base:
    def run(self, x: int) -> int:
        return biased(x)


@dataclass
class Job(Base):
    x: int
    unit: Unit = Unit.METRE
    parts: list[Job] = field(default_factory=list)

    def run(self, x: int) -> list[object]:
        return [super().run(x + self.x), self.unit.name, [part.run(x) for part in self.parts]]


def main(timeout: float) -> None:
    job = Job(1, Unit.FOOT, [Job(2)])
    worker, answer = run.delay(job, 10).get(timeout=timeout)
    back = again.delay(job).get(timeout=timeout)
    record = offload.classes.versions("__main__.Job")
    print(
        json.dumps(
            {
                "pythons": [python_tag(), worker],
                "answer": answer,
                "back": [type(back) is Job, back == Job(2, Unit.FOOT, [Job(2)])],
                "pushed by": [each.python for each in record],
            }
        )
    )


if __name__ == "__main__":
    main(float(sys.argv[1]))
