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

import numpy as np

import ops.checks as checks
from ops import NormalizedConvolution2D, channels_last, convolution, late_mixture, linear, lstm, max_pooling, mlp
from ops.compat import F, L, chainer
from ops.gradients import Gradients, part, slow_arrays
from ops.lazy import looking_once, needed
from ops.memory import moderate
from ops.normalization import NORMALIZATIONS


class FastLayer(chainer.Link):
    """A layer of slow weights that fast weights can augment (section 3.3): activation(W x) + activation(W* x).

    While it has no fast weights, it is an ordinary layer: activation(W x). There is no bias. Subclasses define
    `product(x, weights, relu)`: each weight times x, through a ReLU if `relu`, summed over the weights. A weight has
    the shape of `slow()`, for all examples, or one more axis in front, of groups of `group` examples each.

    Args:
        shape: shape of the slow weights, the parameter `W`.
        activation: function applied to each product before the sum; None for none.

    Raises:
        ValueError, TypeError: a size is missing; the activation is a link, whose parameters the layer would not keep.
    """

    kind = 'fc'  # or 'conv': which of the meta learner's parameters make the fast weights

    def __init__(self, shape, activation):
        super().__init__()
        self.activation = checks.check_layer(shape, activation)
        self.copies = None  # stand in for the slow weights, one for each group of examples
        self.fast = None  # for all examples, or one for each group of examples; several of these: a tuple
        self.group = 1  # consecutive examples to a group
        with self.init_scope():
            self.W = chainer.Parameter(chainer.initializers.LeCunNormal(), shape)

    def slow(self):
        """The slow weights, laid out as products and fast weights have them."""
        return self.W

    def forward(self, x):
        weights = [self.slow() if self.copies is None else self.copies]
        return self.augment(x, weights + self.fast_weights(x, mixed=self.group == 1))

    def fast_weights(self, x, mixed=False):
        """The fast weights that may change the output for x, a list; if `mixed`, means may wait (`ops.lazy.Mixed`)."""
        # A product of a subclass's own may change signs, and cannot take means that wait.
        known = (type(self).product, type(self).augment) in [(kind.product, kind.augment)
                                                             for kind in (FastLinear, FastConvolution2D)]
        return needed(() if self.fast is None else self.fast, x, self.activation if known else None, mixed and known)

    def augment(self, x, weights):
        """The sum over `weights` of activation(weight x)."""
        if self.activation in (None, F.relu):
            return self.product(x, weights, relu=self.activation is F.relu)
        return sum(self.activation(self.product(x, [weight], relu=False)) for weight in weights)


class FastConvolution2D(FastLayer):
    """An adaptable convolution: stride 1, output as large as the input, no bias.

    From float32 (n, in_channels, height, width) to (n, out_channels, height, width); pooling halves the sides, rounded
    up. Fast weights are (..., out_channels, ksize, ksize, in_channels).

    Args:
        in_channels, out_channels: numbers of feature maps.
        ksize: side of the kernel, odd.
        activation: as in `FastLayer`.
        pool: whether 2x2 max pooling follows the sum.

    Raises:
        ValueError: an even `ksize`.
    """

    kind = 'conv'

    def __init__(self, in_channels, out_channels, ksize=3, activation=F.relu, pool=False):
        if not isinstance(ksize, (int, np.integer)) or ksize % 2 == 0:
            raise ValueError(f'ksize must be an odd number for the output to be as large as the input, not {ksize}')
        super().__init__((out_channels, in_channels, ksize, ksize), activation)
        self.pool = pool

    def slow(self):
        return channels_last(self.W)

    def product(self, x, weights, relu, pool=False):
        checks.check_groups(x, weights, self)
        return convolution(x, weights, self.group, relu, pool)

    def augment(self, x, weights):
        if self.pool and self.activation is F.relu and type(self).product is FastConvolution2D.product:
            return self.product(x, weights, relu=True, pool=True)
        y = super().augment(x, weights)
        return max_pooling(y) if self.pool else y


