"""Convolution by a 3x3 kernel that all examples share, ReLU and 2x2 max pooling, on a CPU: in tiles of 2x2 outputs.

A tile's outputs are what a window of the pooling takes. Arrays have the place in a tile first, (2, 2, examples, rows,
columns, channels): pooling then compares whole arrays. The ReLU comes after it, where there is a quarter to do, to the
same result.

With many channels the outputs come from Winograd's algorithm F(2x2, 3x3) (Lavin & Gray 2016): the 4x4 inputs of a tile
and the kernels are transformed, multiplied entry by entry, and transformed back, with 16 multiplications where 36 are
due. It is exact but for rounding. With few channels they come from products of patches.

Where Numba is installed, `loops` works on whole runs of blocks. The methods that work on one block say what it does.
"""
import functools
import os
import warnings

import numpy

from ops.blocks import blocks_of, in_parts, matmul, relu_in_place, scratch
from ops.compat import chainer, type_check

ELEMENTS = 1 << 17  # numbers in the inputs of a block's tiles, or in their products
LEAST = 16  # channels that Winograd's algorithm is worth it for
TRANSFORM = numpy.array([[1, 0, 0], [.5, .5, .5], [.5, -.5, .5], [0, 0, 1]], numpy.float32)  # of a kernel; G there


def loops(dtype):
    """The module `loops` where it serves, or None. For other dtypes than the models' it would take long to compile."""
    return _loops() if dtype == numpy.float32 else None


@functools.cache
def _loops():
    """The module `loops`, or None where Numba is missing or told not to compile. It takes half a second to import."""
    if os.environ.get('NUMBA_DISABLE_JIT', '0') not in ('', '0'):
        return None
    try:
        import ops.loops as loops
    except ImportError as error:
        if error.name != 'numba':  # it is there, but not for this NumPy
            warnings.warn(f'Numba cannot be used, so convolutions take longer: {error}', stacklevel=2)
        return None
    return loops


def suits(x, weight, group=1):
    """Whether maps x and a weight can be convolved in tiles, on a CPU.

    The weight is (o, 3, 3, c) for all examples, or the same for each of g groups, as `numpy.broadcast_to` makes it, (g,
    o, 3, 3, c) without a copy: groups get gradients of their own. Few tiles to a group aren't worth it then.
    """
    x, weight = chainer.as_array(x), chainer.as_array(weight)
    return (isinstance(x, numpy.ndarray) and weight.shape[-3:-1] == (3, 3)
            and (weight.ndim == 4 or weight.ndim == 5 and weight.strides[0] == 0 and group * x[0, 0].size > 16))


def mixes(values):
    """Whether means of kernels (m, o, 3, 3, c) can wait until `tiled_sums` needs them."""
    values = chainer.as_array(values)
    return (isinstance(values, numpy.ndarray) and loops(values.dtype) is not None and values.ndim == 5
            and values.shape[2:4] == (3, 3))


def tiled(x, weight, group=1):
    """The function for these: from (n, c, h, w), channels last in memory, to (n, o, h / 2, w / 2).

    Args:
        x, weight: as of `suits`.
        group: consecutive examples to a group; the last group may be smaller.
    """
    return PooledConvolution(group).apply((x, weight))[0]


