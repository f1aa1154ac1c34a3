"""Figure 4 of the paper: how learning MNIST changes what was learned on Omniglot (continual learning).

    python figures/figure4.py
    python figures/figure4.py --seed 1 --out result/figure4_seed1

Base learner and embedding are MLPs. They are trained on Omniglot. Then others with slow weights of their own are
trained on MNIST, its pixels in 50 fixed orders, which makes 500 classes. Both tasks share the meta learner alone, m and
d: it goes from Omniglot to MNIST, and every 400 episodes back, for a test on new characters of Omniglot.

The paper says neither how long it trained on Omniglot nor of how many ways. Here an MLP has three adaptable layers, and
the optimizer starts anew on MNIST. Every constant below may be given on the command line; the same command goes on
where it was stopped.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from experiment import console

if __name__ == '__main__':
    console.start()  # the imports below take seconds, in which Ctrl-C shall be no traceback either

import numpy as np

import data
from experiment.checkpoints import claim
from experiment.console import plain_errors, say
from experiment.evaluation import interval, test
from experiment.log import record
from experiment.loop import Clipping, EpisodeUpdater, Epochs, train
from experiment.pictures import check_names, new_picture, read_table, save_picture, write_table
from experiment.settings import COMMON, configured, path_of, whole
from metanet import F, FastLinear, MetaNet, Network
from ops.compat import chainer, training
from ops.device import use_device

input_path = 'data/omniglot'  # folder of Omniglot, where it is kept
mnist_path = ''  # folder of MNIST's four files; '': what MNIST_DIR names, else they are downloaded
out = 'result/figure4'  # folder for both trainings and the figure
gpu = -1  # number of the CUDA device; -1 for the CPU
seed = 0  # of initial weights, episodes and orders of pixels
n_outputs_train = 5  # way, everywhere
nb_samples_per_class = 1  # shot, everywhere
n_queries = 10  # query images a class, everywhere
n_units = 64  # of each layer
n_permutations = 50  # orders of MNIST's pixels
n_epoch_omniglot = 25  # epochs of training on Omniglot
n_epoch = 19  # epochs of training on MNIST
n_episodes = 400  # training episodes of an epoch
n_test_episodes = 1000  # of Omniglot, after every epoch on MNIST, the same each time
alpha = 1e-3  # Adam's learning rate
clip = 10.0  # bound of the gradient's norm

CHECKS = {name: COMMON[name] for name in ('input_path', 'out', 'gpu', 'seed', 'n_outputs_train', 'nb_samples_per_class',
                                          'n_queries', 'n_epoch', 'n_episodes', 'alpha', 'clip')}
CHECKS.update(mnist_path=path_of('a folder', optional=True), n_units=whole(1, 10 ** 4), n_permutations=whole(1, 1000),
              n_epoch_omniglot=whole(1), n_test_episodes=whole(2))
MNIST_ALONE = 'n_permutations', 'n_epoch', 'n_test_episodes'  # settings that Omniglot's training ignores
META = 'm_conv', 'm_fc', 'd_conv', 'd_fc'  # the meta learner's parts, Z and G in the paper
PAPER = 1.24, -1.7  # the largest changes of accuracy in the paper, in %


class MLP(Network):
    """Three adaptable layers on an image's pixels.

    Args:
        n_pixels: of an image.
        n_units: of each layer.
        activation: of the last: F.relu in a base learner, None in an embedding.
    """

    def __init__(self, n_pixels, n_units, activation=F.relu):
        super().__init__(n_units)
        with self.init_scope():
            self.fc1 = FastLinear(n_pixels, n_units)
            self.fc2 = FastLinear(n_units, n_units)
            self.fc3 = FastLinear(n_units, n_units, activation)

    def forward(self, x):
        return self.fc3(self.fc2(self.fc1(x.reshape(len(x), -1))))


class Permuted:
    """A class of a data set: images (n, height, width) with their pixels in another order, made when they are drawn.

    Args:
        images: uint8 (n, height, width).
        order: a permutation of their pixels' numbers.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, images, order):
        self.images = images
        self.order = order
        self.shape = images.shape

    def __len__(self):
        return len(self.images)

    def __getitem__(self, indices):
        images = self.images[indices]
        return images.reshape(len(images), -1)[:, self.order].reshape(images.shape)


class Retention(training.Extension):
    """Gives the meta learner of the model that is trained to another, and tests that, every epoch.

    Reports `test/Omniglot/accuracy` and `loss`; `test/Omniglot/change`, the mean change of the episodes' accuracy, in
    %, since the extension was made, and `test/Omniglot/interval`, half the width of its 95 % interval.

    Args:
        trained: the model that is trained.
        kept: the one that is tested.
        sampler: `data.EpisodeSampler` of the tests; each has the same episodes.
        n_episodes: how many.
    """

    trigger = 1, 'epoch'
    priority = training.PRIORITY_WRITER
    default_name = 'retention'

    def __init__(self, trained, kept, sampler, n_episodes):
        self.trained = trained
        self.kept = kept
        self.sampler = sampler
        self.start = sampler.get_state()
        self.n_episodes = n_episodes
        self.before = self._test()

    def _test(self):
        self.sampler.set_state(self.start)
        return test(self.kept, self.sampler, self.n_episodes, 'test')

    def __call__(self, trainer):
        carry(self.trained, self.kept)
        results = self._test()
        change, half = interval(100 * (results - self.before)[:, 1])
        loss, accuracy = results.mean(axis=0)
        chainer.report({f'test/Omniglot/{name}': value for name, value in (
            ('loss', loss), ('accuracy', accuracy), ('change', change), ('interval', half))})


