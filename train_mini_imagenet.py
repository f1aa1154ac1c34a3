"""Trains MetaNet on mini-ImageNet by the paper's protocol: the test number of the model that is best on dev classes.

    python train_mini_imagenet.py
    python train_mini_imagenet.py --model "partial, u" --out result/mini_imagenet_u
    python train_mini_imagenet.py --n_outputs_train 10 --nb_samples_per_class_test 3    # as the authors' script does
    python train_mini_imagenet.py --evaluate result/mini_imagenet/best.npz --nb_samples_per_class_test 5

Every constant below may be given on the command line. Stopped by Ctrl-C, the same command goes on where it was; stopped
by anything else, from the end of the last epoch.
"""
import functools
import os

import numpy as np

import data
import training
from beyond import CENTRED, Average, CentredMetaNet, LiveActivations
from metanet import CNN, MLP, MetaNet

# input and output
input_path = 'data/miniImagenet'  # folder of train.npz, dev.npz and test.npz from preprocess_mini_imagenet.py
out = 'result/mini_imagenet'  # folder for log, learning curve, snapshots and the trained models
evaluate = ''  # npz of a trained model, best.npz or model.npz: tests it; trains nothing, saves no results
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
n_episodes_per_update = 1  # training episodes whose mean gradient makes an update; more than 1 is an extension
n_dev_episodes = 400  # dev episodes after every epoch, the same each time
n_test_episodes = 400  # test episodes whenever the dev accuracy is the best so far
# model
model = 'partial'  # 'partial': b has a CNN of its own; 'partial, u': b is an MLP on the embedding u
n_filters = 32  # of each convolution
n_slow = 3  # convolutions, from the first, with batch normalisation and without fast weights
n_steps = 10  # T: task-level gradients that the support set is cut into
centred = ''  # extension: 'fc', 'conv' or 'conv, fc' keeps these layers' fast activations alive, see the README
inserted_scale = 0.1  # bound of the weights of softmax layers for ways that aren't trained; 0.1: as the paper's all
initialisation = 'uniform'  # [-0.1, 0.1), the paper, but for batch normalisation; 'chainer': LeCun normal, the authors
# optimiser
alpha = 1e-3  # Adam's learning rate
n_decay = 0  # extension: last epochs over which the learning rate falls linearly to 0
amsgrad = False  # extension: Adam that never forgets a large gradient (Reddi et al., 2018)
clip = 10.0  # bound of the gradient's norm
clipping = 'together'  # bounds the norm of all gradients together; extension: 'apart', each parameter's on its own
average_decay = 0.999  # extension: the averaged weights, kept beside the trained ones, remember 1 / (1 - this); 0: none

# What a test depends on; all else that `evaluate` needs to know is in the npz.
TEST_SETTINGS = ('seed', 'n_outputs_test', 'nb_samples_per_class_test', 'n_queries', 'n_test_episodes',
                 'inserted_scale')
PAPER = 49.21  # 5-way 1-shot, table 2, in %


def build(settings, ways):
    """The untrained model of a script's settings and `image_size`, with softmax layers for `ways`."""
    sizes = {'in_channels': 3, 'image_size': settings['image_size'], 'n_slow': settings['n_slow']}
    on_keys = settings['model'] == 'partial, u'
    embed = CNN(settings['n_filters'], activation=None, **sizes)
    base = MLP(embed.n_out) if on_keys else CNN(settings['n_filters'], **sizes)
    metanet = functools.partial(CentredMetaNet, centred=settings['centred']) if settings['centred'] else MetaNet
    return metanet(base, embed, ways, settings['n_steps'], base_on_keys=on_keys)


def load(path, ways, inserted_scale=0.1, weights=''):
    """A trained model, `best.npz`, `best_average.npz` or `model.npz`; see `train_omniglot.load`."""
    return training.load_model(path, lambda settings: build(settings, ways), inserted_scale, weights)


def test_row(trained, source, sampler, result):
    """Prints the result of a test on `source` of a model whose settings are `trained`, and returns it as a row."""
    label = training.result_label(training.model_name('MetaNet', trained, trained['model']), trained, source)
    one_shot = sampler.shot == trained['nb_samples_per_class'] == 1
    comparable = trained['data'] == source == 'mini-ImageNet' and sampler.way == 5 and one_shot
    return training.result_row(label, sampler, n_test_episodes, result, PAPER if comparable else None)


def task_sampler(classes, kind, way, shot, xp):
    return data.EpisodeSampler(classes, way, shot, n_queries, seed=(seed, kind), xp=xp)


