"""classify.py: a folder of images, sorted by a few examples."""
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import classify
import data
import train_omniglot

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
MODEL = os.path.join(ROOT, 'assets', 'omniglot_5way.npz')


def save(image, path, size=60):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(255 - image).resize((size, size)).save(path)


def run(folder):
    return subprocess.run([sys.executable, os.path.join(ROOT, 'classify.py'), MODEL, str(folder)],
                          capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    """Three unseen characters: an example of each, and four queries whose file names begin with theirs."""
    for name, images in zip('abc', data.synthetic_strokes(3, seed=5).values()):
        save(images[0], str(tmp_path / 'support' / name / 'example.png'))
        for i in range(4):
            save(images[-1 - i], str(tmp_path / 'query' / ('%s%d.bmp' % (name, i))), size=100)
    return tmp_path


def test_most_queries_are_recognised(folder):
    done = run(folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(':')[0] for line in lines] == ['%s%d.bmp' % (name, i) for name in 'abc' for i in range(4)]
    assert all(1 / 3 <= float(line.split()[-1]) <= 1 for line in lines)
    assert sum(line[0] == line.split()[1] for line in lines) >= 10


def test_images_are_read_as_omniglots_are(tmp_path):
    image = next(iter(data.synthetic_strokes(1).values()))[0]
    path = str(tmp_path / 'character.png')
    # Grey strokes on grey paper, on a wide sheet.
    Image.fromarray(np.pad(200 - image // 2, ((0, 0), (14, 14)), constant_values=200)).resize((112, 56)).save(path)
    read = data.read_character(path)
    assert read.shape == (28, 28) and read.dtype == np.uint8 and read.min() == 0 and read.max() > 150
    assert np.corrcoef(read[7:21, 7:21].ravel(), image.reshape(14, 2, 14, 2).mean((1, 3)).ravel())[0, 1] > 0.95


def opaque(grey):
    """Strokes on paper as the opacity of black."""
    image = Image.new('RGBA', grey.size)
    image.putalpha(Image.fromarray(255 - np.asarray(grey)))
    return image


def turned(grey):
    """Lies on its side, and says so."""
    image = grey.rotate(90, expand=True)
    image.getexif()[0x112] = 6
    return image


@pytest.mark.parametrize('ending, make', [
    ('png', opaque),
    ('png', lambda grey: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)),  # 16 bits
    ('png', turned),
    ('gif', lambda grey: grey.convert('P')),
    ('tif', lambda grey: grey.convert('CMYK')),
])
def test_the_kind_of_file_makes_no_difference(tmp_path, ending, make):
    grey = Image.fromarray(255 - next(iter(data.synthetic_strokes(1).values()))[0] // 2)
    grey.save(tmp_path / 'plain.png')
    image = make(grey)
    image.save(tmp_path / ('other.' + ending), exif=image.getexif())
    plain, other = (data.read_character(str(tmp_path / name)) for name in ('plain.png', 'other.' + ending))
    assert plain.max() == 255 and abs(plain.astype(int) - other).max() <= 1


@pytest.mark.parametrize('spoil, message', [
    (lambda folder: Image.new('L', (9, 9), 255).save(folder / 'query' / 'a0.bmp'), 'a0.bmp is blank'),
    (lambda folder: save(255 - np.pad([[255]], 9).astype(np.uint8), str(folder / 'query' / 'a0.bmp')),
     'a0.bmp is more dark than light'),
    (lambda folder: (folder / 'query' / 'text.png').write_text('no image'), 'text.png cannot be read as an image'),
    (lambda folder: (folder / 'query' / 'a0.bmp').rename(folder / 'support' / 'a' / 'a0.bmp'), '(a: 2, b: 1, c: 1)'),
    (lambda folder: (folder / 'support' / 'd').mkdir(), 'is empty: put the images there'),
    (lambda folder: (folder / 'support').rename(folder / 'supprt'), 'No such file or directory'),
    (lambda folder: [(folder / 'support' / name).rename(folder / name) for name in 'ab'], 'holds one class'),
])
def test_bad_folders_are_refused(folder, spoil, message):
    spoil(folder)
    done = run(folder)
    assert done.returncode == 1 and message in done.stderr and 'Traceback' not in done.stderr


def test_probabilities_sum_to_one():
    model, _ = train_omniglot.load(MODEL, [4])
    episode = data.EpisodeSampler(data.synthetic_strokes(4, seed=7), 4, 2, 3).sample()
    p = classify.probabilities(model, episode.support_x, episode.support_y, episode.query_x)
    assert p.shape == (12, 4)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
