"""Trains MetaNet on Omniglot, tests it on unseen characters, and puts the result beside the paper's.

    python train_omniglot.py
    python train_omniglot.py --n_outputs_train 20 --n_outputs_test 5,20 --inserted_scale 0 --out result/omniglot_20way
    python train_omniglot.py --evaluate result/omniglot/model.npz --n_outputs_test 5,10,15,20 --inserted_scale 0

Every constant below may be given on the command line. Stopped by Ctrl-C, the same command goes on where it was; stopped
by anything else, from the end of the last epoch.
"""
if __name__ == '__main__':
    from experiment import console
    console.start()  # the imports below take seconds, in which Ctrl-C shall be no traceback either

import functools
import os

import numpy as np

import data
from beyond import Average, CentredMetaNet, Health, ScaledCNN, Views, scales
from experiment.checkpoints import check_folder, claim
from experiment.console import plain_errors
from experiment.evaluation import Tasks
from experiment.log import record
from experiment.loop import Clipping, EpisodeUpdater, Epochs, decay, train
from experiment.models import class_names, load_model, save_models, take_weights
from experiment.results import final_test, is_papers, model_name, result_label, tested_on, write_results
from experiment.settings import COMMON, as_tuple, configured, one_of, refuse_conflicts, refuse_images, whole, wholes
from metanet import CNN, MetaNet
from ops.compat import chainer, training
from ops.device import use_device
from variants import MetaNetPlus

# input and output
input_path = 'data/omniglot'  # folder of images_background.zip and images_evaluation.zip; downloaded to it if missing
split = 'previous'  # 'previous': 1200 classes train, 423 test; 'standard': 964, 659; 'dev': 1100, 100 of the 1200
out = 'result/omniglot'  # folder for log, learning curve, snapshots and the trained model
evaluate = ''  # npz of a trained model: tests it on the test classes of its own split; trains nothing, saves no results
evaluate_on = 'test'  # 'train': tests it on the classes it was trained on instead, to see what is lost on new ones
views = ''  # extension, with evaluate: keys are means over an image's copies, some of 'shifted, mirrored'
start_from = ''  # extension: npz of a trained model whose weights a new run starts from; '': weights of its own
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
rotations = 'episode'  # training turns each class anew by a multiple of 90 degrees; 'none': not; 'classes': 4 of each
distortion = 0.0  # extension: how far training images are turned, stretched and shifted; 1: 10 degrees, 10 %, a 14th
# training
n_epoch = 100  # epochs to train; a finished run goes on when this is raised, unless n_decay is set
n_episodes = 100  # training episodes of an epoch
n_episodes_per_update = 1  # training episodes whose mean gradient makes an update; more than 1 is an extension
n_test_episodes = 10  # test episodes of each way after every epoch
n_final_episodes = 1000  # test episodes of each way at the end
# model
variant = 'MetaNet'  # 'MetaNet-': no task-level fast weights in the embedding; 'MetaNet+': in the base learner, too
n_filters = 64  # of each convolution
n_steps = 5  # T: d gets a task-level gradient of each group of n_support // T examples, or of one
centred = ''  # extension: what has its mean taken off, some of 'conv, fc, keys', see the README
hidden_scale = 0.0  # extension: root mean square that b's last hidden layer is brought to; 0: not
fast_scale = 0.0  # extension: root mean square that fast weights of b's softmax layer are brought to; 0: not
inserted_scale = 0.1  # bound of weights of softmax layers for ways that aren't trained: the paper's 0.1; 0 does best
initialisation = 'uniform'  # 'uniform': all in [-0.1, 0.1), the paper; 'chainer': LeCun normal, the authors' code
# optimiser
alpha = 1e-3  # Adam's learning rate
n_decay = 0  # extension: last epochs over which the learning rate falls linearly to 0
inverse_decay = 0  # extension: N > 0 makes the learning rate alpha / sqrt(1 + episodes / N), however long the run
amsgrad = False  # extension: Adam that never forgets a large gradient (Reddi et al., 2018)
clip = 10.0  # bound of the gradient's norm
clipping = 'together'  # bounds the norm of all gradients together; extension: 'apart', each parameter's on its own
average_decay = 0.999  # extension: averaged weights beside the trained ones, over 1 / (1 - this) updates; 0: none

