"""Trains a prototypical network with MetaNet's embedding on mini-ImageNet, to see that data and protocol are right.

    python tools/prototypical.py
    python tools/prototypical.py --scale 0.01 --n_epoch 7 --n_episodes 1000 --n_halve 3

The embedding is u of the "partial" model on slow weights alone, all five convolutions with batch normalisation. A class
is the mean of its support examples' keys, a query belongs to the nearest (Snell, Swersky & Zemel, 2017). The result is
the test accuracy at the best dev accuracy, as for MetaNet. Every constant below may be given on the command line.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from experiment import console

if __name__ == '__main__':
    console.start()  # the imports below take seconds, in which Ctrl-C shall be no traceback either

import numpy as np

import data
from experiment.checkpoints import check_folder, claim
from experiment.evaluation import Best, Tasks
from experiment.log import record
from experiment.loop import EpisodeUpdater, Epochs, train
from experiment.results import report_result, write_results
from experiment.settings import COMMON, configured, whole
from metanet import CNN
from ops.checks import check_episode
from ops.compat import F, chainer, extensions, training

input_path = 'data/miniImagenet'  # folder of train.npz, dev.npz and test.npz from preprocess_mini_imagenet.py
out = 'result/prototypical'  # folder for log, learning curve, snapshots and the best model
seed = 0  # of initial weights and episodes
n_outputs_train = 20  # way of training
n_outputs_test = 5  # way of the dev and test episodes
nb_samples_per_class = 1  # shot
n_queries = 5  # query images a class, training
n_queries_test = 15  # query images a class, dev and test
n_epoch = 20  # epochs to train
n_episodes = 500  # training episodes of an epoch
n_dev_episodes = 400  # dev episodes after every epoch, the same each time
n_test_episodes = 600  # test episodes whenever the dev accuracy is the best so far
n_filters = 32  # of each convolution
scale = 1.0  # what squared distances are multiplied by; 1: as published, so that the softmax is saturated for long
alpha = 1e-3  # Adam's learning rate
n_halve = 4  # epochs after which it is halved, again and again

CHECKS = {name: COMMON[name] for name in ('input_path', 'out', 'seed', 'n_outputs_train', 'nb_samples_per_class',
                                          'n_queries', 'n_epoch', 'n_episodes', 'n_filters', 'alpha')}
CHECKS.update(n_outputs_test=whole(2, 10 ** 5), n_queries_test=whole(1), n_dev_episodes=whole(1),
              n_test_episodes=whole(2), n_halve=whole(1), scale=COMMON['alpha'])


class PrototypicalNetwork(chainer.Chain):
    """Classifies by the nearest mean of keys.

    Args:
        embed: a `metanet.Network`, whose output is an example's key.
        scale: of the squared distances.
    """

    def __init__(self, embed, scale=1.0):
        super().__init__()
        self.scale = scale
        with self.init_scope():
            self.embed = embed

    def forward(self, support_x, support_y, query_x):
        """Class scores, minus scaled squared distances to the classes' prototypes; shapes as of `MetaNet.forward`."""
        way = check_episode(support_x, support_y, query_x, self)
        keys = self.embed(np.concatenate((support_x, query_x)))  # normalised as one batch
        support, queries = keys[:len(support_x)], keys[len(support_x):]
        members = np.eye(way, dtype=np.float32)[support_y].T  # (way, n_support)
        prototypes = F.matmul(members / members.sum(axis=1, keepdims=True), support)
        squares = F.sum(prototypes ** 2, axis=1)
        # Less |query|^2, which all classes have in common.
        scores = 2 * F.matmul(queries, prototypes, transb=True) - F.broadcast_to(squares, (len(queries), way))
        return self.scale * scores

    def loss(self, episode):
        """The query set's mean cross-entropy; reports it as `loss`, and `accuracy`."""
        scores = self(episode.support_x, episode.support_y, episode.query_x)
        loss = F.softmax_cross_entropy(scores, episode.query_y)
        chainer.report({'loss': loss, 'accuracy': F.accuracy(scores, episode.query_y)}, self)
        return loss


def train_model(settings):
    """Trains a prototypical network and tests it by the paper's protocol."""
    with console.plain_errors():
        check_folder(out)
        *parts, source = data.mini_imagenet(input_path)
        sampler, dev_sampler, test_sampler = (
            data.EpisodeSampler(classes, way, nb_samples_per_class, queries, seed=(seed, i))
            for i, (classes, way, queries) in enumerate(zip(
                parts, (n_outputs_train, n_outputs_test, n_outputs_test), (n_queries, n_queries_test, n_queries_test))))
        channels, image_size = data.image_shape(parts[0])
        settings = dict(settings, data=source, data_digest=data.digest_of(source, *parts))
        np.random.seed(seed)
        model = PrototypicalNetwork(CNN(n_filters, None, channels, image_size, n_slow=5), scale)
        optimizer = chainer.optimizers.Adam(alpha).setup(model)
        claim(out, settings, {})

    updater = EpisodeUpdater(model, optimizer, sampler, n_episodes)
    trainer = training.Trainer(updater, Epochs(n_epoch), out)
    dev_tasks, test_tasks = f'dev/{n_outputs_test}-way', f'test/{n_outputs_test}-way'
    trainer.extend(Tasks(model, {dev_tasks: dev_sampler}, n_dev_episodes, same=True))
    best = Best(model, 'last', settings, os.path.join(out, 'best.npz'), f'{dev_tasks}/accuracy', test_tasks,
                test_sampler, n_test_episodes)
    trainer.extend(best)
    trainer.extend(extensions.ExponentialShift('alpha', 0.5, alpha, optimizer=optimizer), trigger=(n_halve, 'epoch'))
    record(trainer, source)
    train(trainer)

    n_trained, _, *result = best.test_result
    test_sampler.set_state(best.start)
    scaled = '' if scale == 1 else f' (distances times {scale})'
    report_result(f'prototypical network{scaled} trained {n_outputs_train}-way, on {source}', test_sampler,
                  n_test_episodes, result, None, lambda row: write_results(out, int(n_trained), row))


def main(words=()):
    """Trains as the constants above say, or `words`, such as ['--n_epoch', '40']."""
    with configured(globals(), words, CHECKS) as (settings, _):
        train_model(settings)


if __name__ == '__main__':
    console.run(main)
