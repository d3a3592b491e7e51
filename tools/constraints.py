"""Pin the newest versions of all packages that this repository's commands install.

    python3 tools/constraints.py

Writes constraints.txt, which `make demo`, `test`, `lint`, and `bench` install from, and
offload/doctor/tested.py, which lists tested versions for `celery offload doctor`. uv resolves for
all supported Python versions at once. Run `make test` before committing both.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import bootstrap

ROOT = bootstrap.ROOT
TESTED = ROOT / "offload" / "doctor" / "tested.py"
OLDEST = ".".join(map(str, bootstrap.MINIMUM))
GROUPS = ("--group=dev", "--group=docs", "--group=release")
INDIRECT = ("botocore", "pydantic")
"""Indirect or user-installed packages whose internals offload uses."""
CONSTRAINTS_HEADER = """\
# The versions that `make demo`, `make test`, `make lint`, `make docs`, and `make bench` install.
# Written by `make constraints`. `make test-newest` and the lowest versions ignore it.
"""
TESTED_HEADER = '''\
"""The newest versions of dependencies that offload was tested with.

Written by `make constraints`.
"""

TESTED = {
'''


def main() -> int:
    try:
        constraints = CONSTRAINTS_HEADER + compiled("--extra=all", *GROUPS)
        direct = compiled("--no-deps", "--extra=all")
    except bootstrap.BootstrapError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    bootstrap.CONSTRAINTS.write_text(constraints)
    TESTED.write_text(tested(constraints, {*newest(direct), *INDIRECT}))
    return 0


def compiled(*arguments: str) -> str:
    """Return the newest compatible versions as lines of a constraints file, without hosts."""
    uv = bootstrap.find_uv(_python())
    if uv is None:
        raise bootstrap.BootstrapError("uv couldn't be installed; try python3 -m pip install uv")
    command = [*uv, "pip", "compile", "-q", "--universal", "--python-version", OLDEST]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    done = subprocess.run(
        [*command, *arguments, "pyproject.toml"],
        env=bootstrap.uv_env(_python()),
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise bootstrap.BootstrapError("no compatible set of versions; see uv's output above")
    return done.stdout


def newest(constraints: str) -> dict[str, str]:
    """Return each package's newest version; the last line of a package is for the newest Python."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", constraints, re.MULTILINE))


def tested(constraints: str, names: set[str]) -> str:
    """Return the module that lists the versions of these packages."""
    versions = newest(constraints)
    lines = [f'    "{name}": "{versions[name]}",\n' for name in sorted(names)]
    return "".join([TESTED_HEADER, *lines, "}\n"])


def _python() -> Path:
    """Return the interpreter of an environment that contains only uv."""
    venv = ROOT / ".venvs" / "uv"
    python = venv / "bin" / "python"
    if not python.exists():
        bootstrap.create(venv)
    return python


if __name__ == "__main__":
    sys.exit(main())
