"""Meta Networks (Munkhdalai & Yu, ICML 2017) in Chainer.

A base learner b and an embedding u learn slow weights across tasks. Within a task the meta learner, m and d, turns
their loss gradients on the support set into fast weights for the layers marked as adaptable: in u one set for the task,
in b one set for every query example, read from a memory. `MetaNet.forward` is Algorithm 1 of the paper. Step by step:

    1 define a network               a `Network` with a `forward`: `CNN` below, or one of your own
    2 mark its adaptable layers      make them `FastConvolution2D` and `FastLinear`
    3 define the meta information    `MetaNet.meta_information`: loss gradients
    4 fast-parameterise, augment     `ExampleLearner` m and `TaskLearner` d; `FastLayer.forward`
    5 train end to end               `MetaNet.loss` under any Chainer optimizer
"""
import contextlib
import functools

import chainer_compat  # noqa: F401  (before Chainer)
import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

import bounds
import functions

CENTRED = '', 'fc', 'conv', 'conv, fc'  # choices for `MetaNet`'s `centred`


class FastLayer(chainer.Link):
    """A layer of slow weights that fast weights can augment (section 3.3): activation(W x) + activation(W* x).

    While it has no fast weights, it is an ordinary layer: activation(W x). There is no bias. Subclasses define
    `product(x, weights, relu)`, the sum over `weights` of weight x, each through a ReLU if `relu`. A weight has the
    shape of `slow()`, for all examples, or has one more axis in front, of groups of `group` examples each.

    Args:
        shape: shape of the slow weights, the parameter `W`.
        activation: function applied to each product before the sum; None for none.
    """

    def __init__(self, shape, activation):
        super().__init__()
        self.activation = activation
        self.copies = None  # stand in for the slow weights, one for each group of examples
        self.fast = None  # for all examples, or one for each group of examples
        self.group = 1  # consecutive examples to a group
        self.alive = None  # a list while `MetaNet.watch` counts
        with self.init_scope():
            self.W = chainer.Parameter(chainer.initializers.LeCunNormal(), shape)

    def slow(self):
        """The slow weights, laid out as products and fast weights have them."""
        return self.W

    def forward(self, x):
        weights = [self.slow() if self.copies is None else self.copies]
        if self.fast is not None:
            shut = self.shut(x)
            if not shut:
                weights.append(self.fast.make() if isinstance(self.fast, NegativeWeights) else self.fast)
            if self.alive is not None:
                self.alive.append(0. if shut else float((self.product(x, weights[1:], relu=False).array > 0).mean()))
        return self.augment(x, weights)

    def shut(self, x):
        """Whether the fast weights' ReLU is known, before they are made, to let nothing through."""
        return isinstance(self.fast, NegativeWeights) and self.activation is F.relu and (
            chainer.as_variable(x).array.min() >= 0)

    def augment(self, x, weights):
        """The sum over `weights` of activation(weight x)."""
        if self.activation in (None, F.relu):
            return self.product(x, weights, relu=self.activation is F.relu)
        return sum(self.activation(self.product(x, [weight], relu=False)) for weight in weights)


class FastConvolution2D(FastLayer):
    """An adaptable convolution: stride 1, output as large as the input, no bias.

    From float32 (n, in_channels, height, width) to (n, out_channels, height, width); pooling halves the sides, rounded
    up.

    Args:
        in_channels, out_channels: numbers of feature maps.
        ksize: side of the kernel, odd.
        activation: as in `FastLayer`.
        pool: whether 2x2 max pooling follows the sum.

    Raises:
        ValueError: an even `ksize`.
    """

    def __init__(self, in_channels, out_channels, ksize=3, activation=F.relu, pool=False):
        if ksize % 2 == 0:
            raise ValueError('ksize must be odd for the output to be as large as the input, not %d' % ksize)
        super().__init__((out_channels, in_channels, ksize, ksize), activation)
        self.pool = pool

    def product(self, x, weights, relu, pool=False):
        return functions.convolution(x, weights, self.group, relu, pool)

    def augment(self, x, weights):
        if self.pool and self.activation is F.relu:
            return self.product(x, weights, relu=True, pool=True)
        y = super().augment(x, weights)
        return functions.max_pooling(y) if self.pool else y

    def slow(self):
        return F.transpose(self.W, (0, 2, 3, 1))


class FastLinear(FastLayer):
    """An adaptable fully connected layer without bias: from float32 (n, in_size), flat, to (n, out_size).

    Args:
        in_size, out_size: numbers of units.
        activation: as in `FastLayer`.
    """

    def __init__(self, in_size, out_size, activation=F.relu):
        super().__init__((out_size, in_size), activation)

    def product(self, x, weights, relu):
        return functions.linear(x, weights, self.group, relu)


