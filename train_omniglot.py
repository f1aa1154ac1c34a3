"""Trains MetaNet on Omniglot, tests it on unseen characters, and puts the result beside the paper's.

    python train_omniglot.py
    python train_omniglot.py --n_outputs_train 20 --n_outputs_test 5,20 --out result/omniglot_20way
    python train_omniglot.py --evaluate result/omniglot/model.npz --n_outputs_test 5,10,15,20

Every constant below may be given on the command line. Stopped by Ctrl-C, the same command goes on where it was; stopped
by anything else, from the end of the last epoch.
"""
import functools

import numpy as np

import data
import training
from beyond import CENTRED, Average, CentredMetaNet, LiveActivations
from metanet import CNN, MetaNet

# input and output
input_path = 'data/omniglot'  # folder of images_background.zip and images_evaluation.zip; downloaded to it if missing
split = 'previous'  # 'previous': 1200 classes train, 423 test; 'standard': 964, 659; 'dev': 1100, 100 of the 1200
out = 'result/omniglot'  # folder for log, learning curve, snapshots and the trained model
evaluate = ''  # npz of a trained model: tests it on the test classes of its own split; trains nothing, saves no results
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
rotations = 'episode'  # of training: a class is turned anew in each; extension: 'classes': its 4 turns are 4 classes
# training
n_epoch = 100  # epochs to train; a finished run goes on when this is raised
n_episodes = 100  # training episodes of an epoch
n_episodes_per_update = 1  # training episodes whose mean gradient makes an update; more than 1 is an extension
n_test_episodes = 10  # test episodes of each way after every epoch
n_final_episodes = 1000  # test episodes of each way at the end
# model
variant = 'MetaNet'  # 'MetaNet', or 'MetaNet-': no task-level fast weights in the embedding
n_filters = 64  # of each convolution
n_steps = 5  # T: task-level gradients that the support set is cut into
centred = ''  # extension: 'fc', 'conv' or 'conv, fc' keeps these layers' fast activations alive, see the README
inserted_scale = 0.1  # bound of the weights of softmax layers for ways that aren't trained; 0.1: as the paper's all
initialisation = 'uniform'  # 'uniform': all in [-0.1, 0.1), the paper; 'chainer': LeCun normal, the authors' code
# optimiser
alpha = 1e-3  # Adam's learning rate
n_decay = 0  # extension: last epochs over which the learning rate falls linearly to 0
amsgrad = False  # extension: Adam that never forgets a large gradient (Reddi et al., 2018)
clip = 10.0  # bound of the gradient's norm
clipping = 'together'  # bounds the norm of all gradients together; extension: 'apart', each parameter's on its own
average_decay = 0.999  # extension: the averaged weights, kept beside the trained ones, remember 1 / (1 - this); 0: none

# What a test depends on; all else that `evaluate` needs to know is in the npz.
TEST_SETTINGS = ('seed', 'n_outputs_test', 'nb_samples_per_class_test', 'n_queries_test', 'n_final_episodes',
                 'inserted_scale')
# One-shot accuracies of the paper, in %: trained and tested on the same way (tables 1 and 3), ...
PAPER = {
    ('previous', 'MetaNet'): {5: 98.95, 10: 98.67, 15: 97.11, 20: 97.0},
    ('previous', 'MetaNet-'): {5: 98.4, 10: 98.32, 15: 96.68, 20: 96.13},
    ('standard', 'MetaNet'): {5: 98.45, 10: 97.32, 15: 96.4, 20: 95.92},
}
# ... and MetaNet on the previous split, tested on other ways than it was trained on (table 4): way trained, tested.
PAPER_ACROSS = {
    5: {10: 96.4, 15: 93.6, 20: 93.07},
    10: {5: 99.25, 15: 96.95, 20: 96.21},
    15: {5: 99.35, 10: 98.17, 20: 96.36},
    20: {5: 99.55, 10: 98.87, 15: 97.41},
}


def build(settings, ways):
    """The untrained model of a script's settings, with softmax layers for `ways`."""
    metanet = functools.partial(CentredMetaNet, centred=settings['centred']) if settings['centred'] else MetaNet
    return metanet(CNN(settings['n_filters']), CNN(settings['n_filters'], activation=None), ways, settings['n_steps'],
                   task_level=settings['variant'] == 'MetaNet')


def load(path, ways, inserted_scale=0.1, weights=''):
    """A trained model from its npz.

    Args:
        path: `model.npz` of a finished run.
        ways: numbers of classes to tell apart; softmax layers that training hasn't seen are inserted.
        inserted_scale: these are uniform in [-inserted_scale, inserted_scale); at 0.1 as all of the paper's weights.
        weights: 'last' for the trained weights, the paper's, 'average' for their average; '' for the average where the
            file has one.

    Returns:
        `MetaNet`, on the CPU, and the settings of its training, a dict; `data` in it names what it was trained on.

    Raises:
        ValueError: the file is not such an npz.
        OSError: it cannot be read.
    """
    return training.load_model(path, lambda settings: build(settings, ways), inserted_scale, weights)


