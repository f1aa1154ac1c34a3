"""The README and the pages in docs: their Python, as it stands there, and their links."""
import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import data
import metanet

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
PAGES = 'README.md', 'CONTRIBUTING.md', *(f'docs/{name}.md' for name in (
    'results', 'extending', 'speed', 'reproducing', 'breakdowns'))


def text(path):
    with open(os.path.join(ROOT, path), encoding='utf-8') as file:
        return file.read()


def example(word, path='README.md'):
    """The one block of Python in a page that has the word."""
    (block,) = [block for block in re.findall(r'```python\n(.*?)```', text(path), re.DOTALL) if word in block]
    return block


def names_of(block, **names):
    """What a block of Python has defined."""
    exec(block, names)
    return names


def train(model, episode, n_updates=20):
    """The losses of some updates on one episode."""
    optimizer = metanet.chainer.optimizers.Adam().setup(model)
    losses = []
    for _ in range(n_updates):
        loss = model.loss(episode)
        model.cleargrads()
        loss.backward()
        optimizer.update()
        losses.append(float(loss.array))
    return losses


def arrays(model):
    return {name: param.array.copy() for name, param in model.namedparams()}


def moved(model, before):
    return {name for name, array in arrays(model).items() if (array != before[name]).any()}


@pytest.fixture
def episode():
    return data.EpisodeSampler(data.synthetic_strokes(5, seed=9), 5, 1, 4).sample()


def test_a_network_of_ones_own_learns(episode):
    model = names_of(example('class MLP'))['model']
    before = arrays(model)
    losses = train(model, episode)
    assert losses[-1] < losses[0]
    # u's softmax layer only serves to make gradients, and there is no convolution to generate.
    unused = {name for name in before if name.startswith(('/m_conv', '/d_conv'))}
    assert set(before) - moved(model, before) == unused | {'/embed/softmax5/W'}


@pytest.mark.parametrize('word, path', [('class MLP', 'README.md'), ('class FastEmbedID', 'docs/extending.md'),
                                        ('class FastConvolution1D', 'docs/extending.md'),
                                        ('class OneLayer', 'docs/extending.md'),
                                        ('class SquaredError', 'docs/extending.md')])
def test_an_example_needs_no_other_import(word, path):
    done = subprocess.run([sys.executable, '-c', example(word, path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_network_is_written_in_twelve_lines():
    network = example('class MLP').split('\nmodel = ')[0]
    assert len([line for line in network.splitlines() if line.strip()]) <= 12


def test_the_loop_trains_and_says_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(data, 'omniglot', lambda: (data.synthetic_strokes(8), {}, 'synthetic strokes'))
    names = names_of(example('class MLP'))
    before = arrays(names['model'])
    names_of(example('for i in range', 'docs/extending.md').replace('301', '51'), **names)
    assert moved(names['model'], before)
    assert re.fullmatch(r'50 episodes, loss \d+\.\d{3}\n', capsys.readouterr().out)


def test_a_network_for_token_ids_learns():
    model = names_of(example('class FastEmbedID', 'docs/extending.md'))['model']
    random = np.random.RandomState(0)
    labels = np.arange(5, dtype=np.int32)
    support_x = random.randint(100, size=(5, 7)).astype(np.int32)
    query_x = np.stack([random.permutation(row) for row in support_x])
    before = arrays(model)
    losses = train(model, data.Episode(support_x, labels, query_x, labels), 100)
    assert losses[-1] < 0.5 * losses[0]
    assert {'/base/tokens/W', '/embed/tokens/W', '/d_fc/lstm/upward/W', '/m_fc/l1/W'} <= moved(model, before)


def test_token_groups_have_tables_of_their_own():
    layer = names_of(example('class FastEmbedID', 'docs/extending.md'))['FastEmbedID'](10, 3)
    tables = np.random.RandomState(0).rand(2, 10, 3).astype(np.float32)
    x = np.arange(6, dtype=np.int32).reshape(3, 2)
    layer.group = 2
    y = layer.product(x, [metanet.chainer.Variable(tables)], relu=False).array
    assert (y == np.stack([tables[0][x[0]], tables[0][x[1]], tables[1][x[2]]])).all()


def test_a_convolution_of_ones_own_has_weights_for_each_group():
    names = names_of(example('class FastConvolution1D', 'docs/extending.md'))
    F, random = metanet.F, np.random.RandomState(0)
    layer = names['FastConvolution1D'](2, 3, stride=2)
    x = random.randn(5, 2, 8).astype(np.float32)
    kernels = random.randn(3, 3, 2, 3).astype(np.float32)
    layer.group = 2  # the last group has one
    y = layer.product(x, [layer.W, metanet.chainer.Variable(kernels)], relu=True).array
    each = [F.relu(F.convolution_1d(x[i:i + 1], kernels[i // 2], stride=2, pad=1)).array for i in range(5)]
    expected = np.concatenate(each) + F.relu(F.convolution_1d(x, layer.W, stride=2, pad=1)).array
    assert y.shape == (5, 3, 4)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_a_meta_learner_of_ones_own_learns(episode):
    model = names_of(example('class OneLayer', 'docs/extending.md'))['model']
    before = arrays(model)
    losses = train(model, episode)
    assert losses[-1] < losses[0] and '/m_fc/out/W' in moved(model, before)


def test_another_loss_makes_other_gradients(episode):
    names = names_of(example('class MLP'))
    other = names_of(example('class SquaredError', 'docs/extending.md'))['SquaredErrorMetaNet']
    networks = names['MLP'](), names['MLP'](activation=None)
    gradients = []
    for kind in (metanet.MetaNet, other):
        model = kind(*networks, ways=[5])
        model.initialize_uniform(seed=0)
        gradients.append(model.meta_information(model.base, episode.support_x, episode.support_y, 5, 1))
    for usual, changed in zip(*gradients):
        assert usual.shape == changed.shape and np.abs(usual - changed).max() > 0


def test_the_trained_model_in_a_few_lines(episode, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = names_of(example('load('), support_x=episode.support_x, support_y=episode.support_y,
                     query_x=episode.query_x)
    # Characters of another kind than it was trained on; chance is 0.2.
    assert np.mean(names['classes'] == episode.query_y) > 0.6


def test_the_readme_is_short_and_no_line_is_wide():
    assert len(text('README.md').splitlines()) <= 170
    prose = re.sub('```.*?```', '', text('README.md'), flags=re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 140] == []


def test_the_steps_are_numbered_one_to_five():
    steps = text('README.md').split('## The idea in five steps')[1].split('###')[0]
    assert re.findall(r'^(\d)\. \*\*', steps, re.MULTILINE) == list('12345')


def test_the_readmes_names_of_the_model_are_its_names():
    for name in ('Network', 'FastConvolution2D', 'FastLinear', 'CNN'):
        assert inspect.isclass(getattr(metanet, name))
    for name in ('forward', 'meta_information', 'loss'):
        assert f'MetaNet.{name}`' in text('README.md') and callable(getattr(metanet.MetaNet, name))


@pytest.mark.parametrize('page', PAGES)
def test_every_link_to_a_file_or_a_heading_leads_somewhere(page):
    for target in re.findall(r'\]\(([^)]+)\)', text(page)):
        if '://' in target:
            continue
        path, _, heading = target.partition('#')
        path = os.path.join(os.path.dirname(page), path) if path else page
        assert os.path.exists(os.path.join(ROOT, path)), target
        if heading:
            titles = re.findall(r'^#+ (.*)$', text(path), re.MULTILINE)
            assert heading in [re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles], target
