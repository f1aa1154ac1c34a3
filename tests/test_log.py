"""The log of a run: its rows, its files, its picture and its lines."""

import numpy as np
from small_runs import Classifier, chainer, rows, run


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