class FastLinear(FastLayer):
    """An adaptable fully connected layer without bias: from float32 (n, in_size), flat, to (n, out_size).

    Args:
        in_size, out_size: numbers of units.
        activation: as in `FastLayer`.

    Raises:
        ValueError: `forward` gets inputs of another shape.
    """

    def __init__(self, in_size, out_size, activation=F.relu):
        super().__init__((out_size, in_size), activation)

    def product(self, x, weights, relu):
        checks.check_vectors(x, self.W.shape[1])
        checks.check_groups(x, weights, self)
        return linear(x, weights, self.group, relu)


class SoftmaxLayer(FastLinear):
    """Class scores, float32 (n, way), of the last hidden layer (n, in_size): its augmented output has no ReLU."""

    def __init__(self, in_size, way):
        super().__init__(in_size, way, activation=None)


@contextlib.contextmanager
def augmented(layers, fast=None, copies=None, group=1):
    """Within it each of the layers has fast weights of its own, or copies in the place of its slow weights.

    Args:
        layers: list of `FastLayer`.
        fast: list of fast weights, one for each layer, or a tuple of several; None for none at all.
        copies: list of variables (n_groups, ...), one for each layer; None for the slow weights themselves.
        group: consecutive examples that share one of a layer's several weights; the last group may be smaller.

    Raises:
        ValueError: there are more or fewer weights than layers.
        RuntimeError: a layer has such weights already, of another thread or of an outer `augmented`.
    """
    checks.check_weights(layers, fast, copies)
    try:
        for i, layer in enumerate(layers):
            layer.fast = None if fast is None else fast[i]
            layer.copies = None if copies is None else copies[i]
            layer.group = group
        yield
    finally:
        for layer in layers:
            layer.fast, layer.copies, layer.group = None, None, 1


class Network(chainer.Chain):
    """A base learner or an embedding: derive from it, make the layers in `init_scope`, and write `forward`.

    `forward(x)` takes a batch of n inputs and returns float32 (n, `n_out`): a base learner's last hidden layer, or an
    embedding's keys. Softmax layers come with `add_way`, one for each number of classes, named `softmax5`, ...
    """

    softmax_layer = SoftmaxLayer  # what makes a `SoftmaxLayer` of a size and a way

    def __init__(self, n_out):
        super().__init__()
        self.n_out = n_out

    def __call__(self, x):
        return checks.check_output(super().__call__(x), x, self)

    def add_way(self, way):
        """Adds a softmax layer for `way` classes, if there is none: *inserted* (section 4.2.1) if untrained."""
        if not hasattr(self, f'softmax{way}'):
            layer = checks.check_class(self.softmax_layer(self.n_out, way), SoftmaxLayer, 'softmax_layer')
            with self.init_scope():
                setattr(self, f'softmax{way}', layer.to_device(self.device))

    def softmax(self, way):
        """The softmax layer for `way` classes; a ValueError if there is none."""
        if not hasattr(self, f'softmax{way}'):
            raise ValueError(f'no softmax layer for {way} classes: make it by add_ways([{way}]), initialize_inserted')
        return self[f'softmax{way}']

    def fast_layers(self, way=None):
        """The adaptable layers of `forward`; with `way` also the softmax layer for that number of classes, last."""
        layers = [link for link in self.links() if isinstance(link, FastLayer) and not isinstance(link, SoftmaxLayer)]
        return layers if way is None else layers + [self.softmax(way)]


class CNN(Network):
    """The paper's base learner and embedding: five convolutions with ReLU and pooling, and a fully connected layer.

    Args:
        n_filters: feature maps of each convolution.
        activation: of the fully connected layer: F.relu in a base learner, None in an embedding.
        in_channels: 1 for grey images, 3 for colour.
        image_size: side of the square images.
        n_slow: convolutions, from the first, with batch normalisation and no fast weights: 0 in "full", 3 in "partial".

    Raises:
        ValueError: a size is no whole number above 0, `n_slow` not 0 to 5; or `forward` gets no such images in [0, 1].
    """

    def __init__(self, n_filters=64, activation=F.relu, in_channels=1, image_size=28, n_slow=0):
        checks.check_cnn(n_filters, in_channels, image_size, n_slow)
        side = -(-image_size // 2 ** 5)
        super().__init__(n_filters * side ** 2)
        self.image_shape = in_channels, image_size, image_size
        channels = [in_channels] + [n_filters] * 5
        with self.init_scope():
            for i in range(5):
                layer = NormalizedConvolution2D if i < n_slow else functools.partial(FastConvolution2D, pool=True)
                setattr(self, f'conv{i + 1}', layer(channels[i], channels[i + 1]))
            self.fc1 = FastLinear(self.n_out, self.n_out, activation)

    def forward(self, x):
        checks.check_images(x, self.image_shape)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5):
            x = conv(x)
        return self.fc1(F.reshape(x, (len(x), -1)))


