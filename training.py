"""What the training scripts share: settings, the training loop around Chainer's Trainer, and the final test."""
import argparse
import ast
import contextlib
import csv
import json
import os
import re
import signal
import sys
import time
import zipfile

import matplotlib
import numpy as np
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from data import replacing
from ops.compat import chainer, extensions, training

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a window)

# Settings -------------------------------------------------------------------------------------------------------------


def configure(script, several=()):
    """Replaces constants at the top of a script by what the command line says: `--name value`.

    A value must be of the constant's kind. Unknown names and bad values end the program with the list of names.

    Args:
        script: the script's `globals()`; the constants are its names in lower case bound to numbers, strings and truth
            values, and those in `several`.
        several: names of those that may be a whole number or a tuple of them, `--name 5` or `--name 5,10,20`.

    Returns:
        A dict of all settings, and the set of those that the command line gave.
    """
    with open(script['__file__'], encoding='utf-8') as file:
        comments = dict(re.findall(r'^(\w+) = .*?  # (.*)$', file.read(), re.MULTILINE))
    kinds = bool, int, float, str
    settings = {name: value for name, value in script.items()
                if name.islower() and name[0] != '_' and (isinstance(value, kinds) or name in several)}
    parser = argparse.ArgumentParser(description=script['__doc__'].split('\n')[0], allow_abbrev=False,
                                     argument_default=argparse.SUPPRESS)
    for name, default in settings.items():
        parser.add_argument('--' + name, type=_parser_of(default, name in several), metavar=str(default),
                            help=comments.get(name, '').replace('%', '%%'))
    given = vars(parser.parse_args())
    script.update(given)
    return {**settings, **given}, set(given)


def _parser_of(default, several):
    """A function that turns a word of the command line into a value of the kind of `default`."""
    if isinstance(default, str):
        return str
    kinds = (int, tuple) if several else {bool: (bool,), int: (int,), float: (int, float)}[type(default)]

    def value(text):
        try:
            parsed = ast.literal_eval(text)
        except SyntaxError as error:
            raise ValueError(text) from error
        members = parsed if isinstance(parsed, tuple) else (parsed,)
        if type(parsed) not in kinds or not all(type(member) in kinds for member in members):
            raise ValueError(text)
        return type(default)(parsed) if isinstance(default, float) else parsed

    value.__name__ = {bool: 'True or False', float: 'number'}.get(type(default), 'whole number')
    return value


def choice(name, value, options):
    """Refuses the value of a setting that is not among the options.

    Raises:
        ValueError: with the options' list.
    """
    if value not in options:
        raise ValueError('%s = %r: choose among %s' % (name, value, ', '.join(map(repr, options))))
    return value


def at_least(least, settings, *names):
    """Refuses settings that are below `least`, or no numbers; where `least` is an int, they must be whole.

    Raises:
        ValueError: with the first such setting's name.
    """
    kind, words = (int, 'whole number') if isinstance(least, int) else ((int, float), 'number')
    for name in names:
        value = settings.get(name)  # configure leaves out what is none of its kinds, such as None
        if not isinstance(value, kind) or value < least:
            raise ValueError('%s = %s: must be a %s, at least %d' % (name, value, words, least))


def positive(settings, *names):
    """Refuses settings that aren't numbers above 0.

    Raises:
        ValueError: with the first such setting's name.
    """
    for name in names:
        value = settings.get(name)
        if not isinstance(value, (int, float)) or not value > 0:
            raise ValueError('%s = %s: must be a number above 0' % (name, value))


def share(settings, *names):
    """Refuses settings that aren't numbers from 0, and below 1.

    Raises:
        ValueError: with the first such setting's name.
    """
    for name in names:
        value = settings.get(name)
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ValueError('%s = %s: must be a number from 0, and below 1' % (name, value))


def folder(settings, *names):
    """Refuses settings that aren't names of folders.

    Raises:
        ValueError: with the first such setting's name.
    """
    for name in names:
        value = settings.get(name)
        if not isinstance(value, str) or not value:
            raise ValueError('%s = %r: give the path of a folder' % (name, value))


def several(name, value):
    """A setting that is a number of classes or a tuple of them, as a tuple.

    Raises:
        ValueError: it is empty or not of whole numbers from 2.
    """
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(isinstance(v, int) and v >= 2 for v in values):
        raise ValueError('%s = %r: give a whole number, at least 2, or several as in 5, 10, 20' % (name, value))
    return values


