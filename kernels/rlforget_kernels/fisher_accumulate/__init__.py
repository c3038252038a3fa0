"""`fisher_accumulate_`: add squared gradients to a diagonal Fisher, in place, without a temporary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlforget_kernels.common.checks import require_all_in_range, require_indices
from rlforget_kernels.common.dispatch import backend, operator


def _check(fisher: Tensor, gradient: Tensor, indices: Tensor | None) -> None:
    if fisher.dtype is not torch.float32:
        raise TypeError(f"fisher_accumulate_: fisher: expected float32; found {fisher.dtype}")
    if not gradient.dtype.is_floating_point:
        raise TypeError(f"fisher_accumulate_: gradient: expected a float dtype; found {gradient.dtype}")
    if indices is not None:
        require_indices("fisher_accumulate_", indices, fisher, "fisher")
    elif fisher.shape != gradient.shape:
        raise ValueError(
            f"fisher_accumulate_: expected fisher and gradient of equal shape; "
            f"found {tuple(fisher.shape)} and {tuple(gradient.shape)}"
        )


def _run(fishers: list[Tensor], gradients: list[Tensor], indices: Sequence[Tensor | None]) -> None:
    for arguments in zip(fishers, gradients, indices, strict=True):
        _check(*arguments)
    if not fishers:
        return
    kernels = backend(__name__, *fishers, *gradients, *indices)
    require_all_in_range("fisher_accumulate_", indices, [gradient.numel() for gradient in gradients])
    kernels.foreach_fisher_accumulate_(fishers, gradients, indices)


def _fake(fisher: Tensor, gradient: Tensor, indices: Tensor | None = None) -> None:
    _check(fisher, gradient, indices)


@operator(_fake, mutates=("fisher",))
def fisher_accumulate_(fisher: Tensor, gradient: Tensor, indices: Tensor | None = None) -> None:
    """Add the squared gradient of one sample to a Fisher diagonal: fisher += gradient², in place.

    fisher[j] += float32(gradient[j])², or with `indices` fisher[j] += float32(gradient.flatten()[indices[j]])². The
    square is rounded to float32, then the sum: no fused multiply-add, so every device gives the same bits. A NaN result
    is the one NaN 0x7FC00000.

    Args:
        fisher: float32; the shape of `gradient`, or with `indices` 1-D with one element an index.
        gradient: float32, bfloat16, float16, float64, float8_e4m3fn or float8_e5m2, any shape and strides.
        indices: int32 or int64, 1-D: flat (row-major) indices into `gradient`. None: all of it.

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that do not fit, or tensors on different devices.
        IndexError: for an index outside `gradient`; `fisher` is then untouched.

    Bytes moved, N coordinates of a dtype of b bytes: N · (b + 8) dense; with k indices of i bytes k · (i + b + 8).

    Source: the empirical Fisher diagonal is the mean over samples of the squared per-sample gradient (Kirkpatrick et
    al. 2017, arXiv:1612.00796); dividing by the number of samples is the caller's.
    """
    _run([fisher], [gradient], [indices])


def _everywhere(fishers: list[Tensor], gradients: list[Tensor], indices: list[Tensor | None]) -> list[Tensor | None]:
    """What stands for no indices.

    Raises:
        ValueError: for lists of different lengths.
    """
    indices = indices or [None] * len(fishers)
    if not len(fishers) == len(gradients) == len(indices):
        raise ValueError(
            "foreach_fisher_accumulate_: expected fishers, gradients and indices of one length; "
            f"found {[len(fishers), len(gradients), len(indices)]}"
        )
    return indices


def _fake_list(fishers: list[Tensor], gradients: list[Tensor], indices: list[Tensor | None]) -> None:
    for arguments in zip(fishers, gradients, _everywhere(fishers, gradients, indices), strict=True):
        _check(*arguments)


@operator(_fake_list, mutates=("fishers",))
def foreach_fisher_accumulate_(fishers: list[Tensor], gradients: list[Tensor], indices: list[Tensor | None]) -> None:
    """Do what `fisher_accumulate_` does for every Fisher of a list, in one launch group or one parallel region.

    Args:
        fishers: Tensors on one device, as for `fisher_accumulate_`.
        gradients: One a Fisher, of any mix of dtypes.
        indices: One a Fisher, or empty for all of every gradient.

    Raises:
        TypeError: as `fisher_accumulate_`.
        ValueError: as `fisher_accumulate_`, and for lists of different lengths.
        IndexError: as `fisher_accumulate_`. In every case nothing is written.

    Bytes moved: see `fisher_accumulate_`.
    """
    _run(fishers, gradients, _everywhere(fishers, gradients, indices))
