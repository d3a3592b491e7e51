"""Clients that die at a given call to a store, as if their process was killed there."""

from __future__ import annotations


class Killed(BaseException):
    """The process is gone: no further call reaches a store."""


class Life:
    """Ends before, or just after, call number *dies_at* to any of its stores.

    With another *error*, the client lives on, and its stores are unavailable from then on.
    """

    def __init__(self, dies_at, *, after, error=Killed):
        self.calls, self._dies_at, self._after, self._error = 0, dies_at, after, error

    def call(self, function, *args, **options):
        self.calls += 1
        if self.calls > self._dies_at or (self.calls == self._dies_at and not self._after):
            raise self._error
        result = function(*args, **options)
        if self.calls == self._dies_at:
            raise self._error
        return result


class _Part:
    def __init__(self, part, life):
        self._part, self._life = part, life

    def __getattr__(self, name):
        found = getattr(self._part, name)
        if not callable(found):
            return found
        return lambda *args, **options: self._life.call(found, *args, **options)


class Mortal:
    """A store, for a client that dies with *life*."""

    def __init__(self, store, life):
        self.url = store.url
        self.blobs, self.pointers, self.leases = (
            _Part(part, life) for part in (store.blobs, store.pointers, store.leases)
        )
        if hasattr(store, "disk"):
            self.disk = store.disk

    def sweep(self, *, dry_run=False):
        raise NotImplementedError

    def close(self):
        pass


def kill_each_call(store, act):
    """Yield after a client was killed at each of the calls to the store that *act* makes.

    *act* gets the store, and another number each time.
    """
    for number, life in enumerate(lives()):
        try:
            act(Mortal(store, life), number)
        except Killed:
            yield number
            continue
        return


def lives(error=Killed):
    """Yield a life that ends before the first call, one after it, and so on."""
    dies_at = 0
    while True:
        dies_at += 1
        for after in (False, True):
            yield Life(dies_at, after=after, error=error)
