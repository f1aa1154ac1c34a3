"""Layer augmentation (section 3.3 of the paper) in tiles, where Numba is: sums of convolutions, each through a ReLU.

As `tiled`, but with several kernels, of which some may be of single groups of examples. What is transformed of the maps
serves all of them. There is no NumPy version of this: `augmented` has one that works on patches.
"""
import numpy

from ops.blocks import in_parts
from ops.compat import chainer, type_check
from ops.tiled import PooledConvolution, edges_of, flat, loops, nothing, plain, tiles_of


def suits(x, weights):
    """Whether `tiled_sum` can take maps x and these weights."""
    x, *weights = map(chainer.as_array, (x, *weights))
    return (isinstance(x, numpy.ndarray) and loops(x.dtype) is not None and len(weights) > 1
            and any(weight.ndim == 4 for weight in weights)
            and all(weight.shape[-3:-1] == (3, 3) for weight in weights))


def tiled_sum(x, weights, group=1):
    """Convolutions of the same maps, each through a ReLU; of their sum the pooling.

    Args:
        x: float (n, c, h, w).
        weights: list of at least two: float (o, 3, 3, c), which all examples share, as they do one at least, or
            (g, o, 3, 3, c), of each group of examples.
        group: consecutive examples to a group; the last group may be smaller.

    Returns:
        chainer.Variable: (n, o, ceil(h / 2), ceil(w / 2)).
    """
    return TiledSum(group).apply((x, *weights))[0]


class TiledSum(PooledConvolution):
    """See `tiled_sum`."""

    def check_type_forward(self, in_types):
        for weight in in_types[1:]:
            if type_check.eval(weight.ndim) != 4:
                type_check.expect(weight.ndim == 5)
            super().check_type_forward((in_types[0], weight))
            type_check.expect(weight.shape[-4] == in_types[1].shape[-4])

    def _arrays(self, x, weights):
        """Maps, the kernels that all examples share, and those of groups, both in the order of the weights."""
        own = [plain(weight) for weight in weights if weight.ndim == 5]
        return (plain(x.transpose(0, 2, 3, 1)),
                numpy.array([self.tiles.kernels(weight) for weight in weights if weight.ndim == 4]),
                own[0][None] if len(own) == 1 else numpy.stack(own) if own else nothing(x.dtype)(6))

    def _blocks(self, x, weights):
        step = self.group if any(weight.ndim == 5 for weight in weights) else 1
        return self.tiles.cut(x, self.tiles.numbers(weights[0].shape[-4], weights[0].shape[-1]), step)

    def forward(self, inputs):
        self.retain_inputs(range(len(inputs)))
        self.retain_outputs((0,))
        x = inputs[0]
        first = next(i for i, array in enumerate(inputs) if i and array.ndim == 4)
        # Fast weights are often all negative. Where no input is, nothing passes their ReLUs.
        self.used = [i for i, weight in enumerate(inputs)
                     if i == first or i and not (weight.max() <= 0 and x.min() >= 0)]
        weights = [inputs[i] for i in self.used]
        self.tiles = tiles_of(x, inputs[first])
        y = numpy.empty(self.tiles.pooled, x.dtype)
        self.second = self.tiles.new_second()
        size = (4, y[..., 0].size, y.shape[3]) if self.second is not None and len(weights) > 1 else (0,) * 3
        self.alive = numpy.empty((len(weights), *size), bool)
        arrays = self._arrays(x, weights)

        def work(blocks):
            loops(x.dtype).forward(*arrays, self.group, self.tiles.shape, edges_of(blocks), True, self.alive,
                                   flat(self.second, 3, bool), flat(None, 4, x.dtype), numpy.zeros((0, 2, 4, 0)),
                                   flat(y, 1)[0])

        in_parts(work, self._blocks(x, weights), numpy)
        return y.transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        x, *others = (variable.array for variable in self.get_retained_inputs())
        weights = [others[i - 1] for i in self.used]
        y = self.get_retained_outputs()[0].array.transpose(0, 2, 3, 1)
        empty = nothing(x.dtype)
        y = flat(y, 1)[0] if len(weights) == 1 else empty(2)  # the ReLU then came after the pooling
        maps, kernels, own = self._arrays(x, weights)
        kernels = plain(kernels.swapaxes(2, 3))
        g = plain(grad_outputs[0].array.transpose(0, 2, 3, 1))
        shared, grouped = ([i for i, weight in zip(self.used, weights) if weight.ndim == n_axes] for n_axes in (4, 5))
        gx = numpy.empty(maps.shape, x.dtype) if 0 in indexes else empty(4)
        gradients = numpy.empty(own.shape, x.dtype) if set(grouped) & set(indexes) else empty(6)

        def work(blocks):
            total = numpy.zeros(kernels.shape, x.dtype) if set(shared) & set(indexes) else empty(4)
            loops(x.dtype).backward(maps, kernels, own, self.group, self.tiles.shape, edges_of(blocks), flat(g, 1)[0],
                                    y, self.alive, flat(self.second, 3), empty(3), empty(1), empty(1), total,
                                    gradients, gx)
            return total

        total = sum(in_parts(work, self._blocks(x, weights), numpy, summed=True))
        found = {0: gx.transpose(0, 3, 1, 2), **dict(zip(grouped, gradients))}
        for i, its in zip(shared, total):
            found[i] = numpy.empty(others[i - 1].shape, x.dtype)
            self.tiles.g_weights(its[:, None], found[i][None])
        return [chainer.as_variable(found[i] if i in found else numpy.zeros_like(others[i - 1])) for i in indexes]