# The parts of a data set that a trained model can be tested on.
PARTS = 'train', 'test'
# What each setting may be, and the kind of images that is kept with them; those in COMMON both scripts have.
CHECKS = {
    **COMMON,
    'evaluate_on': one_of(*PARTS),
    'split': one_of(*data.SPLITS),
    'n_outputs_test': wholes(2, 10 ** 5),
    'n_queries_test': whole(1),
    'rotations': one_of('episode', 'none', 'classes'),
    'n_test_episodes': whole(1),
    'n_final_episodes': whole(2),
    'variant': one_of('MetaNet', 'MetaNet-', 'MetaNet+'),
    'channels': whole(1, 3),
    'image_size': whole(1, 4096),
}
# What models and runs of earlier versions of this script did, whose files don't say so.
EARLIER = {'data_digest': '', 'channels': 1, 'image_size': 28, 'start_from': '', 'distortion': 0.0,
           'inverse_decay': 0, 'amsgrad': False, 'clipping': 'together', 'average_decay': 0, 'hidden_scale': 0.0,
           'fast_scale': 0.0}
# What a test depends on; all else that `evaluate` needs to know is in the npz.
TEST_SETTINGS = ('evaluate_on', 'views', 'seed', 'n_outputs_test', 'nb_samples_per_class_test', 'n_queries_test',
                 'n_final_episodes', 'inserted_scale')
# The paper's sizes of a model. Others are named in results, and not compared with the paper's.
SIZES = {'n_filters': 64, 'n_steps': 5}
# One-shot accuracies of the paper, in %: trained and tested on the same way (tables 1 and 3), ...
PAPER = {
    ('previous', 'MetaNet'): {5: 98.95, 10: 98.67, 15: 97.11, 20: 97.0},
    ('previous', 'MetaNet-'): {5: 98.4, 10: 98.32, 15: 96.68, 20: 96.13},
    ('previous', 'MetaNet+'): {5: 98.45, 10: 97.05, 15: 96.48, 20: 95.08},
    ('standard', 'MetaNet'): {5: 98.45, 10: 97.32, 15: 96.4, 20: 95.92},
}
# ... and MetaNet on the previous split, tested on other ways than it was trained on (table 4): way trained, tested.
PAPER_ACROSS = {
    5: {10: 96.4, 15: 93.6, 20: 93.07},
    10: {5: 99.25, 15: 96.95, 20: 96.21},
    15: {5: 99.35, 10: 98.17, 20: 96.36},
    20: {5: 99.55, 10: 98.87, 15: 97.41},
}

# Below, the constants above are what this call of `main` was told; `settings` and `trained` are of a model, as its file
# keeps them.


def build(settings, ways):
    """The untrained model of a script's settings, with softmax layers for `ways`."""
    sizes = {'in_channels': settings['channels'], 'image_size': settings['image_size']}
    held = scales(settings)
    base = (ScaledCNN if held else CNN)(settings['n_filters'], **sizes, **held)
    embed = CNN(settings['n_filters'], activation=None, **sizes)
    if settings['variant'] == 'MetaNet+':
        return MetaNetPlus(base, embed, ways, settings['n_steps'])
    kind = functools.partial(CentredMetaNet, centred=settings['centred']) if settings['centred'] else MetaNet
    return kind(base, embed, ways, settings['n_steps'], task_level=settings['variant'] == 'MetaNet')


def usual_classes(settings):
    """The classes of what `build` makes as it stands. Others are named in results, not compared with the paper's."""
    model = ('variants.MetaNetPlus' if settings['variant'] == 'MetaNet+' else
             'beyond.CentredMetaNet' if settings.get('centred') else 'metanet.MetaNet')
    base = 'beyond.ScaledCNN' if scales(settings) else 'metanet.CNN'
    return {'class_of_model': model, 'class_of_base': base, 'class_of_embed': 'metanet.CNN'}


