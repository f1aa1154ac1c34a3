"""The differentiable functions MetaNet spends its time in, on NumPy and on CuPy alike.

`convolution` and `linear` are layer augmentation (section 3.3 of the paper) in one primitive: a sum of products of the same
input, each with weights of its own, shared by all examples or one per group of examples. Run forwards with fast
weights per query it is the augmented layer; run backwards with a copy of the slow weights per support example it gives the
meta information. `mlp` and `lstm` are the meta learner's two coordinate-wise networks.

On the CPU the work is cut into blocks that fit a core's cache, and the blocks are shared among threads. The cut depends
on the shapes alone, so results do not depend on the number of threads. Nothing here can be differentiated twice: the paper's
meta information is a constant (first order).
"""
import os
from concurrent.futures import ThreadPoolExecutor

import chainer_compat  # noqa: F401  (before Chainer)
import numpy
from chainer import as_variable, FunctionNode
from chainer import functions as F
from chainer.backends import cuda
from chainer.utils import type_check
from threadpoolctl import ThreadpoolController

# Rows of a convolution's columns, and coordinates of a meta learner, that a block holds: what fits a 1 MB L2 cache.
ROWS = 256
COORDINATES = 256
# Parts the blocks are dealt into. Each part adds up its own gradient, so this number, not the number of threads,
# decides the order of the sums.
PARTS = 16

_blas = ThreadpoolController()
_threads = None


def _in_parts(work, blocks):
    """Calls `work` on up to `PARTS` runs of consecutive `blocks` in threads; returns its results in order."""
    global _threads
    runs = [run.tolist() for run in numpy.array_split(numpy.array(blocks, int).reshape(-1, 2), PARTS) if len(run)]
    if _threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
        _threads = ThreadPoolExecutor(cores)
    if len(runs) == 1:
        return [work(runs[0])]
    # The threads already fill the cores: BLAS must not start threads of its own in each of them.
    with _blas.limit(limits=1, user_api='blas'):
        return list(_threads.map(work, runs))


