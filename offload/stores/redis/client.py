"""Send commands and scripts to Redis, through one redis-py client per process."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from threading import Semaphore
from typing import Any, NamedTuple

from redis import Redis, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from offload.errors import StoreError, StoreUnavailable
from offload.stores.processes import PerProcess
from offload.stores.redis.driver_errors import ERRORS, translate
from offload.stores.redis.redis_internals import (
    UNLIMITED,
    Bulk,
    Command,
    database_of,
    refusal,
    send,
)
from offload.stores.sums import BatchSource, CounterBatch

Driver = Redis | RedisCluster
_WRITES = frozenset({"SET", "EVALSHA", "EVAL", "UNLINK"})  # WAIT returns at once if a script read
_SCAN = 1000  # keys per SCAN
_MOST_DEFERRED = 1000  # maximum number of script runs that wait in a process
_CARRIED = 32  # maximum number of these that one request carries
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Script:
    """A Lua script and its SHA-1, by which a server that has run it identifies it."""

    text: str
    sha: str

    @property
    def commands(self) -> list[str]:
        """Commands that it runs; the user needs permission for these."""
        return sorted(set(re.findall(r"redis\.call\('([A-Z]+)'", self.text)))


@cache
def script(name: str) -> Script:
    """Return the script ``offload/stores/lua/<name>.lua``."""
    text = (resources.files("offload.stores") / "lua" / f"{name}.lua").read_text("utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class _Run(NamedTuple):
    """A deferred run of a script, which waits for a request to carry it.

    Attributes:
        command: ``EVALSHA``; or ``EVAL`` if the server doesn't know the script.
        answered: called with the reply, or with an exception if the server refused; None if it
            isn't needed.
    """

    script: Script
    command: Command
    answered: Callable[[Any], None] | None = None


class RedisClient:
    """A client for one Redis; each process creates its own redis-py client when needed.

    Args:
        connect: creates a redis-py client, which is safe among threads but not across forks.
        url: the store's URL, for errors.
        prefix: prefix of all keys.
        replicas: number of replicas that must acknowledge a write before it counts as done.
        patience: seconds to wait for them.
        connections: maximum number of connections per process.
    """

    def __init__(
        self,
        connect: Callable[[], Driver],
        url: str,
        prefix: str = "offload",
        *,
        replicas: int = 0,
        patience: float = 1.0,
        connections: int = UNLIMITED,
    ) -> None:
        self.url = url
        self.prefix = prefix
        self.replicas = replicas
        self._wait = ("WAIT", replicas, max(math.ceil(patience * 1000), 1))  # 0 means forever
        self._batches: tuple[BatchSource, Callable[[CounterBatch], Command]] | None = None
        self._drivers = PerProcess(connect, keep_inherited=True)
        self._connections = connections
        self._waiting = PerProcess(lambda: Semaphore(connections // 2), keep_inherited=True)
        self._many_keys: bool | None = None
        self._deferred: deque[_Run] = deque()
        self._refused = 0

    @property
    def many_keys(self) -> bool:
        """Whether a command may have keys of several slots, which a Cluster doesn't allow."""
        if self._many_keys is None:
            self._many_keys = not _is_cluster(self.driver())
        return self._many_keys

    @property
    def database(self) -> int:
        """The number of the selected database."""
        client = self.driver()
        if _is_cluster(client):
            return 0
        return database_of(client)

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """Send *commands* in one round trip; return the replies in order.

        They aren't a transaction. The first error is raised after all replies have arrived.
        """
        return self._checked(self._run(commands))

    def run_script(
        self,
        script: Script,
        calls: Sequence[tuple[Sequence[str], Command]],
        *,
        after: Sequence[Command] = (),
    ) -> list[Any]:
        """Run a script for each pair of keys and arguments, in one round trip.

        Args:
            calls: keys and arguments for each run.
            after: commands to send first, in the same round trip; their replies come first, too.

        If the server doesn't know the script yet (because it is new, was flushed, or after a
        failover), this takes one more round trip.
        """
        runs = [("EVALSHA", script.sha, len(k), *k, *args) for k, args in calls]
        answers = self._run([*after, *runs])
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = [calls[at - len(after)] for at in unknown]
            texts = self._run([("EVAL", script.text, len(k), *k, *args) for k, args in again])
            for at, answer in zip(unknown, texts, strict=True):
                answers[at] = answer
        return self._checked(answers, script, after=len(after))

    def start_script(self, script: Script, keys: Sequence[str], args: Command) -> Callable[[], Any]:
        """Send a script, and return a function, to be called once, that returns the reply.

        The caller can do something else in between. But this call itself waits for the reply in a
        Cluster, if there are replicas to wait for, or if the number of connections is limited: the
        caller may need another one in between.
        """
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            client: Any = self._drivers.get()
            if self.replicas or _is_cluster(client) or self._connections < UNLIMITED:
                answer = self.run_script(script, [(keys, args)])[0]
                return lambda: answer
            receive = self._send(client.connection_pool, command)
        except ERRORS as exc:
            raise translate(exc, self.url) from exc

        def finish() -> Any:
            try:
                [answer] = receive()
            except ERRORS as exc:
                raise translate(exc, self.url) from exc
            if isinstance(answer, Exception):
                if isinstance(answer, NoScriptError):
                    return self.run_script(script, [(keys, args)])[0]
                self._checked([answer], script)
            return answer

        return finish

    def _send(self, pool: Any, command: Command) -> Callable[[], list[Any]]:
        """Send *command* with what it carries; return a function that returns only its reply."""
        batch = None if self._batches is None else self._batches[0].next_batch()
        runs = self._next_deferred() if self._deferred else ()
        if batch is None and not runs:
            return send(pool, [command])
        return self._start_with([command], runs, batch, partial(send, pool))

    def wait_for(self, key: str, seconds: float) -> bool:
        """Wait at most *seconds* for an element of the list *key*; return whether it took one.

        Raises StoreUnavailable if half of all connections wait already: other calls, such as those
        of a lock's owner, need the rest.
        """
        waiting = self._waiting.get()
        if not waiting.acquire(blocking=False):
            raise StoreUnavailable(
                f"too many calls wait for releases in {self.url}", store=self.url
            )
        try:
            return self._checked(self._sent([("BLPOP", key, seconds)])) != [None]
        finally:
            waiting.release()

    def piggyback(self, source: BatchSource, command: Callable[[CounterBatch], Command]) -> None:
        """Send batches of *source* with other requests; *command* converts a batch."""
        self._batches = source, command

    def defer_script(
        self,
        script: Script,
        keys: Sequence[str],
        args: Command,
        answered: Callable[[Any], None] | None = None,
    ) -> bool:
        """Defer a script until this process's next request, which runs it before its own commands.

        So the script doesn't undo what these do, such as holding again what it releases.

        Args:
            answered: called with the reply, by any thread; it must not raise.

        Returns False if that isn't possible: in a Cluster, where another server may have the keys,
        and be unavailable; if writes wait for replicas, as reads would have to wait, too; or if too
        many runs are waiting.
        """
        if self.replicas or len(self._deferred) >= _MOST_DEFERRED or not self.many_keys:
            return False
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        self._deferred.append(_Run(script, command, answered))
        return True

    def run_deferred(self) -> int:
        """Run the deferred scripts that no request has carried yet.

        Returns how many runs the server has refused since the last call. Raises StoreUnavailable.
        """
        for _ in range(len(self._deferred) // _CARRIED + 2):  # a new server needs one more round
            if self._deferred:
                self._run_with((), self._next_deferred(), None)
        refused, self._refused = self._refused, 0
        return refused

    def keys(self, prefix: str, *, kind: str = "string") -> Iterator[list[str]]:
        """Yield the keys of a kind that start with *prefix*, each once, about 1,000 at a time."""
        pattern = escaped(prefix) + "*"
        seen: set[bytes] = set()
        found: list[str] = []
        try:
            for key in self.driver().scan_iter(match=pattern, count=_SCAN, _type=kind):
                if key not in seen:
                    seen.add(key)
                    found.append(key.decode("utf-8", "replace"))
                if len(found) >= _SCAN:
                    yield found
                    found = []
        except ERRORS as exc:
            raise translate(exc, self.url) from exc
        yield found

    def each_server(self, command: str) -> Iterator[tuple[str, Any]]:
        """Yield the name ("" outside of a Cluster) and reply of each primary to *command*."""
        client: Any = self.driver()
        nodes = [None] if self.many_keys else client.get_primaries()
        for node in nodes:
            options = {} if node is None else {"target_nodes": node}
            try:
                answer = client.execute_command(command, **options)
            except ERRORS as exc:
                raise translate(exc, self.url) from exc
            yield "" if node is None else node.name, answer

    def close(self) -> None:
        """Close this process's connections; the next call opens new ones."""
        client = self._drivers.take()
        if client is not None:
            with suppress(RedisError, OSError):
                client.close()

    def driver(self) -> Driver:
        try:
            return self._drivers.get()
        except ERRORS as exc:  # a Cluster's client connects when it is created
            raise translate(exc, self.url) from exc

    def _run(self, commands: Sequence[Command]) -> list[Any]:
        batch = None if self._batches is None or not commands else self._batches[0].next_batch()
        runs = self._next_deferred() if self._deferred and commands else ()
        if batch is None and not runs:
            return self._sent(commands)
        return self._run_with(commands, runs, batch)

    def _next_deferred(self) -> list[_Run]:
        runs: list[_Run] = []
        with suppress(IndexError):  # no more are waiting
            while len(runs) < _CARRIED:
                runs.append(self._deferred.popleft())
        return runs

    def _run_with(
        self, commands: Sequence[Command], runs: Sequence[_Run], batch: CounterBatch | None
    ) -> list[Any]:
        """Return the replies to *commands*, which carry script runs and counters."""
        return self._start_with(commands, runs, batch, lambda every: partial(self._sent, every))()

    def _start_with(
        self,
        commands: Sequence[Command],
        runs: Sequence[_Run],
        batch: CounterBatch | None,
        start: Callable[[Sequence[Command]], Callable[[], list[Any]]],
    ) -> Callable[[], list[Any]]:
        """Send *commands* with what they carry; return a function that returns their replies.

        A later request carries what gets no reply.
        """
        every = [*(run.command for run in runs), *commands]
        if self._batches is not None and batch is not None:
            every.append(self._batches[1](batch))

        def requeue() -> None:
            self._deferred.extendleft(reversed(runs))
            if self._batches is not None and batch is not None:
                self._batches[0].requeue(batch)

        try:
            receive = start(every)
        except BaseException:
            requeue()
            raise

        def finish() -> list[Any]:
            try:
                answers = receive()
            except BaseException:
                requeue()
                raise
            if batch is not None and isinstance(own := answers.pop(), Exception):
                logger.warning("statistics aren't stored: %s", translate(own, self.url))
            error = self._settle(runs, answers[: len(runs)])
            if error is not None and not commands:
                raise error
            return answers[len(runs) :]

        return finish

    def _settle(self, runs: Sequence[_Run], answers: Sequence[Any]) -> StoreUnavailable | None:
        """Requeue runs that the server couldn't do now; return the reason if there are any.

        Repeating a run is harmless.
        """
        unavailable = None
        for run, answer in zip(runs, answers, strict=True):
            if not isinstance(answer, Exception):
                if run.answered is not None:
                    run.answered(answer)
                continue
            error = translate(answer, self.url, run.script.commands)
            if isinstance(answer, NoScriptError):
                text = ("EVAL", run.script.text, *run.command[2:])
                self._deferred.appendleft(run._replace(command=text))
            elif isinstance(error, StoreUnavailable):
                self._deferred.appendleft(run)
                unavailable = error
            elif run.answered is not None:
                run.answered(error)
            else:
                logger.info("holds expire instead of being released: %s", error)
                self._refused += 1
        return unavailable

    def _sent(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        try:
            client: Any = self._drivers.get()
            if not _is_cluster(client):
                waits = self.replicas and any(command[0] in _WRITES for command in commands)
                asked = [*commands, self._wait] if waits else commands
                try:
                    answers = send(client.connection_pool, asked)()
                except RedisConnectionError as exc:
                    self._check_size(client.connection_pool, commands, exc)
                    raise
                if waits:
                    self._check_reached(answers.pop())
                return answers
            with client.pipeline() as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                return list(pipeline.execute(raise_on_error=False))
        except ERRORS as exc:
            raise translate(exc, self.url) from exc

    def _check_size(self, pool: Any, commands: Sequence[Command], exc: Exception) -> None:
        """Raise StoreError if the connection broke because a string was too long."""
        sizes = [part.size for each in commands for part in each if isinstance(part, Bulk)]
        longest = max(sizes, default=0)
        said = refusal(pool, longest) if longest else None
        if said:
            raise StoreError(
                f"{self.url} accepts no string of {longest} bytes ({said}): set chunk_size=… in "
                "its URL below that limit (proto-max-bulk-len)",
                store=self.url,
            ) from exc

    def _check_reached(self, reached: Any) -> None:
        """Raise StoreUnavailable if too few replicas have the write, so a failover could lose it.

        Repeating the write is harmless.
        """
        if self._checked([reached])[0] < self.replicas:
            raise StoreUnavailable(
                f"a write to {self.url} reached {reached} replicas within {self._wait[2]} ms, but "
                f"wait_replicas is {self.replicas}: check that they are connected and keep up",
                store=self.url,
            )

    def _checked(
        self, answers: list[Any], script: Script | None = None, *, after: int = 0
    ) -> list[Any]:
        """Return *answers*, or raise the first error among them; all but the first *after* are
        those of a script.
        """
        for at, answer in enumerate(answers):
            if isinstance(answer, Exception):
                commands = script.commands if script and at >= after else ()
                raise translate(answer, self.url, commands) from answer
        return answers


def _is_cluster(client: Driver) -> bool:
    kind: Any = type(client)
    return _is_cluster_class(kind)


@cache  # isinstance with this class, which has protocols as bases, takes longer than a command
def _is_cluster_class(kind: type) -> bool:
    return issubclass(kind, RedisCluster)


def escaped(text: str) -> str:
    """Return a pattern that matches only *text*."""
    return re.sub(r"[*?\[\]\\]", r"\\\g<0>", text)
