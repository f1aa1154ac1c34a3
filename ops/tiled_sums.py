"""Layer augmentation (section 3.3 of the paper) in tiles, where Numba is: sums of convolutions, each through a ReLU.

As `tiled`, but with several kernels, of which some may be of single groups of examples. What is transformed of the maps
serves all of them. Kernels that are means of the same few, as read from the memory, are made in the cache, when their
example's turn comes. There is no NumPy version of this: `augmented` has one that works on patches.
"""
import math

import numpy

from ops.blocks import blocks_of, in_parts, scratch
from ops.compat import chainer, type_check
from ops.lazy import Mixed, made
from ops.memory import mixture_gradients
from ops.tiled import PooledConvolution, edges_of, flat, loops, nothing, plain, tiles_of


def suits(x, weights):
    """Whether `tiled_sum` can take maps x and these weights."""
    x = chainer.as_array(x)
    weights = [chainer.as_array(weight.values if isinstance(weight, Mixed) else weight) for weight in weights]
    return (isinstance(x, numpy.ndarray) and loops(x.dtype) is not None and len(weights) > 1
            and any(weight.ndim == 4 for weight in weights)
            and all(weight.shape[-3:-1] == (3, 3) for weight in weights))


def tiled_sum(x, weights, group=1):
    """Convolutions of the same maps, each through a ReLU; of their sum the pooling.

    Args:
        x: float (n, c, h, w).
        weights: list of at least two: float (o, 3, 3, c), which all examples share, as they do one at least, or
            (g, o, 3, 3, c), of each group of examples; or `lazy.Mixed`, of each example.
        group: consecutive examples to a group; the last group may be smaller.

    Returns:
        chainer.Variable: (n, o, ceil(h / 2), ceil(w / 2)).
    """
    mixed = [weight for weight in weights if isinstance(weight, Mixed)]
    others = [weight for weight in weights if not isinstance(weight, Mixed)]
    if len(mixed) == 1 and all(weight.ndim == 4 for weight in others):
        return TiledSum(1, is_mixed=True).apply((x, *others, mixed[0].values, mixed[0].weights))[0]
    return TiledSum(group).apply((x, *map(made, weights)))[0]


