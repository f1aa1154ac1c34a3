"""tools/follow.py, on small runs on invented characters."""
import argparse
import csv
import json

import numpy as np
import pytest
from small_runs import ending
from small_scripts import save_strokes, train

from tools import follow

RUN = ['--input_path=characters', '--n_outputs_train=3', '--n_outputs_test=3', '--n_episodes=4', '--out=run']
NO_CHANGE = {**dict.fromkeys(('alpha', 'beta2', 'weight_decay_rate', 'centred', 'hidden_scale', 'fast_scale')),
             'amsgrad': False, 'input_path': 'characters'}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where there are characters, and a run of them may be in `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(follow, 'STEP', 2)
    (tmp_path / 'characters').mkdir()
    save_strokes(tmp_path / 'characters')
    return tmp_path


def rows(*words):
    follow.main(['run', '--input_path=characters', '--n_episodes=4', '--out=rows.csv', *words])
    with open('rows.csv', encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def started(**options):
    return follow.started('run', argparse.Namespace(**{**NO_CHANGE, **options}))


@pytest.mark.parametrize('words', [
    [], ['--rotations=classes', '--distortion=1'], ['--alpha=0.01', '--clipping=apart', '--clip=0.1'],
    ['--n_episodes_per_update=2'], ['--amsgrad=True', '--alpha=0.01'], ['--centred=fc, keys'],
    ['--variant=MetaNet+', '--nb_samples_per_class=2']])
def test_without_a_change_it_is_the_run_itself(folder, words):
    train('train_omniglot', *RUN, *words)
    before = {path.name: path.read_bytes() for path in (folder / 'run').iterdir()}
    found = rows()
    assert before == {path.name: path.read_bytes() for path in (folder / 'run').iterdir()}
    train('train_omniglot', *RUN, *words, '--n_epoch=2')
    with open('run/log', encoding='utf-8') as file:
        resumed = json.load(file)[-1]
    assert [row['episodes'] for row in found] == ['6', '8']
    for name, logged in ('loss', 'main/loss'), ('accuracy', 'main/accuracy'):
        np.testing.assert_allclose(np.mean([float(row[name]) for row in found]), resumed[logged], atol=1e-4)
    assert all(1 <= float(row['attention peak']) < 6 for row in found)


@pytest.mark.parametrize('out, message', [('run/log.csv', 'lies in the folder of the run'), ('rows', 'ends with .csv'),
                                          ('rows.csv', 'is a folder, but a file of that name')])
def test_rows_replace_nothing_of_the_run(folder, monkeypatch, out, message):
    (folder / 'run').mkdir()
    (folder / 'rows.csv').mkdir()
    monkeypatch.setattr(follow, 'started', None)
    assert message in ending(follow.main, ['run', '--out', out])


def test_a_table_that_is_none_is_named(folder):
    (folder / 'rows.csv').write_bytes(b'\xcd\xcd')
    assert 'rows.csv is no csv file' in ending(follow.main, ['--draw', 'rows.csv', '--out=picture.png'])


@pytest.mark.parametrize('change', [['--alpha=0.1'], ['--beta2=0.1'], ['--weight_decay_rate=0.1'], ['--centred=keys'],
                                    ['--hidden_scale=2'], ['--fast_scale=2']])
def test_a_change_changes_the_rows(folder, change):
    train('train_omniglot', *RUN)
    assert rows()[1]['gradient norm'] != rows(*change)[1]['gradient norm']


def test_amsgrad_starts_with_what_adam_knows(folder):
    train('train_omniglot', *RUN)
    for param in started(amsgrad=True).model.params():
        assert (param.update_rule.state['vhat'] == param.update_rule.state['v']).all()
    train('train_omniglot', *RUN[:-1], '--out=run2', '--amsgrad=True', '--n_epoch=3')
    kept = started(amsgrad=False).model
    follows = follow.started('run2', argparse.Namespace(**dict(NO_CHANGE, amsgrad=True))).model
    assert any((param.update_rule.state['vhat'] > param.update_rule.state['v']).any() for param in follows.params())
    assert not any('vhat' in param.update_rule.state for param in kept.params())


def test_the_attention_is_the_last_updates(folder):
    train('train_omniglot', *RUN, '--centred=keys')
    found = rows()[0]['attention peak']
    updater = started()
    updater.update = lambda update=updater.update: peaks.append(attention(updater.model, update))
    peaks = []
    next(follow.follow(updater, 2))
    assert found == str(round(peaks[-1], 4)) != str(round(peaks[0], 4))


def attention(model, update):
    """The peak of the memory's attention in an update."""
    seen, memory = [], model.memory

    class Seen(memory):
        def attention(self, queries):
            seen.append(super().attention(queries))
            return seen[-1]

    model.memory = Seen
    update()
    model.memory = memory
    return float(np.mean(seen[0].array.max(axis=1)) * seen[0].shape[1])


@pytest.mark.parametrize('spoil, message', [
    ({'data': 'Omniglot'}, 'run was trained on Omniglot, not on '),
    ({'data_digest': '0'}, 'not on own data (characters) with other images'),
    ({'split': None}, 'run has no snapshot of a run of train_omniglot.py'),
    ({'n_decay': 1}, 'the learning rate of the run in run falls'),
    ({'inverse_decay': 1}, 'the learning rate of the run in run falls'),
    ({'n_episodes_per_update': 4, 'n_episodes': 4}, 'the run in run takes 4 episodes an update'),
    ({'n_filters': 5}, 'run/snapshot_4 is of another network'),
    ({'n_filters': 'many'}, "n_filters = 'many': must be a whole number")])
def test_what_cannot_be_followed_is_refused(folder, spoil, message):
    train('train_omniglot', *RUN)
    settings = {**json.loads((folder / 'run' / 'settings.json').read_text()), **spoil}
    (folder / 'run' / 'settings.json').write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    assert message in ending(follow.main, ['run', '--input_path=characters', '--n_episodes=2']).replace('\\', '/')


@pytest.mark.parametrize('words', [['a', 'b'], ['run', '--n_episodes=3'], ['run', '--n_episodes=0'], ['a', '--draw'],
                                   ['run', '--beta2=1'], ['run', '--alpha=0']])
def test_words_that_make_no_sense_are_refused(folder, words, capsys):
    with pytest.raises(SystemExit):
        follow.main(words)
    assert 'error: ' in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(folder):
    assert 'settings.json' in ending(follow.main, ['run', '--input_path=characters', '--n_episodes=2'])


def test_rows_are_drawn(folder):
    train('train_omniglot', *RUN)
    for place in 'run/log/rows.csv', 'run':  # no folder, and no file
        words = ['run', '--input_path=characters', '--n_episodes=2', f'--out={place}']
        assert 'run' in ending(follow.main, words)
    assert 'log.csv is no csv that --out has written' in ending(
        follow.main, ['run/log.csv', '--draw', '--out=picture.png'])
    rows()
    follow.main(['rows.csv', '--draw', '--out=picture.png'])
    assert (folder / 'picture.png').read_bytes()[:4] == b'\x89PNG'
