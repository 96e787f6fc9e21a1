"""Launch parameters and launchers of the kernels of subspace iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_kernels.products.triton_backend import PROGRAMS, alignment, partial_grams, share
from spectral_kernels.rsvd import triton_factor_kernels, triton_kernels
from spectral_kernels.runtime.triton import host

# Of a row of ``factor``, whose steps are one after the other: wider blocks are for plain torch.
WIDEST = 128

# Random numbers are the same bits everywhere only where every operation is rounded by itself.
_UNFUSED = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Batch:
    """Matrices of one shape and layout, which share launches: where they are, and their numbers.

    ``first`` (..., m, n) tells base pointer, dtype and strides; ``offsets`` (B,) int64 where each
    begins, in elements from there, multiples of ``align``; ``places`` (B, 2) int64 the index of
    the matrix in its list and of the entry in its batch, which random numbers depend on.
    """

    first: Tensor
    offsets: Tensor
    places: Tensor
    align: int

    @staticmethod
    def of(matrices: list[Tensor], numbers: list[int]) -> Batch:
        """Take in tensors (..., m, n) of one shape, dtype, device and layout, none empty."""
        first = matrices[0]
        size = first.element_size()
        steps = (host.batch_offsets(first) // size).tolist()
        begins = [(A.data_ptr() - first.data_ptr()) // size for A in matrices]
        table = torch.tensor(
            [
                (begin + step, number, entry)
                for begin, number in zip(begins, numbers, strict=True)
                for entry, step in enumerate(steps)
            ]
        )
        table = host.on_device(table, first.device)
        return Batch(
            first, table[:, 0].contiguous(), table[:, 1:].contiguous(), alignment(first, begins)
        )

    def __len__(self) -> int:
        return len(self.offsets)


def product_plan(count: int, rows: int, depth: int, width: int) -> dict[str, int]:
    """Return the launch parameters of ``product``, and how many parts the depth is split into.

    128 rows a program, so that a random number, which costs 50 operations, serves 256 flops. The
    depth is split until every SM of an H100 has two programs, into parts of at least 256: what they
    write is then at most width / 128 of the matrix. Not measured.
    """
    block = max(16, min(64, host.next_power_of_2(width)))
    tiles = host.cdiv(width, block)
    height = min(128, max(16, host.next_power_of_2(rows)))
    programs = count * tiles * host.cdiv(rows, height)
    splits = max(1, min(PROGRAMS // programs, depth // 256, 16))
    splits = host.cdiv(depth, share(depth, splits))
    return {
        "TILES": tiles,
        "BLOCK_M": height,
        "BLOCK_L": block,
        "DEPTH": 16,
        "num_warps": 8 if height == 128 else 4,
        "num_stages": 3,
        "splits": splits,
    }


def product(
    batch: Batch,
    X: Tensor,
    largest: Tensor,
    first: bool,
    width: int,
    *,
    transposed: bool = False,
    seed: int = 0,
    random: bool = False,
    squares: Tensor | None = None,
) -> Tensor:
    """Return (B, splits, rows, width) float32, whose sum over the splits is scale * A X.

    X (B, depth, given) float32, followed by random columns where ``random``; A^T where
    ``transposed``. The ``first`` product finds ``largest`` (B,) int32, zeros before it, which the
    others need, and the sums ``squares`` (B, programs of a matrix) of a^2.
    """
    rows, depth = batch.first.shape[-2:]
    stride_am, stride_ak = batch.first.stride()[-2:]
    if transposed:
        rows, depth, stride_am, stride_ak = depth, rows, stride_ak, stride_am
    launch = product_plan(len(batch), rows, depth, width)
    splits = launch.pop("splits")
    out = X.new_empty(len(batch), splits, rows, width)
    tiles = host.cdiv(rows, launch["BLOCK_M"]) * launch["TILES"]
    both = (triton_kernels.FIRST.value, triton_kernels.AGAIN.value)
    for number in both if first else (triton_kernels.LATER.value,):
        host.launch(
            triton_kernels.product,
            (len(batch) * tiles, splits),
            out,
            a_ptr=batch.first,
            offsets_ptr=batch.offsets,
            x_ptr=X,
            places_ptr=batch.places,
            out_ptr=out,
            largest_ptr=largest,
            squares_ptr=squares,
            rows=rows,
            depth=depth,
            width=width,
            given=X.shape[-1],
            share=share(depth, splits),
            stride_am=stride_am,
            stride_ak=stride_ak,
            seed=seed,
            PASS=number,
            RANDOM=random,
            ALIGN=batch.align,
            **launch,
            **_UNFUSED,
        )
    return out


def factor_plan(width: int) -> dict[str, int]:
    """Return the launch parameters of ``factor``. Not measured."""
    padded = max(16, host.next_power_of_2(width))
    return {"L": padded, "CHUNK": 32, "num_warps": 4, "num_stages": 1}


def factor(G: Tensor) -> tuple[Tensor, Tensor]:
    """Return R and its inverse of G = R^T R, all (B, width, width) float64."""
    R, inverse = torch.empty_like(G), torch.empty_like(G)
    width = G.shape[-1]
    host.launch(
        triton_factor_kernels.factor,
        len(G),
        G,
        gram_ptr=G,
        r_ptr=R,
        inverse_ptr=inverse,
        width=width,
        **factor_plan(width),
    )
    return R, inverse


def apply_plan(rows: int, columns: int) -> dict[str, int]:
    """Return the launch parameters of ``apply``. Not measured."""
    block = max(16, min(64, host.next_power_of_2(columns)))
    height = min(64, max(16, host.next_power_of_2(rows)))
    return {
        "TILES": host.cdiv(columns, block),
        "BLOCK_M": height,
        "BLOCK_L": block,
        "DEPTH": 16,
        "num_warps": 4,
        "num_stages": 2,
    }


def apply(Y: Tensor, T: Tensor, *, fill: bool, by_columns: bool = False, seed: int = 0) -> Tensor:
    """Return (B, rows, columns) float32, the sum of Y (B, parts, rows, width) times T.

    ``by_columns`` gives (B, columns, rows). ``fill`` replaces the columns that T leaves empty.
    """
    count, parts, rows, width = Y.shape
    columns = T.shape[-1]
    shape = (count, columns, rows) if by_columns else (count, rows, columns)
    out = Y.new_empty(shape)
    launch = apply_plan(rows, columns)
    host.launch(
        triton_factor_kernels.apply,
        count * host.cdiv(rows, launch["BLOCK_M"]) * launch["TILES"],
        out,
        y_ptr=Y,
        t_ptr=T,
        out_ptr=out,
        parts=parts,
        rows=rows,
        width=width,
        columns=columns,
        stride_tb=T.stride(0),
        stride_tk=T.stride(1),
        stride_tc=T.stride(2),
        stride_om=1 if by_columns else columns,
        stride_oc=rows if by_columns else 1,
        seed=seed,
        fill_scale=rows**-0.5,
        FILL=fill,
        **launch,
        **_UNFUSED,
    )
    return out


def orthonormalise(Y: Tensor, rounds: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return Q (B, rows, width) and R with Q R the sum of Y (B, parts, rows, width).

    One round makes the columns independent, two make them orthonormal to float32.
    """
    R = None
    for _ in range(rounds):
        count, parts, rows, width = Y.shape
        offsets = torch.arange(count, device=Y.device) * Y.stride(0)
        grams = partial_grams(
            Y, offsets, rows, width, width, 1, parts=parts, stride_part=rows * width
        )
        last, inverse = factor(grams.sum(1))
        R = last if R is None else last @ R
        Y = apply(Y, inverse, fill=True, seed=seed)[:, None]
    assert R is not None
    return Y[:, 0], R


def square_sums(batch: Batch, width: int) -> Tensor:
    """Return room for the sums of squares that the first product writes: (B, programs) float64."""
    rows, depth = batch.first.shape[-2:]
    launch = product_plan(len(batch), rows, depth, width)
    programs = launch["splits"] * host.cdiv(rows, launch["BLOCK_M"])
    return torch.empty(len(batch), programs, dtype=torch.float64, device=batch.first.device)
