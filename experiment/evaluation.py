"""Tests of a model on episodes: single ones, those after every epoch, and the choice of the best model by them."""
import contextlib
import os

import numpy as np
from tqdm import tqdm

from experiment.console import warn
from experiment.models import save_models, settings_in
from experiment.processes import shared, worth
from ops.blocks import one_blas_thread
from ops.compat import chainer, training

WATCHED = 10  # test episodes of an epoch in which a model's layers are looked at


def test(model, sampler, n_episodes, progress=None):
    """Tests the model, without learning; many episodes on all cores of a CPU.

    Args:
        model: a link whose `loss(episode)` reports `loss` and `accuracy`.
        sampler: `data.EpisodeSampler` of test episodes.
        n_episodes: how many to draw.
        progress: what a progress bar says, in a terminal; None for no bar.

    Returns:
        float array (n_episodes, 2): mean loss and accuracy (0 to 1) of each episode's query set.
    """
    results, n_processes = None, worth(model, n_episodes)
    with tqdm(total=n_episodes, desc=progress, leave=False, disable=True if progress is None else None) as bar:
        if n_processes > 1:
            results = shared(_test, model, sampler, n_episodes, n_processes, bar.update)
        if results is None:
            bar.reset()
            results = []
            for _ in range(n_episodes):
                results += _test(model, sampler, 1)
                bar.update()
    return np.array(results)


def _test(model, sampler, n_episodes):
    """Results of the next episodes, a list of [loss, accuracy]."""
    results = []
    reporter = chainer.Reporter()
    reporter.add_observer('test', model)
    for _ in range(n_episodes):
        observation = {}
        with one_blas_thread(), chainer.no_backprop_mode(), chainer.using_config('train', False), (
                reporter.scope(observation)):
            model.loss(sampler.sample())
        try:
            results.append([float(chainer.as_array(observation[f'test/{name}'])) for name in ('loss', 'accuracy')])
        except KeyError as error:
            raise ValueError(f'{type(model).__name__}.loss does not report its loss and its accuracy: let it call '
                             "chainer.report({'loss': ..., 'accuracy': ...}, self)") from error
    return results


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
    from sklearn.neighbors import NearestNeighbors  # takes a second, which --help and workers do without
    accuracies, device = [], sampler.xp
    sampler.xp = np  # scikit-learn's place
    try:
        for _ in range(n_episodes):
            support_x, support_y, query_x, query_y = sampler.sample()
            neighbours = NearestNeighbors(n_neighbors=1).fit(support_x.reshape(len(support_x), -1))
            nearest = neighbours.kneighbors(query_x.reshape(len(query_x), -1), return_distance=False)[:, 0]
            accuracies.append(np.mean(support_y[nearest] == query_y))
    finally:
        sampler.xp = device
    return np.array(accuracies)


@contextlib.contextmanager
def _nothing(model):
    yield {}


class Tasks(training.Extension):
    """Tests the model on a few episodes every epoch, and looks at its layers meanwhile.

    Reports `NAME/loss` and `NAME/accuracy` for each sampler, `average/NAME/loss` and `average/NAME/accuracy` for the
    averaged model on the same episodes, and what `watch` finds.

    Args:
        model: a link, as for `test`.
        samplers: {name, such as test/5-way: `data.EpisodeSampler`}.
        n_episodes: episodes of each sampler.
        same: whether each epoch has the same episodes.
        average: the averaged model, if there is one.
        watch: function of the model that returns a context manager, within which it is tested on the first 10
            episodes; that yields a dict {name: list of numbers}, whose means are reported.
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
        n_watched = min(WATCHED, self.n_episodes)
        first = {}
        with self.watch(self.model) as found:
            for name, sampler in self.samplers.items():
                sampler.set_state(starts[name])
                first[name] = test(self.model, sampler, n_watched)
        for name, sampler in self.samplers.items():  # which is where its first episodes ended
            results = [first[name]]
            if self.n_episodes > n_watched:
                results.append(test(self.model, sampler, self.n_episodes - n_watched))
            self._report(name, np.concatenate(results))
        if self.average is not None:
            for name, sampler in self.samplers.items():
                sampler.set_state(starts[name])
                self._report(f'average/{name}', test(self.average, sampler, self.n_episodes))
        chainer.report({name: np.mean(values) for name, values in found.items() if values})

    @staticmethod
    def _report(name, results):
        loss, accuracy = results.mean(axis=0)
        chainer.report({f'{name}/loss': loss, f'{name}/accuracy': accuracy})

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
        dev_accuracy: name under which it is reported.
        name: name of the test tasks, such as test/5-way.
        sampler: `data.EpisodeSampler` of test episodes; each test has the same ones.
        n_episodes: test episodes.
    """

    trigger = 1, 'epoch'
    priority = training.PRIORITY_WRITER - 1  # after the dev tasks
    default_name = 'best'

    def __init__(self, model, weights, settings, path, dev_accuracy, name, sampler, n_episodes):
        self.model = model
        self.weights = weights
        self.settings = settings
        self.path = path
        self.dev_accuracy = dev_accuracy
        self.name = name
        self.sampler = sampler
        self.start = sampler.get_state()
        self.n_episodes = n_episodes
        self.test_result = np.array([0, -1, 0, 0], float)

    def initialize(self, trainer):
        best = int(self.test_result[0])
        if not best:
            return
        try:
            n_trained = settings_in(self.path).get('n_trained', best)
        except (ValueError, OSError) as error:
            words = f'cannot be read ({error})' if os.path.exists(self.path) else 'is missing'
            warn(f'{self.path} {words}, the best model so far: put it back, or there will be none unless a later '
                 'epoch does better')
        else:
            if n_trained != best:
                warn(f'{self.path} is of {n_trained} training episodes, but the best model so far is that of {best}: '
                     'put that back, or what is reported will be of another one, unless a later epoch does better')

    def __call__(self, trainer):
        dev = 100 * trainer.observation[self.dev_accuracy]
        if dev > self.test_result[1]:
            self.sampler.set_state(self.start)
            results = test(self.model, self.sampler, self.n_episodes)  # takes minutes, in which the last best stays
            save_models(self.path, {self.weights: self.model}, dict(self.settings, n_trained=trainer.updater.iteration))
            chainer.report(dict(zip((f'{self.name}/loss', f'{self.name}/accuracy'), results.mean(axis=0))))
            self.test_result[:] = (trainer.updater.iteration, dev) + interval(100 * results[:, 1])

    def serialize(self, serializer):
        self.test_result[...] = serializer('test_result', self.test_result)
