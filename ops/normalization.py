"""A convolution of slow weights, batch normalisation, ReLU and pooling: on a CPU one function, on tiles."""
import numpy

from ops.augmented import convolution
from ops.blocks import relu_in_place
from ops.compat import F, L, chainer, type_check
from ops.pooling import max_pooling
from ops.tiled import PooledConvolution, suits, tiles_of


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
        y = self.maxima * scale
        y += beta - mean * scale
        return relu_in_place(y).transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        x, gamma = (variable.array for variable in self.get_retained_inputs())
        y, gy = (array.transpose(0, 2, 3, 1) for array in (self.get_retained_outputs()[0].array, grad_outputs[0].array))
        gy = gy * (y > 0)
        g_beta = _column_sums(gy)
        # Gradients reach the maxima alone; these tell what the normalised outputs were there.
        g_scale = _column_sums(gy * (self.maxima - self.turned_mean)) * self.inv_std
        scale = abs(gamma) * self.inv_std
        gy *= scale
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


def _column_sums(rows):
    """(..., c) -> (c,): as a product with ones, several times faster than NumPy's own sum."""
    rows = rows.reshape(-1, rows.shape[-1])
    return numpy.ones(len(rows), rows.dtype).dot(rows)


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
        return normalized_convolution(x, F.transpose(self.W, (0, 2, 3, 1)), self.bn)
