"""What is not in the paper: each has a setting of its own in the scripts, and is named in every line of results."""
import numpy as np

from metanet import FastLayer, Memory, MetaNet, SoftmaxLayer
from ops.compat import F, chainer, training
from ops.lazy import made, needed

# Choices for `CentredMetaNet`'s `centred`.
CENTRED = 'fc', 'conv', 'conv, fc', 'keys', 'fc, keys', 'conv, keys', 'conv, fc, keys'


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
    softmax layers, which have no ReLU. This keeps fast activations alive, which else mostly die early.

    Args:
        centred: one or several of 'fc': the fast weights of fully connected layers; 'conv': of convolutions, which
            takes much longer, for nothing of them can be deferred (`ops.lazy`) any more; 'keys': see `CentredMemory`.
            In the order and with the commas of `CENTRED`.
        args, settings: as of `MetaNet`.

    Raises:
        ValueError: `centred` is none of `CENTRED`.
    """

    def __init__(self, *args, centred, **settings):
        if centred not in CENTRED:
            raise ValueError(f'centred = {centred!r}: choose among {", ".join(map(repr, CENTRED))}')
        super().__init__(*args, **settings)
        self.centred = centred.split(', ')
        if 'keys' in self.centred:
            self.memory = CentredMemory

    def meta_learner(self, name, gradients, layers):
        fast = super().meta_learner(name, gradients, layers)
        return [_centred(made(weights), layer.slow().ndim - 1)
                if layer.kind in self.centred and not isinstance(layer, SoftmaxLayer) else weights
                for layer, weights in zip(layers, fast)]


def _centred(weights, n_axes):
    """Weights less their mean over the last axes, those of an output's inputs."""
    return weights - F.broadcast_to(F.mean(weights, axis=tuple(range(-n_axes, 0)), keepdims=True), weights.shape)


class Health(chainer.LinkHook):
    """Tells, within a `with`, whether a model is well: which layers adapt at all, and whether the memory tells apart.

    It counts the share of each layer's fast activations that are above 0, those that are alive. Layers without an
    activation, softmax layers for one, are left out: all that they make passes. And it takes the mean cosine between
    the embeddings of different examples: near 1, they are all alike, and attention is the same for all.

    Args:
        model: `MetaNet`.

    Yields:
        A dict {'alive/base/conv1': list of shares, one for each call while the layer was augmented, ..., 'alike/keys':
        list of cosines, one for each batch that was embedded}.
    """

    name = 'Health'

    def __init__(self, model):
        self.embed = model.embed
        self.names = {id(link): 'alive' + name for name, link in model.namedlinks()
                      if isinstance(link, FastLayer) and link.activation is not None}
        self.found = {name: [] for name in (*self.names.values(), 'alike/keys')}

    def __enter__(self):
        super().__enter__()
        return self.found

    def forward_postprocess(self, args):
        layer, (x, *_) = args.link, args.args
        if id(layer) in self.names and layer.fast is not None:
            fast = needed(layer.fast, x, layer.activation)
            share = np.mean([float((layer.product(x, [one], relu=False).array > 0).mean()) for one in fast] or [0.])
            self.found[self.names[id(layer)]].append(share)
        # Not where its gradients on the support set are due.
        if layer is self.embed and len(x) > 1 and all(part.copies is None for part in layer.fast_layers()):
            self.found['alike/keys'].append(_mean_cosine(args.out.array))


def _mean_cosine(vectors):
    """Between different ones of n vectors, (n, d)."""
    n = len(vectors)
    directions = vectors / (vectors ** 2).sum(axis=1, keepdims=True).clip(1e-12, None) ** .5
    return float(((directions.sum(axis=0) ** 2).sum() - (directions ** 2).sum()) / (n * (n - 1)))


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
    """

    trigger = 1, 'iteration'
    priority = training.PRIORITY_WRITER + 1  # before the tests of an epoch
    default_name = 'average'

    def __init__(self, model, decay):
        self.trained = model
        self.model = model.copy('copy')
        self.model.cleargrads()
        self.decay = decay
        self.n_updates = 0

    def __call__(self, trainer):
        rate = 1 - min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        self.n_updates += 1
        for average, value in zip(_arrays(self.model), _arrays(self.trained)):
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
            if getattr(array, 'dtype', None) is not None and array.dtype.kind == 'f' and array.ndim:
                yield array