def train_model(settings):
    """Trains a model and tests it."""
    ways = as_tuple(n_outputs_test)
    with plain_errors():
        check_folder(out)
        device = use_device(gpu)
        train_classes, test_classes, source = data.omniglot(input_path, split)
        digest = data.digest_of(source, train_classes, test_classes)
        if rotations == 'classes':
            train_classes = data.turned(train_classes)
        sampler = data.EpisodeSampler(train_classes, n_outputs_train, nb_samples_per_class, n_queries,
                                      rotate=rotations == 'episode', seed=(seed, 0), xp=device.xp,
                                      distortion=distortion)
        epoch_samplers = test_samplers(test_classes, ways, 1, device.xp)
        final_samplers = test_samplers(test_classes, ways, 2, device.xp)
        channels, image_size = data.image_shape(train_classes)
        settings = dict(settings, data=source, data_digest=digest, channels=channels, image_size=image_size)

        np.random.seed(seed)
        model = build(settings, (n_outputs_train, *ways))
        if initialisation == 'uniform':
            model.initialize_uniform(seed, way=n_outputs_train)
        model.initialize_inserted(n_outputs_train, seed, inserted_scale)
        if start_from:
            take_weights(out, start_from, load, model, settings)
        model.to_device(device)
        settings.update(class_names(model, usual_classes(settings)))
        optimizer = chainer.optimizers.Adam(alpha, amsgrad=amsgrad).setup(model)
        optimizer.add_hook(Clipping(clip, clipping == 'apart'))
        claim(out, settings, EARLIER)

    updater = EpisodeUpdater(model, optimizer, sampler, n_episodes, n_episodes_per_update)
    trainer = training.Trainer(updater, Epochs(n_epoch), out)
    models = {'last': model}
    if average_decay:
        average = Average(model, average_decay)
        models['average'] = average.model
        trainer.extend(average)
    trainer.extend(Tasks(model, {f'test/{way}-way': tests for way, tests in epoch_samplers.items()},
                         n_test_episodes, average=models.get('average'), watch=Health))
    if n_decay or inverse_decay:
        trainer.extend(decay(updater, n_epoch, n_decay, inverse_decay))
    record(trainer, source)
    train(trainer)

    with plain_errors(OSError):
        save_models(os.path.join(out, 'model.npz'), models, settings)
    keep = functools.partial(write_results, out, updater.iteration)
    test_models(models, settings, final_samplers, source, keep)


def evaluate_model(settings, given):
    """Tests the model `evaluate`; `given`: names of the settings that the command line gave."""
    ways = as_tuple(n_outputs_test)
    with plain_errors():
        _, trained = load(evaluate, ways, inserted_scale)
        refuse_conflicts({name: settings[name] for name in given - set(TEST_SETTINGS)}, trained)
        device = use_device(gpu)
        *parts, source = data.omniglot(input_path, trained['split'])
        classes = dict(zip(PARTS, parts))[evaluate_on]
        refuse_images(trained, data.image_shape(classes), input_path)
        source = tested_on(source, data.digest_of(source, *parts), trained)
        samplers = test_samplers(classes, ways, 2, device.xp)
        models = {weights: load(evaluate, ways, inserted_scale, weights)[0] for weights in trained['all_weights']}
        for model in models.values():
            if views:
                model.embed = Views(model.embed, views)
            model.to_device(device)
    tested = dict(trained, views=views, inserted_scale=inserted_scale)
    test_models(models, tested, samplers, source, classes=evaluate_on)


def test_samplers(classes, ways, kind, xp):
    """{way: `data.EpisodeSampler` of test episodes}; another `kind`, other episodes."""
    return {way: data.EpisodeSampler(classes, way, nb_samples_per_class_test, n_queries_test, seed=(seed, kind, way),
                                     xp=xp) for way in ways}


def test_models(models, trained, samplers, source, keep=None, classes='test'):
    """Tests models whose settings are `trained` on `source`: {'last': model, 'average': model}, or one of the two."""
    paper = paper_accuracies(trained, nb_samples_per_class_test, source) if classes == 'test' else {}
    for weights, model in models.items():
        words = label(dict(trained, weights=weights), source, classes)
        final_test(model, samplers, n_final_episodes, words, paper, keep)


def paper_accuracies(settings, shot, source):
    """{way tested: the paper's accuracy in %} for a model of these settings, tested on `source`."""
    trained, model = settings['n_outputs_train'], (settings['split'], settings['variant'])
    if not shot == settings['nb_samples_per_class'] == 1 or not settings['data'] == source == 'Omniglot':
        return {}
    if not is_papers(settings, usual_classes(settings), SIZES):
        return {}
    accuracies = {trained: PAPER.get(model, {}).get(trained)}
    across = PAPER_ACROSS.get(trained, {}) if model == ('previous', 'MetaNet') else {}
    return {**accuracies, **across}


def label(settings, source, classes='test'):
    """What was trained and on what, and on what it was tested, classes of `source`: for the lines of results."""
    detail = f', {settings["split"]} split' if settings['data'] == 'Omniglot' else ''
    name = model_name(settings['variant'], settings, usual_classes(settings), SIZES)
    return result_label(name, settings, source, detail, classes)


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
    return load_model(path, ways, inserted_scale, weights, build, usual_classes, CHECKS, EARLIER)


def main(words=()):
    """Trains, or tests the model `evaluate`: as the constants above say, or `words`, such as ['--n_epoch', '200']."""
    with configured(globals(), words, CHECKS) as (settings, given):
        if evaluate:
            evaluate_model(settings, given)
        else:
            train_model(settings)


if __name__ == '__main__':
    console.run(main)
