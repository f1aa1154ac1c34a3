"""Bounds on what the meta learner generates: they prove, before fast weights are made, that all are negative.

With the paper's model this is how the convolutions' fast weights are from some dozens of training episodes on; `lazy`
says why it matters. `is_negative` shows it from the meta learner's parameters, for whatever gradients there are up to
the largest, in a small part of the time that making the fast weights takes. The answer holds as long as the parameters
stay: in tests it is worked out once.

A preprocessed gradient is a point of a curve, although it has two channels: its sign channel is -1 or 1 wherever its
magnitude channel is above -1. Position p on that curve is magnitude max(|p|, 1) - 2 and sign clip(p, -1, 1). Sequences
of gradients are put into boxes, an interval of positions for each step, and boxes are followed through the network by
affine arithmetic (de Figueiredo & Stolfi 2004).
"""
import numpy

from ops.compat import cuda
from ops.preprocessing import preprocess

# What rounding may do to a sum of products, relative to its terms, and to other numbers: generously.
ROUNDING = 1e-5
# How far from its curve `preprocess` may put a gradient, for it adds an epsilon.
OFF = 2e-5
# Boxes to try at a time, and how many times. At first a step has so many intervals: -end to -1, to 1, to end.
BOXES = 4096
INTERVALS = 3
ROUNDS = 4
# The largest position is rounded up to a multiple of this, so that one answer serves many gradients.
STEP = numpy.float32(.5)
# Limits from here on aren't worth a question: numbers would overflow.
LARGEST = 1e30
# Gradients above it, in absolute value, are few: so many at most are looked at one by one, in runs that fit in caches.
USUAL = .99
FEW = 8192
RUN = 1024

# Sets of parameters whose answers are kept, the last that were asked about: a MetaNet+ has three, its average as many.
KEPT = 8
_kept = []  # of (follow, parameters, {number of steps and largest position: answer})


def is_negative(follow, gradients, *parameters):
    """Whether all fast weights for these gradients are surely negative.

    Args:
        follow: `mlp` or `lstm`.
        gradients: sequence of float arrays (t, ...), time first; of `mlp`, t is 1.
        parameters: as of the function of the same name in `meta_learners`, variables.

    Returns:
        True if they are, False if they may not be; always False for a sequence of 8 or more gradients, which would
        take too many boxes.
    """
    if INTERVALS ** len(gradients[0]) > BOXES:
        return False
    largest, *parameters = _on_host([_largest(gradients)] + [parameter.array for parameter in parameters])
    if not numpy.isfinite(largest).all():
        return False
    end, known = _end(largest.max()), _answers(follow, parameters)
    if _answer(end, len(largest), follow, *known):
        return True
    # Few sequences leave the usual box. One by one they may be negative where not all that is as large would be.
    usual = _end(largest.dtype.type(USUAL))
    return bool(end > usual and isinstance(gradients[0], numpy.ndarray) and _are_negative(gradients, follow, parameters)
                and _answer(usual, len(largest), follow, *known))


def is_known_negative(follow, steps, limit, *parameters):
    """Whether `is_negative` surely says so of gradients whose absolute values do not exceed a limit.

    Says so only of parameters that `is_negative` has been asked about: of others the gradients tell more.

    Args:
        follow, parameters: as there.
        steps: t there.
        limit: function without arguments that returns it, a float; inf if anything is possible.
    """
    known = _known(follow, [parameter.array for parameter in parameters])
    limit = limit() if known else numpy.inf
    if not limit < LARGEST:
        return False
    # A larger box may be settled where a smaller one isn't: whatever the gradients, the answer has to be the same.
    ends = numpy.arange(_end(known[0][0].dtype.type(limit)), .75, -STEP)  # the least is 1
    return all(_answer(end, steps, follow, *known) for end in ends)


def _are_negative(gradients, follow, parameters):
    """Whether the fast weights of the gradients above `USUAL` are negative, if they aren't too many to look at."""
    flat = [g.reshape(len(g), -1) for g in gradients]
    flat = numpy.concatenate([g[:, (abs(g) > USUAL).any(axis=0)] for g in flat], axis=1)
    if flat.shape[1] > FEW:
        return False
    magnitude, sign = preprocess(flat)
    positions = numpy.where(magnitude > -1, numpy.copysign(magnitude + 2, flat), sign)[:, None]
    for start in range(0, flat.shape[1], RUN):
        weights = follow(points(positions[:, :, start:start + RUN]), *parameters)
        if not (weights.centre + weights.reach() < 0).all():
            return False
    return True


