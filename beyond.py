"""Extensions of the model, its tests and its supervision that are not in the paper.

Each has a setting of its own in the scripts, and is named in every line of results, but for `Health`, which only
watches. Other extensions are in data.py (classes turned, images distorted), and in experiment/loop.py (learning rates,
clipping).
"""
import functools
import math

import numpy

import ops.kernels as kernels
from metanet import CNN, MLP, FastLayer, Memory, MetaNet, Network, SoftmaxLayer
from ops.checks import check_shapes
from ops.compat import F, chainer, cuda, training
from ops.lazy import made

CENTRED = 'conv', 'fc', 'keys'  # what `CentredMetaNet` centres
VIEWS = 'shifted', 'mirrored'  # what `Views` looks at besides an image itself


def _words(name, value, known):
    """The words of a text such as 'fc, keys', as a list; ValueError if one isn't known."""
    words = value.split(', ') if isinstance(value, str) else ()
    if not words or not set(words) <= set(known):
        raise ValueError(f'{name} = {value!r}: name some of {", ".join(known)}, as in "{", ".join(known[-2:])}"')
    return words


class CentredMemory(Memory):
    """A memory whose keys are centred, so that what all support examples have in common doesn't count.

    Otherwise the common part may grow without end: keys become alike, attention levels out, and b's activations grow to
    make up for it, until the training breaks down.
    """

    def attention(self, queries):
        centre = F.mean(self.keys, axis=0, keepdims=True)
        keys, queries = (x - F.broadcast_to(centre, x.shape) for x in (self.keys, queries))
        return Memory(keys, self.values).attention(queries)


class CentredMetaNet(MetaNet):
    """MetaNet whose fast weights or keys are centred, or both.

    From the fast weights of each output of a layer, a convolution's filter for one, their mean is subtracted; not in
    softmax layers, where that makes learning slower. This mostly keeps fast activations alive, which else die early.
    (u's fully connected layer is centred with b's, though it has no ReLU.)

    Args:
        centred: one or several of 'conv': the fast weights of convolutions, which takes much longer, for nothing of
            them can be deferred (`ops.lazy`) any more; 'fc': of fully connected layers; 'keys': see `CentredMemory`.
            Separate several by a comma and a space, as in 'fc, keys'.
        args, settings: as of `MetaNet`.

    Raises:
        ValueError: `centred` is something else.
    """

    def __init__(self, *args, centred, **settings):
        kinds = _words('centred', centred, CENTRED)
        super().__init__(*args, **settings)
        self.centred = kinds
        if 'keys' in kinds:
            self.memory = CentredMemory

    def meta_learner(self, name, gradients, layers):
        fast = super().meta_learner(name, gradients, layers)
        return [_centred(made(weights), layer.slow().ndim - 1)
                if layer.kind in self.centred and not isinstance(layer, SoftmaxLayer)
                and layer.slow().size > len(layer.slow())  # of one input nothing would be left
                else weights for layer, weights in zip(layers, fast)]


def _centred(weights, n_axes):
    """Weights less their mean over the last axes, those of an output's inputs."""
    return weights - F.broadcast_to(F.mean(weights, axis=tuple(range(-n_axes, 0)), keepdims=True), weights.shape)


class ScaledSoftmaxLayer(SoftmaxLayer):
    """A softmax layer whose fast weights are brought to a root mean square of `scale`, those of each example apart.

    Where a meta learner of one's own begins with zeros their direction is lost, and the gradient is 1e12.
    """

    def __init__(self, in_size, way, scale):
        super().__init__(in_size, way)
        self.norm = scale * math.sqrt(in_size * way)

    def augment(self, x, weights):
        slow, *fast = weights
        return super().augment(x, [slow, *map(self._scaled, fast)])

    def _scaled(self, weights):
        flat = F.reshape(weights, (-1, weights.shape[-2] * weights.shape[-1]))
        return F.reshape(_normalized(flat) * self.norm, weights.shape)


