"""Which bucket, at which server, as whom; and what is refused in words."""

import subprocess
import sys
import time

import pytest
from botocore.session import Session

from actlake.storage import attempts, open_store, s3_access
from actlake.storage.errors import (
    MissingExtra,
    StoreError,
    StoreNotFound,
    StoreNotReadable,
    StoreNotWritable,
    StoreUnreachable,
)
from actlake.storage.lease import Lease
from actlake.storage.location import locate


@pytest.fixture(autouse=True)
def fresh_session():
    s3_access._session.cache_clear()


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///prefix", "s3://UPPER/x", "s3://ab/x", "s3://bucket/a//b", "s3://bucket/../x"],
)
def test_what_is_no_place_in_a_bucket_is_refused(url, bucket):
    with pytest.raises(StoreError, match="no place in a bucket"):
        locate(url)


def test_credentials_in_a_url_are_refused_and_not_repeated(bucket):
    with pytest.raises(StoreError, match="neither credentials") as refused:
        locate("s3://AKIA123:hunter2@bucket/prefix")

    assert "hunter2" not in str(refused.value)
    assert "AKIA123" not in str(refused.value)


def test_the_url_of_a_location_says_the_place_and_nothing_else(bucket):
    assert locate(f"{bucket.url}/a b/").url == f"{bucket.url}/a b"
    assert repr(locate(bucket.url)) == f"S3Folder('{bucket.url}')"


def test_importing_the_store_imports_neither_obstore_nor_botocore():
    code = (
        "import sys, actlake.storage; "
        "print([m for m in ('obstore', 'botocore', 'boto3') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_without_the_extra_the_hint_names_it(bucket, monkeypatch):
    monkeypatch.setitem(sys.modules, "actlake.storage.object_store", None)

    with pytest.raises(MissingExtra, match=r"hint: pip install \"actlake\[s3\]\""):
        open_store(bucket.url)


def test_http_is_spoken_on_this_machine_only(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.example.org:9000")

    with pytest.raises(StoreError, match=r"minio\.example\.org would be spoken to over HTTP"):
        locate(bucket.url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    locate(bucket.url)


def test_an_endpoint_that_is_no_url_is_refused(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")

    with pytest.raises(StoreError, match="no http:// or https:// URL"):
        locate(bucket.url)


def test_without_credentials_the_ways_to_give_them_are_named_at_once(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    began = time.monotonic()

    with pytest.raises(StoreNotReadable, match=r"no credentials.*\nhint: set AWS_ACCESS_KEY_ID"):
        open_store(bucket.url)

    assert time.monotonic() - began < 10


def test_credentials_and_region_come_from_a_profile(bucket, weather, monkeypatch, tmp_path):
    file = tmp_path / "credentials"
    file.write_text(
        "[team]\naws_access_key_id = profile-key\naws_secret_access_key = profile-secret\n"
        "region = eu-north-1\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "team")

    locate(bucket.url).write("key", [b"x"])

    assert "Credential=profile-key/" in weather.seen[0].headers["authorization"]
    assert "/eu-north-1/s3/" in weather.seen[0].headers["authorization"]


def test_a_public_bucket_is_read_without_signing(bucket, weather, monkeypatch):
    locate(bucket.url).write("key", [b"x"])
    client = Session().create_client("s3", endpoint_url=bucket.server)
    client.put_object_acl(Bucket=bucket.name, Key="key", ACL="public-read")
    client.close()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")

    assert locate(bucket.url).read("key") == b"x"
    assert "authorization" not in weather.seen[-1].headers


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(StoreNotReadable, match="There is no bucket for s3://no-such-bucket/x"):
        open_store("s3://no-such-bucket/x")
    with pytest.raises(StoreNotReadable, match="There is no bucket"):
        Lease.acquire(locate("s3://no-such-bucket/x"))


def test_a_prefix_without_a_store_is_not_found(bucket):
    with pytest.raises(StoreNotFound, match="no activation store at"):
        open_store(f"{bucket.url}/nothing")


def test_no_permission_says_which_rights_and_shows_nothing_of_the_answer(bucket, weather):
    weather.add("answer", "GET", status=403, code="AccessDenied", times=9)
    weather.add("answer", "PUT", status=403, code="AccessDenied")

    with pytest.raises(StoreNotReadable, match=r"AccessDenied\nhint: .*s3:GetObject$") as refused:
        open_store(bucket.url)
    with pytest.raises(StoreNotWritable, match="s3:PutObject"):
        locate(bucket.url).write("key", [b"x"])

    assert "key-of-the-tests" not in str(refused.value)
    assert refused.value.__suppress_context__
    assert weather.count("GET") == 1, "a refusal is not asked for again"


def test_a_server_that_is_not_there_is_given_up_after_seconds(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(attempts, "GIVE_UP_FIRST_S", 0.5)
    began = time.monotonic()

    with pytest.raises(StoreUnreachable, match=r"does not answer: GET store\.json.*no connection"):
        open_store(bucket.url)

    assert time.monotonic() - began < 5
