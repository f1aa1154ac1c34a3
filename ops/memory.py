"""The reading of the memory (section 3.2 of the paper)."""
import numpy

import ops.kernels as kernels
from ops.blocks import ELEMENTS, blocks_of, in_parts, matmul
from ops.compat import F, chainer, cuda, type_check
from ops.lazy import Deferred, Mixed, map_apart
from ops.tiled import mixes


class _Mixture(chainer.FunctionNode):

    def check_type_forward(self, in_types):
        weights = in_types[0]
        type_check.expect(in_types.size() >= 2, weights.dtype.kind == 'f', weights.ndim == 2)
        for value in in_types[1:]:
            type_check.expect(value.dtype == weights.dtype, value.ndim == 2, value.shape[0] == weights.shape[1])

    def forward(self, inputs):
        weights, values = inputs[0], inputs[1:]
        self.retain_inputs(range(len(inputs)))
        xp = cuda.get_array_module(weights)
        ys = [xp.empty((len(weights), value.shape[1]), value.dtype) for value in values]

        def work(blocks):
            for i, start, stop in blocks:
                matmul(weights, values[i][:, start:stop], ys[i][:, start:stop])

        in_parts(work, _columns(values), xp)
        return tuple(ys)

    def backward(self, indexes, grad_outputs):
        weights, *values = (variable.array for variable in self.get_retained_inputs())
        gradients = mixture_gradients(weights, values, [g if g is None else g.array for g in grad_outputs])
        return [chainer.as_variable(gradients[i]) for i in indexes]


def _columns(values):
    """Blocks (which of the values, start, stop)"""
    return [(i, start, stop) for i, value in enumerate(values) for start, stop in blocks_of(
        value.shape[1], value.shape[1] if isinstance(value, cuda.ndarray) else ELEMENTS // 16)]


def mixture_gradients(weights, values, gys):
    """The way back of `mixture`.

    Args:
        weights: array (n, m).
        values: list of arrays (m, p).
        gys: list of arrays (n, p), of the sums' gradients, or of None for none.

    Returns:
        A list of arrays, the gradients of the weights and of the values.
    """
    xp = cuda.get_array_module(weights)
    g_values = [xp.zeros(value.shape, value.dtype) for value in values]

    def work(blocks):
        g_weights = xp.zeros_like(weights)
        for i, start, stop in blocks:
            if gys[i] is not None:
                gy = gys[i][:, start:stop]
                # Of a layer whose activations are all dead no gradient comes back.
                if xp is not numpy or gy.any():
                    matmul(weights.T, gy, g_values[i][:, start:stop])
                    g_weights += gy.dot(values[i][:, start:stop].T)
        return g_weights

    return [sum(in_parts(work, _columns(values), xp, summed=True))] + g_values


def mixture(weights, values):
    """Weighted sums of the rows of several arrays, all with the same weights.

    Args:
        weights: float (n, m), not negative.
        values: list of float (m, ...), or of deferred ones.

    Returns:
        A list of chainer.Variable: for each array its sums, (n, ...). A mean of negative weights is negative: those of
        deferred values are deferred again.

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    def mix(values):
        ys = _Mixture().apply([weights] + [F.reshape(value, (len(value), -1)) for value in values])
        return [F.reshape(y, weights.shape[:1] + value.shape[1:]) for y, value in zip(ys, values)]

    return map_apart(mix, values)


def late_mixture(weights, values):
    """`mixture`, but means of matrices, as of fully connected layers, are `Mixed`, for `mixed_product`.

    So are those of kernels that `tiled_sums` can take.
    """
    late = [not isinstance(value, Deferred) and (value.ndim == 3 or mixes(value)) for value in values]
    others = iter(mixture(weights, [value for value, is_late in zip(values, late) if not is_late]))
    return [Mixed(weights, value, mixture) if is_late else next(others) for value, is_late in zip(values, late)]


class _MixedProduct(chainer.FunctionNode):

    def check_type_forward(self, in_types):
        x, weights, value = in_types
        type_check.expect(x.dtype.kind == 'f', weights.dtype == x.dtype, value.dtype == x.dtype,
                          x.ndim == 2, weights.ndim == 2, value.ndim == 3, weights.shape[0] == x.shape[0],
                          weights.shape[1] == value.shape[0], value.shape[2] == x.shape[1])

    def _cut(self, length, size, xp):
        return blocks_of(length, max(1, ELEMENTS // size) if xp is numpy else length)

    def forward(self, inputs):
        x, weights, value = inputs
        self.retain_inputs((0, 1, 2))
        xp = cuda.get_array_module(x)
        flat = value.reshape(-1, value.shape[2])
        y = xp.empty((len(x), value.shape[1]), x.dtype)
        self.products = xp.empty((len(x), *value.shape[:2]), x.dtype)

        def work(blocks):
            for start, stop in blocks:
                products = self.products[start:stop]
                matmul(x[start:stop], flat.T, products.reshape(stop - start, -1))
                matmul(weights[start:stop, None], products, y[start:stop, None])

        in_parts(work, self._cut(len(x), len(flat), xp), xp)
        return y,

    def backward(self, indexes, grad_outputs):
        x, weights, value = (variable.array for variable in self.get_retained_inputs())
        gy = grad_outputs[0].array
        xp = cuda.get_array_module(x)
        if xp is numpy and not gy.any():  # of a layer whose activations are all dead
            gradients = [xp.zeros_like(array) for array in (x, weights, value)]
            return [chainer.as_variable(gradients[i]) for i in indexes]
        flat = value.reshape(-1, value.shape[2])
        g_products = (weights[:, :, None] * gy[:, None]).reshape(len(x), -1)
        g_weights = matmul(self.products, gy[:, :, None], xp.empty((*weights.shape, 1), x.dtype))[:, :, 0]
        gx, g_flat = xp.empty_like(x), xp.empty_like(flat)

        def back(blocks):
            for start, stop in blocks:
                matmul(g_products[start:stop], flat, gx[start:stop])

        def across(blocks):
            for start, stop in blocks:
                matmul(g_products[:, start:stop].T, x, g_flat[start:stop])

        in_parts(back, self._cut(len(x), len(flat), xp), xp)
        in_parts(across, self._cut(len(flat), len(x), xp), xp)
        gradients = gx, g_weights, g_flat.reshape(value.shape)
        return [chainer.as_variable(gradients[i]) for i in indexes]


def moderate(x):
    """A variable (n, d), brought to 2 ** 24 or less by a factor, a power of two on a CPU, if it reaches beyond.

    A cosine stays what it is, on a CPU to the bit, and the squares in its norms don't overflow: keys of a model's first
    episodes may be of 1e12, with the authors' initialisation.
    """
    if isinstance(x.array, cuda.ndarray):  # to look whether it does would be to wait
        return x * kernels.moderate(abs(x.array).max())
    exponent = numpy.frexp(abs(x.array).max())[1]
    return x * x.dtype.type(2. ** (24 - exponent)) if exponent > 24 else x


def mixed_product(x, mixed):
    """Products of vectors with a mean of weights each: their mean, rather than products with the weights' mean.

    That comes to as many multiplications, but no weights are made for each of the vectors.

    Args:
        x: float (n, c).
        mixed: `lazy.Mixed`, of weights (n, m) and values (m, o, c).

    Returns:
        chainer.Variable: float (n, o).
    """
    return _MixedProduct().apply((x, mixed.weights, mixed.values))[0]
