"""Convolution by a 3x3 kernel that all examples share, ReLU and 2x2 max pooling, on a CPU: in tiles of 2x2 outputs.

A tile's outputs are what a window of the pooling takes. Arrays have the place in a tile first, (2, 2, examples, rows,
columns, channels): pooling then compares whole arrays. The ReLU comes after it, where there is a quarter to do, to the
same result.

With many channels the outputs come from Winograd's algorithm F(2x2, 3x3) (Lavin & Gray 2016): the 4x4 inputs of a tile
and the kernels are transformed, multiplied entry by entry, and transformed back, with 16 multiplications where 36 are
due. It is exact but for rounding. With few channels they come from products of patches.
"""
import numpy

from ops.blocks import blocks_of, in_parts, matmul, relu_in_place, scratch
from ops.compat import chainer, type_check

ELEMENTS = 1 << 18  # numbers in the inputs of a block's tiles, or in their products
LEAST = 16  # channels that Winograd's algorithm is worth it for
TRANSFORM = numpy.array([[1, 0, 0], [.5, .5, .5], [.5, -.5, .5], [0, 0, 1]], numpy.float32)  # of a kernel; G there


def suits(x, weight):
    """Whether a weight, (o, 3, 3, c) for all examples, and maps x can be convolved in tiles, on a CPU."""
    return weight.ndim == 4 and weight.shape[1:3] == (3, 3) and isinstance(chainer.as_array(x), numpy.ndarray)


def tiled(x, weight):
    """The function for these: from (n, c, h, w), channels last in memory, and (o, 3, 3, c) to (n, o, h / 2, w / 2)."""
    return PooledConvolution().apply((x, weight))[0]


class PooledConvolution(chainer.FunctionNode):
    """See `tiled`."""

    def check_type_forward(self, in_types):
        x, weight = in_types[0], in_types[1]
        type_check.expect(x.dtype.kind == 'f', weight.dtype == x.dtype, x.ndim == 4, weight.ndim == 4,
                          weight.shape[1] == 3, weight.shape[2] == 3, weight.shape[3] == x.shape[1])

    def forward(self, inputs):
        x, weight = inputs
        self.retain_inputs((0, 1))
        self.retain_outputs((0,))
        self.tiles = tiles_of(x, weight)
        y = numpy.empty(self.tiles.pooled, x.dtype)
        self.second = self.tiles.new_second()
        self.tiles.forward(x, weight, lambda outputs, start, stop: relu_in_place(self.tiles.pool(
            outputs, self.second, start, stop, y[start:stop])))
        return y.transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        x, weight = (variable.array for variable in self.get_retained_inputs())
        y, gy = (array.transpose(0, 2, 3, 1) for array in (self.get_retained_outputs()[0].array, grad_outputs[0].array))

        def g_outputs(start, stop):
            g = numpy.multiply(gy[start:stop], y[start:stop] > 0, out=scratch('g', y[start:stop].shape, x))
            return self.tiles.unpool(g, self.second, start, stop)

        gradients = self.tiles.backward(x, weight, g_outputs, indexes)
        return [chainer.as_variable(gradients[i]) for i in indexes]


def tiles_of(x, weight):
    """`Tiles` for a convolution of x with a weight."""
    return (_Winograd if weight.shape[-1] >= LEAST else _Patches)(x, weight)


