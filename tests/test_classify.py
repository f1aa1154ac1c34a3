"""classify.py: a folder of images, sorted by a few examples."""
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import classify
import data
import train_mini_imagenet
import train_omniglot
from experiment.models import save_models
from sources.images import read_photo

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
MODEL = os.path.join(ROOT, 'assets', 'omniglot_5way.npz')


def save(image, path, size=60):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(255 - image).resize((size, size)).save(path)


def run(folder, model=MODEL, **environment):
    return subprocess.run([sys.executable, os.path.join(ROOT, 'classify.py'), model, str(folder)],
                          capture_output=True, text=True, env={**os.environ, **environment})


def error_of(folder, model=MODEL):
    """The line with which the script ends."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, 'argv', ['classify.py', model, str(folder)])
        classify.main()
    error = caught.value.code
    assert error.startswith('error: ') and '\n' not in error and '\x1b' not in error
    return error


@pytest.fixture
def folder(tmp_path):
    """Three unseen characters: an example of each, and four queries whose file names begin with theirs."""
    for name, images in zip('abc', data.synthetic_strokes(3, seed=5).values()):
        save(images[0], str(tmp_path / 'support' / name / 'example.png'))
        for i in range(4):
            save(images[-1 - i], str(tmp_path / 'query' / f'{name}{i}.bmp'), size=100)
    return tmp_path


def test_most_queries_are_recognised(folder):
    done = run(folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(':')[0] for line in lines] == [f'{name}{i}.bmp' for name in 'abc' for i in range(4)]
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
    (lambda folder: (folder / 'query' / 'a0.bmp').write_bytes(b'BM' + bytes(9)), 'a0.bmp cannot be read as an image'),
    (lambda folder: (folder / 'query' / 'a0').mkdir(), 'is a folder: put only images there'),
    (lambda folder: (folder / 'support' / 'notes.txt').write_text('text'), 'is no folder: put only folders of images'),
    (lambda folder: (folder / 'support' / 'a' / 'notes\x1b[1m.txt').write_text('text'), '(a: 2, b: 1, c: 1)'),
    (lambda folder: (folder / 'query' / 'a\x1b[1m\n.bmp').write_text('text'), r'a\x1b[1m\n.bmp cannot be read'),
    (lambda folder: (folder / 'query' / 'a0.bmp').rename(folder / 'support' / 'a' / 'a0.bmp'), '(a: 2, b: 1, c: 1)'),
    (lambda folder: (folder / 'support' / 'd').mkdir(), 'is empty: put the images there'),
    (lambda folder: (folder / 'support').rename(folder / 'supprt'), 'support: make it, and put the folders of images'),
    (lambda folder: (folder / 'query').rename(folder / 'queries'), 'query: make it, and put the images there'),
    (lambda folder: [(folder / 'support' / name).rename(folder / name) for name in 'ab'], 'holds one class'),
])
def test_bad_folders_are_refused(folder, spoil, message):
    spoil(folder)
    assert message in error_of(folder)


def test_probabilities_sum_to_one():
    model, _ = train_omniglot.load(MODEL, [4])
    episode = data.EpisodeSampler(data.synthetic_strokes(4, seed=7), 4, 2, 3).sample()
    p = classify.probabilities(model, episode.support_x, episode.support_y, episode.query_x)
    assert p.shape == (12, 4)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)


def test_layers_for_untrained_ways_are_zeros():
    model, _ = classify.load(MODEL, 7)
    assert not model.base.softmax7.W.array.any() and model.base.softmax5.W.array.any()


def test_files_of_operating_systems_are_left_out(folder):
    before = classify.classify(MODEL, str(folder))
    for place in ('support', 'support/a', 'query'):
        for name in ('Thumbs.db', 'desktop.ini', '.DS_Store', '._a.png'):
            (folder / place / name).write_bytes(b'\0\1\2')
    (folder / 'support' / '__MACOSX').mkdir()
    assert classify.classify(MODEL, str(folder)) == before


def test_it_says_what_kind_of_model_it_was_given(folder, capsys):
    classify.classify(MODEL, str(folder))
    assert 'is a model for characters, trained on Omniglot\n' in capsys.readouterr().err


@pytest.fixture(scope='module')
def photo_model(tmp_path_factory):
    """The path of a small model as train_mini_imagenet.py leaves it, untrained."""
    settings = {name: getattr(train_mini_imagenet, name) for name in train_mini_imagenet.CHECKS
                if hasattr(train_mini_imagenet, name)}
    settings.update(model='partial, u', n_filters=4, n_slow=1, n_steps=2, image_size=84, channels=3, n_outputs_train=3,
                    average_decay=0, data='mini-ImageNet')
    path = str(tmp_path_factory.mktemp('model') / 'best.npz')
    np.random.seed(0)
    save_models(path, {'last': train_mini_imagenet.build(settings, [3])}, settings)
    return path


def test_a_model_of_photos_gets_the_middle_square_in_colour(photo_model, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in 'abc':
        os.makedirs(tmp_path / 'support' / name)
        os.makedirs(tmp_path / 'query', exist_ok=True)
        pixels = rng.integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'support' / name / 'example.png')
        Image.fromarray(pixels[:, 15:105]).save(tmp_path / 'query' / f'{name}.png')
    result = classify.classify(photo_model, str(tmp_path))
    assert [name for name, _, _ in result] == ['a.png', 'b.png', 'c.png']
    assert 'is a model for photos of 84x84, trained on mini-ImageNet\n' in capsys.readouterr().err
    paths = [str(tmp_path / 'query' / f'{name}.png') for name in 'abc']
    examples = [str(tmp_path / 'support' / name / 'example.png') for name in 'abc']
    queries = classify.read_images(paths, 84)
    assert queries.shape == (3, 3, 84, 84) and queries.dtype == np.float32 and 0 <= queries.min() and queries.max() <= 1
    np.testing.assert_array_equal(queries, classify.read_images(examples, 84))
    for channel in range(3):
        photo = read_photo(paths[0], 84)[:, :, channel]
        np.testing.assert_array_equal(queries[0, channel], photo / np.float32(255))
    model, _ = classify.load(photo_model, 3)
    order = np.random.RandomState(0).permutation(3)
    expected = classify.probabilities(model, queries[order], order.astype(np.int32), queries)
    assert [label for _, label, _ in result] == ['abc'[i] for i in expected.argmax(axis=1)]
    np.testing.assert_array_equal([p for *_, p in result], expected.max(axis=1))
    # Batch normalisation has the running averages of the training: what else is classified doesn't matter.
    alone = classify.probabilities(model, queries[order], order.astype(np.int32), queries[:1])
    np.testing.assert_allclose(alone, expected[:1], rtol=1e-4)


def test_a_model_of_other_images_than_are_read_is_refused(folder, tmp_path):
    settings = {name: getattr(train_omniglot, name) for name in train_omniglot.CHECKS if hasattr(train_omniglot, name)}
    settings.update(n_filters=4, image_size=12, channels=3, data='own data (tiles)', data_digest='')
    save_models(str(tmp_path / 'tiles.npz'), {'last': train_omniglot.build(settings, [5])}, settings)
    (folder / 'query' / 'a0.bmp').write_bytes(b'')  # it isn't read first
    assert 'was trained on images of 12x12 with 3 channels, but' in error_of(folder, str(tmp_path / 'tiles.npz'))


@pytest.mark.parametrize('data_set, words', [
    ('synthetic textures', 'not on mini-ImageNet: expect little of it'),
    ('own data (birds)', 'trained on own data (birds)')])
def test_what_a_model_was_trained_on_is_said(data_set, words):
    text = classify.describe('m.npz', {'model': 'partial', 'image_size': 42, 'data': data_set})
    assert text.startswith('m.npz is a model for photos of 42x42') and text.endswith(words)


def test_a_model_that_is_none_is_refused(folder, photo_model, tmp_path):
    (tmp_path / 'text.npz').write_text('text')
    assert 'text.npz is not' in error_of(folder, str(tmp_path / 'text.npz'))
    shutil.copy(photo_model, tmp_path / 'cut.npz')
    os.truncate(tmp_path / 'cut.npz', 500)
    assert 'cut.npz is not' in error_of(folder, str(tmp_path / 'cut.npz'))
    np.savez(tmp_path / 'none.npz', settings=np.array('?'))
    assert 'the settings in ' in error_of(folder, str(tmp_path / 'none.npz'))
    for path in (str(tmp_path), '/dev/null', str(tmp_path / 'nothing.npz')):
        assert f'{path} does not exist or is no file' in error_of(folder, path)


def test_names_that_the_terminal_lacks_or_that_steer_it_are_escaped(folder):
    (folder / 'support' / 'a').rename(folder / 'support' / '\u732b')
    (folder / 'query' / 'a0.bmp').rename(folder / 'query' / 'a\x1b[31m\n0.bmp')
    done = run(folder, LC_ALL='C', PYTHONIOENCODING='ascii')
    assert done.returncode == 0 and 'Traceback' not in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 12 and lines[0].startswith(r'a\x1b[31m\n0.bmp: ')
    assert any(r' \u732b 0.' in line or r' \u732b 1.' in line for line in lines)


@pytest.mark.skipif(not hasattr(signal, 'SIGPIPE'), reason='Windows has other pipes and signals')
def test_a_closed_pipe_and_ctrl_c_end_it_without_a_word(folder):
    command = [sys.executable, os.path.join(ROOT, 'classify.py'), MODEL, str(folder)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.stdout.close()
    assert started.stderr.read().count('\n') == 1 and started.wait() == -signal.SIGPIPE  # what kind of model it is
    for delay in (0.2, 1):
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
        assert 'Traceback' not in err and 'KeyboardInterrupt' not in err


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='a disk that is always full is needed')
def test_a_full_disk_under_the_output_is_told(folder):
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, os.path.join(ROOT, 'classify.py'), MODEL, str(folder)], stdout=full,
                              stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        'error: the output cannot be written any more (No space left on device): give it another place, and the same '
        'command again; all that a training has saved stays, and it goes on from there']


def test_pipes_among_the_images_are_named_and_not_waited_for(folder):
    if not hasattr(os, 'mkfifo'):
        pytest.skip('this system has no pipes in folders')
    os.mkfifo(folder / 'query' / 'pipe.png')
    with pytest.raises(ValueError, match='pipe.png cannot be read as an image .it is a pipe or a device'):
        classify.classify(MODEL, str(folder))
