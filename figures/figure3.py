"""Figure 3 of the paper: base learners with fixed random slow weights, fast ones from another's meta learner.

    python figures/figure3.py
    python figures/figure3.py --centred fc --seed 1 --out result/figure3_centred_seed1

MetaNet is trained on Omniglot as always. Every 2,000 episodes it is tested on new characters, and so are base learners
of 32 and of 128 filters in the place of its own. Nothing trains their slow weights, which stay as they were drawn. m
works coordinate by coordinate, so it makes fast weights for layers of any size. The embedding is the trained one.

The paper doesn't say how random slow weights are drawn: here as all of the paper's, uniform in [-0.1, 0.1), with an
option for Chainer's own. Every constant below may be given on the command line; the same command goes on where it was
stopped.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from experiment import console

if __name__ == '__main__':
    console.start()  # the imports below take seconds, in which Ctrl-C shall be no traceback either

import functools
import itertools

import numpy as np

import data
from beyond import CentredMetaNet
from experiment.checkpoints import claim
from experiment.console import plain_errors, say
from experiment.evaluation import interval, test
from experiment.log import record
from experiment.loop import Clipping, EpisodeUpdater, Epochs, train
from experiment.pictures import check_names, new_picture, read_table, save_picture, write_table
from experiment.settings import COMMON, as_tuple, configured, one_of, whole, wholes
from metanet import CNN, MetaNet
from ops.compat import chainer, training
from ops.device import use_device

input_path = 'data/omniglot'  # folder of Omniglot, where it is kept
out = 'result/figure3'  # folder for the training and the figure
gpu = -1  # number of the CUDA device; -1 for the CPU
seed = 0  # of initial weights, fixed weights and episodes
n_outputs_train = 5  # way, in the tests, too
n_queries = 10  # query images a class, in the tests, too
n_filters = 64  # of each convolution of the model that is trained
n_filters_fixed = 32, 128  # of each convolution of the base learners that nothing trains
initialisation_fixed = 'uniform'  # of their slow weights; 'chainer': LeCun normal
n_steps = 5  # T: d gets a task-level gradient of each group of n_support // T examples, or of one
centred = ''  # extension: what has its mean taken off, some of 'conv, fc, keys', see the README
n_epoch = 13  # epochs to train
n_episodes = 2000  # training episodes of an epoch
n_test_episodes = 400  # of each base learner, after every epoch, the same each time
alpha = 1e-3  # Adam's learning rate
clip = 10.0  # bound of the gradient's norm

CHECKS = {name: COMMON[name] for name in ('input_path', 'out', 'gpu', 'seed', 'n_outputs_train', 'n_queries',
                                          'n_filters', 'n_steps', 'centred', 'n_epoch', 'n_episodes', 'alpha', 'clip')}
CHECKS.update(n_filters_fixed=wholes(1, 1024), initialisation_fixed=one_of('uniform', 'chainer'),
              n_test_episodes=whole(2))


class OtherBases(training.Extension):
    """Tests the model, and with its embedding and meta learner other base learners, on the same episodes every epoch.

    Reports `test/32 filters/loss`, `accuracy`, and `interval`, half the width of that's 95 % interval, and so on.

    Args:
        model: the `MetaNet` that is trained.
        others: {number of filters: `MetaNet` with another base learner}.
        sampler: `data.EpisodeSampler` of the tests.
    """

    trigger = 1, 'epoch'
    priority = training.PRIORITY_WRITER
    default_name = 'other_bases'

    def __init__(self, model, others, sampler):
        self.model = model
        self.others = others
        self.sampler = sampler
        self.start = sampler.get_state()
        self.untrained = None

    def initialize(self, trainer):
        if self.untrained is None:
            self.untrained = np.array(list(self.test().values()))

    def serialize(self, serializer):
        self.untrained = serializer('untrained', self.untrained)
        # Drawn again, they could be others: with another version of NumPy, for one.
        for filters, model in self.others.items():
            model.base.serialize(serializer[f'{filters} filters'])

    def test(self):
        """{number of filters: (mean loss, mean accuracy, half width)}"""
        results = {}
        for filters, model in {n_filters: self.model, **self.others}.items():
            for part in self.model.children():
                if part.name != 'base':
                    model[part.name].copyparams(part)
            self.sampler.set_state(self.start)
            loss, accuracy = test(model, self.sampler, n_test_episodes, f'{filters} filters').T
            results[filters] = (loss.mean(), *interval(accuracy))
        return results

    def __call__(self, trainer):
        for filters, values in self.test().items():
            chainer.report({f'test/{filters} filters/{name}': value
                            for name, value in zip(('loss', 'accuracy', 'interval'), values)})


def build(settings, filters, number=0):
    """A model whose base learner has so many filters; another `number`, other initial weights."""
    np.random.seed([seed, number])
    sizes = {'in_channels': settings['channels'], 'image_size': settings['image_size']}
    kind = functools.partial(CentredMetaNet, centred=centred) if centred else MetaNet
    model = kind(CNN(filters, **sizes), CNN(n_filters, activation=None, **sizes), [n_outputs_train], n_steps)
    if not number:
        model.initialize_uniform(seed)
    elif initialisation_fixed == 'uniform':
        model.initialize_uniform([seed, number])
    return model


def run(settings):
    """The training with its tests, and the figure."""
    with plain_errors():
        check_names(out, 'figure3.csv', 'figure3.png')
        sizes = n_filters, *as_tuple(n_filters_fixed)
        if len(set(sizes)) < len(sizes):
            raise ValueError(f'n_filters = {n_filters} and n_filters_fixed = {n_filters_fixed}: give different numbers')
        device = use_device(gpu)
        classes, new_classes, source = data.omniglot(input_path, 'previous')
        sampler, test_sampler = (
            data.EpisodeSampler(part, n_outputs_train, 1, n_queries, rotate=not i, seed=(seed, i), xp=device.xp)
            for i, part in enumerate((classes, new_classes)))
        channels, image_size = data.image_shape(classes)
        digest = data.digest_of(source, classes, new_classes)
        settings = dict(settings, data=source, data_digest=digest, channels=channels, image_size=image_size)
        model, *others = (build(settings, filters, number)
                          for number, filters in enumerate(sizes))
        for one in model, *others:
            one.to_device(device)
        optimizer = chainer.optimizers.Adam(alpha).setup(model)
        optimizer.add_hook(Clipping(clip))
        claim(out, settings, {})
    trainer = training.Trainer(EpisodeUpdater(model, optimizer, sampler, n_episodes), Epochs(n_epoch), out)
    bases = OtherBases(model, dict(zip(as_tuple(n_filters_fixed), others)), test_sampler)
    trainer.extend(bases)
    log = record(trainer, source)
    train(trainer)
    with plain_errors():
        report(dict(zip(sizes, bases.untrained.tolist())), log.log)


def report(untrained, rows):
    """Writes figure3.csv and figure3.png, and prints the last accuracies."""
    path = os.path.join(out, 'figure3.csv')
    points = [(0, filters, accuracy, half) for filters, (_, accuracy, half) in untrained.items()]
    points += [(row['iteration'], filters, row[f'test/{filters} filters/accuracy'],
                row[f'test/{filters} filters/interval']) for row in rows for filters in untrained]
    write_table(path, [{'episodes': episodes, 'filters': filters, 'accuracy': round(100 * accuracy, 2),
                        'interval': round(100 * half, 2), 'centred': centred, 'seed': seed}
                       for episodes, filters, accuracy, half in points])
    draw([path], os.path.join(out, 'figure3.png'))
    for episodes, filters, accuracy, half in points[-len(untrained):]:
        kind = 'trained' if filters == n_filters else 'fixed'
        say(f'{filters} filters, {kind}: {100 * accuracy:.2f} +- {100 * half:.2f} % on {n_test_episodes} test episodes '
            f'after {episodes} episodes')


def draw(paths, picture):
    """Draws the accuracies over training: a panel for each centring, a line for each base learner and csv of a run."""
    tables = {}
    for path in paths:
        rows = read_table(path)
        tables.setdefault(rows[0]['centred'], []).append(rows)
    figure, panels = new_picture(6.5 * len(tables), 4.5, len(tables))
    for axes, (kind, runs) in zip(np.ravel(panels), sorted(tables.items())):
        for rows, style in zip(runs, itertools.cycle(('-', '--', ':', '-.'))):
            for i, filters in enumerate(dict.fromkeys(row['filters'] for row in rows)):
                chosen = [row for row in rows if row['filters'] == filters]
                axes.errorbar([int(row['episodes']) for row in chosen], [float(row['accuracy']) for row in chosen],
                              [float(row['interval']) for row in chosen], linestyle=style, color=f'C{i}', capsize=2,
                              label=f'{filters} filters, {"fixed" if i else "trained"}, seed {chosen[0]["seed"]}')
        axes.set(title=f'centred: {kind}' if kind else 'MetaNet', xlabel='training episodes', ylabel='accuracy (%)',
                 ylim=(0, 100))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    save_picture(figure, picture)


def main(words=()):
    """Runs as the constants above say, or `words`, such as ['--centred', 'fc']."""
    with configured(globals(), words, CHECKS) as (settings, _):
        run(settings)


if __name__ == '__main__':
    console.run(main)
