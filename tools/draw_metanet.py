"""Draws metanet.png beside this file: python assets/draw_metanet.py"""
import os

import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

SLOW, FAST, META, DATA = '#dbe7f5', '#fbe3c8', '#dff0d8', '#eeeeee'

figure, axes = plt.subplots(figsize=(11, 6.4))
axes.set(xlim=(0, 110), ylim=(1, 61))
axes.axis('off')


def box(x, y, width, text, color, height=7.5, size=10):
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle='round,pad=0.4', facecolor=color,
                                  edgecolor='#555555'))
    axes.text(x + width / 2, y + height / 2, text, ha='center', va='center', fontsize=size)


def arrow(start, end, text='', offset=(0, 1.2), bend=0.0, color='#333333'):
    axes.annotate('', end, start, arrowprops={'arrowstyle': '-|>', 'color': color, 'shrinkA': 0, 'shrinkB': 0,
                                              'connectionstyle': 'arc3,rad=%s' % bend})
    axes.text((start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1], text, ha='center', va='center',
              fontsize=9, color=color)


box(1, 43, 14, 'support set\n$x\'_i, y\'_i$', DATA)
box(1, 3, 14, 'query example\n$x$', DATA)
box(23, 51, 17, 'base learner $b$\nslow weights $W$', SLOW)
box(23, 35, 17, 'embedding $u$\nslow weights $Q$', SLOW)
box(57, 51, 14, '$m$\n(MLP)', META)
box(57, 35, 14, '$d$\n(LSTM)', META)
box(52, 19, 24, 'embedding $u$\nslow $Q$ + fast $Q^*$', FAST)
box(86, 51, 23, 'memory\nkeys $R$, values $M$', FAST)
box(86, 19, 23, 'attention\n$W^* = \\mathrm{softmax}(\\cos(r, R))\\,M$', FAST, size=9)
box(52, 3, 24, 'base learner $b$\nslow $W$ + fast $W^*$', FAST)
box(94, 3, 15, 'prediction\n$P(y\\,|\\,x)$', DATA)

arrow((15.5, 48), (22.5, 54), 'each', (-1.5, 1.6))
arrow((15.5, 45.5), (22.5, 39.5), 'groups', (2.2, 1.8))
arrow((40.5, 54.8), (56.5, 54.8), 'loss gradients\nof each example', (0, 2.7))
arrow((40.5, 38.8), (56.5, 38.8), 'loss gradients,\na sequence', (0, 2.7))
arrow((71.5, 54.8), (85.5, 54.8), 'example-level\nfast weights', (0, 2.7))
arrow((64, 34.5), (64, 27), 'task-level\nfast weights $Q^*$', (-8.5, 0.3))
arrow((8, 42.5), (51.5, 24.5), bend=0.25)
arrow((11, 11), (51.5, 21.5), bend=-0.1)
arrow((72, 27), (89, 50.5), 'support\nkeys $R$', (5.5, 1))
arrow((76.5, 22.8), (85.5, 22.8), 'query\nkey $r$', (0, 2.7))
arrow((99, 50.5), (99, 27))
arrow((90, 18.5), (76.5, 9.5), '$W^*$', (2, -1.5))
arrow((15.5, 6.8), (51.5, 6.8))
arrow((76.5, 6.8), (93.5, 6.8))

for i, (color, text) in enumerate(((SLOW, 'slow weights alone'), (META, 'meta learner'), (FAST, 'uses fast weights'))):
    box(1, 30 - 3.6 * i, 2, '', color, height=1.4)
    axes.text(4.8, 30.7 - 3.6 * i, text, fontsize=9, va='center')

figure.savefig(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'metanet.png'), dpi=110, bbox_inches='tight')
