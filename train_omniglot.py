"""Trains MetaNet on Omniglot, tests it on unseen characters, and puts the result beside the paper's.

    python train_omniglot.py
    python train_omniglot.py --n_outputs_train 20 --n_outputs_test 5,20 --out result/omniglot_20way

Every constant below may be given on the command line. Stopped by Ctrl-C or anything else, the same command goes on
where it was.
"""
import training  # first: it readies Chainer for today's NumPy

import chainer
import numpy as np

import data
from metanet import CNN, MetaNet

# input and output
input_path = 'data/omniglot'  # folder of images_background.zip and images_evaluation.zip; downloaded to it if missing
split = 'previous'  # 'previous': 1200 classes train, 423 test; 'standard': 964, 659; 'dev': 1100, 100 of the 1200
out = 'result/omniglot'  # folder for log, learning curve, snapshots and the trained model
# machine
gpu = -1  # number of the CUDA device; -1 for the CPU
seed = 0  # of initial weights and episodes
# tasks
n_outputs_train = 5  # way: classes of a training episode
n_outputs_test = 5  # way of the test episodes, or several: 5, 10, 15, 20
nb_samples_per_class = 1  # shot: support images a class, training
nb_samples_per_class_test = 1  # shot: support images a class, test
n_queries = 10  # query images a class, training
n_queries_test = 10  # query images a class, test
# training
n_epoch = 100  # epochs to train; a finished run goes on when this is raised
n_episodes = 100  # training episodes of an epoch
n_test_episodes = 10  # test episodes of each way after every epoch
n_final_episodes = 1000  # test episodes of each way at the end
# model
variant = 'MetaNet'  # 'MetaNet', or 'MetaNet-': no task-level fast weights in the embedding
n_filters = 64  # of each convolution
n_steps = 5  # T: task-level gradients that the support set is cut into
centred = False  # True: an extension that keeps the convolutions' fast weights alive, see the README
initialisation = 'uniform'  # 'uniform': all in [-0.1, 0.1), the paper; 'chainer': LeCun normal, the authors' code
# optimiser
alpha = 1e-3  # Adam's learning rate
n_decay = 0  # last epochs over which the learning rate falls linearly to 0
clip = 10.0  # bound of the gradient's norm

# One-shot accuracies in the paper's tables 1 and 3, trained and tested on the same way.
PAPER = {
    ('previous', 'MetaNet'): {5: 98.95, 10: 98.67, 15: 97.11, 20: 97.0},
    ('previous', 'MetaNet-'): {5: 98.4, 10: 98.32, 15: 96.68, 20: 96.13},
    ('standard', 'MetaNet'): {5: 98.45, 10: 97.32, 15: 96.4, 20: 95.92},
}


def main():
    settings = training.configure(globals())
    with training.plain_errors():
        training.choice('variant', variant, ('MetaNet', 'MetaNet-'))
        training.choice('initialisation', initialisation, ('uniform', 'chainer'))
        training.at_least_one(settings, 'n_epoch', 'n_episodes', 'n_test_episodes', 'n_final_episodes', 'n_filters',
                              'n_steps')
        ways = training.several('n_outputs_test', n_outputs_test)
        device = training.device(gpu)
        train_classes, test_classes, source = data.omniglot(input_path, split)

        def test_sampler(way, kind):
            return data.EpisodeSampler(test_classes, way, nb_samples_per_class_test, n_queries_test,
                                       seed=(seed, kind, way), xp=device.xp)

        sampler = data.EpisodeSampler(train_classes, n_outputs_train, nb_samples_per_class, n_queries, rotate=True,
                                      seed=(seed, 0), xp=device.xp)
        epoch_samplers = {'test/%d-way' % way: test_sampler(way, 1) for way in ways}
        final_samplers = {way: test_sampler(way, 2) for way in ways}

    np.random.seed(seed)
    model = MetaNet(CNN(n_filters), CNN(n_filters, activation=None), (n_outputs_train,) + ways, n_steps,
                    task_level=variant == 'MetaNet', centred=centred)
    if initialisation == 'uniform':
        model.initialize_uniform(seed)
    model.to_device(device)
    optimizer = chainer.optimizers.Adam(alpha).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(clip))

    tasks = [training.Tasks(model, epoch_samplers, n_test_episodes)]
    training.train(model, optimizer, sampler, tasks + training.decay(optimizer, settings), settings, source)
    paper = PAPER.get((split, variant), {}) if nb_samples_per_class_test == 1 and source == 'Omniglot' else {}
    training.final_test(model, final_samplers, n_final_episodes, out, '%s on %s' % (variant, source), paper)


if __name__ == '__main__':
    main()