def model_name(variant, settings, *remarks):
    """What a line of results calls a model: its variant, remarks, and how its training departed from the paper's."""
    if settings.get('average_decay'):
        remarks += WEIGHTS[settings['weights']],
    departures = {
        'centred': ('', 'centred: %s'),
        'amsgrad': (False, 'AMSGrad'),
        'clipping': ('together', 'gradients clipped %s'),
        'nb_samples_per_class': (1, '%d-shot'),
        'rotations': ('episode', 'rotations: %s'),
        'n_episodes_per_update': (1, '%d episodes an update'),
    }
    remarks += tuple(words % settings[name] if '%' in words else words for name, (usual, words) in departures.items()
                     if settings.get(name, usual) != usual)
    return variant + (' (%s)' % ', '.join(remarks) if remarks else '')


def result_label(model, trained, source, detail=''):
    """What lines of results say was trained and on what, and on what it was tested.

    Args:
        model: as `model_name` calls it.
        trained: the settings of its training.
        source: the data it was tested on.
        detail: what is to be said of the training data beside their name.
    """
    tested = '' if source == trained['data'] else ', tested on ' + source
    return '%s trained %d-way, on %s%s%s' % (model, trained['n_outputs_train'], trained['data'], detail, tested)


def refuse_conflicts(given, trained):
    """Refuses settings of the command line by which a trained model was not trained.

    Args:
        given: dict of the settings that the command line gave, without those that only concern the test.
        trained: dict of the settings of the model's training.

    Raises:
        ValueError: with the first such setting's name and both values.
    """
    for name, value in given.items():
        if name in trained and value != trained[name]:
            raise ValueError('%s = %r, but the model to evaluate was trained with %r: leave that setting out'
                             % (name, value, trained[name]))


def whole_updates(settings):
    """Refuses an `n_episodes_per_update` that doesn't divide the epoch.

    Raises:
        ValueError: with both settings.
    """
    at_least(1, settings, 'n_episodes', 'n_episodes_per_update')
    if settings['n_episodes'] % settings['n_episodes_per_update']:
        raise ValueError('n_episodes = %(n_episodes)d is not a multiple of n_episodes_per_update = '
                         '%(n_episodes_per_update)d: change one of them' % settings)


@contextlib.contextmanager
def plain_errors():
    """Ends the program with the message alone where settings or data are at fault."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit('error: %s' % error)


@contextlib.contextmanager
def plain_interrupt():
    """Ends the program without a traceback where Ctrl-C stops it at once."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit('\nStopped at once. All that is saved stays; the same command resumes a training from its snapshot.')


def device(gpu):
    """The Chainer device for a setting `gpu`: -1 is the CPU, otherwise a CUDA device's number.

    Raises:
        ValueError: CuPy or that CUDA device cannot be used.
    """
    if gpu < 0:
        return chainer.get_device('@numpy')
    try:
        chainer.backends.cuda.check_cuda_available()
        found = chainer.get_device('@cupy:%d' % gpu)
        found.use()
        found.xp.zeros(1)
    except Exception as error:  # whatever CuPy and the CUDA driver raise
        raise ValueError('gpu = %d cannot be used (%s); install the cupy wheel for your CUDA version, see the README, '
                         'or set gpu = -1 for the CPU' % (gpu, error)) from error
    return found


# The training loop ----------------------------------------------------------------------------------------------------


