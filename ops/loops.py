"""`tiled` and `tiled_sums` in loops that Numba compiles: one call for many examples, where NumPy goes over each often.

The same but for the rounding of SciPy's matrix products: the rest is sums, differences and comparisons in the same
order. A loop is compiled, or taken from Numba's cache, when it is first called. No thread waits for Python in here.
Arrays have no gaps; where one is not needed, it is empty. Tiles of outputs are (4, tiles, o), their places first;
matrices are (places, tiles, c).

Loops over channels stand apart, one for each result, because only then LLVM makes vector instructions of them.
"""
import contextlib

import numba
import numpy
import scipy.linalg.cython_blas  # noqa: F401  (numpy.dot calls it; loaded here, its threads can be limited)

# With Python's numbers float32 would become float64.
ZERO, HALF, ONE, TWO = (numpy.float32(x) for x in (0, .5, 1, 2))
# Gradients that `evaluate` guesses the pieces of before it checks.
CHUNK = 512


def _compiled(function):
    settings = {'nogil': True, 'error_model': 'numpy'}
    try:
        compiled = numba.njit(function, cache=True, **settings)
    except RuntimeError:  # there is no folder to cache it in
        return numba.njit(function, **settings)
    save = compiled._cache.save_overload

    def save_if_possible(*args):
        with contextlib.suppress(OSError):  # its disk may be full
            save(*args)

    compiled._cache.save_overload = save_if_possible
    return compiled


@_compiled
def _transform(maps, padded, half, matrices):
    """Tiles of inputs, transformed by Winograd's algorithm: maps (n, h, w, c) into matrices (16, tiles, c).

    `padded` is one example's room, (2 rows + 2, 2 columns + 2, c), 0 around its map, `half` a row's, (4, ...).
    """
    n, _, _, channels = maps.shape
    rows, columns = padded.shape[0] // 2 - 1, padded.shape[1] // 2 - 1
    t = 0
    for example in range(n):
        _fill(maps, example, padded)
        for row in range(rows):
            i = 2 * row
            for j in range(2 * columns + 2):
                for c in range(channels):
                    half[0, j, c] = padded[i, j, c] - padded[i + 2, j, c]
                for c in range(channels):
                    half[1, j, c] = padded[i + 1, j, c] + padded[i + 2, j, c]
                for c in range(channels):
                    half[2, j, c] = padded[i + 2, j, c] - padded[i + 1, j, c]
                for c in range(channels):
                    half[3, j, c] = padded[i + 1, j, c] - padded[i + 3, j, c]
            for column in range(columns):
                j = 2 * column
                for k in range(4):
                    for c in range(channels):
                        matrices[4 * k, t, c] = half[k, j, c] - half[k, j + 2, c]
                    for c in range(channels):
                        matrices[4 * k + 1, t, c] = half[k, j + 1, c] + half[k, j + 2, c]
                    for c in range(channels):
                        matrices[4 * k + 2, t, c] = half[k, j + 2, c] - half[k, j + 1, c]
                    for c in range(channels):
                        matrices[4 * k + 3, t, c] = half[k, j + 1, c] - half[k, j + 3, c]
                t += 1


@_compiled
def _fill(maps, example, padded):
    _, h, w, channels = maps.shape
    for i in range(h):
        for j in range(w):
            for c in range(channels):
                padded[i + 1, j + 1, c] = maps[example, i, j, c]


@_compiled
def _empty(maps, example, padded):
    _, h, w, channels = maps.shape
    for i in range(h):
        for j in range(w):
            for c in range(channels):
                maps[example, i, j, c] = padded[i + 1, j + 1, c]


