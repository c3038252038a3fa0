"""Renames that never lose what was there: into a free place, or as an exchange of two things at once.

Linux does both in one step (`renameat2`). Elsewhere, and on the few filesystems without it, the fallback takes more
than one step: a free place is checked and then renamed into, and a folder is replaced by moving the old one aside under
a name that says where it belongs. A crash between the two steps leaves nothing at the place and the old folder, whole,
beside it; the next write there puts it back (`drafts.clear_leftovers`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from pathlib import Path

_NO_REPLACE, _EXCHANGE = 1, 2
_AT_FDCWD = -100
_SYSCALL = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "ppc64le": 357, "s390x": 347}
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def rename_into_free(source: Path, target: Path) -> None:
    """Rename `source` to `target`, where nothing may be.

    Raises:
        FileExistsError: There is something.
    """
    if not _renameat2(source, target, _NO_REPLACE):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        os.rename(source, target)


def exchange(one: Path, other: Path) -> bool:
    """Let two files or folders change places in one step. Returns False where the system cannot."""
    return _renameat2(one, other, _EXCHANGE)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Call renameat2; returns False where there is no such call for this filesystem."""
    number = _SYSCALL.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    from_, to = (ctypes.c_char_p(os.fsencode(path)) for path in (source, target))
    at = ctypes.c_long(_AT_FDCWD)
    if syscall(ctypes.c_long(number), at, from_, at, to, ctypes.c_ulong(flags)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))
