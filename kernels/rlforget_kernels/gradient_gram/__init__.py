"""`gradient_gram_`: inner products of the per-sample gradients of a weight, without the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget_kernels.common.checks import require_in_range
from rlforget_kernels.common.dispatch import backend, operator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOKENS = (torch.int64, torch.int32)
FORMS = ("auto", "pairwise", "explicit")


def _check_side(prefix: str, inputs: Tensor, gradients: Tensor, mask: Tensor | None) -> None:
    if gradients.dtype not in DTYPES:
        raise TypeError(
            f"gradient_gram_: {prefix}gradients: expected float32, bfloat16 or float16; found {gradients.dtype}"
        )
    if inputs.dtype not in (*DTYPES, *TOKENS):
        raise TypeError(
            f"gradient_gram_: {prefix}inputs: expected float32, bfloat16 or float16, or token ids in int32 or int64; "
            f"found {inputs.dtype}"
        )
    if gradients.dim() != 3:
        raise ValueError(
            f"gradient_gram_: {prefix}gradients: expected 3 dimensions, samples x positions x features; "
            f"found shape {tuple(gradients.shape)}"
        )
    if inputs.dim() != (2 if inputs.dtype in TOKENS else 3) or inputs.shape[:2] != gradients.shape[:2]:
        raise ValueError(
            f"gradient_gram_: {prefix}inputs: expected the samples and positions of {prefix}gradients, "
            f"{tuple(gradients.shape[:2])}, and features unless they are token ids; found shape {tuple(inputs.shape)}"
        )
    if mask is None:
        return
    if mask.dtype is not torch.bool:
        raise TypeError(f"gradient_gram_: {prefix}mask: expected bool; found {mask.dtype}. Compare with != 0.")
    if mask.shape != gradients.shape[:2]:
        raise ValueError(
            f"gradient_gram_: {prefix}mask: expected shape {tuple(gradients.shape[:2])}; found {tuple(mask.shape)}"
        )


def _check_other(inputs: Tensor, gradients: Tensor, other_inputs: Tensor, other_gradients: Tensor) -> None:
    if other_gradients.shape[2] != gradients.shape[2]:
        raise ValueError(
            f"gradient_gram_: expected gradients of one weight; found {gradients.shape[2]} features in gradients and "
            f"{other_gradients.shape[2]} in other_gradients"
        )
    dense = [tensor.shape[2] for tensor in (inputs, other_inputs) if tensor.dtype not in TOKENS]
    if dense[1:] and dense[0] != dense[1]:
        raise ValueError(
            f"gradient_gram_: expected inputs of one weight; found {dense[0]} features in inputs and {dense[1]} in "
            "other_inputs"
        )


def _check_tokens(tokens: Tensor, mask: Tensor | None, dense: Tensor) -> None:
    counted = tokens.flatten() if mask is None else tokens[mask]
    require_in_range("gradient_gram_: tokens that meet dense inputs", counted, dense.shape[2])


def _check(
    gram: Tensor,
    inputs: Tensor,
    gradients: Tensor,
    mask: Tensor | None = None,
    other_inputs: Tensor | None = None,
    other_gradients: Tensor | None = None,
    other_mask: Tensor | None = None,
    form: str = "auto",
) -> None:
    _check_side("", inputs, gradients, mask)
    columns = gradients.shape[0]
    if other_inputs is not None and other_gradients is not None:
        _check_side("other_", other_inputs, other_gradients, other_mask)
        _check_other(inputs, gradients, other_inputs, other_gradients)
        columns = other_gradients.shape[0]
    elif any(tensor is not None for tensor in (other_inputs, other_gradients, other_mask)):
        raise ValueError("gradient_gram_: expected other_inputs and other_gradients together; found one alone")
    if gram.dtype is not torch.float64:
        raise TypeError(f"gradient_gram_: gram: expected float64; found {gram.dtype}")
    if gram.shape != (gradients.shape[0], columns):
        raise ValueError(
            f"gradient_gram_: gram: expected shape {(gradients.shape[0], columns)}, a row a sample and a column a "
            f"sample of the other side; found {tuple(gram.shape)}"
        )
    if form not in FORMS:
        raise ValueError(f"gradient_gram_: form: expected one of {', '.join(FORMS)}; found {form!r}")


@operator(_check, mutates=("gram",))
def gradient_gram_(
    gram: Tensor,
    inputs: Tensor,
    gradients: Tensor,
    mask: Tensor | None = None,
    other_inputs: Tensor | None = None,
    other_gradients: Tensor | None = None,
    other_mask: Tensor | None = None,
    form: str = "auto",
) -> None:
    """Add to `gram` the inner products of the gradients that samples give to one weight, in place.

    A linear layer's weight gets from sample a the gradient Σ_t y_at x_atᵀ, with x_t its input and y_t the gradient at
    its output. So gram[a, b] += Σ_tt' (x_at · x_bt') (y_at · y_bt'), which needs no gradient. Which of the two factors
    is called the input does not matter, only that it is the same one on both sides.

    Two ways, the cheaper one by the count of multiplications where `form` is "auto":

    - `pairwise`: products of positions, multiplied and summed tile by tile: (n T)² (in + out) / 2.
    - `explicit`: gradients themselves, a block of the weight at a time: n T in out + n² in out / 2.

    Other parameters are of the same kind: an embedding's input is a token, whose x · x' is 1 where the tokens are equal
    and 0 elsewhere; a matrix R [n, d] of gradients themselves, as of a norm or a bias, is inputs R [n, 1, d] with
    gradients of ones [n, 1, 1]. A weight that is used twice, such as an embedding that is the output layer as well, has
    the terms of each use, and twice those between the two: the output layer's gradient at the logits is then the
    `other_inputs` [m, T', vocabulary] to the embedding's tokens, and its input the `other_gradients`.

    Args:
        gram: float64 [n, n], or [n, m] with the other side given. Any strides. Written in place.
        inputs: [n, T, in] float32, bfloat16 or float16; or token ids [n, T], int32 or int64.
        gradients: [n, T, out], one of the same float dtypes.
        mask: bool [n, T]: positions that are False count for nothing, whatever is there. By default all count.
        other_inputs: [m, T', in], or token ids [m, T']: samples for the columns of `gram`. By default the same as for
            its rows; then gram[a, b] and gram[b, a] get one and the same number.
        other_gradients: [m, T', out].
        other_mask: bool [m, T'].
        form: "auto", "pairwise" or "explicit". Tokens have a way of their own and ignore it.

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that do not fit, tensors on different devices, or an unknown form.
        IndexError: for a token id that dense inputs on the other side do not have.

    Accuracy: products of float32 are summed in float32 over fixed tiles and those in float64. On a CPU no float32 sum
    is a chain of more than 128 terms, so that the error against float64 is at most
    (416 + (T + in + out) / 64) 2⁻²⁴ Σ_tt' (|x| · |x'|) (|y| · |y'|); measured on ordinary numbers, on every device,
    it is below 2⁻²⁰ of that sum, and about 10⁻⁸ of ‖g_a‖ ‖g_b‖. A sample with a NaN or an infinity makes its own row
    and column NaN or infinite, no other entry. Equal bits on every run and for every number of threads; GPUs, CPUs with
    a matrix unit for bfloat16, those that multiply pairs of bfloat16 numbers (AVX512-BF16; inputs of that dtype) and
    other CPUs each add in an order of their own. Of bfloat16 on the second and third what numbers and products have
    below 2⁻¹²⁶ is taken for zero.

    Bytes moved, b bytes an element, for two blocks of samples, n and m of them, 1024 at most: b (n T + m T') (in + out)
    read, half of it where they are one block, and 16 n m of `gram`. `explicit` reads the inputs once for every strip of
    outputs and the gradients once for every strip of inputs that its blocks of the weight make, and writes and reads
    the gradients of a block, 4 (n + m) in out bytes over all blocks, in scratch memory of 64 MiB at most. Tensors whose
    features do not lie side by side are copied.

    Source: Σ_tt' (x · x') (y · y') is the ghost inner product of per-sample gradients, in norms Goodfellow 2015,
    arXiv:1510.01799, and for sequences Li et al. 2021, arXiv:2110.05679.
    """
    sides: tuple[Tensor | None, ...] = (inputs, gradients, mask, other_inputs, other_gradients, other_mask)
    _check(gram, inputs, gradients, mask, other_inputs, other_gradients, other_mask, form)
    if other_inputs is not None and (inputs.dtype in TOKENS) != (other_inputs.dtype in TOKENS):
        if inputs.dtype in TOKENS:
            _check_tokens(inputs, mask, other_inputs)
        else:  # tokens first
            _check_tokens(other_inputs, other_mask, inputs)
            gram, sides = gram.T, (*sides[3:], *sides[:3])
    backend(__name__, gram, *sides).gradient_gram_(gram, *sides, form)