class EpisodeUpdater(training.Updater):
    """Learns from the sampler's episodes; reports `main/loss`, `main/accuracy` and `seconds`, all of an episode.

    Its `iteration` counts episodes. Ends the program (SystemExit) when an update makes a parameter infinite or nan.

    Args:
        model: `MetaNet`, or a link with such a `loss`.
        optimizer: set up with the model.
        sampler: `data.EpisodeSampler` of training episodes.
        epoch_size: training episodes to an epoch.
        n_averaged: episodes whose mean gradient makes an update; `epoch_size` is a multiple of it.
    """

    def __init__(self, model, optimizer, sampler, epoch_size, n_averaged=1):
        self.model = model
        self.optimizer = optimizer
        self.sampler = sampler
        self.epoch_size = epoch_size
        self.n_averaged = n_averaged
        self.iteration = 0

    @property
    def epoch(self):
        return self.iteration // self.epoch_size

    @property
    def epoch_detail(self):
        return self.iteration / self.epoch_size

    @property
    def previous_epoch_detail(self):
        return (self.iteration - self.n_averaged) / self.epoch_size

    @property
    def is_new_epoch(self):
        return self.iteration % self.epoch_size == 0

    def get_all_optimizers(self):
        return {'main': self.optimizer}

    def connect_trainer(self, trainer):
        pass

    def finalize(self):
        pass

    def update(self):
        start = time.perf_counter()
        summary = chainer.DictSummary()
        self.model.cleargrads()
        for _ in range(self.n_averaged):
            observation = {}
            with chainer.report_scope(observation):
                loss = self.model.loss(self.sampler.sample())
            summary.add(observation)
            (loss / self.n_averaged).backward()
        self.optimizer.update()
        self.iteration += self.n_averaged
        if not all(param.xp.isfinite(param.array).all() for param in self.model.params()):
            sys.exit('error: the parameters are no longer finite after episode %d; what was saved before is as it was. '
                     'Give a run with a smaller alpha or clip, or another seed, another folder (out)' % self.iteration)
        chainer.report(summary.compute_mean())
        chainer.report({'seconds': (time.perf_counter() - start) / self.n_averaged})

    def serialize(self, serializer):
        self.iteration = serializer('iteration', self.iteration)
        self.optimizer.serialize(serializer['optimizer'])
        self.model.serialize(serializer['model'])
        self.sampler.set_state(serializer('sampler', self.sampler.get_state()))


class Clipping:
    """An optimizer's hook that bounds the gradient's norm; reports `gradient_norm`, of all parameters, before.

    Args:
        bound: above 0.
        apart: an extension: whether each parameter's gradient is bounded on its own, not that of all together.
    """

    name = 'Clipping'
    timing = 'pre'

    def __init__(self, bound, apart=False):
        self.bound = bound
        self.apart = apart

    def __call__(self, optimizer):
        xp = optimizer.target.xp
        params = list(optimizer.target.params(False))
        squares = [param.grad.ravel().dot(param.grad.ravel()) for param in params]
        norm = xp.sqrt(sum(squares))
        chainer.report({'gradient_norm': norm})
        for param, square in zip(params, squares):
            param.grad = param.grad * (self.bound / xp.maximum(xp.sqrt(square) if self.apart else norm, self.bound))


class Tasks(training.Extension):
    """Tests the model on a few episodes every epoch, and counts the live fast activations on them.

    Reports `NAME/loss` and `NAME/accuracy` for each sampler, `average/NAME/loss` and `average/NAME/accuracy` for the
    averaged model on the same episodes, and `alive/base/conv1`, ...: the share of a layer's fast activations that are
    above 0; a layer with none learns and adapts through its slow weights alone.

    Args:
        model: `MetaNet`.
        samplers: {name, such as test/5-way: `data.EpisodeSampler`}.
        n_episodes: episodes of each sampler.
        same: whether each epoch has the same episodes.
        average: the averaged model, if there is one.
        watch: a class of `LinkHook` whose `shares` count a model's live activations, if they are to be counted.
    """

    trigger = 1, 'epoch'
    priority = training.PRIORITY_WRITER
    default_name = 'tasks'

    def __init__(self, model, samplers, n_episodes, same=False, average=None, watch=None):
        self.model = model
        self.average = average
        self.watch = watch
        self.samplers = samplers
        self.n_episodes = n_episodes
        self.start = {name: sampler.get_state() for name, sampler in samplers.items()} if same else {}

    def __call__(self, trainer):
        starts = {name: self.start.get(name, sampler.get_state()) for name, sampler in self.samplers.items()}
        with self.watch(self.model) if self.watch else contextlib.nullcontext() as alive:
            self._test(self.model, starts)
        if self.average is not None:
            self._test(self.average, starts, 'average/')
        if alive is not None:
            chainer.report({'alive/' + layer: np.mean(shares) for layer, shares in alive.shares.items() if shares})

    def _test(self, model, starts, prefix=''):
        for name, sampler in self.samplers.items():
            sampler.set_state(starts[name])
            loss, accuracy = test(model, sampler, self.n_episodes).mean(axis=0)
            chainer.report({prefix + name + '/loss': loss, prefix + name + '/accuracy': accuracy})

    def serialize(self, serializer):
        for name, sampler in self.samplers.items():
            sampler.set_state(serializer(name, sampler.get_state()))