class SoftmaxLayer(FastLinear):
    """The class scores of a `Network`: its augmented output has no ReLU."""

    def __init__(self, in_size, way):
        super().__init__(in_size, way, activation=None)


class NegativeWeights:
    """A layer's fast weights of which it is known that all are negative: not made unless it makes a difference.

    Args:
        make: function without arguments that returns them, a variable.
    """

    def __init__(self, make):
        self.make = make

    @property
    def array(self):
        return self.make().array

    @classmethod
    def of_layers(cls, make, count):
        """A list of `count` of them: `make` returns a list, and is called when the first is made."""
        make = functools.lru_cache(maxsize=None)(make)
        return [cls(lambda i=i: make()[i]) for i in range(count)]


class Network(chainer.Chain):
    """A base learner or an embedding: derive from it, make the layers in `init_scope`, and write `forward`.

    `forward(x)` takes a batch of n inputs and returns float32 (n, `n_out`): a base learner's last hidden layer, or an
    embedding's keys. Softmax layers come with `add_way`, one for each number of classes, named `softmax5`, ...

    Args:
        n_out: units of the output.
    """

    def __init__(self, n_out):
        super().__init__()
        self.n_out = n_out

    def add_way(self, way):
        """Adds a softmax layer for `way` classes, if there is none: *inserted* (section 4.2.1) if untrained."""
        name = 'softmax%d' % way
        if not hasattr(self, name):
            with self.init_scope():
                setattr(self, name, SoftmaxLayer(self.n_out, way))

    def softmax(self, way):
        name = 'softmax%d' % way
        if not hasattr(self, name):
            raise ValueError('there is no softmax layer for %d classes: add one with add_way, or name that number '
                             'among the ways of MetaNet' % way)
        return self[name]

    def fast_layers(self, way=None):
        """The adaptable layers of `forward`; with `way` also the softmax layer for that number of classes."""
        layers = [link for link in self.links() if isinstance(link, FastLayer) and not isinstance(link, SoftmaxLayer)]
        return layers if way is None else layers + [self.softmax(way)]

    @contextlib.contextmanager
    def augmented(self, fast, way=None, group=1):
        """Within it the layers `fast_layers(way)` are augmented by `fast`: variables or `NegativeWeights`, in order."""
        with _set(self.fast_layers(way), fast=fast, group=group):
            yield

    @contextlib.contextmanager
    def copied(self, way, group, n_groups):
        """Within it each group of examples has a copy of the slow weights to itself; yields the copies."""
        layers = self.fast_layers(way)
        copies = []
        for layer in layers:
            slow = self.xp.ascontiguousarray(layer.slow().array)
            copies.append(chainer.Variable(self.xp.broadcast_to(slow, (n_groups,) + slow.shape)))
        with _set(layers, copies=copies, group=group):
            yield copies


@contextlib.contextmanager
def _set(layers, group, **values):
    """Sets attributes of layers, a list of values for each attribute, and clears them at the end."""
    (name, values), = values.items()
    try:
        for layer, value in zip(layers, values):
            setattr(layer, name, value)
            layer.group = group
        yield
    finally:
        for layer in layers:
            setattr(layer, name, None)


