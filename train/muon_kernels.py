"""Muon's move of all filters of a net, or of several nets, in Triton: eleven launches, where torch takes some fifty compiled and more than a hundred not.

One kernel moves the momenta and puts each filter's direction into a stack of matrices, wide ones, in half precision. Nine products of matrices are Newton-Schulz's
three iterations, each with what is added and scaled behind it, and of a smaller filter no more than its own tiles; the direction's norm, by which
all is divided first, is in the factors of the first three. One kernel moves the filters. Sums are made in a fixed order: the same bits every time.

Shapes: a filter is a matrix [rows, columns] = [out, height * width * in], as channels_last has it in memory; its wide form is [short, long], itself or its
transpose. stack [N,S,L] has those of N filters, filled up with zeros to whole tiles; squares float32[2,N,most rows], each row's sum of squares, of the direction and of
the filter; sizes int32[N,3]: short, long, rows.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from nets.aside import beside

TILE = tl.constexpr(64)  # of both sides of a product: the rows that Hopper's unit takes from four warps
VALUES, WARPS = 2048, 4  # that a program takes of a filter at a time
STAGES = 4  # tiles of a product on their way to shared memory
FILTERS = 64  # of a launch, whose addresses are its arguments


@triton.jit
def address(of, k):
    """The k-th of some."""
    found = of[0]
    for i in tl.static_range(1, len(of)):
        if k == i:
            found = of[i]
    return found


@triton.jit
def number(of, k):
    """The k-th of some, int32."""
    found = tl.zeros((), tl.int32)
    for i in tl.static_range(len(of)):
        found = tl.where(k == i, of[i], found)
    return found


@triton.jit
def norm_of(squares, rows, LINES: tl.constexpr):
    """Of a matrix, from its rows' sums of squares."""
    line = tl.arange(0, LINES)
    return tl.sqrt(tl.sum(tl.load(squares + line, mask=line < rows, other=0.0)))