def carry(source, target):
    """Copies the meta learner of a `MetaNet` to another."""
    for name in META:
        target[name].copyparams(source[name])


def build(n_pixels, number):
    """A model with initial weights of its own."""
    np.random.seed([seed, number])
    model = MetaNet(MLP(n_pixels, n_units), MLP(n_pixels, n_units, activation=None), [n_outputs_train])
    model.initialize_uniform([seed, number])
    return model


def prepare(model, sampler, source, epochs, name, settings):
    """A trainer of a model, in the folder `name` of `out`."""
    folder = os.path.join(out, name)
    claim(folder, settings, {})
    optimizer = chainer.optimizers.Adam(alpha).setup(model)
    optimizer.add_hook(Clipping(clip))
    trainer = training.Trainer(EpisodeUpdater(model, optimizer, sampler, n_episodes), Epochs(epochs), folder)
    record(trainer, source)
    return trainer


def run(settings):
    """Both trainings, the tests, and the figure."""
    episodes = n_outputs_train, nb_samples_per_class, n_queries
    with plain_errors():
        check_names(out, 'figure4.csv', 'figure4.png')
        device = use_device(gpu)
        characters, new_characters, omniglot_name = data.omniglot(input_path, 'previous')
        digits, _, mnist_name = data.mnist(mnist_path or None)
        shapes = data.image_shape(characters), data.image_shape(digits)
        if shapes[0] != shapes[1]:
            raise ValueError(f'characters have (channels, size) {shapes[0]}, but digits {shapes[1]}: give others that '
                             'have the same (input_path)')
        source = f'{omniglot_name}, then {mnist_name}'
        digests = data.digest_of(omniglot_name, characters, new_characters), data.digest_of(mnist_name, digits)
        settings = dict(settings, data=source, data_digest=' '.join(filter(None, digests)))
        del settings['mnist_path']  # another run may find them elsewhere
        orders = np.random.RandomState([seed, 2])
        orders = [orders.permutation(digits['0'][0].size) for _ in range(n_permutations)]
        permuted = {f'{digit}, order {i}': Permuted(images, order)
                    for i, order in enumerate(orders) for digit, images in digits.items()}
        samplers = [data.EpisodeSampler(classes, *episodes, rotate=rotate, seed=(seed, i), xp=device.xp)
                    for i, (classes, rotate) in enumerate(((characters, True), (permuted, False),
                                                           (new_characters, False)))]
        models = [build(orders[0].size, number) for number in range(2)]
        for model in models:
            model.to_device(device)
        first = prepare(models[0], samplers[0], omniglot_name, n_epoch_omniglot, 'omniglot',
                        {name: value for name, value in settings.items() if name not in MNIST_ALONE})
        second = prepare(models[1], samplers[1], mnist_name, n_epoch, 'mnist', settings)
    train(first)
    carry(*models)
    retention = Retention(models[1], models[0], samplers[2], n_test_episodes)
    second.extend(retention)
    train(second)
    with plain_errors():
        report(second.get_extension('log').log, retention.before[:, 1], omniglot_name)


def report(rows, before, source):
    """Writes figure4.csv and figure4.png, and prints what the paper says of its own."""
    path = os.path.join(out, 'figure4.csv')
    accuracy, half = interval(100 * before)
    points = [{'episodes': 0, 'accuracy': accuracy, 'change': 0., 'interval': 0.}]
    points += [{'episodes': row['iteration'], 'accuracy': 100 * row['test/Omniglot/accuracy'],
                'change': row['test/Omniglot/change'], 'interval': row['test/Omniglot/interval']} for row in rows]
    write_table(path, [{**{name: round(value, 2) for name, value in point.items()}, 'seed': seed} for point in points])
    draw([path], os.path.join(out, 'figure4.png'))
    say(f'{source}, {n_outputs_train}-way {nb_samples_per_class}-shot, before MNIST: {accuracy:.2f} +- {half:.2f} % on '
        f'{n_test_episodes} test episodes')
    for name, choose, paper in ('gain', max, PAPER[0]), ('loss', min, PAPER[1]):
        point = choose(points[1:], key=lambda point: point['change'])
        say(f'largest {name}: {point["change"]:+.2f} +- {point["interval"]:.2f} % after {point["episodes"]} MNIST '
            f'episodes; the paper {paper:+.2f} %')


def draw(paths, picture):
    """Draws the change of accuracy over training on MNIST, a line for each csv of a run."""
    figure, axes = new_picture(7, 4)
    for path in paths:
        rows = read_table(path)
        episodes, change, half = (np.array([float(row[name]) for row in rows])
                                  for name in ('episodes', 'change', 'interval'))
        line, = axes.plot(episodes, change, marker='o', markersize=3, label=f'seed {rows[0]["seed"]}')
        axes.fill_between(episodes, change - half, change + half, color=line.get_color(), alpha=0.15)
    for value in PAPER:
        axes.axhline(value, color='black', linewidth=1, linestyle='--')
        axes.annotate(f'the paper: {value:+.2f} %', (1, value), (0, 3), xycoords=('axes fraction', 'data'),
                      textcoords='offset points', ha='right', fontsize=9)
    axes.axhline(0, color='grey', linewidth=0.8)
    axes.set(xlabel='training episodes on MNIST', ylabel='change of accuracy on Omniglot (%)')
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save_picture(figure, picture)


def main(words=()):
    """Runs as the constants above say, or `words`, such as ['--seed', '1']."""
    with configured(globals(), words, CHECKS) as (settings, _):
        run(settings)


if __name__ == '__main__':
    console.run(main)
