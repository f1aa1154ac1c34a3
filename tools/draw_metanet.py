"""Draws assets/metanet.png, the model with the numbers of its five steps.

    python tools/draw_metanet.py
    python tools/draw_metanet.py --out FOLDER
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from experiment import console
from experiment.console import plain_errors
from sources.files import replacing

ASSETS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'assets')
SLOW, FAST, META, DATA = '#dbe7f5', '#fbe3c8', '#dff0d8', '#eeeeee'
INK, BADGE = '#333333', '#b5332e'
STEPS = 'define a network', 'mark its adaptable layers', 'meta information', 'fast weights', 'train end to end'
COLOURS = {'slow weights alone': SLOW, 'meta learner': META, 'slow and fast weights': FAST}


class Drawing:
    """A figure in units of a tenth of an inch."""

    def __init__(self, width, height):
        self.figure = Figure(figsize=(width / 10, height / 10))
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height), aspect='equal')
        self.axes.axis('off')

    def text(self, x, y, text, size=9, colour=INK, align='center'):
        self.axes.text(x, y, text, ha=align, va='center', fontsize=size, color=colour)

    def box(self, x, y, width, text, colour, height=8.0, size=10.0):
        self.axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle='round,pad=0.4', facecolor=colour,
                                           edgecolor='#555555'))
        self.text(x + width / 2, y + height / 2, text, size, 'black')

    def arrow(self, start, end, bend=0.0, colour=INK, line='-'):
        self.axes.annotate('', end, start, arrowprops={
            'arrowstyle': '-|>', 'color': colour, 'shrinkA': 0, 'shrinkB': 0, 'linestyle': line,
            'connectionstyle': f'arc3,rad={bend}'})

    def badge(self, x, y, number):
        self.axes.add_patch(Circle((x, y), 1.35, facecolor=BADGE, edgecolor='white', linewidth=1.2, zorder=3))
        self.axes.text(x, y - 0.1, str(number), ha='center', va='center', fontsize=9, color='white', weight='bold',
                       zorder=4)


def draw():
    d = Drawing(116, 72)
    d.box(2, 51, 14, 'support set\n$x\'_i, y\'_i$', DATA)
    d.box(2, 10, 14, 'query example\n$x$', DATA)
    d.box(27, 59, 18, 'base learner $b$\nslow weights $W$', SLOW)
    d.box(27, 43, 18, 'embedding $u$\nslow weights $Q$', SLOW)
    d.box(64, 59, 14, '$m$\n(MLP)', META)
    d.box(64, 43, 14, '$d$\n(LSTM)', META)
    d.box(92, 59, 22, 'memory\nkeys $R$, values $M$', FAST)
    d.box(59, 26, 24, 'embedding $u$\nslow $Q$ + fast $Q^*$', FAST)
    d.box(92, 26, 22, 'attention\n$W^* = \\mathrm{softmax}(\\cos(r, R))\\,M$', FAST, size=8.6)
    d.box(59, 10, 24, 'base learner $b$\nslow $W$ + fast $W^*$', FAST)
    d.box(92, 10, 22, 'prediction $P(y\\,|\\,x)$\nand its loss', DATA)

    d.arrow((16.5, 56.5), (26.4, 62))
    d.text(19, 61.6, 'each')
    d.arrow((16.5, 53.5), (26.4, 47.5))
    d.text(18.6, 48.6, 'groups')
    d.arrow((45.6, 63), (63.4, 63))
    d.text(54.5, 66, 'loss gradients\nof each example')
    d.arrow((45.6, 47), (63.4, 47))
    d.text(54.5, 50, 'loss gradients,\na sequence')
    d.arrow((78.6, 63), (91.4, 63))
    d.text(85, 66.5, 'example-level\nfast weights')
    d.arrow((71, 42.4), (71, 34.6))
    d.text(61.8, 38.6, 'task-level\nfast weights $Q^*$')
    d.arrow((9, 50.4), (58.4, 31.5), bend=0.22)
    d.arrow((12, 18.6), (58.4, 28.5), bend=-0.1)
    d.arrow((79.5, 34.6), (96, 58.4))
    d.text(93.2, 46.6, 'support\nkeys $R$')
    d.arrow((83.6, 30), (91.4, 30))
    d.text(87.5, 32.6, 'query\nkey $r$')
    d.arrow((107, 58.4), (107, 34.6))
    d.arrow((97, 25.4), (83.6, 17.5))
    d.text(92.6, 20.6, '$W^*$')
    d.arrow((16.6, 14), (58.4, 14))
    d.arrow((83.6, 14), (91.4, 14))
    d.axes.plot([103, 103, 45.5], [9.4, 5.5, 5.5], color=BADGE, linestyle='--', linewidth=1.2)
    d.arrow((46, 5.5), (44.5, 5.5), colour=BADGE)
    d.text(43.4, 5.5, 'gradients of the loss for all slow weights, $m$ and $d$', colour=BADGE, align='right')

    d.badge(21.4, 59.2, 1)
    d.badge(21.4, 50.5, 1)
    d.badge(36, 25.9, 2)
    d.badge(36, 14, 2)
    d.badge(49.5, 63, 3)
    d.badge(49.5, 47, 3)
    d.badge(82, 63, 4)
    d.badge(71, 38.6, 4)
    d.badge(89.8, 21.2, 4)
    d.badge(75, 5.5, 5)
    for number, (x, step) in enumerate(zip((4, 24, 51, 72, 91), STEPS), 1):
        d.badge(x, 1.9, number)
        d.text(x + 2.1, 1.8, step, align='left')
    for y, (words, colour) in zip((40, 36.6, 33.2), COLOURS.items()):
        d.box(2.4, y - 0.6, 2, '', colour, height=1.2)
        d.text(6, y, words, align='left')
    return d


def main(words=None):
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--out', default=ASSETS, help='folder of the picture')
    args = parser.parse_args(words)
    with plain_errors(), replacing(os.path.join(args.out, 'metanet.png')) as file:
        draw().figure.savefig(file, dpi=100, format='png')


if __name__ == '__main__':
    console.run(main)