def _end(largest):
    """The position of the largest gradient, rounded up."""
    return numpy.ceil((2 + preprocess(largest)[0]) / STEP) * STEP


def _answer(end, steps, follow, parameters, answers):
    """Whether all are negative for gradients up to that position; from `answers`, if it is there."""
    case = steps, float(end)
    if case not in answers:
        ends = numpy.full(steps, end, parameters[0].dtype)
        answers[case] = _is_negative_up_to(ends, follow, parameters)
    return answers[case]


def _answers(follow, parameters):
    """The parameters, as they won't change any more, and {case: answer} for them."""
    global _kept
    known = _known(follow, parameters)
    if known is None:
        known = [parameter.copy() for parameter in parameters], {}
        _kept = [(follow, *known), *_kept][:KEPT]
    return known


def _known(follow, parameters):
    """The same if they have been asked about, else None."""
    for other, known, answers in _kept:
        if other is follow and all(map(numpy.array_equal, known, parameters)):
            return known, answers
    return None


def _is_negative_up_to(ends, follow, parameters):
    """Whether all fast weights are negative for gradients at positions up to `ends`, (t,), of both signs."""
    ones = numpy.ones_like(ends)
    edges = numpy.stack([-ends, -ones, ones, ends], axis=1)[:, :, None]  # of one box: (t, 4, 1)
    for _ in range(ROUNDS):
        low, high = edges[:, :-1], edges[:, 1:]
        steps, intervals, boxes = low.shape
        if intervals ** steps * boxes > BOXES:
            return False
        weights = follow(enclosures(low, high), *parameters)
        combination, box = numpy.nonzero(~((weights.centre + weights.reach())[0] < 0))
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
    if isinstance(flat[0], cuda.ndarray):
        whole = cuda.cupy.concatenate(flat, axis=1)
        return abs(whole).max(axis=1) if len(whole) > 1 else abs(whole).max()[None]  # the latter on all of the GPU
    return numpy.max([part for g in flat for part in (g.max(axis=1), -g.min(axis=1))], axis=0)


def _on_host(arrays):
    """NumPy's arrays; from a GPU with one download, for each waits until it has done all that was asked of it."""
    if isinstance(arrays[0], numpy.ndarray):
        return arrays
    whole = cuda.to_cpu(cuda.cupy.concatenate([array.ravel() for array in arrays]))
    edges = numpy.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(numpy.split(whole, edges), arrays)]


class Enclosure:
    """Where values are: at centre + sum_t linear[t] e_t, give or take `radius`, with the same e_t in [-1, 1] for all.

    e_t is where in its interval the gradient of step t is. That quantities depend on the same gradients isn't
    forgotten, so that less is lost from operation to operation than with intervals.

    Args:
        centre, radius: arrays (units, combinations, boxes): a combination takes one of a box's intervals at each step.
        linear: array (t, units, combinations, boxes).
    """

    def __init__(self, centre, linear, radius):
        self.centre, self.linear, self.radius = centre, linear, radius

    def reach(self):
        """How far from its centre a value may be."""
        return abs(self.linear).sum(axis=0) + self.radius

    def map(self, function):
        """The same rearrangement of each of the three arrays."""
        return Enclosure(*map(function, (self.centre, self.linear, self.radius)))

    def __add__(self, other):
        return Enclosure(self.centre + other.centre, self.linear + other.linear, self.radius + other.radius)

    def __mul__(self, other):
        radius = abs(self.centre) * other.radius + abs(other.centre) * self.radius + self.reach() * other.reach()
        return Enclosure(self.centre * other.centre, self.centre * other.linear + other.centre * self.linear, radius)

    def affine(self, weight, bias):
        """weight x + bias"""
        def dot(weight, x):
            return numpy.matmul(weight, x.reshape(x.shape[:-2] + (x.shape[-2] * x.shape[-1],))).reshape(
                x.shape[:-3] + (len(weight),) + x.shape[-2:])

        bias = bias[:, None, None]
        radius = self.radius + ROUNDING * (abs(self.centre) + self.reach())
        return Enclosure(dot(weight, self.centre) + bias, dot(weight, self.linear),
                         dot(abs(weight), radius) + ROUNDING * abs(bias))

    def through(self, function, derivative):
        """An increasing function whose derivative is smallest at one of the ends of any interval."""
        reach = self.reach()
        low, high = self.centre - reach, self.centre + reach
        slope = numpy.minimum(derivative(low), derivative(high))
        # Less that slope, the function still increases.
        low, high = function(low) - slope * low, function(high) - slope * high
        radius = slope * self.radius + (high - low) / 2 + ROUNDING
        return Enclosure(slope * self.centre + (low + high) / 2, slope * self.linear, radius)

    def relu(self):
        return self.through(lambda x: numpy.maximum(x, 0), lambda x: (x > 0).astype(x.dtype))

    def tanh(self):
        return self.through(numpy.tanh, lambda x: 1 - numpy.tanh(x) ** 2)

    def sigmoid(self):
        return self.through(lambda x: .5 + .5 * numpy.tanh(x / 2), lambda x: .25 - .25 * numpy.tanh(x / 2) ** 2)