@triton.jit
def gather_kernel(
    filters, gradients, momenta, rows_of, columns_of, stack, squares, sizes, first, count, momentum,
    MOST: tl.constexpr, S: tl.constexpr, L: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Momenta, directions (Nesterov's) and sums of squares of the filters from the `first` of `count` on; a program takes R rows of one."""
    k = tl.program_id(0)
    n = first + k
    rows, columns = number(rows_of, k), number(columns_of, k)
    whole_rows, whole_columns = tl.cdiv(rows, TILE) * TILE, tl.cdiv(columns, TILE) * TILE
    if tl.program_id(1) * R >= whole_rows:
        return
    if tl.program_id(1) == 0:
        tl.store(sizes + 3 * n, tl.minimum(rows, columns))
        tl.store(sizes + 3 * n + 1, tl.maximum(rows, columns))
        tl.store(sizes + 3 * n + 2, rows)
    own, gradient, moving, wide = address(filters, k), address(gradients, k), address(momenta, k), stack + n.to(tl.int64) * (S * L)
    row = tl.program_id(1) * R + tl.arange(0, R)[:, None]
    of_direction, of_filter = tl.zeros([R, B], tl.float32), tl.zeros([R, B], tl.float32)
    for start in range(0, whole_columns, B):
        column = start + tl.arange(0, B)[None, :]
        inside, at = (row < rows) & (column < columns), row * columns + column
        value, given = tl.load(own + at, mask=inside, other=0.0), tl.load(gradient + at, mask=inside, other=0.0)
        moved = tl.load(moving + at, mask=inside, other=0.0) * momentum + given
        tl.store(moving + at, moved, mask=inside)
        direction = given + momentum * moved
        whole = (row < whole_rows) & (column < whole_columns)
        if rows > columns:
            tl.store(wide + column * L + row, direction.to(stack.dtype.element_ty), mask=whole)
        else:  # by itself, since these lie side by side
            tl.store(wide + row * L + column, direction.to(stack.dtype.element_ty), mask=whole)
        of_direction += direction * direction
        of_filter += value * value
    line = squares + n * MOST + row
    tl.store(line, tl.sum(of_direction, 1, keep_dims=True), mask=row < rows)
    tl.store(line + count * MOST, tl.sum(of_filter, 1, keep_dims=True), mask=row < rows)


@triton.jit
def multiply_kernel(
    left, right, added, out, squares, sizes, alpha, beta, eps,
    MOST: tl.constexpr, LINES: tl.constexpr, S: tl.constexpr, L: tl.constexpr, INNER_LONG: tl.constexpr, OUT_LONG: tl.constexpr,
    ADDS: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    """out = (alpha * left · right + beta * added) / norm ** POWER for each matrix of a stack, by tiles; right is transposed unless OUT_LONG.

    left is [S,L] where INNER_LONG, else [S,S], as are out and added by OUT_LONG.
    """
    INNER: tl.constexpr = L if INNER_LONG else S
    OUT: tl.constexpr = L if OUT_LONG else S
    n = tl.program_id(1).to(tl.int64)
    short, long, rows = tl.load(sizes + 3 * n), tl.load(sizes + 3 * n + 1), tl.load(sizes + 3 * n + 2)
    top, side = tl.program_id(0) // (OUT // TILE) * TILE, tl.program_id(0) % (OUT // TILE) * TILE
    inner, width = long if INNER_LONG else short, long if OUT_LONG else short
    if (top >= short) | (side >= width):
        return
    i, j = tl.arange(0, TILE)[:, None], tl.arange(0, TILE)[None, :]
    a = left + n * (S * INNER) + (top + i) * INNER + j
    b = right + n * (S * OUT if OUT_LONG else S * INNER) + (i * OUT + side + j if OUT_LONG else (side + i) * INNER + j)
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, inner, TILE):
        from_left, from_right = tl.load(a + start), tl.load(b + (start * OUT if OUT_LONG else start))
        total = tl.dot(from_left, from_right if OUT_LONG else tl.trans(from_right), total, input_precision="ieee")
    at = n * (S * OUT) + (top + i) * OUT + side + j
    total *= alpha
    if ADDS:
        total += beta * tl.load(added + at).to(tl.float32)
    if POWER > 0:
        norm = norm_of(squares + n * MOST, rows, LINES) + eps
        total /= norm * norm if POWER == 2 else norm
    tl.store(out + at, total.to(out.dtype.element_ty))


@triton.jit
def apply_kernel(
    filters, rows_of, columns_of, stack, squares, rate, first, count, eps,
    MOST: tl.constexpr, LINES: tl.constexpr, S: tl.constexpr, L: tl.constexpr, R: tl.constexpr, B: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    """Filters at their norm, of the whole or of each row, less the rate times what the iterations gave."""
    k = tl.program_id(0)
    n = first + k
    rows, columns = number(rows_of, k), number(columns_of, k)
    if tl.program_id(1) * R >= rows:
        return
    own, wide, by = address(filters, k), stack + n.to(tl.int64) * (S * L), tl.load(rate)
    row = tl.program_id(1) * R + tl.arange(0, R)[:, None]
    line = squares + (count + n) * MOST
    if BY_ROW:
        scale = 1 / tl.maximum(tl.sqrt(tl.load(line + row, mask=row < rows, other=1.0)), eps)
    else:
        scale = tl.sqrt(rows.to(tl.float32)) / tl.maximum(norm_of(line, rows, LINES), eps)
    for start in range(0, columns, B):
        column = start + tl.arange(0, B)[None, :]
        inside, at = (row < rows) & (column < columns), row * columns + column
        if rows > columns:
            move = tl.load(wide + column * L + row, mask=inside, other=0.0)
        else:
            move = tl.load(wide + row * L + column, mask=inside, other=0.0)
        tl.store(own + at, tl.load(own + at, mask=inside, other=0.0) * scale - by * move.to(tl.float32), mask=inside)


def whole(size: int) -> int:
    """In whole tiles."""
    return triton.cdiv(size, TILE.value) * TILE.value


class Stack(NamedTuple):
    """Sizes that are the same for all filters of a stack: the most rows, both sides in whole tiles, and rows and columns that a program takes at a time."""

    most: int
    short: int
    long: int
    rows: int
    columns: int

    @classmethod
    def of(cls, sizes: list[tuple[int, int]]) -> "Stack":
        """Of filters of so many (rows, columns)."""
        short, long = (whole(max(map(side, sizes))) for side in (min, max))
        columns = min(512, triton.next_power_of_2(long))
        return cls(max(rows for rows, _ in sizes), short, long, VALUES // columns, columns)

    @property
    def filters(self) -> tuple[int, ...]:
        """What the kernel of momenta is made for."""
        return self.most, self.short, self.long, self.rows, self.columns

    @property
    def products(self) -> tuple[int, ...]:
        """And that of products."""
        return self.most, triton.next_power_of_2(self.most), self.short, self.long


@torch.library.custom_op("tenfold::muon", mutates_args=("filters", "momenta"))
def move(
    filters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    momenta: list[torch.Tensor],
    rate: torch.Tensor,
    momentum: float,
    by_row: bool,
    steps: int,
    coefficients: list[float],
    eps: float,
) -> None:
    """Move filters and momenta, float32, where they lie, in channels_last order. rate: a float32 scalar on their device; steps, coefficients: of Newton-Schulz, the
    first at least one. The products are in bf16 on a GPU. In a branch of its own, where there is one (`nets/aside.py`)."""
    beside(lambda: moved(filters, gradients, momenta, rate, momentum, by_row, steps, coefficients, eps), (*filters, *gradients, *momenta, rate))


@move.register_fake
def _(filters, gradients, momenta, rate, momentum, by_row, steps, coefficients, eps):
    return None


def moved(filters, gradients, momenta, rate, momentum: float, by_row: bool, steps: int, coefficients: list[float], eps: float) -> None:
    """The launches of `move`."""
    kind = torch.bfloat16 if rate.is_cuda else torch.float32  # the interpreter cuts bfloat16 off, unrounded
    gradients = [g.contiguous(memory_format=torch.channels_last) for g in gradients]
    sizes = [(len(f), f[0].numel()) for f in filters]
    count, shape = len(sizes), Stack.of(sizes)

    def room(*size: int, dtype=kind) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=rate.device)

    X, Y, A, Q = (room(count, shape.short, side) for side in (shape.long, shape.long, shape.short, shape.short))
    squares, known = room(2, count, shape.most, dtype=torch.float32), room(count, 3, dtype=torch.int32)
    parts = [slice(i, i + FILTERS) for i in range(0, count, FILTERS)]
    for part in parts:
        own, given, moving, (rows, columns) = tuple(filters[part]), tuple(gradients[part]), tuple(momenta[part]), zip(*sizes[part])
        grid = len(own), triton.cdiv(whole(max(rows)), shape.rows)
        gather_kernel[grid](own, given, moving, rows, columns, X, squares, known, part.start, count, momentum, *shape.filters, num_warps=WARPS)

    def multiply(left, right, added, out, alpha, beta, inner_long, out_long, power):
        grid = whole(shape.short) // TILE.value * ((shape.long if out_long else shape.short) // TILE.value), count
        given = left, right, out if added is None else added, out, squares, known, alpha, beta, eps
        multiply_kernel[grid](*given, *shape.products, inner_long, out_long, added is not None, power, num_warps=WARPS, num_stages=STAGES)

    a, b, c = coefficients
    for i in range(steps):
        multiply(X, X, None, A, 1.0, 0.0, True, False, 0 if i else 2)
        multiply(A, A, A, Q, c, b, False, False, 0)
        multiply(Q, X, X, Y, 1.0, a, False, True, 0 if i else 1)
        X, Y = Y, X
    for part in parts:
        own, (rows, columns) = tuple(filters[part]), zip(*sizes[part])
        grid = len(own), triton.cdiv(max(rows), shape.rows)
        apply_kernel[grid](own, rows, columns, X, squares, rate, part.start, count, eps, *shape.products, *shape.filters[-2:], by_row, num_warps=WARPS)
