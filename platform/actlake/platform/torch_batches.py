"""Batches as torch tensors, on any device: a thread reads, converts and copies ahead.

    batches = store.batches("resid_post.9", 4096, split="train", seed=0)
    for batch in TorchBatches(batches, device="cuda"):
        batch.acts                                   # (4096, 576) float32, on the device

`ActivationDataset` is the same for `torch.utils.data.DataLoader` and torchdata's
``StatefulDataLoader``.
"""

import os
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from actlake.storage import Site, open_store
from actlake.storage.ahead import check_threads_are_here
from actlake.storage.errors import InvalidBatches
from actlake.storage.reading.batches import Batch, Batches
from actlake.storage.reading.many import open_stores
from actlake.storage.recycled_memory import RecycledMemory


@dataclass(frozen=True, slots=True, eq=False)
class TorchBatch:
    """A `Batch` whose activations are tensors on a device; its rows stay in NumPy."""

    rows: np.ndarray[Any, Any]
    """(n,) int64 row numbers."""
    acts: Any
    """(n, dim) tensor, or a dict of them by `Site`."""
    epoch: int
    step: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, site: str | Site) -> Tensor:
        acts: Tensor = self.acts[Site.parse(site)]
        return acts

    def tensors(self) -> list[Tensor]:
        """The tensors of all sites."""
        return list(self.acts.values()) if isinstance(self.acts, Mapping) else [self.acts]

    def pin_memory(self) -> "TorchBatch":
        """The same in page-locked memory; ``DataLoader(pin_memory=True)`` asks for it."""
        if isinstance(self.acts, Mapping):
            pinned: Any = {site: values.pin_memory() for site, values in self.acts.items()}
        else:
            pinned = self.acts.pin_memory()
        return TorchBatch(self.rows, pinned, self.epoch, self.step)


