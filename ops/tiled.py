"""Convolution by a 3x3 kernel that all examples share, ReLU and 2x2 max pooling, on a CPU: in tiles of 2x2 outputs.

A tile's outputs are what a window of the pooling takes. Arrays have the place in a tile first, (2, 2, examples, rows,
columns, channels): pooling then compares whole arrays. The ReLU comes after it, where there is a quarter to do, to the
same result.

With many channels the outputs come from Winograd's algorithm F(2x2, 3x3) (Lavin & Gray 2016): the 4x4 inputs of a tile
and the kernels are transformed, multiplied entry by entry, and transformed back, with 16 multiplications where 36 are
due. It is exact but for rounding. With few channels they come from products of patches.
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


def _compiled(array):
    """The module `loops`, or None, for arrays like this one."""
    return _loops() if array.dtype in (numpy.float32, numpy.float64) else None


def suits(x, weight, group=1):
    """Whether maps x and a weight can be convolved in tiles, on a CPU.

    The weight is (o, 3, 3, c) for all examples, or the same for each of g groups, as `numpy.broadcast_to` makes it, (g,
    o, 3, 3, c) without a copy: groups get gradients of their own. Few tiles to a group aren't worth it then.
    """
    x, weight = chainer.as_array(x), chainer.as_array(weight)
    return (isinstance(x, numpy.ndarray) and weight.shape[-3:-1] == (3, 3)
            and (weight.ndim == 4 or weight.ndim == 5 and weight.strides[0] == 0 and group * x[0, 0].size > 16))


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

    def forward(self, x, weight, use):
        """Calls `use` on the outputs of each block, its start and its stop; returns what it returns, part by part."""
        maps, kernels = x.transpose(0, 2, 3, 1), self.kernels(weight[0] if self.n_groups else weight)

        def work(blocks):
            used = []
            for start, stop in blocks:
                matrices = self.matrices(maps[start:stop])
                products = matmul(matrices, kernels, scratch('products', matrices.shape[:2] + kernels.shape[2:], x))
                used.append(use(self.outputs(products, stop - start), start, stop))
            return used

        return in_parts(work, self._cut(x, self.numbers(weight.shape[-4], weight.shape[-1])), numpy)

    def backward(self, x, weight, g_outputs, indexes):
        """The way back: gradients of x and of the weight, None for what isn't in `indexes`.

        Args:
            x, weight: as in `forward`.
            g_outputs: function of a block's start and stop, that returns the gradient of its outputs.
            indexes: of those that are due, 0 and 1.
        """
        maps, kernels = x.transpose(0, 2, 3, 1), self.kernels(weight[0] if self.n_groups else weight)
        gx = numpy.empty(maps.shape, x.dtype) if 0 in indexes else None
        g_groups = numpy.empty(weight.shape, x.dtype) if self.n_groups and 1 in indexes else None

        def work(blocks):
            total = 0
            for start, stop in blocks:
                g = self.g_products(g_outputs(start, stop))
                if 1 in indexes:
                    n = -(-(stop - start) // self.group) if self.n_groups else 1
                    g_kernels = self.g_kernels(self.matrices(maps[start:stop]), g, n)
                    if self.n_groups:
                        first = start // self.group
                        self.g_weights(g_kernels, g_groups[first:first + n])
                    else:
                        total = total + g_kernels
                if gx is not None:
                    g_matrices = matmul(g, kernels.swapaxes(1, 2),
                                        scratch('products', g.shape[:2] + kernels.shape[1:2], x))
                    self.fold(g_matrices, gx[start:stop])
            return total

        numbers = self.numbers(weight.shape[-4], weight.shape[-1])
        if g_groups is not None:  # their kernels' gradients have to fit, too
            numbers = max(numbers, 2 * weight[0].size // (self.group * self.n_tiles))
        parts = in_parts(work, self._cut(x, numbers), numpy)
        gradient = g_groups
        if 1 in indexes and not self.n_groups:
            gradient = numpy.empty(weight.shape, x.dtype)
            self.g_weights(sum(parts), gradient[None])
        return gx.transpose(0, 3, 1, 2) if gx is not None else None, gradient

    def _cut(self, x, numbers):
        """Blocks of examples; `numbers` to a tile in a block's largest array."""
        return blocks_of(len(x), max(1, ELEMENTS // (self.n_tiles * numbers)), self.group)

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
        if _compiled(y):
            _compiled(y).pool(_flat(outputs, 4), None if second is None else _flat(second, 3), start * self.n_tiles,
                              y.reshape(-1, y.shape[-1]))
            return y
        left, right = outputs[:, 0], outputs[:, 1]
        rows = numpy.maximum(left, right, out=scratch('rows', left.shape, left))
        if second is not None:
            numpy.greater(right, left, out=second[:2, start:stop])
            numpy.greater(rows[1], rows[0], out=second[2, start:stop])
        return numpy.maximum(rows[0], rows[1], out=y)

    def unpool(self, g, second, start, stop, share=None):
        """The way back, (2, 2, ...): to where the maxima were, of equals to the first.

        With `share`, of outputs as `sums` has kept them, slope and offset, (o,), it is outputs slope + offset more.
        """
        outputs = scratch('outputs', (2, 2) + g.shape, g)
        kept, slope, offset = share or (None,) * 3
        if _compiled(g):
            _compiled(g).unpool(numpy.ascontiguousarray(g).reshape(-1, g.shape[-1]), _flat(second, 3),
                                None if kept is None else _flat(kept, 4), slope, offset, start * self.n_tiles,
                                _flat(outputs, 4))
        else:
            second = second[:, start:stop]
            rows = scratch('rows', (2,) + g.shape, g)
            numpy.multiply(g, second[2], out=rows[1])
            numpy.subtract(g, rows[1], out=rows[0])
            numpy.multiply(rows, second[:2], out=outputs[:, 1])
            numpy.subtract(rows, outputs[:, 1], out=outputs[:, 0])
            if share:
                more = numpy.multiply(kept[:, :, start:stop], slope, out=scratch('more', outputs.shape, g))
                more += offset
                outputs += more
        for part in self.beyond(outputs) if share else ():
            part[...] = 0
        return outputs

    def sums(self, outputs, kept, start, stop):
        """Sums of outputs and of their squares over all but the channels, float64 (2, o); `kept` gets a copy, or None.

        Outputs beyond the edges become 0.
        """
        for part in self.beyond(outputs):
            part[...] = 0
        sums = numpy.zeros((2, 4, outputs.shape[-1]))
        if _compiled(outputs):
            _compiled(outputs).add_up(_flat(outputs, 4), None if kept is None else _flat(kept, 4),
                                      start * self.n_tiles, sums)
        else:
            if kept is not None:
                kept[:, :, start:stop] = outputs
            rows = _flat(outputs, 4).astype(numpy.float64)
            sums[0] = rows.sum(axis=1)
            rows *= rows
            sums[1] = rows.sum(axis=1)
        return sums.sum(axis=1)


class _Patches(Tiles):
    """One matrix (2 x 2 x tiles, 9 x c)."""

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

    def numbers(self, o, c):
        return 16 * max(o, c)

    def _room(self, maps):
        """For one example's padded map, and for a row of its tiles."""
        c = maps.shape[3]
        return self.padded(1, c, maps)[0][0], scratch('half', (4, 2 * self.shape[1] + 2, c), maps)

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
        if _compiled(out):
            _compiled(out).contract(g_kernels, out.dtype.type(.5), out)
            return
        for i, row in enumerate(_contract(g_kernels.reshape(4, 4, *g_kernels.shape[1:]))):
            for j, entry in enumerate(_contract(row)):
                out[:, :, i, j] = entry

    def matrices(self, maps):
        (rows, columns), (n, _, _, c) = self.shape, maps.shape
        whole = scratch('whole', (4, 4, n, rows, columns, c), maps)
        if _compiled(maps):
            _compiled(maps).transform(numpy.ascontiguousarray(maps), *self._room(maps), _flat(whole, 16))
            return _flat(whole, 16)
        padded, inside = self.padded(n, c, maps)
        inside[...] = maps
        half = scratch('half', (4, n, rows, 2 * columns + 2, c), maps)
        _transform([padded[:, i:i + 2 * rows:2] for i in range(4)], half)
        _transform([half[:, :, :, i:i + 2 * columns:2] for i in range(4)], whole.swapaxes(0, 1))
        return _flat(whole, 16)

    def outputs(self, products, n):
        outputs = scratch('outputs', (2, 2, n, *self.shape, products.shape[-1]), products)
        if _compiled(products):
            _compiled(products).reduce(products, _flat(outputs, 4))
            return outputs
        products = products.reshape(4, 4, n, *self.shape, -1)
        half = scratch('half', (2,) + products.shape[1:], products)
        _reduce(products, half)
        _reduce(half.swapaxes(0, 1), outputs.swapaxes(0, 1))
        return outputs

    def g_products(self, g):
        whole = scratch('whole_g', (4, 4) + g.shape[2:], g)
        if _compiled(g):
            _compiled(g).expand(_flat(g, 4), scratch('half', (8, g.shape[-1]), g), _flat(whole, 16))
            return _flat(whole, 16)
        half = scratch('half', (4,) + g.shape[1:], g)
        _expand(g, half)
        _expand(half.swapaxes(0, 1), whole.swapaxes(0, 1))
        return _flat(whole, 16)

    def fold(self, g, out):
        (rows, columns), (n, _, _, c) = self.shape, out.shape
        if _compiled(g):
            _compiled(g).overlap(g, *self._room(out), out)
            return
        half = scratch('half', (4, n, rows, 2 * columns + 2, c), g)
        _overlap(g.reshape(4, 4, n, rows, columns, c).swapaxes(0, 1), half, 3)
        padded, inside = self.padded(n, c, g)
        _overlap(half, padded, 1)
        out[...] = inside


def _flat(array, places):
    """(places, tiles, channels)"""
    return array.reshape(places, -1, array.shape[-1])


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
