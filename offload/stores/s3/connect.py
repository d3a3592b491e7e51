"""Open S3 from a URL. Opening a store needs boto3; importing this module doesn't."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from offload.stores.capabilities import UNNAMED
from offload.stores.url import StoreURL, boolean, count, duration, seconds, text

if TYPE_CHECKING:
    from offload.stores.s3.store import S3Store

_PREFIX = re.compile(r"[A-Za-z0-9._/-]*", re.ASCII)


def open_s3(url: StoreURL) -> S3Store:
    """Open ``s3://bucket/prefix``. All keys start with the prefix, if there is one.

    boto3 finds credentials in the environment, a profile, SSO, or the machine's role. For other
    servers, they can also be in the URL: ``s3://key:secret@bucket/prefix``.

    Options, with defaults:

    - ``endpoint_url`` of a server other than AWS, and ``addressing_style``: ``path``,
      ``virtual``, or ``auto`` (default: ``path`` if there is an endpoint_url);
    - ``region``; ``profile``; ``bucket_owner``, an account that the bucket must belong to;
    - ``sse``: ``AES256``, ``aws:kms`` or ``aws:kms:dsse``, with ``sse_kms_key_id`` and
      ``sse_bucket_key``;
    - ``ssl_ca_certs``: a file with the certificate authorities to trust;
    - ``sign_payload`` (false): whether requests that upload a blob also sign its bytes, at the
      cost of hashing them. Readers verify a blob's content anyway. Requests for pointers and
      leases are always fully signed;
    - ``connect_timeout`` (5) and ``read_timeout`` (20, for any wait on the connection), in
      seconds; ``max_attempts`` (2) of boto3 per attempt of offload;
    - ``threads`` (16): number of parallel requests in each process;
    - ``skew`` (60) and ``unnamed`` (86400) in seconds, and ``ahead`` (1): see
      `offload.stores.s3.store.S3Store`.
    """
    try:
        from offload.stores.s3.client import S3Client
        from offload.stores.s3.store import S3Store
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in ("boto3", "botocore"):
            raise
        url.refuse('S3 needs boto3: pip install "offload[s3]"')
    bucket, prefix = _place(url)
    endpoint = url.take("endpoint_url", _endpoint, None)
    if endpoint:
        url.public += f"?endpoint_url={quote(endpoint, safe=':/')}"
    threads = url.take("threads", _at_least_one, 16)
    connect = _Connect(
        session=_session_options(url),
        client={
            "endpoint_url": endpoint,
            "verify": url.take("ssl_ca_certs", text, None),
        },
        config={
            "connect_timeout": url.take("connect_timeout", seconds, 5.0),
            "read_timeout": url.take("read_timeout", seconds, 20.0),
            # Callers also send requests from their own threads.
            "max_pool_connections": 2 * threads,
        },
        style=url.take(
            "addressing_style",
            _one_of("auto", "path", "virtual"),
            "path" if endpoint else "auto",
        ),
        attempts=url.take("max_attempts", _at_least_one, 2),
        sign_payload=url.take("sign_payload", boolean, default=False),
    )
    owner = url.take("bucket_owner", text, None)
    client = S3Client(
        connect,
        bucket=bucket,
        url=url.public,
        prefix=prefix,
        threads=threads,
        common={"ExpectedBucketOwner": owner} if owner else None,
        writing=_encryption(url),
    )
    return S3Store(
        client,
        skew=url.take("skew", duration, 60.0),
        ahead=url.take("ahead", duration, 1.0),
        unnamed=url.take("unnamed", duration, UNNAMED),
    )


class _Connect:
    """Creates boto3 clients from a URL's options."""

    def __init__(
        self,
        *,
        session: dict[str, Any],
        client: dict[str, Any],
        config: dict[str, Any],
        style: str,
        attempts: int,
        sign_payload: bool,
    ) -> None:
        self._session = session
        self._client = client
        self._config = config
        self._style = style
        self._attempts = attempts
        self._sign_payload = sign_payload

    def __call__(self, *, records: bool) -> Any:
        import boto3
        from boto3.session import Session
        from botocore.config import Config

        from offload.stores.s3.botocore_internals import botocore_session, handle_before_call
        from offload.stores.s3.client import send_at_once

        config = Config(
            **self._config,
            s3={
                "addressing_style": self._style,
                "payload_signing_enabled": records or self._sign_payload,
            },
            # Callers retry. boto3 also retries once, so that one lost connection doesn't fail all
            # parallel requests.
            retries={"mode": "standard", "total_max_attempts": 1 if records else self._attempts},
            # A blob's digest is a better checksum than these.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            parameter_validation=False,  # it accepts only bytes as a body
            tcp_keepalive=True,
            user_agent=f"Boto3/{boto3.__version__} offload",  # by default, computed per request
        )
        session = Session(**self._session, botocore_session=botocore_session())
        client = session.client("s3", **self._client, config=config)
        handle_before_call(client, send_at_once)
        # Some servers require this header, as S3 once did, and support no newer checksum.
        handle_before_call(client, _add_md5, ".DeleteObjects")
        return client


def _add_md5(params: dict[str, Any], **_more: Any) -> None:
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = b64encode(digest).decode()


def _place(url: StoreURL) -> tuple[str, str]:
    if len(url.hosts) != 1 or url.hosts[0][1] is not None:
        url.refuse("a bucket is written s3://bucket/prefix?endpoint_url=https://host:port")
    prefix = url.path.strip("/")
    segments = prefix.split("/") if prefix else []
    if not _PREFIX.fullmatch(prefix) or not {"", ".", ".."}.isdisjoint(segments):
        url.refuse("a prefix is of A-Z a-z 0-9 . _ - /, with no empty, '.' or '..' segment")
    return url.hosts[0][0], prefix


def _session_options(url: StoreURL) -> dict[str, Any]:
    options = {
        "profile_name": url.take("profile", text, None),
        "region_name": url.take("region", text, None),
        "aws_access_key_id": url.username,
        "aws_secret_access_key": url.password,
    }
    if (url.username is None) != (url.password is None):
        url.refuse("credentials need an access key and a secret key: s3://key:secret@bucket")
    if url.username and options["profile_name"]:
        url.refuse("give credentials in the URL or by a profile, not both")
    return {name: value for name, value in options.items() if value is not None}


def _encryption(url: StoreURL) -> dict[str, Any]:
    kind = url.take("sse", _one_of("AES256", "aws:kms", "aws:kms:dsse"), None)
    key = url.take("sse_kms_key_id", text, None)
    bucket_key = url.take("sse_bucket_key", boolean, None)
    if (key or bucket_key is not None) and not (kind and kind.startswith("aws:kms")):
        url.refuse("sse_kms_key_id and sse_bucket_key need sse=aws:kms")
    found = {
        "ServerSideEncryption": kind,
        "SSEKMSKeyId": key,
        "BucketKeyEnabled": bucket_key,
    }
    return {name: value for name, value in found.items() if value is not None}


def _endpoint(value: Any) -> str:
    try:
        parts = urlsplit(str(value))
        fine = parts.scheme in ("http", "https") and parts.hostname and not parts.username
        _ = parts.port
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment:
        raise ValueError("a URL such as https://host:port, without credentials")
    return str(value)


def _one_of(*words: str) -> Any:
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return str(value)

    return convert


def _at_least_one(value: Any) -> int:
    number = count(value)
    if not number:
        raise ValueError("a whole number of at least 1")
    return number