class Best(training.Extension):
    """Keeps the model that does best on the dev tasks, and tests it: the paper's protocol for mini-ImageNet.

    Whenever the accuracy on dev tasks is above the best so far, saves the model and tests it: `test_result` is
    then (episodes trained, dev accuracy, mean, half width of the 95 % interval), in %. A test reports as `Tasks` does.

    Args:
        model: `MetaNet`, the trained or the averaged one.
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
            chainer.report(dict(zip((self.name + '/loss', self.name + '/accuracy'), results.mean(axis=0))))
            self.test_result[:] = (trainer.updater.iteration, dev) + interval(100 * results[:, 1])

    def serialize(self, serializer):
        self.test_result[...] = serializer('test_result', self.test_result)


def set_up(model, settings, device):
    """Gives the model its initial weights and sends it to the device.

    Args:
        model: `MetaNet`.
        settings: dict of the script's settings; of these `initialisation`, `n_outputs_train`, `inserted_scale`, `seed`,
            `alpha`, `amsgrad`, `clip` and `clipping` are used here.
        device: Chainer device.

    Returns:
        Adam, set up with the model, that clips the gradient's norm.
    """
    if settings['initialisation'] == 'uniform':
        model.initialize_uniform(settings['seed'], way=settings['n_outputs_train'])
    model.initialize_inserted(settings['n_outputs_train'], settings['seed'], settings['inserted_scale'])
    model.to_device(device)
    optimizer = chainer.optimizers.Adam(settings['alpha'], amsgrad=settings['amsgrad']).setup(model)
    optimizer.add_hook(Clipping(settings['clip'], settings['clipping'] == 'apart'))
    return optimizer


def decay(optimizer, settings):
    """A list of the extension, if any, by which Adam's learning rate falls to 0 over the last `n_decay` epochs."""
    if not settings['n_decay']:
        return []
    updates = settings['n_episodes'] // settings['n_episodes_per_update']  # in an epoch
    stop = settings['n_epoch'] * updates
    start = max(0, stop - settings['n_decay'] * updates)
    return [extensions.LinearShift('alpha', (optimizer.alpha, 0.0), (start, stop), optimizer)]


class Log(extensions.LogReport):
    """Chainer's LogReport, that also writes `log.csv`, draws `learning_curve.png` and prints a line every epoch.

    (Chainer's PrintReport cannot print the data's name; its PlotReport forgets the episodes before an interruption.)

    Args:
        source: name of the data, for every line.
    """

    default_name = 'log'

    def __init__(self, source):
        super().__init__(filename='log', postprocess=self._label)
        self.source = source

    def _label(self, row):
        row['data'] = self.source

    def __call__(self, trainer):
        length = len(self.log)
        super().__call__(trainer)
        if len(self.log) > length:
            self._write_csv(os.path.join(trainer.out, 'log.csv'))
            self._draw(os.path.join(trainer.out, 'learning_curve.png'))
            self._print(self.log[-1])

    def _names(self):
        """Of all columns: not every row has all."""
        return list(dict.fromkeys(name for row in self.log for name in row))

    def _write_csv(self, path):
        with replacing(path, 'w', newline='') as file:
            writer = csv.DictWriter(file, self._names())
            writer.writeheader()
            writer.writerows(self.log)

    def _draw(self, path):
        figure, axes = plt.subplots()
        for name in self._names():
            if name.endswith('/accuracy'):
                points = [(row['iteration'], 100 * row[name]) for row in self.log if name in row]
                axes.plot(*zip(*points), label=name.replace('main/', 'training/').rsplit('/', 1)[0])
        axes.set(xlabel='training episodes', ylabel='accuracy (%)', title=self.source)
        axes.grid(alpha=0.3)
        axes.legend()
        with replacing(path) as file:
            figure.savefig(file, format='png')
        plt.close(figure)

    def _print(self, row):
        names = [name[:-len('/accuracy')] for name in row if re.fullmatch('(average/)?(dev|test)/.*/accuracy', name)]
        tests = ', '.join('%s %.3f / %.1f %%' % (
            name.replace('/', ' '), row[name + '/loss'], 100 * row[name + '/accuracy']) for name in names)
        # A terminal may hold Chainer's progress bar below the cursor; as its own reports do, this clears it away.
        print('%sepoch %d (%d episodes): training loss %.3f / accuracy %.1f %%; %s; %.2f s an episode [%s]' % (
            '\033[J' if sys.stdout.isatty() else '', row['epoch'], row['iteration'], row['main/loss'],
            100 * row['main/accuracy'], tests, row['seconds'], self.source), flush=True)


