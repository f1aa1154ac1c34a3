"""MNIST, of which the tests make small copies."""

import gzip
import os
import struct
import sys
import types

import numpy as np
import pytest

import data
from sources import mnist

NAMES = ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


def digits(n, seed):
    """n images whose first pixel is their label, and the labels."""
    labels = np.random.RandomState(seed).permutation(np.arange(n) % 10).astype(np.uint8)
    images = np.random.RandomState(seed).randint(256, size=(n, 28, 28)).astype(np.uint8)
    images[:, 0, 0] = labels
    return images, labels


@pytest.fixture
def arrays(monkeypatch):
    monkeypatch.delenv('MNIST_DIR', raising=False)
    return dict(zip(NAMES, map(idx, digits(40, 0) + digits(20, 1))))


def write(folder, arrays, name='{}', pack=lambda content: content):
    for key, content in arrays.items():
        (folder / name.format(key)).write_bytes(pack(content))


@pytest.mark.parametrize('name, pack', [
    ('{}', bytes), ('{}.gz', gzip.compress), ('{}.gz', bytes), ('{}', gzip.compress)])
def test_idx_files_are_read_gzipped_or_not(tmp_path, monkeypatch, arrays, name, pack):
    write(tmp_path, arrays, name, pack)
    monkeypatch.setenv('MNIST_DIR', str(tmp_path))
    for train, test, source in (data.mnist(), data.mnist(str(tmp_path)), data.mnist(tmp_path)):
        assert source == f'own data ({tmp_path.name})'  # 60,000 and 10,000 images would be MNIST
        for classes, (images, labels) in ((train, digits(40, 0)), (test, digits(20, 1))):
            assert list(classes) == list('0123456789')
            for digit, of_digit in classes.items():
                assert of_digit.dtype == np.uint8 and (of_digit == images[labels == int(digit)]).all()


def as_mnist(monkeypatch):
    """Lets the files of the tests have MNIST's numbers of images."""
    monkeypatch.setattr(mnist, 'SIZES', (40, 20))
    monkeypatch.setattr(mnist, 'COUNTS', tuple(np.bincount(digits(40, 0)[1])))


def test_the_numbers_of_images_make_it_mnist(tmp_path, monkeypatch, arrays):
    write(tmp_path, arrays)
    as_mnist(monkeypatch)
    assert data.mnist(tmp_path)[2] == 'MNIST'
    monkeypatch.setattr(mnist, 'COUNTS', (3, 5) + (4,) * 8)  # as many in all, but other classes, as Fashion-MNIST
    assert data.mnist(tmp_path)[2] == f'own data ({tmp_path.name})'


def test_names_with_a_point_are_known_too(tmp_path, arrays):
    write(tmp_path, {name.replace('-idx', '.idx'): content for name, content in arrays.items()})
    assert len(data.mnist(tmp_path)[0]['3']) == 4


IMAGES, LABELS = digits(40, 0)


@pytest.mark.parametrize('name, content, message', [
    (NAMES[0], b'', 'does not begin with the magic number 2051'),
    (NAMES[0], idx(LABELS), 'does not begin with the magic number 2051'),
    (NAMES[1], idx(IMAGES), 'does not begin with the magic number 2049'),
    (NAMES[0], b'<html>log in</html>', 'magic number'),
    (NAMES[0], idx(IMAGES)[:-1], 'claims 31360 bytes of content, but has 31359'),
    (NAMES[0], idx(IMAGES) + b'1', 'claims 31360 bytes of content, but has 31361'),
    (NAMES[0], bytes([0, 0, 8, 3]) + b'\xff' * 12, 'claims'),
    (NAMES[0], gzip.compress(idx(IMAGES))[:-9], 'seems damaged'),
    (NAMES[0], b'\x1f\x8b' + bytes(50), 'seems damaged'),
    (NAMES[0], idx(IMAGES[:, :, :27]), 'are 27x28, not 28x28'),
    (NAMES[0], idx(IMAGES[:39]), 'has 39 images, but .*train-labels-idx1-ubyte 40 labels'),
    (NAMES[1], idx(np.where(LABELS == 3, np.uint8(10), LABELS)), 'a label 10'),
    (NAMES[1], idx(np.where(LABELS == 3, np.uint8(4), LABELS)), 'the digit 3 is missing'),
    (NAMES[1], idx(LABELS[:0]), ' 0 labels'),
])
def test_files_that_are_not_mnists_are_refused_by_name(tmp_path, arrays, name, content, message):
    write(tmp_path, {**arrays, name: content})
    with pytest.raises(ValueError, match=rf'{"" if "missing" in message else name}.*{message}.*https://'):
        data.mnist(tmp_path)


