"""An app without offload: ``-A tests.inspect.plain_app``."""

from __future__ import annotations

import json
import os

from celery import Celery

from tests.support.apps import block_offload

block_offload()
app = Celery("plain", broker=json.loads(os.environ["OFFLOAD_TEST_APP"])["broker"])
app.conf.broker_connection_retry_on_startup = True