class TiledSum(PooledConvolution):
    """See `tiled_sum`. With `is_mixed` the last inputs are kernels (m, o, 3, 3, c) and examples' shares (n, m)."""

    def __init__(self, group, is_mixed=False):
        super().__init__(group)
        self.is_mixed = is_mixed

    def check_type_forward(self, in_types):
        x, *weights = in_types
        if self.is_mixed:
            *weights, values, shares = weights
            type_check.expect(values.ndim == 5, shares.ndim == 2, values.dtype == x.dtype, shares.dtype == x.dtype,
                              shares.shape[0] == x.shape[0], shares.shape[1] == values.shape[0],
                              values.shape[1] == weights[0].shape[0], values.shape[4] == x.shape[1])
        for weight in weights:
            if type_check.eval(weight.ndim) != 4:
                type_check.expect(weight.ndim == 5)
            super().check_type_forward((x, weight))
            type_check.expect(weight.shape[-4] == weights[0].shape[-4])

    def _arrays(self, x, weights, shares, back=False):
        """Maps, the kernels that all examples share, those of groups, both in the order of the weights, and shares."""
        own = [weight for weight in weights if weight.ndim == 5]
        if shares is None:
            own = [plain(weight).reshape(*weight.shape[:2], -1) for weight in own]
        else:
            own = [self._turned(weight, back) for weight in own]
        empty = nothing(x.dtype)
        return (plain(x.transpose(0, 2, 3, 1)),
                numpy.array([self.tiles.kernels(weight) for weight in weights if weight.ndim == 4]),
                own[0][None] if len(own) == 1 else numpy.stack(own) if own else empty(4),
                plain(shares) if own and shares is not None else empty(2))

    def _turned(self, values, back):
        """Kernels (m, o, 3, 3, c) as the matrices of products, (c, o), or (o, c) on the way back: (m, places, c o)."""
        if self.tiles.places == 1:
            return plain(values if back else values.transpose(0, 2, 3, 4, 1)).reshape(len(values), 1, -1)
        rows = values.transpose(0, 2, 3, 1, 4) if back else values.transpose(0, 2, 3, 4, 1)
        matrices = numpy.empty((len(values), 16, values[0, :, 0, 0].size), values.dtype)

        def work(blocks):
            for start, stop in blocks:
                its = plain(rows[start:stop]).reshape(stop - start, 9, -1)
                loops(values.dtype).turn(its, scratch('half', (4, 3, its.shape[2]), its), matrices[start:stop])

        in_parts(work, blocks_of(len(values), 1), numpy)
        return matrices

    def _blocks(self, x, weights):
        step, numbers = 1, self.tiles.numbers(weights[0].shape[-4], weights[0].shape[-1])
        if any(weight.ndim == 5 for weight in weights):  # small maps have kernels that are larger
            step, numbers = self.group, max(numbers, math.prod(weights[0].shape[-4:]) // (4 * self.tiles.n_tiles))
        return self.tiles.cut(x, numbers, step)

    def _apart(self, inputs):
        """Maps, weights, and shares, or None."""
        x, *weights = inputs
        return (x, weights[:-1], weights[-1]) if self.is_mixed else (x, weights, None)

    def forward(self, inputs):
        self.retain_inputs(range(len(inputs)))
        self.retain_outputs((0,))
        x, weights, shares = self._apart(inputs)
        first = next(i for i, weight in enumerate(weights) if weight.ndim == 4)
        # Fast weights are often all negative. Where no input is, nothing passes their ReLUs.
        self.used = [i for i, weight in enumerate(weights)
                     if i == first or not (weight.max() <= 0 and x.min() >= 0)]
        self.tiles = tiles_of(x, weights[first])
        weights = [weights[i] for i in self.used]
        y = numpy.empty(self.tiles.pooled, x.dtype)
        self.second = self.tiles.new_second()
        size = (4, y[..., 0].size, y.shape[3]) if self.second is not None and len(weights) > 1 else (0,) * 3
        self.alive = numpy.empty((len(weights), *size), bool)
        arrays = self._arrays(x, weights, shares)

        def work(blocks):
            loops(x.dtype).forward(*arrays, self.group, self.tiles.shape, edges_of(blocks), True, self.alive,
                                   flat(self.second, 3, bool), flat(None, 4, x.dtype), numpy.zeros((0, 2, 4, 0)),
                                   flat(y, 1)[0])

        in_parts(work, self._blocks(x, weights), numpy)
        return y.transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        inputs = [variable.array for variable in self.get_retained_inputs()]
        x, others, shares = self._apart(inputs)
        weights = [others[i] for i in self.used]
        y = self.get_retained_outputs()[0].array.transpose(0, 2, 3, 1)
        empty = nothing(x.dtype)
        y = flat(y, 1)[0] if len(weights) == 1 else empty(2)  # the ReLU then came after the pooling
        maps, kernels, own, shares = self._arrays(x, weights, shares, back=True)
        kernels = plain(kernels.swapaxes(2, 3))
        g = plain(grad_outputs[0].array.transpose(0, 2, 3, 1))
        shared, grouped = ([i for i, weight in zip(self.used, weights) if weight.ndim == n_axes] for n_axes in (4, 5))
        places = [i - 1 for i in indexes]
        gx = numpy.empty(maps.shape, x.dtype) if 0 in indexes else empty(4)
        gradients = empty(6)
        if set(grouped) & set(places) or len(shares):
            groups = -(-len(x) // self.group)
            gradients = numpy.empty((len(own), groups, *weights[0].shape[-4:]), x.dtype)

        def work(blocks):
            total = numpy.zeros(kernels.swapaxes(2, 3).shape, x.dtype) if set(shared) & set(places) else empty(4)
            loops(x.dtype).backward(maps, kernels, own, shares, self.group, self.tiles.shape, edges_of(blocks),
                                    flat(g, 1)[0], y, self.alive, flat(self.second, 3), empty(3), empty(1), empty(1),
                                    total, gradients, gx)
            return total

        total = sum(in_parts(work, self._blocks(x, weights), numpy, summed=True))
        found = dict(zip(grouped, gradients))
        if len(shares):
            values = others[grouped[0]]
            g_shares, g_values = mixture_gradients(shares, [values.reshape(len(values), -1)],
                                                   [gradients[0].reshape(len(x), -1)])
            found = {grouped[0]: g_values.reshape(values.shape), len(others): g_shares}
        for i, its in zip(shared, total):
            found[i] = numpy.empty(others[i].shape, x.dtype)
            self.tiles.g_weights(its.swapaxes(1, 2)[:, None], found[i][None])
        found[-1] = gx.transpose(0, 3, 1, 2)
        return [chainer.as_variable(found[i] if i in found else numpy.zeros_like(inputs[i + 1])) for i in places]
