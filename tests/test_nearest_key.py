"""tools/nearest_key.py, on small models."""
import numpy as np
import pytest
from small_models import episode, small_model
from small_runs import ending
from small_scripts import STROKES, save_parts, save_strokes, train

import data
from metanet import Memory
from tools import nearest_key


def test_the_nearest_key_is_the_one_attended_most():
    model = small_model()
    task = episode(5, 1, n_query=4)
    memory = model.memory

    class Slanted(Memory):
        """Whatever the keys: the first support example for the first half of the queries, the last for the others."""

        def attention(self, queries):
            weights = 0 * super().attention(queries).array
            weights[:10, 0] = weights[10:, -1] = 1
            return nearest_key.chainer.Variable(weights)

    model.memory = Slanted
    expected = np.mean(task.query_y == np.repeat(task.support_y[[0, -1]], 10))
    found = nearest_key.accuracies(model, task)
    assert found[1:] == [expected, expected] and model.memory is Slanted
    model.memory = memory
    model.d_fc.out.b.array[...] = 3  # fast weights that make other keys
    found = [nearest_key.accuracies(model, episode(5, 1, n_query=20, seed=seed)) for seed in range(3)]
    assert any(on_all != on_slow for _, on_all, on_slow in found)
    scores = model(*episode(5, 1, n_query=20)[:3]).array
    assert found[0][0] == np.mean(scores.argmax(axis=1) == episode(5, 1, n_query=20).query_y)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'characters').mkdir()
    save_strokes(tmp_path / 'characters')
    train('train_omniglot', '--input_path=characters')


@pytest.mark.usefixtures('folder')
def test_a_way_that_is_too_large_is_refused_before_any_test(capsys):
    words = ['here/model.npz', '--n_outputs_test=5,500', '--input_path=characters']
    assert '500-way episodes need 500 classes' in ending(nearest_key.main, words)
    assert '1-shot' not in capsys.readouterr().out


@pytest.mark.usefixtures('folder')
def test_no_queries_are_refused():
    assert 'n_query' in ending(nearest_key.main, ['here/model.npz', '--n_queries_test=0', '--input_path=characters'])


@pytest.mark.usefixtures('folder')
def test_a_line_for_each_way(capsys):
    nearest_key.main(['here/model.npz', '--n_outputs_test=5,7', '--n_episodes=3', '--n_queries_test=2',
                      '--input_path=characters'])
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert len(lines) == 2
    for way, line in zip((5, 7), lines):
        assert line.startswith(f'{way}-way 1-shot, 3 episodes of own data (characters), test classes: model ')
        assert line.count('nearest key') == 2 and line.count('+-') == 3


@pytest.mark.usefixtures('folder')
def test_other_data_of_the_same_name_are_told(tmp_path, capsys):
    (tmp_path / 'other' / 'characters').mkdir(parents=True)
    for part, classes in ('train', STROKES[10:]), ('test', STROKES[:10]):
        data.save_classes(tmp_path / 'other' / 'characters' / f'{part}.npz', dict(classes))
    nearest_key.main(['here/model.npz', '--n_episodes=2', '--n_queries_test=2', '--input_path=other/characters'])
    assert 'of own data (characters) with other images, test classes' in capsys.readouterr().out


@pytest.mark.usefixtures('folder')
@pytest.mark.parametrize('words, message', [
    (['--classes=dev'], "classes = 'dev': those of this model are train, test"),
    (['--n_outputs_test=1'], 'n_outputs_test = 1: must be'), (['--n_outputs_test=80'], '80-way episodes need')])
def test_what_cannot_be_compared_is_refused(words, message):
    words = ['here/model.npz', '--input_path=characters', *words]
    assert message in ending(nearest_key.main, words)


def test_a_model_for_photos(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_parts('images')
    train('train_mini_imagenet', '--input_path=images')
    nearest_key.main(['here/best.npz', '--n_episodes=2', '--n_queries_test=2', '--input_path=images',
                      '--classes=dev'])
    assert '5-way 1-shot, 2 episodes of own data (images), dev classes: model' in capsys.readouterr().out
