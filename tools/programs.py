"""Install system programs that tests need with apt, and report missing ones.

    python3 tools/programs.py PROGRAM...

A program is named like its Debian package. Tests that need a missing program are skipped, or fail
with CI=true. The exit code is always 0.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys


def main(programs: list[str]) -> int:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {', '.join(missing)}")
        _apt("update")
        for name in missing:  # one that apt-get doesn't know must not prevent the others
            _apt("install", "-y", "--no-install-recommends", name)
        missing = [name for name in missing if shutil.which(name) is None]
    if missing:
        say(f"missing: {', '.join(missing)}. Tests that need them are skipped. On Debian:")
        say(f"    sudo apt-get install {' '.join(missing)}")
    return 0


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
