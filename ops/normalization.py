"""Batch normalisation between a convolution of slow weights and its pooling, in few passes over memory."""
from ops.augmented import Convolution, convolution
from ops.blocks import ELEMENTS, blocks_of, in_parts, relu_in_place, scratch
from ops.compat import F, L, chainer, cuda, type_check
from ops.pooling import max_pooling


class _NormalizedReLU(chainer.FunctionNode):

    def __init__(self, eps, mean=None, var=None):
        self.eps = eps
        self.mean, self.var = mean, var
        self.given = mean is not None

    def check_type_forward(self, in_types):
        x, gamma, beta = in_types
        type_check.expect(x.dtype.kind == 'f', x.ndim == 4)
        for parameter in (gamma, beta):
            type_check.expect(parameter.dtype == x.dtype, parameter.ndim == 1, parameter.shape[0] == x.shape[1])

    @staticmethod
    def _rows(x):
        """(n, c, h, w) -> (n, h w, c)"""
        return x.transpose(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])

    def _cut(self, rows):
        return blocks_of(len(rows), len(rows) if isinstance(rows, cuda.ndarray) else max(1, ELEMENTS // rows[0].size))

    @staticmethod
    def _mean(rows, blocks, term):
        """The mean over all rows of a term of the blocks' rows."""
        def work(part):
            return sum(_column_sums(term(rows[start:stop], start, stop)) for start, stop in part)

        return sum(in_parts(work, blocks, cuda.get_array_module(rows))) / rows[..., 0].size

    def _variance(self, rows, blocks):
        """Summed row after row, as NumPy does for Chainer: its rounding decides what ties in a pooling that follows."""
        xp = cuda.get_array_module(rows)
        total = xp.zeros(rows.shape[2], rows.dtype)
        for start, stop in blocks:
            block = rows[start:stop].reshape(-1, rows.shape[2])
            terms = scratch('terms', (len(block) + 1, block.shape[1]), block)
            terms[0] = total
            centred = xp.subtract(block, self.mean, out=terms[1:])
            centred *= centred
            total = terms.sum(0)
        return total / rows[..., 0].size

    def forward(self, inputs):
        x, gamma, beta = inputs
        self.retain_inputs((0, 1))
        self.retain_outputs((0,))
        xp = cuda.get_array_module(x)
        rows = self._rows(x)
        blocks = self._cut(rows)
        if not self.given:
            self.mean = rows.reshape(-1, rows.shape[2]).mean(0)
            self.var = self._variance(rows, blocks)
        self.inv_std = 1 / xp.sqrt(self.var + self.eps)
        y = xp.empty(rows.shape, x.dtype)

        def work(part):
            for start, stop in part:
                # Chainer's own order of operations: what rounds alike ties alike in a pooling that follows.
                out = xp.subtract(rows[start:stop], self.mean, out=y[start:stop])
                out *= self.inv_std
                out *= gamma
                out += beta
                relu_in_place(out)

        in_parts(work, blocks, xp)
        return y.reshape(len(x), *x.shape[2:], -1).transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        x, gamma = (variable.array for variable in self.get_retained_inputs())
        xp = cuda.get_array_module(x)
        rows, y, gy = map(self._rows, (x, self.get_retained_outputs()[0].array, grad_outputs[0].array))
        blocks = self._cut(rows)
        gx = xp.empty(rows.shape, x.dtype)

        def masked(_, start, stop):
            return xp.multiply(gy[start:stop], y[start:stop] > 0, out=gx[start:stop])

        def correlated(block, start, stop):
            centred = xp.subtract(block, self.mean, out=scratch('centred', block.shape, block))
            return xp.multiply(centred, gx[start:stop], out=centred)

        g_beta = self._mean(rows, blocks, masked)
        g_gamma = self._mean(rows, blocks, correlated) * self.inv_std
        # x's share in the mean and the variance, where these are the batch's own
        slope, offset = (0, 0) if self.given else (-g_gamma * self.inv_std, -g_beta)
        scale = gamma * self.inv_std

        def work(part):
            for start, stop in part:
                out = gx[start:stop]
                if not self.given:
                    centred = xp.subtract(rows[start:stop], self.mean, out=scratch('centred', out.shape, out))
                    centred *= slope
                    out += centred
                    out += offset
                out *= scale

        in_parts(work, blocks, xp)
        count = rows[..., 0].size
        gx = gx.reshape(len(x), *x.shape[2:], -1).transpose(0, 3, 1, 2)
        gradients = gx, g_gamma * count, g_beta * count
        return [chainer.as_variable(gradients[i]) for i in indexes]


def _column_sums(rows):
    """(examples, positions, c) -> (c,): as a product with ones, several times faster than NumPy's own sum."""
    rows = rows.reshape(-1, rows.shape[-1])
    return cuda.get_array_module(rows).ones(len(rows), rows.dtype).dot(rows)


def normalized_relu(x, bn):
    """Batch normalisation, then ReLU: what a Chainer link would do, in few passes over blocks, not a dozen over all.

    In training it normalises by the batch's statistics and moves the link's running averages; otherwise by these.

    Args:
        x: feature maps, float (n, c, h, w).
        bn: a `chainer.links.BatchNormalization` of size c.

    Returns:
        chainer.Variable: float (n, c, h, w).
    """
    if not chainer.config.train:
        return _NormalizedReLU(bn.eps, bn.avg_mean, bn.avg_var).apply((x, bn.gamma, bn.beta))[0]
    function = _NormalizedReLU(bn.eps)
    y, = function.apply((x, bn.gamma, bn.beta))
    # As Chainer does: the average is of the unbiased variance.
    count = x.size // x.shape[1]
    for average, value in ((bn.avg_mean, function.mean), (bn.avg_var, function.var * (count / max(count - 1, 1)))):
        average *= bn.decay
        average += (1 - bn.decay) * value
    return y


def normalized_convolution(x, weight, bn):
    """Convolution, `normalized_relu` and `max_pooling`; all within the cache where nothing has to be differentiated.

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
        return max_pooling(normalized_relu(convolution(x, [weight]), bn))
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
