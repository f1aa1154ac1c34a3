"""Draws the learning curves in assets/ from the logs of docs/runs.csv.

    python tools/draw_curves.py
    python tools/draw_curves.py --out FOLDER
"""
import argparse
import csv
import itertools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from experiment import console
from experiment.console import plain_errors
from experiment.pictures import new_picture
from reproduction.runs import ROOT, read_paper, read_runs
from sources.files import replacing

PANELS = {  # way: the runs to draw
    5: ('5A', '5F', '5H', '5I', '5M', '5Q', '5R'),
    10: ('10B', '10C', '10E'),
    15: ('15E', '15B', '15C', '15D'),
    20: ('20A', '20C', '20E', '20F', '20T', '20U'),
}
COLOURS = {'MetaNet': '#1f6fb4', 'MetaNet-': '#3a923a', 'MetaNet, centred': '#d1600d',
           'MetaNet, centred, fast scaled': '#8456b0'}
DASHES = '-', (0, (4, 1.8)), (0, (1, 1.2))  # by seed
WIDTHS = {'last': 1.3, 'average': 2.8}
COLUMNS = {'last': 'test/{}-way/accuracy', 'average': 'average/test/{}-way/accuracy'}  # of a log
MINI_IMAGENET = 'M1', 'M2'
BESIDE = 'MetaNet', 'Matching Nets'  # in the paper's table 2
WINDOW = 4, 1000  # epochs and training episodes that a point is the mean of, at least: single epochs are too noisy
POINTS = 30  # of a curve, at most
GREY = '#444444'


def read_log(run):
    """The rows of a run's log."""
    with open(os.path.join(ROOT, run.log), encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def error(rows, column):
    """Episodes, and the mean error in % up to there, for each window of a log."""
    window = max(WINDOW[0], -(-WINDOW[1] // int(rows[0]['iteration'])), -(-len(rows) // POINTS))
    rows = rows[:len(rows) // window * window]
    accuracy = np.array([float(row[column]) for row in rows]).reshape(-1, window).mean(axis=1)
    return [int(row['iteration']) for row in rows[window - 1::window]], 100 - 100 * accuracy


def dress(axes):
    """Axes that leave the eye to the curves."""
    axes.grid(alpha=0.25, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ('left', 'bottom'))
        spine.set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 4, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))


def draw_way(axes, way, runs, paper):
    """Test error of runs of one way, and the paper's; returns the sorts of weights that were drawn."""
    drawn = set()
    looks = [(run.kind, run.seed) for run in runs]
    for run, look in zip(runs, looks):
        rows = read_log(run)
        for weights, width in WIDTHS.items():
            column = COLUMNS[weights].format(way)
            if column in rows[0]:
                episodes, errors = error(rows, column)
                axes.plot(episodes, errors, color=COLOURS[run.kind], linestyle=DASHES[run.seed], linewidth=width)
                drawn.add(weights)
                if looks.count(look) > 1:
                    axes.annotate(run.name, (episodes[-1], errors[-1]), (4, 0), textcoords='offset points',
                                  va='center', fontsize=9, color=COLOURS[run.kind],
                                  bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.5, 'alpha': 0.85})
    axes.axhline(100 - paper, color='black', linewidth=1)
    axes.annotate(f'the paper: {100 - paper:.2f} %', (1, 100 - paper), (0, -3), xycoords=('axes fraction', 'data'),
                  textcoords='offset points', ha='right', va='top', fontsize=9)
    dress(axes)
    axes.set_title(f'{way}-way', fontsize=11)
    axes.set(yscale='log', ylim=(0.6, 60), xlim=(0, 1.08 * max(run.episodes for run in runs)))
    axes.set_yticks([1, 2, 5, 10, 20, 40], labels=['1', '2', '5', '10', '20', '40'])
    axes.yaxis.set_minor_formatter('')
    return drawn


def draw_omniglot(runs, paper):
    """Test error over training, a panel for each way."""
    figure, panels = new_picture(10, 7, n_columns=2, n_rows=2, sharey=True)
    drawn, seeds = set(), set()
    for axes, (way, names) in zip(panels.flat, PANELS.items()):
        chosen = [runs[name] for name in names]
        seeds.update(run.seed for run in chosen)
        drawn |= draw_way(axes, way, chosen, float(paper['Omniglot', 'previous', 'MetaNet', way, way]))
    for axes in panels[:, 0]:
        axes.set_ylabel('test error (%)', color=GREY)
    for axes in panels[-1]:
        axes.set_xlabel('training episodes', color=GREY)
    handles = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in COLOURS.items()]
    handles += [Line2D([], [], color=GREY, linestyle=DASHES[seed], label=f'seed {seed}') for seed in sorted(seeds)]
    if len(drawn) > 1:
        names = {'last': 'last weights', 'average': 'averaged weights'}
        handles += [Line2D([], [], color=GREY, linewidth=WIDTHS[key], label=name) for key, name in names.items()]
    figure.suptitle('Omniglot, 1-shot, characters not seen in training', fontsize=12, y=0.985)
    figure.legend(handles=handles, loc='upper center', bbox_to_anchor=(0.5, 0.965), ncol=-(-len(handles) // 2),
                  frameon=False, fontsize=9.5)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    return figure


def draw_mini_imagenet(runs, paper):
    """Accuracy of mini-ImageNet runs on dev and test tasks, with last and with averaged weights, and the paper's."""
    figure, axes = new_picture(6.4, 4)
    logs = [(run, read_log(run)) for run in runs]
    drawn = itertools.product(logs, (('dev', '#3a923a'), ('test', '#1f6fb4')), ('', 'average/'))
    for (run, rows), (part, colour), prefix in drawn:
        # There is a test only where the dev accuracy is the best so far.
        column = f'{prefix}{part}/5-way/accuracy'
        points = [(int(row['iteration']), 100 * float(row[column])) for row in rows if row[column]]
        axes.plot(*zip(*points), color=colour, linewidth=WIDTHS['average' if prefix else 'last'], marker='o',
                  markersize=3, linestyle=DASHES[run.seed], label=f'{part} tasks, {"averaged" if prefix else "last"} '
                  f'weights, seed {run.seed}')
    for name in BESIDE:
        accuracy = float(paper['mini-ImageNet', '', name, 5, 5])
        axes.axhline(accuracy, color='black', linewidth=1)
        axes.annotate(f'paper, {name}: {accuracy} %', (0, accuracy), (4, 3), xycoords=('axes fraction', 'data'),
                      textcoords='offset points', ha='left', va='bottom', fontsize=9)
    dress(axes)
    axes.set_ylim(28, 51)  # room for the legend
    axes.set_xlabel('training episodes', color=GREY)
    axes.set_ylabel('accuracy (%)', color=GREY)
    axes.set_title('mini-ImageNet, 5-way 1-shot, "partial, u", centred', fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc='lower right', ncol=2)
    figure.tight_layout()
    return figure


def main(words=None):
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--out', default=os.path.join(ROOT, 'assets'), help='folder of the pictures')
    args = parser.parse_args(words)
    with plain_errors():
        runs, paper = read_runs(), read_paper()
        pictures = {'omniglot_curves.png': draw_omniglot(runs, paper['table 1']),
                    'mini_imagenet.png': draw_mini_imagenet([runs[name] for name in MINI_IMAGENET], paper['table 2'])}
        for name, figure in pictures.items():
            with replacing(os.path.join(args.out, name)) as file:
                figure.savefig(file, dpi=110, format='png')


if __name__ == '__main__':
    console.run(main)
