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

import chainer_compat  # noqa: F401  (before Chainer)
import chainer
import matplotlib
import numpy as np
from chainer import training
from chainer.training import extensions
from tqdm import tqdm

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a window)

# Settings -------------------------------------------------------------------------------------------------------------


def configure(script):
    """Replaces constants at the top of a script by what the command line says: `--name value`.

    A value must be of the constant's kind; where the constant is a number or a tuple of numbers, either will do: `--name 5` or
    `--name 5,10,20`. Unknown names and bad values end the program with the list of names.

    Args:
        script: the script's `globals()`; the constants are its public names bound to numbers, strings, truth values and tuples.

    Returns:
        A dict of all settings.
    """
    with open(script['__file__'], encoding='utf-8') as file:
        comments = dict(re.findall(r'^(\w+) = .*?  # (.*)$', file.read(), re.MULTILINE))
    settings = {name: value for name, value in script.items()
                if not name.startswith('_') and isinstance(value, (bool, int, float, str, tuple))}
    parser = argparse.ArgumentParser(description=script['__doc__'].split('\n')[0], allow_abbrev=False)
    for name, default in settings.items():
        parser.add_argument('--' + name, default=default, type=_parser_of(default), metavar=str(default),
                            help=comments.get(name, '').replace('%', '%%'))
    settings = vars(parser.parse_args())
    script.update(settings)
    return settings


def _parser_of(default):
    """A function that turns a word of the command line into a value of the kind of `default`."""
    if isinstance(default, str):
        return str
    kinds = {bool: (bool,), int: (int, tuple), tuple: (int, tuple), float: (int, float)}[type(default)]

    def value(text):
        parsed = ast.literal_eval(text)
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


def at_least_one(settings, *names):
    """Refuses settings that count something and are below one.

    Raises:
        ValueError: with the first such setting's name.
    """
    for name in names:
        if settings[name] < 1:
            raise ValueError('%s = %s: must be at least 1' % (name, settings[name]))


def several(name, value):
    """A setting that is a number or a tuple of numbers, as a tuple.

    Raises:
        ValueError: it is empty or not of whole numbers.
    """
    values = value if isinstance(value, tuple) else (value,)
    if not values or not all(isinstance(v, int) for v in values):
        raise ValueError('%s = %r: give a whole number, or several as in 5, 10, 20' % (name, value))
    return values


