"""The Compose file is valid and refers to existing things; no engine is needed."""

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
    """The file conforms to the specification's schema."""
    done = validate(FILE)
    assert done.returncode == 0, done.stdout


def test_schema_check_finds_faults(tmp_path):
    """The check works: a misspelt key is refused."""
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(FILE.read_text().replace("depends_on:", "depend_on:"))
    assert validate(broken).returncode != 0


def test_services(services):
    """The example has all its services, and each waits until those it needs are healthy."""
    example = {"redis", "s3", "worker", "producer", "exporter", "dashboard"}
    assert set(services) == example | {"prometheus", "grafana"}
    for service in services.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[name]


def test_images_are_of_one_version(services):
    """Images that aren't built here are pinned by a version's tag."""
    for service in services.values():
        assert re.fullmatch(r"[a-z/]+:v?\d[\w.-]*", service["image"]) or "build" in service


def test_only_this_machine_reaches_them(services):
    """Ports are published on localhost only."""
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert sorted(ports) == [f"127.0.0.1:{port}:{port}" for port in (3000, 9090, 9541)]


def test_mounted_files_exist(services):
    """Mounted files are in the repository, mounted read-only, and used at that path."""
    mounted = {}
    for name in ("prometheus", "grafana"):
        for source, target, mode in (text.split(":") for text in services[name]["volumes"]):
            assert (ROOT / source).is_dir()
            assert mode == "ro"
            mounted[target] = ROOT / source
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]
    assert (mounted["/etc/prometheus"] / "prometheus.yml").is_file()
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == "/etc/grafana/dashboards/offload.json"
    assert (mounted["/etc/grafana/dashboards"] / "offload.json").is_file()
    providers = mounted["/etc/grafana/provisioning/dashboards"] / "offload.yml"
    (provider,) = yaml.safe_load(providers.read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"


def test_monitoring_uses_the_right_ports(services):
    """Prometheus scrapes the exporter's port, and Grafana queries Prometheus at its port."""
    config = yaml.safe_load((ROOT / "monitoring/prometheus/prometheus.yml").read_text())
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["exporter:9540"]
    assert services["exporter"]["command"][-2:] == ["--port", "9540"]
    sources = ROOT / "monitoring/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(sources.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_redis_never_evicts(services):
    """Redis never evicts, because evicted values would be lost."""
    assert services["redis"]["command"][-2:] == ["--maxmemory-policy", "noeviction"]


@pytest.mark.parametrize("name", ("worker", "producer", "exporter"))
def test_commands_name_modules_that_exist(services, name):
    """Each command's module is in the example."""
    command = services[name]["command"]
    modules = [word for word in command if word.startswith("worker_example")]
    assert modules
    for module in modules:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()


@pytest.mark.parametrize("name", ("worker", "producer", "exporter"))
def test_servers_are_those_of_the_file(services, name):
    """All services use the same servers, through the variables that the app reads."""
    environment = services[name]["environment"]
    assert environment["REDIS_URL"] == "redis://redis:6379"
    redis, s3 = environment["OFFLOAD_STORE"].split()
    assert redis == "redis://redis:6379/2"
    assert s3.startswith("s3://offload/flights?endpoint_url=http://s3:8333&")
    app = (ROOT / "worker_example" / "app.py").read_text()
    assert all(f'os.environ.get("{name}"' in app for name in ("REDIS_URL", "OFFLOAD_STORE"))
    key = services["s3"]["environment"]
    assert key.items() <= environment.items()
    assert "-bucket=offload" in services["s3"]["command"]


def test_dockerfile_copies_existing_files(services):
    """Everything that the Dockerfile copies exists and isn't ignored."""
    assert ROOT / services["worker"]["build"]["dockerfile"] == DOCKERFILE
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert copies
    for path in " ".join(copies).split():
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignore, path


def test_dockerfile_installs_extras_that_exist(pyproject):
    """The extras that the image installs are in pyproject.toml."""
    text = DOCKERFILE.read_text()
    extras = re.search(r'"\.\[([\w,]+)\]"', text)[1].split(",")
    assert re.search(r"--group (\w+)", text)[1] in pyproject["dependency-groups"]
    assert set(extras) <= set(pyproject["project"]["optional-dependencies"])
    assert {"prometheus", "s3"} <= set(extras)
