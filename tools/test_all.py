"""Run the fast tests on each supported Python found, and on other dependency versions.

    python tools/test_all.py [3.10 3.12 lowest newest celery-5.4] [-- pytest arguments]

A Python gets the versions in constraints.txt; `lowest` installs the lowest versions that
pyproject.toml allows, `newest` the newest available ones, and `celery-5.4` the newest available
ones with the last Celery 5.4. Without arguments, it tests each Python and `lowest`.

Fast tests use no real servers and workers (`make test` runs the others, on one Python). A small run
of the demo checks in each environment that Celery works with real workers, too. With the lowest
versions and with an earlier Celery, so do tests of what differs between versions, and of packages
around Celery. Environments are kept in .venvs/ and reused. Interpreters are found on the PATH,
under pyenv, and by uv.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import bootstrap

ROOT = bootstrap.ROOT
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
CELERY = tuple(f"celery-5.{minor}" for minor in range(3, 8))
OTHER = ("lowest", "newest", *CELERY)
FAST = "not server and not integration"
BATCHES = "celery-batches>=0.11"
"""Allows no Celery from 5.7 on, and so is in no dependency group."""
WITH_BATCHES = ("lowest", *(name for name in CELERY if name < "celery-5.7"))
WITH_SERVERS = (
    "tests/cli/test_check.py",
    "tests/faults/test_killed.py",
    "tests/golden",
    "tests/guard",
    "tests/hooks/test_round_trips.py",
    "tests/hooks/test_tracing.py",
    "tests/integration/test_control.py",
    "tests/integration/test_locks.py",
    "tests/integration/test_packages.py",
    "tests/integration/test_parity.py",
    "tests/integration/test_shipping.py",
    "tests/memo/test_redis.py",
    "tests/stores/test_redis.py",
)
"""Tests with servers and workers of what differs between versions of Celery, kombu, and redis-py,
and of the packages that docs/migration/integrations.md lists.
"""


def main(arguments: list[str]) -> int:
    place = arguments.index("--") if "--" in arguments else len(arguments)
    own, pytest_arguments = arguments[:place], arguments[place + 1 :]
    wanted = own or [*VERSIONS, "lowest"]
    unknown = set(wanted) - {*VERSIONS, *OTHER}
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join([*VERSIONS, *OTHER])}")
        return 2

    found = {version: find(version) for version in VERSIONS if {version, "lowest"} & {*wanted}}
    oldest = next(filter(None, found.values()), None)
    outcome: dict[str, str] = {}
    failed = False
    for name in wanted:
        interpreter = found.get(name, oldest if name == "lowest" else sys.executable)
        if interpreter is None:
            outcome[name] = "not found here"
            continue
        started = time.monotonic()
        try:
            python = environment(name, interpreter)
        except bootstrap.BootstrapError as error:
            print(error, file=sys.stderr)
            outcome[name], failed = "could not be set up", True
            continue
        bootstrap.say(f"fast tests on {name}")
        verdict = "passed" if run_tests(python, ["-m", FAST, *pytest_arguments]) else "tests failed"
        if name in WITH_BATCHES and not pytest_arguments:
            bootstrap.say(f"tests with servers and workers on {name}")
            if not run_tests(python, list(WITH_SERVERS)):
                verdict += ", servers failed"
        if not run_demo(python):
            verdict += ", demo failed"
        failed = failed or verdict != "passed"
        outcome[name] = f"{verdict} in {time.monotonic() - started:.0f} s"

    print("\nBy environment:")
    for name, text in outcome.items():
        print(f"  {name:<7} {text}")
    return 1 if failed or all(text == "not found here" for text in outcome.values()) else 0


def environment(name: str, interpreter: str) -> Path:
    """Create or update the environment `.venvs/NAME` and return its interpreter."""
    venv = ROOT / ".venvs" / name
    python = venv / "bin" / "python"
    stamp = venv / "offload.stamp"
    files = [] if name in OTHER else [bootstrap.CONSTRAINTS]
    state = bootstrap.fingerprint(Path(__file__), *files, more=interpreter)
    current = stamp.exists() and stamp.read_text() == state
    if current and name != "newest":
        return python

    uv = _uv()
    env = bootstrap.uv_env()
    if not current:
        shutil.rmtree(venv, ignore_errors=True)
        made = subprocess.run(
            [*uv, "venv", "-q", "--seed", "-p", interpreter, str(venv)], env=env, check=False
        )
        if made.returncode:
            raise bootstrap.BootstrapError(f"{interpreter} can't create an environment")
    if name == "lowest":
        versions = ["-c", str(_lowest(uv, env, python, venv))]
    else:
        versions = ["--upgrade"] if name in OTHER else bootstrap.uv_constraints()
        if name in CELERY:
            versions.append(name.replace("-", "==") + ".*")
        if name in CELERY and name < "celery-5.5":
            versions.append("kombu<5.5")  # later ones need a redis-py that Celery's extra excludes
    command = [
        *uv,
        "pip",
        "install",
        "-q",
        "-p",
        str(python),
        *versions,
        *bootstrap.requirements("test"),
        *([BATCHES] if name in WITH_BATCHES else []),
    ]
    if subprocess.run(command, env=env, check=False, cwd=ROOT).returncode:
        raise bootstrap.BootstrapError(f"{name}: uv couldn't install it; see its output above")
    stamp.write_text(state)
    return python


@cache
def _uv() -> list[str]:
    """Return the command of uv; raises BootstrapError if there is none."""
    found = bootstrap.find_uv(Path(sys.executable))
    if found is None:
        raise bootstrap.BootstrapError("uv couldn't be installed; try python3 -m pip install uv")
    return found


def _lowest(uv: list[str], env: dict[str, str], python: Path, venv: Path) -> Path:
    """Write constraints with the lowest versions that pyproject.toml allows.

    They cover what users may install, and packages around Celery. Test tools aren't constrained,
    and get the newest compatible versions.
    """
    target = venv / "lowest.txt"
    command = [*uv, "pip", "compile", "-q", "--resolution", "lowest-direct", "-p", str(python)]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "-o", str(target)]
    command += ["--extra", "all", "--group", "integrations", "pyproject.toml", "-"]
    if subprocess.run(command, env=env, check=False, cwd=ROOT, input=BATCHES, text=True).returncode:
        raise bootstrap.BootstrapError("no compatible set of lowest versions; see above")
    print(target.read_text())
    return target


def run_tests(python: Path, arguments: list[str]) -> bool:
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    return subprocess.run([*command, *arguments], check=False, cwd=ROOT).returncode == 0


def run_demo(python: Path) -> bool:
    """Run the demo on part of its data; show its output if it fails."""
    done = subprocess.run(
        [str(python), "-m", "worker_example.demo", "--rows", "10000"],
        check=False,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0


def find(version: str) -> str | None:
    """Return the path of an interpreter of this version that runs, or None."""
    candidates = [shutil.which(f"python{version}"), shutil.which("python3"), sys.executable]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = pyenv.glob(f"versions/{version}.*/bin/python{version}")
    candidates += [str(path) for path in sorted(installed, key=_patch, reverse=True)]
    uv = subprocess.run(
        [*_uv(), "python", "find", "--no-project", version],
        env=bootstrap.uv_env(),
        check=False,
        capture_output=True,
        text=True,
    )
    candidates.append(uv.stdout.strip())
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", code], check=False, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return candidate
    return None


def _patch(path: Path) -> int:
    digits = path.parent.parent.name.rpartition(".")[2]
    return int(digits) if digits.isdigit() else -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
