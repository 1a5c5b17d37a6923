"""What networks and servers do costs time and nothing else; what cannot be mended is named."""

import logging
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from actlake.storage import (
    Lease,
    Site,
    attempts,
    lease,
    object_store,
    open_store,
    verify,
    write_unit,
)
from actlake.storage.errors import (
    KeyTaken,
    LeaseLost,
    StoreDamaged,
    StoreLocked,
    StoreNotWritable,
    StoreUnreachable,
)
from actlake.storage.fence import Token
from actlake.storage.location import locate

TOKEN = Token(1, "a1")

SITE = "resid_post.3"


def _starts(weather):
    """The first byte that each GET has asked for."""
    ranges = [seen.headers["range"] for seen in weather.seen if seen.method == "GET"]
    return [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in ranges]


@pytest.mark.parametrize("kind", ["answer", "reset", "truncate", "short", "slow"])
def test_a_read_that_fails_is_made_again_until_it_is_whole(kind, bucket, weather):
    location = locate(bucket.url)
    data = bytes(range(256)) * 4000
    location.write("key", [data])
    weather.add(kind, "GET", "key", times=3)

    assert location.read("key") == data
    assert weather.count("GET", "key") == (1 if kind == "slow" else 4)


@pytest.mark.parametrize("kind", ["stall", "silence"])
def test_a_read_that_stalls_is_made_again(kind, bucket, weather, monkeypatch):
    monkeypatch.setattr(object_store, "READ_TIMEOUT_S", 1.0)
    location = locate(bucket.url)
    location.write("key", [b"x" * 100_000])
    weather.add(kind, "GET", "key", times=2)

    assert location.read("key") == b"x" * 100_000
    assert weather.count("GET", "key") == 3


def test_a_slow_and_steady_server_is_listened_to_for_as_long_as_it_takes(
    bucket, weather, monkeypatch
):
    monkeypatch.setattr(object_store, "READ_TIMEOUT_S", 1.0)
    location = locate(bucket.url)
    data = bytes(range(256)) * 4000
    location.write("key", [data])
    weather.add("slow", "GET", "key", times=2)  # two seconds, a twentieth every tenth of a second

    assert location.read("key") == data
    assert bytes(location.read_range("key", 100, 900_000)[0]) == data[100:900_000]
    assert weather.count("GET", "key") == 2


@pytest.mark.parametrize("kind", ["stall", "truncate", "short"])
def test_an_answer_that_stops_midway_is_gone_on_with_from_there(kind, bucket, weather, monkeypatch):
    monkeypatch.setattr(object_store, "READ_TIMEOUT_S", 2.0 if kind == "stall" else 30.0)
    location = locate(bucket.url)
    data = random.Random(0).randbytes(2**22)
    location.write("key", [data])
    weather.add(kind, "GET", "key", times=3)  # a half, a quarter, an eighth

    assert location.read("key") == data
    starts = _starts(weather)
    assert len(starts) == 4
    for start, rest in zip(starts[1:], (2**21, 2**20, 2**19), strict=True):
        assert 0 <= 2**22 - rest - start < 3 * 2**16  # what of a step had come is asked for again


def test_what_has_stopped_midway_and_was_replaced_is_read_from_the_beginning(bucket, weather):
    location, other = locate(bucket.url), locate(bucket.url)
    location.write("key", [b"1" * 2**20])
    weather.add("truncate", "GET", "key")

    def decide(seen):
        if seen.method == "GET" and weather.count("GET", "key") == 2:
            other.write("key", [b"2" * 2**20])

    weather.decide = decide

    assert location.read("key") == b"2" * 2**20
    assert [start > 0 for start in _starts(weather)] == [False, True, False]