def paper_accuracies(settings, shot, source):
    """{way tested: the paper's accuracy in %} for a model of these settings, tested on `source`."""
    trained, model = settings['n_outputs_train'], (settings['split'], settings['variant'])
    if not shot == settings['nb_samples_per_class'] == 1 or not settings['data'] == source == 'Omniglot':
        return {}
    accuracies = {trained: PAPER.get(model, {}).get(trained)}
    across = PAPER_ACROSS.get(trained, {}) if model == ('previous', 'MetaNet') else {}
    return {**accuracies, **across}


def label(settings, source):
    """What was trained and on what, and on what it was tested, `source`: for the lines of results."""
    split = ', %s split' % settings['split'] if settings['data'] == 'Omniglot' else ''
    return training.result_label(training.model_name(settings['variant'], settings), settings, source, split)


def test_samplers(classes, ways, kind, xp):
    """{way: `data.EpisodeSampler` of test episodes}; another `kind`, other episodes."""
    return {way: data.EpisodeSampler(classes, way, nb_samples_per_class_test, n_queries_test, seed=(seed, kind, way),
                                     xp=xp) for way in ways}


def final_test(models, trained, samplers, source):
    """Tests `training.models` whose settings are `trained` on `source`; returns rows for `training.write_results`."""
    paper = paper_accuracies(trained, nb_samples_per_class_test, source)
    rows = []
    for weights, model in models.items():
        name = label(dict(trained, weights=weights), source)
        rows += training.final_test(model, samplers, n_final_episodes, name, paper)
    return rows


def train_model(settings, ways):
    """Trains a model and tests it."""
    with training.plain_errors():
        training.choice('variant', variant, ('MetaNet', 'MetaNet-'))
        training.choice('centred', centred, ('',) + CENTRED)
        training.choice('initialisation', initialisation, ('uniform', 'chainer'))
        training.choice('rotations', rotations, ('episode', 'classes'))
        training.choice('clipping', clipping, ('together', 'apart'))
        training.share(settings, 'average_decay')
        training.at_least(2, settings, 'n_outputs_train')
        training.at_least(1, settings, 'nb_samples_per_class', 'n_queries', 'n_epoch', 'n_test_episodes', 'n_filters',
                          'n_steps')
        training.at_least(0, settings, 'n_decay')
        training.positive(settings, 'alpha', 'clip')
        training.whole_updates(settings)
        training.folder(settings, 'out')
        device = training.device(gpu)
        train_classes, test_classes, source = data.omniglot(input_path, split)
        if rotations == 'classes':
            train_classes = data.turned(train_classes)
        sampler = data.EpisodeSampler(train_classes, n_outputs_train, nb_samples_per_class, n_queries,
                                      rotate=rotations == 'episode', seed=(seed, 0), xp=device.xp)
        epoch_samplers = test_samplers(test_classes, ways, 1, device.xp)
        final_samplers = test_samplers(test_classes, ways, 2, device.xp)
        settings = dict(settings, data=source)
        np.random.seed(seed)
        model = build(settings, (n_outputs_train,) + ways)
        optimizer = training.set_up(model, settings, device)
    average = Average(model, average_decay) if average_decay else None
    models = training.models(model, average)
    tasks = training.Tasks(model, {'test/%d-way' % way: epoch_samplers[way] for way in ways}, n_test_episodes,
                           average=models.get('average'), watch=LiveActivations)
    training.train(model, optimizer, sampler, [tasks] + training.decay(optimizer, settings), settings, average)
    training.write_results(out, n_epoch * n_episodes, final_test(models, settings, final_samplers, source))


def evaluate_model(settings, given, ways):
    """Tests the model `evaluate`; `given`: names of the settings that the command line gave."""
    with training.plain_errors():
        _, trained = load(evaluate, ways, inserted_scale)
        training.refuse_conflicts({name: settings[name] for name in given - set(TEST_SETTINGS)}, trained)
        device = training.device(gpu)
        _, test_classes, source = data.omniglot(input_path, trained['split'])
        samplers = test_samplers(test_classes, ways, 2, device.xp)
        models = {weights: load(evaluate, ways, inserted_scale, weights)[0] for weights in trained['all_weights']}
    for model in models.values():
        model.to_device(device)
    final_test(models, trained, samplers, source)


def main():
    settings, given = training.configure(globals(), several=['n_outputs_test'])
    with training.plain_errors():
        training.at_least(1, settings, 'nb_samples_per_class_test', 'n_queries_test')
        training.at_least(2, settings, 'n_final_episodes')
        training.at_least(0, settings, 'seed')
        training.at_least(0., settings, 'inserted_scale')
        training.at_least(-1, settings, 'gpu')
        training.folder(settings, 'input_path')
        ways = training.several('n_outputs_test', n_outputs_test)
    if evaluate:
        evaluate_model(settings, given, ways)
    else:
        train_model(settings, ways)


if __name__ == '__main__':
    with training.plain_interrupt():
        main()