class Scaled:
    """A base learner two sizes of which are held: of its last hidden layer, and of its softmax layers' fast weights.

    Otherwise nothing holds them. Activations may grow tenfold from layer to layer, and class scores with them. Or the
    memory's attention levels out while fast weights grow to make up for it. Either way the training breaks down.

    To be mixed into a `Network`: `class ScaledOwn(Scaled, Own)`.

    Args:
        args, settings: as of the network.
        hidden_scale: root mean square of the last hidden layer, for each example; 0 to leave it as it is.
        fast_scale: root mean square of the fast weights, for each example; 0 to leave them as they are.
    """

    def __init__(self, *args, hidden_scale=0, fast_scale=0, **settings):
        super().__init__(*args, **settings)
        self._hidden_norm = hidden_scale * math.sqrt(self.n_out)
        if fast_scale:
            self.softmax_layer = functools.partial(ScaledSoftmaxLayer, scale=fast_scale)

    def forward(self, x):
        hidden = super().forward(x)
        return _normalized(hidden) * self._hidden_norm if self._hidden_norm else hidden


def _normalized(x):
    """Rows (n, c) at a Euclidean norm of 1."""
    if isinstance(x.array, cuda.ndarray):  # the way back of F.normalize waits for the GPU
        return x / F.broadcast_to(F.sqrt(F.sum(x ** 2, axis=1, keepdims=True) + 1e-24), x.shape)
    return F.normalize(x, eps=1e-12)


def scales(settings):
    """What `Scaled` takes of a script's settings, as keyword arguments; nothing where no size is held."""
    found = {name: settings.get(name, 0) for name in ('hidden_scale', 'fast_scale')}
    return found if any(found.values()) else {}


class ScaledCNN(Scaled, CNN):
    """The paper's base learner, its scales held; see `Scaled`."""


class ScaledMLP(Scaled, MLP):
    """The base learner on keys, its scales held; see `Scaled`."""


class Views(Network):
    """An embedding that looks several times: the key of an image is the mean of those of its views.

    It does so where nothing is differentiated. Loss gradients, the meta information, are of the images as they are.

    Args:
        network: the embedding, a `Network`.
        views: one or both of 'shifted': four more views, shifted left, right, up and down by a 14th of the sides, what
            comes in being the outermost pixels again; 'mirrored': each view and its mirror image. Separate both by a
            comma and a space.

    Raises:
        ValueError: `views` is something else, or the inputs are no images.
    """

    def __init__(self, network, views):
        names = _words('views', views, VIEWS)
        super().__init__(network.n_out)
        self.views = names
        with self.init_scope():
            self.network = network

    def add_way(self, way):
        self.network.add_way(way)

    def softmax(self, way):
        return self.network.softmax(way)

    def forward(self, x):
        if chainer.config.enable_backprop:
            return self.network(x)
        images = [chainer.as_variable(x).array]
        if images[0].ndim != 4:
            raise ValueError(f'views are of images (n, channels, height, width), not {images[0].shape}: leave them out')
        if 'shifted' in self.views:
            images = _shifted(images[0])
        if 'mirrored' in self.views:
            images += [image[..., ::-1] for image in images]
        return sum(self.network(image) for image in images) / len(images)


def _shifted(images):
    """A list of five arrays: the images (n, channels, height, width), and shifted by a 14th of their sides."""
    height, width = images.shape[2:]
    y, x = (max(1, round(side / 14)) for side in (height, width))
    wide = cuda.get_array_module(images).pad(images, ((0, 0), (0, 0), (y, y), (x, x)), 'edge')
    return [wide[:, :, y + down:y + down + height, x + right:x + right + width]
            for down, right in ((0, 0), (0, x), (0, -x), (y, 0), (-y, 0))]


def watched(memory, see):
    """A class of memories like `memory` that hands each attention, an array (n, n_support), to the function `see`."""
    class Watched(memory):
        def attention(self, queries):
            weights = super().attention(queries)
            see(weights.array)
            return weights

    return Watched


