"""Gradients of a loss that are not computed until they are asked for, and what they cannot exceed.

Where the meta learner makes nothing but negative fast weights of all gradients up to a limit, gradients below it need
not be known (`lazy` says why). A limit comes from the norms of weights and activations, which are there after the
forward pass. Backwards through the graph, each function tells how much larger than its output's gradient those of its
inputs may be, in the Euclidean norm.
"""
import collections.abc
import math

import numpy

from ops.augmented import Convolution, Linear
from ops.compat import F, chainer
from ops.tiled import PooledConvolution
from ops.tiled_sums import TiledSum

MARGIN = 2  # for rounding, generously: the meta learner sees logarithms


class Gradients(collections.abc.Sequence):
    """The gradients of a loss, as arrays: constants. The first look at one computes all; on a GPU they are at once.

    Args:
        loss: variable of one number; its graph is kept until then.
        variables: list of variables. One that the loss doesn't depend on has a gradient of zeros.
    """

    def __init__(self, loss, variables):
        self.shapes = [variable.shape for variable in variables]
        self._graph = loss, variables
        self._arrays = None
        if not isinstance(loss.array, numpy.ndarray):  # to look at norms would be to wait for the device
            self._compute()

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        if self._arrays is None:
            self._compute()
        return self._arrays[index]

    def _compute(self):
        loss, variables = self._graph
        self._arrays = [variable.xp.zeros_like(variable.array) if gradient is None else gradient.array
                        for variable, gradient in zip(variables, chainer.grad([loss], variables))]
        self._graph = None

    def part(self, places):
        """Those at the places, a sequence; to be computed apart from the others, if they aren't yet."""
        if self._arrays is not None:
            return [self._arrays[i] for i in places]
        loss, variables = self._graph
        return Gradients(loss, [variables[i] for i in places])

    def limit(self):
        """What no entry exceeds in absolute value; inf where that isn't known, or once they are there."""
        if self._arrays is not None:
            return math.inf
        limits = norms(*self._graph)
        return MARGIN * max(limits) if all(map(math.isfinite, limits)) else math.inf


def slow_arrays(layers):
    """The slow weights of adaptable layers, arrays that are laid out as their fast weights are: constants."""
    with chainer.no_backprop_mode():
        return [layer.slow().array for layer in layers]


def part(gradients, places):
    """Those at the places: `Gradients.part`, or the same of any other sequence."""
    return gradients.part(places) if isinstance(gradients, Gradients) else [gradients[i] for i in places]


def norms(loss, variables):
    """For each of the variables what the Euclidean norm of its gradient cannot exceed; inf or nan: anything."""
    functions, nodes = {}, [loss.node]
    while nodes:
        function = nodes.pop().creator_node
        if function is not None and id(function) not in functions:
            functions[id(function)] = function
            nodes.extend(function.inputs)
    found = {id(loss.node): 1.}
    for function in sorted(functions.values(), key=lambda function: -function.rank):
        g = sum(found.get(id(output()), 0.) for output in function.outputs)
        for node, factor in zip(function.inputs, _factors(function)):
            if node.requires_grad:
                found[id(node)] = found.get(id(node), 0.) + factor * g
    return [found.get(id(variable.node), 0.) for variable in variables]


def _factors(function):
    """For each of a function's inputs how many times as large as its output's gradient that input's may be."""
    inputs = function.inputs
    known = type(function) in (Convolution, Linear, PooledConvolution, TiledSum)  # not what is derived from them
    if known and not getattr(function, 'is_mixed', False):
        x, *weights = (node.data for node in inputs)
        root = math.sqrt(math.prod(weights[0].shape[-3:-1])) if x.ndim == 4 else 1  # of the number of taps
        # An example meets one group's weight; often all groups' are the same, without a copy.
        largest = [norm(weight[0] if weight.ndim > x.ndim and weight.strides[0] == 0 else weight) for weight in weights]
        return [root * sum(largest)] + [root * norm(x)] * len(weights)
    if isinstance(function, F.math.basic_math.Mul) and inputs[0].shape == inputs[1].shape:
        return [float(abs(other.data).max()) for other in reversed(inputs)]
    if isinstance(function, F.math.basic_math.MulConstant):
        return abs(float(function.value)),
    if isinstance(function, F.normalization.l2_normalization.NormalizeL2) and function.axis == (1,):
        return 1 / (math.sqrt(float(numpy.square(inputs[0].data).sum(axis=1).min())) + function.eps),
    if isinstance(function, F.math.sum.Sum):
        return math.sqrt(math.prod(inputs[0].shape)),
    if (isinstance(function, F.loss.softmax_cross_entropy.SoftmaxCrossEntropy) and function.reduce == 'no'
            and function.class_weight is None and not function.soft_target):
        return math.sqrt(2), 0
    if isinstance(function, (F.activation.relu.ReLU, F.array.reshape.Reshape)):
        return 1,
    return [math.inf] * len(inputs)


def norm(array):
    """The Euclidean norm of an array of any shape."""
    flat = array.ravel('K')
    return math.sqrt(flat.dot(flat))
