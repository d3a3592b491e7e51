"""One folder in a file system that fsspec reaches."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from datetime import timezone
from typing import Any

from offload.errors import OffloadError, StoreError, StoreUnavailable
from offload.stores.processes import PerProcess

CLOCK = re.compile(r"clock-[0-9a-f]{32}", re.ASCII)
"""Names of files written to read the file system's time."""
FileSystem = Any  # fsspec ships no types


class Folder:
    """A folder in *root* of the file systems that *connect* opens, one per process.

    Errors are raised as StoreError, except FileNotFoundError and NotADirectoryError.

    Args:
        clock: returns seconds since 1970. If it isn't `time.time`, it replaces the file system's
            clock as well.
    """

    def __init__(
        self,
        connect: Callable[[], FileSystem],
        url: str,
        root: str,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.url = url
        self.clock = clock
        self._root = root.rstrip("/")
        self._name = "blobs"
        self._has_clock = clock is time.time
        self._systems = PerProcess(connect)

    def beside(self, name: str) -> Folder:
        """Return another folder in the same root."""
        other = copy(self)
        other._name = name
        return other

    def path(self, *names: str) -> str:
        return "/".join((self._root, self._name, *names))

    def names(self, *folder: str) -> list[str]:
        """Return the names in a folder; none if it doesn't exist."""
        return [_last(name) for name in self._list(*folder, detail=False)]

    def sizes(self, *folder: str) -> dict[str, int | None]:
        """Return the names in a folder and their sizes in bytes; None if unknown."""
        return {_last(e["name"]): e.get("size") for e in self._list(*folder, detail=True)}

    def _list(self, *folder: str, detail: bool) -> list[Any]:
        path = self.path(*folder)
        try:
            with self._errors() as system:
                system.invalidate_cache(path)
                return list(system.ls(path, detail=detail))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write(self, content: bytes, *names: str) -> None:
        with self._errors() as system:
            system.makedirs(self.path(*names[:-1]), exist_ok=True)
            system.pipe_file(self.path(*names), content)

    def read(self, *names: str, size: int | None = None) -> bytes:
        """Return a file's content, or its first *size* bytes.

        Raises FileNotFoundError also for a folder.
        """
        with self._errors() as system:
            part = {} if size is None else {"start": 0, "end": size}
            try:
                content: bytes = system.cat_file(self.path(*names), **part)
            except IsADirectoryError as exc:
                raise FileNotFoundError(*exc.args) from exc
            return content

    def remove(self, *names: str) -> None:
        with suppress(FileNotFoundError), self._errors() as system:
            system.rm_file(self.path(*names))

    def time(self) -> float | None:
        """Return the file system's time, as it stamps a file just written; None if unknown."""
        if not self._has_clock:
            return self.clock()
        name = f"clock-{os.urandom(16).hex()}"
        self.write(b"", name)
        try:
            with self._errors() as system:
                try:
                    stamp = system.modified(self.path(name))
                    # One without a zone is taken for UTC; at worst, the sweep is late.
                    return float(
                        (stamp if stamp.tzinfo else stamp.replace(tzinfo=timezone.utc)).timestamp()
                    )
                except (NotImplementedError, AttributeError, LookupError, TypeError, ValueError):
                    return None
        except FileNotFoundError:
            return None
        finally:
            self.remove(name)

    def remove_folder(self, *names: str) -> None:
        """Remove a folder that may be empty, if the file system has folders."""
        with suppress(StoreError, FileNotFoundError), self._errors() as system:
            system.rmdir(self.path(*names))

    @contextmanager
    def _errors(self) -> Iterator[FileSystem]:
        try:
            yield self._systems.get()
        except (FileNotFoundError, NotADirectoryError, OffloadError):
            raise
        except PermissionError as exc:
            raise StoreError(
                f"{self.url} refuses ({exc}): check the credentials and rights", store=self.url
            ) from exc
        except Exception as exc:  # each file system raises its own
            said = " ".join(str(exc).split())[:500]
            raise StoreUnavailable(
                f"{self.url} fails ({type(exc).__name__}: {said}): check that it can be reached "
                "from here, and the credentials",
                store=self.url,
            ) from exc


def _last(path: object) -> str:
    return str(path).rstrip("/").rpartition("/")[2]
