"""``celery offload store …``: configure the store itself."""

from __future__ import annotations

import click

from offload.cli.options import runtime_of
from offload.cli.output import print_json
from offload.content.holds import longest_ttl
from offload.doctor.retention import (
    DAY,
    Rule,
    has_catalog,
    has_pins,
    lifecycle_rule,
    retention_requirements,
)
from offload.errors import ConfigurationError, StoreError
from offload.hooks.runtime import Runtime
from offload.stores.capabilities import tiers_of

_DELAY = 30.0  # days
_EXPLAINED = """
Days for which values may be needed, according to the settings:
{listed}
All except results include an eta, countdown, or expires of up to {delay:g} days (--delay).
The rule adds days, because lifetimes are stored with a margin.
The rule would also delete objects of a catalog in this bucket: remove it before you use one.

This replaces all rules of the bucket; if there are others, merge the rule into them:
  aws s3api put-bucket-lifecycle-configuration --bucket {bucket} \\
      --lifecycle-configuration file://rule.json"""


@click.group()
def store() -> None:
    """Configure the store itself."""


@store.command()
@click.option(
    "--delay",
    type=click.FloatRange(min=0),
    default=_DELAY,
    show_default=True,
    metavar="DAYS",
    help="Longest eta, countdown, or expires in use; for a chain, their sum.",
)
@click.option(
    "--retention",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DAYS",
    help="Longest retention passed by calls, such as Offload.put(retention=…); if "
    "result_expires is None, also how long results are read.",
)
@click.option(
    "--no-pins",
    is_flag=True,
    help="Confirm that nothing is pinned or saved in a catalog, now or later; the rule would "
    "delete such values.",
)
@click.option("--bucket", help="The bucket, if the store has several.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print only the rule, without the explanation."
)
@click.pass_context
def lifecycle(
    ctx: click.Context,
    delay: float,
    retention: float | None,
    no_pins: bool,
    bucket: str | None,
    as_json: bool,
) -> None:
    """Print a lifecycle rule for the S3 bucket.

    Pass the output to `aws s3api put-bucket-lifecycle-configuration`. With the rule, the bucket
    deletes expired objects by itself, a few days later than `celery offload gc` would. The number
    of days follows from the settings, the options of all tasks, and the options given here; values
    needed for longer aren't safe.
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
    """Raise ConfigurationError if the rule could delete a value that is pinned or in a catalog."""
    try:
        found = has_catalog(runtime)
    except StoreError as exc:
        found = False
        click.echo(
            f"Could not determine whether there is a catalog; if there is, no rule is safe: {exc}",
            err=True,
        )
    if found:
        raise ConfigurationError(
            f"{runtime.store.url} has a catalog, whose objects are needed until they are removed; "
            "a rule would delete them by age, so no rule is safe. Run `celery offload gc` "
            "regularly instead"
        )
    if not runtime.store.blobs.tracks_holds:
        return  # such a store can't have pins
    if has_pins(runtime):
        raise ConfigurationError(
            f"{runtime.store.url} has pins, whose values are needed until they are unpinned, so no "
            "rule is safe. Run `celery offload gc` regularly instead"
        )
    if not no_pins:
        raise ConfigurationError(
            f"{runtime.store.url} may have pins, whose values a rule would delete: run `celery "
            "offload gc` regularly instead, or add --no-pins if you use neither Offload.pin nor "
            "a catalog"
        )


def _rules(runtime: Runtime, longest: float, bucket: str | None) -> list[Rule]:
    tiers = tiers_of(runtime.store)
    found = [rule for tier in tiers if (rule := lifecycle_rule(tier, longest)) is not None]
    if not found:
        raise ConfigurationError(
            f"{runtime.store.url} is not S3: other stores have no lifecycle rules. Expired values "
            "are deleted by the server itself (Redis) or by `celery offload gc`"
        )
    buckets = sorted({rule.bucket for rule in found})
    if bucket is None and len(buckets) > 1:
        raise ConfigurationError(f"the store has several buckets: add --bucket {buckets[0]}")
    chosen = [rule for rule in found if bucket in (None, rule.bucket)]
    if not chosen:
        raise ConfigurationError(f"the store's buckets are {', '.join(buckets)}, not {bucket}")
    return chosen
