"""The Celery app of the example.

Run a worker from the folder that contains `worker_example/`:

    celery -A worker_example.app worker --concurrency 2
"""

import os

from celery import Celery

REDIS = os.environ.get("REDIS_URL", "redis://localhost:6379")

app = Celery(
    "flights",
    broker=os.environ.get("BROKER_URL", f"{REDIS}/0"),
    backend=os.environ.get("RESULT_BACKEND", f"{REDIS}/1"),
    include=["worker_example.tasks"],
)
app.conf.update(
    # Pickle is Celery's only serializer that supports DataFrames. It lets anyone who can write
    # to the broker run code on the workers: see docs/explanation/security.md.
    task_serializer="pickle",
    result_serializer="pickle",
    accept_content=["pickle", "json"],
    result_expires=3600,
    worker_prefetch_multiplier=1,
)

# The only added line. Without it, this is a plain Celery app with the same answers.
if os.environ.get("OFFLOAD", "on") != "off":
    from offload import Offload

    # One URL, or several separated by spaces (tiers).
    offload = Offload(app, store=os.environ.get("OFFLOAD_STORE", f"{REDIS}/2").split())
