"""Loops over the kept weights alone, compiled by numba: products that gather rows of activations, and sampled dots.

Activations lie with the batch last, so that one kept weight multiplies ``length`` contiguous floats: the batch, or a
whole row of an image times the batch. Weights are rows of places (CSR); a place is looked up in a table that says where
its activations begin, and so a linear layer, a convolution of any stride and padding and both their input gradients are
one loop. Sums are held in vector registers, which numba does not do by itself for a length known only at run time:
the inner loops are written as vectors of LLVM, which fits them to the instruction set of the machine.

Everything of numba stays in this one file, because its cache of compiled code knows a function by its file alone.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from fedbonsai.errors import ConfigError

try:
    numba: Any = import_module("numba")
except ImportError as error:
    raise ConfigError("sparse training needs numba, which is not installed: pip install 'fedbonsai[sparse]'") from error

types: Any = numba.types
ir: Any = import_module("llvmlite.ir")
extending: Any = import_module("numba.extending")

LANES = 16
REST = 4  # lanes for what is left of a length
given: str | None = numba.config.CPU_FEATURES  # by the environment; may be empty
features = import_module("llvmlite.binding").get_host_cpu_features().flatten() if given is None else given
MANY = "+avx512f" in features  # 32 registers of 16 floats; elsewhere they hold a half of that or less
TOGETHER = (8, 4, 1) if MANY else (4, 1)  # places whose sums fit into the registers
FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FUSE = ("contract",)  # a product and a sum may be one instruction; nothing else is relaxed


def _at(build: Any, address: Any, index: Any, kind: Any) -> Any:
    """Pointer to the ``index``-th 4-byte element behind an address, as one to ``kind``."""
    byte = build.add(address, build.shl(index, INT64(2)))
    return build.inttoptr(byte, kind.as_pointer())


def _load(build: Any, address: Any, index: Any, kind: Any) -> Any:
    value = build.load(_at(build, address, index, kind))
    value.align = 4
    return value


def _store(build: Any, value: Any, address: Any, index: Any) -> None:
    build.store(value, _at(build, address, index, value.type)).align = 4


def _splat(build: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(FLOAT, lanes)
    one = build.insert_element(ir.Constant(vector, ir.Undefined), scalar, INT32(0))
    return build.shuffle_vector(one, one, ir.Constant(ir.VectorType(INT32, lanes), [0] * lanes))


def _shuffle(build: Any, a: Any, b: Any, places: list[int]) -> Any:
    return build.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(places)), places))


def _times_plus(build: Any, a: Any, b: Any, c: Any) -> Any:
    return build.fadd(build.fmul(a, b, flags=FUSE), c, flags=FUSE)


def _loop(build: Any, begin: Any, end: Any, step: int, carried: list[Any], body: Any) -> list[Any]:
    """``for i in range(begin, end, step)`` whose body turns the carried values into new ones; ``end - begin`` fits."""
    before = build.block
    head, inside, after = (build.append_basic_block(name) for name in ("head", "body", "after"))
    build.branch(head)
    build.position_at_end(head)
    index = build.phi(INT64)
    index.add_incoming(begin, before)
    held = [build.phi(value.type) for value in carried]
    for phi, value in zip(held, carried, strict=True):
        phi.add_incoming(value, before)
    build.cbranch(build.icmp_signed("<", index, end), inside, after)
    build.position_at_end(inside)
    new = body(index, held)
    index.add_incoming(build.add(index, INT64(step)), build.block)
    for phi, value in zip(held, new, strict=True):
        phi.add_incoming(value, build.block)
    build.branch(head)
    build.position_at_end(after)
    return held


def _zeros(lanes: int) -> Any:
    return ir.Constant(ir.VectorType(FLOAT, lanes), [0.0] * lanes)


def _whole(build: Any, begin: Any, end: Any, step: int) -> Any:
    """``end`` lowered until the distance from ``begin`` is a multiple of ``step``, a power of two."""
    return build.sub(end, build.and_(build.sub(end, begin), INT64(step - 1)))


def _product(parts: tuple[int, ...], unroll: int) -> Any:
    """``y[:width] = start + sum over k of values[k] * x[table[columns[k]]:][:width]``, in vectors of the given lanes."""

    def generate(context: Any, build: Any, signature: Any, args: Any) -> Any:
        columns, values, table, begin, end, x, y, start = args

        def one(k: Any, held: list[Any]) -> list[Any]:
            column = build.sext(_load(build, columns, k, INT32), INT64)
            place = build.sext(_load(build, table, column, INT32), INT64)
            value, new, at = _load(build, values, k, FLOAT), [], 0
            for lanes, total in zip(parts, held, strict=True):
                loaded = _load(build, x, build.add(place, INT64(at)), ir.VectorType(FLOAT, lanes))
                new.append(_times_plus(build, _splat(build, value, lanes), loaded, total))
                at += lanes
            return new

        def several(k: Any, held: list[Any]) -> list[Any]:
            new: list[Any] = []
            for u in range(unroll):
                new += one(build.add(k, INT64(u)), held[u * len(parts) : (u + 1) * len(parts)])
            return new

        totals = [_splat(build, start, lanes) for lanes in parts]
        if unroll > 1:
            middle = _whole(build, begin, end, unroll)
            totals += [_zeros(lanes) for _ in range(unroll - 1) for lanes in parts]
            totals = _loop(build, begin, middle, unroll, totals, several)
            for u in range(unroll - 1, 0, -1):
                more = totals[u * len(parts) :]
                totals = totals[: u * len(parts)]
                for j, extra in enumerate(more):
                    at = (u - 1) * len(parts) + j
                    totals[at] = build.fadd(totals[at], extra)
            begin = middle
        totals = _loop(build, begin, end, 1, totals, one)
        at = 0
        for lanes, total in zip(parts, totals, strict=True):
            _store(build, total, y, INT64(at))
            at += lanes
        return context.get_dummy_value()

    def signature(
        typing: Any, columns: Any, values: Any, table: Any, begin: Any, end: Any, x: Any, y: Any, start: Any
    ) -> Any:
        kinds = (types.uintp,) * 3 + (types.int64,) * 2 + (types.uintp,) * 2
        return types.void(*kinds, types.float32), generate

    return extending.intrinsic(signature)


def _folded(build: Any, vectors: list[Any]) -> Any:
    """The sums over the lanes of several vectors, as one vector; their number is a power of two."""
    group = LANES  # lanes that belong to one of the sums
    while len(vectors) > 1:
        half = group // 2
        low = [i for i in range(2 * LANES) if i % group < half]
        high = [i + half for i in low]
        vectors = [
            build.fadd(_shuffle(build, a, b, low), _shuffle(build, a, b, high))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        group = half
    total = vectors[0]
    while group > 1:
        count, half = total.type.count, group // 2
        low = [i for i in range(count) if i % group < half]
        total = build.fadd(_shuffle(build, total, total, low), _shuffle(build, total, total, [i + half for i in low]))
        group = half
    return total


def _dots(parts: tuple[int, ...]) -> Any:
    """For each place of a row ``out[k] += sum over h and l of x[table[columns[k]] + h * step + l] * dy[h * length + l]``.

    Args:
        parts: vectors that make up the length of one line, which is all there is then: no loop is inside. None of
            them for lines of any number and length.
    """

    def generate(context: Any, build: Any, signature: Any, args: Any) -> Any:
        columns, table, x, dy, out, begin, end, height, length, step = args

        def together(count: int) -> Any:
            def body(k: Any, _: list[Any]) -> list[Any]:
                begins: list[Any] = []
                for j in range(count):
                    column = build.sext(_load(build, columns, build.add(k, INT64(j)), INT32), INT64)
                    begins.append(build.sext(_load(build, table, column, INT32), INT64))
                lines = (x, begins, dy, height, length, step)
                sums = _one_line(build, parts, x, begins, dy) if parts else _lines(build, *lines)
                before = _load(build, out, k, ir.VectorType(FLOAT, count))
                _store(build, build.fadd(before, _folded(build, sums)), out, k)
                return []

            return body

        for count in TOGETHER:
            middle = _whole(build, begin, end, count)
            _loop(build, begin, middle, count, [], together(count))
            begin = middle
        return context.get_dummy_value()

    def signature(
        typing: Any,
        columns: Any,
        table: Any,
        x: Any,
        dy: Any,
        out: Any,
        begin: Any,
        end: Any,
        height: Any,
        length: Any,
        step: Any,
    ) -> Any:
        return types.void(*(types.uintp,) * 5, *(types.int64,) * 5), generate

    return extending.intrinsic(signature)


def _widened(build: Any, value: Any, lanes: int) -> Any:
    """A shorter vector with zeros behind it."""
    return _shuffle(build, value, _zeros(lanes), [min(i, lanes) for i in range(LANES)])


def _one_line(build: Any, parts: tuple[int, ...], x: Any, begins: list[Any], dy: Any) -> list[Any]:
    """Products of one line with those that begin at given places of ``x``, summed to a vector each."""
    at, sums = 0, []
    for lanes in parts:
        kind = ir.VectorType(FLOAT, lanes)
        right = _load(build, dy, INT64(at), kind)
        left = [_load(build, x, build.add(begin, INT64(at)), kind) for begin in begins]
        if lanes < LANES:
            more = [_widened(build, build.fmul(a, right), lanes) for a in left]
            sums = [build.fadd(a, b) for a, b in zip(sums, more, strict=True)] if sums else more
        elif sums:
            sums = [_times_plus(build, a, right, b) for a, b in zip(left, sums, strict=True)]
        else:
            sums = [build.fmul(a, right) for a in left]
        at += lanes
    return sums


def _lines(build: Any, x: Any, begins: list[Any], dy: Any, height: Any, length: Any, step: Any) -> list[Any]:
    """As `_one_line`, over lines of any number and length."""
    count = len(begins)

    def line(h: Any, held: list[Any]) -> list[Any]:
        down, across = build.mul(h, length), build.mul(h, step)
        starts = [build.add(begin, across) for begin in begins]

        def one(load: Any) -> Any:
            def body(at: Any, sums: list[Any]) -> list[Any]:
                right = load(dy, build.add(down, at))
                return [
                    _times_plus(build, load(x, build.add(start, at)), right, total)
                    for start, total in zip(starts, sums, strict=True)
                ]

            return body

        def vector(lanes: int) -> Any:
            return lambda address, at: _load(build, address, at, ir.VectorType(FLOAT, lanes))

        def single(address: Any, at: Any) -> Any:
            return build.insert_element(_zeros(REST), _load(build, address, at, FLOAT), INT32(0))

        middle = _whole(build, INT64(0), length, LANES)
        wide = _loop(build, INT64(0), middle, LANES, held[:count], one(vector(LANES)))
        nearly = _whole(build, middle, length, REST)
        rest = _loop(build, middle, nearly, REST, held[count:], one(vector(REST)))
        return wide + _loop(build, nearly, length, 1, rest, one(single))

    sums = _loop(build, INT64(0), height, 1, [_zeros(LANES)] * count + [_zeros(REST)] * count, line)
    return [build.fadd(a, _widened(build, b, REST)) for a, b in zip(sums[:count], sums[count:], strict=True)]


_product128 = _product((16,) * 8, 1)
_product64 = _product((16,) * 4, 2 if MANY else 1)
_product32 = _product((16,) * 2, 4 if MANY else 2)
_product20 = _product((16, 4), 4 if MANY else 2)
_product16 = _product((16,), 4)
_product8 = _product((8,), 4)
_product4 = _product((4,), 4)
_product1 = _product((1,), 4)
_dots16, _dots20, _dots32, _dots64 = _dots((16,)), _dots((16, 4)), _dots((16,) * 2), _dots((16,) * 4)
_dots_any = _dots(())


@numba.njit(nogil=True, cache=True)
def products(
    starts: Any, columns: Any, values: Any, table: Any, x: Any, bias: Any, y: Any, rows: Any, shape: Any
) -> None:
    """``y[r, h, l] = bias[r] + sum over row r's k of values[k] * x[table[columns[k]] + h * step + l]``.

    Args:
        starts: int64 [all rows + 1], where each row of places begins.
        columns: int32 [places], indices of the table.
        values: float32 [places].
        table: int32, offset of the activations in ``x`` for output row 0.
        x: float32, flat.
        bias: float32 [rows of y], or empty.
        y: float32, flat, [rows, height, length].
        rows: first and last row of ``y`` that are written, and the row of places that row 0 of ``y`` is.
        shape: height, length, and how far ``x`` moves from one output row to the next.
    """
    first, last, base = rows
    height, length, step = shape
    cols, vals, tab = columns.ctypes.data, values.ctypes.data, table.ctypes.data
    source, target = x.ctypes.data, y.ctypes.data
    for h in range(height):
        at = 0
        while at < length:
            left = length - at
            here = source + 4 * (h * step + at)
            if MANY and left >= 128:
                width = 128
            elif left >= 64:
                width = 64
            elif left >= 32:
                width = 32
            elif left == 20:
                width = 20
            elif left >= 16:
                width = 16
            elif left >= 8:
                width = 8
            elif left >= 4:
                width = 4
            else:
                width = 1
            for r in range(first, last):
                begin, end = starts[base + r], starts[base + r + 1]
                there = target + 4 * ((r * height + h) * length + at)
                start = bias[r] if len(bias) else numba.float32(0.0)
                if width == 128:
                    _product128(cols, vals, tab, begin, end, here, there, start)
                elif width == 64:
                    _product64(cols, vals, tab, begin, end, here, there, start)
                elif width == 32:
                    _product32(cols, vals, tab, begin, end, here, there, start)
                elif width == 20:
                    _product20(cols, vals, tab, begin, end, here, there, start)
                elif width == 16:
                    _product16(cols, vals, tab, begin, end, here, there, start)
                elif width == 8:
                    _product8(cols, vals, tab, begin, end, here, there, start)
                elif width == 4:
                    _product4(cols, vals, tab, begin, end, here, there, start)
                else:
                    _product1(cols, vals, tab, begin, end, here, there, start)
            at += width


@numba.njit(nogil=True, cache=True)
def dots(starts: Any, columns: Any, table: Any, x: Any, dy: Any, out: Any, rows: Any, shape: Any) -> None:
    """``out[k] = sum over h and l of dy[r, h, l] * x[table[columns[k]] + h * step + l]`` for each place k of row r.

    Args:
        starts: int64 [rows + 1].
        columns: int32 [places].
        table: int32.
        x: float32, flat.
        dy: float32, flat, [rows, height, length].
        out: float32 [places].
        rows: first and last row.
        shape: height, length, and how far ``x`` moves from one output row to the next.
    """
    first, last = rows
    height, length, step = shape
    cols, tab, target = columns.ctypes.data, table.ctypes.data, out.ctypes.data
    source, grad = x.ctypes.data, dy.ctypes.data
    out[starts[first] : starts[last]] = 0.0
    # a block of rows of the image at a time, so that what all channels need of it stays in the cache
    block = max(1, 1024 // max(1, length))
    for h in range(0, height, block):
        lines = min(block, height - h)
        here = source + 4 * h * step
        for r in range(first, last):
            k, end = starts[r], starts[r + 1]
            there = grad + 4 * (r * height + h) * length
            if lines > 1 or length > 64:
                _dots_any(cols, tab, here, there, target, k, end, lines, length, step)
            elif length == 64:
                _dots64(cols, tab, here, there, target, k, end, lines, length, step)
            elif length == 32:
                _dots32(cols, tab, here, there, target, k, end, lines, length, step)
            elif length == 20:
                _dots20(cols, tab, here, there, target, k, end, lines, length, step)
            elif length == 16:
                _dots16(cols, tab, here, there, target, k, end, lines, length, step)
            else:
                _dots_any(cols, tab, here, there, target, k, end, lines, length, step)


@numba.njit(nogil=True, cache=True)
def transposed(keys: Any, starts: Any, order: Any) -> None:
    """Stable counting sort: ``order`` lists places by key, and ``starts`` says where each key's begin.

    Args:
        keys: int32 [places], below the number of keys.
        starts: int64 [keys + 1], zeros before.
        order: int32 [places].
    """
    for key in keys:
        starts[key + 1] += 1
    for key in range(1, len(starts)):
        starts[key] += starts[key - 1]
    for place in range(len(keys)):
        key = keys[place]
        order[starts[key]] = place
        starts[key] += 1
    for key in range(len(starts) - 1, 0, -1):
        starts[key] = starts[key - 1]
    starts[0] = 0


SCANNED = 32  # entries of a mask that are passed over at once if none is kept


@extending.intrinsic
def _some(typing: Any, address: Any) -> Any:
    """Whether one of the `SCANNED` bytes at an address is not zero."""

    def generate(context: Any, build: Any, signature: Any, args: Any) -> Any:
        whole = ir.IntType(8 * SCANNED)
        found = build.load(build.inttoptr(args[0], whole.as_pointer()))
        found.align = 1
        return build.icmp_unsigned("!=", found, whole(0))

    return types.boolean(types.uintp), generate


@numba.njit(nogil=True, cache=True)
def listed(mask: Any, row: Any, starts: Any, columns: Any) -> None:
    """Kept places of a mask, row by row.

    Args:
        mask: uint8, flat, 1 where a weight is kept.
        row: entries of a row.
        starts: int64 [rows + 1].
        columns: int32 [kept places + 1]; the last is written and means nothing.
    """
    kept, address = 0, mask.ctypes.data
    for r in range(len(starts) - 1):
        starts[r] = kept
        base, first = r * row, 0
        while first < row:
            end = min(first + SCANNED, row)
            if end - first < SCANNED or _some(address + base + first):
                for column in range(first, end):
                    columns[kept] = column  # the next one writes over it unless this is kept: no branch
                    kept += mask[base + column]
            first = end
    starts[len(starts) - 1] = kept


@numba.njit(nogil=True, cache=True)
def gathered(starts: Any, columns: Any, row: Any, dense: Any, out: Any) -> None:
    """``out[k] = dense[r * row + columns[k]]`` for each place k of row r."""
    for r in range(len(starts) - 1):
        for k in range(starts[r], starts[r + 1]):
            out[k] = dense[r * row + columns[k]]


@numba.njit(nogil=True, cache=True)
def scattered(starts: Any, columns: Any, row: Any, values: Any, dense: Any) -> None:
    """``dense[r * row + columns[k]] = values[k]`` for each place k of row r."""
    for r in range(len(starts) - 1):
        for k in range(starts[r], starts[r + 1]):
            dense[r * row + columns[k]] = values[k]


@numba.njit(nogil=True, cache=True)
def within(starts: Any, columns: Any, row: Any, mask: Any) -> Any:
    """Whether a mask keeps each of the places."""
    for r in range(len(starts) - 1):
        for k in range(starts[r], starts[r + 1]):
            if not mask[r * row + columns[k]]:
                return False
    return True


SUMS = {"reassoc", "contract", "nsz"}  # sums over a channel may be taken in vectors; nothing else is relaxed
BLOCK = 2048  # summed in float32; the blocks' sums are added in float64


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def _moments(x: Any) -> Any:
    """Mean and variance of a contiguous line, the second pass over what is in the cache by then."""
    total = 0.0
    for at in range(0, len(x), BLOCK):
        part = x[at : at + BLOCK]
        some = numba.float32(0.0)
        for i in range(len(part)):
            some += part[i]
        total += some
    mean, total = numba.float32(total / len(x)), 0.0
    for at in range(0, len(x), BLOCK):
        part = x[at : at + BLOCK]
        some = numba.float32(0.0)
        for i in range(len(part)):
            away = part[i] - mean
            some += away * away
        total += some
    return mean, numba.float32(total / len(x))


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def normalise(x: Any, gain: Any, shift: Any, eps: Any, y: Any, mean: Any, scale: Any, variance: Any, rows: Any) -> None:
    """``y[r] = (x[r] - mean[r]) * scale[r] * gain[r] + shift[r]``, the scale that makes the variance of a row one.

    Args:
        x: float32 [all rows, length].
        gain: float32 [all rows].
        shift: float32 [all rows].
        eps: added to the variance.
        y: as ``x``, written.
        mean: float32 [all rows], written.
        scale: float32 [all rows], written.
        variance: float32 [all rows], written: divided by the length.
        rows: first and last.
    """
    for r in range(rows[0], rows[1]):
        line, out = x[r], y[r]
        center, spread = _moments(line)
        mean[r], variance[r] = center, spread
        scale[r] = numba.float32(1.0 / math.sqrt(numba.float64(spread) + eps))
        slope, begin = scale[r] * gain[r], shift[r]
        for i in range(len(line)):
            out[i] = (line[i] - center) * slope + begin


@numba.njit(nogil=True, cache=True, fastmath=SUMS)
def normalise_back(
    x: Any, dy: Any, gain: Any, mean: Any, scale: Any, dx: Any, dgain: Any, dshift: Any, rows: Any
) -> None:
    """Gradients of `normalise`, its arguments those of there."""
    for r in range(rows[0], rows[1]):
        line, given, out, center = x[r], dy[r], dx[r], mean[r]
        plain = along = 0.0
        for at in range(0, len(line), BLOCK):
            part, grads = line[at : at + BLOCK], given[at : at + BLOCK]
            one = two = numba.float32(0.0)
            for i in range(len(part)):
                one += grads[i]
                two += grads[i] * (part[i] - center)
            plain += one
            along += two
        dshift[r], dgain[r] = plain, along * scale[r]
        slope = scale[r] * gain[r]
        level = numba.float32(plain / len(line))
        lean = numba.float32(along / len(line) * scale[r] * scale[r])
        for i in range(len(line)):
            out[i] = (given[i] - level - (line[i] - center) * lean) * slope
