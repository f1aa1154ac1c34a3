"""What `tiled` else does with NumPy, in several passes over its arrays: loops that Numba compiles.

They are the same to the last bit: nothing but sums, differences and comparisons happens here, in the same order. A loop
is compiled, or taken from Numba's cache, when it is first called. Arrays have no gaps: tiles (4, tiles, o) of outputs,
their places first, and matrices (16, tiles, c) of Winograd's algorithm, tiles in the order of examples, rows, columns.

Loops over channels stand apart, one for each result, because only then LLVM makes vector instructions of them.
"""
import numba


def _compiled(function):
    settings = {'nogil': True, 'error_model': 'numpy'}
    try:
        return numba.njit(function, cache=True, **settings)
    except RuntimeError:  # there is no folder to cache it in
        return numba.njit(function, **settings)


@_compiled
def transform(maps, padded, half, matrices):
    """Tiles of inputs, transformed: maps (n, h, w, c) into matrices.

    Args:
        maps, matrices: as said.
        padded: room for one example, (2 rows + 2, 2 columns + 2, c), 0 around its map.
        half: room for one row of tiles, (4, 2 columns + 2, c).
    """
    n, h, w, channels = maps.shape
    rows, columns = padded.shape[0] // 2 - 1, padded.shape[1] // 2 - 1
    t = 0
    for example in range(n):
        for i in range(h):
            for j in range(w):
                for c in range(channels):
                    padded[i + 1, j + 1, c] = maps[example, i, j, c]
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
def overlap(matrices, padded, half, maps):
    """The way back of `transform`: sums of tiles that overlap. Arguments as there; matrices are only read."""
    n, h, w, channels = maps.shape
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
        for i in range(h):
            for j in range(w):
                for c in range(channels):
                    maps[example, i, j, c] = padded[i + 1, j + 1, c]


@_compiled
def _reduce(x0, x1, x2, x3):
    return x1 + x2 + x0, x1 - x2 - x3


@_compiled
def reduce(products, tiles):
    """From products, matrices, to the tiles of outputs."""
    for t in range(products.shape[1]):
        for c in range(products.shape[2]):
            p, q = _reduce(products[0, t, c], products[4, t, c], products[8, t, c], products[12, t, c])
            r, s = _reduce(products[1, t, c], products[5, t, c], products[9, t, c], products[13, t, c])
            u, v = _reduce(products[2, t, c], products[6, t, c], products[10, t, c], products[14, t, c])
            x, y = _reduce(products[3, t, c], products[7, t, c], products[11, t, c], products[15, t, c])
            tiles[0, t, c], tiles[1, t, c] = _reduce(p, r, u, x)
            tiles[2, t, c], tiles[3, t, c] = _reduce(q, s, v, y)


@_compiled
def expand(tiles, half, matrices):
    """The way back of `reduce`; half, (8, o), is room for one tile."""
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
def _contract(x0, x1, x2, x3, half):
    middle = (x1 + x2) * half
    return x0 + middle, (x1 - x2) * half, middle + x3


@_compiled
def contract(x, half, y):
    """From gradients of transformed kernels, x (16, n, o, c), to those of kernels, y (n, o, 3, 3, c); half is 0.5."""
    _, kernels, outputs, channels = x.shape
    for n in range(kernels):
        for o in range(outputs):
            for c in range(channels):
                p = _contract(x[0, n, o, c], x[4, n, o, c], x[8, n, o, c], x[12, n, o, c], half)
                q = _contract(x[1, n, o, c], x[5, n, o, c], x[9, n, o, c], x[13, n, o, c], half)
                r = _contract(x[2, n, o, c], x[6, n, o, c], x[10, n, o, c], x[14, n, o, c], half)
                s = _contract(x[3, n, o, c], x[7, n, o, c], x[11, n, o, c], x[15, n, o, c], half)
                y[n, o, 0, 0, c], y[n, o, 0, 1, c], y[n, o, 0, 2, c] = _contract(p[0], q[0], r[0], s[0], half)
                y[n, o, 1, 0, c], y[n, o, 1, 1, c], y[n, o, 1, 2, c] = _contract(p[1], q[1], r[1], s[1], half)
                y[n, o, 2, 0, c], y[n, o, 2, 1, c], y[n, o, 2, 2, c] = _contract(p[2], q[2], r[2], s[2], half)


@_compiled
def _larger(a, b):
    return a if a >= b or a != a else b  # nan stays, as with NumPy


@_compiled
def pool(tiles, second, start, largest):
    """The largest of each tile's outputs, into largest (tiles, o).

    Args:
        tiles, largest: as said.
        second: bool (3, all tiles, o), to note from tile `start` on which of a pair is the larger: of two in each row,
            and of the rows; or None.
    """
    _, n, channels = tiles.shape
    for t in range(n):
        for c in range(channels):
            upper, lower = _larger(tiles[0, t, c], tiles[1, t, c]), _larger(tiles[2, t, c], tiles[3, t, c])
            largest[t, c] = _larger(upper, lower)
            if second is not None:
                second[0, start + t, c] = tiles[1, t, c] > tiles[0, t, c]
                second[1, start + t, c] = tiles[3, t, c] > tiles[2, t, c]
                second[2, start + t, c] = lower > upper


@_compiled
def unpool(g, second, kept, slope, offset, start, tiles):
    """The way back of `pool`, from g (tiles, o) to where the maxima were: into tiles.

    With `kept` (4, all tiles, o) and with slope and offset, (o,), that is kept slope + offset more everywhere; or None.
    """
    n, channels = g.shape
    for t in range(n):
        for c in range(channels):
            lower = g[t, c] * second[2, start + t, c]
            upper = g[t, c] - lower
            tiles[1, t, c] = upper * second[0, start + t, c]
            tiles[0, t, c] = upper - tiles[1, t, c]
            tiles[3, t, c] = lower * second[1, start + t, c]
            tiles[2, t, c] = lower - tiles[3, t, c]
        if kept is not None:
            for place in range(4):
                for c in range(channels):
                    tiles[place, t, c] += kept[place, start + t, c] * slope[c] + offset[c]


@_compiled
def add_up(tiles, kept, start, sums):
    """Adds outputs and their squares to sums, float64 (2, 4, o), and copies them to kept (4, all tiles, o), or None."""
    _, n, channels = tiles.shape
    for place in range(4):
        for t in range(n):
            for c in range(channels):
                x = numba.float64(tiles[place, t, c])
                sums[0, place, c] += x
                sums[1, place, c] += x * x
            if kept is not None:
                for c in range(channels):
                    kept[place, start + t, c] = tiles[place, t, c]