class _CtrlC:
    """A stop trigger: at the end, or after the update or the tests during which Ctrl-C was pressed."""

    def __init__(self, n_epoch):
        self.n_epoch = n_epoch
        self.pressed = False

    def __enter__(self):
        self.previous = signal.signal(signal.SIGINT, self.press)
        return self

    def __exit__(self, *exception):
        signal.signal(signal.SIGINT, self.previous)

    def press(self, signum, frame):
        self.pressed = True
        signal.signal(signal.SIGINT, self.previous)
        # Not print: it may be what was interrupted, and cannot be entered twice.
        os.write(2, b'\nStopping after the episodes at hand. Press Ctrl-C again to stop at once, and lose what has '
                    b'been learned since the last epoch.\n')

    def __call__(self, trainer):
        return self.pressed or trainer.updater.epoch >= self.n_epoch

    def get_training_length(self):
        return self.n_epoch, 'epoch'


# Settings that a continued run may change: where it runs, its final test, and how long it runs unless the learning rate
# depends on that.
CHANGEABLE = 'input_path', 'out', 'gpu', 'n_final_episodes', 'evaluate'


def train(model, optimizer, sampler, extras, settings, average=None):
    """Trains to the last epoch, going on from the latest snapshot in the folder `settings['out']` if it has one.

    A continued run is the same, bit for bit, as one that never stopped. Ctrl-C leaves a snapshot and ends the program.

    Args:
        model: `MetaNet`; at the end it is also saved as `model.npz`, with the average.
        optimizer: set up with the model.
        sampler: `data.EpisodeSampler` of training episodes.
        extras: list of Trainer extensions: `Tasks`, `Best`, a `decay`.
        settings: dict of the script's settings; of these `out`, `n_epoch`, `n_episodes`, `n_episodes_per_update` and
            `data`, the name of the data, are used here.
        average: `beyond.Average` of the model, if there is one.

    Raises:
        SystemExit: the folder holds a run with other settings or more epochs, Ctrl-C was pressed, or parameters are no
            longer finite.
    """
    out = settings['out']
    updater = EpisodeUpdater(model, optimizer, sampler, settings['n_episodes'], settings['n_episodes_per_update'])
    with plain_errors():
        _claim(out, settings)
    with _CtrlC(settings['n_epoch']) as stop:
        trainer = training.Trainer(updater, stop, out)
        for extension in ([average] if average else []) + extras:
            trainer.extend(extension)
        trainer.extend(Log(settings['data']))
        if sys.stdout.isatty():
            trainer.extend(extensions.ProgressBar(update_interval=1))
        snapshot = extensions.snapshot(filename='snapshot_{.updater.iteration}', n_retains=1, autoload=True)
        trainer.extend(snapshot, trigger=(1, 'epoch'))
        # Chainer would load the latest snapshot last, when LinearShift has already set the learning rate.
        try:
            snapshot.initialize(trainer)
        except Exception as error:  # whatever NumPy and zipfile raise
            sys.exit('error: the snapshot in %s cannot be read, or is of another network (%s): give this run another '
                     'folder (out), or remove that one' % (out, error))
        if updater.iteration:
            print('going on after %d episodes, from the snapshot in %s' % (updater.iteration, out), flush=True)
        if updater.epoch_detail > settings['n_epoch']:
            sys.exit('error: the folder %s holds a run that has trained for %g epochs, more than n_epoch = %d: raise '
                     'that, or give this run another folder (out)' % (out, updater.epoch_detail, settings['n_epoch']))
        trainer.run()
    if updater.epoch < settings['n_epoch']:
        snapshot(trainer)
    if stop.pressed:
        sys.exit('Stopped after %d episodes; the same command goes on from there.' % updater.iteration)
    save_models(os.path.join(out, 'model.npz'), models(model, average), settings)


