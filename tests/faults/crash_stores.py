"""Stores of the crash test: their content, and how to let their time pass."""

from __future__ import annotations

import tempfile
import time
from pathlib import PurePosixPath

from offload.stores import open_store
from tests.support.s3_server import BUCKET, s3_client
from tests.support.servers import redis_client

LONG = 5000.0  # seconds: longer than anything is kept
STAYS = ("pointer", "lease", "pointers", "leases", "{stats}")  # for all time
NAME = "crash"


class InRedis:
    """Keys, lifetimes, and holds of a Redis server."""

    def __init__(self, server):
        self._client = redis_client(server)
        self._client.flushall()
        self.url = f"{server.url}?prefix={NAME}"

    def close(self):
        self._client.close()

    def digests(self, kind="blob"):
        """Return the digests of all keys of a kind."""
        begin = f"{NAME}:{kind}:{{"
        return {key.decode()[len(begin) : -1] for key in self._client.scan_iter(f"{begin}*")}

    def holders(self, digest):
        """Return the holders of a blob, including those about to store it."""
        found = self._client.zrange(f"{NAME}:holds:{{{digest}}}", 0, -1, withscores=True)
        names = {name.decode() for name, until in found if until / 1000 > time.time()}
        return names - {"@life"}

    def let_time_pass(self):
        """Shorten every lifetime and every hold by that time."""
        for key in self._client.scan_iter(f"{NAME}:*"):
            left = self._client.pttl(key)
            if left < 0 or self._stays(key):
                continue
            if self._client.type(key) == b"zset":
                for name, until in self._client.zrange(key, 0, -1, withscores=True):
                    self._client.zadd(key, {name: until - LONG * 1000})
            self._client.pexpire(key, int(left - LONG * 1000))

    def left(self):
        """Return all keys except permanent ones."""
        return [key.decode() for key in self._client.scan_iter("*") if not self._stays(key)]

    def _stays(self, key):
        return key.decode().split(":")[1] in STAYS


class InS3:
    """Objects of a bucket."""

    def __init__(self, server, **options):
        self._client = s3_client(server)
        self.url = server.url(NAME, skew=1, **options)
        for key in self._keys():
            self._client.delete_object(Bucket=BUCKET, Key=key)

    def close(self):
        self._client.close()

    def digests(self):
        return {
            PurePosixPath(key).name.replace("-", ":") for key in self._keys() if "/blobs/" in key
        }

    def let_time_pass(self, store):
        """Make *store* take all dates for that much earlier."""
        now = store.client.now
        store.client.now = lambda answer: now(answer) + LONG

    def left(self):
        return [key for key in self._keys() if key.split("/")[1] not in STAYS]

    def _keys(self):
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=f"{NAME}/"
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


class OnRedis:
    """A store that tracks holds and deletes expired blobs itself."""

    def __init__(self, redis, s3):
        self._redis = InRedis(redis)
        self._store = open_store(self._redis.url)
        self.config = {"offload": {"store": self._redis.url, "grace": 8}}

    def close(self):
        self._store.close()
        self._redis.close()

    def blobs(self):
        """Return the digests of all blobs."""
        return self._redis.digests()

    def held(self):
        """Return the holders of each blob."""
        return {digest: self._redis.holders(digest) for digest in self.blobs()}

    def end(self):
        """Let all time pass, and sweep."""
        self._redis.let_time_pass()
        return list(self._store.sweep())

    def left(self):
        return self._redis.left()


class OnSQLite:
    """One file that all processes share."""

    def __init__(self, redis, s3):
        self._folder = tempfile.TemporaryDirectory()
        self._store = open_store(f"sqlite://{self._folder.name}/offload.db")
        self.config = {"offload": {"store": self._store.url, "grace": 8}}

    def close(self):
        self._store.close()
        self._folder.cleanup()

    def blobs(self):
        return {info.digest for info in self._store.blobs.scan()}

    def held(self):
        return {digest: set(self._store.blobs.holders(digest)) for digest in self.blobs()}

    def end(self):
        with self._store.database.writing() as connection:
            for table in ("blob", "hold"):
                connection.execute(f"UPDATE {table} SET until = until - {LONG}")
        return list(self._store.sweep())

    def left(self):
        with self._store.database.reading() as connection:
            return [
                *connection.execute("SELECT digest FROM blob"),
                *connection.execute("SELECT digest, holder FROM hold"),
            ]


class OnS3:
    """A store with expiry only, which keeps expired blobs until a sweep."""

    def __init__(self, redis, s3):
        self._s3 = InS3(s3(), ahead=0)
        self._store = open_store(self._s3.url)
        self.config = {"offload": {"store": self._s3.url, "grace": 0.5}, "skew": 1.0}

    def close(self):
        self._store.close()
        self._s3.close()

    def blobs(self):
        return self._s3.digests()

    def held(self):
        return {}

    def end(self):
        self._s3.let_time_pass(self._store)
        return list(self._store.sweep())

    def left(self):
        return self._s3.left()


class OnTiers:
    """Redis above S3: its holds decide for blobs in both."""

    def __init__(self, redis, s3):
        self._redis, self._s3 = InRedis(redis), InS3(s3())
        urls = [self._redis.url, self._s3.url]
        self._store = open_store(urls, tier_sizes=[TIER])
        # compressed values would be too small for the lower tier
        options = {"store": urls, "tier_sizes": TIER, "compression": "none", "grace": 8}
        self.config = {"offload": options, "most": 300_000}

    def close(self):
        self._store.close()
        self._redis.close()
        self._s3.close()

    def blobs(self):
        return self._redis.digests() | self._s3.digests()

    def held(self):
        """Return the holders of each blob, except blobs that only expire: their publisher was
        killed before it recorded them.
        """
        known = self._redis.digests() | (self._s3.digests() & self._redis.digests("place"))
        return {digest: self._redis.holders(digest) for digest in known}

    def end(self):
        self._redis.let_time_pass()
        self._s3.let_time_pass(self._store.tiers[1])
        return list(self._store.sweep())

    def left(self):
        return self._redis.left() + self._s3.left()


TIER = 64 << 10  # bytes; from this size, blobs are stored in the lower tier
