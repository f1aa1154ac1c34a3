"""Draws assets/omniglot_curves.png from the logs beside it: python assets/draw_curves.py"""
import csv
import os

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of a backend without a window)

ASSETS = os.path.dirname(os.path.abspath(__file__))
WINDOW = 10  # epochs that a point is the mean of: single ones are too noisy to compare
PANELS = {
    '5-way': {'MetaNet, seed 0': 'omniglot_5way.csv', 'MetaNet, seed 1': 'omniglot_5way_26000_seed1.csv',
              'MetaNet-': 'omniglot_5way_minus.csv', 'centred, seed 0': 'omniglot_5way_centred_seed0.csv',
              'centred, seed 1': 'omniglot_5way_centred_seed1.csv',
              'centred, 26,000': 'omniglot_5way_centred_26000.csv'},
    '20-way': {'MetaNet, 12,000': 'omniglot_20way.csv', 'MetaNet, 20,000': 'omniglot_20way_20000.csv',
               'MetaNet-': 'omniglot_20way_minus.csv', 'centred, seed 0': 'omniglot_20way_centred_20000_seed0.csv',
               'centred, seed 1': 'omniglot_20way_centred_20000_seed1.csv'},
}


def errors(path, column):
    """Episodes, and the error in % up to there, for each window of a log."""
    with open(os.path.join(ASSETS, path), newline='') as file:
        rows = list(csv.DictReader(file))
    rows = rows[:len(rows) // WINDOW * WINDOW]
    error = 100 - 100 * np.array([float(row[column]) for row in rows]).reshape(-1, WINDOW).mean(1)
    return [int(row['iteration']) for row in rows[WINDOW - 1::WINDOW]], error


def main():
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, (way, runs) in zip(axes, PANELS.items()):
        for i, (name, path) in enumerate(runs.items()):
            axis.plot(*errors(path, 'main/accuracy'), color='C%d' % i, label=name)
            axis.plot(*errors(path, 'test/%s/accuracy' % way), color='C%d' % i, linestyle=':', linewidth=1)
        axis.set(title='Omniglot, %s 1-shot' % way, xlabel='training episodes', yscale='log', xlim=0, ylim=(1, 50))
        axis.set_yticks([1, 2, 3, 5, 10, 20], labels=['1', '2', '3', '5', '10', '20'])
        axis.yaxis.set_minor_formatter('')
        axis.grid(alpha=.3)
        axis.legend()
    axes[0].set_ylabel('error in %: training, and dotted on new characters')
    figure.tight_layout()
    figure.savefig(os.path.join(ASSETS, 'omniglot_curves.png'), dpi=90)


if __name__ == '__main__':
    main()
