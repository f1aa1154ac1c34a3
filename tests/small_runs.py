"""Small runs for the tests of the training loop and of the scripts."""
import contextlib
import csv
import os
import signal

import numpy as np

import beyond
import data
from experiment.checkpoints import claim
from experiment.evaluation import Tasks
from experiment.log import record
from experiment.loop import Clipping, EpisodeUpdater, Epochs, decay, train
from experiment.models import save_models
from ops.compat import F, L, chainer, training

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
CLASSES = data.synthetic_strokes(12, seed=1)


class StopAt(data.EpisodeSampler):
    """Presses Ctrl-C while its nth episode is being drawn."""

    def __init__(self, n, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.n = n

    def sample(self):
        self.n -= 1
        if self.n == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sample()


def sampler(seed=0, **options):
    return data.EpisodeSampler(CLASSES, 3, 1, 2, seed=seed, **options)


class Classifier(chainer.Chain):
    """A link with a `loss`, which is all that the training loop wants of a model: here of the support set."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.l1 = L.Linear(28 * 28, 6)
            self.bn = L.BatchNormalization(6)
            self.l2 = L.Linear(6, 3)

    def loss(self, episode):
        scores = self.l2(F.relu(self.bn(self.l1(episode.support_x))))
        loss = F.softmax_cross_entropy(scores, episode.support_y)
        chainer.report({'loss': loss, 'accuracy': F.accuracy(scores, episode.support_y)}, self)
        return loss

    @contextlib.contextmanager
    def watch(self):
        yield {'alive/l1': [0.25, 0.75], 'alive/l2': []}


def run(out, n_epoch, stop_at=-1, n_episodes=3, n_episodes_per_update=1, n_decay=0, alpha=1e-3,
        source='synthetic strokes', inverse_decay=0, before=lambda trainer: None):
    """Trains a `Classifier` on synthetic strokes, and returns it; `before` gets the trainer when all else is ready."""
    out = str(out)
    settings = {'out': out, 'n_epoch': n_epoch, 'n_decay': n_decay, 'alpha': alpha, 'data': source}
    np.random.seed(0)
    model = Classifier()
    optimizer = chainer.optimizers.Adam(alpha).setup(model)
    optimizer.add_hook(Clipping(10))
    claim(out, settings, {})
    updater = EpisodeUpdater(model, optimizer, StopAt(stop_at, CLASSES, 3, 1, 2, rotate=True, seed=0), n_episodes,
                             n_episodes_per_update)
    trainer = training.Trainer(updater, Epochs(n_epoch), out)
    average = beyond.Average(model, 0.9)
    trainer.extend(average)
    trainer.extend(Tasks(model, {'test/3-way': sampler(1)}, 2, average=average.model, watch=Classifier.watch))
    if n_decay or inverse_decay:
        trainer.extend(decay(updater, n_epoch, n_decay, inverse_decay))
    record(trainer, source)
    before(trainer)
    train(trainer)
    save_models(os.path.join(out, 'model.npz'), {'last': model, 'average': average.model}, settings)
    model.average = average.model  # not a child: for the tests to look at
    return model


def same(model, other):
    """Whether two models have the same parameters, and so have their averages, if both have one."""
    return all((a.array == b.array).all() for a, b in zip(model.params(), other.params())) and (
        not (hasattr(model, 'average') and hasattr(other, 'average')) or same(model.average, other.average))


def rows(out, timeless=True):
    """The rows of a run's log, dicts; `timeless`: without what is different each time."""
    with open(os.path.join(str(out), 'log.csv'), newline='', encoding='utf-8') as file:
        return [{key: value for key, value in row.items() if not timeless or key not in ('seconds', 'elapsed_time')}
                for row in csv.DictReader(file)]


def content(folder):
    """{name: bytes} of the files in a folder."""
    return {name: (folder / name).read_bytes() for name in os.listdir(folder) if os.path.isfile(folder / name)}


def ending(function, *args, **kwargs):
    """How a call ends the program: the argument of its SystemExit."""
    try:
        function(*args, **kwargs)
    except SystemExit as error:
        return error.code
    raise AssertionError('it did not end the program')
