"""A convolution of slow weights, batch normalisation, ReLU and pooling: on a CPU one function, on tiles."""
import numpy

from ops.augmented import channels_last, convolution
from ops.blocks import ELEMENTS, blocks_of, in_parts, relu_in_place
from ops.compat import F, L, chainer, type_check
from ops.pooling import max_pooling
from ops.tiled import PooledConvolution, loops, plain, suits, tiles_of

# Links that make their input's scale what their parameters say: to draw these at random would take it away.
NORMALIZATIONS = L.BatchNormalization, L.LayerNormalization, L.GroupNormalization


class _NormalizedTiles(PooledConvolution):
    """The ReLU and, where scales are positive, normalisation come to the same after pooling, where there is a quarter
    to do. So convolutions whose scale is negative change their sign: "turned" is what belongs to them afterwards.
    """

    def __init__(self, eps, mean=None, var=None):
        super().__init__()
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
        self.retain_inputs((0, 2))
        self.retain_outputs((0,))
        self.sign = numpy.where(gamma < 0, -1, 1).astype(x.dtype)
        self.turned = weight * self.sign[:, None, None, None]
        self.tiles = tiles_of(x, weight)
        self.second = self.tiles.new_second()
        # The convolution's outputs, for the way back through the batch's own statistics.
        keep = not self.given and chainer.config.enable_backprop
        self.kept = numpy.empty((2, 2) + self.tiles.pooled, x.dtype) if keep else None
        self.maxima = numpy.empty(self.tiles.pooled, x.dtype)

        sums = self.tiles.forward(x, self.turned, self.second, self.maxima, kept=self.kept, sums=not self.given)
        if self.given:
            mean, var = self.mean * self.sign, self.var
        else:
            mean, squares = sums / x[:, 0].size
            mean, var = mean.astype(x.dtype), (squares - mean ** 2).astype(x.dtype)
            self.mean, self.var = mean * self.sign, var
        self.turned_mean, self.inv_std = mean, 1 / numpy.sqrt(var + x.dtype.type(self.eps))
        scale = abs(gamma) * self.inv_std
        return _normalized(self.maxima, scale, beta - mean * scale).transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        x, gamma = (variable.array for variable in self.get_retained_inputs())
        y, gy = (array.transpose(0, 2, 3, 1) for array in (self.get_retained_outputs()[0].array, grad_outputs[0].array))
        scale = abs(gamma) * self.inv_std
        # Gradients reach the maxima alone; these tell what the normalised outputs were there.
        gy, g_beta, g_scale = _back(gy, y, self.maxima, self.turned_mean, scale)
        g_scale *= self.inv_std
        share = None
        if not self.given:  # the outputs have a share in the mean and in the variance
            count = x.dtype.type(x[:, 0].size)
            slope = -scale * self.inv_std * g_scale / count
            share = self.kept, slope, -scale * g_beta / count - slope * self.turned_mean

        gx, g_weight = self.tiles.backward(x, self.turned, gy, self.second, indexes, share=share)
        if g_weight is not None:
            g_weight *= self.sign[:, None, None, None]
        gradients = gx, g_weight, g_scale * self.sign, g_beta
        return [chainer.as_variable(gradients[i]) for i in indexes]


def _rows(*arrays):
    """Arrays (..., o) as (n, o), and blocks of these rows."""
    rows = [plain(array).reshape(-1, array.shape[-1]) for array in arrays]
    return *rows, blocks_of(len(rows[0]), ELEMENTS // rows[0].shape[1])


def _normalized(maxima, scale, offset):
    """The ReLU of maxima (..., o), scaled and shifted by (o,)."""
    result = numpy.empty_like(maxima)
    x, y, all_blocks = _rows(maxima, result)
    compiled = loops(x.dtype)

    def work(blocks):
        for start, stop in blocks:
            if compiled:
                compiled.normalize(x[start:stop], scale, offset, y[start:stop])
            else:
                numpy.multiply(x[start:stop], scale, out=y[start:stop])
                y[start:stop] += offset
                relu_in_place(y[start:stop])

    in_parts(work, all_blocks, numpy)
    return result


def _back(gy, y, maxima, mean, scale):
    """The way back of `_normalized`: gradients of the maxima, and sums of those of its outputs, alone and times maxima.

    Args:
        gy, y: the outputs' gradients, and the outputs.
        maxima, scale: as there.
        mean: (o,), taken off the maxima in the second sum.
    """
    result = numpy.empty_like(maxima)
    gy, y, x, g, all_blocks = _rows(gy, y, maxima, result)
    compiled = loops(x.dtype)

    def work(blocks):
        sums = numpy.zeros((2, len(scale)))
        for start, stop in blocks:
            if compiled:
                compiled.unnormalize(gy[start:stop], y[start:stop], x[start:stop], mean, scale, g[start:stop], sums)
            else:
                its = gy[start:stop] * (y[start:stop] > 0)
                for total, terms in zip(sums, (its, its * (x[start:stop] - mean))):
                    total += terms.sum(axis=0, dtype=sums.dtype)
                numpy.multiply(its, scale, out=g[start:stop])
        return sums

    return result, *sum(in_parts(work, all_blocks, numpy, summed=True)).astype(x.dtype)


def _statistics(implementation, axis, gamma, x, xp, dtype):
    """Chainer's mean and variance; on a GPU those of feature maps in two steps.

    CuPy takes sums over the batch and the maps' sides in one, of as few channels, on a small part of the GPU.
    """
    if xp is numpy or x.ndim != 4 or axis != (0, 2, 3):
        return _usual_statistics(implementation, axis, gamma, x, xp, dtype)
    mean = x.mean(axis=(2, 3), dtype=dtype).mean(axis=0)
    squares = xp.square(x - mean[None, :, None, None])
    return mean, squares.mean(axis=(2, 3), dtype=dtype).mean(axis=0)


_Implementation = F.normalization.batch_normalization.GeneralBatchNormalizationImpl
_usual_statistics = _Implementation.get_mean_and_var
_Implementation.get_mean_and_var = _statistics


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
    if not suits(x, weight):
        return max_pooling(F.relu(bn(convolution(x, [weight]))))
    inputs = x, weight, bn.gamma, bn.beta
    if not chainer.config.train:
        return _NormalizedTiles(bn.eps, bn.avg_mean, bn.avg_var).apply(inputs)[0]
    function = _NormalizedTiles(bn.eps)
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
        return normalized_convolution(x, channels_last(self.W), self.bn)
