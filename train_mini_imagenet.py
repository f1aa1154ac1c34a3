"""Trains MetaNet on mini-ImageNet by the paper's protocol: the test number of the model that is best on dev classes.

    python train_mini_imagenet.py
    python train_mini_imagenet.py --model "partial, u" --out result/mini_imagenet_u
    python train_mini_imagenet.py --n_outputs_train 10 --nb_samples_per_class_test 3    # as the authors' script does
    python train_mini_imagenet.py --evaluate result/mini_imagenet/best.npz --nb_samples_per_class_test 5

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
from beyond import Average, CentredMetaNet, Health, ScaledCNN, ScaledMLP, Views, scales
from experiment.checkpoints import check_folder, claim
from experiment.console import plain_errors, say
from experiment.evaluation import Best, Tasks, interval, test
from experiment.log import record
from experiment.loop import Clipping, EpisodeUpdater, Epochs, decay, train
from experiment.models import WEIGHTS, class_names, load_model, save_models, take_weights
from experiment.results import is_papers, model_name, report_result, result_label, tested_on, write_results
from experiment.settings import COMMON, configured, flag, one_of, refuse_conflicts, refuse_images, whole
from metanet import CNN, MLP, MetaNet
from ops.compat import chainer, training
from ops.device import use_device

# input and output
input_path = 'data/miniImagenet'  # folder of train.npz, dev.npz and test.npz from preprocess_mini_imagenet.py
out = 'result/mini_imagenet'  # folder for log, learning curve, snapshots and the trained models
evaluate = ''  # npz of a trained model, as best_average.npz: tests it; trains nothing, saves no results
evaluate_on = 'test'  # classes that it is tested on: 'test', 'dev', or 'train', to see what is lost on new ones
views = ''  # extension, with evaluate: keys are means over an image's copies, some of 'shifted, mirrored'
start_from = ''  # extension: npz of a trained model whose weights a new run starts from; '': weights of its own
# machine
gpu = -1  # number of the CUDA device; -1 for the CPU
seed = 0  # of initial weights and episodes
# tasks
n_outputs_train = 5  # way: classes of a training episode
n_outputs_test = 5  # way of the dev and test episodes
nb_samples_per_class = 1  # shot: support images a class, training
nb_samples_per_class_test = 1  # shot: support images a class, dev and test
n_queries = 15  # query images a class, training
n_queries_test = 15  # query images a class, dev and test
distortion = 0.0  # extension: how far training images are turned, stretched and shifted; 1: 10 degrees, 10 %, a 14th
mirror = False  # extension: training images have left and right exchanged at random
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
n_steps = 10  # T: d gets a task-level gradient of each group of n_support // T examples, or of one
centred = ''  # extension: what has its mean taken off, some of 'conv, fc, keys', see the README
hidden_scale = 0.0  # extension: root mean square that b's last hidden layer is brought to; 0: not
fast_scale = 0.0  # extension: root mean square that fast weights of b's softmax layer are brought to; 0: not
inserted_scale = 0.1  # bound of weights of softmax layers for ways that aren't trained: the paper's 0.1; 0 does best
initialisation = 'uniform'  # [-0.1, 0.1), the paper, but for batch normalisation; 'chainer': LeCun normal, the authors
# optimiser
alpha = 1e-3  # Adam's learning rate
n_decay = 0  # extension: last epochs over which the learning rate falls linearly to 0
inverse_decay = 0  # extension: N > 0 makes the learning rate alpha / sqrt(1 + episodes / N), however long the run
amsgrad = False  # extension: Adam that never forgets a large gradient (Reddi et al., 2018)
clip = 10.0  # bound of the gradient's norm
clipping = 'together'  # bounds the norm of all gradients together; extension: 'apart', each parameter's on its own
average_decay = 0.999  # extension: averaged weights beside the trained ones, over 1 / (1 - this) updates; 0: none

# The parts of a data set that a trained model can be tested on.
PARTS = 'train', 'dev', 'test'
# What each setting may be, and the kind of images that is kept with them; those in COMMON both scripts have.
CHECKS = {
    **COMMON,
    'evaluate_on': one_of(*PARTS),
    'n_outputs_test': whole(2, 10 ** 5),
    'n_queries_test': whole(1),
    'n_dev_episodes': whole(1),
    'n_test_episodes': whole(2),
    'mirror': flag(),
    'model': one_of('partial', 'partial, u'),
    'n_slow': whole(0, 5),
    'channels': whole(3, 3),
    'image_size': whole(1, 4096),
}
# What models and runs of earlier versions of this script did, whose files don't say so.
EARLIER = {'data_digest': '', 'channels': 3, 'start_from': '', 'distortion': 0.0, 'mirror': False, 'inverse_decay': 0,
           'amsgrad': False, 'clipping': 'together', 'average_decay': 0, 'hidden_scale': 0.0, 'fast_scale': 0.0,
           'n_queries_test': lambda settings: settings.get('n_queries')}
# What a test depends on; all else that `evaluate` needs to know is in the npz.
TEST_SETTINGS = ('evaluate_on', 'views', 'seed', 'n_outputs_test', 'nb_samples_per_class_test', 'n_queries_test',
                 'n_test_episodes', 'inserted_scale')
# The paper's sizes of a model. Others are named in results, and not compared with the paper's.
SIZES = {'n_filters': 32, 'n_slow': 3, 'n_steps': 10}
PAPER = 49.21  # 5-way 1-shot, table 2, in %

# Below, the constants above are what this call of `main` was told; `settings` and `trained` are of a model, as its file
# keeps them.


def build(settings, ways):
    """The untrained model of a script's settings and the kind of images, with softmax layers for `ways`."""
    sizes = {'in_channels': settings['channels'], 'image_size': settings['image_size'], 'n_slow': settings['n_slow']}
    on_keys = settings['model'] == 'partial, u'
    embed = CNN(settings['n_filters'], activation=None, **sizes)
    held = scales(settings)
    mlp, cnn = (ScaledMLP, ScaledCNN) if held else (MLP, CNN)
    base = mlp(embed.n_out, **held) if on_keys else cnn(settings['n_filters'], **sizes, **held)
    kind = functools.partial(CentredMetaNet, centred=settings['centred']) if settings['centred'] else MetaNet
    return kind(base, embed, ways, settings['n_steps'], base_on_keys=on_keys)


