"""The Kubernetes manifests are valid, and their commands and ports are the program's own."""

import re

import click
import pytest
import yaml

from offload.cli import offload

KINDS = {
    "worker": ("Deployment",),
    "dashboard": ("Deployment", "Service"),
    "exporter": ("Deployment", "Service"),
    "gc": ("CronJob",),
}


@pytest.fixture(scope="module")
def manifests(root):
    folder = root / "deploy" / "kubernetes"
    found = {path.stem: list(yaml.safe_load_all(path.read_text())) for path in folder.iterdir()}
    assert {name: tuple(each["kind"] for each in docs) for name, docs in found.items()} == KINDS
    return found


def pod(document):
    spec = document["spec"]
    return (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]["spec"]


def containers(manifests):
    for name, documents in manifests.items():
        for document in documents:
            if document["kind"] != "Service":
                yield name, pod(document)["containers"][0]


@pytest.mark.parametrize("name", KINDS)
def test_manifests_follow_the_schemas(manifests, name):
    """Every manifest is valid by Kubernetes' own schema, strictly."""
    validator = pytest.importorskip("kubernetes_validate")
    for document in manifests[name]:
        validator.validate(document, validator.latest_version(), strict=True)


def test_the_schemas_find_faults(manifests):
    """A misspelled field is refused, so the test above can fail."""
    validator = pytest.importorskip("kubernetes_validate")
    (document,) = manifests["gc"]
    wrong = {**document, "spec": {**document["spec"], "shedule": "17 * * * *"}}
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, validator.latest_version(), strict=True)


def test_commands_and_options_exist(manifests):
    """Each command of a pod exists in the CLI with the options that it is given."""
    seen = set()
    for _, container in containers(manifests):
        program, _, _, *rest = container["command"]
        assert program == "celery"
        if rest[0] == "offload":
            seen.add(rest[1])
            command = offload.get_command(click.Context(offload), rest[1])
            known = {option for each in command.params for option in each.opts}
            assert {option for option in rest[2:] if option.startswith("--")} <= known
    assert seen == {"dashboard", "exporter", "gc"}


def test_services_reach_their_pods(manifests):
    """A service selects its pods, and targets a port that the command listens on."""
    for name in ("dashboard", "exporter"):
        deployment, service = manifests[name]
        (port,) = service["spec"]["ports"]
        (container,) = pod(deployment)["containers"]
        (opened,) = container["ports"]
        assert port["targetPort"] == opened["name"]
        assert port["port"] == opened["containerPort"]
        assert container["command"][-1] == str(opened["containerPort"])
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_pods_have_the_least_rights(manifests):
    """No pod runs as root, gains privileges, or gets a token of the cluster."""
    for _, container in containers(manifests):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
    for documents in manifests.values():
        for document in documents:
            if document["kind"] != "Service":
                assert pod(document)["securityContext"]["runAsNonRoot"] is True
                assert pod(document)["automountServiceAccountToken"] is False


def test_the_worker_has_room_for_the_node_cache(manifests):
    """The worker mounts memory at the folder of the node cache."""
    (worker,) = manifests["worker"]
    (volume,) = pod(worker)["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    (mount,) = pod(worker)["containers"][0]["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": "/dev/shm"}


def test_the_image_installs_extras_that_exist(root, pyproject):
    """The extras of the image's Dockerfile are in pyproject.toml."""
    text = (root / "deploy" / "Dockerfile").read_text()
    extras = re.search(r'"offload\[([\w,]+)\]"', text)[1].split(",")
    assert set(extras) <= set(pyproject["project"]["optional-dependencies"])