@contextlib.contextmanager
def plain_errors():
    """Ends the program with the message alone where settings or data are at fault."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit('error: %s' % error)


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
    """One update for each episode of the sampler; reports `main/loss`, `main/accuracy` and `seconds`.

    Args:
        model: `MetaNet`, or a link with such a `loss`.
        optimizer: set up with the model.
        sampler: `data.EpisodeSampler` of training episodes.
        epoch_size: training episodes to an epoch.
    """

    def __init__(self, model, optimizer, sampler, epoch_size):
        self.model = model
        self.optimizer = optimizer
        self.sampler = sampler
        self.epoch_size = epoch_size
        self.iteration = 0

    @property
    def epoch(self):
        return self.iteration // self.epoch_size

    @property
    def epoch_detail(self):
        return self.iteration / self.epoch_size

    @property
    def previous_epoch_detail(self):
        return (self.iteration - 1) / self.epoch_size

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
        loss = self.model.loss(self.sampler.sample())
        self.model.cleargrads()
        loss.backward()
        self.optimizer.update()
        self.iteration += 1
        chainer.report({'seconds': time.perf_counter() - start})

    def serialize(self, serializer):
        self.iteration = serializer('iteration', self.iteration)
        self.optimizer.serialize(serializer['optimizer'])
        self.model.serialize(serializer['model'])
        self.sampler.set_state(serializer('sampler', self.sampler.get_state()))


class TestTasks(training.Extension):
    """Tests the model on a few episodes every epoch, and counts the live fast activations on them.

    Reports `test/5-way/loss`, `test/5-way/accuracy`, ... and `alive/base/conv1`, ...: the share of a layer's fast activations
    that are above 0; a layer with none learns and adapts through its slow weights alone.

    Args:
        model: `MetaNet`.
        samplers: {way: `data.EpisodeSampler`} of test episodes.
        n_episodes: test episodes of each way.
    """

    trigger = 1, 'epoch'
    priority = training.PRIORITY_WRITER
    default_name = 'test'

    def __init__(self, model, samplers, n_episodes):
        self.model = model
        self.samplers = samplers
        self.n_episodes = n_episodes

    def __call__(self, trainer):
        with self.model.watch() as alive:
            for way, sampler in self.samplers.items():
                loss, accuracy = test(self.model, sampler, self.n_episodes).mean(axis=0)
                chainer.report({'test/%d-way/loss' % way: loss, 'test/%d-way/accuracy' % way: accuracy})
        chainer.report({'alive/' + layer: np.mean(shares) for layer, shares in alive.items() if shares})

    def serialize(self, serializer):
        for way, sampler in self.samplers.items():
            sampler.set_state(serializer('%d-way' % way, sampler.get_state()))


class Log(extensions.LogReport):
    """Chainer's LogReport, that also writes `log.csv`, draws `learning_curve.png` and prints a line every epoch.

    (Chainer's PrintReport cannot print the data's name, and its PlotReport forgets the episodes before an interruption.)

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

    def _write_csv(self, path):
        with replacing(path) as part, open(part, 'w', newline='') as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.log for name in row)))
            writer.writeheader()
            writer.writerows(self.log)

    def _draw(self, path):
        figure, axes = plt.subplots()
        for name in self.log[-1]:
            if name.endswith('/accuracy'):
                points = [(row['iteration'], 100 * row[name]) for row in self.log if name in row]
                axes.plot(*zip(*points), label=name.replace('main/', 'training/').rsplit('/', 1)[0])
        axes.set(xlabel='training episodes', ylabel='accuracy (%)', title=self.source)
        axes.grid(alpha=0.3)
        axes.legend()
        with replacing(path) as part:
            figure.savefig(part, format='png')
        plt.close(figure)

    def _print(self, row):
        tests = ', '.join('%s %.3f / %.1f %%' % (way, row['test/%s/loss' % way], 100 * row['test/%s/accuracy' % way])
                          for way in (name.split('/')[1] for name in row if re.match('test/.*/accuracy', name)))
        # A terminal may hold Chainer's progress bar below the cursor; as its own reports do, this clears it away.
        print('%sepoch %d (%d episodes): training loss %.3f / accuracy %.1f %%; test %s; %.2f s an episode [%s]' % (
            '\033[J' if sys.stdout.isatty() else '', row['epoch'], row['iteration'], row['main/loss'],
            100 * row['main/accuracy'], tests, row['seconds'], self.source), flush=True)


@contextlib.contextmanager
def replacing(path):
    """Yields a name to write to, which becomes `path` when all has gone well, and nothing otherwise."""
    part = '%s.%d.part' % (path, os.getpid())
    try:
        yield part
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


class _CtrlC:
    """A stop trigger: at the end, or after the episode in which Ctrl-C was pressed."""

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
        # A second Ctrl-C stops at once, as usual.
        signal.signal(signal.SIGINT, self.previous)

    def __call__(self, trainer):
        return self.pressed or trainer.updater.epoch >= self.n_epoch


def train(model, optimizer, sampler, test_samplers, settings, source):
    """Trains to the last epoch, going on from the latest snapshot in the folder `settings['out']` if it has one.

    A continued run is the same, bit for bit, as one that never stopped. Ctrl-C leaves a snapshot and ends the program.

    Args:
        model: `MetaNet`.
        optimizer: set up with the model.
        sampler: `data.EpisodeSampler` of training episodes.
        test_samplers: {way: `data.EpisodeSampler`} of the test episodes after each epoch.
        settings: dict of the script's settings; of these `out`, `n_epoch`, `n_episodes`, `n_test_episodes` are used here.
        source: name of the data, for every line.

    Raises:
        ValueError: the folder holds a run with other settings.
    """
    out = settings['out']
    updater = EpisodeUpdater(model, optimizer, sampler, settings['n_episodes'])
    with plain_errors():
        _claim(out, settings, source)
    with _CtrlC(settings['n_epoch']) as stop:
        trainer = training.Trainer(updater, stop, out)
        trainer.extend(TestTasks(model, test_samplers, settings['n_test_episodes']))
        trainer.extend(Log(source))
        if sys.stdout.isatty():
            trainer.extend(extensions.ProgressBar((settings['n_epoch'], 'epoch'), update_interval=1))
        snapshot = extensions.snapshot(filename='snapshot_{.updater.iteration}', n_retains=1, autoload=True)
        trainer.extend(snapshot, trigger=(1, 'epoch'))
        trainer.run()
    if updater.epoch < settings['n_epoch']:
        snapshot(trainer)
        sys.exit('\nStopped after %d episodes; the same command goes on from there.' % updater.iteration)
    with replacing(os.path.join(out, 'model.npz')) as part, open(part, 'wb') as file:
        chainer.serializers.save_npz(file, model)