def usual_classes(settings):
    """The classes of what `build` makes as it stands. Others are named in results, not compared with the paper's."""
    return {'class_of_model': 'beyond.CentredMetaNet' if settings['centred'] else 'metanet.MetaNet',
            'class_of_base': (('beyond.Scaled' if scales(settings) else 'metanet.')
                              + ('MLP' if settings['model'] == 'partial, u' else 'CNN')),
            'class_of_embed': 'metanet.CNN'}


def train_model(settings):
    """Trains a model and tests it by the paper's protocol."""
    with plain_errors():
        check_folder(out)
        device = use_device(gpu)
        train_classes, dev_classes, test_classes, source = data.mini_imagenet(input_path)
        digest = data.digest_of(source, train_classes, dev_classes, test_classes)
        sampler = task_sampler(train_classes, 0, n_outputs_train, nb_samples_per_class, n_queries, device.xp,
                               distortion, mirror)
        tested = n_outputs_test, nb_samples_per_class_test, n_queries_test, device.xp
        dev_sampler, test_sampler = task_sampler(dev_classes, 1, *tested), task_sampler(test_classes, 2, *tested)
        channels, image_size = data.image_shape(train_classes)
        settings = dict(settings, data=source, data_digest=digest, channels=channels, image_size=image_size)

        np.random.seed(seed)
        net = build(settings, (n_outputs_train, n_outputs_test))
        if initialisation == 'uniform':
            net.initialize_uniform(seed, way=n_outputs_train)
        net.initialize_inserted(n_outputs_train, seed, inserted_scale)
        if start_from:
            take_weights(out, start_from, load, net, settings)
        net.to_device(device)
        settings.update(class_names(net, usual_classes(settings)))
        optimizer = chainer.optimizers.Adam(alpha, amsgrad=amsgrad).setup(net)
        optimizer.add_hook(Clipping(clip, clipping == 'apart'))
        claim(out, settings, EARLIER)

    updater = EpisodeUpdater(net, optimizer, sampler, n_episodes, n_episodes_per_update)
    trainer = training.Trainer(updater, Epochs(n_epoch), out)
    dev_tasks, test_tasks = f'dev/{n_outputs_test}-way', f'test/{n_outputs_test}-way'
    models = {'last': net}
    bests = {'last': Best(net, 'last', settings, os.path.join(out, 'best.npz'),
                          f'{dev_tasks}/accuracy', test_tasks, test_sampler, n_test_episodes)}
    if average_decay:
        average = Average(net, average_decay)
        models['average'] = average.model
        bests['average'] = Best(average.model, 'average', settings, os.path.join(out, 'best_average.npz'),
                                f'average/{dev_tasks}/accuracy', f'average/{test_tasks}', test_sampler,
                                n_test_episodes)
        trainer.extend(average)
    trainer.extend(Tasks(net, {dev_tasks: dev_sampler}, n_dev_episodes, same=True,
                         average=models.get('average'), watch=Health))
    for best in bests.values():
        trainer.extend(best)
    if n_decay or inverse_decay:
        trainer.extend(decay(updater, n_epoch, n_decay, inverse_decay))
    record(trainer, source)
    train(trainer)

    with plain_errors(OSError):
        save_models(os.path.join(out, 'model.npz'), models, settings)
    for weights, best in bests.items():
        n_trained, dev_accuracy, *result = best.test_result
        say(f'{WEIGHTS[weights]}: best dev accuracy {dev_accuracy:.2f} % on {n_dev_episodes} episodes, after '
            f'{n_trained:.0f} training episodes')
        test_sampler.set_state(best.start)
        report(dict(settings, weights=weights), source, test_sampler, result,
               functools.partial(write_results, out, int(n_trained)))


