"""The differentiable functions MetaNet spends its time in, on NumPy and on CuPy alike.

`convolution` and `linear` are layer augmentation (section 3.3 of the paper) in one primitive: a sum of products of the
same input, each with weights of its own, shared by all examples or one per group of examples. Run forwards with fast
weights per query it is the augmented layer; run backwards with a copy of the slow weights per support example it gives
the meta information. `mlp` and `lstm` are the meta learner's two coordinate-wise networks, `mixture` reads the memory.

On the CPU the work is cut into blocks that fit a core's cache, and the blocks are shared among threads. The cut depends
on the shapes alone, so results do not depend on the number of threads. Nothing here can be differentiated twice: the
paper's meta information is a constant (first order).
"""
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import chainer_compat  # noqa: F401  (before Chainer)
import chainer
import numpy
from chainer import as_variable, FunctionNode
from chainer import functions as F
from chainer.backends import cuda
from chainer.utils import type_check
from threadpoolctl import ThreadpoolController

# Numbers in a block's largest array, of a convolution or of pooling: what fits a core's cache, beside the others.
ELEMENTS = 1 << 18
# Chunks of coordinates in a block of a meta learner.
CHUNKS = 8
# Parts the blocks are dealt into. Each part adds up its own gradient, so this number, not the number of threads,
# decides the order of the sums.
PARTS = 16
# The cores this process may use.
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()

_blas = ThreadpoolController()
_pool = ThreadPoolExecutor()