@_compiled
def _overlap(matrices, padded, half, maps):
    """The way back of `_transform`: sums of tiles that overlap."""
    n, _, _, channels = maps.shape
    rows, columns = padded.shape[0] // 2 - 1, padded.shape[1] // 2 - 1
    t = 0
    for example in range(n):
        padded[:2] = 0
        for row in range(rows):
            half[:, :2] = 0
            for column in range(columns):
                j = 2 * column
                for k in range(4):
                    for c in range(channels):
                        half[k, j, c] += matrices[4 * k, t, c]
                    for c in range(channels):
                        half[k, j + 1, c] += (matrices[4 * k + 1, t, c] - matrices[4 * k + 2, t, c]
                                              + matrices[4 * k + 3, t, c])
                    for c in range(channels):
                        half[k, j + 2, c] = (matrices[4 * k + 1, t, c] + matrices[4 * k + 2, t, c]
                                             - matrices[4 * k, t, c])
                    for c in range(channels):
                        half[k, j + 3, c] = -matrices[4 * k + 3, t, c]
                t += 1
            i = 2 * row
            for j in range(2 * columns + 2):
                for c in range(channels):
                    padded[i, j, c] += half[0, j, c]
                for c in range(channels):
                    padded[i + 1, j, c] += half[1, j, c] - half[2, j, c] + half[3, j, c]
                for c in range(channels):
                    padded[i + 2, j, c] = half[1, j, c] + half[2, j, c] - half[0, j, c]
                for c in range(channels):
                    padded[i + 3, j, c] = -half[3, j, c]
        _empty(maps, example, padded)


