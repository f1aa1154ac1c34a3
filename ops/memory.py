"""The reading of the memory (section 3.2.3 of the paper)."""
import numpy

from ops.blocks import ELEMENTS, blocks_of, in_parts, matmul
from ops.compat import F, chainer, cuda, type_check
from ops.lazy import map_apart


class _Mixture(chainer.FunctionNode):

    def check_type_forward(self, in_types):
        weights = in_types[0]
        type_check.expect(in_types.size() >= 2, weights.dtype.kind == 'f', weights.ndim == 2)
        for value in in_types[1:]:
            type_check.expect(value.dtype == weights.dtype, value.ndim == 2, value.shape[0] == weights.shape[1])

    def _cut(self, values):
        """Blocks (which of the values, start, stop)"""
        return [(i, start, stop) for i, value in enumerate(values) for start, stop in blocks_of(
            value.shape[1], value.shape[1] if isinstance(value, cuda.ndarray) else ELEMENTS // 16)]

    def forward(self, inputs):
        weights, values = inputs[0], inputs[1:]
        self.retain_inputs(range(len(inputs)))
        xp = cuda.get_array_module(weights)
        ys = [xp.empty((len(weights), value.shape[1]), value.dtype) for value in values]

        def work(blocks):
            for i, start, stop in blocks:
                matmul(weights, values[i][:, start:stop], ys[i][:, start:stop])

        in_parts(work, self._cut(values), xp)
        return tuple(ys)

    def backward(self, indexes, grad_outputs):
        weights, *values = (variable.array for variable in self.get_retained_inputs())
        xp = cuda.get_array_module(weights)
        g_values = [xp.zeros(value.shape, value.dtype) for value in values]

        def work(blocks):
            g_weights = xp.zeros_like(weights)
            for i, start, stop in blocks:
                if grad_outputs[i] is not None:
                    gy = grad_outputs[i].array[:, start:stop]
                    # Of a layer whose activations are all dead no gradient comes back.
                    if xp is not numpy or gy.any():
                        matmul(weights.T, gy, g_values[i][:, start:stop])
                        g_weights += gy.dot(values[i][:, start:stop].T)
            return g_weights

        gradients = [sum(in_parts(work, self._cut(values), xp, summed=True))] + g_values
        return [chainer.as_variable(gradients[i]) for i in indexes]


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
