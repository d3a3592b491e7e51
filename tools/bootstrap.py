"""Create the virtual environment for the Makefile's commands.

    python3 tools/bootstrap.py [--venv .venv] GROUP

Needs only Python; everything else is installed into the environment. Does nothing if
pyproject.toml, constraints.txt, the interpreter, and the group haven't changed since the last
run. Installs the versions in constraints.txt from pip's configured index: with uv, which is ten
times as fast, or else with pip.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
MINIMUM = (3, 10)
GROUP_EXTRAS = {
    "demo": ["cli", "pandas", "polars"],
    "integrations": [],
    "test": ["all"],
    "bench": ["dashboard", "pandas", "polars", "prometheus", "s3"],
    "docs": [],
    "release": [],
    "dev": ["all"],
}
"""Each dependency group of pyproject.toml, and the extras that are installed with it."""
PIP = "pip>=25.1"
"""The first pip that installs dependency groups."""


class BootstrapError(Exception):
    """The environment can't be created; the message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", choices=GROUP_EXTRAS, help="dependency group to install")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument(
        "--exact", action="store_true", help="replace an environment of another Python version"
    )
    options = parser.parse_args()
    try:
        ensure(options.venv.absolute(), options.group, exact=options.exact)
    except BootstrapError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def ensure(venv: Path, group: str, *, exact: bool = False) -> Path:
    """Install a dependency group and its extras if needed; return the interpreter.

    Keeps an existing environment unless it doesn't run, or `exact` is set and its version
    differs from the running interpreter's.
    """
    if sys.version_info < MINIMUM:
        raise BootstrapError(
            f"offload needs Python {MINIMUM[0]}.{MINIMUM[1]} or newer; this is "
            f"{sys.version.split()[0]}. Choose one with: make PYTHON=/path/to/python3 ..."
        )
    python = venv / "bin" / "python"
    stamp = venv / f"offload-{group}.stamp"
    state = fingerprint(Path(__file__), CONSTRAINTS)
    found = _version_of(python)
    usable = found == _version() if exact else found is not None
    if usable and stamp.exists() and stamp.read_text() == state:
        return python

    if not usable:
        create(venv)
    install(python, requirements(group))
    stamp.write_text(state)
    return python


def requirements(group: str) -> list[str]:
    """Return the options of pip and uv that install this checkout with a dependency group."""
    extras = ",".join(GROUP_EXTRAS[group])
    editable = f"{ROOT}[{extras}]" if extras else str(ROOT)
    return ["-e", editable, "--group", f"{ROOT / 'pyproject.toml'}:{group}"]


def create(venv: Path) -> None:
    """Create an empty virtual environment with the running interpreter."""
    say(f"creating {_shown(venv)} (Python {_version()})")
    if venv.exists():
        shutil.rmtree(venv)
    command = [sys.executable, "-m", "venv", str(venv)]
    done = _quiet(command)
    if done.returncode and shutil.which("apt-get") and os.geteuid() == 0:
        say("python3-venv is missing: installing it")
        apt = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _quiet(["apt-get", "update"], env=apt)
        _quiet(["apt-get", "install", "-y", "--no-install-recommends", *_venv_packages()], env=apt)
        shutil.rmtree(venv, ignore_errors=True)
        done = _quiet(command)
    if done.returncode and shutil.which("uv"):
        shutil.rmtree(venv, ignore_errors=True)
        done = _quiet(["uv", "venv", "--seed", "--python", sys.executable, str(venv)], env=uv_env())
    if done.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        raise BootstrapError(
            f"{done.stdout.strip()}\n\n"
            f"Python {_version()} can't create a virtual environment. On Debian or Ubuntu:\n\n"
            "    sudo apt-get install python3-venv\n\n"
            "Then run the same command again."
        )


def install(python: Path, arguments: list[str]) -> None:
    """Install the versions in constraints.txt into the environment of `python`.

    Uses uv, or else pip. Build dependencies are constrained, too.
    """
    uv = find_uv(python)
    if uv:
        say("installing " + " ".join(_shown(item) for item in arguments))
        # As pip does. Otherwise, where PYTHONDONTWRITEBYTECODE is set, every process of the tests
        # compiles all that it imports.
        command = [*uv, "pip", "install", "--compile-bytecode", "--python", str(python)]
        command += [*uv_constraints(), *arguments]
        done = subprocess.run(command, env=uv_env(python), check=False, cwd=ROOT)
        if done.returncode == 0:
            return
        say("uv failed; trying pip")
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    command = [*pip, "--constraint", str(CONSTRAINTS), *arguments]
    env = {**os.environ, "PIP_BUILD_CONSTRAINT": str(CONSTRAINTS)}
    done = subprocess.run([*pip, "--quiet", PIP], check=False)
    if done.returncode or subprocess.run(command, env=env, check=False, cwd=ROOT).returncode:
        raise BootstrapError(
            "The packages couldn't be installed; the lines above say why. The setup needs a\n"
            "package index; for a proxy or a private index, configure pip as usual."
        )