class PooledConvolution(chainer.FunctionNode):
    """See `tiled`."""

    def __init__(self, group=1):
        self.group = group

    def check_type_forward(self, in_types):
        x, weight = in_types[0], in_types[1]
        type_check.expect(x.dtype.kind == 'f', weight.dtype == x.dtype, x.ndim == 4, weight.shape[-3] == 3,
                          weight.shape[-2] == 3, weight.shape[-1] == x.shape[1])
        if type_check.eval(weight.ndim) == 5:
            type_check.expect(weight.shape[0] == -(-type_check.eval(x.shape[0]) // self.group))

    def forward(self, inputs):
        x, weight = inputs
        self.retain_inputs((0, 1))
        self.retain_outputs((0,))
        self.tiles = tiles_of(x, weight, self.group)
        y = numpy.empty(self.tiles.pooled, x.dtype)
        self.second = self.tiles.new_second()
        self.tiles.forward(x, weight, self.second, y, relu=True)
        return y.transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        x, weight = (variable.array for variable in self.get_retained_inputs())
        y, gy = (array.transpose(0, 2, 3, 1) for array in (self.get_retained_outputs()[0].array, grad_outputs[0].array))
        gradients = self.tiles.backward(x, weight, gy, self.second, indexes, y=y)
        return [chainer.as_variable(gradients[i]) for i in indexes]


def tiles_of(x, weight, group=1):
    """`Tiles` for a convolution of x with a weight."""
    return (_Winograd if weight.shape[-1] >= LEAST else _Patches)(x, weight, group)


class Tiles:
    """A convolution with tiles of outputs, (2, 2, examples, rows, columns, o), and the pooling of these.

    Subclasses turn maps into matrices, and products of these with the kernels' into outputs, and back.

    Args:
        x, weight: arrays as of `tiled`.
        group: as there.
    """

    def __init__(self, x, weight, group):
        self.n_groups = len(weight) if weight.ndim == 5 else 0  # 0: a gradient for all
        self.group = group if self.n_groups else 1
        self.size = x.shape[2:]
        self.shape = tuple(-(-side // 2) for side in self.size)
        self.n_tiles = self.shape[0] * self.shape[1]  # of an example
        self.pooled = (len(x), *self.shape, weight.shape[-4])

    def forward(self, x, weight, second, pooled, relu=False, kept=None, sums=False):
        """Convolution and pooling.

        Args:
            x, weight: arrays.
            second: as of `new_second`.
            pooled: array (n, rows, columns, o), for the result.
            relu: whether a ReLU follows.
            kept: array (2, 2, n, rows, columns, o), for the outputs, those beyond the edges 0; or None.
            sums: whether to sum the outputs up.

        Returns:
            With `sums` float64 (2, o), sums of the outputs and of their squares.
        """
        maps, kernels = x.transpose(0, 2, 3, 1), self.kernels(weight[0] if self.n_groups else weight)
        compiled, empty = loops(x.dtype), nothing(x.dtype)
        if compiled:
            maps, kernels = map(plain, (maps, kernels))

        def work(blocks):
            its = numpy.zeros((len(blocks), 2, 4, len(kernels[0, 0]))) if sums else None
            if compiled:
                compiled.forward(maps, kernels[None], empty(4), empty(2), self.group, self.shape, edges_of(blocks),
                                 relu, numpy.empty((1, 0, 0, 0), bool), flat(second, 3, bool), flat(kept, 4, x.dtype),
                                 numpy.zeros((0, 2, 4, 0)) if its is None else its, flat(pooled, 1)[0])
                return its
            for i, (start, stop) in enumerate(blocks):
                matrices = self.matrices(maps[start:stop])
                products = matmul(matrices, kernels, scratch('products', matrices.shape[:2] + kernels.shape[2:], x))
                outputs = self.outputs(products, stop - start)
                if sums:
                    self.set_beyond(outputs, 0)
                    rows = outputs.reshape(4, -1, outputs.shape[-1]).astype(numpy.float64)
                    its[i] = rows.sum(axis=1), (rows * rows).sum(axis=1)
                    if kept is not None:
                        kept[:, :, start:stop] = outputs
                self.set_beyond(outputs, -numpy.inf)
                self.pool(outputs, second, start, stop, pooled[start:stop])
                if relu:
                    relu_in_place(pooled[start:stop])
            return its

        parts = in_parts(work, self.cut(x, self.numbers(weight.shape[-4], weight.shape[-1]), self.group), numpy, sums)
        return sum(block.sum(axis=1) for part in parts for block in part) if sums else None

    def backward(self, x, weight, g, second, indexes, y=None, share=None):
        """The way back: gradients of x and of the weight, None for what isn't in `indexes`.

        Args:
            x, weight, second: as in `forward`.
            g: array (n, rows, columns, o), the gradient of the result.
            indexes: of the gradients that are due, 0 and 1.
            y: the result, if a ReLU made it.
            share: (kept, slope, offset), the latter (o,): outputs slope + offset more goes to the outputs.
        """
        maps, kernels = x.transpose(0, 2, 3, 1), self.kernels(weight[0] if self.n_groups else weight)
        gx = numpy.empty(maps.shape, x.dtype) if 0 in indexes else None
        gradient = numpy.empty(weight.shape, x.dtype) if 1 in indexes else None
        grouped = gradient is not None and self.n_groups
        compiled, empty = loops(x.dtype), nothing(x.dtype)
        if compiled:
            maps, turned, g = map(plain, (maps, kernels.swapaxes(1, 2), g))
            y = y if y is None else plain(y)
        numbers = self.numbers(weight.shape[-4], weight.shape[-1])
        if grouped:  # their kernels' gradients have to fit, too
            numbers = max(numbers, 2 * weight[0].size // (self.group * self.n_tiles))

        def work(blocks):
            total = None
            if gradient is not None and not grouped:
                total = numpy.zeros(kernels.shape, x.dtype)
            if compiled:
                kept, slope, offset = share or (None, empty(1), empty(1))
                compiled.backward(maps, turned[None], empty(4), empty(2), self.group, self.shape,
                                  edges_of(blocks), flat(g, 1)[0], flat(y, 1, x.dtype)[0],
                                  numpy.empty((1, 0, 0, 0), bool), flat(second, 3), flat(kept, 4, x.dtype), slope,
                                  offset, empty(4) if total is None else total[None],
                                  gradient[None] if grouped else empty(6), empty(4) if gx is None else gx)
                return total
            for start, stop in blocks:
                its = g[start:stop] if y is None else g[start:stop] * (y[start:stop] > 0)
                g_products = self.g_products(self.unpool(its, second, start, stop, share))
                if gradient is not None:
                    matrices = self.matrices(maps[start:stop])
                    groups = slice(start // self.group, -(-stop // self.group))
                    g_kernels = self.g_kernels(matrices, g_products, groups.stop - groups.start if grouped else 1)
                    if grouped:
                        self.g_weights(g_kernels, gradient[groups])
                    else:
                        total += g_kernels[:, 0].swapaxes(1, 2)
                if gx is not None:
                    g_matrices = matmul(g_products, kernels.swapaxes(1, 2),
                                        scratch('products', g_products.shape[:2] + kernels.shape[1:2], x))
                    self.fold(g_matrices, gx[start:stop])
            return total

        parts = in_parts(work, self.cut(x, numbers, self.group), numpy, gradient is not None and not grouped)
        if gradient is not None and not grouped:
            self.g_weights(sum(parts).swapaxes(1, 2)[:, None], gradient[None])
        return gx.transpose(0, 3, 1, 2) if gx is not None else None, gradient

    def cut(self, x, numbers, step):
        """Blocks of examples at multiples of `step`; `numbers` to a tile in a block's largest array."""
        return blocks_of(len(x), max(1, ELEMENTS // (self.n_tiles * numbers)), step)

    def padded(self, n, c, like):
        """Zeros around maps, to whole tiles: an array (n, h, w, c) whose border alone is set, and the maps in it."""
        (rows, columns), (h, w) = self.shape, self.size
        padded = scratch('padded', (n, 2 * rows + 2, 2 * columns + 2, c), like)
        padded[:, 0] = padded[:, h + 1:] = padded[:, :, 0] = padded[:, :, w + 1:] = 0
        return padded, padded[:, 1:h + 1, 1:w + 1]

    def set_beyond(self, outputs, value):
        """Sets outputs beyond the maps' edges, where these have odd sides."""
        if self.size[0] % 2:
            outputs[1, :, :, -1] = value
        if self.size[1] % 2:
            outputs[:, 1, :, :, -1] = value

    def new_second(self):
        """Room for which of a pair is the larger: of two in each of a window's rows, and of the rows."""
        return numpy.empty((3, *self.pooled), bool) if chainer.config.enable_backprop else None

    def pool(self, outputs, second, start, stop, y):
        """The largest of each window's 2x2 outputs, into y."""
        left, right = outputs[:, 0], outputs[:, 1]
        rows = numpy.maximum(left, right, out=scratch('rows', left.shape, left))
        if second is not None:
            numpy.greater(right, left, out=second[:2, start:stop])
            numpy.greater(rows[1], rows[0], out=second[2, start:stop])
        numpy.maximum(rows[0], rows[1], out=y)

    def unpool(self, g, second, start, stop, share):
        """The way back, (2, 2, ...): to where the maxima were, of equals to the first; `share` as of `backward`."""
        second = second[:, start:stop]
        rows = scratch('rows', (2,) + g.shape, g)
        numpy.multiply(g, second[2], out=rows[1])
        numpy.subtract(g, rows[1], out=rows[0])
        outputs = scratch('outputs', (2, 2) + g.shape, g)
        numpy.multiply(rows, second[:2], out=outputs[:, 1])
        numpy.subtract(rows, outputs[:, 1], out=outputs[:, 0])
        if share:
            kept, slope, offset = share
            more = numpy.multiply(kept[:, :, start:stop], slope, out=scratch('more', outputs.shape, g))
            more += offset
            outputs += more
            self.set_beyond(outputs, 0)
        return outputs


class _Patches(Tiles):
    """One matrix (2 x 2 x tiles, 9 x c)."""

    places = 1

    def numbers(self, o, c):
        """In a tile's inputs or products, whichever are more."""
        return 4 * max(9 * c, o)

    def kernels(self, weight):
        return weight.reshape(1, len(weight), -1).swapaxes(1, 2)

    def g_kernels(self, matrices, g, n):
        """Gradients of the kernels (1, n, o, 9 c), one for each of n shares of a block's examples."""
        if n == 1:
            return g[0].T.dot(matrices[0])[None, None]
        g, matrices = (array.reshape(4, n, -1, array.shape[2]) for array in (g, matrices))
        return numpy.matmul(g.swapaxes(2, 3), matrices).sum(axis=0, keepdims=True)

    def g_weights(self, g_kernels, out):
        out[...] = g_kernels.reshape(out.shape)

    def matrices(self, maps):
        n, c = maps.shape[0], maps.shape[3]
        padded, inside = self.padded(n, c, maps)
        inside[...] = maps
        patches = scratch('patches', (3, 3, c, 2, 2, n, *self.shape), maps)  # with few channels that is long runs
        s0, s1, s2, s3 = padded.strides
        patches[...] = numpy.lib.stride_tricks.as_strided(
            padded, patches.shape, (s1, s2, s3, s1, s2, s0, 2 * s1, 2 * s2))
        return patches.reshape(1, 9 * c, -1).swapaxes(1, 2)

    def outputs(self, products, n):
        return products.reshape(2, 2, n, *self.shape, -1)

    def g_products(self, g):
        return g.reshape(1, -1, g.shape[-1])

    def fold(self, g, out):
        n, c = out.shape[0], out.shape[3]
        g = g.reshape(2, 2, n, *self.shape, 3, 3, c)
        padded, inside = self.padded(n, c, g)
        padded.fill(0)
        for place in numpy.ndindex(2, 2, 3, 3):
            i, j, row, column = place
            window = padded[:, i + row:, j + column:][:, :2 * self.shape[0]:2, :2 * self.shape[1]:2]
            window += g[i, j, :, :, :, row, column]
        out[...] = inside


class _Winograd(Tiles):
    """16 matrices (tiles, c), the entries of the transformed inputs (4, 4, examples, rows, columns, c)."""

    places = 16

    def numbers(self, o, c):
        return 16 * max(o, c)

    def kernels(self, weight):
        transform = TRANSFORM.astype(weight.dtype)
        o, _, _, c = weight.shape
        half = transform.dot(weight.transpose(1, 2, 3, 0).reshape(3, -1))
        return matmul(transform, half.reshape(4, 3, -1), numpy.empty((4, 4, c * o), weight.dtype)).reshape(16, c, o)

    def g_kernels(self, matrices, g, n):
        """Gradients of the transformed kernels (16, n, o, c), one for each of n shares of a block's examples."""
        g, matrices = (array.reshape(16, n, -1, array.shape[2]) for array in (g, matrices))
        return matmul(g.swapaxes(2, 3), matrices, scratch('g_kernels', (16, n, g.shape[3], matrices.shape[3]), g))

    def g_weights(self, g_kernels, out):
        """The way back of `kernels`, for several: into out (n, o, 3, 3, c)."""
        for i, row in enumerate(_contract(g_kernels.reshape(4, 4, *g_kernels.shape[1:]))):
            for j, entry in enumerate(_contract(row)):
                out[:, :, i, j] = entry

    def matrices(self, maps):
        (rows, columns), (n, _, _, c) = self.shape, maps.shape
        whole = scratch('whole', (4, 4, n, rows, columns, c), maps)
        padded, inside = self.padded(n, c, maps)
        inside[...] = maps
        half = scratch('half', (4, n, rows, 2 * columns + 2, c), maps)
        _transform([padded[:, i:i + 2 * rows:2] for i in range(4)], half)
        _transform([half[:, :, :, i:i + 2 * columns:2] for i in range(4)], whole.swapaxes(0, 1))
        return flat(whole, 16)

    def outputs(self, products, n):
        outputs = scratch('outputs', (2, 2, n, *self.shape, products.shape[-1]), products)
        products = products.reshape(4, 4, n, *self.shape, -1)
        half = scratch('half', (2,) + products.shape[1:], products)
        _reduce(products, half)
        _reduce(half.swapaxes(0, 1), outputs.swapaxes(0, 1))
        return outputs

    def g_products(self, g):
        whole = scratch('whole_g', (4, 4) + g.shape[2:], g)
        half = scratch('half', (4,) + g.shape[1:], g)
        _expand(g, half)
        _expand(half.swapaxes(0, 1), whole.swapaxes(0, 1))
        return flat(whole, 16)

    def fold(self, g, out):
        (rows, columns), (n, _, _, c) = self.shape, out.shape
        half = scratch('half', (4, n, rows, 2 * columns + 2, c), g)
        _overlap(g.reshape(4, 4, n, rows, columns, c).swapaxes(0, 1), half, 3)
        padded, inside = self.padded(n, c, g)
        _overlap(half, padded, 1)
        out[...] = inside


def edges_of(blocks):
    """Where blocks start, and where the last one stops."""
    return numpy.array([start for start, _ in blocks] + [blocks[-1][1]])


def plain(array):
    """The array as `loops` takes it. For one that is read-only Numba would compile all of it once more."""
    return numpy.require(array, requirements='CW')


def nothing(dtype):
    """A function from a number of axes to an empty array."""
    return lambda n_axes: numpy.empty((0,) * n_axes, dtype)


def flat(array, places, dtype=None):
    """(places, tiles, channels); nothing of these for None."""
    return numpy.empty((places, 0, 0), dtype) if array is None else array.reshape(places, -1, array.shape[-1])


def _transform(x, out):
    """The four rows, or columns, of tiles of inputs."""
    numpy.subtract(x[0], x[2], out=out[0])
    numpy.add(x[1], x[2], out=out[1])
    numpy.subtract(x[2], x[1], out=out[2])
    numpy.subtract(x[1], x[3], out=out[3])


def _overlap(g, out, axis):
    """The way back of `_transform`, which destroys g: sums of tiles that overlap along an axis of `out`."""
    g, out = [one.swapaxes(0, axis) for one in g], out.swapaxes(0, axis)
    even, odd = out[0::2], out[1::2]
    even[:-1] = g[0]
    even[-1] = 0
    odd[-1] = 0
    numpy.subtract(g[1], g[2], out=odd[:-1])
    odd[:-1] += g[3]
    odd[1:] -= g[3]
    g[1] += g[2]
    g[1] -= g[0]
    even[1:] += g[1]


def _reduce(x, out):
    """From four rows, or columns, of products to the two of the outputs."""
    numpy.add(x[1], x[2], out=out[0])
    out[0] += x[0]
    numpy.subtract(x[1], x[2], out=out[1])
    out[1] -= x[3]


def _expand(g, out):
    """The way back of `_reduce`."""
    out[0] = g[0]
    numpy.add(g[0], g[1], out=out[1])
    numpy.subtract(g[0], g[1], out=out[2])
    numpy.negative(g[1], out=out[3])


def _contract(x):
    """From four rows, or columns, of transformed kernels' gradients to three of the kernels'."""
    half = (x[1] + x[2]) * .5
    return x[0] + half, (x[1] - x[2]) * .5, half + x[3]