class TorchBatches(Iterator[TorchBatch]):
    """Batches on a device, made ready in a thread while the last one is worked on.

    Batches that are read by `threads` of their own are turned into tensors there, all at once;
    others by one thread that is ahead.

    Parameters
    ----------
    batches
        Used up by this object from now on; its state is asked for here.
    device
        Where the tensors shall be.
    dtype
        Of the tensors; None: as stored. The conversion runs on the device, so that half as many
        bytes are copied to it.
    prefetch
        Batches that are ready ahead; 0: none, and no thread.
    pin
        Whether batches go through page-locked memory, from which a GPU copies while it
        computes; by default on CUDA devices.

    Raises
    ------
    InvalidBatches
        `prefetch` is negative.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = torch.float32,
        prefetch: int = 2,
        pin: bool | None = None,
    ) -> None:
        if prefetch < 0:
            raise InvalidBatches(f"prefetch must be 0 or more, and is {prefetch}")
        self.device = torch.device(device)
        pin = self.device.type == "cuda" if pin is None else pin
        to_device = _ToDevice(self.device, dtype, pin=pin)
        on_host = self.device.type == "cpu" and not pin
        self._batches = batches
        self._steps_done = batches.steps_done
        self._reader: _Reader | None = None
        if on_host or not prefetch:
            batches.finish_with(to_device)
        if prefetch and not (on_host and batches.reads_ahead):
            self._reader = _Reader(batches, None if on_host else to_device, prefetch)
            weakref.finalize(self, self._reader.stop)

    def __next__(self) -> TorchBatch:
        if self._reader is None:
            batch: TorchBatch = next(self._batches)  # type: ignore[assignment]  # finished
            self._steps_done = self._batches.steps_done
        else:
            batch, self._steps_done = self._reader.get()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where it is: after the batch given out last, whatever was read ahead."""
        return self._batches.state_dict(self._steps_done)

    def close(self) -> None:
        """Stop the threads; there are no more batches."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _ToDevice:
    """Turns a batch into tensors on a device; in any number of threads."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None, *, pin: bool) -> None:
        self.device = device
        self._dtype = dtype
        self._pin = pin
        self._memory = RecycledMemory()

    def __call__(self, batch: Batch) -> TorchBatch:
        if isinstance(batch.acts, Mapping):
            acts: Any = {site: self._moved(values) for site, values in batch.acts.items()}
        else:
            acts = self._moved(batch.acts)
        return TorchBatch(batch.rows, acts, batch.epoch, batch.step)

    def _moved(self, values: np.ndarray[Any, Any]) -> Tensor:
        tensor = as_tensor(values)
        dtype = self._dtype or tensor.dtype
        if self.device.type == "cpu" and not self._pin:
            return self._converted(tensor, dtype)
        if self._pin:
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=self._pin).to(dtype)

    def _converted(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """`tensor` as `dtype`, converted without torch's team of threads.

        A team waits for its slowest member: 0.1 ms for a batch on idle cores, 8 ms beside a
        training step that has them. In slices that torch gives to no team it is 0.5 ms, always.
        """
        if tensor.dtype == dtype:
            return tensor
        memory = self._memory.empty(tensor.numel() * dtype.itemsize)
        converted = torch.from_numpy(memory).view(dtype).view(tensor.shape)
        rows = max(1, _ONE_THREAD // max(1, tensor[:1].numel()))
        torch._foreach_copy_(torch.split(converted, rows), torch.split(tensor, rows))
        return converted


# torch converts fewer elements than 32,768 in the thread that asks (at::internal::GRAIN_SIZE).
_ONE_THREAD = 2**15


class _Reader:
    """The thread that is ahead; it holds no reference to the `TorchBatches` it works for.

    Parameters
    ----------
    convert
        Makes tensors of a batch; None: they are.
    """

    def __init__(self, batches: Batches, convert: _ToDevice | None, prefetch: int) -> None:
        self._ready: queue.Queue[Any] = queue.Queue(prefetch)
        self._stopped = threading.Event()
        self._made_in = os.getpid()
        self._batches = batches
        self._convert = convert
        self._thread = threading.Thread(target=self._run, name="actlake-torch", daemon=True)
        self._thread.start()

    def get(self) -> tuple[TorchBatch, int]:
        """The next batch, and how many steps are done after it."""
        check_threads_are_here(self._made_in)
        item = self._ready.get()
        if isinstance(item, BaseException):  # the end, or what went wrong
            self._ready.put(item)  # for whoever asks again
            raise item
        batch, steps_done, copied = item
        if copied is not None:
            copied.wait()  # the stream that works waits, not the host
            for tensor in batch.tensors():  # or its memory is used again too early
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return batch, steps_done

    def stop(self) -> None:
        """End the thread; what is ready is thrown away."""
        self._stopped.set()
        with suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            convert = self._convert
            stream = None if convert is None else _side_stream(convert.device)
            with torch.cuda.stream(stream):  # nothing, where there is none
                for batch in self._batches:
                    tensors = batch if convert is None else convert(batch)
                    if not self._put((tensors, self._batches.steps_done, _event(stream))):
                        return
            self._put(StopIteration())
        except BaseException as error:  # raised where the batch is asked for
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return True
        return False


def _side_stream(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event(stream: Any) -> Any:
    return None if stream is None else stream.record_event()


def as_tensor(values: np.ndarray[Any, Any]) -> Tensor:
    """The same memory as a tensor; bfloat16 too, which torch does not know from NumPy."""
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


class ActivationDataset(IterableDataset[TorchBatch]):
    """Batches of one or more stores for a ``DataLoader``, which must not batch them again.

        dataset = ActivationDataset("runs/smollm2", "resid_post.9", 4096, split="train")
        for batch in DataLoader(dataset, batch_size=None): ...

    Worker processes take turns on the same order of batches, so what the loader gives out does
    not depend on their number. One process with ``threads`` is usually faster; each worker has a
    pool of its own where the store cannot be mapped. With torchdata's ``StatefulDataLoader`` the
    position is part of the loader's ``state_dict``.

    Parameters
    ----------
    stores
        Path or URL of a store, or several.
    sites, rows_per_batch, options
        As for `ActivationStore.batches`.
    dtype
        Of the tensors; None: as stored.
    """

    def __init__(
        self,
        stores: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        sites: str | Site | Sequence[str | Site],
        rows_per_batch: int,
        *,
        dtype: torch.dtype | None = torch.float32,
        **options: Any,
    ) -> None:
        self._stores = [stores] if isinstance(stores, str | os.PathLike) else list(stores)
        self._sites = sites
        self._rows_per_batch = rows_per_batch
        self._dtype = dtype
        self._options = options
        self._state: dict[str, Any] | None = options.pop("state", None)
        self._batches: Batches | None = None

    def __iter__(self) -> Iterator[TorchBatch]:
        worker = get_worker_info()
        stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._batches = self._open(stride)
        self._batches.finish_with(_ToDevice(torch.device("cpu"), self._dtype, pin=False))
        self._state = None
        return self._batches  # type: ignore[return-value]  # finished

    def state_dict(self) -> dict[str, Any] | None:
        """Where the iterator that was made last is; None before the first."""
        return self._state if self._batches is None else self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Make the next iterator go on after `state`."""
        self._state, self._batches = state, None

    def _open(self, stride: tuple[int, int]) -> Batches:
        options = {"stride": stride, **self._options, "state": self._state}
        if len(self._stores) == 1:
            return open_store(self._stores[0]).batches(self._sites, self._rows_per_batch, **options)
        return open_stores(self._stores).batches(self._sites, self._rows_per_batch, **options)