def enclosures(low, high):
    """Preprocessed gradients within intervals of positions.

    Args:
        low, high: the intervals, float (t, intervals, boxes); none has -1 or 1 inside, so that both channels depend on
            the position linearly.

    Returns:
        A list of `Enclosure`, one for each step, of two units.
    """
    low, high = (numpy.stack((abs(p).clip(1) - 2, p.clip(-1, 1)), axis=1) for p in (low, high))
    centre, linear = (low + high) / 2, (high - low) / 2
    steps = numpy.eye(len(centre), dtype=centre.dtype)[:, :, None, None, None]
    return [Enclosure(centre[t], steps[t] * linear[t], numpy.full_like(centre[t], OFF)) for t in range(len(centre))]


def points(positions):
    """Preprocessed gradients at positions, float (t, 1, boxes), as `enclosures` of intervals that are single points.

    With no interval there is nothing to be linear in: `linear` has no rows, which saves most of the time.
    """
    return [Enclosure(point.centre, point.linear[:0], point.radius) for point in enclosures(positions, positions)]


def mlp(inputs, W1, b1, W2, b2, W3, b3):
    """m's output.

    Args:
        inputs: list of a single `Enclosure`.
        W1, b1, W2, b2, W3, b3: arrays as in `meta_learners.mlp`.

    Returns:
        `Enclosure`: of one unit.
    """
    gradient, = inputs
    return gradient.affine(W1, b1).relu().affine(W2, b2).relu().affine(W3, b3)


def lstm(inputs, W, b, V, W_out, b_out):
    """d's output, for every combination of the steps' intervals.

    Args:
        inputs: list of `Enclosure`, one for each step.
        W, b, V, W_out, b_out: arrays as in `meta_learners.lstm`.

    Returns:
        `Enclosure`: of one unit; from combination to combination the first step's interval changes fastest.
    """
    units = V.shape[1]
    _, intervals, boxes = inputs[0].centre.shape
    zeros = numpy.zeros((units, 1, boxes), W.dtype)
    cell = hidden = Enclosure(zeros, numpy.zeros(inputs[0].linear.shape[:1] + zeros.shape, W.dtype), zeros)
    for gradient in inputs:
        # Each combination so far goes on with each interval.
        count = hidden.centre.shape[1]
        given = gradient.affine(W, b).map(lambda x, count=count: x.repeat(count, axis=-2))
        past, cell = (x.map(lambda x: numpy.tile(x, (intervals, 1))) for x in (hidden.affine(V, 0 * b), cell))
        gates = (given + past).map(lambda x: x.reshape(x.shape[:-3] + (units, 4) + x.shape[-2:]))
        a, i, f, o = (gates.map(lambda x, gate=gate: x[..., gate, :, :]) for gate in range(4))
        cell = a.tanh() * i.sigmoid() + f.sigmoid() * cell
        hidden = cell.tanh() * o.sigmoid()
    return hidden.affine(W_out, b_out)
