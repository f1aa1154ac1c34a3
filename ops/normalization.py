"""A convolution of slow weights, batch normalisation, ReLU and pooling, in few passes over memory.

On a CPU all is one function on tiles. Elsewhere, and for other kernels than 3x3, normalisation and pooling follow the
convolution, and round as Chainer does.
"""
import numpy

from ops.augmented import convolution
from ops.blocks import ELEMENTS, blocks_of, in_parts, relu_in_place, scratch
from ops.compat import F, L, chainer, cuda, type_check
from ops.pooling import Windows
from ops.tiled import PooledConvolution, suits, tiles_of

# Scales that gradients are divided by.
SMALL = 1e-2


class _NormalizedPooling(chainer.FunctionNode):
    """Feature maps have their channels last, and vectors of the channels are as wide as a row of maps: NumPy is quick
    in long runs."""

    def __init__(self, eps, mean=None, var=None):
        self.eps = eps
        self.mean, self.var = mean, var
        self.given = mean is not None

    def check_type_forward(self, in_types):
        x, gamma, beta = in_types
        type_check.expect(x.dtype.kind == 'f', x.ndim == 4)
        for parameter in (gamma, beta):
            type_check.expect(parameter.dtype == x.dtype, parameter.ndim == 1, parameter.shape[0] == x.shape[1])

    def _rows(self, x):
        """(n, c, h, w) -> (n, h, w c)"""
        return x.transpose(0, 2, 3, 1).reshape(len(x), x.shape[2], -1)

    def _wide(self, vectors):
        """Each (c,) -> (w c,)"""
        return [cuda.get_array_module(vector).tile(vector, self.shape[2]) for vector in vectors]

    def _maps(self, rows):
        return rows.reshape(rows.shape[:2] + (self.shape[2], self.shape[3]))

    @staticmethod
    def _cut(rows):
        return blocks_of(len(rows), len(rows) if isinstance(rows, cuda.ndarray) else max(1, ELEMENTS // rows[0].size))

    @staticmethod
    def _variance(rows, mean, blocks):
        """Summed row after row, as NumPy does for Chainer: its rounding decides what ties in the pooling."""
        xp = cuda.get_array_module(rows)
        total = xp.zeros_like(mean)
        wide = xp.tile(mean, rows.shape[2] // len(mean))
        for start, stop in blocks:
            block = rows[start:stop]
            terms = scratch('terms', (1 + block.size // len(mean), len(mean)), block)
            terms[0] = total
            centred = xp.subtract(block, wide, out=terms[1:].reshape(block.shape))
            centred *= centred
            total = terms.sum(0)
        return total / (rows.size // len(mean))

    def forward(self, inputs):
        x, gamma, beta = inputs
        self.retain_inputs((0, 1, 2))
        self.retain_outputs((0,))
        xp = cuda.get_array_module(x)
        rows = self._rows(x)
        blocks = self._cut(rows)
        if not self.given:
            self.mean = rows.reshape(-1, len(gamma)).mean(0)
            self.var = self._variance(rows, self.mean, blocks)
        self.inv_std = 1 / xp.sqrt(self.var + self.eps)
        self.shape = len(x), *x.shape[2:], x.shape[1]
        self.windows = Windows(self.shape, xp, chainer.config.enable_backprop)
        mean, *steps = self._wide((self.mean, self.inv_std, gamma, beta))
        y = xp.empty(self.windows.pooled, x.dtype)

        def work(part):
            for start, stop in part:
                # Chainer's own order of operations: what rounds alike ties alike in the pooling.
                block = rows[start:stop]
                normalized = xp.subtract(block, mean, out=scratch('normalized', block.shape, block))
                normalized *= steps[0]
                normalized *= steps[1]
                normalized += steps[2]
                self.windows.pool(self._maps(normalized), start, stop, y[start:stop])
                relu_in_place(y[start:stop])  # the same as before pooling, where there is four times as much to do

        in_parts(work, blocks, xp)
        return y.transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        x, gamma, beta = (variable.array for variable in self.get_retained_inputs())
        xp = cuda.get_array_module(x)
        rows = self._rows(x)
        blocks = self._cut(rows)
        y, gy = (array.transpose(0, 2, 3, 1) for array in (self.get_retained_outputs()[0].array, grad_outputs[0].array))
        gy = gy * (y > 0)
        g_beta = _column_sums(gy)
        if xp is numpy and abs(gamma).min() > SMALL:
            # The outputs tell what their inputs were, normalised.
            g_gamma = _column_sums(gy * (y - beta)) / gamma
        else:
            g_gamma = self._correlation(rows, gy, blocks) * self.inv_std
        scale = gamma * self.inv_std
        gy *= scale
        if not self.given:  # x has a share in the mean and the variance
            count = x.size // len(gamma)
            slope = -scale * self.inv_std * g_gamma / count
            slope, offset = self._wide((slope, -scale * g_beta / count - slope * self.mean))
        gx = xp.empty(rows.shape, x.dtype)

        def work(part):
            for start, stop in part:
                g = gx[start:stop]
                self.windows.unpool(gy[start:stop], start, stop, self._maps(g))
                if not self.given:
                    share = xp.multiply(rows[start:stop], slope, out=scratch('share', g.shape, g))
                    share += offset
                    g += share

        in_parts(work, blocks, xp)
        gradients = self._maps(gx).transpose(0, 3, 1, 2), g_gamma, g_beta
        return [chainer.as_variable(gradients[i]) for i in indexes]

    def _correlation(self, rows, gy, blocks):
        """Sums of the centred inputs times the gradients at their places."""
        xp = cuda.get_array_module(rows)
        mean, = self._wide((self.mean,))

        def work(part):
            total = 0
            for start, stop in part:
                block = rows[start:stop]
                g = scratch('g', block.shape, block)
                self.windows.unpool(gy[start:stop], start, stop, self._maps(g))
                g *= xp.subtract(block, mean, out=scratch('share', block.shape, block))
                total += _column_sums(self._maps(g))
            return total

        return sum(in_parts(work, blocks, xp))


class _NormalizedTiles(PooledConvolution):
    """The ReLU and, where scales are positive, normalisation come to the same after pooling, where there is a quarter
    to do. So convolutions whose scale is negative change their sign: "turned" is what belongs to them afterwards.
    """

    def __init__(self, eps, mean=None, var=None):
        self.eps = eps
        self.mean, self.var = mean, var
        self.given = mean is not None

    def check_type_forward(self, in_types):
        super().check_type_forward(in_types)
        x, weight, gamma, beta = in_types
        for parameter in (gamma, beta):
            type_check.expect(parameter.dtype == x.dtype, parameter.ndim == 1, parameter.shape[0] == weight.shape[0])

    def forward(self, inputs):
        x, weight, gamma, beta = inputs
        self.retain_inputs((0, 1, 2))
        self.retain_outputs((0,))
        self.sign = numpy.where(gamma < 0, -1, 1).astype(x.dtype)
        self.turned = weight * self.sign[:, None, None, None]
        self.tiles = tiles_of(x, weight)
        self.second = self.tiles.new_second()
        # The convolution's outputs, for the way back through the batch's own statistics.
        keep = not self.given and chainer.config.enable_backprop
        self.kept = numpy.empty((2, 2) + self.tiles.pooled, x.dtype) if keep else None
        self.maxima = numpy.empty(self.tiles.pooled, x.dtype)

        def use(outputs, start, stop):
            statistics = None if self.given else self._statistics(outputs)
            if keep:
                self.kept[:, :, start:stop] = outputs
            self.tiles.pool(outputs, self.second, start, stop, self.maxima[start:stop])
            return statistics

        parts = self.tiles.forward(x, self.turned, use)
        if self.given:
            mean, var = self.mean * self.sign, self.var
        else:
            mean, var = self._together([block for part in parts for block in part], x[:, 0].size)
            self.mean, self.var = mean * self.sign, var
        self.turned_mean, self.inv_std = mean, 1 / numpy.sqrt(var + x.dtype.type(self.eps))
        scale = abs(gamma) * self.inv_std
        y = self.maxima * scale
        y += beta - mean * scale
        return relu_in_place(y).transpose(0, 3, 1, 2),

    def _statistics(self, outputs):
        """Count, mean, and sum of squared differences from it, of a block's outputs: the latter two (o,)."""
        h, w = self.tiles.size
        count = outputs.shape[2] * h * w
        for part in self.tiles.beyond(outputs):
            part[...] = 0
        mean = _column_sums(outputs) / count
        for part in self.tiles.beyond(outputs):
            part[...] = mean
        rows = _rows(outputs)
        centred = numpy.subtract(rows, self._wide(mean), out=scratch('centred', rows.shape, rows))
        centred *= centred
        return count, mean, _column_sums(centred.reshape(outputs.shape))

    def _wide(self, vector):
        """(o,) -> (columns x o,): NumPy is quick in long runs."""
        return numpy.tile(vector, self.tiles.shape[1])

    @staticmethod
    def _together(blocks, count):
        """Mean and variance, (o,) each, of all blocks."""
        mean = sum(n / count * its for n, its, _ in blocks).astype(blocks[0][1].dtype)
        return mean, sum(squares + n * (its - mean) ** 2 for n, its, squares in blocks) / mean.dtype.type(count)

    def backward(self, indexes, grad_outputs):
        x, _, gamma = (variable.array for variable in self.get_retained_inputs())
        y, gy = (array.transpose(0, 2, 3, 1) for array in (self.get_retained_outputs()[0].array, grad_outputs[0].array))
        gy = gy * (y > 0)
        g_beta = _column_sums(gy)
        # Gradients reach the maxima alone; these tell what the normalised outputs were there.
        g_scale = _column_sums(gy * (self.maxima - self.turned_mean)) * self.inv_std
        scale = abs(gamma) * self.inv_std
        gy *= scale
        if not self.given:  # the outputs have a share in the mean and in the variance
            count = x.dtype.type(x[:, 0].size)
            slope = -scale * self.inv_std * g_scale / count
            slope, offset = map(self._wide, (slope, -scale * g_beta / count - slope * self.turned_mean))

        def g_outputs(start, stop):
            g = self.tiles.unpool(gy[start:stop], self.second, start, stop)
            if not self.given:
                rows = _rows(self.kept[:, :, start:stop])
                share = numpy.multiply(rows, slope, out=scratch('share', rows.shape, g))
                share += offset
                g += share.reshape(g.shape)
                for part in self.tiles.beyond(g):
                    part[...] = 0
            return g

        gx, g_weight = self.tiles.backward(x, self.turned, g_outputs, indexes)
        if g_weight is not None:
            g_weight *= self.sign[:, None, None, None]
        gradients = gx, g_weight, g_scale * self.sign, g_beta
        return [chainer.as_variable(gradients[i]) for i in indexes]


def _rows(outputs):
    """(..., columns, o) -> (..., columns x o)"""
    return outputs.reshape(outputs.shape[:-2] + (-1,))


def _column_sums(rows):
    """(..., c) -> (c,): as a product with ones, several times faster than NumPy's own sum."""
    rows = rows.reshape(-1, rows.shape[-1])
    return cuda.get_array_module(rows).ones(len(rows), rows.dtype).dot(rows)


def normalized_convolution(x, weight, bn):
    """Convolution, batch normalisation, ReLU and 2x2 max pooling: what Chainer would do, in few passes over memory.

    In training it normalises by the batch's statistics and moves the link's running averages; otherwise by these.

    Args:
        x: feature maps, float (n, c, h, w).
        weight: float (o, kh, kw, c), as in `convolution`.
        bn: a `chainer.links.BatchNormalization` of size o.

    Returns:
        chainer.Variable: float (n, o, ceil(h / 2), ceil(w / 2)).

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    if suits(x, weight):
        function, inputs = _NormalizedTiles, (x, weight, bn.gamma, bn.beta)
    else:
        function, inputs = _NormalizedPooling, (convolution(x, [weight]), bn.gamma, bn.beta)
    if not chainer.config.train:
        return function(bn.eps, bn.avg_mean, bn.avg_var).apply(inputs)[0]
    function = function(bn.eps)
    y, = function.apply(inputs)
    # As Chainer does: the average is of the unbiased variance.
    count = function.mean.dtype.type(x.size // x.shape[1])
    for average, value in ((bn.avg_mean, function.mean), (bn.avg_var, function.var * (count / max(count - 1, 1)))):
        average *= bn.decay
        average += (1 - bn.decay) * value
    return y


class NormalizedConvolution2D(chainer.Chain):
    """A convolution of slow weights alone, 3x3 without bias, then batch normalisation, ReLU and 2x2 max pooling.

    Normalised by the statistics of the batch at hand in training, by their running averages in a test.

    Args:
        in_channels, out_channels: numbers of feature maps.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        with self.init_scope():
            self.W = chainer.Parameter(chainer.initializers.LeCunNormal(), (out_channels, in_channels, 3, 3))
            self.bn = L.BatchNormalization(out_channels)

    def forward(self, x):
        return normalized_convolution(x, F.transpose(self.W, (0, 2, 3, 1)), self.bn)
