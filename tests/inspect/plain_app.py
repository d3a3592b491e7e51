"""An app without offload: ``-A tests.inspect.plain_app``."""

from __future__ import annotations

import json
import os
import sys

from celery import Celery


class Blocked:
    def find_spec(self, name, *_args):
        if name.partition(".")[0] == "offload":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked())
app = Celery("plain", broker=json.loads(os.environ["OFFLOAD_TEST_APP"])["broker"])
app.conf.broker_connection_retry_on_startup = True
