"""Figure 5 of the paper: MNIST, 10-way one-shot, by models that were trained on Omniglot.

    python figures/figure5.py
    python figures/figure5.py --models result/omniglot/model.npz,result/minus/model.npz

No model has seen MNIST. Each learns the ten digits from one test image of each, and is asked about others. A model
trained with another number of classes gets an inserted softmax layer (section 4.2.1 of the paper). Every constant below
may be given on the command line.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from experiment import console

if __name__ == '__main__':
    console.start()  # the imports below take seconds, in which Ctrl-C shall be no traceback either

import data
import train_omniglot
from experiment.console import plain_errors
from experiment.models import settings_in
from experiment.pictures import check_names, new_picture, read_table, save_picture, write_table
from experiment.results import final_test, is_papers
from experiment.settings import COMMON, Check, configured, path_of, refuse_images, whole
from ops.device import use_device

# npz files of trained models, with a comma between them
models = 'assets/omniglot_5way.npz,assets/omniglot_20way.npz,assets/omniglot_20way_centred.npz'
mnist_path = ''  # folder of MNIST's four files; '': what MNIST_DIR names, else they are downloaded
out = 'result/figure5'  # folder for the figure and its numbers
gpu = -1  # number of the CUDA device; -1 for the CPU
seed = 0  # of the episodes
nb_samples_per_class = 1  # shot
n_queries = 10  # query images a class
n_test_episodes = 1000
inserted_scale = 0.0  # bound of the weights of inserted softmax layers; 0.1: as the paper's all

CHECKS = {name: COMMON[name] for name in ('out', 'gpu', 'seed', 'nb_samples_per_class', 'n_queries', 'inserted_scale')}
CHECKS.update(models=Check('paths of models in one text, with a comma between them',
                           lambda value: isinstance(value, str) and all(paths(value)), str),
              mnist_path=path_of('a folder', optional=True), n_test_episodes=whole(2))
PAPER = {'MetaNet-': 71.6, 'MetaNet': 74.8, 'MetaNet+': 72.3}  # accuracies in %
OTHERS = {'Matching Nets': 72.0, 'Siamese Net': 70.3}  # in the paper, too


def paths(text):
    """A list of the paths in a setting."""
    return [path.strip() for path in text.split(',')]


def run():
    """Tests all models on the same episodes."""
    with plain_errors():
        check_names(out, 'figure5.csv', 'figure5.png')
        table = os.path.join(out, 'figure5.csv')
        if os.path.lexists(table):
            raise FileExistsError(f'{table} has the results of an earlier test: give another folder (out), or move it')
        device = use_device(gpu)
        for path in paths(models):
            settings_in(path)  # before MNIST is fetched
        _, digits, source = data.mnist(mnist_path or None)
        loaded = []
        for path in paths(models):
            _, trained = train_omniglot.load(path, [len(digits)], inserted_scale)
            refuse_images(trained, data.image_shape(digits), source)
            loaded += [train_omniglot.load(path, [len(digits)], inserted_scale, weights)
                       for weights in trained['all_weights']]
        sampler = data.EpisodeSampler(digits, len(digits), nb_samples_per_class, n_queries, seed=seed, xp=device.xp)
    rows = []
    for model, trained in loaded:
        model.to_device(device)
        comparable = (trained['data'] == 'Omniglot' and source == 'MNIST'
                      and nb_samples_per_class == trained['nb_samples_per_class'] == 1
                      and is_papers(trained, train_omniglot.usual_classes(trained), train_omniglot.SIZES))
        paper = PAPER[trained['variant']] if comparable else None
        label = train_omniglot.label(dict(trained, inserted_scale=inserted_scale), source)
        final_test(model, {len(digits): sampler}, n_test_episodes, label, {len(digits): paper},
                   lambda row, trained=trained: rows.append({**row, 'seed': trained['seed']}))
    with plain_errors():
        os.makedirs(out, exist_ok=True)
        write_table(table, rows)
        draw(table, os.path.join(out, 'figure5.png'))


def draw(path, picture):
    """Draws the accuracies in a csv of this script, and the paper's, as bars."""
    rows = read_table(path)
    bars = [(f'{name}, the paper', value, None, 'lightgrey') for name, value in {**OTHERS, **PAPER}.items()]
    pixels = float(rows[0]['pixels']), float(rows[0]['pixels_interval'])
    bars.append(('nearest neighbour on pixels', *pixels, 'tab:orange'))
    bars += [(f'{row["model"]}, seed {row["seed"]}'.replace(', tested on', ',\ntested on'), float(row['accuracy']),
              float(row['interval']), 'tab:blue') for row in rows]
    figure, axes = new_picture(9, 1 + 0.45 * len(bars))
    names, values, halves, colours = zip(*reversed(bars))
    axes.barh(range(len(bars)), values, xerr=[half or 0 for half in halves], color=colours)
    axes.set_yticks(range(len(bars)), labels=names, fontsize=8)
    for i, (value, half) in enumerate(zip(values, halves)):
        axes.annotate(f'{value:.1f}', (value + (half or 0), i), (6, 0), textcoords='offset points', va='center',
                      fontsize=8)
    axes.set(xlabel='accuracy (%), 10-way', xlim=(0, 100))
    axes.spines[['top', 'right']].set_visible(False)
    save_picture(figure, picture)


def main(words=()):
    """Runs as the constants above say, or `words`, such as ['--n_test_episodes', '100']."""
    with configured(globals(), words, CHECKS):
        run()


if __name__ == '__main__':
    console.run(main)
