"""Every dependency is used, and optional ones aren't needed."""

import ast
import re
import subprocess
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

# The import that shows that a dependency is used, if it isn't the package's name.
IMPORTS = {
    "redis[hiredis]": "redis",
    "prometheus-client": "prometheus_client",
    "opentelemetry-api": "opentelemetry",
    "pillow": "PIL",
}
EXTRAS = (
    *("cli", "dashboard", "numpy", "arrow", "pandas", "polars"),
    *("s3", "encryption", "fsspec", "otel", "prometheus", "signing"),
    *("scipy", "pillow", "xarray", "progress"),
)
OPTIONAL = (
    "numpy",
    "pandas",
    "polars",
    "pyarrow",
    "boto3",
    "botocore",
    "fsspec",
    "rich",
    "msgpack",
    "pydantic",
    "cryptography",
    "prometheus_client",
    "opentelemetry",
    "jinja2",
    "starlette",
    "uvicorn",
    "scipy",
    "PIL",
    "torch",
    "geopandas",
    "shapely",
    "pyproj",
    "xarray",
    "tqdm",
)


def packages(requirements):
    return [re.match(r"[\w.\[\]-]+", requirement)[0] for requirement in requirements]


@pytest.fixture(scope="module")
def source(root):
    return "\n".join(path.read_text() for path in (root / "offload").rglob("*.py"))


def imports(source, package):
    return re.search(rf"^\s*(import|from) {package}\b|[\"']{package}[\"'.]", source, re.MULTILINE)


def test_every_dependency_is_used(source, pyproject):
    """The package or a Redis broker imports everything that users must install."""
    for package in packages(pyproject["project"]["dependencies"]):
        used = imports(source, IMPORTS.get(package, package))
        assert used or package == "packaging", package  # see the next test


def test_a_redis_broker_needs_no_other_package(pyproject):
    """`pip install offload` suffices to publish to Redis: kombu has these packages in an extra."""
    needed = set()
    for text in requires("kombu"):
        found = Requirement(text)
        if found.marker and found.marker.evaluate({"extra": "redis"}):
            needed.add(found.name)
    needed -= {Requirement(text).name for text in requires("kombu") if "extra" not in text}
    assert needed <= {Requirement(text).name for text in pyproject["project"]["dependencies"]}


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_is_used(source, pyproject, extra):
    """Every extra has a feature that uses it."""
    for package in packages(pyproject["project"]["optional-dependencies"][extra]):
        assert imports(source, IMPORTS.get(package, package)), package


def test_every_extra_is_known(pyproject):
    """A new extra is covered by the tests above, and part of `all`."""
    extras = pyproject["project"]["optional-dependencies"]
    large = {"torch", "geopandas"}  # too large to be in all
    assert set(extras) == {*EXTRAS, "all", *large}
    (everything,) = map(Requirement, extras["all"])
    assert (everything.name, everything.extras) == ("offload", set(EXTRAS))


def test_every_group_is_known(pyproject, root):
    """Each command of the Makefile finds its dependency group and the extras installed with it."""
    tree = ast.parse((root / "tools" / "bootstrap.py").read_text())
    (table,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "GROUP_EXTRAS"
    )
    assert set(table) == set(pyproject["dependency-groups"])
    for extras in table.values():
        assert set(extras) <= set(pyproject["project"]["optional-dependencies"])
    used = re.findall(r"\$\(BOOTSTRAP\) (\w+)", (root / "Makefile").read_text())
    assert used
    assert set(used) <= set(table)


def test_nothing_optional_is_imported():
    """`import offload` needs no extra and imports none."""
    code = (
        "import sys, celery.app.amqp, kombu.serialization\n"
        "before = set(sys.modules)\n"
        "import offload\n"
        f"print(sorted({set(OPTIONAL)!r} & set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_works_without_the_optional_packages():
    """`import offload` works if no optional package can be imported."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"  # None: ImportError
        "import offload"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("extras", ((), ("dashboard",)), ids=("none", "dashboard"))
def test_commands_need_no_package_of_another_extra(pyproject, extras):
    """Every command can be listed without extras, and the dashboard needs only its own."""
    texts = [
        each for extra in extras for each in pyproject["project"]["optional-dependencies"][extra]
    ]
    blocked = set(OPTIONAL) - {IMPORTS.get(name, name) for name in packages(texts)}
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"  # None: ImportError
        "import click, offload.doctor, offload.gc, offload.inspect\n"
        "from offload.cli import offload\n"
        "context = click.Context(offload)\n"
        "for name in offload.list_commands(context):\n"
        "    assert offload.get_command(context, name)\n"
    )
    code += "import offload.dashboard.app\n" if "dashboard" in extras else ""
    subprocess.run([sys.executable, "-c", code], check=True)
