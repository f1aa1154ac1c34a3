"""Tests of a model on episodes: single ones, those after every epoch, and the choice of the best model by them."""
import contextlib

import numpy as np
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from experiment.checkpoints import save_models
from ops.blocks import one_blas_thread
from ops.compat import chainer, training


def test(model, sampler, n_episodes, progress=None):
    """Tests the model, without learning.

    Args:
        model: a link whose `loss(episode)` reports `loss` and `accuracy`.
        sampler: `data.EpisodeSampler` of test episodes.
        n_episodes: how many to draw.
        progress: what a progress bar says, in a terminal; None for no bar.

    Returns:
        float array (n_episodes, 2): mean loss and accuracy (0 to 1) of each episode's query set.
    """
    results = []
    reporter = chainer.Reporter()
    reporter.add_observer('test', model)
    for _ in tqdm(range(n_episodes), progress, leave=False, disable=True if progress is None else None):
        observation = {}
        with one_blas_thread(), chainer.no_backprop_mode(), chainer.using_config('train', False), (
                reporter.scope(observation)):
            model.loss(sampler.sample())
        results.append([float(observation[f'test/{name}'].array) for name in ('loss', 'accuracy')])
    return np.array(results)


def interval(values):
    """Mean and half width of its 95 % confidence interval (normal approximation) over episodes."""
    return np.mean(values), 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))


def pixel_accuracy(sampler, n_episodes):
    """Accuracy (0 to 1) of the nearest support image by pixels: the least that learning must beat.

    Args:
        sampler: `data.EpisodeSampler`.
        n_episodes: how many to draw.

    Returns:
        float array (n_episodes,).
    """
    accuracies = []
    for _ in range(n_episodes):
        support_x, support_y, query_x, query_y = map(chainer.backends.cuda.to_cpu, sampler.sample())
        neighbours = NearestNeighbors(n_neighbors=1).fit(support_x.reshape(len(support_x), -1))
        nearest = neighbours.kneighbors(query_x.reshape(len(query_x), -1), return_distance=False)[:, 0]
        accuracies.append(np.mean(support_y[nearest] == query_y))
    return np.array(accuracies)


@contextlib.contextmanager
def _nothing(model):
    yield {}


class Tasks(training.Extension):
    """Tests the model on a few episodes every epoch, and looks at its layers meanwhile.

    Reports `NAME/loss` and `NAME/accuracy` for each sampler, `average/NAME/loss` and `average/NAME/accuracy` for the
    averaged model on the same episodes, and `alive/LAYER` for what `watch` counts.

    Args:
        model: a link, as for `test`.
        samplers: {name, such as test/5-way: `data.EpisodeSampler`}.
        n_episodes: episodes of each sampler.
        same: whether each epoch has the same episodes.
        average: the averaged model, if there is one.
        watch: function of the model that returns a context manager, within which it is tested; that yields a dict
            {layer: list of the shares of its fast activations that are above 0}. A layer with none learns and adapts
            through its slow weights alone.
    """

    trigger = 1, 'epoch'
    priority = training.PRIORITY_WRITER
    default_name = 'tasks'

    def __init__(self, model, samplers, n_episodes, same=False, average=None, watch=_nothing):
        self.model = model
        self.average = average
        self.samplers = samplers
        self.n_episodes = n_episodes
        self.watch = watch
        self.start = {name: sampler.get_state() for name, sampler in samplers.items()} if same else {}

    def __call__(self, trainer):
        starts = {name: self.start.get(name, sampler.get_state()) for name, sampler in self.samplers.items()}
        with self.watch(self.model) as alive:
            self._test(self.model, starts)
        if self.average is not None:
            self._test(self.average, starts, 'average/')
        chainer.report({f'alive/{layer}': np.mean(shares) for layer, shares in alive.items() if shares})

    def _test(self, model, starts, prefix=''):
        for name, sampler in self.samplers.items():
            sampler.set_state(starts[name])
            loss, accuracy = test(model, sampler, self.n_episodes).mean(axis=0)
            chainer.report({f'{prefix}{name}/loss': loss, f'{prefix}{name}/accuracy': accuracy})

    def serialize(self, serializer):
        for name, sampler in self.samplers.items():
            sampler.set_state(serializer(name, sampler.get_state()))


class Best(training.Extension):
    """Keeps the model that does best on the dev tasks, and tests it: the paper's protocol for mini-ImageNet.

    Whenever the accuracy on dev tasks is above the best so far, saves the model and tests it: `test_result` is
    then (episodes trained, dev accuracy, mean, half width of the 95 % interval), in %. A test reports as `Tasks` does.

    Args:
        model: a link, as for `test`, the trained or the averaged one.
        weights: 'last' or 'average': which it is.
        settings: dict of the script's settings, with `data`, saved with the model.
        path: the npz to save the best model to.
        watched: name of the reported dev accuracy.
        name: name of the test tasks, such as test/5-way.
        sampler: `data.EpisodeSampler` of test episodes; each test has the same ones.
        n_episodes: test episodes.
    """

    trigger = 1, 'epoch'
    priority = training.PRIORITY_WRITER - 1  # after the dev tasks
    default_name = 'best'

    def __init__(self, model, weights, settings, path, watched, name, sampler, n_episodes):
        self.model = model
        self.weights = weights
        self.settings = settings
        self.path = path
        self.watched = watched
        self.name = name
        self.sampler = sampler
        self.start = sampler.get_state()
        self.n_episodes = n_episodes
        self.test_result = np.array([0, -1, 0, 0], float)

    def __call__(self, trainer):
        dev = 100 * trainer.observation[self.watched]
        if dev > self.test_result[1]:
            save_models(self.path, {self.weights: self.model}, self.settings)
            self.sampler.set_state(self.start)
            results = test(self.model, self.sampler, self.n_episodes)
            chainer.report(dict(zip((f'{self.name}/loss', f'{self.name}/accuracy'), results.mean(axis=0))))
            self.test_result[:] = (trainer.updater.iteration, dev) + interval(100 * results[:, 1])

    def serialize(self, serializer):
        self.test_result[...] = serializer('test_result', self.test_result)