@_compiled
def _patches(maps, padded, matrices):
    """The inputs under the kernel at each output: maps (n, h, w, c) into matrices (1, 4 tiles, 9 c)."""
    n, _, _, channels = maps.shape
    rows, columns = padded.shape[0] // 2 - 1, padded.shape[1] // 2 - 1
    tiles, flat = n * rows * columns, padded.reshape(len(padded), -1)
    for example in range(n):
        _fill(maps, example, padded)
        for place in range(4):
            for row in range(rows):
                t = place * tiles + (example * rows + row) * columns
                for i in range(3):
                    run = flat[2 * row + place // 2 + i, place % 2 * channels:]
                    # Of grey and colour images the compiler knows how much to copy at a time: a third of the time.
                    if channels == 1:
                        for column in range(columns):
                            for k in range(3):
                                matrices[0, t + column, 3 * i + k] = run[2 * column + k]
                    elif channels == 3:
                        for column in range(columns):
                            for k in range(9):
                                matrices[0, t + column, 9 * i + k] = run[6 * column + k]
                    else:
                        for column in range(columns):
                            for k in range(3 * channels):
                                matrices[0, t + column, 3 * channels * i + k] = run[2 * channels * column + k]


@_compiled
def _spread(matrices, padded, maps):
    """The way back of `_patches`."""
    n, _, _, channels = maps.shape
    rows, columns = padded.shape[0] // 2 - 1, padded.shape[1] // 2 - 1
    tiles = n * rows * columns
    for example in range(n):
        padded[:] = 0
        for place in range(4):
            for i in range(3):
                for j in range(3):
                    for row in range(rows):
                        for column in range(columns):
                            t = place * tiles + (example * rows + row) * columns + column
                            for c in range(channels):
                                padded[2 * row + place // 2 + i, 2 * column + place % 2 + j, c] += matrices[
                                    0, t, (3 * i + j) * channels + c]
        _empty(maps, example, padded)


@_compiled
def _reduce_four(x0, x1, x2, x3):
    return x1 + x2 + x0, x1 - x2 - x3


@_compiled
def _reduce(products, tiles):
    """From products (16, tiles, o) to the tiles of outputs."""
    for t in range(products.shape[1]):
        for c in range(products.shape[2]):
            p, q = _reduce_four(products[0, t, c], products[4, t, c], products[8, t, c], products[12, t, c])
            r, s = _reduce_four(products[1, t, c], products[5, t, c], products[9, t, c], products[13, t, c])
            u, v = _reduce_four(products[2, t, c], products[6, t, c], products[10, t, c], products[14, t, c])
            x, y = _reduce_four(products[3, t, c], products[7, t, c], products[11, t, c], products[15, t, c])
            tiles[0, t, c], tiles[1, t, c] = _reduce_four(p, r, u, x)
            tiles[2, t, c], tiles[3, t, c] = _reduce_four(q, s, v, y)


@_compiled
def _expand(tiles, half, matrices):
    """The way back of `_reduce`; half, (8, o), is room for one tile."""
    _, n, channels = tiles.shape
    for t in range(n):
        for j in range(2):
            for c in range(channels):
                half[j, c] = tiles[j, t, c]
            for c in range(channels):
                half[2 + j, c] = tiles[j, t, c] + tiles[2 + j, t, c]
            for c in range(channels):
                half[4 + j, c] = tiles[j, t, c] - tiles[2 + j, t, c]
            for c in range(channels):
                half[6 + j, c] = -tiles[2 + j, t, c]
        for k in range(4):
            for c in range(channels):
                matrices[4 * k, t, c] = half[2 * k, c]
            for c in range(channels):
                matrices[4 * k + 1, t, c] = half[2 * k, c] + half[2 * k + 1, c]
            for c in range(channels):
                matrices[4 * k + 2, t, c] = half[2 * k, c] - half[2 * k + 1, c]
            for c in range(channels):
                matrices[4 * k + 3, t, c] = -half[2 * k + 1, c]


@_compiled
def contract(x, half, y):
    """From gradients of transformed kernels, x (16, n, o, c), to those of kernels, y (n, o, 3, 3, c).

    `half` is room for one pair of channels' maps, (3, 4, c).
    """
    _, kernels, outputs, channels = x.shape
    for n in range(kernels):
        for o in range(outputs):
            for j in range(4):
                for c in range(channels):
                    half[0, j, c] = x[j, n, o, c] + (x[4 + j, n, o, c] + x[8 + j, n, o, c]) * HALF
                for c in range(channels):
                    half[1, j, c] = (x[4 + j, n, o, c] - x[8 + j, n, o, c]) * HALF
                for c in range(channels):
                    half[2, j, c] = (x[4 + j, n, o, c] + x[8 + j, n, o, c]) * HALF + x[12 + j, n, o, c]
            for i in range(3):
                for c in range(channels):
                    y[n, o, i, 0, c] = half[i, 0, c] + (half[i, 1, c] + half[i, 2, c]) * HALF
                for c in range(channels):
                    y[n, o, i, 1, c] = (half[i, 1, c] - half[i, 2, c]) * HALF
                for c in range(channels):
                    y[n, o, i, 2, c] = (half[i, 1, c] + half[i, 2, c]) * HALF + half[i, 3, c]


@_compiled
def _set_beyond(tiles, shape, size, value):
    """Sets outputs beyond the edges of maps with odd sides."""
    (rows, columns), (h, w) = shape, size
    for row in range(tiles.shape[1] // columns):
        if w % 2:
            tiles[1::2, (row + 1) * columns - 1] = value
        if h % 2 and row % rows == rows - 1:
            tiles[2:, row * columns:(row + 1) * columns] = value


@_compiled
def _larger(a, b):
    return a if a >= b or a != a else b  # nan stays, as with NumPy


@_compiled
def _pool(tiles, second, start, relu, largest):
    """The largest of each tile's outputs; `second` notes which of two is the larger: in each row, and of the rows."""
    _, n, channels = tiles.shape
    for t in range(n):
        for c in range(channels):
            upper, lower = _larger(tiles[0, t, c], tiles[1, t, c]), _larger(tiles[2, t, c], tiles[3, t, c])
            one = _larger(upper, lower)
            largest[start + t, c] = ZERO if relu and one < 0 else one
        if second.size:
            for c in range(channels):
                upper, lower = _larger(tiles[0, t, c], tiles[1, t, c]), _larger(tiles[2, t, c], tiles[3, t, c])
                second[0, start + t, c] = tiles[1, t, c] > tiles[0, t, c]
                second[1, start + t, c] = tiles[3, t, c] > tiles[2, t, c]
                second[2, start + t, c] = lower > upper


@_compiled
def _unpool(g, y, second, kept, slope, offset, start, tiles):
    """The way back of `_pool`, to where the maxima were; and where y is above 0, unless it is empty."""
    _, n, channels = tiles.shape
    for t in range(n):
        for c in range(channels):
            tiles[0, t, c] = g[start + t, c]
        if y.size:
            for c in range(channels):
                tiles[0, t, c] = tiles[0, t, c] if y[start + t, c] > 0 else ZERO
        for c in range(channels):
            one = tiles[0, t, c]
            lower = one if second[2, start + t, c] else ZERO
            upper = one - lower
            tiles[1, t, c] = upper if second[0, start + t, c] else ZERO
            tiles[0, t, c] = upper - tiles[1, t, c]
            tiles[3, t, c] = lower if second[1, start + t, c] else ZERO
            tiles[2, t, c] = lower - tiles[3, t, c]
        if kept.size:
            for place in range(4):
                for c in range(channels):
                    tiles[place, t, c] += kept[place, start + t, c] * slope[c] + offset[c]


@_compiled
def _add_up(tiles, kept, start, sums):
    """Adds outputs and their squares to sums, float64 (2, 4, o), and copies them to `kept`."""
    _, n, channels = tiles.shape
    for place in range(4):
        for t in range(n):
            for c in range(channels):
                x = numba.float64(tiles[place, t, c])
                sums[0, place, c] += x
                sums[1, place, c] += x * x
            if kept.size:
                for c in range(channels):
                    kept[place, start + t, c] = tiles[place, t, c]


@_compiled
def _turn_rows(kernel, half):
    """The first half of a kernel's transformation by Winograd, that of its rows: (9, size) into half (4, 3, size)."""
    for j in range(3):
        first, second, third = kernel[j], kernel[3 + j], kernel[6 + j]
        for c in range(len(first)):
            middle = (first[c] + third[c]) * HALF
            half[0, j, c] = first[c]
            half[1, j, c] = middle + second[c] * HALF
            half[2, j, c] = middle - second[c] * HALF
            half[3, j, c] = third[c]


@_compiled
def _turn(kernel, o, half, matrices):
    """An output's kernel (9 c,), transformed by Winograd into its matrices (16, o, c); half, (4, 3, c), is room."""
    channels = len(kernel) // 9
    _turn_rows(kernel.reshape(9, channels), half)
    for i in range(4):
        for c in range(channels):
            matrices[4 * i, o, c] = half[i, 0, c]
        for c in range(channels):
            matrices[4 * i + 1, o, c] = (half[i, 0, c] + half[i, 1, c] + half[i, 2, c]) * HALF
        for c in range(channels):
            matrices[4 * i + 2, o, c] = (half[i, 0, c] - half[i, 1, c] + half[i, 2, c]) * HALF
        for c in range(channels):
            matrices[4 * i + 3, o, c] = half[i, 2, c]


@_compiled
def turn(kernels, half, matrices):
    """Several kernels (m, 9, size), whatever the order of their channels, transformed: (m, 16, size); half is room.

    As `_turn`, but in longer runs.
    """
    for k in range(len(kernels)):
        _turn_rows(kernels[k], half)
        for i in range(4):
            first, second, third = half[i]
            for c in range(len(first)):
                middle = (first[c] + third[c]) * HALF
                matrices[k, 4 * i, c] = first[c]
                matrices[k, 4 * i + 1, c] = middle + second[c] * HALF
                matrices[k, 4 * i + 2, c] = middle - second[c] * HALF
                matrices[k, 4 * i + 3, c] = third[c]


@_compiled
def _lay(kernels, matrices, half):
    """A group's kernels (o, 9 c) as matrices: (16, o, c), transformed, or (1, o, 9 c); half is room."""
    for o in range(len(kernels)):
        if len(matrices) == 16:
            _turn(kernels[o], o, half, matrices)
        else:
            matrices[0, o] = kernels[o]


@_compiled
def _multiply(x, own, group, first, area, n, half, kernel, back, y):
    """Rows of a block times the kernels of their own groups: x (places, rows, c) into y (places, rows, o), or back.

    The block's examples are from `first` on, with `area` tiles each, `n` in all; half and kernel are room for `_lay`.
    """
    for t in range(0, n, area):
        example = first + t // area
        if t == 0 or example % group == 0:
            _lay(own[example // group], kernel, half)
        for place in range(len(kernel)):
            for a in range(t, x.shape[1], n):
                if back:
                    numpy.dot(x[place, a:a + area], kernel[place], y[place, a:a + area])
                else:
                    numpy.dot(x[place, a:a + area], kernel[place].T, y[place, a:a + area])


@_compiled
def _mix(kernels, place, shares, mean):
    """The mean (size,) of a place's entries of kernels (m, places, size) with the shares (m,)."""
    for c in range(len(mean)):
        mean[c] = shares[0] * kernels[0, place, c]
    i = 1
    while i + 4 <= len(shares):  # four at a time, so that the mean goes to the cache and back less often
        a, b, c, d = shares[i], shares[i + 1], shares[i + 2], shares[i + 3]
        for j in range(len(mean)):
            mean[j] += (a * kernels[i, place, j] + b * kernels[i + 1, place, j]
                        + c * kernels[i + 2, place, j] + d * kernels[i + 3, place, j])
        i += 4
    for k in range(i, len(shares)):
        for j in range(len(mean)):
            mean[j] += shares[k] * kernels[k, place, j]


@_compiled
def _multiply_mixed(x, kernels, shares, first, area, n, mean, y):
    """As `_multiply`, but of each example a mean of kernels (m, places, size); mean, (size,), is room.

    A place at a time, so that its entries of all kernels stay in the cache.
    """
    kernel = mean.reshape(x.shape[2], y.shape[2])
    for place in range(len(x)):
        for t in range(0, n, area):
            _mix(kernels, place, shares[first + t // area], mean)
            for a in range(t, x.shape[1], n):
                numpy.dot(x[place, a:a + area], kernel, y[place, a:a + area])


@_compiled
def _rectify(outputs, first, alive, start, tiles):
    """The ReLU of outputs (4, n, o), put into tiles or, unless they are the first, added to them."""
    _, n, channels = tiles.shape
    for place in range(4):
        for t in range(n):
            if first:
                for c in range(channels):
                    x = outputs[place, t, c]
                    tiles[place, t, c] = ZERO if x < 0 else x
            else:
                for c in range(channels):
                    x = outputs[place, t, c]
                    tiles[place, t, c] += ZERO if x < 0 else x
            if alive.size:
                for c in range(channels):
                    alive[place, start + t, c] = outputs[place, t, c] > 0


@_compiled
def _let_through(tiles, alive, start, g):
    """The way back of `_rectify`, into g; returns whether anything comes through."""
    _, n, channels = tiles.shape
    count = 0
    for place in range(4):
        for t in range(n):
            for c in range(channels):
                count += alive[place, start + t, c]
                g[place, t, c] = tiles[place, t, c] if alive[place, start + t, c] else ZERO
    return count > 0


@_compiled
def _add(x, y):
    """x is added to y, both (m, n)."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] += x[i, j]


@_compiled
def _rooms(maps, places, size, o, shape, edges):
    """Room for the largest block: one example's padded map, half-transformed rows, matrices, products, and tiles."""
    rows, columns = shape
    most = numpy.max(edges[1:] - edges[:-1]) * rows * columns
    n_products = 16 * most if places == 16 else 4 * most
    return (numpy.zeros((2 * rows + 2, 2 * columns + 2, maps.shape[3]), maps.dtype),
            numpy.empty((4, 2 * columns + 2, maps.shape[3]), maps.dtype), numpy.empty(n_products * size, maps.dtype),
            numpy.empty(n_products * o, maps.dtype), numpy.empty(4 * most * o, maps.dtype))


@_compiled
def forward(maps, kernels, own, shares, group, shape, edges, relu, alive, second, kept, sums, pooled):
    """Convolutions and pooling of their sum, block by block.

    Args:
        maps: (n, h, w, c).
        kernels: (k, 16, c, o), transformed, or (k, 1, 9 c, o): of all examples.
        own: (l, groups, o, 9 c), of each group of examples; or (1, m, places, c o), transformed, of which each example
            has a mean.
        shares: (n, m), of the kernels in an example's mean; or empty, where each group has its own.
        group: examples to a group.
        shape: rows and columns of tiles of an example.
        edges: int64, where blocks of examples start, and where the last one stops.
        relu: whether a ReLU follows: on each convolution, where there are several.
        alive: bool (k + l, 4, tiles, o), gets what is above 0 of each of several convolutions; or (k + l, 0, 0, 0).
        second: bool (3, tiles, o) for the way back, or empty.
        kept: (4, tiles, o), gets the outputs, those beyond the edges 0; or empty.
        sums: float64 (blocks, 2, 4, o) of 0, gets the sums of outputs and of their squares; or empty.
        pooled: (tiles, o), gets the result.
    """
    rows, columns = shape
    _, h, w, channels = maps.shape
    shared, places, size, o = kernels.shape
    count, per_tile, area = shared + len(own), 1 if places == 16 else 4, rows * columns
    padded, half, room, products_room, tiles_room = _rooms(maps, places, size, o, shape, edges)
    more_room = numpy.empty_like(tiles_room) if count > 1 else tiles_room
    mean, half_kernel = numpy.empty(o * size, maps.dtype), numpy.empty((4, 3, channels), maps.dtype)
    kernel = numpy.empty((places, o, size), maps.dtype)
    for i in range(len(edges) - 1):
        n, start = (edges[i + 1] - edges[i]) * area, edges[i] * area
        matrices = room[:places * n * per_tile * size].reshape(places, n * per_tile, size)
        products = products_room[:places * n * per_tile * o].reshape(places, n * per_tile, o)
        tiles = tiles_room[:4 * n * o].reshape(4, n, o)
        if places == 16:
            _transform(maps[edges[i]:edges[i + 1]], padded, half, matrices)
        else:
            _patches(maps[edges[i]:edges[i + 1]], padded, matrices)
        for k in range(count):
            if k < shared:
                for place in range(places):
                    numpy.dot(matrices[place], kernels[k, place], products[place])
            elif shares.size:
                _multiply_mixed(matrices, own[0], shares, edges[i], area, n, mean, products)
            else:
                _multiply(matrices, own[k - shared], group, edges[i], area, n, half_kernel, kernel, False, products)
            outputs = products.reshape(-1)[:4 * n * o].reshape(4, n, o)
            if places == 16:
                outputs = more_room[:4 * n * o].reshape(4, n, o)
                _reduce(products, outputs)
            if count > 1:
                _rectify(outputs, k == 0, alive[k], start, tiles)
            else:
                tiles = outputs
        if sums.size:
            _set_beyond(tiles, shape, (h, w), 0)
            _add_up(tiles, kept, start, sums[i])
        _set_beyond(tiles, shape, (h, w), -numpy.inf)
        _pool(tiles, second, start, relu and count == 1, pooled)


@_compiled
def backward(maps, kernels, own, shares, group, shape, edges, g, y, alive, second, kept, slope, offset, total,
             gradients, gx):
    """The way back of `forward`.

    Args:
        maps, own, shares, group, shape, edges, alive, second, kept: as there, but for the order of transformed kernels:
            (1, m, places, o c).
        kernels: (k, places, o, size), transposed: products are faster.
        g: (tiles, o), of the result.
        y: (tiles, o), the result if a ReLU made it; or empty.
        slope, offset: (o,), with `kept`: outputs slope + offset is added to their gradient; or empty, all three.
        total: (k, places, size, o) of 0, gets the kernels' gradients; or empty.
        gradients: (l, groups, o, 3, 3, c), gets those of each group's weights; without `own`, of each group's
            share in the one kernel; or empty.
        gx: (n, h, w, c), gets that of the maps; or empty.
    """
    rows, columns = shape
    _, h, w, channels = maps.shape
    shared, places, o, size = kernels.shape
    count, per_tile, area = shared + len(own), 1 if places == 16 else 4, rows * columns
    padded, half, room, g_room, tiles_room = _rooms(maps, places, size, o, shape, edges)
    through_room = numpy.empty_like(tiles_room) if count > 1 else tiles_room
    g_matrices_room = numpy.empty_like(room) if count > 1 else room
    more_room = numpy.empty_like(room) if count > 1 else room
    half_tile = numpy.empty((8, o), maps.dtype)
    mean, half_kernel = numpy.empty(o * size, maps.dtype), numpy.empty((4, 3, channels), maps.dtype)
    kernel = numpy.empty((places, o, size), maps.dtype)
    g_kernel, half_g_kernel = numpy.empty((o, size), maps.dtype), numpy.empty((3, 4, channels), maps.dtype)
    g_kernels, g_turned = numpy.empty((places, 1, o, size), maps.dtype), numpy.empty((size, o), maps.dtype)
    g_padded = numpy.empty_like(padded)
    for i in range(len(edges) - 1):
        n, start = (edges[i + 1] - edges[i]) * area, edges[i] * area
        length = places * n * per_tile * size
        tiles = tiles_room[:4 * n * o].reshape(4, n, o)
        _unpool(g, y, second, kept, slope, offset, start, tiles)
        if kept.size:
            _set_beyond(tiles, shape, (h, w), 0)
        matrices = room[:length].reshape(places, n * per_tile, size)
        if total.size or gradients.size:
            if places == 16:
                _transform(maps[edges[i]:edges[i + 1]], padded, half, matrices)
            else:
                _patches(maps[edges[i]:edges[i + 1]], padded, matrices)
        g_matrices = g_matrices_room[:length].reshape(places, n * per_tile, size)
        found = False
        for k in range(count):
            through = tiles
            if count > 1:
                through = through_room[:4 * n * o].reshape(4, n, o)
                if not _let_through(tiles, alive[k], start, through):
                    if gradients.size and k >= shared:
                        gradients[k - shared, edges[i] // group:-(-edges[i + 1] // group)] = 0
                    continue
            g_products = through.reshape(1, 4 * n, o)
            if places == 16:
                g_products = g_room[:16 * n * o].reshape(16, n, o)
                _expand(through, half_tile, g_products)
            if total.size and k < shared:
                for place in range(places):
                    numpy.dot(matrices[place].T, g_products[place], g_turned)
                    _add(g_turned, total[k, place])
            if gradients.size and (k >= shared or not len(own)):
                for first in range(edges[i], edges[i + 1], group):
                    a = (first - edges[i]) * area
                    b = min(a + group * area, n)
                    for place in range(places):
                        numpy.dot(g_products[place, a:b].T, matrices[place, a:b], g_kernels[place, 0])
                        for other in range(1, per_tile):
                            c, d = a + other * n, b + other * n
                            numpy.dot(g_products[place, c:d].T, matrices[place, c:d], g_kernel)
                            _add(g_kernel, g_kernels[place, 0])
                    its = gradients[max(k - shared, 0), first // group:first // group + 1]
                    if places == 16:
                        contract(g_kernels, half_g_kernel, its)
                    else:
                        its[0] = g_kernels.reshape(o, 3, 3, channels)
            if not gx.size:
                continue
            out = more_room[:length].reshape(places, n * per_tile, size) if found else g_matrices
            if k < shared:
                for place in range(places):
                    numpy.dot(g_products[place], kernels[k, place], out[place])
            elif shares.size:
                _multiply_mixed(g_products, own[0], shares, edges[i], area, n, mean, out)
            else:
                _multiply(g_products, own[k - shared], group, edges[i], area, n, half_kernel, kernel, True, out)
            if found:
                for place in range(places):
                    _add(out[place], g_matrices[place])
            found = True
        if gx.size:
            if not found:
                g_matrices[:] = 0
            if places == 16:
                _overlap(g_matrices, g_padded, half, gx[edges[i]:edges[i + 1]])
            else:
                _spread(g_matrices, g_padded, gx[edges[i]:edges[i + 1]])


@_compiled
def normalize(x, scale, offset, y):
    """The ReLU of x (n, o), scaled and shifted by (o,), into y."""
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            one = x[i, c] * scale[c] + offset[c]
            y[i, c] = ZERO if one < 0 else one


@_compiled
def unnormalize(gy, y, x, mean, scale, g, sums):
    """The way back of `normalize`: g, of x, and to sums, float64 (2, o), gradients are added, alone and times x - mean.
    """
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            g[i, c] = gy[i, c] if y[i, c] > 0 else ZERO
        for c in range(x.shape[1]):
            sums[0, c] += g[i, c]
        for c in range(x.shape[1]):
            sums[1, c] += g[i, c] * (x[i, c] - mean[c])
        for c in range(x.shape[1]):
            g[i, c] *= scale[c]


@_compiled
def _locate(gradient, logarithm, p, scale):
    """A gradient's position, and what its magnitude is above that; all as in `preprocessing`, and scale e^p."""
    small, far = gradient * scale, logarithm / p + TWO
    near = abs(small) < ONE
    return small if near else far if gradient >= 0 else -far, far - ONE if near and far > ONE else ZERO


@_compiled
def _guess(position, edges, first, low, rate):
    """The piece that a position is in, or one before if its cell has several edges; of nan, any."""
    # Selected, not branched to: half of the guesses at a branch would be wrong, which takes ten times as long.
    cell = (position - low) * rate + ONE
    top = ONE * (len(first) - 1)
    cell = cell if cell < top else top
    k = first[numpy.uint32(cell if cell > 0 else ZERO)]
    return k + numpy.uint32(1) if position >= edges[k] else k


@_compiled
def _piece(position, edges, first, low, rate):
    """The piece that a position is in."""
    k = _guess(position, edges, first, low, rate)
    while position >= edges[k]:
        k += numpy.uint32(1)
    return k


@_compiled
def evaluate(gradients, logarithms, p, scale, edges, first, low, rate, coefficients, y):
    """A piecewise linear function of gradients; all as in `pieces`, but for a nan after the last of the edges."""
    positions = numpy.empty(CHUNK, y.dtype)
    for start in range(0, len(y), CHUNK):
        n, rare = min(CHUNK, len(y) - start), 0
        for i in range(n):  # on its own it makes vector instructions
            positions[i], above = _locate(gradients[start + i], logarithms[start + i], p, scale)
            rare += above > 0
        for i in range(n):  # without a branch these take half as long
            k = _guess(positions[i], edges, first, low, rate)
            rare += positions[i] >= edges[k]
            y[start + i] = coefficients[k, 0] * positions[i] + coefficients[k, 1]
        if rare:
            for i in range(n):
                position, above = _locate(gradients[start + i], logarithms[start + i], p, scale)
                k = _piece(position, edges, first, low, rate)
                y[start + i] = coefficients[k, 0] * position + coefficients[k, 1] + coefficients[k, 2] * above


@_compiled
def add_up_pieces(gradients, logarithms, p, scale, edges, first, low, rate, g, sums):
    """Adds to sums (k, 3) of each piece its output gradients g, times what the coefficients are of."""
    for i in range(len(g)):
        if g[i] != 0:
            position, above = _locate(gradients[i], logarithms[i], p, scale)
            k = _piece(position, edges, first, low, rate)
            sums[k, 0] += g[i] * position
            sums[k, 1] += g[i]
            if above > 0:
                sums[k, 2] += g[i] * above
