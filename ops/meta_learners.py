"""The meta learner's two networks, m and d, coordinate by coordinate (section 3.1 of the paper)."""
import math

import numpy

import ops.bounds as bounds
import ops.kernels as kernels
from ops.blocks import added, blocks_of, in_parts, matmul, relu_in_place, scratch
from ops.compat import chainer, cuda, type_check
from ops.gradients import Gradients
from ops.lazy import defer as deferred
from ops.pieces import Pieces
from ops.preprocessing import P, logarithm, positions, preprocess
from ops.tiled import loops

# Chunks of coordinates in a block.
CHUNKS = 8
# Coordinates in a block where the network's pieces serve.
PIECEWISE = 1 << 15


class _PerCoordinate(chainer.FunctionNode):
    """The same small network for each coordinate of several `gradients` (t, p); the gradients themselves are constants.

    Args:
        shapes: of the fast weights that are made of each of them.
    """

    def __init__(self, shapes):
        self.shapes = shapes
        self.count = len(shapes)

    def check_type_forward(self, in_types):
        dtype = in_types[0].dtype
        type_check.expect(dtype.kind == 'f', *(in_types[i].ndim == 2 for i in range(self.count)))
        for in_type in in_types[1:]:
            type_check.expect(in_type.dtype == dtype)


class _Coordinatewise(_PerCoordinate):
    """The network's products, for many coordinates at a time.

    Coordinates whose gradients are all zero, which dead activations leave behind, share one output, computed once; not
    on a GPU. Nothing but the other coordinates is kept for the backward pass: a block's activations are cheaper to
    compute again in cache than to fetch from memory. Within a block, NumPy's calls work on several chunks of
    coordinates at once: the threads hold each other up between calls, so these are long, while each matrix product
    stays small enough for BLAS's quick path.
    """

    def _cut(self):
        count = self.coordinates.shape[1]
        if isinstance(self.coordinates, cuda.ndarray):
            return [(0, count)]
        size = CHUNKS * self.chunk
        return blocks_of(count, size, min(size, self.chunk))

    def _chunks(self, array, start, stop):
        """(..., p) -> (..., chunks, 1, width) of that block"""
        width = stop - start if isinstance(array, cuda.ndarray) else min(self.chunk, stop - start)
        return array[..., start:stop].reshape(array.shape[:-1] + (-1, 1, width))

    def forward(self, inputs):
        gradients, parameters = inputs[:self.count], self.pack(*inputs[self.count:])
        self.retain_inputs(range(self.count, len(inputs)))
        xp = cuda.get_array_module(*inputs)
        # The first coordinate stands for all that are zero.
        whole = xp.concatenate([xp.zeros((len(gradients[0]), 1), gradients[0].dtype)] + list(gradients), axis=1)
        if xp is numpy:
            live = whole.any(axis=0)
            live[0] = True
            self.live = xp.flatnonzero(live)
            self.coordinates = whole.take(self.live, axis=1)
        else:  # to count them would be to wait for the device
            self.live, self.coordinates = slice(None), whole
        y = xp.empty(self.coordinates.shape[1], whole.dtype)

        def work(blocks):
            for start, stop in blocks:
                activations = self.activations(self._chunks(self.coordinates, start, stop), parameters, keep=False)
                y[start:stop] = self.output(activations, parameters).ravel()

        in_parts(work, self._cut(), xp)
        ys = y
        if xp is numpy:
            ys = xp.empty(whole.shape[1], y.dtype)
            ys[...] = y[0]
            ys[self.live] = y
        self.edges = numpy.cumsum([1] + [array.shape[1] for array in gradients]).tolist()
        return tuple(ys[start:stop].reshape(shape)
                     for start, stop, shape in zip(self.edges, self.edges[1:], self.shapes))

    def backward(self, indexes, grad_outputs):
        parameters = self.pack(*(variable.array for variable in self.get_retained_inputs()))
        xp = cuda.get_array_module(self.coordinates)
        gys = xp.zeros(self.edges[-1], self.coordinates.dtype)
        for g, start, stop in zip(grad_outputs, self.edges, self.edges[1:]):
            if g is not None:
                gys[start:stop] = g.array.ravel()
        gy = gys[self.live]
        if xp is numpy:
            gys[self.live] = 0
            gy[0] = gys.sum()

        def work(blocks):
            sums = [xp.zeros_like(parameter) for parameter in parameters]
            for start, stop in blocks:
                # Fast weights of a layer whose activations are all dead get no gradient, and give none.
                if xp is not numpy or gy[start:stop].any():
                    activations = self.activations(self._chunks(self.coordinates, start, stop), parameters, keep=True)
                    terms = self.differentiate(activations, parameters, self._chunks(gy, start, stop))
                    for total, term in zip(sums, terms):
                        total += term.sum(0)
            return sums

        parts = in_parts(work, self._cut(), xp, summed=True)
        gradients = self.unpack(*map(added, zip(*parts)))
        result = [None] * self.count + [chainer.as_variable(gradient) for gradient in gradients]
        return [result[i] for i in indexes]