class NormalizedConvolution2D(chainer.Chain):
    """A convolution of slow weights alone, 3x3 without bias, then batch normalisation, ReLU and 2x2 max pooling.

    Normalised by the statistics of the batch at hand in training, by their running averages in a test.

    Args:
        in_channels, out_channels: numbers of feature maps.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        with self.init_scope():
            self.W = chainer.Parameter(chainer.initializers.LeCunNormal(), (out_channels, in_channels, 3, 3))
            self.bn = L.BatchNormalization(out_channels)

    def forward(self, x):
        return functions.normalized_convolution(x, F.transpose(self.W, (0, 2, 3, 1)), self.bn)


class CNN(Network):
    """The paper's base learner and embedding: five convolutions with ReLU and pooling, and a fully connected layer.

    Args:
        n_filters: feature maps of each convolution.
        activation: of the fully connected layer: F.relu in a base learner, None in an embedding.
        in_channels: 1 for grey images, 3 for colour.
        image_size: side of the square images.
        n_slow: how many of the convolutions, from the first, have no fast weights but batch normalisation: 0 is the
            paper's full model, 3 its partial one.

    Raises:
        ValueError: `n_slow` is not from 0 to 5.
    """

    def __init__(self, n_filters=64, activation=F.relu, in_channels=1, image_size=28, n_slow=0):
        if not 0 <= n_slow <= 5:
            raise ValueError('n_slow = %s: there are five convolutions, choose 0 to 5' % n_slow)
        side = -(-image_size // 2 ** 5)
        super().__init__(n_filters * side ** 2)
        channels = [in_channels] + [n_filters] * 5
        with self.init_scope():
            for i in range(5):
                layer = NormalizedConvolution2D if i < n_slow else functools.partial(FastConvolution2D, pool=True)
                setattr(self, 'conv%d' % (i + 1), layer(channels[i], channels[i + 1]))
            self.fc1 = FastLinear(self.n_out, self.n_out, activation)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = conv(x)
        return self.fc1(F.reshape(x, (len(x), -1)))


class MLP(Network):
    """Two adaptable fully connected layers: the base learner on top of an embedding's keys in "partial, u".

    Args:
        n_units: units of input and of both layers.
    """

    def __init__(self, n_units):
        super().__init__(n_units)
        with self.init_scope():
            self.fc1 = FastLinear(n_units, n_units)
            self.fc2 = FastLinear(n_units, n_units)

    def forward(self, x):
        return self.fc2(self.fc1(x))


class ExampleLearner(chainer.Chain):
    """m: from one gradient of one example to one fast weight, coordinate by coordinate (section 3.2.2).

    Args:
        n_units: units of its two hidden layers.
    """

    def __init__(self, n_units=20):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(2, n_units)
            self.l2 = L.Linear(n_units, n_units)
            self.l3 = L.Linear(n_units, 1)

    @property
    def parameters(self):
        return self.l1.W, self.l1.b, self.l2.W, self.l2.b, self.l3.W, self.l3.b

    def forward(self, gradients):
        """A list of gradients of any shapes -> a list of fast weights of those shapes."""
        return functions.mlp(gradients, *self.parameters)

    def is_negative(self, gradients):
        """Whether all fast weights for these gradients are surely negative."""
        return bounds.is_negative(bounds.mlp, [g[None] for g in gradients], *self.parameters)


class TaskLearner(chainer.Chain):
    """d: from the sequence of a coordinate's gradients to one fast weight (section 3.1).

    Args:
        n_units: units of its LSTM layer.
    """

    def __init__(self, n_units=20):
        super().__init__()
        with self.init_scope():
            self.lstm = L.StatelessLSTM(2, n_units)
            self.out = L.Linear(n_units, 1)

    @property
    def parameters(self):
        return self.lstm.upward.W, self.lstm.upward.b, self.lstm.lateral.W, self.out.W, self.out.b

    def forward(self, gradients):
        """A list of gradients (t, ...), the sequence first -> a list of fast weights (...)."""
        return functions.lstm(gradients, *self.parameters)

    def is_negative(self, gradients):
        """Whether all fast weights for these gradients are surely negative."""
        return bounds.is_negative(bounds.lstm, gradients, *self.parameters)


class Memory:
    """Fast weights of the support examples, to be read by similarity of keys (section 3.2.3).

    Args:
        keys: R, variable (n_support, d).
        values: M, a list of variables (n_support, ...) or of `NegativeWeights`, one for each adaptable layer.
    """

    def __init__(self, keys, values):
        self.keys = keys
        self.values = values

    def attention(self, queries):
        """Softmax over the memory of the cosine between queries (n, d) and keys: (n, n_support)."""
        norms = F.matmul(F.sum(queries ** 2, axis=1, keepdims=True), F.sum(self.keys ** 2, axis=1, keepdims=True),
                         transb=True)
        return F.softmax(F.matmul(queries, self.keys, transb=True) / F.sqrt(norms + 1e-6), axis=1)

    def read(self, queries):
        """W*, a list of variables (n, ...): for each query the values' mean, weighted by attention.

        A mean of negative weights is negative: of `NegativeWeights` it is one of these again.
        """
        attention = self.attention(queries)
        negative = [value for value in self.values if isinstance(value, NegativeWeights)]
        others = [value for value in self.values if not isinstance(value, NegativeWeights)]
        means = iter(functions.mixture(attention, others) if others else [])
        negative_means = iter(NegativeWeights.of_layers(
            lambda: functions.mixture(attention, [value.make() for value in negative]), len(negative)))
        return [next(negative_means if isinstance(value, NegativeWeights) else means) for value in self.values]


def _centred(weights, kind):
    """Filters (..., kh, kw, c) of kind 'conv', or rows (..., c) of kind 'fc', each without its mean."""
    axes = (-3, -2, -1) if kind == 'conv' else -1
    return weights - F.broadcast_to(F.mean(weights, axis=axes, keepdims=True), weights.shape)


class MetaNet(chainer.Chain):
    """A base learner and an embedding, joined by the meta learner and a memory.

    Args:
        base: b, the `Network` that classifies the query examples.
        embed: u, the `Network` whose output is the memory's key.
        ways: numbers of classes to make softmax layers for; training may use one or several of them.
        n_steps: T, the length of d's sequence of gradients where the support set allows it (`group_size`).
        task_level: whether u has task-level fast weights; without them the model is the paper's MetaNet-.
        base_on_keys: whether b's input is u's key of an example rather than the example itself.
        centred: an extension, not in the paper, to keep fast activations alive, which else mostly turn negative within
            some dozens of episodes: from the fast weights of each output of a layer, a convolution's filter for one,
            their mean is subtracted. 'fc': in fully connected layers but the softmax layer; 'conv': in convolutions,
            which takes much longer (`NegativeWeights`); 'conv, fc': in both.
        n_units: units of the meta learner's hidden layers.

    Raises:
        ValueError: `centred` is none of these, or `n_steps` below 1.
    """

    def __init__(self, base, embed, ways, n_steps=5, task_level=True, base_on_keys=False, centred='', n_units=20):
        super().__init__()
        if centred not in CENTRED:
            raise ValueError('centred = %r: choose among %s' % (centred, ', '.join(map(repr, CENTRED))))
        if n_steps < 1:
            raise ValueError('n_steps = %s: must be at least 1' % n_steps)
        self.n_steps = n_steps
        self.task_level = task_level
        self.base_on_keys = base_on_keys
        self.centred = centred
        with self.init_scope():
            self.base = base
            self.embed = embed
            self.m_conv = ExampleLearner(n_units)
            self.m_fc = ExampleLearner(n_units)
            if task_level:
                self.d_conv = TaskLearner(n_units)
                self.d_fc = TaskLearner(n_units)
        for way in dict.fromkeys(ways):  # in their order: initial weights of the first don't depend on the others
            base.add_way(way)
            embed.add_way(way)

    def forward(self, support_x, support_y, query_x):
        """Algorithm 1: class scores of the query examples, from the support set alone.

        Args:
            support_x: float32 (n_support, ...), what the networks take: the paper's take images (n_support, channels,
                height, width) in [0, 1], of Omniglot (n_support, 1, 28, 28) with 1 for ink and 0 for paper. The order
                decides which examples share a task-level gradient.
            support_y: int32 (n_support,), labels 0 to N - 1, every label present.
            query_x: float32 (n_query, ...).

        Returns:
            chainer.Variable: float32 (n_query, N).

        Raises:
            ValueError: the model has no softmax layer for N classes.
        """
        way = int(support_y.max()) + 1
        task_weights = self.task_fast_weights(support_x, support_y, way)                # lines 1-5: Q* = d(gradients)
        with self.embed.augmented(task_weights):
            keys = self.embed(support_x)                                                # line 9: R = u(Q, Q*, x')
            queries = self.embed(query_x)                                               # line 12: r = u(Q, Q*, x)
        if self.base_on_keys:
            support_x, query_x = keys.array, queries
        example_weights = self.example_fast_weights(support_x, support_y, way)          # lines 6-8: M = m(gradients)
        with self.base.augmented(Memory(keys, example_weights).read(queries), way):     # line 13: W* by attention
            return self.scores(self.base, query_x, way)                                 # line 14: b(W, W*, x)

    def scores(self, network, x, way):
        """Class scores (n, way) of b or u for n inputs; u's keys become a hidden layer by a ReLU, b has had its own."""
        hidden = network(x)
        return network.softmax(way)(F.relu(hidden) if network is self.embed else hidden)

    def task_fast_weights(self, x, y, way):
        """Q*, a list as `meta_learner` gives: a fast weight for each adaptable slow weight of u; none in MetaNet-."""
        if not self.task_level:
            return []
        gradients = self.meta_information(self.embed, x, y, way, self.group_size(len(x)))
        return self.meta_learner('d', gradients)

    def example_fast_weights(self, x, y, way):
        """The memory's values, a list as `meta_learner` gives, (n_support, ...): each example's fast weights for b."""
        gradients = self.meta_information(self.base, x, y, way, 1)
        return self.meta_learner('m', gradients)

    def meta_information(self, network, x, y, way, group):
        """Gradients of each group's mean cross-entropy on slow weights, with respect to the adaptable ones.

        Args:
            network: b or u.
            x, y: support examples and labels.
            way: number of classes.
            group: consecutive examples to a group; the last group may be smaller.

        Returns:
            A list of arrays (n_groups, ...), in the order of `network.fast_layers(way)`: constants, nothing is
            differentiated through them.
        """
        n_groups = -(-len(x) // group)
        share = self.xp.full(len(x), 1 / group, x.dtype)
        share[(n_groups - 1) * group:] = 1 / (len(x) - (n_groups - 1) * group)
        with chainer.force_backprop_mode(), network.copied(way, group, n_groups) as copies:
            losses = F.softmax_cross_entropy(self.scores(network, x, way), y, reduce='no')
            gradients = chainer.grad([F.sum(losses * share)], copies)
        # A layer that `forward` doesn't use has none.
        return [self.xp.zeros_like(copy.array) if g is None else g.array for g, copy in zip(gradients, copies)]

    def group_size(self, n_support):
        """Examples to a task-level gradient: as many as cut the support set into T groups, at least one."""
        return max(1, n_support // self.n_steps)

    def meta_learner(self, name, gradients):
        """`m` or `d`: one set of parameters serves convolutions, another fully connected and all other layers.

        Args:
            name: 'm' or 'd'.
            gradients: list of arrays (n_groups, ...).

        Returns:
            A list of variables, in the same order: for m of the same shapes, for d without the first axis.
            `NegativeWeights` in place of those of convolutions, where all are negative.
        """
        fast = {}
        kinds = ['conv' if g.ndim == 5 else 'fc' for g in gradients]
        for kind in ('conv', 'fc'):
            places = [i for i, its_kind in enumerate(kinds) if its_kind == kind]
            if not places:
                continue
            learner, chosen = self['%s_%s' % (name, kind)], [gradients[i] for i in places]
            make = functools.partial(learner, chosen)
            if kind in self.centred:
                generated = [weights if i == len(gradients) - 1 else _centred(weights, kind)  # the last: softmax layer
                             for i, weights in zip(places, make())]
            elif kind == 'conv' and learner.is_negative(chosen):
                generated = NegativeWeights.of_layers(make, len(places))
            else:
                generated = make()
            fast.update(zip(places, generated))
        return [fast[i] for i in range(len(gradients))]

    def loss(self, episode):
        """Sum of the query set's cross-entropies; reports `loss`, their mean, `accuracy`, and `largest_logit`.

        Args:
            episode: `data.Episode`, on this model's device.

        Returns:
            chainer.Variable: float32 ().
        """
        scores = self(episode.support_x, episode.support_y, episode.query_x)
        loss = F.sum(F.softmax_cross_entropy(scores, episode.query_y, reduce='no'))
        chainer.report({'loss': loss / len(scores), 'accuracy': F.accuracy(scores, episode.query_y),
                        'largest_logit': abs(scores.array).max()}, self)
        return loss

    def initialize_uniform(self, seed, scale=0.1, way=None):
        """The paper's initial weights: every parameter uniform in [-scale, scale).

        Batch normalisation keeps its scale of 1 and shift of 0: three scales below 0.1 would make the signal vanish.
        With `way`, softmax layers for other numbers of classes are left alone, too.

        Raises:
            ValueError: a parameter has no shape yet.
        """
        random = self.xp.random.RandomState(seed)
        kept = {id(param) for link in self.links() if isinstance(link, L.BatchNormalization)
                or (isinstance(link, SoftmaxLayer) and way not in (None, len(link.W))) for param in link.params()}
        for name, param in self.namedparams():
            if not param.is_initialized:
                raise ValueError('%s has no shape yet: give its layer the size of its input instead of None' % name)
            if id(param) not in kept:
                param.array[...] = random.uniform(-scale, scale, param.shape)

    def initialize_inserted(self, way, seed, scale=0.1):
        """Weights of the softmax layers that training for `way` classes leaves alone: uniform in [-scale, scale)."""
        for i, network in enumerate((self.base, self.embed)):
            for layer in network.links():
                if isinstance(layer, SoftmaxLayer) and len(layer.W) != way:
                    random = np.random.RandomState([seed, len(layer.W), i])  # whatever other layers there are
                    layer.W.array[...] = self.xp.asarray(random.uniform(-scale, scale, layer.W.shape))

    @contextlib.contextmanager
    def watch(self):
        """Yields a dict: {layer: list of shares of its fast activations above 0, one for each call} while augmented.

        Layers without an activation, softmax layers for one, are left out: all that they make passes.
        """
        watched = {name: link for name, link in self.namedlinks()
                   if isinstance(link, FastLayer) and link.activation is not None}
        for link in watched.values():
            link.alive = []
        try:
            yield {name[1:]: link.alive for name, link in watched.items()}
        finally:
            for link in watched.values():
                link.alive = None
