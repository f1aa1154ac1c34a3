"""Interval arithmetic on the meta learner: it tells, before fast weights are made, when they make no difference.

Fast weights that are all negative yield no positive product with inputs that aren't negative, as those of a layer after
a ReLU; the ReLU after it lets nothing through, and neither the loss nor any gradient depends on them. With the paper's
model this is how the convolutions are from some dozens of training episodes on. `is_negative` shows it from the meta
learner's parameters, for whatever gradients there are up to the largest, in a small part of the time that making the
fast weights takes.

A preprocessed gradient is a point of a curve, although it has two channels: its sign channel is -1 or 1 wherever its
magnitude channel is above -1. Position p on that curve is magnitude max(|p|, 1) - 2 and sign clip(p, -1, 1). Sequences
of gradients are enclosed in boxes, an interval of positions for each step, that `mlp` and `lstm` follow to the output.
"""
import chainer_compat  # noqa: F401  (before Chainer)
import numpy
from chainer.backends import cuda

from functions import preprocess

# Of a number: what rounding may have moved it by, and by how little gradients leave the curve, generously.
SLACK = 1e-4
# Boxes to try at a time, and how many times.
BOXES = 8192
ROUNDS = 4


def is_negative(bound, gradients, *parameters):
    """Whether all fast weights for these gradients are surely negative.

    Args:
        bound: `mlp` or `lstm`.
        gradients: sequence of float arrays (t, ...), time first; of `mlp`, t is 1.
        parameters: as of the function of the same name in `functions`, but variables.

    Returns:
        True if they are, False if they may not be.
    """
    parameters = [cuda.to_cpu(parameter.array) for parameter in parameters]
    largest = _largest(gradients)
    if not numpy.isfinite(largest).all():
        return False
    ends = 2 + preprocess(largest)[0]
    ones = numpy.ones_like(ends)
    edges = numpy.stack([-ends, -ones, 0 * ones, ones, ends], axis=1)[:, :, None]  # of one box: (t, 5, 1)
    for _ in range(ROUNDS):
        low, high = edges[:, :-1], edges[:, 1:]
        steps, intervals, boxes = low.shape
        if intervals ** steps * boxes > BOXES:
            return False
        _, upper = bound(_inputs(low, high), *parameters)
        combination, box = numpy.nonzero(~(upper < 0))  # what is not a number among them
        if not len(box):
            return True
        # Halve the intervals of the boxes that aren't settled. The last step's interval comes first in a combination.
        step = numpy.arange(steps)[:, None]
        interval = combination // intervals ** step % intervals
        low, high = low[step, interval, box], high[step, interval, box]
        edges = numpy.stack((low, (low + high) / 2, high), axis=1)
    return False


def _largest(gradients):
    """The largest absolute value at each step, (t,)."""
    flat = [g.reshape(len(g), -1) for g in gradients]
    return numpy.max([cuda.to_cpu(part) for g in flat for part in (g.max(axis=1), -g.min(axis=1))], axis=0)


def _inputs(low, high):
    """Bounds on positions, (t, intervals, boxes), to bounds on the two channels: a pair of (t, 2, intervals, boxes)."""
    near = numpy.where((low < 0) & (high > 0), 0, numpy.minimum(abs(low), abs(high)))
    far = numpy.maximum(abs(low), abs(high))
    return [numpy.stack((distance.clip(1) - 2, position.clip(-1, 1)), axis=1)
            for distance, position in ((near, low), (far, high))]


def mlp(inputs, W1, b1, W2, b2, W3, b3):
    """Bounds of m's output.

    Args:
        inputs: bounds of the preprocessed gradients, a pair of arrays (1, 2, intervals, boxes).
        W1, b1, W2, b2, W3, b3: arrays as in `functions.mlp`.

    Returns:
        A pair of arrays (intervals, boxes).
    """
    hidden = [numpy.maximum(bound, 0) for bound in _affine([bound[0] for bound in inputs], W1, b1)]
    hidden = [numpy.maximum(bound, 0) for bound in _affine(hidden, W2, b2)]
    return [bound[0] for bound in _affine(hidden, W3, b3)]


def lstm(inputs, W, b, V, W_out, b_out):
    """Bounds of d's output, for every combination of the steps' intervals.

    Args:
        inputs: bounds of the preprocessed gradients, a pair of arrays (t, 2, intervals, boxes).
        W, b, V, W_out, b_out: arrays as in `functions.lstm`.

    Returns:
        A pair of arrays (intervals ** t, boxes): the first step's interval changes fastest along the first axis.
    """
    units = V.shape[1]
    _, _, intervals, boxes = inputs[0].shape
    hidden = cell = [numpy.zeros((units, 1, boxes), W.dtype)] * 2
    for step in zip(*inputs):
        # Combinations so far share what the lateral weights make of them.
        gates = [(given[:, :, None] + past[:, None]).reshape(units, 4, -1, boxes)
                 for given, past in zip(_affine(step, W, b), _affine(hidden, V))]
        a = [numpy.tanh(bound[:, 0]) for bound in gates]
        i, f, o = ([numpy.tanh(bound[:, k] / 2) / 2 + .5 for bound in gates] for k in (1, 2, 3))
        cell = [numpy.tile(bound, (1, intervals, 1)) for bound in cell]
        low, high = (new + kept for new, kept in zip(_gated(a, i), _gated(cell, f)))
        cell = [low - SLACK, high + SLACK]
        hidden = _gated([numpy.tanh(bound) for bound in cell], o)
    return [bound[0] for bound in _affine(hidden, W_out, b_out)]


def _affine(bounds, weight, bias=0):
    """Bounds of weight x + bias, (o, ...), for x within bounds (k, ...)."""
    low, high = (bound.reshape(len(bound), -1) for bound in bounds)
    middle, radius = (low + high) / 2, (high - low) / 2
    radius += SLACK * (abs(middle) + radius)
    middle, radius = weight.dot(middle) + numpy.reshape(bias, (-1, 1)), abs(weight).dot(radius)
    return [bound.reshape((len(weight),) + bounds[0].shape[1:]) for bound in (middle - radius, middle + radius)]


def _gated(bounds, gate):
    """Bounds of x times a gate, for x within bounds and the gate, which isn't negative, within its own."""
    (low, high), (closed, opened) = bounds, gate
    return numpy.minimum(low * closed, low * opened), numpy.maximum(high * closed, high * opened)