def test_a_packed_file_cannot_grow_without_end(tmp_path, monkeypatch, arrays):
    monkeypatch.setattr(mnist, 'MAX_BYTES', 1 << 16)
    write(tmp_path, {**arrays, NAMES[0]: gzip.compress(bytes(1 << 20))})
    with pytest.raises(ValueError, match='larger than a file of MNIST'):
        data.mnist(tmp_path)


def test_a_missing_file_is_named(tmp_path, arrays):
    write(tmp_path, arrays)
    (tmp_path / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match='t10k-labels-idx1-ubyte.gz does not exist'):
        data.mnist(tmp_path)


def openml(monkeypatch, images, labels):
    def fetch_openml(name, version, return_X_y, as_frame, parser):
        # The usual parser needs pandas, whatever as_frame is.
        assert (name, version, return_X_y, as_frame, parser) == ('mnist_784', 1, True, False, 'liac-arff')
        return images, labels

    monkeypatch.setitem(sys.modules, 'sklearn', types.ModuleType('sklearn'))
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', types.SimpleNamespace(fetch_openml=fetch_openml))


def test_without_a_folder_it_comes_from_openml(monkeypatch, arrays):
    as_mnist(monkeypatch)
    parts = digits(40, 0), digits(20, 1)
    images, labels = map(np.concatenate, zip(*parts))
    openml(monkeypatch, images.reshape(60, 784).astype(np.float64), labels.astype(str).astype(object))
    train, test, name = data.mnist()
    assert name == 'MNIST'
    for classes, (images, labels) in zip((train, test), parts):
        assert all((classes[str(i)] == images[labels == i]).all() and classes[str(i)].dtype == np.uint8
                   for i in range(10))


@pytest.mark.parametrize('images, labels', [
    (np.zeros((60, 784)), np.full(59, '1')),
    (np.full((60, 784), 256.0), np.full(60, '1')),
    (np.full((60, 784), np.nan), np.full(60, '1')),
    (np.zeros((60, 784)), np.full(60, '10')),
    (np.zeros((60, 784)), np.full(60, 'one')),
])
def test_without_either_synthetic_digits_come_with_a_banner(monkeypatch, capsys, arrays, images, labels):
    monkeypatch.setattr(mnist, 'SIZES', (40, 20))
    openml(monkeypatch, images, labels)
    train, test, name = data.mnist()
    assert name == 'synthetic digits'
    assert [len(of_digit) for of_digit in [*train.values(), *test.values()]] == [200] * 10 + [50] * 10
    assert list(train) == list(test) == list('0123456789')
    err = capsys.readouterr().err
    assert 'NOT MNIST' in err and 'MNIST_DIR' in err


def test_without_scikit_learn_the_banner_says_so(monkeypatch, capsys, arrays):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    assert data.mnist()[2] == 'synthetic digits'
    assert 'scikit-learn' in capsys.readouterr().err


def test_synthetic_digits_depend_on_the_seed_alone_and_can_be_told_apart():
    classes = data.synthetic_digits(40)
    assert all((images == data.synthetic_digits(40)[digit]).all() for digit, images in classes.items())
    assert (classes['3'] != data.synthetic_digits(40, seed=1)['3']).any()
    means = np.stack([images[:30].mean(axis=0) for images in classes.values()])
    correct = [((image - means) ** 2).sum(axis=(1, 2)).argmin() == int(digit)
               for digit, images in classes.items() for image in images[30:].astype(float)]
    assert np.mean(correct) > 0.4  # the nearest mean; by chance 0.1


@pytest.mark.skipif(not os.environ.get('MNIST_DIR'), reason='MNIST_DIR does not name a folder with the real MNIST')
def test_the_real_mnist():
    train, test, name = data.mnist()
    assert name == 'MNIST'
    assert [len(train[digit]) for digit in '0123456789'] == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert [len(test[digit]) for digit in '0123456789'] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert all(0.05 < images.mean() / 255 < 0.2 and images.shape[1:] == (28, 28) for images in train.values())
