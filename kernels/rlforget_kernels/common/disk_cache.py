"""Compiled numba kernels on disk, for as long as what they are made of stays as it was.

numba asks whether a kernel's own file has changed. But kernels call one another across files, all of which lie in this
folder, so what it compares gets to hold this folder's sources too.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Any


@functools.cache
def shared_sources() -> str:
    """A digest of the sources in this folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def watch_shared_sources(kernel: Any) -> Any:
    """Compile `kernel`, a cached numba dispatcher, again when a source of this folder has changed; return it."""
    with contextlib.suppress(AttributeError):  # not compiled at all, or a numba that keeps its cache otherwise
        file = kernel._cache._cache_file
        file._source_stamp = (file._source_stamp, shared_sources())
    return kernel
