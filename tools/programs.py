"""Install system programs that tests need with apt, and report missing ones.

    python3 tools/programs.py PROGRAM[|ALTERNATIVE]...

A program is named like its Debian package. The first name is installed unless one of the
alternatives exists. Tests that need a missing program are skipped, or fail with CI=true. The exit
code is always 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys


def main(programs: list[str]) -> int:
    missing = _missing(programs)
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {', '.join(missing)}")
        _apt("update")
        for name in missing:  # one that apt-get doesn't know must not prevent the others
            _apt("install", "-y", "--no-install-recommends", name)
        missing = _missing(programs)
    if missing:
        say(f"missing: {', '.join(missing)}. Tests that need them are skipped. On Debian:")
        say(f"    sudo apt-get install {' '.join(missing)}")
    return 0


def _missing(programs: list[str]) -> list[str]:
    """Return the first name of each program of which no alternative is installed."""
    each = [program.split("|") for program in programs]
    return [names[0] for names in each if not any(map(shutil.which, names))]


def _apt(*words: str) -> None:
    done = subprocess.run(
        ["apt-get", "-qq", *words],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        say(f"apt-get {words[0]}: {(done.stderr or done.stdout).strip()}")


def say(text: str) -> None:
    print(f"[offload] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
