"""Npz files: of classes, damaged, and tampered with."""

import os

import numpy as np
import pytest
from data_sets import marked_classes, same_classes

import data
from sources import archives


@pytest.mark.parametrize('shape', [(4, 4), (4, 5, 3)])
def test_classes_survive_saving_and_loading(tmp_path, shape):
    classes = {f'Greek/{name}': images for name, images in marked_classes(shape=shape).items()}
    data.save_classes(tmp_path / 'new folder' / 'a.npz', classes)
    loaded = data.load_classes(tmp_path / 'new folder' / 'a.npz')
    assert same_classes(loaded, classes)
    assert all(images.dtype == np.uint8 for images in loaded.values())


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_float_images_are_rounded_to_uint8(tmp_path, dtype):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.savez(tmp_path / 'a.npz', a=(images / 255).astype(dtype), b=np.full((2, 16, 16), 0.999, dtype))
    loaded = data.load_classes(tmp_path / 'a.npz')
    assert loaded['a'].dtype == np.uint8
    assert np.array_equal(loaded['a'], images) and (loaded['b'] == 255).all()


@pytest.mark.parametrize('bad', [
    np.zeros((2, 4, 4), np.int64),
    np.zeros((4, 4), np.uint8),
    np.zeros((2, 4, 4, 4), np.uint8),
    np.zeros((0, 4, 4), np.uint8),
    np.full((2, 4, 4), 1.5, np.float32),
    np.full((2, 4, 4), -0.1, np.float32),
    np.full((2, 4, 4), np.nan, np.float32),
    np.array([[['text']]], object),
    np.zeros((2, 5, 4), np.uint8),
    np.zeros((2, 4, 4, 3), np.uint8),
])
def test_a_bad_class_is_refused_by_name(tmp_path, bad):
    np.savez(tmp_path / 'a.npz', good=np.zeros((2, 4, 4), np.uint8), bad=bad)
    with pytest.raises(ValueError, match=r"a\.npz.*class 'bad'"):
        data.load_classes(tmp_path / 'a.npz')


def test_a_file_that_is_no_data_set_is_refused(tmp_path):
    path = tmp_path / 'a.npz'
    with pytest.raises(FileNotFoundError, match=r'a\.npz does not exist'):
        data.load_classes(path)
    path.write_text('not an npz')
    with pytest.raises(ValueError, match=r'a\.npz is not an npz'):
        data.load_classes(path)
    np.savez(path)
    with pytest.raises(ValueError, match=r'a\.npz holds no class'):
        data.load_classes(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / 'a.npz'
    data.save_classes(path, {'a': np.zeros((9, 28, 28), np.uint8)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz, class 'a'"):
        data.load_classes(path)


@pytest.mark.parametrize('failure', [OSError('disk full'), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise failure

    path = tmp_path / 'a.npz'
    data.save_classes(path, marked_classes())
    with pytest.raises(type(failure)):
        data.save_classes(path, {'fine': np.zeros((2, 4, 4), np.uint8), 'broken': Broken()})
    assert same_classes(data.load_classes(path), marked_classes())
    assert os.listdir(tmp_path) == ['a.npz']


def test_large_files_are_mapped_and_equal_what_is_read(tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    classes = {name: random.randint(256, size=(3, 4, 5)).astype(np.uint8) for name in ('a', 'b/c', 'd')}
    path = str(tmp_path / 'classes.npz')
    data.save_classes(path, classes)
    monkeypatch.setattr(archives, 'MAPPED_SIZE', 0)
    mapped = data.load_classes(path)
    assert list(mapped) == list(classes) and all((mapped[name] == classes[name]).all() for name in classes)
    assert not mapped['a'].flags.writeable
    np.savez_compressed(path, **classes)
    assert all((data.load_classes(path)[name] == classes[name]).all() for name in classes)
    np.savez(path, a=classes['a'] / np.float32(255), b=np.asfortranarray(classes['d']))
    loaded = data.load_classes(path)
    assert (loaded['a'] == classes['a']).all() and (loaded['b'] == classes['d']).all()
