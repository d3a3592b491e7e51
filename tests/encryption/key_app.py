"""An app whose encryption keys come from a function: ``-A tests.encryption.key_app``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.integration import features


def create(config: dict[str, Any]) -> Any:
    """Return the app of `features`. Its key is in a folder, and so is a line for each call."""
    folder = Path(config["keys"])

    def key() -> str:
        with (folder / "calls").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if (folder / "down").exists():
            raise OSError("the key service is down")
        return (folder / "key").read_text()

    return features.create({**config, "offload": {**config["offload"], "encryption_keys": [key]}})


if "OFFLOAD_TEST_APP" in os.environ:
    app = create({**json.loads(os.environ["OFFLOAD_TEST_APP"]), "current": True})