def test_patience_does_not_end_while_more_and_more_comes(bucket, weather, monkeypatch):
    monkeypatch.setattr(object_store, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(attempts, "GIVE_UP_S", 1.2)
    location = locate(bucket.url)
    data = random.Random(0).randbytes(2**22)
    location.write("key", [data])
    weather.add("stall", "GET", "key", times=5)

    assert location.read("key") == data


@pytest.mark.slow
def test_an_answer_may_take_longer_than_obstore_gives_it_by_itself(bucket, weather, monkeypatch):
    monkeypatch.setattr(object_store, "READ_TIMEOUT_S", 5.0)
    location = locate(bucket.url)
    location.write("key", [bytes(2**20)])
    weather.add("slow", "GET", "key", step_s=1.6)  # 32 s; obstore's own limit is 30 s

    assert location.read("key") == bytes(2**20)
    assert weather.count("GET", "key") == 1


def test_no_request_asks_for_more_than_a_piece(bucket, weather, monkeypatch):
    monkeypatch.setattr(object_store, "_PIECE", 2**16)
    location = locate(bucket.url)
    data = random.Random(0).randbytes(10 * 2**16 + 7)
    location.write("key", [data])

    found, size = location.read_range("key", 5, len(data) - 1)

    assert bytes(found) == data[5:-1]
    assert size == len(data)
    assert location.read("key") == data
    asked = [seen.headers["range"] for seen in weather.seen if seen.method == "GET"]
    bounds = [one.removeprefix("bytes=").split("-") for one in asked]
    assert len(bounds) == 2 * 11
    assert all(int(last) - int(first) < 2**16 for first, last in bounds)


def test_a_range_is_of_one_version_also_where_it_is_replaced_meanwhile(
    bucket, weather, monkeypatch
):
    monkeypatch.setattr(object_store, "_PIECE", 2**16)
    location, other = locate(bucket.url), locate(bucket.url)
    location.write("key", [b"1" * 2**18])
    replaced = []

    def decide(seen):
        if seen.method == "GET" and not replaced and weather.count("GET", "key") == 2:
            replaced.append(True)
            other.write("key", [b"2" * 2**18])

    weather.decide = decide

    data, _ = location.read_range("key", 0, 2**18)

    assert replaced
    assert bytes(data) == b"2" * 2**18


@pytest.mark.parametrize("kind", ["answer", "answer after", "reset", "reset after"])
def test_a_write_that_fails_is_made_again(kind, bucket, weather):
    weather.add(kind, "PUT", "key", times=3)

    locate(bucket.url).write("key", [b"one"])

    assert locate(bucket.url).read("key") == b"one"
    assert weather.count("PUT", "key") == 4


@pytest.mark.parametrize(
    ("method", "write", "size"),
    [
        ("PUT", lambda location, tag: location.write("key", [b"three"]), 5),
        ("PUT", lambda location, tag: location.create("another", b"three"), 3),
        ("PUT", lambda location, tag: location.exchange("key", b"three", tag), 5),
        ("POST", lambda location, tag: location.delete(["key"]), None),
    ],
    ids=["write", "create", "exchange", "delete"],
)
def test_a_write_without_an_answer_is_made_again_soon(
    method, write, size, bucket, weather, monkeypatch
):
    monkeypatch.setattr(object_store, "WRITE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(attempts, "GIVE_UP_S", 0.5)  # shorter: once more in any case
    location = locate(bucket.url)
    tag = location.create("key", b"one")
    before = weather.count(method)
    weather.add("silence", method)

    write(location, tag)

    assert weather.count(method) == before + 2
    assert location.size("key") == size


@pytest.mark.parametrize("large", [False, True], ids=["one PUT", "parts"])
def test_a_large_body_has_the_time_that_a_slow_line_takes(large, bucket, weather, monkeypatch):
    monkeypatch.setattr(object_store, "WRITE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(object_store, "_SLOWEST", 2**18)  # a MiB takes four seconds
    monkeypatch.setattr(object_store, "_LARGEST_PUT", 2**20 - 1 if large else 2**20)
    data = random.Random(0).randbytes(2**20)
    weather.add("late", "PUT", "key", step_s=2.0)

    locate(bucket.url).write("key", [data])

    assert locate(bucket.url).read("key") == data
    assert weather.count("PUT", "key") == 1


@pytest.mark.parametrize("large", [False, True], ids=["one PUT", "parts"])
def test_what_was_spoilt_on_its_way_to_the_server_is_sent_again(
    large, bucket, weather, monkeypatch
):
    monkeypatch.setattr(object_store, "_LARGEST_PUT", 2**20)
    data = random.Random(0).randbytes(20 * 2**20 if large else 2**20)
    weather.add("spoil", "PUT", "key", times=2)

    locate(bucket.url).write("key", [data])

    assert locate(bucket.url).read("key") == data
    assert weather.faults[0].times == 0
    puts = [seen for seen in weather.seen if seen.method == "PUT"]
    assert all("x-amz-checksum-sha256" in seen.headers for seen in puts)


def test_every_kind_of_write_carries_a_checksum(bucket, weather):
    location = locate(bucket.url)

    tag = location.create("new", b"one")
    location.exchange("new", b"1", tag)
    location.write("other", [b"one"])

    puts = [seen for seen in weather.seen if seen.method == "PUT"]
    assert len(puts) == 3
    assert all("x-amz-checksum-sha256" in seen.headers for seen in puts)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_the_servers_plea_for_patience_is_heard(status, bucket, weather):
    weather.add("answer", status=status, code="SlowDown", times=4)

    locate(bucket.url).write("key", [b"one"])

    assert locate(bucket.url).read("key") == b"one"


@pytest.mark.parametrize(
    ("status", "code"), [(400, "RequestTimeout"), (409, "OperationAborted"), (400, "ExpiredToken")]
)
def test_what_will_pass_is_tried_again_whatever_number_it_comes_with(status, code, bucket, weather):
    location = locate(bucket.url)
    writer = location.writer(TOKEN)
    tag = writer.create("key", [b"1"])

    for write in (
        lambda: location.write("other", [b"one"]),
        lambda: writer.replace("key", [b"2"], seen=tag),
        lambda: writer.create("new", [b"one"]),
        lambda: writer.remove(["other"]),
    ):
        weather.add("answer", status=status, code=code)
        write()

    assert location.read("key") == b"2"
    assert location.read("new") == b"one"
    assert location.size("other") is None


def test_keys_that_have_expired_are_read_again_where_they_came_from(bucket, weather, monkeypatch):
    given = dict(bucket.environment)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = Path(given["AWS_SHARED_CREDENTIALS_FILE"])
    file.write_text("[default]\naws_access_key_id=old\naws_secret_access_key=old-secret\n")
    location = locate(bucket.url)
    location.write("key", [b"one"])

    weather.decide = lambda seen: (
        weather.fault("answer", status=400, code="ExpiredToken")
        if "Credential=old/" in seen.headers["authorization"]
        else None
    )
    file.write_text("[default]\naws_access_key_id=new\naws_secret_access_key=new-secret\n")

    assert location.read("key") == b"one"
    assert "Credential=new/" in weather.seen[-1].headers["authorization"]


def test_keys_that_stay_expired_are_refused_with_what_to_look_at(bucket, weather):
    weather.add("answer", "PUT", status=400, code="ExpiredToken", times=10**6)

    with pytest.raises(StoreNotWritable, match=r"ExpiredToken\nhint: look at the credentials"):
        locate(bucket.url).write("key", [b"one"])

    assert weather.count("PUT") == 2


def test_a_heartbeat_outlives_whatever_the_server_refuses(
    bucket, weather, monkeypatch, caplog, wait_for
):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    with Lease.acquire(locate(bucket.url)) as held:
        weather.add("answer", "PUT", "lease-", status=405, code="MethodNotAllowed", times=2)
        beat = held._beat
        wait_for(lambda: held._beat >= beat + 4, "the heart stands still", timeout_s=30)
        weather.add("answer", "PUT", "lease-", status=405, code="MethodNotAllowed", times=10**6)

    assert not weather.faults[0].times
    assert "The lease of s3://" in caplog.text
    assert "405 MethodNotAllowed" in caplog.text


def test_a_server_that_never_recovers_is_given_up_with_the_reason(bucket, weather, monkeypatch):
    monkeypatch.setattr(attempts, "GIVE_UP_S", 0.2)
    location = locate(bucket.url)
    location.write("key", [b"one"])
    weather.add("answer", "GET", status=503, code="SlowDown", times=10**6)

    with pytest.raises(
        StoreUnreachable,
        match=r"answers with errors: GET key .* failed \d+ times in .* the last time: 503 SlowDown",
    ):
        location.read("key")


@pytest.mark.parametrize("kind", ["answer", "truncate"])
def test_a_server_that_answers_at_all_is_asked_again_for_longer(kind, bucket, weather, monkeypatch):
    locate(bucket.url).write("key", [b"one" * 1000])
    monkeypatch.setattr(attempts, "GIVE_UP_FIRST_S", 0.0)
    weather.add(kind, "GET", "key", status=503, code="SlowDown", times=9)

    assert locate(bucket.url).read("key") == b"one" * 1000


def test_a_server_that_was_never_heard_of_is_given_up_soon(bucket, weather, monkeypatch):
    monkeypatch.setattr(attempts, "GIVE_UP_FIRST_S", 0.2)
    weather.add("reset", times=10**6)

    with pytest.raises(StoreUnreachable, match=r"does not answer: GET key .* no connection"):
        locate(bucket.url).read("key")


def test_attempts_are_logged_without_secrets(bucket, weather, caplog):
    weather.add("answer", "PUT", times=5)

    with caplog.at_level(logging.DEBUG, logger="actlake"):
        locate(bucket.url).write("key", [b"one"])

    assert "PUT key of s3://" in caplog.text
    assert "500 InternalError; attempt 2 in" in caplog.text
    assert "of-the-tests" not in caplog.text


@pytest.mark.parametrize("kind", ["answer after", "reset after"])
def test_a_creation_whose_answer_was_lost_counts_as_made(kind, bucket, weather):
    location = locate(bucket.url)
    weather.add(kind, "PUT", "/key", times=2)

    writer = location.writer(TOKEN)
    writer.create("key", [b"one"])

    assert location.read("key") == b"one"
    with pytest.raises(KeyTaken):
        writer.create("key", [b"one"])


def test_a_creation_that_meets_another_at_the_same_moment_is_made_again(bucket, weather):
    weather.add("answer", "PUT", "/key", status=409, code="ConditionalRequestConflict")

    locate(bucket.url).writer(TOKEN).create("key", [b"one"])

    assert locate(bucket.url).read("key") == b"one"


def test_a_replacement_whose_answer_was_lost_counts_as_made(bucket, weather):
    location = locate(bucket.url)
    writer = location.writer(TOKEN)
    seen = writer.create("key", [b"1"])
    weather.add("reset after", "PUT", "/key")

    seen = writer.replace("key", [b"2"], seen=seen)
    writer.replace("key", [b"3"], seen=seen)

    assert location.read("key") == b"3"


def test_of_many_that_create_a_key_exactly_one_wins(bucket):
    locations = [locate(bucket.url) for _ in range(6)]
    for location in locations:
        location.writer(TOKEN).begin()
    barrier = threading.Barrier(len(locations))

    def race(number):
        barrier.wait()
        try:
            locations[number].writer(TOKEN).create("key", [b"%d" % number])
        except KeyTaken:
            return None
        return number

    with ThreadPoolExecutor(len(locations)) as executor:
        winners = [n for n in executor.map(race, range(len(locations))) if n is not None]

    assert len(winners) == 1
    assert locations[0].read("key") == b"%d" % winners[0]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "no conditions"},
        {"kind": "answer", "status": 501, "code": "NotImplemented"},
    ],
    ids=["ignores them", "does not know them"],
)
def test_a_server_without_conditional_puts_is_refused_before_anything_is_written(
    fault, bucket, weather
):
    weather.decide = lambda seen: (
        weather.fault(**fault) if any(h.startswith("if-") for h in seen.headers) else None
    )

    with pytest.raises(StoreNotWritable, match="does not keep conditions on PUT"):
        Lease.acquire(locate(bucket.url))

    weather.decide = None
    assert list(locate(bucket.url).list("ledger")) == []