def _blocks(length, size, step=1):
    """Cuts `range(length)` into [start, stop) blocks of about `size`, at multiples of `step`; a short rest stands alone."""
    size = max(step, size // step * step)
    whole = length // step * step
    edges = list(range(0, whole, size)) + [whole, length]
    return [(start, stop) for start, stop in zip(edges, edges[1:]) if start < stop]


def preprocess(gradient, p=7):
    """Two channels, magnitude and sign, of each gradient (section 4 of the paper, after Andrychowicz et al. 2016).

    Args:
        gradient: float array of any shape.
        p: the exponent that parts large gradients from small ones.

    Returns:
        A pair of arrays of that shape, in [-1, ~12.7) and [-1, 1]: max(log(|g| + eps) / p, -1) and clip(g * e^p, -1, 1).
    """
    xp = cuda.get_array_module(gradient)
    eps = float(numpy.finfo(numpy.float32).eps)
    return (xp.maximum(xp.log(xp.abs(gradient) + eps) / p, -1),
            xp.clip(gradient * float(numpy.exp(p)), -1, 1))


class _Products(FunctionNode):
    """y = sum_i act(W_i x): what `convolution` and `linear` share. Subclasses turn x into columns and back."""

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
        positions = x[0, 0].size
        step = self.group if any(weight.ndim == 3 for weight in weights) else 1
        size = len(x) if isinstance(x, cuda.ndarray) else ROWS // positions
        return _blocks(len(x), size, step)

    def _groups(self, start, stop):
        return slice(start // self.group, -(-stop // self.group))

    def _product(self, rows, weight, start, stop):
        """rows (examples, positions, k) times weight (k, n) or (groups, k, n) -> (examples, positions, n)"""
        xp = cuda.get_array_module(rows)
        if weight.ndim == 2:
            product = rows.reshape(-1, rows.shape[-1]).dot(weight)
        else:
            weight = weight[self._groups(start, stop)]
            product = xp.matmul(rows.reshape(len(weight), -1, rows.shape[-1]), weight)
        return product.reshape(rows.shape[:2] + (-1,))

    def forward(self, inputs):
        x, weights = inputs[0], [self._flatten(weight) for weight in inputs[1:]]
        self.retain_inputs(range(len(inputs)))
        xp = cuda.get_array_module(x)
        positions = x[0, 0].size
        y = xp.empty((len(x), positions, weights[0].shape[-2]), x.dtype)
        self.alive = [xp.empty(y.shape, bool) for _ in weights] if self.relu else [None] * len(weights)

        def work(blocks):
            for start, stop in blocks:
                columns = self.columns(x[start:stop])
                out = y[start:stop]
                for i, (weight, alive) in enumerate(zip(weights, self.alive)):
                    product = self._product(columns, weight.swapaxes(-1, -2), start, stop)
                    if self.relu:
                        xp.greater(product, 0, out=alive[start:stop])
                        xp.maximum(product, x.dtype.type(0), out=product)
                    if i:
                        out += product
                    else:
                        out[...] = product

        _in_parts(work, self._cut(x, weights))
        return self.from_rows(y, x.shape),

    def backward(self, indexes, grad_outputs):
        inputs = [variable.array for variable in self.get_retained_inputs()]
        x, weights = inputs[0], [self._flatten(weight) for weight in inputs[1:]]
        xp = cuda.get_array_module(x)
        gy = self.to_rows(grad_outputs[0].array)
        gx = xp.empty(self.to_rows(x).shape, x.dtype) if 0 in indexes else None
        grouped = [xp.empty(weight.shape, x.dtype) if i in indexes and weight.ndim == 3 else None
                   for i, weight in enumerate(weights, 1)]

        def work(blocks):
            shared = [0] * len(weights)
            for start, stop in blocks:
                columns = self.columns(x[start:stop])
                g_columns = 0
                for i, (weight, alive) in enumerate(zip(weights, self.alive)):
                    g = gy[start:stop] if alive is None else gy[start:stop] * alive[start:stop]
                    if grouped[i] is not None:
                        out = grouped[i][self._groups(start, stop)]
                        xp.matmul(g.reshape(len(out), -1, g.shape[-1]).swapaxes(-1, -2),
                                  columns.reshape(len(out), -1, columns.shape[-1]), out=out)
                    elif i + 1 in indexes:
                        shared[i] += g.reshape(-1, g.shape[-1]).T.dot(columns.reshape(-1, columns.shape[-1]))
                    if gx is not None:
                        g_columns += self._product(g, weight, start, stop)
                if gx is not None:
                    gx[start:stop] = self.fold(g_columns, x.shape)
            return shared

        parts = _in_parts(work, self._cut(x, weights))
        gradients = [self.from_rows(gx, x.shape) if gx is not None else None]
        for i, gradient in enumerate(grouped):
            if i + 1 not in indexes:
                gradients.append(None)
            elif gradient is None:
                gradients.append(sum(part[i] for part in parts).reshape(inputs[i + 1].shape))
            else:
                gradients.append(gradient.reshape(inputs[i + 1].shape))
        return [None if gradients[i] is None else as_variable(gradients[i]) for i in indexes]


class _Convolution(_Products):
    """Feature maps are handled with their channels last in memory: columns are then copied in long runs."""

    x_ndim, weight_ndim = 4, 4

    def forward(self, inputs):
        self.kernel = inputs[1].shape[-3:-1]
        return super().forward(inputs)

    def to_rows(self, x):
        return x.transpose(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])

    def from_rows(self, rows, x_shape):
        return rows.reshape(len(rows), x_shape[2], x_shape[3], -1).transpose(0, 3, 1, 2)

    def columns(self, x):
        xp = cuda.get_array_module(x)
        (n, c, h, w), (kh, kw) = x.shape, self.kernel
        padded = xp.zeros((n, h + kh - 1, w + kw - 1, c), x.dtype)
        padded[:, kh // 2:kh // 2 + h, kw // 2:kw // 2 + w] = x.transpose(0, 2, 3, 1)
        s0, s1, s2, s3 = padded.strides
        windows = xp.lib.stride_tricks.as_strided(padded, (n, h, w, kh, kw * c), (s0, s1, s2, s1, s3))
        return windows.reshape(n, h * w, -1)

    def fold(self, g_columns, x_shape):
        xp = cuda.get_array_module(g_columns)
        (_, c, h, w), (kh, kw) = x_shape, self.kernel
        g_columns = g_columns.reshape(-1, h, w, kh, kw, c)
        padded = xp.zeros((len(g_columns), h + kh - 1, w + kw - 1, c), g_columns.dtype)
        for i in range(kh):
            for j in range(kw):
                padded[:, i:i + h, j:j + w] += g_columns[:, :, :, i, j]
        return padded[:, kh // 2:kh // 2 + h, kw // 2:kw // 2 + w].reshape(-1, h * w, c)


class _Linear(_Products):

    x_ndim, weight_ndim = 2, 2

    def to_rows(self, x):
        return x[:, None]

    def from_rows(self, rows, x_shape):
        return rows[:, 0]

    columns = to_rows

    def fold(self, g_columns, x_shape):
        return g_columns


def convolution(x, weights, group=1, relu=False):
    """Sum of convolutions of the same feature maps, each with weights of its own: stride 1, as large as the input, no bias.

    Args:
        x: feature maps, float (n, c, h, w).
        weights: sequence of weights with the channels last, float (o, kh, kw, c) with kh and kw odd where all examples
            share them, or (g, o, kh, kw, c) where each group of examples has its own.
        group: examples to a group; groups are consecutive, the last may be short: g = ceil(n / group).
        relu: whether each convolution goes through a ReLU before the sum.

    Returns:
        chainer.Variable: float (n, o, h, w).

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    return _Convolution(group, relu).apply([x] + list(weights))[0]


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

    @staticmethod
    def _corners(x):
        """The four members of each 2x2 window, row by row: where windows overhang, the later ones are smaller."""
        return [x[:, i::2, j::2] for i in range(2) for j in range(2)]

    def _cut(self, x):
        return [(0, len(x))] if isinstance(x, cuda.ndarray) else _blocks(len(x), 1)

    def forward(self, inputs):
        x = inputs[0].transpose(0, 2, 3, 1)
        self.retain_inputs((0,))
        self.retain_outputs((0,))
        xp = cuda.get_array_module(x)
        n, h, w, c = x.shape
        y = xp.empty((n, -(-h // 2), -(-w // 2), c), x.dtype)

        def work(blocks):
            for start, stop in blocks:
                first, *others = self._corners(x[start:stop])
                out = y[start:stop]
                out[...] = first
                for corner in others:
                    part = out[:, :corner.shape[1], :corner.shape[2]]
                    xp.maximum(part, corner, out=part)

        _in_parts(work, self._cut(x))
        return y.transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        x, y, gy = (variable.array.transpose(0, 2, 3, 1) for variable in (
            self.get_retained_inputs()[0], self.get_retained_outputs()[0], grad_outputs[0]))
        xp = cuda.get_array_module(x)
        gx = xp.empty(x.shape, x.dtype)

        def work(blocks):
            for start, stop in blocks:
                # Among equals the first takes the gradient, as in Chainer's own pooling.
                free = xp.ones(y[start:stop].shape, bool)
                for corner, g_corner in zip(self._corners(x[start:stop]), self._corners(gx[start:stop])):
                    part = (slice(start, stop), slice(corner.shape[1]), slice(corner.shape[2]))
                    left = free[:, part[1], part[2]]
                    hit = (corner == y[part]) & left
                    left ^= hit
                    xp.multiply(gy[part], hit, out=g_corner)

        _in_parts(work, self._cut(x))
        return as_variable(gx.transpose(0, 3, 1, 2)),


def max_pooling(x):
    """Maximum over 2x2 windows, stride 2; windows may overhang the edge (ceil mode).

    Args:
        x: feature maps, float (n, c, h, w).

    Returns:
        chainer.Variable: float (n, c, ceil(h / 2), ceil(w / 2)).
    """
    return _MaxPooling().apply((x,))[0]


class _Coordinatewise(FunctionNode):
    """The same small network for each column of `gradients` (t, p); the gradients themselves are constants.

    Nothing but the inputs is kept for the backward pass: a block's activations are cheaper to compute again in cache
    than to fetch from memory.
    """

    def check_type_forward(self, in_types):
        gradients = in_types[0]
        type_check.expect(gradients.dtype.kind == 'f', gradients.ndim == 2)
        for parameter in in_types[1:]:
            type_check.expect(parameter.dtype == gradients.dtype)

    def _cut(self, gradients):
        coordinates = gradients.shape[1]
        return _blocks(coordinates, coordinates if isinstance(gradients, cuda.ndarray) else COORDINATES)

    def forward(self, inputs):
        gradients, parameters = inputs[0], self.pack(*inputs[1:])
        self.retain_inputs(range(len(inputs)))
        y = cuda.get_array_module(gradients).empty(gradients.shape[1:], gradients.dtype)

        def work(blocks):
            for start, stop in blocks:
                y[start:stop] = self.output(self.activations(gradients[:, start:stop], parameters), parameters)

        _in_parts(work, self._cut(gradients))
        return y,

    def backward(self, indexes, grad_outputs):
        inputs = [variable.array for variable in self.get_retained_inputs()]
        gradients, parameters = inputs[0], self.pack(*inputs[1:])
        gy = grad_outputs[0].array

        def work(blocks):
            sums = None
            for start, stop in blocks:
                activations = self.activations(gradients[:, start:stop], parameters)
                terms = self.differentiate(activations, parameters, gy[None, start:stop])
                sums = terms if sums is None else [a + b for a, b in zip(sums, terms)]
            return sums

        parts = _in_parts(work, self._cut(gradients))
        result = [None] + [as_variable(g) for g in self.unpack(*(sum(terms) for terms in zip(*parts)))]
        return [result[i] for i in indexes]


def _augment(weight, bias):
    """A bias is one more column of the weight, for an input that is always 1."""
    return cuda.get_array_module(weight).concatenate((weight, bias[:, None]), axis=1)


class _MLP(_Coordinatewise):

    def pack(self, W1, b1, W2, b2, W3, b3):
        return _augment(W1, b1), _augment(W2, b2), _augment(W3, b3)

    def unpack(self, g1, g2, g3):
        return g1[:, :-1], g1[:, -1], g2[:, :-1], g2[:, -1], g3[:, :-1], g3[:, -1]

    def activations(self, gradients, parameters):
        xp = cuda.get_array_module(gradients)
        layers = [xp.stack(preprocess(gradients[0]) + (xp.ones_like(gradients[0]),))]
        for weight in parameters[:-1]:
            hidden = xp.empty((len(weight) + 1, gradients.shape[1]), gradients.dtype)
            xp.matmul(weight, layers[-1], out=hidden[:-1])
            xp.maximum(hidden[:-1], gradients.dtype.type(0), out=hidden[:-1])
            hidden[-1] = 1
            layers.append(hidden)
        return layers

    def output(self, layers, parameters):
        return parameters[-1].dot(layers[-1])[0]

    def differentiate(self, layers, parameters, g):
        terms = []
        for weight, layer in zip(reversed(parameters), reversed(layers)):
            terms.insert(0, g.dot(layer.T))
            g = weight[:, :-1].T.dot(g) * (layer[:-1] > 0)
        return terms


class _LSTM(_Coordinatewise):
    """Chainer's LSTM: the rows of its weights are the gates a, i, f, o of the first unit, then of the second, ..."""

    def pack(self, W, b, V, W_out, b_out):
        xp = cuda.get_array_module(W)
        units = V.shape[1]
        # Gate by gate, so that a gate's units are neighbours in memory.
        weight = xp.concatenate((W, b[:, None], V), axis=1).reshape(units, 4, -1).swapaxes(0, 1).reshape(4 * units, -1)
        # sigmoid(x) = tanh(x / 2) / 2 + 1/2: one tanh serves all four gates.
        halved = weight.copy()
        halved[units:] *= 0.5
        return weight, halved, _augment(W_out, b_out)

    def unpack(self, g_weight, g_out):
        units = len(g_weight) // 4
        g_weight = g_weight.reshape(4, units, -1).swapaxes(0, 1).reshape(4 * units, -1)
        return g_weight[:, :2], g_weight[:, 2], g_weight[:, 3:], g_out[:, :-1], g_out[:, -1]

    def activations(self, gradients, parameters):
        xp = cuda.get_array_module(gradients)
        _, halved, _ = parameters
        (steps, width), units = gradients.shape, len(halved) // 4
        # Row 0 and 1: the preprocessed gradient; row 2: 1 for the bias; from row 3: the hidden state before the step.
        inputs = xp.empty((steps + 1, 3 + units, width), gradients.dtype)
        inputs[:-1, 0], inputs[:-1, 1] = preprocess(gradients)
        inputs[:, 2] = 1
        inputs[0, 3:] = 0
        gates = xp.empty((steps, 4 * units, width), gradients.dtype)
        cells = xp.empty((steps + 1, units, width), gradients.dtype)
        cells[0] = 0
        tanh_cells = xp.empty((steps, units, width), gradients.dtype)
        for t in range(steps):
            xp.matmul(halved, inputs[t], out=gates[t])
            xp.tanh(gates[t], out=gates[t])
            sigmoids = gates[t, units:]
            sigmoids *= 0.5
            sigmoids += 0.5
            a, i, f, o = gates[t].reshape(4, units, width)
            xp.multiply(f, cells[t], out=cells[t + 1])
            cells[t + 1] += a * i
            xp.tanh(cells[t + 1], out=tanh_cells[t])
            xp.multiply(o, tanh_cells[t], out=inputs[t + 1, 3:])
        return inputs, gates, cells, tanh_cells

    def output(self, activations, parameters):
        inputs, out = activations[0], parameters[2]
        return (out[:, :-1].dot(inputs[-1, 3:]) + out[:, -1:])[0]

    def differentiate(self, activations, parameters, gy):
        xp = cuda.get_array_module(gy)
        inputs, gates, cells, tanh_cells = activations
        weight, _, out = parameters
        steps, units, width = tanh_cells.shape
        g_out = xp.concatenate((gy.dot(inputs[-1, 3:].T), gy.sum(1, keepdims=True)), axis=1)
        g_weight = xp.zeros_like(weight)
        g_hidden = out[:, :-1].T * gy
        g_cell = xp.zeros_like(g_hidden)
        g_gates = xp.empty_like(gates[0])
        g_a, g_i, g_f, g_o = g_gates.reshape(4, units, width)
        for t in reversed(range(steps)):
            a, i, f, o = gates[t].reshape(4, units, width)
            g_cell += g_hidden * o * (1 - tanh_cells[t] * tanh_cells[t])
            xp.multiply(g_cell, a, out=g_i)
            xp.multiply(g_cell, cells[t], out=g_f)
            xp.multiply(g_hidden, tanh_cells[t], out=g_o)
            sigmoids = gates[t, units:]
            g_gates[units:] *= sigmoids - sigmoids * sigmoids
            xp.multiply(g_cell * i, 1 - a * a, out=g_a)
            g_weight += g_gates.dot(inputs[t].T)
            if t:
                g_hidden = weight[:, 3:].T.dot(g_gates)
                g_cell *= f
        return [g_weight, g_out]


def mlp(gradients, W1, b1, W2, b2, W3, b3):
    """m of the paper: a two-hidden-layer ReLU network on each preprocessed gradient, all with the same parameters.

    Args:
        gradients: float array of any shape; a constant, nothing is differentiated through it.
        W1, b1, W2, b2, W3, b3: parameters, (u, 2), (u,), (u, u), (u,), (1, u), (1,).

    Returns:
        chainer.Variable: a fast weight for each gradient, of the shape of `gradients`.
    """
    shape = gradients.shape
    return F.reshape(_MLP().apply((gradients.reshape(1, -1), W1, b1, W2, b2, W3, b3))[0], shape)


def lstm(gradients, W, b, V, W_out, b_out):
    """d of the paper: an LSTM over the sequence of each coordinate's preprocessed gradients, then a linear output.

    Args:
        gradients: float (t, ...), the sequence first; a constant, nothing is differentiated through it.
        W, b, V: the LSTM's input weight (4u, 2), bias (4u,) and lateral weight (4u, u), in Chainer's interleaved gate order.
        W_out, b_out: the output layer, (1, u) and (1,), applied after the last step alone.

    Returns:
        chainer.Variable: a fast weight for each coordinate, of the shape of `gradients[0]`.
    """
    shape = gradients.shape
    return F.reshape(_LSTM().apply((gradients.reshape(shape[0], -1), W, b, V, W_out, b_out))[0], shape[1:])
