"""The compressed blocks of a delta file: zstd frames, which say how long they are and are believed up to a limit."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_local = threading.local()


class CompressionError(ValueError):
    """What is wrong with a compressed block."""


def compress(streams: Iterable[Bytes], *, effort: int = 0) -> bytes:
    """Return one zstd frame of several streams, each in blocks of its own and so with a code of its own.

    Args:
        streams: uint8 arrays, not all empty.
        effort: A level of zstd's, for bytes as they are in weights and text. 0: look for long repetitions only; in
            numbers that are as good as random, a short one costs more to describe than it saves.
    """
    import zstandard

    parts = [stream for stream in streams if stream.size]
    compressor = _compressor(effort).compressobj(size=sum(part.size for part in parts))
    found = []
    for part in parts:
        found += [compressor.compress(part.data), compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*found, compressor.flush()])


def _compressor(effort: int) -> Any:
    """This thread's compressor: making one costs as much as a small block."""
    import zstandard

    made: dict[int, Any] = _local.__dict__.setdefault("compressors", {})
    if effort not in made:
        if effort:
            parameters = zstandard.ZstdCompressionParameters.from_level(effort, write_checksum=False)
        else:
            parameters = zstandard.ZstdCompressionParameters(
                window_log=20,
                hash_log=14,
                chain_log=6,
                search_log=1,
                min_match=7,
                target_length=0,
                strategy=zstandard.STRATEGY_FAST,
                write_checksum=False,
            )
        made[effort] = zstandard.ZstdCompressor(compression_params=parameters)
    return made[effort]


def decompress(data: bytes, most: int) -> Bytes:
    """Return what a single zstd frame holds, read-only.

    Args:
        data: The frame and nothing else.
        most: How many bytes it may hold. Nothing is decompressed before that is checked.

    Raises:
        CompressionError: It is no such frame, does not say how much it holds, or holds more than `most`.
    """
    import zstandard

    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN or size > most:
            raise CompressionError(f"a block that unpacks to {size} bytes, where {most} is the most")
        # One call with all of the input and room for all of the output: no window is set up.
        content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CompressionError(str(error)) from error
    if len(content) != size:
        raise CompressionError(f"a block of {len(content)} bytes that should have been {size}")
    return np.frombuffer(content, np.uint8)
