"""Translate boto3's errors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

from boto3.exceptions import Boto3Error
from botocore import exceptions as driver
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from offload.errors import StoreError, StoreUnavailable

_RAISED = (
    driver.ClientError,
    driver.BotoCoreError,
    Boto3Error,
    ResponseParserError,
    HTTPError,
    OSError,
)
_SKEWED = 300.0  # seconds; a larger clock difference explains a refusal

# Codes of temporary refusals.
_TEMPORARY = {
    "SlowDown": "too many requests at once; they are tried again with backoff",
    "Throttling": "too many requests at once; they are tried again with backoff",
    "ThrottlingException": "too many requests at once; they are tried again with backoff",
    "TooManyRequests": "too many requests at once; they are tried again with backoff",
    "RequestLimitExceeded": "too many requests at once; they are tried again with backoff",
    "BandwidthLimitExceeded": "too much data at once; it is tried again with backoff",
    "RequestTimeout": "the request took too long to arrive",
    "OperationAborted": "another change of the same object is under way",
    "ConditionalRequestConflict": "another change of the same object is under way",
    "InsufficientStorage": "its disk is full: make room, or lower offload_retention",
    "XMinioStorageFull": "its disk is full: make room, or lower offload_retention",
    "QuotaExceeded": "its quota is used up: make room, or lower offload_retention",
}
# Codes of lasting refusals, and what to do.
_LASTING = {
    "NoSuchBucket": "the bucket doesn't exist: create it, or correct the store's URL",
    "AccessDenied": "access is denied: the credentials need s3:GetObject, s3:PutObject, "
    "s3:DeleteObject, and s3:ListBucket on the bucket and prefix",
    "AllAccessDisabled": "all access to the bucket is disabled",
    "InvalidAccessKeyId": "it doesn't know the access key: check the credentials",
    "SignatureDoesNotMatch": "the signature is wrong: check the secret key, and the region",
    "ExpiredToken": "the session's token has expired: renew the credentials",
    "InvalidToken": "the session's token is wrong: renew the credentials",
    "TokenRefreshRequired": "the session's token must be renewed",
    "AuthorizationHeaderMalformed": "the region is wrong: set region=… in the store's URL",
    "PermanentRedirect": "the bucket is elsewhere: set region=… or endpoint_url=…",
    "IllegalLocationConstraintException": "the bucket is in another region: set region=…",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it (NTP)",
    "KMS.DisabledException": "the KMS key is disabled",
    "NotImplemented": "the server doesn't support this kind of request",
    "InvalidBucketName": "the bucket's name is invalid: correct the store's URL",
    "EntityTooLarge": "the blob is too large for one request: set chunk_size=… in the store's URL",
}  # fmt: skip
_BY_STATUS = {301: "PermanentRedirect", 413: "EntityTooLarge", 501: "NotImplemented"}


@contextmanager
def driver_errors(url: str) -> Iterator[None]:
    """Convert errors of boto3 and its libraries in this block to a StoreError about *url*."""
    try:
        yield
    except _RAISED as exc:
        raise translate(exc, url) from exc


def translate(exc: Exception, url: str) -> StoreError:
    """Return the StoreError for one of boto3's errors."""
    if isinstance(exc, driver.ClientError):
        return _refusal(exc, url)
    said = " ".join(str(exc).split())[:500] or type(exc).__name__
    if isinstance(exc, driver.NoCredentialsError | driver.PartialCredentialsError):
        return StoreError(
            f"{url}: no credentials were found ({said}): boto3 looks in the environment "
            "(AWS_ACCESS_KEY_ID), in profiles (profile=…), and for the machine's role",
            store=url,
        )
    if isinstance(exc, driver.ProfileNotFound | driver.UnknownCredentialError):
        return StoreError(f"{url}: {said}: check profile=… and AWS_CONFIG_FILE", store=url)
    if isinstance(exc, driver.SSOError | driver.UnauthorizedSSOTokenError):
        return StoreError(f"{url}: {said}: log in again (aws sso login)", store=url)
    if isinstance(exc, driver.NoRegionError):
        return StoreError(f"{url}: no region is known: set region=… in the store's URL", store=url)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return StoreError(
            f"{url} has a certificate that isn't trusted ({said}): check ssl_ca_certs=…",
            store=url,
        )
    if isinstance(exc, driver.ParamValidationError | ResponseParserError):
        return StoreError(
            f"{url} doesn't respond like S3 ({said}): check endpoint_url=…", store=url
        )
    if isinstance(exc, driver.IncompleteReadError | driver.ResponseStreamingError):
        return StoreUnavailable(f"{url} sent an incomplete response ({said})", store=url)
    if isinstance(exc, driver.ReadTimeoutError):
        return StoreUnavailable(
            f"{url} is too slow ({said}): check the network, or raise read_timeout=…", store=url
        )
    return StoreUnavailable(
        f"{url} is unavailable ({said}): "
        "check endpoint_url=…, and that it can be reached from here",
        store=url,
    )


def check_answer(response: Mapping[str, Any], url: str) -> None:
    """Raise StoreError if the response is a web page, whose 404 says nothing about a blob."""
    about = response.get("ResponseMetadata", {})
    status = about.get("HTTPStatusCode", 0)
    is_page = about.get("HTTPHeaders", {}).get("content-type", "").startswith("text/html")
    # A proxy in front of S3 also sends a web page if S3 is unavailable or a blob is too large.
    if is_page and status not in (408, 413, 429) and (status < 500 or status == 501):
        raise StoreError(
            f"{url} doesn't respond like S3 ({status}, a web page): check endpoint_url=…",
            store=url,
        )


def status_of(exc: driver.ClientError) -> int:
    status: int = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def server_time(response: Mapping[str, Any]) -> float | None:
    """Return the date of a response in seconds since 1970; None if it has none."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None


def _refusal(exc: driver.ClientError, url: str) -> StoreError:
    error = exc.response.get("Error", {})
    status = status_of(exc)
    code = str(error.get("Code", ""))
    what = f"{exc.operation_name}: {code} {error.get('Message', '')}".strip()[:500]
    if code in _TEMPORARY or (code.isdigit() and status in (408, 429)):
        meaning = _TEMPORARY.get(code, "too many requests at once")
        return StoreUnavailable(
            f"{url} temporarily refuses requests: {meaning} ({what})", store=url
        )
    meaning = _LASTING.get(code) or _LASTING.get(_BY_STATUS.get(status, ""), "")
    if not meaning and status == 403:  # the response to HEAD has no body
        dated = server_time(exc.response)
        if dated is not None and abs(dated - time.time()) > _SKEWED:
            code = "RequestTimeTooSkewed"
            meaning = f"this machine's clock is {time.time() - dated:+.0f} s off: set it (NTP)"
        else:
            code = "AccessDenied"
            meaning = (
                f"{_LASTING[code]} (without s3:ListBucket, it also denies access to every missing "
                "blob); check the secret key, too"
            )
    if meaning:
        return StoreError(f"{url}: {meaning} ({what})", store=url)
    if status >= 500 or status in (408, 429):
        return StoreUnavailable(f"{url} fails temporarily ({status} {what})", store=url)
    return StoreError(f"{url} refuses: {status} {what}", store=url)