def _augment(weight, bias):
    """A bias is one more weight column, for an input that is always 1."""
    return cuda.get_array_module(weight).concatenate((weight, bias[:, None]), axis=1)


def _summed(g, values):
    """g values^T over the last axis, the coordinates: (chunks, o, n) and (chunks, i, n) to (chunks, o, i)."""
    out = cuda.get_array_module(g).empty((len(g), g.shape[1], values.shape[1]), g.dtype)
    return matmul(g, values.swapaxes(1, 2), out)


class _MLP(_Coordinatewise):
    """On a GPU, where `_PiecewiseMLP` would have to wait for the parameters."""

    chunk = 2048

    def pack(self, W1, b1, W2, b2, W3, b3):
        return _augment(W1, b1), _augment(W2, b2), _augment(W3, b3)

    def unpack(self, g1, g2, g3):
        return g1[:, :-1], g1[:, -1], g2[:, :-1], g2[:, -1], g3[:, :-1], g3[:, -1]

    def activations(self, gradients, parameters, keep):
        _, chunks, _, width = gradients.shape
        layers = []
        for i, weight in enumerate(parameters):
            layer = scratch(f'layer{i}', (chunks, weight.shape[1], width), gradients)
            if i:
                relu_in_place(matmul(parameters[i - 1], layers[-1], layer[:, :-1]))
            else:
                preprocess(gradients[0], out=(layer[:, :1], layer[:, 1:2]))
            layer[:, -1] = 1
            layers.append(layer)
        return layers

    def output(self, layers, parameters):
        return cuda.get_array_module(layers[0]).matmul(parameters[-1], layers[-1])

    def differentiate(self, layers, parameters, g):
        terms = [_summed(g, layers[-1])]
        for i in (2, 1):
            hidden = layers[i][:, :-1]
            g = matmul(parameters[i][:, :-1].T, g, scratch(f'g_layer{i}', hidden.shape, g))
            g *= hidden > 0
            terms.insert(0, _summed(g, layers[i - 1]))
        return terms


