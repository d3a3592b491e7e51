"""Build a release and check it: `make release-check`.

Builds the committed state twice, in different folders, and compares the bytes; also builds the
wheel from the source distribution. Checks metadata and contents, installs the wheel without extras
in an empty environment, and runs a task there with the file store. Leaves both files and a software
bill of materials (CycloneDX) in dist/. With `--final`, CHANGELOG.md must have a dated section of
the version, and nothing may be unreleased.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import bootstrap

ROOT = bootstrap.ROOT
DIST = ROOT / "dist"
SDIST_NEEDS = ("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt")
TASKS = """\
from celery import Celery
from offload import Offload

app = Celery("tasks", broker="filesystem://", backend="file://{folder}/results")
app.conf.broker_transport_options = {{
    name: "{folder}/queue"
    for name in ("data_folder_in", "data_folder_out", "control_folder")
}}
app.conf.offload_store = "file://{folder}/store"
Offload(app)


@app.task(name="size")
def size(text):
    return len(text)
"""
PUBLISH = """\
import pathlib, subprocess, sys
from tasks import size

text = "large " * 200_000
job = size.delay(text)
(message,) = pathlib.Path({folder!r}, "queue").rglob("*.msg")
assert message.stat().st_size < 10_000, "the message contains the value"
worker = subprocess.Popen(
    [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--pool=solo", "--loglevel=WARNING"]
)
try:
    assert job.get(timeout=60, interval=0.1) == len(text)
finally:
    worker.terminate()
    worker.wait(30)
"""


class ReleaseError(Exception):
    """The release isn't fit to be uploaded; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--final", action="store_true", help="the version is about to be uploaded")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder), final=options.final)
    except (ReleaseError, subprocess.CalledProcessError) as error:
        print(f"release-check: {error}", file=sys.stderr)
        return 1
    return 0


def check(folder: Path, *, final: bool) -> None:
    sdist, wheel = build(folder / "first")
    again = build(folder / "second")
    for first, second in zip((sdist, wheel), again, strict=True):
        if digest(first) != digest(second):
            raise ReleaseError(f"{first.name} differs between two builds of the same commit")
    unpacked = folder / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    if digest(hatch(source, "wheel")) != digest(wheel):
        raise ReleaseError(f"{wheel.name} differs when it is built from {sdist.name}")
    say("two builds, and a build from the source distribution, have equal bytes")

    run(sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel))
    version = wheel.name.split("-")[1]
    check_contents(source, wheel, version)
    check_changelog((ROOT / "CHANGELOG.md").read_text(), version, final=final)

    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    for each in (sdist, wheel):
        shutil.copy(each, DIST)
        say(f"dist/{each.name}: {each.stat().st_size:,} bytes, sha256 {digest(each)}")
    python = install(folder / "venv", wheel)
    use(python, folder / "use")
    bill = DIST / f"offload-{version}.cdx.json"
    write_bill(python, bill)
    say(f"dist/{bill.name}: the packages that `pip install offload` installs")


def build(folder: Path) -> tuple[Path, Path]:
    """Build the committed state in `folder`; return the source distribution and the wheel."""
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return hatch(folder, "sdist"), hatch(folder, "wheel")


def hatch(source: Path, target: str) -> Path:
    """Build one target of the tree in `source` with the project's build backend."""
    out = source.parent / f"{source.name}-{target}"
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out), cwd=source)
    (built,) = out.iterdir()
    return built


def check_contents(source: Path, wheel: Path, version: str) -> None:
    """Raise ReleaseError unless both files contain what they should, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    strange = [n for n in names if not n.startswith(("offload/", f"offload-{version}.dist-info/"))]
    if strange or "offload/py.typed" not in names:
        raise ReleaseError(f"the wheel lacks offload/py.typed or contains {strange}")
    missing = [name for name in SDIST_NEEDS if not (source / name).exists()]
    unwanted = [str(p) for p in source.rglob("*") if p.suffix == ".pyc" or p.name == ".venv"]
    if missing or unwanted:
        raise ReleaseError(f"the source distribution lacks {missing}, has {unwanted}")


def check_changelog(text: str, version: str, *, final: bool) -> None:
    """Raise ReleaseError unless CHANGELOG.md describes the version, or what is to become of it."""
    dated = re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)
    unreleased = text.partition("## [Unreleased]")[2].partition("\n## ")[0].strip()
    if final and (not dated or unreleased):
        raise ReleaseError(
            f"CHANGELOG.md needs '## [{version}] - YYYY-MM-DD', and nothing under Unreleased"
        )
    if not dated and not unreleased:
        raise ReleaseError(f"CHANGELOG.md describes no changes of {version}")


def install(venv: Path, wheel: Path) -> Path:
    """Install the wheel without extras in an empty environment; return its interpreter."""
    bootstrap.create(venv)
    python = venv / "bin" / "python"
    bootstrap.install(python, [str(wheel)])
    return python


def use(python: Path, folder: Path) -> None:
    """Import the package, publish a large value, and resolve it in a worker."""
    folder.mkdir()
    (folder / "queue").mkdir()
    (folder / "results").mkdir()
    (folder / "tasks.py").write_text(TASKS.format(folder=folder))
    run(str(python), "-c", PUBLISH.format(folder=str(folder)), cwd=folder)
    say("without extras: published 1.2 MB through the file store, and a worker read it")


def write_bill(python: Path, target: Path) -> None:
    """Write the packages of an environment as a CycloneDX document, without local paths."""
    inventory = ("environment", "--output-reproducible", "-o", str(target), str(python))
    run(sys.executable, "-m", "cyclonedx_py", *inventory)
    bill = json.loads(target.read_text())
    for component in bill["components"]:
        kept = [
            reference
            for reference in component.pop("externalReferences", ())
            if not reference["url"].startswith("file:")
        ]
        if kept:
            component["externalReferences"] = kept
    target.write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n")


def run(*command: str, cwd: Path = ROOT) -> None:
    """Run a command; show its output and raise ReleaseError if it fails."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=env, check=False, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        shown = " ".join(command[:4])
        raise ReleaseError(f"{shown} failed:\n{done.stdout}{done.stderr}")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


say = bootstrap.say


if __name__ == "__main__":
    sys.exit(main())
