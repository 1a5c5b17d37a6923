"""The compute threads of a process: one number for the pools of all its libraries.

    with compute_threads(2):
        ...                      # torch, NumPy's BLAS, OpenMP and Arrow work in two threads

Torch, the BLAS that NumPy calls, OpenMP and Arrow have a pool each, as large as the machine unless
told otherwise. Besides the load, the last bits depend on it: with some kernels a matrix product
in two threads is not that in one. So what a job calls its ``threads`` is the size of every
pool, in its own process and in its workers.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
"""Every name by which libraries know it; Arrow goes by OpenMP's."""


@contextmanager
def compute_threads(threads: int) -> Iterator[None]:
    """Let this process compute in `threads`, and afterwards in as many as before.

    This holds for Python's threads that begin meanwhile, too.
    """
    import pyarrow as pa
    import torch
    from threadpoolctl import threadpool_limits

    torch_before, arrow_before = torch.get_num_threads(), pa.cpu_count()
    # OpenMP keeps a number for each thread of Python; torch hands its own on to those that begin.
    with threadpool_limits(threads):
        torch.set_num_threads(threads)
        pa.set_cpu_count(threads)
        try:
            yield
        finally:
            torch.set_num_threads(torch_before)
            pa.set_cpu_count(arrow_before)


def thread_variables(threads: int) -> dict[str, str]:
    """Environment of a worker that is to compute in `threads`, read by libraries it loads."""
    # Without the last, MKL takes no more than the machine has cores, and torch follows it.
    return dict.fromkeys(_VARIABLES, str(threads)) | {"MKL_DYNAMIC": "FALSE"}


def set_compute_threads(threads: int) -> None:
    """Let this process, which is a worker, compute in `threads` from now on.

    What is loaded later goes by `thread_variables`. They are not enough by themselves: OpenBLAS
    takes no more from them than the machine has cores.
    """
    import numpy  # noqa: F401  # its BLAS must be there to be set
    import pyarrow as pa
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)
    pa.set_cpu_count(threads)
    if "torch" in sys.modules:  # a second and 200 MB, which not every worker needs
        sys.modules["torch"].set_num_threads(threads)