class MLP(Network):
    """Two adaptable layers, float32 (n, n_units) to the same: the base learner on u's keys in "partial, u"."""

    def __init__(self, n_units):
        super().__init__(n_units)
        with self.init_scope():
            self.fc1 = FastLinear(n_units, n_units)
            self.fc2 = FastLinear(n_units, n_units)

    def forward(self, x):
        return self.fc2(self.fc1(x))


class ExampleLearner(chainer.Chain):
    """m: from one gradient of one example to one fast weight, coordinate by coordinate (section 3.1).

    Args:
        n_units: units of its two hidden layers.
        defer: whether fast weights that are all negative stay unmade until they matter (`ops.lazy`).
    """

    def __init__(self, n_units=20, defer=False):
        super().__init__()
        self.defer = defer
        with self.init_scope():
            self.l1 = L.Linear(2, n_units)
            self.l2 = L.Linear(n_units, n_units)
            self.l3 = L.Linear(n_units, 1)

    def forward(self, gradients):
        """Lists of gradients of any shapes to fast weights of those shapes."""
        return mlp(gradients, self.l1.W, self.l1.b, self.l2.W, self.l2.b, self.l3.W, self.l3.b, defer=self.defer)


class TaskLearner(chainer.Chain):
    """d: from the sequence of a coordinate's gradients to one fast weight (section 3.1), by an LSTM of `n_units`."""

    def __init__(self, n_units=20, defer=False):
        super().__init__()
        self.defer = defer
        with self.init_scope():
            self.lstm = L.StatelessLSTM(2, n_units)
            self.out = L.Linear(n_units, 1)

    def forward(self, gradients):
        """Lists of gradients (t, ...), the sequence first, to fast weights (...)."""
        upward, lateral = self.lstm.upward, self.lstm.lateral
        return lstm(gradients, upward.W, upward.b, lateral.W, self.out.W, self.out.b, defer=self.defer)


class Memory:
    """Fast weights of the support examples, to be read by similarity of keys (sections 3.1 and 3.2).

    Args:
        keys: R, variable (n_support, d).
        values: M, a list of (n_support, ...), one for each adaptable layer; `ops.lazy.made` makes those that wait.
    """

    def __init__(self, keys, values):
        self.keys = keys
        self.values = values

    def attention(self, queries):
        """Softmax over the memory of the cosine of queries, float32 (n, d), and keys: (n, n_support), rows sum to 1."""
        queries, keys = moderate(queries), moderate(self.keys)
        norms = F.matmul(*(F.sum(x ** 2, axis=1, keepdims=True) for x in (queries, keys)), transb=True)
        return F.softmax(F.matmul(queries, keys, transb=True) / F.sqrt(norms + 1e-6), axis=1)

    def read(self, queries):
        """W*, a list of (n, ...): for each query the mean of the values, weighted by attention. Some may wait, too."""
        return late_mixture(checks.check_attention(self.attention(queries), len(queries), self), self.values)