def _in_parts(work, blocks, xp):
    """Calls `work` on up to `PARTS` runs of consecutive `blocks` in `THREADS` threads; returns its results in order.

    On a GPU in this thread alone: others have another current device.
    """
    edges = [i * len(blocks) // PARTS for i in range(PARTS + 1)]
    runs = [blocks[start:stop] for start, stop in zip(edges, edges[1:]) if start < stop]
    results, left = [None] * len(runs), enumerate(runs)
    threads = min(THREADS, len(runs)) if xp is numpy else 1

    def take():
        for i, run in left:
            results[i] = work(run)

    # The threads already fill the cores: BLAS must not start threads of its own in each of them.
    with _blas.limit(limits=1, user_api='blas'):
        helpers = [_pool.submit(take) for _ in range(threads - 1)]
        take()
        for helper in helpers:
            if not helper.cancel():  # one that hasn't begun isn't needed any more
                helper.result()
    return results


def _blocks(length, size, step=1):
    """Cuts `range(length)` into (start, stop) of at most `size`, at multiples of `step`; a short rest stands alone.

    One block or an even number of them, all of nearly the same size, for threads to have equal shares.
    """
    steps, size = length // step, max(1, size // step)
    count = -(-steps // size)
    count += count > 1 and count % 2
    edges = [i * steps // count * step for i in range(count)] + [steps * step, length]
    return [(start, stop) for start, stop in zip(edges, edges[1:]) if start < stop]


class _Scratch(threading.local):
    """Arrays a thread works in, block after block: NumPy's own come from fresh pages each time, outside the cache."""

    def __init__(self):
        self.arrays = {}

    def __call__(self, name, shape, like):
        """An uninitialised array with the dtype of `like`, valid until the thread's next call for that name."""
        if isinstance(like, cuda.ndarray):
            return cuda.cupy.empty(shape, like.dtype)
        size = math.prod(shape) * like.itemsize
        if name not in self.arrays or self.arrays[name].size < size:
            memory = numpy.empty(size + 64, numpy.uint8)
            start = -memory.ctypes.data % 64  # a cache line, and the width of the widest vectors
            self.arrays[name] = memory[start:start + size]
        return self.arrays[name][:size].view(like.dtype).reshape(shape)


_scratch = _Scratch()


def _matmul(a, b, out):
    """Into `out`, which may be any view: not every version of CuPy takes those."""
    if isinstance(out, cuda.ndarray):
        out[...] = cuda.cupy.matmul(a, b)
        return out
    return numpy.matmul(a, b, out=out)


def _relu(x):
    """In place. NumPy clips several times faster than it takes the maximum with a scalar."""
    return cuda.get_array_module(x).clip(x, 0, numpy.inf, out=x)


def preprocess(gradient, p=7):
    """Two channels, magnitude and sign, of each gradient (section 4 of the paper, after Andrychowicz et al. 2016).

    Args:
        gradient: float array of any shape.
        p: the exponent that parts large gradients from small ones.

    Returns:
        A pair of arrays of that shape: max(log(|g| + eps) / p, -1), and clip(g * e^p, -1, 1).
    """
    xp = cuda.get_array_module(gradient)
    eps = float(numpy.finfo(numpy.float32).eps)
    return (xp.maximum(xp.log(xp.abs(gradient) + eps) / p, -1),
            xp.clip(gradient * float(numpy.exp(p)), -1, 1))


class _Windows:
    """Pooling of feature maps with their channels last, of pairs of columns, then of rows; it knows which maxima won.

    Args:
        shape: (n, h, w, c), of all feature maps.
        xp: numpy or cupy.
        keep: whether `unpool` will be called.
    """

    def __init__(self, shape, xp, keep):
        n, h, w, c = shape
        self.pooled = n, -(-h // 2), -(-w // 2), c
        self.narrow = h, -(-w // 2), c
        # Whether the second of a pair wins, one array for columns and one for rows.
        self.second = (xp.empty((n, h, w // 2, c), bool), xp.empty((n, h // 2, -(-w // 2), c), bool)) if keep else None

    def pool(self, x, start, stop, out):
        """Examples start to stop, x (stop - start, h, w, c), into out."""
        narrow = _scratch('narrow', (stop - start,) + self.narrow, x)
        self._pool(x, 2, narrow, self.second and self.second[0][start:stop])
        self._pool(narrow, 1, out, self.second and self.second[1][start:stop])

    def unpool(self, gy, start, stop, out):
        """The way back: gradients go where the maxima were, of equals to the first, as in Chainer's own pooling."""
        g_narrow = _scratch('narrow', (stop - start,) + self.narrow, gy)
        self._unpool(gy, 1, g_narrow, self.second[1][start:stop])
        self._unpool(g_narrow, 2, out, self.second[0][start:stop])

    @staticmethod
    def _pair(x, axis):
        """The first and second members of the pairs; where the length is odd, the last has no second."""
        x = x.swapaxes(1, axis)
        return x[:, 0::2].swapaxes(1, axis), x[:, 1::2].swapaxes(1, axis)

    @staticmethod
    def _like(x, other, axis):
        """x as far as `other` goes along the axis"""
        return x[:, :other.shape[1]] if axis == 1 else x[:, :, :other.shape[2]]

    def _pool(self, x, axis, out, second):
        xp = cuda.get_array_module(x)
        a, b = self._pair(x, axis)
        whole = self._like(a, b, axis)
        xp.maximum(whole, b, out=self._like(out, b, axis))
        if second is not None:
            xp.greater(b, whole, out=second)
        if a.shape != b.shape:
            last = (slice(None),) * axis + (slice(-1, None),)
            out[last] = a[last]

    def _unpool(self, g, axis, out, second):
        xp = cuda.get_array_module(g)
        g_a, g_b = self._pair(out, axis)
        g_whole = self._like(g, g_b, axis)
        xp.multiply(g_whole, second, out=g_b)
        xp.subtract(g_whole, g_b, out=self._like(g_a, g_b, axis))
        if g_a.shape != g_b.shape:
            last = (slice(None),) * axis + (slice(-1, None),)
            g_a[last] = g[last]


class _Products(FunctionNode):
    """y = sum_i act(W_i x): what `convolution` and `linear` share. Subclasses turn x into columns and back."""

    windows = None  # of a pooling that follows
    shift = None  # of each output, followed by a ReLU after all else; there is no way back from it

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

    def _flatten(self, weight):
        """(..., out, kh, kw, in) -> (..., out, columns)"""
        return weight.reshape(weight.shape[:weight.ndim - self.weight_ndim + 1] + (-1,))

    def _cut(self, x, weights):
        step = self.group if any(weight.ndim == 3 for weight in weights) else 1
        size = len(x) if isinstance(x, cuda.ndarray) else ELEMENTS // (x[0, 0].size * max(weights[0].shape[-2:]))
        return _blocks(len(x), size, step)

    def _groups(self, start, stop):
        return slice(start // self.group, -(-stop // self.group))

    def _of(self, weight, start, stop):
        """Weights of the examples start to stop: (groups, o, k), or (1, o, k) where all share them."""
        return weight[None] if weight.ndim == 2 else weight[self._groups(start, stop)]

    def _product(self, columns, weight, out):
        """Columns (examples, positions, k) times weight (groups, o, k), into out (examples, positions, o)."""
        groups, o, k = weight.shape
        return _matmul(columns.reshape(groups, -1, k), weight.swapaxes(1, 2), out.reshape(groups, -1, o))

    def _spread(self, g, weight, out):
        """The way back, g (examples, positions, o) times weight: by taps, into out (taps, examples, positions, c)."""
        groups, o, _ = weight.shape
        taps, c = len(out), out.shape[-1]
        weight = weight.reshape(groups, o, taps, c).swapaxes(1, 2)
        return _matmul(g.reshape(groups, 1, -1, o), weight, out.reshape(taps, groups, -1, c).swapaxes(0, 1))

    def forward(self, inputs):
        x, weights = inputs[0], [self._flatten(weight) for weight in inputs[1:]]
        self.retain_inputs(range(len(inputs)))
        xp = cuda.get_array_module(x)
        shape = len(x), x[0, 0].size, weights[0].shape[-2]
        y = xp.empty(self.windows.pooled if self.windows else shape, x.dtype)
        masked = self.relu and chainer.config.enable_backprop
        self.alive = [xp.empty(shape, bool) if masked else None for _ in weights]

        def work(blocks):
            for start, stop in blocks:
                columns = self.columns(x[start:stop])
                out = _scratch('sum', (stop - start,) + shape[1:], x) if self.windows else y[start:stop]
                for i, (weight, alive) in enumerate(zip(weights, self.alive)):
                    weight = self._of(weight, start, stop)
                    # Fast weights are often all negative. Where no input is, their ReLUs are all shut.
                    if i and self.relu and weight.max() <= 0 and x[start:stop].min() >= 0:
                        if alive is not None:
                            alive[start:stop] = False
                        continue
                    product = _scratch('product', out.shape, out) if i else out
                    self._product(columns, weight, product)
                    if alive is not None:
                        xp.greater(product, 0, out=alive[start:stop])
                    if self.relu:
                        _relu(product)
                    if i:
                        out += product
                if self.windows:
                    self.windows.pool(self.maps(out, x.shape), start, stop, y[start:stop])
                if self.shift is not None:
                    y[start:stop] += self.shift
                    _relu(y[start:stop])

        _in_parts(work, self._cut(x, weights), xp)
        return (y.transpose(0, 3, 1, 2) if self.windows else self.from_rows(y, x.shape)),

    def backward(self, indexes, grad_outputs):
        inputs = [variable.array for variable in self.get_retained_inputs()]
        x, weights = inputs[0], [self._flatten(weight) for weight in inputs[1:]]
        xp = cuda.get_array_module(x)
        gy = grad_outputs[0].array.transpose(0, 2, 3, 1) if self.windows else self.to_rows(grad_outputs[0].array)
        gx = xp.empty((len(x), x[0, 0].size, x.shape[1]), x.dtype) if 0 in indexes else None
        grouped = [xp.zeros(weight.shape, x.dtype) if i in indexes and weight.ndim == 3 else None
                   for i, weight in enumerate(weights, 1)]

        def work(blocks):
            shared = [0] * len(weights)
            for start, stop in blocks:
                columns = self.columns(x[start:stop])
                taps = columns.shape[-1] // x.shape[1]
                g_columns = None
                g_sum = gy[start:stop]
                if self.windows:
                    g_sum = _scratch('sum', (stop - start, x[0, 0].size, gy.shape[-1]), gy)
                    self.windows.unpool(gy[start:stop], start, stop, self.maps(g_sum, x.shape))
                for i, (weight, alive) in enumerate(zip(weights, self.alive)):
                    g = g_sum
                    if alive is not None:
                        # Fast weights whose ReLUs are all shut, as they often are, cost nothing here.
                        if not alive[start:stop].any():
                            continue
                        g = xp.multiply(g, alive[start:stop], out=_scratch('g', g.shape, g))
                    if grouped[i] is not None:
                        out = grouped[i][self._groups(start, stop)]
                        _matmul(g.reshape(len(out), -1, g.shape[-1]).swapaxes(1, 2),
                                columns.reshape(len(out), -1, columns.shape[-1]), out)
                    elif i + 1 in indexes:
                        shared[i] += g.reshape(-1, g.shape[-1]).T.dot(columns.reshape(-1, columns.shape[-1]))
                    if gx is not None:
                        out = _scratch('g_columns%d' % min(i, 1), (taps, len(g), g.shape[1], x.shape[1]), g)
                        self._spread(g, self._of(weight, start, stop), out)
                        if g_columns is None:
                            g_columns = out
                        else:
                            g_columns += out
                if gx is not None:
                    gx[start:stop] = 0 if g_columns is None else self.fold(g_columns, x.shape)
            return shared

        parts = _in_parts(work, self._cut(x, weights), xp)
        gradients = [self.from_rows(gx, x.shape) if gx is not None else None]
        for i, gradient in enumerate(grouped):
            if i + 1 not in indexes:
                gradients.append(None)
            else:
                if gradient is None:
                    gradient = sum((part[i] for part in parts), xp.zeros_like(weights[i]))
                gradients.append(gradient.reshape(inputs[i + 1].shape))
        return [None if gradients[i] is None else as_variable(gradients[i]) for i in indexes]


class _Convolution(_Products):
    """Feature maps are handled with their channels last in memory: columns are then copied in long runs."""

    x_ndim, weight_ndim = 4, 4

    def __init__(self, group, relu, pool, shift=None):
        super().__init__(group, relu)
        self.pool = pool
        self.shift = shift

    def forward(self, inputs):
        x, weight = inputs[:2]
        self.kernel = weight.shape[-3:-1]
        if self.pool:
            shape = (len(x),) + x.shape[2:] + (weight.shape[-4],)
            self.windows = _Windows(shape, cuda.get_array_module(x), chainer.config.enable_backprop)
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
        padded = _scratch('padded', (n, h + kh - 1, w + kw - 1, c), like)
        padded.fill(0)
        return padded, padded[:, kh // 2:kh // 2 + h, kw // 2:kw // 2 + w]

    def columns(self, x):
        xp = cuda.get_array_module(x)
        (n, c, h, w), (kh, kw) = x.shape, self.kernel
        padded, maps = self._padded(n, c, h, w, x)
        maps[...] = x.transpose(0, 2, 3, 1)
        s0, s1, s2, s3 = padded.strides
        columns = _scratch('columns', (n, h, w, kh, kw * c), x)
        columns[...] = xp.lib.stride_tricks.as_strided(padded, columns.shape, (s0, s1, s2, s1, s3))
        return columns.reshape(n, h * w, -1)

    def fold(self, g_columns, x_shape):
        (_, c, h, w), (_, kw) = x_shape, self.kernel
        n = g_columns.shape[1]
        padded, maps = self._padded(n, c, h, w, g_columns)
        for tap, g in enumerate(g_columns.reshape(-1, n, h, w, c)):
            i, j = divmod(tap, kw)
            window = padded[:, i:i + h, j:j + w]
            window += g
        return maps.reshape(n, h * w, c)


class _Linear(_Products):

    x_ndim, weight_ndim = 2, 2

    def to_rows(self, x):
        return x[:, None]

    def from_rows(self, rows, x_shape):
        return rows[:, 0]

    columns = to_rows

    def fold(self, g_columns, x_shape):
        return g_columns[0]


def convolution(x, weights, group=1, relu=False, pool=False):
    """Sum of convolutions of the same feature maps, each with weights of its own: stride 1, no bias, size kept.

    Args:
        x: feature maps, float (n, c, h, w).
        weights: sequence of weights with the channels last, float (o, kh, kw, c) with kh and kw odd where all examples
            share them, or (g, o, kh, kw, c) where each group of examples has its own.
        group: examples to a group; groups are consecutive, the last may be short: g = ceil(n / group).
        relu: whether each convolution goes through a ReLU before the sum.
        pool: whether `max_pooling` follows: within the cache, it costs next to nothing here.

    Returns:
        chainer.Variable: float (n, o, h, w); pooled, (n, o, ceil(h / 2), ceil(w / 2)).

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    return _Convolution(group, relu, pool).apply([x] + list(weights))[0]


def linear(x, weights, group=1, relu=False):
    """Sum of linear maps of the same vectors, each with weights of its own, no bias.

    Args:
        x: float (n, c).
        weights: sequence of weights, float (o, c) where all examples share them, or (g, o, c), one for each group.
        group: examples to a group, as in `convolution`.
        relu: whether each map goes through a ReLU before the sum.

    Returns:
        chainer.Variable: float (n, o).

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    return _Linear(group, relu).apply([x] + list(weights))[0]


class _MaxPooling(FunctionNode):

    def check_type_forward(self, in_types):
        type_check.expect(in_types.size() == 1, in_types[0].dtype.kind == 'f', in_types[0].ndim == 4)

    def _cut(self, x):
        return _blocks(len(x), len(x) if isinstance(x, cuda.ndarray) else max(1, ELEMENTS // x[0].size))

    def forward(self, inputs):
        x = inputs[0].transpose(0, 2, 3, 1)
        xp = cuda.get_array_module(x)
        self.shape = x.shape
        self.windows = _Windows(x.shape, xp, chainer.config.enable_backprop)
        y = xp.empty(self.windows.pooled, x.dtype)

        def work(blocks):
            for start, stop in blocks:
                self.windows.pool(x[start:stop], start, stop, y[start:stop])

        _in_parts(work, self._cut(x), xp)
        return y.transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        gy = grad_outputs[0].array.transpose(0, 2, 3, 1)
        xp = cuda.get_array_module(gy)
        gx = xp.empty(self.shape, gy.dtype)

        def work(blocks):
            for start, stop in blocks:
                self.windows.unpool(gy[start:stop], start, stop, gx[start:stop])

        _in_parts(work, self._cut(gx), xp)
        return as_variable(gx.transpose(0, 3, 1, 2)),


def max_pooling(x):
    """Maximum over 2x2 windows, stride 2; windows may overhang the edge (ceil mode).

    Args:
        x: feature maps, float (n, c, h, w).

    Returns:
        chainer.Variable: float (n, c, ceil(h / 2), ceil(w / 2)).
    """
    return _MaxPooling().apply((x,))[0]


class _NormalizedReLU(FunctionNode):

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
        return _blocks(len(rows), len(rows) if isinstance(rows, cuda.ndarray) else max(1, ELEMENTS // rows[0].size))

    @staticmethod
    def _mean(rows, blocks, term):
        """The mean over all rows of a term of the blocks' rows."""
        def work(part):
            return sum(_column_sums(term(rows[start:stop], start, stop)) for start, stop in part)

        return sum(_in_parts(work, blocks, cuda.get_array_module(rows))) / rows[..., 0].size

    def _variance(self, rows, blocks):
        """Summed row after row, as NumPy does for Chainer: its rounding decides what ties in a pooling that follows."""
        xp = cuda.get_array_module(rows)
        total = xp.zeros(rows.shape[2], rows.dtype)
        for start, stop in blocks:
            block = rows[start:stop].reshape(-1, rows.shape[2])
            terms = _scratch('terms', (len(block) + 1, block.shape[1]), block)
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
                _relu(out)

        _in_parts(work, blocks, xp)
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
            centred = xp.subtract(block, self.mean, out=_scratch('centred', block.shape, block))
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
                    centred = xp.subtract(rows[start:stop], self.mean, out=_scratch('centred', out.shape, out))
                    centred *= slope
                    out += centred
                    out += offset
                out *= scale

        _in_parts(work, blocks, xp)
        count = rows[..., 0].size
        gx = gx.reshape(len(x), *x.shape[2:], -1).transpose(0, 3, 1, 2)
        gradients = gx, g_gamma * count, g_beta * count
        return [as_variable(gradients[i]) for i in indexes]


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
    function = _Convolution(1, False, True, bn.beta.array - bn.avg_mean * scale)
    return function.apply((x, weight * scale[:, None, None, None]))[0]


class _Mixture(FunctionNode):

    def check_type_forward(self, in_types):
        weights = in_types[0]
        type_check.expect(in_types.size() >= 2, weights.dtype.kind == 'f', weights.ndim == 2)
        for value in in_types[1:]:
            type_check.expect(value.dtype == weights.dtype, value.ndim == 2, value.shape[0] == weights.shape[1])

    def _cut(self, values):
        """Blocks (which of the values, start, stop)"""
        return [(i, start, stop) for i, value in enumerate(values) for start, stop in _blocks(
            value.shape[1], value.shape[1] if isinstance(value, cuda.ndarray) else ELEMENTS // 16)]

    def forward(self, inputs):
        weights, values = inputs[0], inputs[1:]
        self.retain_inputs(range(len(inputs)))
        xp = cuda.get_array_module(weights)
        ys = [xp.empty((len(weights), value.shape[1]), value.dtype) for value in values]

        def work(blocks):
            for i, start, stop in blocks:
                _matmul(weights, values[i][:, start:stop], ys[i][:, start:stop])

        _in_parts(work, self._cut(values), xp)
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
                    # As in `_Products`: where nothing came back, nothing goes on.
                    if gy.any():
                        _matmul(weights.T, gy, g_values[i][:, start:stop])
                        g_weights += gy.dot(values[i][:, start:stop].T)
            return g_weights

        gradients = [sum(_in_parts(work, self._cut(values), xp))] + g_values
        return [as_variable(gradients[i]) for i in indexes]


def mixture(weights, values):
    """Weighted sums of the rows of several arrays, all with the same weights: the reading of a memory.

    Args:
        weights: float (n, m).
        values: sequence of float (m, ...).

    Returns:
        A list of chainer.Variable: for each array its sums, (n, ...).

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    ys = _Mixture().apply([weights] + [F.reshape(value, (len(value), -1)) for value in values])
    return [F.reshape(y, weights.shape[:1] + value.shape[1:]) for y, value in zip(ys, values)]


class _Coordinatewise(FunctionNode):
    """The same small network for each column of several `gradients` (t, p); the gradients themselves are constants.

    Columns of zeros, which ReLUs that never open leave behind, share one output: it is computed once. Nothing but the
    other columns is kept for the backward pass: a block's activations are cheaper to compute again in cache than to
    fetch from memory. Within a block, NumPy's calls work on several chunks of columns at once: the threads hold each
    other up between calls, so these are long, while each matrix product stays small enough for BLAS's quick path.
    """

    def __init__(self, count):
        self.count = count

    def check_type_forward(self, in_types):
        dtype = in_types[0].dtype
        type_check.expect(dtype.kind == 'f', *(in_types[i].ndim == 2 for i in range(self.count)))
        for in_type in in_types[1:]:
            type_check.expect(in_type.dtype == dtype)

    def _cut(self):
        columns = self.columns.shape[1]
        size = columns if isinstance(self.columns, cuda.ndarray) else CHUNKS * self.chunk
        return _blocks(columns, size, min(size, self.chunk))

    def _chunks(self, array, start, stop):
        """(..., p) -> (..., chunks, 1, width) of that block"""
        width = stop - start if isinstance(array, cuda.ndarray) else min(self.chunk, stop - start)
        return array[..., start:stop].reshape(array.shape[:-1] + (-1, 1, width))

    def forward(self, inputs):
        gradients, parameters = inputs[:self.count], self.pack(*inputs[self.count:])
        self.retain_inputs(range(self.count, len(inputs)))
        xp = cuda.get_array_module(*inputs)
        # The first column stands for all columns of zeros.
        whole = xp.concatenate([xp.zeros((len(gradients[0]), 1), gradients[0].dtype)] + list(gradients), axis=1)
        live = whole.any(axis=0)
        live[0] = True
        self.live = xp.flatnonzero(live)
        self.columns = whole.take(self.live, axis=1)
        y = xp.empty(len(self.live), whole.dtype)

        def work(blocks):
            for start, stop in blocks:
                activations = self.activations(self._chunks(self.columns, start, stop), parameters, keep=False)
                y[start:stop] = self.output(activations, parameters).ravel()

        _in_parts(work, self._cut(), xp)
        ys = xp.empty(whole.shape[1], y.dtype)
        ys[...] = y[0]
        ys[self.live] = y
        self.edges = numpy.cumsum([1] + [array.shape[1] for array in gradients]).tolist()
        return tuple(ys[start:stop] for start, stop in zip(self.edges, self.edges[1:]))

    def backward(self, indexes, grad_outputs):
        parameters = self.pack(*(variable.array for variable in self.get_retained_inputs()))
        xp = cuda.get_array_module(self.columns)
        gys = xp.zeros(self.edges[-1], self.columns.dtype)
        for g, start, stop in zip(grad_outputs, self.edges, self.edges[1:]):
            if g is not None:
                gys[start:stop] = g.array
        gy = gys[self.live]
        gys[self.live] = 0
        gy[0] = gys.sum()

        def work(blocks):
            sums = [xp.zeros_like(parameter) for parameter in parameters]
            for start, stop in blocks:
                # Fast weights of a layer whose ReLUs are all shut get no gradient, and give none.
                if gy[start:stop].any():
                    activations = self.activations(self._chunks(self.columns, start, stop), parameters, keep=True)
                    terms = self.differentiate(activations, parameters, self._chunks(gy, start, stop))
                    for total, term in zip(sums, terms):
                        total += term.sum(0)
            return sums

        parts = _in_parts(work, self._cut(), xp)
        result = [None] * self.count + [as_variable(g) for g in self.unpack(*(sum(terms) for terms in zip(*parts)))]
        return [result[i] for i in indexes]


def _augment(weight, bias):
    """A bias is one more column of the weight, for an input that is always 1."""
    return cuda.get_array_module(weight).concatenate((weight, bias[:, None]), axis=1)


class _MLP(_Coordinatewise):

    chunk = 2048

    def pack(self, W1, b1, W2, b2, W3, b3):
        return _augment(W1, b1), _augment(W2, b2), _augment(W3, b3)

    def unpack(self, g1, g2, g3):
        return g1[:, :-1], g1[:, -1], g2[:, :-1], g2[:, -1], g3[:, :-1], g3[:, -1]

    def activations(self, gradients, parameters, keep):
        _, chunks, _, width = gradients.shape
        layers = []
        for i, weight in enumerate(parameters):
            layer = _scratch('layer%d' % i, (chunks, weight.shape[1], width), gradients)
            if i:
                _relu(_matmul(parameters[i - 1], layers[-1], layer[:, :-1]))
            else:
                layer[:, :1], layer[:, 1:2] = preprocess(gradients[0])
            layer[:, -1] = 1
            layers.append(layer)
        return layers

    def output(self, layers, parameters):
        return cuda.get_array_module(layers[0]).matmul(parameters[-1], layers[-1])

    def differentiate(self, layers, parameters, g):
        xp = cuda.get_array_module(g)
        terms = [xp.matmul(g, layers[-1].swapaxes(1, 2))]
        for i in (2, 1):
            hidden = layers[i][:, :-1]
            g = _matmul(parameters[i][:, :-1].T, g, _scratch('g_layer%d' % i, hidden.shape, g))
            g *= hidden > 0
            terms.insert(0, xp.matmul(g, layers[i - 1].swapaxes(1, 2)))
        return terms


class _LSTM(_Coordinatewise):
    """Chainer's LSTM: the rows of its weights are the gates a, i, f, o of the first unit, then of the second, ...

    2 sigmoid(x) = 1 + tanh(x / 2): one tanh serves all four gates, and where a sigmoid is due, its double is kept. The
    halves that this calls for are in the weights, but for the cell's.
    """

    chunk = 512
    order = [0, 1, 3, 2]  # of the gates in here: the first step, without a past, does without the last

    def pack(self, W, b, V, W_out, b_out):
        xp = cuda.get_array_module(W)
        units = V.shape[1]
        # Gate by gate, so that a gate's units are neighbours in memory.
        weight = xp.concatenate((W, b[:, None], V), axis=1).reshape(units, 4, -1)[:, self.order].swapaxes(0, 1)
        return self._halve(weight.reshape(4 * units, -1), xp.concatenate((b_out[:, None], W_out), axis=1))

    def unpack(self, g_weight, g_out):
        units = len(g_weight) // 4
        g_weight, g_out = self._halve(g_weight, g_out)
        # This order of gates is its own inverse.
        g_weight = g_weight.reshape(4, units, -1)[self.order].swapaxes(0, 1).reshape(4 * units, -1)
        return g_weight[:, :2], g_weight[:, 2], g_weight[:, 3:], g_out[:, 1:], g_out[:, 0]

    @staticmethod
    def _halve(weight, out):
        """In place, where sigmoids are computed, and where the double of a hidden state is met."""
        units = len(weight) // 4
        weight[units:] *= 0.5
        weight[:, 3:] *= 0.5
        out[:, 1:] *= 0.5
        return weight, out

    @staticmethod
    def _seen(t, units):
        """Rows of the gates and of `inputs` that matter at a step: before the first there is no state to keep."""
        return slice(None if t else 3 * units), slice(None if t else 3)

    def activations(self, gradients, parameters, keep):
        xp = cuda.get_array_module(gradients)
        (steps, chunks, _, width), units = gradients.shape, len(parameters[0]) // 4
        # Rows 0 and 1: the preprocessed gradient; row 2: 1 for the bias; from row 3: twice the hidden state before.
        inputs = _scratch('inputs', (steps + 1, chunks, 3 + units, width), gradients)
        inputs[:-1, :, :1], inputs[:-1, :, 1:2] = preprocess(gradients)
        inputs[:, :, 2] = 1
        kept = steps if keep else 1
        gates = _scratch('gates', (kept, chunks, 4, units, width), gradients)
        cells = _scratch('cells', (kept, chunks, units, width), gradients)
        tanh_cells = _scratch('tanh_cells', (kept if keep else 0, chunks, units, width), gradients)
        for t in range(steps):
            gate, cell = gates[t % kept], cells[t % kept]
            rows, columns = self._seen(t, units)
            flat = gate.reshape(chunks, 4 * units, width)[:, rows]
            _matmul(parameters[0][rows, columns], inputs[t, :, columns], flat)
            xp.tanh(flat, out=flat)
            sigmoids = flat[:, units:]
            sigmoids += 1
            a, i, o, f = gate.swapaxes(0, 1)
            # What is not kept may take the place of what is not needed any more: the less there is, the more is cached.
            past = xp.multiply(f, cells[(t - 1) % kept], out=tanh_cells[t] if keep else f) if t else 0
            xp.multiply(a, i, out=cell)
            cell += past
            cell *= 0.5
            tanh_cell = xp.tanh(cell, out=tanh_cells[t] if keep else i)
            xp.multiply(o, tanh_cell, out=inputs[t + 1, :, 3:])
        return inputs, gates, cells, tanh_cells

    def output(self, activations, parameters):
        inputs = activations[0]
        return cuda.get_array_module(inputs).matmul(parameters[1], inputs[-1, :, 2:])

    def differentiate(self, activations, parameters, gy):
        xp = cuda.get_array_module(gy)
        inputs, gates, cells, tanh_cells = activations
        weight, out = parameters
        steps, chunks, units, width = cells.shape
        g_out = xp.matmul(gy, inputs[-1, :, 2:].swapaxes(1, 2))
        g_weight = xp.zeros((chunks,) + weight.shape, weight.dtype)
        g_hidden = xp.multiply(out[:, 1:].T, gy, out=_scratch('g_hidden', (chunks, units, width), gy))
        g_cell = _scratch('g_cell', (chunks, units, width), gy)
        g_cell.fill(0)
        g_gates = _scratch('g_gates', (chunks, 4, units, width), gy)
        products = _scratch('products', (chunks, 3 * units, width), gy)
        product = products[:, :units]
        g_a, g_i, g_o, g_f = g_gates.swapaxes(0, 1)
        for t in reversed(range(steps)):
            rows, columns = self._seen(t, units)
            flat, flat_gates = (x.reshape(chunks, 4 * units, width)[:, rows] for x in (g_gates, gates[t]))
            a, i, o, f = gates[t].swapaxes(0, 1)
            # hidden = o tanh(cell)
            g_hidden *= o
            xp.multiply(g_hidden, tanh_cells[t], out=g_o)
            g_cell += g_hidden
            g_cell -= xp.multiply(g_o, tanh_cells[t], out=product)
            # cell = (a i + f cell) / 2
            g_cell *= 0.5
            xp.multiply(g_cell, i, out=g_a)
            xp.multiply(g_a, a, out=g_i)
            g_a -= xp.multiply(g_i, a, out=product)
            if t:
                g_cell *= f
                xp.multiply(g_cell, cells[t - 1], out=g_f)
            # So far g_i, g_f, g_o have their own gate as a factor; for s = 1 + tanh(z), ds/dz = s (2 - s).
            g_sigmoids = flat[:, units:]
            g_sigmoids *= xp.subtract(2, flat_gates[:, units:], out=products[:, :g_sigmoids.shape[1]])
            g_weight[:, rows, columns] += xp.matmul(flat, inputs[t, :, columns].swapaxes(1, 2))
            if t:
                _matmul(weight[:, 3:].T, flat, g_hidden)
        return [g_weight, g_out]


def mlp(gradients, W1, b1, W2, b2, W3, b3):
    """m of the paper: a two-hidden-layer ReLU network on each preprocessed gradient, all with the same parameters.

    Args:
        gradients: sequence of float arrays of any shapes; constants, nothing is differentiated through them.
        W1, b1, W2, b2, W3, b3: parameters, (u, 2), (u,), (u, u), (u,), (1, u), (1,).

    Returns:
        A list of chainer.Variable: for each array one of its shape, with a fast weight for each gradient.

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    outputs = _MLP(len(gradients)).apply([g.reshape(1, -1) for g in gradients] + [W1, b1, W2, b2, W3, b3])
    return [F.reshape(y, g.shape) for y, g in zip(outputs, gradients)]


def lstm(gradients, W, b, V, W_out, b_out):
    """d of the paper: an LSTM over the sequence of each coordinate's preprocessed gradients, then a linear output.

    Args:
        gradients: sequence of float arrays (t, ...), time first; constants, nothing is differentiated through them.
        W, b, V: the LSTM's input weight (4u, 2), bias (4u,) and lateral weight (4u, u), their rows in Chainer's order.
        W_out, b_out: the output layer, (1, u) and (1,), applied after the last step alone.

    Returns:
        A list of chainer.Variable: for each array one without its first axis, with a fast weight for each coordinate.

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    outputs = _LSTM(len(gradients)).apply([g.reshape(len(g), -1) for g in gradients] + [W, b, V, W_out, b_out])
    return [F.reshape(y, g.shape[1:]) for y, g in zip(outputs, gradients)]