class Health(chainer.LinkHook):
    """Tells, within a `with`, whether a model is well: which layers adapt at all, and whether its memory works.

    It counts the share of each layer's fast activations that are above 0, those that are alive. Layers without an
    activation, softmax layers for one, are left out: all that they make passes. It looks at the attention that the most
    attended support example gets, as a multiple of an equal share: at 1 all examples are the same to the memory. And it
    tells how far the classes' scores of an example are apart, their standard deviation: far more than 10 is too sure.

    Args:
        model: `MetaNet`.

    Yields:
        A dict {'alive/base/conv1': list of shares, one for each call while the layer was augmented, ...,
        'attention/peak': list of multiples, the mean over queries, one for each reading of the memory,
        'scores/spread': list of deviations, the mean over examples, one for each call of an augmented softmax layer}.
    """

    def __init__(self, model):
        self.model = model
        self.name = f'Health {id(self)}'  # Chainer takes two of a name for one
        self.softmax_layers = {id(link) for link in model.links() if isinstance(link, SoftmaxLayer)}
        self.names = {id(link): 'alive' + name for name, link in model.namedlinks()
                      if isinstance(link, FastLayer) and link.activation is not None}
        self.found = {name: [] for name in (*self.names.values(), 'attention/peak', 'scores/spread')}

    def __enter__(self):
        super().__enter__()
        self.memory, peaks = self.model.memory, self.found['attention/peak']
        self.model.memory = watched(
            self.memory, lambda weights: peaks.append(float(weights.max(axis=1).mean()) * weights.shape[1]))
        return self.found

    def __exit__(self, *error):
        self.model.memory = self.memory
        super().__exit__(*error)

    def forward_postprocess(self, args):
        layer = args.link
        if id(layer) in self.names and layer.fast is not None:
            x = args.args[0] if args.args else args.kwargs['x']
            shares = [float((layer.product(x, [one], relu=False).array > 0).mean())
                      for one in layer.fast_weights(x)]
            n_sets = len(layer.fast) if isinstance(layer.fast, tuple) else 1  # those that aren't needed are dead
            self.found[self.names[id(layer)]].append(sum(shares) / n_sets)
        if id(layer) in self.softmax_layers and layer.fast is not None:
            self.found['scores/spread'].append(float(args.out.array.std(axis=1).mean()))


class Average(training.Extension):
    """A second model beside the one that is trained: the exponential moving average of all its numbers.

    The last iterate of a training by single episodes is noisy, its average is not (Polyak & Juditsky, 1992). Training
    doesn't see the average: the trained model stays what it is without it, to the last bit.

    After update i (from 0) the average keeps min(decay, (1 + i) / (10 + i)) of itself. Batch normalisation's running
    averages are averaged in the same way.

    Args:
        model: the link that is trained, on its device and with its initial weights.
        decay: the share that the average keeps, at least 0 and below 1; 0.999 remembers about 1,000 updates.

    Attributes:
        model: the averaged model, of the same class, on the same device.

    Raises:
        ValueError: the decay is out of its range; a parameter has no shape yet; the trained model has got other arrays
            since.
    """

    trigger = 1, 'iteration'
    priority = training.PRIORITY_WRITER + 1  # before the tests of an epoch
    default_name = 'average'

    def __init__(self, model, decay):
        if not 0 <= decay < 1:
            raise ValueError(f'decay = {decay}: must be at least 0 and below 1')
        check_shapes(model)
        self.trained = model
        self.model = model.copy('copy')
        self.model.cleargrads()
        self.decay = decay
        self.n_updates = 0

    def __call__(self, trainer):
        rate = 1 - min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        self.n_updates += 1
        averages, values = list(_arrays(self.model)), list(_arrays(self.trained))
        if [array.shape for array in averages] != [array.shape for array in values]:
            raise ValueError('the model has other arrays than when its average was made: make Average after add_ways')
        for average, value in zip(averages, values):
            if isinstance(average, cuda.ndarray):
                kernels.average(average, value, rate)
            else:
                average += rate * (value - average)

    def serialize(self, serializer):
        self.n_updates = int(serializer('n_updates', self.n_updates))
        self.model.serialize(serializer['model'])


def _arrays(model):
    """All float arrays that make up a model: its parameters and what its links keep beside them."""
    for link in model.links():
        for name in sorted(link._params | link._persistent):
            value = getattr(link, name)
            array = value.array if name in link._params else value
            if isinstance(array, (numpy.ndarray, cuda.ndarray)) and array.dtype.kind == 'f':
                yield array
