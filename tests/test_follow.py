"""tools/follow.py, on a small run on invented characters."""
import csv
import json
import os
import shutil

import numpy as np
import pytest
from small_runs import ending
from small_scripts import save_strokes, train

from tools import follow

RUN = ['--input_path=characters', '--n_outputs_train=3', '--n_outputs_test=3', '--n_episodes=4', '--out=run']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Where a run of 4 episodes has its folder."""
    folder = tmp_path_factory.mktemp('follow')
    (folder / 'characters').mkdir()
    save_strokes(folder / 'characters')
    before = os.getcwd()
    os.chdir(folder)
    train('train_omniglot', *RUN)
    os.chdir(before)
    return folder


@pytest.fixture
def folder(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(follow, 'STEP', 2)
    return tmp_path


def rows(*words):
    follow.main(['run', '--input_path=characters', '--n_episodes=4', '--out=rows.csv', *words])
    with open('rows.csv', encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def test_without_a_change_it_is_the_run_itself(folder):
    before = {path.name: path.read_bytes() for path in (folder / 'run').iterdir()}
    found = rows()
    assert before == {path.name: path.read_bytes() for path in (folder / 'run').iterdir()}
    train('train_omniglot', *RUN, '--n_epoch=2')
    with open('run/log', encoding='utf-8') as file:
        resumed = json.load(file)[-1]
    assert [row['episodes'] for row in found] == ['6', '8']
    for name, logged in ('loss', 'main/loss'), ('accuracy', 'main/accuracy'):
        np.testing.assert_allclose(np.mean([float(row[name]) for row in found]), resumed[logged], atol=1e-4)
    assert all(-1 <= float(row['keys alike']) <= 1 for row in found)


@pytest.mark.parametrize('change', [['--alpha=0.1'], ['--beta2=0.1'], ['--weight_decay_rate=0.1'], ['--centred=keys']])
def test_a_change_changes_the_rows(folder, change):
    assert rows()[1]['gradient norm'] != rows(*change)[1]['gradient norm']


def test_amsgrad_starts_with_what_adam_knows(folder):
    options = {'alpha': None, 'beta2': None, 'weight_decay_rate': None, 'centred': None, 'input_path': 'characters'}
    updater = follow.started('run', follow.argparse.Namespace(amsgrad=True, **options))
    for _ in follow.follow(updater, 2):
        pass
    for param in updater.model.params():
        assert (param.update_rule.state['vhat'] >= param.update_rule.state['v']).all()


def test_other_data_are_refused(folder, monkeypatch):
    settings = json.loads((folder / 'run' / 'settings.json').read_text())
    (folder / 'run' / 'settings.json').write_text(json.dumps(dict(settings, data='Omniglot')))
    assert 'run was trained on Omniglot, not on ' in ending(follow.main, ['run', '--input_path=characters'])


def test_rows_are_drawn(folder):
    rows()
    follow.main(['rows.csv', '--draw', '--out=picture.png'])
    assert (folder / 'picture.png').read_bytes()[:4] == b'\x89PNG'
