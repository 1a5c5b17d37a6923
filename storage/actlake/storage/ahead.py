"""Many slow calls at once: threads for requests, and a map that runs ahead.

A forked process has none of its parent's threads, and would wait for ever for what they are asked.
So it begins with pools of its own, and what holds threads refuses it (`check_threads_are_here`).
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from actlake.storage.errors import InvalidBatches

# Of one process. Sixteen chunks of 2 MiB under way hide 30 ms of latency at 1 GB/s.
REQUESTS_AT_ONCE = 16
FILES_AT_ONCE = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int
) -> Iterator[Result]:
    """``map(function, items)``, in order, with up to `threads` calls under way.

    At most twice as many results are kept. With one thread or none it is `map`, nothing ahead.
    """
    if threads <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="actlake-ahead") as executor:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(executor.submit(function, item))
                if len(under_way) >= 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


@cache
def request_threads() -> ThreadPoolExecutor:
    """Threads of one request each; a task in them must not wait for another."""
    return ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="actlake-requests")


@cache
def file_threads() -> ThreadPoolExecutor:
    """Threads of one file each; a task in them may wait for `request_threads`."""
    return ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="actlake-files")


os.register_at_fork(after_in_child=request_threads.cache_clear)
os.register_at_fork(after_in_child=file_threads.cache_clear)


def check_threads_are_here(made_in: int) -> None:
    """Refuse batches that are read ahead by threads of another process.

    Parameters
    ----------
    made_in
        Number of the process that made the batches and their threads.

    Raises
    ------
    InvalidBatches
        This is a fork of it: the threads stayed behind.
    """
    if os.getpid() != made_in:
        raise InvalidBatches(
            "These batches were made in another process, and the threads that read them ahead "
            "stayed there when this one was forked\n"
            "hint: make the batches in the process that reads them, as ActivationDataset does in "
            "the workers of a DataLoader"
        )
