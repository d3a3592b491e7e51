"""``celery offload store lifecycle``."""

from __future__ import annotations

import json

import pytest

from offload import Catalog, open_store
from tests.support.s3_server import BUCKET, s3_client
from tests.support.wire import make_wire

pytestmark = pytest.mark.integration

URL = "s3://key:secret@buck/pre/fix?endpoint_url=http://127.0.0.1:1&region=here"


def rule_of(document):
    (rule,) = document["Rules"]
    return rule


def test_it_writes_the_rule(project):
    """The rule covers blobs only, never pointers and leases, and is written without the store."""
    project.write(store=URL, broker="amqp://nowhere:1", retention=86400)
    rule = rule_of(project.json("store", "lifecycle", "--delay", "0"))
    # (a day + an hour of grace) * 1.25 + a minute, written twice as long + a minute: 2.6 days
    assert rule["Filter"] == {"Prefix": "pre/fix/blobs/"}
    assert rule["Expiration"] == {"Days": 4}
    assert rule["Status"] == "Enabled"


def test_options_and_tasks_make_it_longer(project):
    """The longest of the settings, the tasks' options, and the command's options counts."""
    more = "@app.task(offload={'retention': 40 * 86400})\ndef keep(value): ...\n"
    project.write(store=URL)
    days = [
        rule_of(project.json("store", "lifecycle", *words))["Expiration"]["Days"]
        for words in (("--delay", "0"), (), ("--delay", "60"), ("--retention", "100"))
    ]
    project.write(more, store=URL)
    days.append(rule_of(project.json("store", "lifecycle"))["Expiration"]["Days"])
    assert days == [4, 79, 154, 327, 177]


def test_explanations_go_to_standard_error(project):
    """Standard output is valid input for the aws command; explanations go to standard error."""
    project.write(store=URL)
    out, err = project.run("store", "lifecycle")
    assert rule_of(json.loads(out))
    assert "31.04  offload_retention" in err
    assert "aws s3api put-bucket-lifecycle-configuration --bucket buck" in err


def test_results_that_never_expire_refuse_a_rule(project):
    """Results that never expire need an option for how long they are read."""
    project.write("app.conf.result_expires = None\n", store=URL)
    out, err = project.run("store", "lifecycle", code=1)
    assert out == ""
    assert err.startswith("Error: results never expire (result_expires is not set)")
    assert rule_of(project.json("store", "lifecycle", "--retention", "3"))


def test_other_stores_have_none(project):
    """Redis and folders have no such rules; the message names what deletes blobs there."""
    project.write(store="redis://localhost:1/0")
    _, err = project.run("store", "lifecycle", code=1)
    assert err.startswith("Error: redis://localhost:1/0 is not S3")


class Tiered:
    """The part of a store of two tiers that the command uses."""

    def __init__(self, first, second):
        self.tiers = (first, second)
        self.url, self.pointers, self.blobs = first.url, first.pointers, first.blobs

    def count_by_tier(self, counters):
        pass


def lifecycle(hook, *words):
    from celery.bin.base import CLIContext
    from click.testing import CliRunner

    from offload.cli import offload

    return CliRunner().invoke(
        offload, ["store", "lifecycle", *words], obj=CLIContext(hook.app, True, None)
    )


def test_a_tier_behind_one_with_pins():
    """A lower tier's rule is written only with an option that rules out pins, and never if pins
    exist.
    """
    hook = make_wire(watch=False).hook
    hook._runtime._store = Tiered(hook.store, open_store(URL))
    refused = lifecycle(hook)
    assert refused.exit_code == 1
    assert "add --no-pins if you use neither Offload.pin nor a catalog" in refused.output
    done = lifecycle(hook, "--no-pins", "--json")
    assert rule_of(json.loads(done.output))["Filter"]["Prefix"] == "pre/fix/blobs/"
    hook.pin(hook.put("x" * 2000), "model")
    refused = lifecycle(hook, "--no-pins")
    assert refused.exit_code == 1
    assert "has pins" in refused.output


def test_no_rule_for_a_catalog():
    """As long as a catalog names anything, no rule is written: it would delete that by age."""
    hook = make_wire(watch=False).hook
    hook._runtime._store = Tiered(hook.store, open_store(URL))
    catalog = Catalog(hook.store.tiers[0])
    catalog.save("model", "x" * 2000)
    refused = lifecycle(hook, "--no-pins")
    assert refused.exit_code == 1
    assert "has a catalog" in refused.output
    catalog.remove("model")
    assert "remove it before you use one" in lifecycle(hook, "--no-pins").output


def test_several_buckets_are_asked_for_by_name():
    """Of several buckets, one must be named, because a configuration is for one bucket."""
    hook = make_wire().hook
    hook._runtime._store = Tiered(open_store(URL), open_store(URL.replace("buck", "other")))
    assert "add --bucket buck" in lifecycle(hook).output
    assert "not third" in lifecycle(hook, "--bucket", "third").output
    assert rule_of(json.loads(lifecycle(hook, "--bucket", "other", "--json").stdout))


@pytest.mark.server
def test_a_real_server_accepts_the_rule(project, s3):
    """A real server accepts the configuration and returns it."""
    project.write(store=s3.url("life"))
    document = project.json("store", "lifecycle")
    client = s3_client(s3)
    try:
        client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration=document)
        (rule,) = client.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"]
        assert rule["Expiration"]["Days"] == document["Rules"][0]["Expiration"]["Days"]
        assert rule["Filter"]["Prefix"] == "life/blobs/"  # the rest never expires
    finally:
        client.delete_bucket_lifecycle(Bucket=BUCKET)
        client.close()
