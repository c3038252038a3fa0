"""Compiled numba kernels on disk, for as long as what they are made of stays as it was.

numba asks whether a kernel's own file has changed. But kernels call functions and take constants of other files, which
lie in this folder or in the kernel's own, so what it compares gets to hold the sources of both.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Any

_SHARED = Path(__file__).parent


def watch_shared_sources(kernel: Any) -> Any:
    """Compile `kernel`, a cached numba dispatcher, again when a source beside it or in here has changed; return it."""
    with contextlib.suppress(AttributeError):  # not compiled at all, or a numba that keeps its cache otherwise
        file, own = kernel._cache._cache_file, Path(kernel.py_func.__code__.co_filename).parent
        file._source_stamp = (file._source_stamp, _sources(_SHARED), _sources(own))
    return kernel


@functools.cache
def _sources(folder: Path) -> str:
    """A digest of the Python sources in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