class Tiles:
    """A convolution with tiles of outputs, (2, 2, examples, rows, columns, o), and the pooling of these.

    Subclasses turn maps into matrices, and products of these with the kernels' into outputs, and back.

    Args:
        x, weight: arrays (n, c, h, w) and (o, 3, 3, c).
    """

    def __init__(self, x, weight):
        self.size = x.shape[2:]
        self.shape = tuple(-(-side // 2) for side in self.size)
        self.pooled = (len(x), *self.shape, len(weight))

    def forward(self, x, weight, use):
        """Calls `use` on the outputs of each block, its start and its stop; returns what it returns, part by part."""
        maps, kernels = x.transpose(0, 2, 3, 1), self.kernels(weight)

        def work(blocks):
            used = []
            for start, stop in blocks:
                matrices = self.matrices(maps[start:stop])
                products = matmul(matrices, kernels, scratch('products', matrices.shape[:2] + kernels.shape[2:], x))
                used.append(use(self.outputs(products, stop - start), start, stop))
            return used

        return in_parts(work, self._cut(x, weight), numpy)

    def backward(self, x, weight, g_outputs, indexes):
        """The way back: gradients of x and of the weight, None for what isn't in `indexes`.

        Args:
            x, weight: as in `forward`.
            g_outputs: function of a block's start and stop, that returns the gradient of its outputs.
            indexes: of those that are due, 0 and 1.
        """
        maps, kernels = x.transpose(0, 2, 3, 1), self.kernels(weight)
        gx = numpy.empty(maps.shape, x.dtype) if 0 in indexes else None

        def work(blocks):
            total = numpy.zeros_like(kernels)
            for start, stop in blocks:
                g = self.g_products(g_outputs(start, stop))
                if 1 in indexes:
                    matrices = self.matrices(maps[start:stop])
                    total += matmul(matrices.swapaxes(1, 2), g, scratch('g_kernels', kernels.shape, x))
                if gx is not None:
                    g_matrices = matmul(g, kernels.swapaxes(1, 2),
                                        scratch('products', g.shape[:2] + kernels.shape[1:2], x))
                    self.fold(g_matrices, gx[start:stop])
            return total

        parts = in_parts(work, self._cut(x, weight), numpy)
        return (gx.transpose(0, 3, 1, 2) if gx is not None else None,
                numpy.ascontiguousarray(self.g_weight(sum(parts))) if 1 in indexes else None)

    def _cut(self, x, weight):
        return blocks_of(len(x), max(1, ELEMENTS // (self.shape[0] * self.shape[1] * self.numbers(*weight.shape[::3]))))

    def padded(self, n, c, like):
        """Zeros around maps, to whole tiles: an array (n, h, w, c) whose border alone is set, and the maps in it."""
        (rows, columns), (h, w) = self.shape, self.size
        padded = scratch('padded', (n, 2 * rows + 2, 2 * columns + 2, c), like)
        padded[:, 0] = padded[:, h + 1:] = padded[:, :, 0] = padded[:, :, w + 1:] = 0
        return padded, padded[:, 1:h + 1, 1:w + 1]

    def beyond(self, outputs):
        """The parts of outputs that are beyond the maps' edges, where these have odd sides."""
        return [outputs[1, :, :, -1]] * (self.size[0] % 2) + [outputs[:, 1, :, :, -1]] * (self.size[1] % 2)

    def new_second(self):
        """Room for which of a pair is the larger: of two in each of a window's rows, and of the rows."""
        return numpy.empty((3, *self.pooled), bool) if chainer.config.enable_backprop else None

    def pool(self, outputs, second, start, stop, y):
        """The largest of each window's 2x2 outputs, into y; those beyond the edges don't count. Returns y."""
        for part in self.beyond(outputs):
            part[...] = -numpy.inf
        left, right = outputs[:, 0], outputs[:, 1]
        rows = numpy.maximum(left, right, out=scratch('rows', left.shape, left))
        if second is not None:
            numpy.greater(right, left, out=second[:2, start:stop])
            numpy.greater(rows[1], rows[0], out=second[2, start:stop])
        return numpy.maximum(rows[0], rows[1], out=y)

    def unpool(self, g, second, start, stop):
        """The way back, (2, 2, ...): to where the maxima were, of equals to the first."""
        second = second[:, start:stop]
        rows = scratch('rows', (2,) + g.shape, g)
        numpy.multiply(g, second[2], out=rows[1])
        numpy.subtract(g, rows[1], out=rows[0])
        outputs = scratch('outputs', (2, 2) + g.shape, g)
        numpy.multiply(rows, second[:2], out=outputs[:, 1])
        numpy.subtract(rows, outputs[:, 1], out=outputs[:, 0])
        return outputs


class _Patches(Tiles):
    """One matrix (2 x 2 x tiles, 9 x c)."""

    def numbers(self, o, c):
        """In a tile's inputs or products, whichever are more."""
        return 4 * max(9 * c, o)

    def kernels(self, weight):
        return weight.reshape(1, len(weight), -1).swapaxes(1, 2)

    def g_weight(self, g):
        return g[0].T.reshape(g.shape[2], 3, 3, -1)

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

    def numbers(self, o, c):
        return 16 * max(o, c)

    def kernels(self, weight):
        transform = TRANSFORM.astype(weight.dtype)
        o, _, _, c = weight.shape
        half = transform.dot(weight.transpose(1, 2, 3, 0).reshape(3, -1))
        return matmul(transform, half.reshape(4, 3, -1), numpy.empty((4, 4, c * o), weight.dtype)).reshape(16, c, o)

    def g_weight(self, g):
        transform = TRANSFORM.T.astype(g.dtype)
        _, c, o = g.shape
        half = transform.dot(g.reshape(4, -1)).reshape(3, 4, -1)
        return matmul(transform, half, numpy.empty((3, 3, c * o), g.dtype)).reshape(3, 3, c, o).transpose(3, 0, 1, 2)

    def matrices(self, maps):
        (rows, columns), (n, _, _, c) = self.shape, maps.shape
        padded, inside = self.padded(n, c, maps)
        inside[...] = maps
        half = scratch('half', (4, n, rows, 2 * columns + 2, c), maps)
        _transform([padded[:, i:i + 2 * rows:2] for i in range(4)], half)
        whole = scratch('whole', (4, 4, n, rows, columns, c), maps)
        _transform([half[:, :, :, i:i + 2 * columns:2] for i in range(4)], whole.swapaxes(0, 1))
        return whole.reshape(16, -1, c)

    def outputs(self, products, n):
        products = products.reshape(4, 4, n, *self.shape, -1)
        half = scratch('half', (2,) + products.shape[1:], products)
        _reduce(products, half)
        outputs = scratch('outputs', (2, 2) + products.shape[2:], products)
        _reduce(half.swapaxes(0, 1), outputs.swapaxes(0, 1))
        return outputs

    def g_products(self, g):
        half = scratch('half', (4,) + g.shape[1:], g)
        _expand(g, half)
        whole = scratch('whole_g', (4, 4) + g.shape[2:], g)
        _expand(half.swapaxes(0, 1), whole.swapaxes(0, 1))
        return whole.reshape(16, -1, g.shape[-1])

    def fold(self, g, out):
        (rows, columns), (n, _, _, c) = self.shape, out.shape
        half = scratch('half', (4, n, rows, 2 * columns + 2, c), g)
        _overlap(g.reshape(4, 4, n, rows, columns, c).swapaxes(0, 1), half, 3)
        padded, inside = self.padded(n, c, g)
        _overlap(half, padded, 1)
        out[...] = inside


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
