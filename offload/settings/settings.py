"""All settings: read once from Celery's configuration, and checked as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from offload.errors import ConfigurationError
from offload.settings.checks import unknown_name
from offload.settings.classes import ClassSettings
from offload.settings.core import CoreSettings
from offload.settings.node_cache import NodeCacheSettings
from offload.settings.options import TaskOptions

__all__ = ("Settings",)


@dataclass(frozen=True)
class Settings(ClassSettings, NodeCacheSettings, CoreSettings):  # fields: in reverse order
    """All settings. As Celery settings, their names start with ``offload_``.

    `CoreSettings`, `NodeCacheSettings` and `ClassSettings` describe them.
    """

    def __post_init__(self) -> None:
        for group in (CoreSettings, NodeCacheSettings, ClassSettings):
            group.__post_init__(self)

    @classmethod
    def read(
        cls, conf: Mapping[str, Any], namespace: str | None, given: Mapping[str, Any]
    ) -> Settings:
        """Return the settings from Celery's *conf*, overridden by *given*, without the prefix.

        *namespace* is Celery's (``CELERY`` where Django's settings say
        ``CELERY_OFFLOAD_STORE``). Raises ConfigurationError naming the key.
        """
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for key in list(conf.keys()):
            name = _short(key, namespace)
            if name is None:
                continue
            if name not in known:
                raise ConfigurationError(
                    unknown_name(f"setting {key!r}", f"offload_{name}", _prefixed(known))
                )
            values[name] = conf[key]
        for name in given:
            if name not in known:
                raise ConfigurationError(unknown_name(f"Offload({name}=…)", name, known))
        values.update(given)
        return cls(**{name: value for name, value in values.items() if value is not None})

    def options(self) -> TaskOptions:
        """Return the options that hold unless a task or a call sets others."""
        return TaskOptions(
            enabled=self.mode != "off",
            inline=self.inline,
            results=self.results,
            threshold=self.threshold,
            retention=self.retention,
        )


def _short(key: object, namespace: str | None) -> str | None:
    """Return the name of our setting that *key* is; None for other keys."""
    if not isinstance(key, str):
        return None
    name = key
    if namespace and name.startswith(namespace + "_"):
        name = name[len(namespace) + 1 :]
    elif namespace and name.isupper():
        return None
    name = name.lower().removeprefix("celery_")
    return name.removeprefix("offload_") if name.startswith("offload_") else None


def _prefixed(names: Iterable[str]) -> list[str]:
    return [f"offload_{name}" for name in names]
