"""Parse and check the URL of a store.

::

    scheme://user:password@host:port,host:port/path?option=value
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping
from math import inf
from typing import Any, NoReturn, TypeVar, Union
from urllib.parse import parse_qsl, unquote, urlsplit

from offload.errors import ConfigurationError
from offload.text import parse_duration

T = TypeVar("T")
Host = tuple[str, Union[int, None]]

_SECRET = ("password", "token", "secret", "key", "kwargs", "credential")


class StoreURL:
    """The parts of a store's URL. Factories take options one by one; `finish` rejects the rest.

    Attributes:
        hosts: pairs of host and port; the port may be None.
        username, password: percent-decoded; None if missing.
        path: the path, percent-decoded, with its leading slash.
        given: names of options that were passed by keyword, rather than in the query.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        try:
            parts = urlsplit(url)
        except ValueError as exc:
            raise ConfigurationError(f"not a store's URL: {exc}") from None
        if "://" not in url:  # "localhost:6379" would name a scheme "localhost"
            raise ConfigurationError(
                "a store's URL has no scheme: write it as redis://localhost:6379/2 or "
                "file:///var/lib/offload"
            )
        self.scheme = parts.scheme.lower()
        login, _, hosts = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        self.username = unquote(username) or None
        self.password = unquote(password) or None
        self.path = unquote(parts.path)
        # Shown in errors until it is certain that no parsed part contains a piece of a password:
        self.public = f"{self.scheme}://…"
        if parts.fragment or ("@" in parts.path and hosts):
            self.refuse("write '#' as %23, and in a password also '/' as %2F and '?' as %3F")
        self.hosts = [self._host(host) for host in hosts.split(",") if host]
        self.public = f"{self.scheme}://{hosts}{parts.path}"
        self._options: dict[str, Any] = {}
        self._known: list[str] = []
        self.given = frozenset(options or ())
        for name, value in [
            *parse_qsl(parts.query, keep_blank_values=True),
            *(options or {}).items(),
        ]:
            if "@" in name:
                self.public = f"{self.scheme}://…"
                self.refuse("write '?' as %3F and '@' as %40 in a password")
            if name in self._options:
                self.refuse(f"the option {name!r} is given twice")
            self._options[name] = value

    def take(self, name: str, convert: Callable[[Any], T], default: T) -> T:
        """Return the option *name*, converted; *default* if it is missing.

        *convert* must raise ValueError(expected); *expected* completes "the option … is not".
        """
        self._known.append(name)
        return self.take_common(name, convert, default)

    def take_common(self, name: str, convert: Callable[[Any], T], default: T) -> T:
        """Take an option that all stores have; errors don't list it as one of this store's."""
        if name not in self._options:
            return default
        value = self._options.pop(name)
        try:
            return convert(value)
        except (TypeError, ValueError) as exc:
            secret = any(word in name for word in _SECRET) or "@" in str(value)
            secret = secret or not isinstance(value, (str, int, float))  # objects may have a secret
            shown = "…" if secret else repr(value)
            self.refuse(f"the option {name}={shown} is not {exc}")

    def take_given(self, names: Container[str]) -> dict[str, Any]:
        """Return the options with these names that were passed by keyword, unconverted."""
        found = [name for name in self._options if name in self.given and name in names]
        return {name: self._options.pop(name) for name in found}

    def finish(self) -> None:
        """Raise ConfigurationError for options that weren't taken."""
        if self._options:
            unknown = ", ".join(repr(name) for name in sorted(self._options))
            known = ", ".join(sorted(self._known)) or "none"
            self.refuse(f"unknown option {unknown}; known: {known}; and chunk_size")

    def refuse(self, reason: str) -> NoReturn:
        """Raise ConfigurationError for this URL, without its credentials."""
        raise ConfigurationError(f"store {self.public}: {reason}", store=self.public)

    def _host(self, text: str) -> Host:
        name, colon, port = text.rpartition(":")
        if not colon or "]" in port:
            return text.strip("[]"), None
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            self.refuse("the text after a host and ':' isn't a port number such as 6379")
        return name.strip("[]"), int(port)


def shown_url(url: object) -> str:
    """Return a store's URL without credentials and options, even if the URL is invalid."""
    if not isinstance(url, str) or "://" not in url:
        return "…"
    try:
        return StoreURL(url).public
    except ConfigurationError:
        return f"{url.partition('://')[0]}://…"


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a string")
    return value


def count(value: Any) -> int:
    """Convert to a whole number of at least 0. Raises ValueError, like all converters here."""
    if isinstance(value, bool) or not str(value).isascii() or not str(value).isdigit():
        raise ValueError("a whole number")
    return int(value)


def seconds(value: Any) -> float:
    """Convert to a number of seconds above 0."""
    number = _seconds(value)
    if not 0 < number < inf:
        raise ValueError("a number of seconds above 0, or a duration such as 500ms or 5s")
    return number


def duration(value: Any) -> float:
    """Convert to a number of seconds of at least 0."""
    number = _seconds(value)
    if not 0 <= number < inf:
        raise ValueError("a number of seconds, or a duration such as 500ms or 5s")
    return number


def _seconds(value: Any) -> float:
    """Return seconds; -1 if *value* isn't a duration."""
    parsed = parse_duration(value) if isinstance(value, str) else None
    if isinstance(value, bool):
        return -1.0
    try:
        return float(value) if parsed is None else parsed
    except (TypeError, ValueError, OverflowError):
        return -1.0


def boolean(value: Any) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise ValueError("true or false") from None


def key_prefix(value: Any) -> str:
    """Return a valid prefix of keys, without characters that Redis uses in patterns and hash tags.

    Raises ValueError for others.
    """
    word = str(value)
    if not (
        word.isascii()
        and word.replace("_", "").replace("-", "").replace(".", "").replace(":", "").isalnum()
    ):
        raise ValueError("a prefix of A-Z a-z 0-9 . _ - :")
    return word


def file_mode(value: Any) -> int:
    """Convert file permissions, which are octal if given as a string."""
    try:
        mode = int(value, 8) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        mode = -1
    if isinstance(value, bool) or mode & 0o600 != 0o600 or not 0 < mode <= 0o666 or mode & 0o111:
        raise ValueError("octal permissions of files from 0600 to 0666, such as 0660")
    return mode