def test_a_store_is_made_and_read_whole_in_bad_weather(make_known, url, weather):
    known = make_known(rows=100)
    rng, lock = random.Random(0), threading.Lock()
    kinds = {
        "GET": ["answer", "reset", "truncate", "short"],
        "PUT": ["answer", "answer after", "reset", "reset after"],
        "POST": ["answer", "answer after", "reset"],
        "HEAD": ["answer", "reset"],
    }

    def decide(seen):
        with lock:
            return weather.fault(rng.choice(kinds[seen.method])) if rng.random() < 0.15 else None

    weather.decide = decide

    known.build(url)
    known.fill(url)

    store = open_store(url)
    report = verify(store)
    assert report.is_whole, report.problems
    for site, acts in known.acts.items():
        np.testing.assert_array_equal(store[site][:], acts)


@pytest.mark.parametrize("kind", ["answer", "truncate"])
def test_what_zarr_reads_itself_is_asked_for_again_too(kind, make_known, url, weather):
    known = make_known(rows=100)
    known.build(url)
    known.fill(url)
    store = open_store(url, path="zarr")
    weather.add(kind, "GET", "acts/resid_post.3/c.", status=503, code="SlowDown", times=2)

    np.testing.assert_array_equal(store[SITE][:], known.acts[Site(3)])
    assert weather.faults[0].times == 0


