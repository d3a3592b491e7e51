"""Keep small files as objects."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing

from offload.stores.capabilities import MAX_SMALL_FILE, SMALL_FILE, SmallFile
from offload.stores.s3.client import S3Client
from offload.stores.s3.driver_errors import driver_errors

__all__ = ("S3Files",)

_FOLDER = "stats"


class S3Files:
    """The objects below ``stats/``, with the server's times."""

    has_pointers = True

    def __init__(self, client: S3Client) -> None:
        self.url = client.url
        self._client = client

    def entries(self) -> list[SmallFile]:
        found = []
        for page in self._client.pages(_FOLDER):
            for entry in page:
                name = entry["Key"][len(self._key("")) :]
                if not SMALL_FILE.fullmatch(name):
                    continue  # others put it there
                written = entry["LastModified"].timestamp()
                found.append(SmallFile(name, entry["Size"], entry["ETag"], written))
        return found

    def read(self, names: Sequence[str]) -> list[bytes | None]:
        return self._client.threads.each(self._read, names)

    def _read(self, name: str) -> bytes | None:
        status, answer = self._client.ask("get_object", (404,), records=True, Key=self._key(name))
        if status == 404:
            return None
        with closing(answer["Body"]) as body, driver_errors(self.url):
            content: bytes = body.read(MAX_SMALL_FILE)
        return content

    def write(self, name: str, content: bytes) -> None:
        self._client.ask("put_object", records=True, Key=self._key(name), Body=content)

    def remove(self, names: Sequence[str]) -> None:
        self._client.threads.each(self._remove, names)

    def _remove(self, name: str) -> None:
        self._client.ask("delete_object", (404,), records=True, Key=self._key(name))

    def now(self) -> float:
        earliest, latest = self._client.bounds()
        return earliest if math.isfinite(latest - earliest) else time.time()

    def sure_time(self) -> float:
        self._client.ask("list_objects_v2", records=True, Prefix=self._key(""), MaxKeys=1)
        return self._client.bounds()[0]

    def _key(self, name: str) -> str:
        return f"{self._client.prefix}{_FOLDER}/{name}"