# How a model's weights are called, in results and in files, where there is also their average.
WEIGHTS = {'last': 'last iterate', 'average': 'averaged weights'}


def models(model, average):
    """{'last': the trained model, 'average': the averaged one, if there is an `average`}"""
    return {'last': model, 'average': average.model} if average else {'last': model}


def save_models(path, models, settings):
    """Writes parameters and the settings of their training to an npz, which is whole or not there at all.

    What says where it was trained, such as paths, is left out: a model is to be handed on.

    Args:
        path: the npz.
        models: {'last': the trained model, 'average': the averaged one}, or one of the two.
        settings: dict of the script's settings.
    """
    arrays = {}
    for weights, model in models.items():
        serializer = chainer.serializers.DictionarySerializer()
        serializer.save(model)
        arrays.update((_PREFIXES[weights] + name, value) for name, value in serializer.target.items())
    kept = {name: value for name, value in settings.items() if name not in CHANGEABLE}
    with replacing(path) as file:
        np.savez(file, settings=json.dumps(kept), **arrays)


# Of the names in a model's npz.
_PREFIXES = {'last': '', 'average': 'average/'}


def _group(names, weights):
    """{name in the model: name in the npz} of its last or averaged weights"""
    average = [name for name in names if name.startswith(_PREFIXES['average'])]
    if weights == 'average':
        return {name[len(_PREFIXES['average']):]: name for name in average}
    return {name: name for name in names if name not in average and name != 'settings'}


def load_model(path, build, inserted_scale, weights=''):
    """A model saved by `save_models`.

    Args:
        path: the npz.
        build: a function of the settings, a dict, that returns the untrained model. Softmax layers that it has and the
            training has not seen are *inserted*, whether the file has them or not.
        inserted_scale: inserted softmax layers are uniform in [-inserted_scale, inserted_scale).
        weights: 'last' or 'average'; '' for the average where the file has one.

    Returns:
        The model, on the CPU, and the settings of its training; `weights` in these is 'last' or 'average', and
        `all_weights` a list of those that the file has.

    Raises:
        ValueError: the file is not such an npz, or does not fit the model.
        OSError: it cannot be read.
    """
    try:
        # As a zip first, for np.load also takes a plain npy.
        with zipfile.ZipFile(path), np.load(path) as file:
            settings = {'data': 'unknown data', **json.loads(str(file['settings']))}
            model = build(settings)
            trained = '/softmax%d/' % settings['n_outputs_train']
            serializer = chainer.serializers.DictionarySerializer()
            serializer.save(model)
            there = [kind for kind in WEIGHTS if _group(file.files, kind)]
            weights = weights or there[-1]
            settings.update(weights=weights, all_weights=there)
            if weights not in there:
                raise ValueError('it has no %s' % WEIGHTS[weights])
            group = _group(file.files, weights)
            ours, its = set(serializer.target), set(group)
            missing = [name for name in sorted(ours - its) if '/softmax' not in name or trained in name]
            surplus = [name for name in sorted(its - ours) if '/softmax' not in name]
            for words, names in (('it lacks %s', missing), ('the model lacks its %s', surplus)):
                if names:
                    raise ValueError(words % ', '.join(names))
            arrays = {name: file[group[name]] for name in ours & its}
            chainer.serializers.NpzDeserializer(arrays, strict=False).load(model)
            # Last: the file may have softmax layers for ways that the training was only tested on.
            model.initialize_inserted(settings['n_outputs_train'], settings['seed'], inserted_scale)
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError('%s is not a model that this script, as it is now, has trained (%s): give a model.npz or '
                         'best.npz from one of its runs' % (path, error)) from error
    return model, settings


def _claim(out, settings):
    """Notes a run's settings in its folder; refuses a folder that holds another run."""
    path = os.path.join(out, 'settings.json')
    changeable = CHANGEABLE if settings.get('n_decay') else CHANGEABLE + ('n_epoch',)
    own = json.loads(json.dumps({name: value for name, value in settings.items() if name not in changeable}))
    if os.path.exists(path):
        try:
            with open(path) as file:
                other = json.load(file)
        except ValueError as error:
            raise ValueError('%s is damaged (%s): give this run another folder (out), or remove that one'
                             % (path, error)) from error
        changed = ['%s (%r there, %r now)' % (name, other.get(name), own.get(name))
                   for name in sorted(set(own) | set(other)) if own.get(name) != other.get(name)]
        if changed:
            raise ValueError('the folder %s holds a run with other settings: %s; give this run another folder (out), '
                             'or take the same settings to go on with that one' % (out, ', '.join(changed)))
    else:
        with replacing(path, 'w') as file:
            json.dump(own, file, indent=4)