def test_a_byte_that_flips_on_its_way_is_read_again(make_known, url, weather):
    known = make_known(rows=40)
    known.build(url)
    known.fill(url)
    store = open_store(url)
    weather.add("flip", "GET", "acts/resid_post.3/c.0.0")

    np.testing.assert_array_equal(store[SITE][:24], known.acts[Site(3)][:24])


def test_verify_reads_again_what_was_spoilt_on_its_way(make_known, url, weather):
    known = make_known(rows=40)
    known.build(url)
    known.fill(url)
    store = open_store(url)
    weather.add("flip", "GET", "acts/resid_post.3/c.1.0")

    assert verify(store).is_whole
    assert weather.count("GET", "acts/resid_post.3/c.1.0") == 2


def test_a_driver_whose_lease_was_taken_over_can_commit_nothing_more(known, url, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.3)
    known.build(url)
    known.fill(url, skip=(3,))
    stale = Lease.acquire(locate(url))
    store = open_store(url)
    with pytest.raises(StoreLocked, match=f"Another driver is writing to {url.split('+')[0]}"):
        Lease.acquire(locate(url), give_up_s=5)
    rows = {site: acts[72:96] for site, acts in known.acts.items()}
    records = write_unit(store, 3, rows, token=stale.token)

    with Lease.acquire(locate(url), give_up_s=0):
        with pytest.raises(LeaseLost, match="taken over"):
            write_unit(store, 3, rows, token=stale.token)
        with pytest.raises(LeaseLost, match="Another driver has taken over"):
            stale.ledger.commit(records)
        with pytest.raises(KeyTaken):
            stale._write_beat()
        assert len(list(locate(url).list("ledger"))) > 0
        stale.release()
    assert 3 not in open_store(url).ledger.covered[Site(3)]


def test_what_is_damaged_in_the_bucket_is_named(known, url):
    known.build(url)
    known.fill(url)
    location = locate(url)
    key = "rows.zarr/acts/resid_post.3/c.4.0"
    data = bytearray(location.read(key))
    data[100] ^= 1
    location.write(key, [bytes(data)])
    cut = "rows.zarr/acts/resid_post.0/c.2.0"
    location.write(cut, [location.read(cut)[:-7]])
    location.writer(TOKEN).remove(["rows.zarr/acts/resid_post.0/c.6.0"])

    store = open_store(url)
    report = verify(store)

    damaged = [(damage.record.site, damage.record.unit) for damage in report.damaged]
    assert sorted(damaged) == [(Site(0), 2), (Site(0), 6), (Site(3), 4)]
    with pytest.raises(StoreDamaged, match=r"Chunk 0 of .*c\.4\.0 .* fails its CRC32C\nhint"):
        store[SITE].take([4 * 24])
    with pytest.raises(StoreDamaged, match=r"c\.2\.0 .* bytes; its rows need"):
        store["resid_post.0"].take([2 * 24])
    with pytest.raises(StoreDamaged, match=r"c\.6\.0 is missing from s3://"):
        store["resid_post.0"].take([6 * 24])
