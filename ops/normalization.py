"""Batch normalisation and pooling after a convolution of slow weights, in few passes over memory."""
import numpy

from ops.augmented import Convolution, convolution
from ops.blocks import ELEMENTS, blocks_of, in_parts, relu_in_place, scratch
from ops.compat import F, L, chainer, cuda, type_check
from ops.pooling import Windows

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


def _column_sums(rows):
    """(..., c) -> (c,): as a product with ones, several times faster than NumPy's own sum."""
    rows = rows.reshape(-1, rows.shape[-1])
    return cuda.get_array_module(rows).ones(len(rows), rows.dtype).dot(rows)


def normalized_pooling(x, bn):
    """Batch normalisation, ReLU and 2x2 max pooling: what Chainer would do, in few passes over blocks of the maps.

    In training it normalises by the batch's statistics and moves the link's running averages; otherwise by these.

    Args:
        x: feature maps, float (n, c, h, w).
        bn: a `chainer.links.BatchNormalization` of size c.

    Returns:
        chainer.Variable: float (n, c, ceil(h / 2), ceil(w / 2)).
    """
    if not chainer.config.train:
        return _NormalizedPooling(bn.eps, bn.avg_mean, bn.avg_var).apply((x, bn.gamma, bn.beta))[0]
    function = _NormalizedPooling(bn.eps)
    y, = function.apply((x, bn.gamma, bn.beta))
    # As Chainer does: the average is of the unbiased variance.
    count = x.size // x.shape[1]
    for average, value in ((bn.avg_mean, function.mean), (bn.avg_var, function.var * (count / max(count - 1, 1)))):
        average *= bn.decay
        average += (1 - bn.decay) * value
    return y


def normalized_convolution(x, weight, bn):
    """Convolution and `normalized_pooling`; all within the cache where nothing has to be differentiated.

    Args:
        x: feature maps, float (n, c, h, w).
        weight: float (o, kh, kw, c), as in `convolution`.
        bn: a `chainer.links.BatchNormalization` of size o.

    Returns:
        chainer.Variable: float (n, o, ceil(h / 2), ceil(w / 2)).

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    if chainer.config.train or chainer.config.enable_backprop:
        return normalized_pooling(convolution(x, [weight]), bn)
    scale = bn.gamma.array / cuda.get_array_module(bn.avg_var).sqrt(bn.avg_var + bn.eps)
    # Scaled weights scale the maps; a shift and ReLU are the same after pooling, where there is a quarter to do.
    function = Convolution(1, False, True, bn.beta.array - bn.avg_mean * scale)
    return function.apply((x, weight * scale[:, None, None, None]))[0]


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