class _PiecewiseMLP(_PerCoordinate):
    """`_MLP` on a CPU, by its pieces: each gradient is looked up rather than sent through the network."""

    def forward(self, inputs):
        self.gradients, parameters = inputs[:self.count], inputs[self.count:]
        self.dtype = parameters[0].dtype
        self.pieces = Pieces(*parameters)
        self.edges = self.pieces.edges.astype(self.dtype)
        padded = numpy.append(self.edges, self.dtype.type(numpy.nan))  # no position is beyond
        first, low, rate = self.pieces.cells()
        p, scale, low, rate = map(self.dtype.type, (P, math.exp(P), low, rate))
        self.table = p, scale, padded, first, low, rate
        coefficients = self.pieces.coefficients.astype(self.dtype)
        compiled = loops(self.dtype)
        ys = [numpy.empty(array.shape[1], self.dtype) for array in self.gradients]

        def work(blocks):
            for i, start, stop in blocks:
                its, y = self.gradients[i][0, start:stop], ys[i][start:stop]
                if compiled:
                    compiled.evaluate(its, self._logarithms(its), *self.table, coefficients, y)
                else:
                    factors, places = self._factors(its)
                    y[...] = sum(factor * column for factor, column in zip(factors, coefficients[places].T))

        in_parts(work, self._blocks(), numpy)
        return tuple(y.reshape(shape) for y, shape in zip(ys, self.shapes))

    def backward(self, indexes, grad_outputs):
        compiled = loops(self.dtype)
        n = len(self.edges) + 1
        gys = [None if g is None else g.array.ravel() for g in grad_outputs]

        def work(blocks):
            sums = numpy.zeros((n, 3))
            for i, start, stop in blocks:
                gy = None if gys[i] is None else gys[i][start:stop]
                # Fast weights of a layer whose activations are all dead get no gradient, and give none.
                if gy is None or not gy.any():
                    continue
                its = self.gradients[i][0, start:stop]
                if compiled:
                    compiled.add_up_pieces(its, self._logarithms(its), *self.table, gy, sums)
                else:
                    factors, places = self._factors(its)
                    for column, factor in zip(sums.T, factors):
                        column += numpy.bincount(places, gy * factor, n)
            return sums

        sums = sum(in_parts(work, self._blocks(), numpy, summed=True))
        result = [None] * self.count + [chainer.as_variable(gradient.astype(self.dtype))
                                        for gradient in self.pieces.gradients(sums)]
        return [result[i] for i in indexes]

    def _blocks(self):
        return [(i, start, stop) for i, array in enumerate(self.gradients)
                for start, stop in blocks_of(array.shape[1], PIECEWISE)]

    @staticmethod
    def _logarithms(gradients):
        return logarithm(gradients, out=scratch('logarithms', gradients.shape, gradients))

    def _factors(self, gradients):
        """What the coefficients are of, and the piece of each gradient."""
        along, above = positions(gradients)
        return (along, 1, above), numpy.searchsorted(self.edges, along, side='right')


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
        """Weight rows and weight columns that matter at a step: before the first there is no state to keep."""
        return slice(None if t else 3 * units), slice(None if t else 3)

    def activations(self, gradients, parameters, keep):
        xp = cuda.get_array_module(gradients)
        (steps, chunks, _, width), units = gradients.shape, len(parameters[0]) // 4
        # Rows 0 and 1: the preprocessed gradient; row 2: 1 for the bias; from row 3: twice the hidden state before.
        inputs = scratch('inputs', (steps + 1, chunks, 3 + units, width), gradients)
        preprocess(gradients, out=(inputs[:-1, :, :1], inputs[:-1, :, 1:2]))
        inputs[:, :, 2] = 1
        kept = steps if keep else 1
        gates = scratch('gates', (kept, chunks, 4, units, width), gradients)
        cells = scratch('cells', (kept, chunks, units, width), gradients)
        tanh_cells = scratch('tanh_cells', (kept if keep or xp is not numpy else 0, chunks, units, width), gradients)
        for t in range(steps):
            gate, cell = gates[t % kept], cells[t % kept]
            rows, columns = self._seen(t, units)
            flat = gate.reshape(chunks, 4 * units, width)[:, rows]
            matmul(parameters[0][rows, columns], inputs[t, :, columns], flat)
            if xp is not numpy:
                kernels.lstm_step(t, gate.swapaxes(0, 1), cells[(t - 1) % kept], cell, tanh_cells[t % kept],
                                  inputs[t + 1, :, 3:])
                continue
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
        g_out = _summed(gy, inputs[-1, :, 2:])
        g_weight = xp.zeros((chunks,) + weight.shape, weight.dtype)
        g_hidden = xp.multiply(out[:, 1:].T, gy, out=scratch('g_hidden', (chunks, units, width), gy))
        g_cell = scratch('g_cell', (chunks, units, width), gy)
        g_cell.fill(0)
        g_gates = scratch('g_gates', (chunks, 4, units, width), gy)
        products = scratch('products', (chunks, 3 * units, width), gy)
        product = products[:, :units]
        g_a, g_i, g_o, g_f = g_gates.swapaxes(0, 1)
        for t in reversed(range(steps)):
            rows, columns = self._seen(t, units)
            flat, flat_gates = (x.reshape(chunks, 4 * units, width)[:, rows] for x in (g_gates, gates[t]))
            a, i, o, f = gates[t].swapaxes(0, 1)
            if xp is not numpy:
                kernels.lstm_back(t, g_hidden, g_cell, (a, i, o, f), tanh_cells[t], cells[t - 1], (g_a, g_i, g_o, g_f))
            else:
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
            g_weight[:, rows, columns] += _summed(flat, inputs[t, :, columns])
            if t:
                matmul(weight[:, 3:].T, flat, g_hidden)
        return [g_weight, g_out]