# Settings that a continued run may change: where and how long it runs, and its final test.
CHANGEABLE = 'input_path', 'out', 'gpu', 'n_epoch', 'n_final_episodes'


def _claim(out, settings, source):
    """Notes a run's settings in its folder; refuses a folder that holds another run."""
    path = os.path.join(out, 'settings.json')
    own = dict(settings, data=source)
    own = json.loads(json.dumps({name: value for name, value in own.items() if name not in CHANGEABLE}))
    if os.path.exists(path):
        with open(path) as file:
            other = json.load(file)
        changed = ['%s (%r there, %r now)' % (name, other.get(name), own.get(name))
                   for name in sorted(set(own) | set(other)) if own.get(name) != other.get(name)]
        if changed:
            raise ValueError('the folder %s holds a run with other settings: %s; give this run another folder (out), or '
                             'take the same settings to go on with that one' % (out, ', '.join(changed)))
    else:
        os.makedirs(out, exist_ok=True)
        with replacing(path) as part, open(part, 'w') as file:
            json.dump(own, file, indent=4)


# The test -------------------------------------------------------------------------------------------------------------


def test(model, sampler, n_episodes, progress=None):
    """Tests the model, without learning.

    Args:
        model: `MetaNet`.
        sampler: `data.EpisodeSampler` of test episodes.
        n_episodes: how many to draw.
        progress: what a progress bar says, or None for no bar.

    Returns:
        float array (n_episodes, 2): mean loss and accuracy (0 to 1) of each episode's query set.
    """
    results = np.empty((n_episodes, 2))
    reporter = chainer.Reporter()
    reporter.add_observer('test', model)
    for result in tqdm(results, progress, leave=False, disable=progress is None):
        observation = {}
        with chainer.no_backprop_mode(), chainer.using_config('train', False), reporter.scope(observation):
            model.loss(sampler.sample())
        result[:] = [float(observation['test/' + name].array) for name in ('loss', 'accuracy')]
    return results


def interval(values):
    """Mean and half width of its 95 % confidence interval (normal approximation) over episodes."""
    return np.mean(values), 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))


def final_test(model, samplers, n_episodes, out, label, paper):
    """Tests each way on many episodes; prints a line for each beside the paper's number and writes them to `final_test.csv`.

    Args:
        model: `MetaNet`.
        samplers: {way: `data.EpisodeSampler`}.
        n_episodes: episodes of each way.
        out: folder for `final_test.csv`.
        label: what was tested on what, for every line.
        paper: {way: the paper's accuracy in %}, for the ways that it has.
    """
    rows = []
    for way, sampler in samplers.items():
        mean, half = interval(100 * test(model, sampler, n_episodes, '%d-way test' % way)[:, 1])
        rows.append({'data': label, 'way': way, 'shot': sampler.shot, 'episodes': n_episodes,
                     'accuracy': round(mean, 2), 'interval': round(half, 2), 'paper': paper.get(way, '')})
        print('%s, %d-way %d-shot: %.2f +- %.2f %% on %d test episodes%s' % (
            label, way, sampler.shot, mean, half, n_episodes,
            '; the paper has %s %%' % paper[way] if way in paper else '; the paper has no such number'), flush=True)
    with replacing(os.path.join(out, 'final_test.csv')) as part, open(part, 'w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
