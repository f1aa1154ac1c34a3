"""tools/prototypical.py, on small data."""
import csv

import numpy as np
import pytest
from small_models import episode
from small_scripts import save_parts

from metanet import CNN
from ops.compat import chainer
from tools import prototypical


@pytest.mark.parametrize('scale', [1, .01])
def test_scores_are_scaled_distances_but_for_what_all_classes_share(scale):
    model = prototypical.PrototypicalNetwork(CNN(4, None, n_slow=5), scale)
    task = episode(3, 2)
    keys = model.embed(np.concatenate((task.support_x, task.query_x))).array
    prototypes = np.stack([keys[:6][task.support_y == label].mean(axis=0) for label in range(3)])
    expected = -scale * ((keys[6:, None] - prototypes) ** 2).sum(axis=2)
    scores = model(*task[:3]).array
    np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], atol=1e-4 * abs(expected).max())
    model.cleargrads()
    model.loss(task).backward()
    assert isinstance(model, chainer.Chain) and all(param.grad is not None for param in model.embed.conv1.params())


def test_a_run_says_how_distances_are_scaled(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_parts('parts')
    prototypical.main(['--input_path=parts', '--out=here', '--n_epoch=1', '--n_episodes=2', '--n_outputs_train=3',
                       '--n_outputs_test=3', '--n_queries=1', '--n_queries_test=1', '--n_dev_episodes=2',
                       '--n_test_episodes=2', '--n_filters=2', '--scale=0.5'])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('prototypical network (distances times 0.5) trained 3-way, on own data')
    with open('here/final_test.csv', newline='', encoding='utf-8') as file:
        row, = csv.DictReader(file)
    assert (row['trained'], row['episodes'], row['model']) == ('2', '2', last.split(', 3-way')[0])


def test_a_scale_that_is_none_is_refused():
    with pytest.raises(SystemExit, match='scale = 0.0: must be a number above 0'):
        prototypical.main(['--scale=0'])
