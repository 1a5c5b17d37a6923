"""What a job will want to reach: a store, a model, W&B."""

import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from actlake.jobs.doctor.check import Finding, refused
from actlake.jobs.doctor.machine import existing
from actlake.platform.tracking.tracker import TrackingError
from actlake.platform.tracking.wandb_runs import wandb_state
from actlake.storage import ActivationStore, ActlakeError, open_store
from actlake.storage.errors import KeyTaken, StoreNotFound
from actlake.storage.fence import STAGING, Token
from actlake.storage.location import LocalFolder, Location, locate
from actlake.storage.summary import human_bytes

_PROBE_BYTES = 2**20


def check_read(url: str) -> Iterator[Finding]:
    """Open a store that a job reads and does not write."""
    store = open_store(url)
    yield Finding("store access", "ok", f"{url} can be read")
    yield _holds(store)


def check_store(url: str) -> Iterator[Finding]:
    """Write, read, replace, and create what exists already, beside a store or where it will be."""
    location, key = _probe_place(url)
    content = secrets.token_bytes(_PROBE_BYTES)
    writer = location.writer(Token(0, secrets.token_hex(8)))
    try:
        writer.begin()
        began = time.monotonic()
        writer.create(key, [content])
        wrote = time.monotonic()
        same = location.read(key) == content
        seconds = (wrote - began, time.monotonic() - wrote)
        try:
            writer.create(key, [b"again"])
            exclusive = False
        except KeyTaken:
            exclusive = True
    finally:
        with suppress(ActlakeError, OSError):  # what is wrong was said by what came before
            writer.remove([key])
            writer.end()
            if isinstance(location, LocalFolder):
                location.root.rmdir()
    rates = f"1 MiB written in {seconds[0] * 1e3:.0f} ms, read in {seconds[1] * 1e3:.0f} ms"
    if not same:
        yield Finding("store access", "fail", f"{url} gives back other bytes than were written",
                      "do not use this file system or bucket")  # fmt: skip
    elif not exclusive:
        yield Finding(
            "store access", "fail",
            f"{url} lets two writers create one file, so two drivers could write to one store",
            "use a file system with hard links, or a bucket with conditional writes",
        )  # fmt: skip
    else:
        yield Finding("store access", "ok", f"{url}: {rates}; a file is created by one only")
    yield from _what_is_there(url)


def _probe_place(url: str) -> tuple[Location, str]:
    """Where to try: in a bucket, among a store's unfinished files; else a folder beside it."""
    location, name = locate(url), f"doctor-{secrets.token_hex(6)}"
    if not isinstance(location, LocalFolder):
        return location, f"{STAGING}/{name}"
    above = existing(Path(location.url).parent)
    return LocalFolder(above / f".actlake-{name}"), name


def _what_is_there(url: str) -> Iterator[Finding]:
    try:
        store = open_store(url)
    except StoreNotFound:
        yield Finding("store", "ok", f"there is none at {url} yet")
        return
    yield _holds(store)


def _holds(store: ActivationStore) -> Finding:
    covered = [f"{site} {store.coverage(site)}" for site in store.sites]
    return Finding(
        "store", "ok", f"{store.schema.num_rows:,} rows at {store.url}; {', '.join(covered)}"
    )


def check_model(name: str, revision: str = "") -> Iterator[Finding]:
    """A folder with its files, or a repository that may be read; downloads no weights."""
    from actlake.platform.models.locate import locate as locate_model

    if name.endswith(".gguf"):  # locating one would convert it
        path = Path(name)
        if path.is_file():
            size = human_bytes(path.stat().st_size)
            yield Finding("model access", "ok", f"{name} is a file of {size}")
        else:
            yield Finding("model access", "fail", f"there is no file {name}", "check the path")
        return
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every retry, twice
    try:
        located = locate_model(name, revision)
    except ActlakeError as error:
        yield refused("model access", error)
        return
    where = f"on the hub at {located.commit}" if located.commit else f"in {located.location}"
    yield Finding("model access", "ok", f"{name} is {where}")


def check_wandb(asked: str = "auto") -> Iterator[Finding]:
    """Whether runs will be online; looks for a login and asks for none."""
    try:
        mode, reason = wandb_state(asked)
    except TrackingError as error:
        yield refused("W&B", error)
        return
    if mode == "offline" and asked == "auto" and "says so" not in reason:
        hint = "wandb login; or leave it: runs are kept here and sent with `wandb sync`"
        yield Finding("W&B", "warn", f"offline: {reason}", hint)
    else:
        yield Finding("W&B", "ok", f"{mode}: {reason}")
