"""The model beside episodes that the authors' own code has computed, and the command that compares them."""
import os

import check_golden
import numpy as np
import pytest

from ops.compat import chainer
from ops.device import n_gpus

FOLDER = os.path.join(os.path.dirname(__file__), 'golden')
GOLDEN = os.path.join(FOLDER, 'full_5way_1shot.npz')


@pytest.fixture(scope='module')
def golden():
    return check_golden.Golden(GOLDEN)


@pytest.mark.parametrize('name', ['full', 'partial', 'partial_u'])
def test_golden_episode(name):
    errors = check_golden.compare(check_golden.Golden(os.path.join(FOLDER, name + '_5way_1shot.npz')))
    assert ('running averages' in errors) == (name != 'full')
    for kind, (error, where) in errors.items():
        if kind != 'gradients from our logits':
            assert error <= check_golden.TOLERANCE, (kind, where)


def test_golden_gradients_from_our_own_logits_differ_as_the_logits_do(golden):
    logits = golden.scores()[0].array
    errors, _ = check_golden.gradient_errors(golden, logits)
    difference = abs(logits - golden['logits']).max()  # of logits above 1,000; so much changes a softmax's gradient
    assert difference < 2e-6 * abs(golden['logits']).max()
    assert max(errors.values()) <= 10 * difference


def test_the_embeddings_softmax_layer_has_no_gradient_and_all_else_has(golden):
    gradients = golden.gradients(golden['logits'])
    assert set(golden.params) - set(gradients) == {'/embed/softmax5/W'}


def test_check_golden_command(tmp_path, capsys):
    assert check_golden.main([GOLDEN]) == 0
    assert '5-way 1-shot, training' in capsys.readouterr().out
    arrays = dict(np.load(GOLDEN))
    np.savez(tmp_path / 'test.npz', **{key: array for key, array in arrays.items() if not key.startswith('grad/')})
    assert check_golden.main([str(tmp_path / 'test.npz')]) == 0
    assert '5-way 1-shot, test' in capsys.readouterr().out
    arrays['grad/d_fc/out/W'] = arrays['grad/d_fc/out/W'] * 1.01
    np.savez(tmp_path / 'wrong.npz', **arrays)
    assert check_golden.main([str(tmp_path / 'wrong.npz')]) == 1
    assert 'TOO FAR /d_fc/out/W' in capsys.readouterr().out
    (tmp_path / 'cut.npz').write_bytes((tmp_path / 'wrong.npz').read_bytes()[:9999])
    np.savez(tmp_path / 'model.npz', x=np.zeros(3))
    for name, words in ('nothing.npz', 'is no file'), ('cut.npz', ''), ('model.npz', 'is no episode of the authors'):
        with pytest.raises(SystemExit, match=f'(?s)error: .*{name}.*{words}'):
            check_golden.main([str(tmp_path / name)])


def test_a_tie_in_a_pooling_window_excuses_its_channel_and_nothing_else(golden, monkeypatch):
    channel = golden['grad/base/conv2/W'][3]
    monkeypatch.setitem(golden.arrays, 'grad/base/conv2/W', golden['grad/base/conv2/W'].copy())
    golden['grad/base/conv2/W'][3] = 2 * channel
    for tied, left_out in (([], {}), ([3], {'/base/conv2/W': 1}), ([4], {})):
        monkeypatch.setattr(check_golden, 'tied_channels', lambda x, tied=tied: tied)
        errors, excused = check_golden.gradient_errors(golden, golden['logits'])
        assert excused == left_out and (max(errors.values()) <= check_golden.TOLERANCE) == bool(left_out)


def test_ties_are_of_the_two_largest_of_a_window_within_rounding():
    maps = np.random.RandomState(0).rand(2, 5, 5, 4).astype(np.float32)
    assert check_golden.tied_channels(maps) == []
    maps[1, 2:4, 2, 1] = 1, 1 - 1e-7
    maps[0, :2, 0, 2] = 0.01, 0.01  # not the largest there, most likely
    maps[0, :2, 1, 2] = 0.5, 0.9
    maps[0, 4, 2:4, 3] = 0.7, 0.7  # in a window that overhangs
    assert check_golden.tied_channels(maps) == [1, 3]
    assert check_golden.tied_channels(np.zeros_like(maps)) == []


@pytest.mark.skipif(not n_gpus(), reason='needs CuPy and a CUDA GPU')
def test_gpu_agrees_with_cpu(golden):
    device = chainer.get_device('@cupy:0')
    model = check_golden.Golden(GOLDEN).model
    model.to_device(device)
    scores = model(*[device.send(array) for array in (golden.support_x, golden.support_y, golden.query_x)])
    assert check_golden.error(device.xp.asnumpy(scores.array), golden['logits']) < check_golden.TOLERANCE