def _is_negative(follow, gradients, parameters):
    """Whether all fast weights for these gradients are surely negative; if it can be, without making them."""
    in_time = follow is bounds.lstm
    if isinstance(gradients, Gradients):
        steps = gradients.shapes[0][0] if in_time else 1
        if bounds.is_known_negative(follow, steps, gradients.limit, *parameters):
            return True
    return bounds.is_negative(follow, gradients if in_time else [g[None] for g in gradients], *parameters)


def mlp(gradients, W1, b1, W2, b2, W3, b3, defer=False):
    """m of the paper: a two-hidden-layer ReLU network on each preprocessed gradient, all with the same parameters.

    Args:
        gradients: `Gradients`, or a sequence of float arrays of any shapes; constants, nothing is differentiated
            through them.
        W1, b1, W2, b2, W3, b3: parameters, (u, 2), (u,), (u, u), (u,), (1, u), (1,).
        defer: whether to try to prove that all fast weights are negative, and then to defer them.

    Returns:
        A list of chainer.Variable: for each array one of its shape, with a fast weight for each gradient; or of
        `lazy.Deferred` in their place.

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    parameters = W1, b1, W2, b2, W3, b3

    def make():
        kind = _PiecewiseMLP if isinstance(gradients[0], numpy.ndarray) else _MLP
        return list(kind([g.shape for g in gradients]).apply([g.reshape(1, -1) for g in gradients] + list(parameters)))

    if defer and _is_negative(bounds.mlp, gradients, parameters):
        return deferred(make, len(gradients))
    return make()


def lstm(gradients, W, b, V, W_out, b_out, defer=False):
    """d of the paper: an LSTM over the sequence of each coordinate's preprocessed gradients, then a linear output.

    Args:
        gradients: `Gradients` or a sequence of float arrays (t, ...), time first; constants, nothing is differentiated
            through them.
        W, b, V: the LSTM's input weight (4u, 2), bias (4u,) and lateral weight (4u, u), their rows in Chainer's order.
        W_out, b_out: the output layer, (1, u) and (1,), applied after the last step alone.
        defer: whether to try to prove that all fast weights are negative, and then to defer them.

    Returns:
        A list of chainer.Variable: for each array one without its first axis, with a fast weight for each coordinate;
        or of `lazy.Deferred` in their place.

    Raises:
        chainer.utils.type_check.InvalidType: shapes or dtypes do not fit together.
    """
    parameters = W, b, V, W_out, b_out

    def make():
        inputs = [g.reshape(len(g), -1) for g in gradients] + list(parameters)
        return list(_LSTM([g.shape[1:] for g in gradients]).apply(inputs))

    if defer and _is_negative(bounds.lstm, gradients, parameters):
        return deferred(make, len(gradients))
    return make()
