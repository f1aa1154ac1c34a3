"""The README's Python, as it stands there."""
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import data
from ops.compat import chainer

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)


def example(word):
    """The one block of Python in the README that has the word."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        (block,) = [block for block in re.findall(r'```python\n(.*?)```', file.read(), re.DOTALL) if word in block]
    return block


@pytest.fixture
def episode():
    return data.EpisodeSampler(data.synthetic_strokes(5, seed=9), 5, 1, 4).sample()


def test_a_network_of_ones_own_learns(episode):
    names = {}
    exec(example('class MLP'), names)
    model = names['model']
    optimizer = chainer.optimizers.Adam().setup(model)
    before = {name: param.array.copy() for name, param in model.namedparams()}
    losses = []
    for _ in range(20):
        loss = model.loss(episode)
        model.cleargrads()
        loss.backward()
        optimizer.update()
        losses.append(float(loss.array))
    assert losses[-1] < losses[0]
    moved = {name for name, param in model.namedparams() if (param.array != before[name]).any()}
    # u's softmax layer only serves to make gradients, and there is no convolution to generate.
    unused = {name for name in before if name.startswith(('/m_conv', '/d_conv'))}
    assert set(before) - moved == unused | {'/embed/softmax5/W'}


def test_a_network_of_ones_own_needs_no_other_import():
    done = subprocess.run([sys.executable, '-c', example('class MLP')], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_loop_for_it_trains(monkeypatch):
    monkeypatch.setattr(data, 'omniglot', lambda: (data.synthetic_strokes(8), {}, 'synthetic strokes'))
    names = {}
    exec(example('class MLP'), names)
    before = {name: param.array.copy() for name, param in names['model'].namedparams()}
    exec(example('for i in range').replace('300', '2'), names)
    assert any((param.array != before[name]).any() for name, param in names['model'].namedparams())


def test_the_trained_model_in_a_few_lines(episode, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {'support_x': episode.support_x, 'support_y': episode.support_y, 'query_x': episode.query_x}
    exec(example('load('), names)
    # Characters of another kind than it was trained on; chance is 0.2.
    assert np.mean(names['classes'] == episode.query_y) > 0.6
