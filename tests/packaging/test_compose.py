"""The Compose file is valid and speaks of things that are there; no engine is needed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "worker_example" / "Dockerfile"


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load(FILE.read_text())["services"]


def validate(file):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(file)], check=False, capture_output=True, text=True)


def test_follows_the_compose_specification():
    """The file passes the specification's own schema."""
    done = validate(FILE)
    assert done.returncode == 0, done.stdout


def test_schema_check_finds_faults(tmp_path):
    """The check is not blind: a misspelt key is refused."""
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(FILE.read_text().replace("depends_on:", "depend_on:"))
    assert validate(broken).returncode != 0


def test_services(services):
    """A server, a worker and a producer; whoever needs another waits for its health."""
    assert set(services) == {"redis", "worker", "producer"}
    for service in services.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[name]


def test_redis_never_evicts(services):
    """A store that drops what is still needed loses arguments."""
    assert services["redis"]["command"][-2:] == ["--maxmemory-policy", "noeviction"]


@pytest.mark.parametrize("name", ("worker", "producer"))
def test_commands_name_modules_that_exist(services, name):
    """Each command's module is in the example."""
    command = services[name]["command"]
    modules = [word for word in command if word.startswith("worker_example")]
    assert modules
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()


@pytest.mark.parametrize("name", ("worker", "producer"))
def test_servers_are_those_of_the_file(services, name):
    """Worker and producer speak to the redis service, by the variable that the app reads."""
    assert services[name]["environment"] == {"REDIS_URL": "redis://redis:6379"}
    assert 'os.environ.get("REDIS_URL"' in (ROOT / "worker_example" / "app.py").read_text()


def test_dockerfile_copies_what_exists(services):
    """The image is built from the Dockerfile, and all it copies is there and not ignored."""
    assert ROOT / services["worker"]["build"]["dockerfile"] == DOCKERFILE
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert copies
    for path in " ".join(copies).split():
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignore, path


def test_dockerfile_installs_an_extra_that_exists(pyproject):
    """The extra that the image installs stands in pyproject.toml."""
    extra = re.search(r'pip install .*"\.\[(\w+)\]"', DOCKERFILE.read_text())[1]
    assert extra in pyproject["project"]["optional-dependencies"]