class MetaNet(chainer.Chain):
    """A base learner and an embedding, joined by the meta learner and a memory.

    It serves one thread at a time: give each its own `model.copy('share')`.

    Args:
        base: b, the `Network` that classifies the query examples.
        embed: u, the `Network` whose output is the memory's key.
        ways: numbers of classes to make softmax layers for; training may use one or several of them.
        n_steps: T. The support set is cut into groups of n_support // T examples, or of one; d gets a gradient of each.
        task_level: whether u has task-level fast weights; without them the model is the paper's MetaNet-.
        base_on_keys: whether b's input is u's key of an example, of a support example as a constant, not the example.
        n_units: units of the meta learner's hidden layers.

    Raises:
        ValueError: `n_steps` or a way is too small, `ways` is no list, or a parameter is registered twice.
        TypeError: `base` or `embed` is not a `Network`.
    """

    memory = Memory  # the class that keeps its examples' fast weights

    def __init__(self, base, embed, ways, n_steps=5, task_level=True, base_on_keys=False, n_units=20):
        super().__init__()
        checks.check_parts(base, embed, Network, ways, n_steps)
        self.n_steps = n_steps
        self.task_level = task_level
        self.base_on_keys = base_on_keys
        with self.init_scope():
            self.base = base
            self.embed = embed
            self.m_conv = ExampleLearner(n_units, defer=True)
            self.m_fc = ExampleLearner(n_units)
            if task_level:
                self.d_conv = TaskLearner(n_units, defer=True)
                self.d_fc = TaskLearner(n_units)
        self.add_ways(ways)

    def add_ways(self, ways):
        """Adds to both networks the softmax layers that they lack for these ways. Set optimizers up after it."""
        for way in checks.check_ways(ways):  # in their order: initial weights of the first don't depend on the others
            self.base.add_way(way)
            self.embed.add_way(way)

    @looking_once  # for speed alone
    def forward(self, support_x, support_y, query_x):
        """Class scores of the query examples: Algorithm 1. Comments name its lines, and the steps at the file's top.

        Args:
            support_x: float32, or int32 of tokens, (n_support, ...), what the networks take: the paper's take images
                (n_support, channels, height, width) in [0, 1], of Omniglot (n_support, 1, 28, 28) with 1 for ink and 0
                for paper. The order decides which examples share a task-level gradient.
            support_y: int32 (n_support,), labels 0 to N - 1, as many of each.
            query_x: of that dtype, (n_query, ...).

        Returns:
            chainer.Variable: float32 (n_query, N).

        Raises:
            ValueError: the arrays do not make an episode, or the model has no softmax layer for N classes.
        """
        way = checks.check_episode(support_x, support_y, query_x, self)
        b, u = self.base, self.embed
        b_layers, u_layers = b.fast_layers(way), u.fast_layers(way)                     # steps 1, 2
        task_weights = None
        if self.task_level:
            group = max(1, len(support_x) // self.n_steps)                              # examples to a group
            gradients = self.meta_information(u, support_x, support_y, way, group)      # step 3; lines 1-5, in groups
            task_weights = self.meta_learner('d', gradients, u_layers)                  # line 6: Q* = d(gradients)
        with augmented(u_layers, task_weights):                                         # step 4
            keys = u(support_x)                                                         # line 12: R = u(Q, Q*, x')
            queries = u(query_x)                                                        # line 17: r = u(Q, Q*, x)
        if self.base_on_keys:
            support_x, query_x = keys.array, queries

        gradients = self.meta_information(b, support_x, support_y, way, 1)              # step 3; lines 8, 9
        memory = self.memory(keys, self.meta_learner('m', gradients, b_layers))         # lines 10-13: M = m(gradients)
        with augmented(b_layers, memory.read(queries)):                                 # step 4; lines 18, 19: W*
            return self.scores(b, query_x, way)                                         # line 20: b(W, W*, x)

    def scores(self, network, x, way):
        """Class scores, float32 (n, way), of b or u for n inputs: u's output gets a ReLU first, b's has had it."""
        hidden = network(x)
        return network.softmax(way)(F.relu(hidden) if network is self.embed else hidden)

    def support_losses(self, network, x, y, way):
        """The losses (n,) of n support examples, whose gradients are the meta information: here cross-entropies.

        A loss may depend on its own group's examples alone: no batch normalisation behind an adaptable layer.
        """
        return F.softmax_cross_entropy(self.scores(network, x, way), y, reduce='no')

    def meta_information(self, network, x, y, way, group):
        """Gradients of each group's mean loss on slow weights, with respect to the adaptable ones.

        Args:
            network: b or u.
            x, y: support examples and labels.
            way: number of classes.
            group: consecutive examples to a group; the last group may be smaller.

        Returns:
            A sequence of arrays (n_groups, ...), in the order of `network.fast_layers(way)`, each of its layer's
            `slow()` shape: constants, nothing is differentiated through them. They are computed when first looked at.
        """
        n_groups, layers = -(-len(x) // group), network.fast_layers(way)
        # Copied, for an update in place may come before the gradients are computed.
        copies = [chainer.Variable(self.xp.broadcast_to(array.copy(), (n_groups,) + array.shape))
                  for array in slow_arrays(layers)]
        with chainer.force_backprop_mode(), augmented(layers, copies=copies, group=group):
            losses = checks.check_losses(self.support_losses(network, x, y, way), len(x))
            share = self.xp.full(len(x), 1 / group, losses.dtype)
            share[(n_groups - 1) * group:] = 1 / (len(x) - (n_groups - 1) * group)
            return Gradients(F.sum(losses * share), copies)

    def meta_learner(self, name, gradients, layers):
        """m or d: one set of parameters serves layers of the kind 'conv', another those of the kind 'fc'.

        Args:
            name: 'm', 'd', or what else the links NAME_conv and NAME_fc are called by.
            gradients: sequence of arrays (n_groups, ...), the meta information.
            layers: the adaptable layers that it belongs to, as many.

        Returns:
            Fast weights in that order, some deferred (`ops.lazy`): for m of those shapes, for d without the first axis.

        Raises:
            ValueError: the meta information, or what the learner makes of it, does not fit the layers.
        """
        fast, slow = {}, slow_arrays(layers)
        checks.check_meta_information(gradients, layers, slow)
        for kind in 'conv', 'fc':
            places = [i for i, layer in enumerate(layers) if layer.kind == kind]
            if places:
                made = list(self[f'{name}_{kind}'](part(gradients, places)))
                fast.update(checks.check_fast_weights(name, made, {i: slow[i] for i in places}))
        return [fast[i] for i in range(len(layers))]

    def loss(self, episode):
        """Sum of the query set's cross-entropies; reports `loss`, their mean, `accuracy`, and `largest_logit`.

        Args:
            episode: `data.Episode`, or four such arrays, on this model's device; a ValueError says what is wrong.

        Returns:
            chainer.Variable: float32 ().
        """
        *inputs, labels = checks.check_four(episode)
        scores = self(*inputs)
        loss = F.sum(F.softmax_cross_entropy(scores, checks.check_labels(labels, scores), reduce='no'))
        chainer.report({'loss': loss / len(scores), 'accuracy': F.accuracy(scores, labels),
                        'largest_logit': abs(scores.array).max()}, self)
        return loss

    def initialize_uniform(self, seed, scale=0.1, way=None):
        """The paper's initial weights: every parameter uniform in [-scale, scale).

        Normalisations keep their scale of 1 and shift of 0: three scales below 0.1 would make the signal vanish. With
        `way`, softmax layers for other ways are left alone, too. All else is overwritten: load pretrained parts later.
        A ValueError names a parameter that has no shape yet.
        """
        random = np.random.RandomState(seed)  # the same on a GPU
        kept = {id(param) for link in self.links() if isinstance(link, NORMALIZATIONS)
                or (isinstance(link, SoftmaxLayer) and way not in (None, len(link.W))) for param in link.params()}
        for param in checks.check_shapes(self):
            if id(param) not in kept:
                param.array[...] = self.xp.asarray(random.uniform(-scale, scale, param.shape))

    def initialize_inserted(self, way, seed, scale=0.1):
        """Weights of the softmax layers that training for `way` classes leaves alone: uniform in [-scale, scale)."""
        for i, network in enumerate((self.base, self.embed)):
            for layer in network.links():
                if isinstance(layer, SoftmaxLayer) and len(layer.W) != way:
                    random = np.random.RandomState([seed, len(layer.W), i])  # whatever other layers there are
                    layer.W.array[...] = self.xp.asarray(random.uniform(-scale, scale, layer.W.shape))
