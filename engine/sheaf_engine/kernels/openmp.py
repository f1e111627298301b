"""Run compiled code on torch's own OpenMP threads.

A second pool of threads beside torch's (numba's, say) would make both slow: each spins while the other works. So the
functions here find the OpenMP runtime that torch has already loaded, never load one, and enter it through the entry
point that every GCC-compatible runtime has (GNU libgomp, LLVM libomp, Intel libiomp5). Without one, the caller's thread
does all the work.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

RTLD_NOLOAD = 4


def _candidates() -> list[str | None]:
    package = Path(torch.__file__).parent
    folders = (package / "lib", package.parent / "torch.libs")
    return [None, *(str(path) for folder in folders for path in sorted(folder.glob("lib*omp*.so*")))]


@cache
def _parallel() -> Any:
    """``GOMP_parallel`` of the loaded runtime: preloaded ones first, as for torch; None if there is none."""
    for name in _candidates():
        try:
            function = ctypes.CDLL(name, mode=RTLD_NOLOAD if name else ctypes.DEFAULT_MODE).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


def threads() -> int:
    """How many threads ``run`` uses at most: as many as torch."""
    return torch.get_num_threads() if _parallel() else 1


def run(function: Any, address: int, workers: int) -> None:
    """Call a numba ``cfunc`` of one int64 with ``address`` on ``workers`` threads at once, and wait for all of them."""
    parallel = _parallel()
    if workers < 2 or parallel is None:
        function.ctypes(address)
    else:
        parallel(function.address, address, workers, 0)
