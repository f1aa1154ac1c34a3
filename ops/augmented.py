"""Layer augmentation: sums of products of the same input, each with weights of its own (section 3.3 of the paper).

A convolution becomes a product of *patches*, the inputs under the kernel at each position, (examples, positions,
taps x in), with weights, (out, taps x in); a fully connected layer is the case of one position and one tap.
"""
import numpy

import ops.kernels as kernels
import ops.tiled as tiled
import ops.tiled_sums as tiled_sums
from ops.blocks import ELEMENTS, added, blocks_of, in_parts, matmul, relu_in_place, scratch
from ops.compat import F, chainer, cuda, type_check
from ops.lazy import Mixed, made, rectified
from ops.memory import mixed_product
from ops.pooling import Windows


class _Products(chainer.FunctionNode):
    """y = sum_i act(W_i x): what `convolution` and `linear` share. Subclasses turn x into patches and back."""

    windows = None  # of a pooling that follows

    def __init__(self, group, relu):
        self.group = group
        self.relu = relu

    def check_type_forward(self, in_types):
        x = in_types[0]
        type_check.expect(in_types.size() >= 2, x.dtype.kind == 'f', x.ndim == self.x_ndim)
        for weight in in_types[1:]:
            type_check.expect(weight.dtype == x.dtype, weight.shape[-1] == x.shape[1])
            shared = type_check.eval(weight.ndim) == self.weight_ndim
            if not shared:
                groups = -(-type_check.eval(x.shape[0]) // self.group)
                type_check.expect(weight.ndim == self.weight_ndim + 1, weight.shape[0] == groups)
            type_check.expect(weight.shape[-self.weight_ndim] == in_types[1].shape[-self.weight_ndim])

    def _flatten(self, weight):
        """(..., out, kh, kw, in) -> (..., out, taps x in)"""
        return weight.reshape(weight.shape[:weight.ndim - self.weight_ndim + 1] + (-1,))

    def _cut(self, x, weights):
        step = self.group if any(weight.ndim == 3 for weight in weights) else 1
        size = len(x) if isinstance(x, cuda.ndarray) else ELEMENTS // (x[0, 0].size * max(weights[0].shape[-2:]))
        return blocks_of(len(x), size, step)

    def _groups(self, start, stop):
        return slice(start // self.group, -(-stop // self.group))

    def _of(self, weight, start, stop):
        """Weights of the examples start to stop: (groups, o, k), or (1, o, k) where all share them."""
        return weight[None] if weight.ndim == 2 else weight[self._groups(start, stop)]

    def _product(self, patches, weight, out):
        """Patches (examples, positions, k) times weight (groups, o, k), into out (examples, positions, o)."""
        groups, o, k = weight.shape
        return matmul(patches.reshape(groups, -1, k), weight.swapaxes(1, 2), out.reshape(groups, -1, o))

    def _spread(self, g, weight, out):
        """The way back, g (examples, positions, o) times weight: by taps, into out (taps, examples, positions, c)."""
        groups, o, k = weight.shape
        taps, c = len(out), out.shape[-1]
        if isinstance(out, cuda.ndarray):  # with the taps next to the channels
            return matmul(g.reshape(groups, -1, o), weight, out.reshape(groups, -1, k))
        weight = weight.reshape(groups, o, taps, c).swapaxes(1, 2)
        return matmul(g.reshape(groups, 1, -1, o), weight, out.reshape(taps, groups, -1, c).swapaxes(0, 1))

    def forward(self, inputs):
        x, weights = inputs[0], [self._flatten(weight) for weight in inputs[1:]]
        self.retain_inputs(range(len(inputs)))
        xp = cuda.get_array_module(x)
        shape = len(x), x[0, 0].size, weights[0].shape[-2]
        y = xp.empty(self.windows.pooled if self.windows else shape, x.dtype)
        masked = self.relu and (chainer.config.enable_backprop or xp is not numpy)
        self.alive = [xp.empty(shape, bool) if masked else None for _ in weights]

        def work(blocks):
            for start, stop in blocks:
                patches = self.patches(x[start:stop])
                out = scratch('sum', (stop - start,) + shape[1:], x) if self.windows else y[start:stop]
                for i, (weight, alive) in enumerate(zip(weights, self.alive)):
                    weight = self._of(weight, start, stop)
                    # Fast weights are often all negative. Where no input is, nothing passes their ReLUs.
                    if i and xp is numpy and self.relu and weight.max() <= 0 and x[start:stop].min() >= 0:
                        if alive is not None:
                            alive[start:stop] = False
                        continue
                    product = scratch('product', out.shape, out) if i else out
                    self._product(patches, weight, product)
                    if xp is not numpy and self.relu:
                        kernels.rectify(product, out, alive[start:stop], not i)
                        continue
                    if alive is not None:
                        xp.greater(product, 0, out=alive[start:stop])
                    if self.relu:
                        relu_in_place(product)
                    if i:
                        out += product
                if self.windows:
                    self.windows.pool(self.maps(out, x.shape), start, stop, y[start:stop])

        in_parts(work, self._cut(x, weights), xp)
        return (y.transpose(0, 3, 1, 2) if self.windows else self.from_rows(y, x.shape)),

    def backward(self, indexes, grad_outputs):
        inputs = [variable.array for variable in self.get_retained_inputs()]
        x, weights = inputs[0], [self._flatten(weight) for weight in inputs[1:]]
        xp = cuda.get_array_module(x)
        gy = grad_outputs[0].array.transpose(0, 2, 3, 1) if self.windows else self.to_rows(grad_outputs[0].array)
        gx = xp.empty((len(x), x[0, 0].size, x.shape[1]), x.dtype) if 0 in indexes else None
        new = xp.zeros if xp is numpy else xp.empty  # on a GPU no block is left out
        grouped = [new(weight.shape, x.dtype) if i in indexes and weight.ndim == 3 else None
                   for i, weight in enumerate(weights, 1)]

        def work(blocks):
            shared = [None] * len(weights)
            for start, stop in blocks:
                patches = self.patches(x[start:stop])
                taps = patches.shape[-1] // x.shape[1]
                g_patches = None
                g_sum = gy[start:stop]
                if self.windows:
                    g_sum = scratch('sum', (stop - start, x[0, 0].size, gy.shape[-1]), gy)
                    self.windows.unpool(gy[start:stop], start, stop, self.maps(g_sum, x.shape))
                for i, (weight, alive) in enumerate(zip(weights, self.alive)):
                    g = g_sum
                    if alive is not None:
                        # Weights whose activations are all dead, as fast ones often are, get and give no gradient.
                        if xp is numpy and not alive[start:stop].any():
                            continue
                        g = xp.multiply(g, alive[start:stop], out=scratch('g', g.shape, g))
                    if grouped[i] is not None:
                        out = grouped[i][self._groups(start, stop)]
                        matmul(g.reshape(len(out), -1, g.shape[-1]).swapaxes(1, 2),
                               patches.reshape(len(out), -1, patches.shape[-1]), out)
                    elif i + 1 in indexes:
                        its = g.reshape(-1, g.shape[-1]).T.dot(patches.reshape(-1, patches.shape[-1]))
                        if shared[i] is None:
                            shared[i] = its
                        else:
                            shared[i] += its
                    if gx is not None:
                        shape = taps, len(g), g.shape[1], x.shape[1]
                        out = scratch('g_patches' if g_patches is None else 'more_g_patches', shape, g)
                        self._spread(g, self._of(weight, start, stop), out)
                        if g_patches is None:
                            g_patches = out
                        else:
                            g_patches += out
                if gx is not None:
                    gx[start:stop] = 0 if g_patches is None else self.fold(g_patches, x.shape)
            return shared

        parts = in_parts(work, self._cut(x, weights), xp, summed=True)
        gradients = [self.from_rows(gx, x.shape) if gx is not None else None]
        for i, gradient in enumerate(grouped):
            if i + 1 not in indexes:
                gradients.append(None)
            else:
                if gradient is None:
                    terms = [part[i] for part in parts if part[i] is not None]
                    gradient = added(terms) if terms else xp.zeros_like(weights[i])
                gradients.append(gradient.reshape(inputs[i + 1].shape))
        return [None if gradients[i] is None else chainer.as_variable(gradients[i]) for i in indexes]


class Convolution(_Products):
    """Feature maps are handled with their channels last in memory: patches are then copied in long runs."""

    x_ndim, weight_ndim = 4, 4

    def __init__(self, group, relu, pool):
        super().__init__(group, relu)
        self.pool = pool

    def forward(self, inputs):
        x, weight = inputs[:2]
        self.kernel = weight.shape[-3:-1]
        if self.pool:
            shape = (len(x),) + x.shape[2:] + (weight.shape[-4],)
            self.windows = Windows(shape, cuda.get_array_module(x), chainer.config.enable_backprop)
        return super().forward(inputs)

    def to_rows(self, x):
        return x.transpose(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])

    def maps(self, rows, x_shape):
        return rows.reshape(len(rows), x_shape[2], x_shape[3], -1)

    def from_rows(self, rows, x_shape):
        return self.maps(rows, x_shape).transpose(0, 3, 1, 2)

    def _padded(self, n, c, h, w, like):
        """Zeros (n, h + kh - 1, w + kw - 1, c), and the view of them that feature maps fill."""
        kh, kw = self.kernel
        padded = scratch('padded', (n, h + kh - 1, w + kw - 1, c), like)
        padded.fill(0)
        return padded, padded[:, kh // 2:kh // 2 + h, kw // 2:kw // 2 + w]

    def patches(self, x):
        if isinstance(x, cuda.ndarray):
            return kernels.patches(x.transpose(0, 2, 3, 1), self.kernel)
        (n, c, h, w), (kh, kw) = x.shape, self.kernel
        padded, maps = self._padded(n, c, h, w, x)
        maps[...] = x.transpose(0, 2, 3, 1)
        s0, s1, s2, s3 = padded.strides
        patches = scratch('patches', (n, h, w, kh, kw * c), x)
        patches[...] = numpy.lib.stride_tricks.as_strided(padded, patches.shape, (s0, s1, s2, s1, s3))
        return patches.reshape(n, h * w, -1)

    def fold(self, g_patches, x_shape):
        (_, c, h, w), (_, kw) = x_shape, self.kernel
        if isinstance(g_patches, cuda.ndarray):
            return kernels.fold(g_patches, (h, w), self.kernel)
        n = g_patches.shape[1]
        padded, maps = self._padded(n, c, h, w, g_patches)
        for tap, g in enumerate(g_patches.reshape(-1, n, h, w, c)):
            i, j = divmod(tap, kw)
            window = padded[:, i:i + h, j:j + w]
            window += g
        return maps.reshape(n, h * w, c)


class Linear(_Products):

    x_ndim, weight_ndim = 2, 2

    def to_rows(self, x):
        return x[:, None]

    def from_rows(self, rows, x_shape):
        return rows[:, 0]

    patches = to_rows

    def fold(self, g_patches, x_shape):
        return g_patches[0]


def convolution(x, weights, group=1, relu=False, pool=False):
    """Sum of convolutions of the same feature maps, each with weights of its own: stride 1, no bias, size kept.

    Args:
        x: feature maps, float (n, c, h, w).
        weights: sequence of weights with the channels last, float (o, kh, kw, c) with kh and kw odd where all examples
            share them, or (g, o, kh, kw, c) where each group of examples has its own; or `lazy.Mixed`, one for each
            example.
        group: examples to a group; groups are consecutive, the last may be short: g = ceil(n / group).
        relu: whether each convolution goes through a ReLU before the sum.
        pool: whether `max_pooling` follows: within the cache, it costs next to nothing here.

    Returns:
        chainer.Variable: float (n, o, h, w); pooled, (n, o, ceil(h / 2), ceil(w / 2)).

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    if pool and relu and tiled_sums.suits(x, weights):
        return rectified(tiled_sums.tiled_sum(x, weights, group))
    weights = [made(weight) for weight in weights]
    if pool and relu and len(weights) == 1 and tiled.suits(x, weights[0], group):
        return rectified(tiled.tiled(x, weights[0], group))
    y, = Convolution(group, relu, pool).apply([x] + weights)
    return rectified(y) if relu else y


def channels_last(weight):
    """A weight (o, c, kh, kw) as `convolution` takes it, (o, kh, kw, c); without a node where nothing needs it."""
    axes = 0, 2, 3, 1
    if chainer.config.enable_backprop:
        return F.transpose(weight, axes)
    return chainer.as_variable(chainer.as_array(weight).transpose(axes))


def linear(x, weights, group=1, relu=False):
    """Sum of linear maps of the same vectors, each with weights of its own, no bias.

    Args:
        x: float (n, c).
        weights: sequence of weights, float (o, c) where all examples share them, or (g, o, c), one for each group;
            or `lazy.Mixed`, one for each example.
        group: examples to a group, as in `convolution`.
        relu: whether each map goes through a ReLU before the sum.

    Returns:
        chainer.Variable: float (n, o).

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    products = [mixed_product(x, weight) for weight in weights if isinstance(weight, Mixed)]
    plain = [weight for weight in weights if not isinstance(weight, Mixed)]
    ys = [F.relu(product) if relu else product for product in products]
    if plain:
        ys += Linear(group, relu).apply([x] + plain)
    return sum(ys[1:], ys[0])