def uv_constraints() -> list[str]:
    """Return options for `uv pip install` to install the versions in constraints.txt."""
    return ["-c", str(CONSTRAINTS), "-b", str(CONSTRAINTS)]


def find_uv(python: Path) -> list[str] | None:
    """Return the command of the environment's uv, installing it if needed; None on failure."""
    uv = [str(python), "-m", "uv"]
    if _quiet([*uv, "--version"]).returncode == 0:
        return uv
    if _quiet([str(python), "-m", "pip", "--version"]).returncode:  # created by uv, without pip
        if shutil.which("uv"):
            return ["uv"]
        _quiet([str(python), "-m", "ensurepip"])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"]
    done = _quiet(pip)
    return uv if done.returncode == 0 and _quiet([*uv, "--version"]).returncode == 0 else None


def uv_env(python: Path | None = None) -> dict[str, str]:
    """Return environment variables that apply pip's configuration to uv.

    uv doesn't read pip's configuration. The user's own settings for uv take precedence.
    """
    env = dict(os.environ)
    env.pop("VIRTUAL_ENV", None)
    env.setdefault("UV_SYSTEM_CERTS", "1")
    env.setdefault("UV_NATIVE_TLS", "1")  # its name in older versions
    env.setdefault("UV_PYTHON_DOWNLOADS", "never")
    env.setdefault("UV_LINK_MODE", "copy")
    pip = _pip_configuration(python or Path(sys.executable))
    if "cert" in pip:
        env.setdefault("SSL_CERT_FILE", pip["cert"])
    if "timeout" in pip:
        env.setdefault("UV_HTTP_TIMEOUT", pip["timeout"])
    if "index-url" in pip:
        env.setdefault("UV_DEFAULT_INDEX", pip["index-url"])
    if "find-links" in pip:
        env.setdefault("UV_FIND_LINKS", " ".join(pip["find-links"].split()))
    if pip.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        env.setdefault("UV_NO_INDEX", "1")
    if "extra-index-url" in pip and "UV_INDEX" not in env:
        env["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # as pip does
    return env


def say(text: str) -> None:
    """Print progress."""
    print(f"[offload] {text}", file=sys.stderr, flush=True)


def _pip_configuration(python: Path) -> dict[str, str]:
    """Return pip's settings by name without section; the more specific section wins."""
    for candidate in (str(python), sys.executable):
        done = _quiet([candidate, "-m", "pip", "config", "list"])
        if done.returncode == 0:
            break
    else:
        return {}
    found: dict[str, str] = {}
    for level in ("global", "install", ":env:"):
        for line in done.stdout.splitlines():
            name, _, value = line.partition("=")
            section, _, key = name.strip().partition(".")
            if section == level and value.startswith(("'", '"')):
                found[key.removeprefix("default-")] = ast.literal_eval(value)
    return found


def fingerprint(*files: Path, more: str = "") -> str:
    """Return the fingerprint of an up-to-date environment's inputs."""
    text = b"".join(file.read_bytes() for file in (ROOT / "pyproject.toml", *files))
    return " ".join([hashlib.sha256(text).hexdigest(), str(ROOT), more])


def _version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _version_of(python: Path) -> str | None:
    """Return an environment's `3.x`, or None if it doesn't exist or run."""
    if not python.exists():
        return None
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = _quiet([str(python), "-c", code])
    return done.stdout.strip() if done.returncode == 0 else None


def _venv_packages() -> list[str]:
    own = f"python{_version()}-venv"
    known = _quiet(["apt-cache", "show", own]).returncode == 0
    return [own] if known else ["python3-venv"]


def _quiet(
    command: list[str], env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=env,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _shown(item: Path | str) -> str:
    return str(item).replace(f"{ROOT}/", "").replace(str(ROOT), ".")


if __name__ == "__main__":
    sys.exit(main())
