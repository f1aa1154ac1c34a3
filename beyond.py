"""What is not in the paper: each has a setting of its own in the scripts, and is named in every line of results."""
import chainer_compat  # noqa: F401  (before Chainer)
from chainer import training


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
    priority = training.PRIORITY_EDITOR  # before tests and logs
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
