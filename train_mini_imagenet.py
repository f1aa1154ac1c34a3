"""Trains MetaNet on mini-ImageNet by the paper's protocol: the test number of the model that is best on dev classes.

    python train_mini_imagenet.py
    python train_mini_imagenet.py --model "partial, u" --out result/mini_imagenet_u
    python train_mini_imagenet.py --n_outputs_train 10 --nb_samples_per_class_test 3    # as the authors' script does

Every constant below may be given on the command line. Stopped by Ctrl-C or anything else, the same command goes on
where it was.
"""
import training  # first: it readies Chainer for today's NumPy

import os

import numpy as np

import data
from metanet import CNN, MLP, MetaNet

# input and output
input_path = 'data/miniImagenet'  # folder of train.npz, dev.npz and test.npz from preprocess_mini_imagenet.py
out = 'result/mini_imagenet'  # folder for log, learning curve, snapshots and the trained models
# machine
gpu = -1  # number of the CUDA device; -1 for the CPU
seed = 0  # of initial weights and episodes
# tasks
n_outputs_train = 5  # way: classes of a training episode
n_outputs_test = 5  # way of the dev and test episodes
nb_samples_per_class = 1  # shot: support images a class, training
nb_samples_per_class_test = 1  # shot: support images a class, dev and test
n_queries = 15  # query images a class
# training
n_epoch = 20  # epochs to train
n_episodes = 500  # training episodes of an epoch
n_episodes_per_update = 1  # training episodes whose mean gradient makes an update
n_dev_episodes = 400  # dev episodes after every epoch, the same each time
n_test_episodes = 400  # test episodes whenever the dev accuracy is the best so far
# model
model = 'partial'  # 'partial': b has a CNN of its own; 'partial, u': b is an MLP on the embedding u
n_filters = 32  # of each convolution
n_slow = 3  # convolutions, from the first, with batch normalisation and without fast weights
n_steps = 10  # T: task-level gradients that the support set is cut into
inserted_scale = 0.1  # bound of the weights of softmax layers for ways that aren't trained; 0.1: as the paper's all
initialisation = 'uniform'  # 'uniform': in [-0.1, 0.1), the paper; 'chainer': LeCun normal, the authors' code
# optimiser
alpha = 1e-3  # Adam's learning rate
n_decay = 0  # last epochs over which the learning rate falls linearly to 0
clip = 10.0  # bound of the gradient's norm

PAPER = 49.21  # 5-way 1-shot, table 2


def build(name, image_size, ways):
    """The model called `name`, for square colour images, with softmax layers for `ways`."""
    settings = {'in_channels': 3, 'image_size': image_size, 'n_slow': n_slow}
    embed = CNN(n_filters, activation=None, **settings)
    base = MLP(embed.n_out) if name == 'partial, u' else CNN(n_filters, **settings)
    return MetaNet(base, embed, ways, n_steps, base_on_keys=name == 'partial, u')


def main():
    settings = training.configure(globals())
    with training.plain_errors():
        training.choice('model', model, ('partial', 'partial, u'))
        training.choice('initialisation', initialisation, ('uniform', 'chainer'))
        training.at_least(1, settings, 'n_epoch', 'n_dev_episodes', 'n_test_episodes', 'n_filters', 'n_steps')
        training.whole_updates(settings)
        training.at_least(0, settings, 'inserted_scale')
        device = training.device(gpu)
        train_classes, dev_classes, test_classes, source = data.mini_imagenet(input_path)
        image_size = next(iter(train_classes.values())).shape[1]

        def sampler(classes, kind, way, shot):
            return data.EpisodeSampler(classes, way, shot, n_queries, seed=(seed, kind), xp=device.xp)

        train_sampler = sampler(train_classes, 0, n_outputs_train, nb_samples_per_class)
        dev_sampler = sampler(dev_classes, 1, n_outputs_test, nb_samples_per_class_test)
        test_sampler = sampler(test_classes, 2, n_outputs_test, nb_samples_per_class_test)

    np.random.seed(seed)
    metanet = build(model, image_size, (n_outputs_train, n_outputs_test))
    optimizer = training.set_up(metanet, settings, device)

    dev, test = ('%s/%d-way' % (part, n_outputs_test) for part in ('dev', 'test'))
    best = training.Best(metanet, settings, os.path.join(out, 'best.npz'), dev + '/accuracy', test, test_sampler,
                         n_test_episodes)
    tasks = [training.Tasks(metanet, {dev: dev_sampler}, n_dev_episodes, same=True), best]
    training.train(metanet, optimizer, train_sampler, tasks + training.decay(optimizer, settings), settings, source)

    trained, dev_accuracy, *result = best.test_result
    print('best dev accuracy %.2f %% on %d episodes, after %d training episodes'
          % (dev_accuracy, n_dev_episodes, trained))
    test_sampler.set_state(best.start)
    comparable = source == 'miniImagenet' and (n_outputs_test, nb_samples_per_class_test) == (5, 1)
    row = training.result_row('MetaNet (%s) on %s' % (model, source), test_sampler, n_test_episodes, result,
                              PAPER if comparable else None)
    training.write_results(out, [row])


if __name__ == '__main__':
    main()
