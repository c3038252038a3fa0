"""The delta file: plain safetensors with compressed frames, lossless, both ways, read and written in bounded memory.

docs/format.md has it byte by byte.
"""

from __future__ import annotations

from rlforget.delta.file.container import FORMAT, VERSION
from rlforget.delta.file.memory import load, read, save
from rlforget.delta.file.patch import Patch
from rlforget.delta.file.reader import DeltaFile
from rlforget.delta.file.table import Entry, FileEntry, WholeEntry
from rlforget.delta.file.writer import DeltaWriter, Side, new_delta_file

__all__ = [
    "FORMAT",
    "VERSION",
    "DeltaFile",
    "DeltaWriter",
    "Entry",
    "FileEntry",
    "Patch",
    "Side",
    "WholeEntry",
    "load",
    "new_delta_file",
    "read",
    "save",
]
