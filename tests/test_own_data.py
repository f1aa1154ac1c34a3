"""Data of the user's own in the place of Omniglot."""
import os

import numpy as np
import pytest
from data_sets import drawings, same_classes, save_own

import data


@pytest.mark.parametrize('options', [{}, {'size': 32}, {'colour': True}, {'n_images': 7}])
@pytest.mark.parametrize('place', ['.', 'previous'])
def test_classes_of_ones_own_are_used_as_they_are_and_named_so(tmp_path, options, place):
    train, test = drawings('abc', **options), drawings('de', seed=1, **options)
    folder = tmp_path / 'my signs'
    save_own(folder / place, train, test)
    loaded = data.omniglot(str(folder), download=False)
    assert loaded[2] == 'own data (my signs)'
    assert same_classes(loaded[0], train) and same_classes(loaded[1], test)


@pytest.mark.parametrize('missing', ['train.npz', 'test.npz'])
def test_half_of_ones_own_data_is_refused(tmp_path, missing):
    save_own(tmp_path, drawings('ab'), drawings('c', seed=1))
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f'{missing} is missing: .*both'):
        data.omniglot(tmp_path)


@pytest.mark.skipif(os.name != 'posix', reason='makes links')
def test_links_that_lead_nowhere_are_data_that_are_missing(tmp_path):
    for part in 'train', 'test':
        (tmp_path / f'{part}.npz').symlink_to('gone')
    with pytest.raises(FileNotFoundError, match='train.npz is missing: '):
        data.omniglot(tmp_path, download=False)


def test_data_of_one_name_are_told_apart_by_their_images():
    parts = drawings('ab'), drawings('c', seed=1)
    digest = data.digest_of('own data (signs)', *parts)
    assert digest == data.digest_of('own data (signs)', *parts) != ''
    for other in ((drawings('ab', seed=2), parts[1]), (parts[0], drawings('d', seed=1)), parts[::-1]):
        assert data.digest_of('own data (signs)', *other) not in ('', digest)
    assert data.digest_of('Omniglot', *parts) == ''


ONES = np.ones((2, 5, 5), np.uint8)


@pytest.mark.parametrize('train, test, message', [
    (drawings('ab'), drawings('bc', seed=1), "class 'b' is in both .*train.npz and .*test.npz"),
    (drawings('ab'), {'c': drawings('ab')['b'][:5]}, "image 0 of class 'c' in .*test.npz .* image 0 of class 'b' in"),
    (drawings('ab'), {'c': np.concatenate([drawings('c', seed=1)['c'], drawings('ab')['a'][7:8]])},
     "image 20 of class 'c' .* image 7 of class 'a'"),
    (drawings('ab'), {'c': np.zeros((20, 28, 28), np.uint8)}, "test.npz: image 0 of class 'c' is blank"),
    ({'a': np.zeros((20, 28, 28), np.uint8)}, drawings('c'), "train.npz: image 0 of class 'a' is blank"),
    (drawings('ab'), drawings('c', size=32, seed=1), 'test.npz are 32x32 with 1 channel.* 28x28 with 1'),
    (drawings('ab'), drawings('c', colour=True, seed=1), 'test.npz are 28x28 with 3 channels.* 28x28 with 1'),
    ({'a': np.ones((2, 5, 6), np.uint8)}, {'b': np.full((2, 5, 6), 2, np.uint8)}, "'a' are 6 pixels wide and 5 high"),
    ({'a': ONES, 'b': 2 * ONES}, {'c': 3 * ONES, 'd': ONES}, "class 'd' .* class 'a'"),
    (drawings('ab'), {'c': (drawings('c', seed=1)['c'] > 127).astype(np.uint8)}, 'test.npz: no pixel is above 1'),
])
def test_ones_own_data_that_would_tell_nothing_are_refused(tmp_path, train, test, message):
    save_own(tmp_path, train, test)
    with pytest.raises(ValueError, match=message):
        data.omniglot(tmp_path)


def test_characters_that_are_dark_on_light_are_warned_of(tmp_path, capsys):
    train, test = ({name: images // 4 for name, images in part.items()} for part in (
        drawings('abc'), drawings('de', seed=1)))
    save_own(tmp_path / 'ink', train, test)
    data.omniglot(tmp_path / 'ink')
    assert capsys.readouterr().err == ''
    save_own(tmp_path / 'paper', *({name: 255 - images for name, images in part.items()} for part in (train, test)))
    data.omniglot(tmp_path / 'paper')
    assert 'train.npz is mostly light. Characters are 255 for ink' in capsys.readouterr().err