# The test -------------------------------------------------------------------------------------------------------------


def test(model, sampler, n_episodes, progress=None):
    """Tests the model, without learning.

    Args:
        model: `MetaNet`.
        sampler: `data.EpisodeSampler` of test episodes.
        n_episodes: how many to draw.
        progress: what a progress bar says, in a terminal; None for no bar.

    Returns:
        float array (n_episodes, 2): mean loss and accuracy (0 to 1) of each episode's query set.
    """
    results = np.empty((n_episodes, 2))
    reporter = chainer.Reporter()
    reporter.add_observer('test', model)
    for result in tqdm(results, progress, leave=False, disable=True if progress is None else None):
        observation = {}
        with chainer.no_backprop_mode(), chainer.using_config('train', False), reporter.scope(observation):
            model.loss(sampler.sample())
        result[:] = [float(observation['test/' + name].array) for name in ('loss', 'accuracy')]
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
    accuracies = np.empty(n_episodes)
    for i in range(n_episodes):
        support_x, support_y, query_x, query_y = map(chainer.backends.cuda.to_cpu, sampler.sample())
        neighbours = NearestNeighbors(n_neighbors=1).fit(support_x.reshape(len(support_x), -1))
        nearest = neighbours.kneighbors(query_x.reshape(len(query_x), -1), return_distance=False)[:, 0]
        accuracies[i] = np.mean(support_y[nearest] == query_y)
    return accuracies


def final_test(model, samplers, n_episodes, label, paper):
    """Tests each way on many episodes, prints its line, and returns the rows for `write_results`.

    Args:
        model: `MetaNet`.
        samplers: {way: `data.EpisodeSampler`}.
        n_episodes: episodes of each way.
        label: what was tested on what, for every line.
        paper: {way: the paper's accuracy in %}, for the ways that it has.
    """
    rows = []
    for way, sampler in samplers.items():
        start = sampler.get_state()
        result = interval(100 * test(model, sampler, n_episodes, '%d-way test' % way)[:, 1])
        sampler.set_state(start)
        rows.append(result_row(label, sampler, n_episodes, result, paper.get(way)))
        sampler.set_state(start)  # the same episodes for another model
    return rows


def result_row(label, sampler, n_episodes, result, paper):
    """Prints one way's result, and returns it as a row for `write_results`.

    Args:
        label: what was tested on what.
        sampler: the `data.EpisodeSampler` it was tested on, as it was before.
        n_episodes: test episodes.
        result: mean accuracy and half width of its interval, in %.
        paper: the paper's accuracy in %, or None.
    """
    pixels = interval(100 * pixel_accuracy(sampler, n_episodes))
    print('%s, %d-way %d-shot: %.2f +- %.2f %% on %d test episodes; nearest neighbour on pixels %.2f +- %.2f %%; '
          'the paper %s' % (label, sampler.way, sampler.shot, *result, n_episodes, *pixels,
                            'has no such number' if paper is None else '%s %%' % paper), flush=True)
    return {'model': label, 'way': sampler.way, 'shot': sampler.shot, 'episodes': n_episodes,
            'accuracy': round(result[0], 2), 'interval': round(result[1], 2),
            'pixels': round(pixels[0], 2), 'pixels_interval': round(pixels[1], 2), 'paper': paper}


def write_results(out, n_trained, rows):
    """Adds rows of results to `final_test.csv` in the folder `out`; earlier tests' stay, but for repeated ones.

    Args:
        out: the folder.
        n_trained: training episodes of the model.
        rows: list of dicts, as `result_row` returns.
    """
    path = os.path.join(out, 'final_test.csv')
    rows = [{'trained': str(n_trained), **{name: '' if value is None else str(value) for name, value in row.items()}}
            for row in rows]
    if os.path.exists(path):
        with open(path, newline='') as file:
            rows = [row for row in csv.DictReader(file) if row not in rows] + rows
    with replacing(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[-1]), restval='', extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)
