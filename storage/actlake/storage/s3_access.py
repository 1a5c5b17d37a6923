"""Which bucket, at which server, as whom: the settings that every AWS tool reads.

    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN   keys
    AWS_PROFILE, ~/.aws, web identity, container, instance        the chain of botocore
    AWS_SKIP_SIGNATURE=true                                       public buckets, without keys
    AWS_REGION, AWS_DEFAULT_REGION                                us-east-1 where none is set
    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL                         a server that is not Amazon's
    AWS_ALLOW_HTTP=true                                           HTTP beyond this machine

Nothing of this is ever part of a URL, a store or a message. ``obstore`` and ``botocore`` come
with the extra ``s3`` and are imported when a bucket is opened.
"""

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from actlake.storage.errors import StoreError, StoreNotReadable, missing_extra

if TYPE_CHECKING:
    from obstore.store import S3Store

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,253}[a-z0-9]")
# Keys that say no end of their life are asked for again after this long.
_ASK_AGAIN = timedelta(minutes=15)
_NO_TIMEOUT = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket and the keys below a prefix in it."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty: the whole bucket."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @classmethod
    def parse(cls, url: str) -> "S3Place":
        """Read ``s3://bucket/prefix``.

        Raises
        ------
        StoreError
            It is no such URL, or holds credentials.
        """
        rest = url.partition("://")[2]
        bucket, _, prefix = rest.partition("/")
        if "@" in bucket or "?" in rest:  # not repeated: it may be a secret
            raise StoreError(
                "An s3:// URL holds a bucket and a prefix, and neither credentials nor options\n"
                "hint: s3://bucket/prefix; credentials come from the environment, a profile "
                "(AWS_PROFILE) or the machine's role, the server from AWS_ENDPOINT_URL"
            )
        segments = prefix.strip("/").split("/") if prefix.strip("/") else []
        if not _BUCKET.fullmatch(bucket) or any(s in ("", ".", "..") for s in segments):
            raise StoreError(
                f"{url} is no place in a bucket\nhint: s3://bucket/prefix, such as "
                "s3://my-activations/gemma"
            )
        return cls(bucket, "/".join(segments))


def endpoint() -> str | None:
    """The server that the environment or the profile names; None: Amazon's."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        if url := os.environ.get(name):
            return url
    if _has_keys() or not os.environ.get("AWS_PROFILE"):
        return None
    configured: str | None = _session().get_scoped_config().get("endpoint_url")
    return configured


def server() -> str:
    """The server in words, for messages."""
    return endpoint() or "Amazon S3"


def open_client(place: S3Place, *, timeout_s: float, attempts: int = 1) -> "S3Store":
    """A client of what lies at a place, for requests within `Attempts`.

    Parameters
    ----------
    place
        Where its keys lie.
    timeout_s
        How long the server may say nothing: before its answer, or between two bytes of it. While
        it is sent a body it says nothing.
    attempts
        How many obstore makes itself, where nobody else does.

    Raises
    ------
    StoreError
        The server would be spoken to in clear over a network.
    StoreNotReadable
        There are no credentials.
    MissingExtra
        The extra ``s3`` is not installed.
    """
    from obstore.store import S3Store

    url = endpoint()
    config: dict[str, Any] = {} if url is None else {"endpoint": url}
    if region := _region():
        config["region"] = region
    return S3Store(
        place.bucket,
        prefix=place.prefix or None,
        client_options={
            "allow_http": url is not None and _may_be_clear(url),
            "read_timeout": timedelta(seconds=timeout_s),
            # Of a whole request, however steadily its answer comes; obstore's own are 30 s.
            "timeout": _NO_TIMEOUT,
        },
        # The server compares it with what came. A signature needs the same hash: it costs no more.
        checksum_algorithm="sha256",
        retry_config={"max_retries": attempts - 1},
        credential_provider=_credentials(place),
        **config,
    )


def _may_be_clear(url: str) -> bool:
    """Whether the server is spoken to over HTTP; refused where others could listen."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return False
    if parts.scheme != "http" or not parts.hostname:
        raise StoreError(
            "AWS_ENDPOINT_URL is no http:// or https:// URL\nhint: such as https://minio.example.org"
        )
    if not _is_loopback(parts.hostname) and not _is_set("AWS_ALLOW_HTTP"):
        raise StoreError(
            f"The server {parts.hostname} would be spoken to over HTTP, for all to read\n"
            "hint: give an https:// endpoint, or set AWS_ALLOW_HTTP=true on a network you trust"
        )
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _region() -> str | None:
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return region
    if _has_keys() or _is_set("AWS_SKIP_SIGNATURE"):
        return None
    configured: str | None = _session().get_config_variable("region")
    return configured


def _credentials(place: S3Place) -> Callable[[], Any] | None:
    """What gives keys when they are needed; None: obstore finds them in the environment."""
    if _has_keys() or _is_set("AWS_SKIP_SIGNATURE"):
        return None
    found = _session().get_credentials()
    if found is None:
        raise StoreNotReadable(
            f"There are no credentials for {place} ({server()})\n"
            "hint: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where "
            "a role gives them; for a public bucket set AWS_SKIP_SIGNATURE=true"
        )

    def current() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()  # asks for new ones when they are about to end
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _ASK_AGAIN,
        }

    return current


@cache
def _session() -> Any:
    """Botocore's: profiles, single sign-on, web identity, containers, instances."""
    try:
        from botocore.session import Session
    except ModuleNotFoundError as error:
        raise missing_extra(
            "Finding credentials in profiles and roles", package="botocore", extra="s3"
        ) from error
    return Session()


def forget_credentials() -> None:
    """Have profiles, roles and files of keys looked at anew by the next client that is opened."""
    _session.cache_clear()


def _has_keys() -> bool:
    return bool(os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