def train_model(settings):
    """Trains a model and tests it by the paper's protocol."""
    with training.plain_errors():
        training.choice('model', model, ('partial', 'partial, u'))
        training.choice('centred', centred, ('',) + CENTRED)
        training.choice('initialisation', initialisation, ('uniform', 'chainer'))
        training.choice('clipping', clipping, ('together', 'apart'))
        training.share(settings, 'average_decay')
        training.at_least(2, settings, 'n_outputs_train')
        training.at_least(1, settings, 'nb_samples_per_class', 'n_epoch', 'n_dev_episodes', 'n_filters', 'n_steps')
        training.at_least(0, settings, 'n_slow', 'n_decay')
        training.positive(settings, 'alpha', 'clip')
        training.whole_updates(settings)
        training.folder(settings, 'out')
        device = training.device(gpu)
        train_classes, dev_classes, test_classes, source = data.mini_imagenet(input_path)
        train_sampler = task_sampler(train_classes, 0, n_outputs_train, nb_samples_per_class, device.xp)
        dev_sampler = task_sampler(dev_classes, 1, n_outputs_test, nb_samples_per_class_test, device.xp)
        test_sampler = task_sampler(test_classes, 2, n_outputs_test, nb_samples_per_class_test, device.xp)
        settings = dict(settings, data=source, image_size=next(iter(train_classes.values())).shape[1])
        np.random.seed(seed)
        metanet = build(settings, (n_outputs_train, n_outputs_test))
        optimizer = training.set_up(metanet, settings, device)

    dev, test = ('%s/%d-way' % (part, n_outputs_test) for part in ('dev', 'test'))
    average = Average(metanet, average_decay) if average_decay else None
    models = training.models(metanet, average)
    paths = {'last': ('', 'best'), 'average': ('average/', 'best_average')}
    bests = {}
    for weights, model_of_them in models.items():
        prefix, name = paths[weights]
        bests[weights] = training.Best(model_of_them, weights, settings, os.path.join(out, name + '.npz'),
                                       prefix + dev + '/accuracy', prefix + test, test_sampler, n_test_episodes)
    tasks = training.Tasks(metanet, {dev: dev_sampler}, n_dev_episodes, same=True, average=models.get('average'),
                           watch=LiveActivations)
    extras = [tasks, *bests.values()] + training.decay(optimizer, settings)
    training.train(metanet, optimizer, train_sampler, extras, settings, average)

    for weights, best in bests.items():
        n_trained, dev_accuracy, *result = best.test_result
        print('%s: best dev accuracy %.2f %% on %d episodes, after %d training episodes'
              % (training.WEIGHTS[weights], dev_accuracy, n_dev_episodes, n_trained))
        test_sampler.set_state(best.start)
        row = test_row(dict(settings, weights=weights), source, test_sampler, result)
        training.write_results(out, int(n_trained), [row])


def evaluate_model(settings, given):
    """Tests the model `evaluate`; `given`: names of the settings that the command line gave."""
    with training.plain_errors():
        _, trained = load(evaluate, [n_outputs_test], inserted_scale)
        training.refuse_conflicts({name: settings[name] for name in given - set(TEST_SETTINGS)}, trained)
        device = training.device(gpu)
        _, _, test_classes, source = data.mini_imagenet(input_path)
        size = next(iter(test_classes.values())).shape[1]
        if size != trained['image_size']:
            raise ValueError('%s was trained on images of size %d, those in %s have size %d: give images of its size '
                             '(input_path)' % (evaluate, trained['image_size'], input_path, size))
        sampler = task_sampler(test_classes, 2, n_outputs_test, nb_samples_per_class_test, device.xp)
    start = sampler.get_state()
    for weights in trained['all_weights']:
        metanet, trained = load(evaluate, [n_outputs_test], inserted_scale, weights)
        metanet.to_device(device)
        sampler.set_state(start)
        result = training.interval(100 * training.test(metanet, sampler, n_test_episodes, 'test')[:, 1])
        sampler.set_state(start)
        test_row(trained, source, sampler, result)


def main():
    settings, given = training.configure(globals())
    with training.plain_errors():
        training.at_least(2, settings, 'n_outputs_test', 'n_test_episodes')
        training.at_least(1, settings, 'nb_samples_per_class_test', 'n_queries')
        training.at_least(0, settings, 'seed')
        training.at_least(0., settings, 'inserted_scale')
        training.at_least(-1, settings, 'gpu')
        training.folder(settings, 'input_path')
    if evaluate:
        evaluate_model(settings, given)
    else:
        train_model(settings)


if __name__ == '__main__':
    with training.plain_interrupt():
        main()
