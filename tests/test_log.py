"""The log of a run: its rows, its files, its picture and its lines."""

import errno
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from small_runs import ROOT, Classifier, chainer, rows, run, same


def test_log_says_all(straight):
    out, _ = straight
    log = rows(out, timeless=False)
    assert [row['epoch'] for row in log] == ['1', '2', '3']
    assert [row['iteration'] for row in log] == ['3', '6', '9']
    for row in log:
        assert float(row['main/loss']) > 0 and 0 <= float(row['main/accuracy']) <= 1
        for prefix in ('', 'average/'):
            assert float(row[prefix + 'test/3-way/loss']) > 0 and 0 <= float(row[prefix + 'test/3-way/accuracy']) <= 1
        assert float(row['gradient_norm']) > 0
        assert float(row['seconds']) > 0
        assert float(row['alive/l1']) == 0.5 and 'alive/l2' not in row
        assert row['data'] == 'synthetic strokes'
    with open(out / 'learning_curve.png', 'rb') as file:
        assert file.read(4) == b'\x89PNG'


def test_an_epochs_row_is_the_mean_over_its_episodes(tmp_path, monkeypatch):
    losses = []
    loss = Classifier.loss

    def recorded(self, episode):
        value = loss(self, episode)
        if chainer.config.train:
            losses.append(float(value.array))
        return value

    monkeypatch.setattr(Classifier, 'loss', recorded)
    run(tmp_path, 2)
    logged = [float(row['main/loss']) for row in rows(tmp_path)]
    np.testing.assert_allclose(logged, np.mean(np.reshape(losses, (2, 3)), 1), rtol=1e-5)


def test_every_epoch_prints_a_line(tmp_path, capsys):
    run(tmp_path, 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == ['epoch 1 (3 episodes)', 'epoch 2 (6 episodes)']
    row = rows(tmp_path)[1]
    tests = [f'{float(row[name + "/loss"]):.3f} / {100 * float(row[name + "/accuracy"]):.1f} %'
             for name in ('test/3-way', 'average/test/3-way')]
    assert '; test 3-way {}, average test 3-way {}; '.format(*tests) in lines[1]
    assert lines[1].endswith('[synthetic strokes]')


@pytest.mark.parametrize('name', ['log', 'log.csv', 'learning_curve.png'])
def test_a_file_that_cannot_be_written_is_a_warning_and_caught_up(tmp_path, straight, monkeypatch, capsys, name):
    real = os.replace

    def replace(source, target):
        if os.path.basename(target) == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), source)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', replace)
        run(tmp_path, 1)
    assert name not in os.listdir(tmp_path) and not [other for other in os.listdir(tmp_path) if 'part' in other]
    shown = capsys.readouterr()
    assert re.search(f'warning: .*{name} cannot be written .*: close programs that have it open.*; its content is kept',
                     shown.err) and 'epoch 1 (3 episodes)' in shown.out
    assert same(run(tmp_path, 3), straight[1])
    assert rows(tmp_path) == rows(straight[0]) and name in os.listdir(tmp_path)


def test_a_run_that_was_ended_between_snapshot_and_log_catches_up(tmp_path, straight):
    def interrupt(trainer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3, before=lambda trainer: trainer.extend(interrupt, name='interrupt', trigger=(9, 'iteration'),
                                                                priority=-150))
    assert 'snapshot_9' in os.listdir(tmp_path) and len(rows(tmp_path)) == 2
    assert same(run(tmp_path, 3), straight[1])
    assert rows(tmp_path) == rows(straight[0])


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('name', ['$_$', 'a$\\frac{$', '\u65e5\u672c\u8a9e', '\udcff', '\x1b[2J', 'a\nb,"c"'])
def test_any_name_of_the_data_can_be_logged(tmp_path, capsys, name):
    run(tmp_path, 1, source=name)
    run(tmp_path, 2, source=name)
    shown = capsys.readouterr().out
    assert '\x1b' not in shown and len(shown.splitlines()) == 3
    assert len(rows(tmp_path)) == 2 and 'learning_curve.png' in os.listdir(tmp_path)


def test_importing_the_scripts_leaves_a_notebooks_matplotlib_alone():
    code = ('import sys, matplotlib; matplotlib.use("svg"); import train_omniglot, train_mini_imagenet; '
            'assert matplotlib.get_backend() == "svg" and "matplotlib.pyplot" not in sys.modules')
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
