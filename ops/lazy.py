"""Fast weights that are not made until they make a difference.

Fast weights that are all negative yield no positive product with inputs that are not. A ReLU lets nothing of that
through, and neither the loss nor any gradient depends on them. Where `bounds` proves that a layer's fast weights are
all negative, `mlp` and `lstm` of `meta_learners` return them *deferred*: a promise to make them. `needed` decides, for
a layer, whether the promise is called in. Until then the gradients that they are made of wait, too (`gradients`).

Means of fast weights may wait, too: a fully connected layer has less to do if it mixes products (`Mixed`).
"""
import functools
import threading

from ops.compat import F, chainer

_local = threading.local()


class Deferred:
    """Fast weights of which it is proven that all are negative, not made yet.

    Args:
        make: function without arguments that returns them, a variable.
    """

    def __init__(self, make):
        self.make = make


class Mixed:
    """Fast weights for each of several examples, means of the same values, that aren't mixed yet.

    Args:
        weights: variable (n, m), of n examples.
        values: variable (m, ...).
        mix: function of the weights and a list of values that returns a list of their means, variables (n, ...).
    """

    def __init__(self, weights, values, mix):
        self.weights = weights
        self.values = values
        self.mix = mix

    @functools.cached_property
    def mean(self):
        mean, = self.mix(self.weights, [self.values])
        return mean


def defer(make, count):
    """A list of `count` deferred variables; `make` returns a list of as many, and is called once, if at all."""
    made = []

    def get(i):
        if not made:
            made.extend(make())
        return made[i]

    return [Deferred(lambda i=i: get(i)) for i in range(count)]


def made(weights):
    """Fast weights as a variable: made now if they are `Deferred` or `Mixed`."""
    if isinstance(weights, Mixed):
        return weights.mean
    return weights.make() if isinstance(weights, Deferred) else weights


def rectified(y):
    """Marks a variable as the output of a ReLU, so that `needed` doesn't have to look."""
    y.is_rectified = True
    return y


def looking_once(function):
    """A decorator: `needed` looks once at each array that the function gets, for the CPU waits for a GPU to look."""
    @functools.wraps(function)
    def decorated(*args, **settings):
        before = getattr(_local, 'answers', {})
        _local.answers = {id(value): [] for value in (*args, *settings.values())}
        try:
            return function(*args, **settings)
        finally:
            _local.answers = before

    return decorated


def _is_nowhere_negative(x):
    if getattr(x, 'is_rectified', False):
        return True
    array = chainer.as_variable(x).array
    answers = getattr(_local, 'answers', {}).get(id(array), [])
    if answers:
        return answers[0]
    answers.append(bool(array.min() >= 0))
    return answers[0]


def needed(weights, x, activation, late=False):
    """A layer's fast weights, made if need be, without those whose products certainly come to nothing.

    Args:
        weights: variable, `Deferred`, `Mixed`, or a tuple of these.
        x: the layer's input.
        activation: what their products with x go through; None for nothing.
        late: whether `Mixed` ones may stay what they are.

    Returns:
        A list of variables.
    """
    weights = weights if isinstance(weights, tuple) else (weights,)
    if activation is F.relu and any(isinstance(one, Deferred) for one in weights):
        if _is_nowhere_negative(x):
            weights = [one for one in weights if not isinstance(one, Deferred)]
    return [one if late and isinstance(one, Mixed) else made(one) for one in weights]


def map_apart(function, values):
    """Applies a function from lists to lists as long to the values made already, and defers it on the deferred ones.

    Args:
        function: takes and returns a list of variables; the sign of negative ones has to stay negative.
        values: list of variables and of `Deferred`.

    Returns:
        The list of results, in the order of the values.
    """
    later = [isinstance(value, Deferred) for value in values]
    deferred = [value for value in values if isinstance(value, Deferred)]
    others = [value for value in values if not isinstance(value, Deferred)]
    results = iter(function(others) if others else [])
    promises = iter(defer(lambda: function([value.make() for value in deferred]), len(deferred)))
    return [next(promises if is_later else results) for is_later in later]
