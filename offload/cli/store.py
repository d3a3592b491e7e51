"""``celery offload store …``: about the place where values are."""

from __future__ import annotations

import click

from offload.cli.context import runtime_of
from offload.cli.output import print_json
from offload.content.holds import longest_ttl
from offload.doctor.lifecycle import DAY, Rule, lifecycle_rule
from offload.doctor.retention import has_pins, retention_requirements
from offload.errors import ConfigurationError
from offload.hooks.runtime import Runtime
from offload.stores.capabilities import tiers_of

__all__ = ("store",)

_DELAY = 30.0  # days
_EXPLAINED = """
Days for which something may be needed, by the settings:
{listed}
Each allows for an eta, countdown or expires of up to {delay:g} days (--delay), except that of
results. The rule has more days, as a life is written longer than it is needed.

It takes the place of all rules of the bucket; if there are others, add it to them:
  aws s3api put-bucket-lifecycle-configuration --bucket {bucket} \\
      --lifecycle-configuration file://rule.json"""


@click.group()
def store() -> None:
    """About the place where values are."""


@store.command()
@click.option(
    "--delay",
    type=click.FloatRange(min=0),
    default=_DELAY,
    show_default=True,
    metavar="DAYS",
    help="The longest eta, countdown or expires in use; those of a chain add up.",
)
@click.option(
    "--retention",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DAYS",
    help="The longest retention that calls ask for, as Offload.put(retention=…); with "
    "result_expires=None, how long results are read.",
)
@click.option(
    "--no-pins",
    is_flag=True,
    help="Nobody pins values, now or later: a rule removes them. To be said where pins can be.",
)
@click.option("--bucket", help="The bucket, if the store has several.")
@click.option("--json", "as_json", is_flag=True, help="Print the rule alone, no explanation.")
@click.pass_context
def lifecycle(
    ctx: click.Context,
    delay: float,
    retention: float | None,
    no_pins: bool,
    bucket: str | None,
    as_json: bool,
) -> None:
    """Write a lifecycle rule for the S3 bucket.

    Standard output is what `aws s3api put-bucket-lifecycle-configuration` takes. By the rule
    the bucket removes by itself what has ended, days after `celery offload gc` would; only
    what the settings and options of all tasks, and the options here, say is needed is safe.
    """
    runtime = runtime_of(ctx)
    found = retention_requirements(
        runtime, delay=delay * DAY, retention=None if retention is None else retention * DAY
    )
    rules = _rules(runtime, longest_ttl(found[0].seconds), bucket)
    _check_pins(runtime, no_pins=no_pins)
    print_json({"Rules": [rule.as_dict() for rule in rules]})
    if as_json:
        return
    listed = "\n".join(f"{need.seconds / DAY:10.2f}  {need.why}" for need in found)
    click.echo(_EXPLAINED.format(listed=listed, delay=delay, bucket=rules[0].bucket), err=True)


def _check_pins(runtime: Runtime, *, no_pins: bool) -> None:
    """Raise ConfigurationError where a pinned value could be removed."""
    if not runtime.store.blobs.tracks_holds:
        return  # it can have none
    if has_pins(runtime):
        raise ConfigurationError(
            f"{runtime.store.url} has pins, whose values are needed until they are unpinned: no "
            "rule is safe. Have `celery offload gc` remove what has ended"
        )
    if not no_pins:
        raise ConfigurationError(
            f"{runtime.store.url} can have pins, whose values a rule would remove: have `celery "
            "offload gc` remove what has ended, or say --no-pins if nobody uses Offload.pin"
        )


def _rules(runtime: Runtime, longest: float, bucket: str | None) -> list[Rule]:
    tiers = tiers_of(runtime.store)
    found = [rule for tier in tiers if (rule := lifecycle_rule(tier, longest)) is not None]
    if not found:
        raise ConfigurationError(
            f"{runtime.store.url} is not S3: nothing else has lifecycle rules. What has ended is "
            "removed by the server itself (Redis) or by `celery offload gc`"
        )
    buckets = sorted({rule.bucket for rule in found})
    if bucket is None and len(buckets) > 1:
        raise ConfigurationError(f"the store has several buckets; say --bucket {buckets[0]}")
    chosen = [rule for rule in found if bucket in (None, rule.bucket)]
    if not chosen:
        raise ConfigurationError(f"the store's buckets are {', '.join(buckets)}, not {bucket}")
    return chosen