def evaluate_model(settings, given):
    """Tests the model `evaluate`; `given`: names of the settings that the command line gave."""
    with plain_errors():
        _, trained = load(evaluate, [n_outputs_test], inserted_scale)
        refuse_conflicts({name: settings[name] for name in given - set(TEST_SETTINGS)}, trained)
        device = use_device(gpu)
        *parts, source = data.mini_imagenet(input_path)
        classes = dict(zip(PARTS, parts))[evaluate_on]
        refuse_images(trained, data.image_shape(classes), input_path)
        source = tested_on(source, data.digest_of(source, *parts), trained)
        sampler = task_sampler(classes, 2, n_outputs_test, nb_samples_per_class_test, n_queries_test, device.xp)
        models = [load(evaluate, [n_outputs_test], inserted_scale, weights) for weights in trained['all_weights']]
    start = sampler.get_state()
    for net, trained in models:
        if views:
            net.embed = Views(net.embed, views)
        net.to_device(device)
        sampler.set_state(start)
        result = interval(100 * test(net, sampler, n_test_episodes, 'test')[:, 1])
        sampler.set_state(start)
        tested = dict(trained, views=views, inserted_scale=inserted_scale)
        report(tested, source, sampler, result, classes=evaluate_on)


def task_sampler(classes, kind, way, shot, n_query, xp, distortion=0, mirror=False):
    """`data.EpisodeSampler`; another `kind`, other episodes."""
    return data.EpisodeSampler(classes, way, shot, n_query, seed=(seed, kind), xp=xp, distortion=distortion,
                               mirror=mirror)


def report(trained, source, sampler, result, keep=None, classes='test'):
    """Prints the result of a test on classes of `source` of a model trained by settings; `keep` as of `final_test`."""
    usual = usual_classes(trained)
    label = result_label(model_name('MetaNet', trained, usual, SIZES, trained['model']), trained, source,
                         classes=classes)
    one_shot = sampler.shot == trained['nb_samples_per_class'] == 1
    comparable = (trained['data'] == source == 'mini-ImageNet' and classes == 'test' and sampler.way == 5 and one_shot
                  and is_papers(trained, usual, SIZES))
    report_result(label, sampler, n_test_episodes, result, PAPER if comparable else None, keep)


def load(path, ways, inserted_scale=0.1, weights=''):
    """A trained model, `best.npz`, `best_average.npz` or `model.npz`; see `train_omniglot.load`."""
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
