"""preprocess_mini_imagenet: from small ImageNets to the three npz files, with interruptions on the way."""
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from small_imagenet import (
    CLASSES,
    LAYOUTS,
    NUMBERS,
    RANKS,
    check,
    color,
    count_decoded,
    encode,
    error_of,
    lay_out,
    load,
    make_content,
    make_tar,
    run_on,
    write_splits,
)

import preprocess_mini_imagenet as preprocess
from sources.files import alone
from sources.imagenet import tar_files
from sources.splits import CSV_FILES

ROOT = os.path.dirname(os.path.abspath(preprocess.__file__))
MADE = ['dev.json', 'dev.npz', 'test.json', 'test.npz', 'train.json', 'train.npz']


@pytest.fixture
def content():
    return make_content()


@pytest.fixture
def run(tmp_path):
    return run_on(tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    return count_decoded(monkeypatch)


# The result -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_each_class_the_images_of_its_ranks(layout, content, run, tmp_path):
    check(run(lay_out(content, layout, tmp_path / 'in')))


def test_layouts_agree_to_the_byte(content, run, tmp_path):
    outputs = []
    for layout in LAYOUTS:
        run(lay_out(content, layout, tmp_path / 'in' / layout), output=tmp_path / f'out_{layout}')
        outputs.append([(tmp_path / f'out_{layout}' / f'{split}.npz').read_bytes() for split in CLASSES])
    assert all(output == outputs[0] for output in outputs)


def test_folder_with_its_split_files_needs_no_splits_argument(content, tmp_path):
    source = write_splits(lay_out(content, 'images', tmp_path / 'in'))
    preprocess.main([str(source), '--output', str(tmp_path / 'out')])
    assert list(load(tmp_path / 'out')['train']) == CLASSES['train']


def test_npz_is_stored_uncompressed_and_nothing_else_is_left(content, run, tmp_path):
    run(lay_out(content, 'tars', tmp_path / 'in'))
    assert sorted(os.listdir(tmp_path / 'out')) == MADE
    with zipfile.ZipFile(tmp_path / 'out' / 'train.npz') as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_order_within_a_class_is_that_of_the_csv(content, run, tmp_path):
    path = write_splits(tmp_path / 'splits') / 'val.csv'
    rows = ['filename,label', 'n0000000300000006.jpg,n00000003', 'n0000000300000002.jpg,n00000003', '']
    path.write_bytes('\r\n'.join(rows).encode())
    greens = run(lay_out(content, 'folders', tmp_path / 'in'))['dev']['n00000003'][:, 40, 40, 1]
    assert np.abs(greens - np.array([200., 80.])).max() <= 3


def test_shrinking_averages_areas_of_the_whole_image(content, run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    content['n00000003'][0] = encode(Image.fromarray(pixels), 'PNG')  # a PNG named JPEG, as ImageNet has one
    image = run(lay_out(content, 'tars', tmp_path / 'in'), '--size', '12')['dev']['n00000003'][0]
    expected = pixels.reshape(12, 2, 12, 3, 3).mean((1, 3))
    assert np.abs(image - expected).max() <= 1


def test_enlarging_interpolates(content, run, tmp_path):
    ramp = np.repeat(np.tile(np.linspace(0, 240, 21).astype(np.uint8), (21, 1))[..., None], 3, 2)
    content['n00000003'][0] = encode(Image.fromarray(ramp), 'PNG')
    row = run(lay_out(content, 'tars', tmp_path / 'in'))['dev']['n00000003'][0][40, :, 0].astype(int)
    assert (np.diff(row) >= 0).all() and np.diff(row).max() <= 6 and len(set(row)) > 60


@pytest.mark.parametrize('mode, kind, expected', [
    ('L', 'JPEG', (76, 76, 76)), ('CMYK', 'JPEG', (255, 0, 0)), ('P', 'PNG', (255, 0, 0)),
    ('RGBA', 'PNG', (255, 0, 0)), ('LA', 'PNG', (76, 76, 76))])
def test_other_modes_become_rgb(mode, kind, expected, content, run, tmp_path):
    image = Image.new('RGB', (100, 90), (255, 0, 0)).convert(mode)
    content['n00000004'][1] = encode(image, kind)
    image = run(lay_out(content, 'folders', tmp_path / 'in'))['test']['n00000004'][1]
    assert np.abs(image - np.array(expected, float)).max() <= 3


def test_truncated_and_broken_images_are_named_and_the_others_stay(content, run, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
    noise[:100] = 255
    whole = encode(Image.fromarray(noise), quality=95)
    content['n00000010'][1] = whole[:len(whole) * 2 // 3]
    content['n00000010'][2] = b'no image at all'
    content['n00000002'][0] = b''
    train = run(lay_out(content, 'tars', tmp_path / 'in'))['train']
    assert train['n00000010'].shape == train['n00000002'].shape == (3, 84, 84, 3)
    assert (train['n00000010'][1][:40] == 255).all()  # the part that is there
    assert abs(int(train['n00000010'][2][0, 0, 1]) - color('n00000010', 6)[1]) <= 3
    lines = capsys.readouterr().out.splitlines()
    assert 'train.npz: 2 classes, 6 images' in lines[0]
    assert '2 skipped' in lines[1] and 'n0000001000000003.jpg, n0000000200000001.jpg' in lines[1]
    assert '1 truncated' in lines[2] and 'n0000001000000002.jpg' in lines[2]


def test_class_without_one_good_image_is_an_error_that_keeps_the_others(content, run, tmp_path, decoded):
    good = content['n00000002']
    content['n00000002'] = [b'broken'] * len(NUMBERS)
    error = error_of(run, lay_out(content, 'folders', tmp_path / 'in'))
    assert 'n00000002' in error and 'n00000010' not in error
    assert not list((tmp_path / 'out').glob('*.npz'))
    del decoded[:]
    for number, image in zip(NUMBERS, good):
        (tmp_path / 'in' / 'n00000002' / f'n00000002_{number}.JPEG').write_bytes(image)
    run(tmp_path / 'in')
    assert len(decoded) == len(RANKS)


# Starting again -------------------------------------------------------------------------------------------------------


def interrupt_after(monkeypatch, n_images):
    """Let Ctrl-C come when `n_images` are decoded."""
    update, seen = preprocess.tqdm.update, []

    def interrupting(bar, n=1):
        seen.append(n)
        if len(seen) > n_images:
            raise KeyboardInterrupt
        return update(bar, n)
    monkeypatch.setattr(preprocess.tqdm, 'update', interrupting)


def interrupted_run(run, source, n_images, *args):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        interrupt_after(patch, n_images)
        run(source, *args)
    assert 'goes on' in caught.value.code


def test_after_an_interruption_finished_classes_are_not_decoded_again(
        content, run, tmp_path, decoded, capsys):
    content['n00000010'][0] = b'broken'
    source = lay_out(content, 'big_tar', tmp_path / 'in')
    interrupted_run(run, source, 2 * len(RANKS) + 1)
    assert not list((tmp_path / 'out').glob('*.npz'))
    del decoded[:]
    resumed = run(source)
    assert len(decoded) == 2 * len(RANKS)
    assert 'n0000001000000001.jpg' in capsys.readouterr().out  # from the first start
    assert sorted(os.listdir(tmp_path / 'out')) == MADE
    fresh = run(source, output=tmp_path / 'fresh')
    for split, classes in fresh.items():
        for synset, images in classes.items():
            np.testing.assert_array_equal(resumed[split][synset], images)


@pytest.mark.parametrize('change', ['size', 'splits', 'source', 'images'])
def test_partial_results_of_other_settings_are_neither_used_nor_lost(change, content, run, tmp_path, decoded):
    source = lay_out(content, 'tars', tmp_path / 'in')
    interrupted_run(run, source, 3 * len(RANKS) + 1)
    del decoded[:]
    if change == 'size':
        result = run(source, '--size', '20')
        assert {images.shape for images in result['train'].values()} == {(4, 20, 20, 3)}
        assert len(decoded) == 4 * len(RANKS)
        for split in CLASSES:
            os.remove(tmp_path / 'out' / f'{split}.npz')
        del decoded[:]
        run(source)
        assert len(decoded) == len(RANKS)
    elif change == 'splits':
        write_splits(tmp_path / 'splits', {'train.csv': ['n0000001000000005.jpg,n00000010']})
        assert run(source)['train']['n00000010'].shape[0] == len(RANKS) + 1
    else:
        inverted = {synset: images[::-1] for synset, images in content.items()}
        other = tmp_path / ('in' if change == 'images' else 'other')  # other images in the same files
        if other == source:
            shutil.rmtree(other)
        image = run(lay_out(inverted, 'tars', other))['train']['n00000010'][0]
        assert np.abs(image - np.array(color('n00000010', 6), float)).max() <= 3


def test_failure_while_writing_leaves_no_npz_and_no_temporary_file(content, run, tmp_path, monkeypatch):
    source = lay_out(content, 'tars', tmp_path / 'in')

    def full_disk(a, b):
        b.write(b'a part')
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(preprocess.shutil, 'copyfileobj', full_disk)
        assert 'No space left' in error_of(run, source)
    assert sorted(os.listdir(tmp_path / 'out')) == ['partial', 'train.json']
    assert list(run(source)['train']) == CLASSES['train']


def test_what_killed_runs_left_half_written_is_cleared(content, run, tmp_path):
    source = lay_out(content, 'tars', tmp_path / 'in')
    interrupted_run(run, source, len(RANKS) + 1)
    (tmp_path / 'out' / 'train.npz.123.part').write_bytes(b'a part')
    for path in (tmp_path / 'out' / 'partial').glob('*.json'):
        path.unlink()  # killed after the class and before its notes
    (tmp_path / 'out' / 'train.npz.backup').write_bytes(b'not ours')
    run(source)
    assert sorted(os.listdir(tmp_path / 'out')) == MADE + ['train.npz.backup']


@pytest.mark.parametrize('damage', ['cut', 'zeros', 'one byte', 'no notes', 'empty', 'other array', 'notes cut'])
def test_a_damaged_class_of_an_interrupted_run_is_made_anew(damage, content, run, tmp_path, decoded):
    source = lay_out(content, 'tars', tmp_path / 'in')
    interrupted_run(run, source, 2 * len(RANKS) + 1)
    for path in (tmp_path / 'out' / 'partial').glob('*.npy'):
        data = bytearray(path.read_bytes())
        if damage == 'cut':
            path.write_bytes(data[:len(data) // 2])
        elif damage == 'zeros':
            path.write_bytes(bytes(len(data)))
        elif damage == 'one byte':
            data[-5] ^= 1
            path.write_bytes(data)
        elif damage == 'no notes':
            os.remove(path.with_suffix('.json'))
        elif damage == 'empty':
            path.write_bytes(b'')
        elif damage == 'other array':
            np.save(path, np.zeros((len(RANKS), 84, 84, 3), np.float32))
        else:
            path.with_suffix('.json').write_bytes(b'{"skipped": [')
    del decoded[:]
    check(run(source))
    assert len(decoded) == 4 * len(RANKS)


def test_another_preprocessing_in_the_same_folder_is_refused(content, run, tmp_path, monkeypatch):
    source = lay_out(content, 'tars', tmp_path / 'in')
    monkeypatch.setattr(preprocess, 'alone', functools.partial(alone, patience=0))
    with alone(tmp_path / 'busy'):
        assert 'another process is at work in the folder' in error_of(run, source, output=tmp_path / 'busy')


def test_an_output_that_is_no_folder_or_full_is_refused_before_any_image_is_decoded(
        content, run, tmp_path, decoded, monkeypatch):
    source = lay_out(content, 'tars', tmp_path / 'in')
    (tmp_path / 'file').write_text('')
    for output in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        error = error_of(run, source, output=output)
        assert str(output) in error and '--output' in error
    monkeypatch.setattr(preprocess.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10**5))
    error = error_of(run, source)
    assert 'has room for 0.0 GiB' in error and '--output' in error
    assert not decoded


@pytest.mark.parametrize('kind', ['folder', 'pipe'])
def test_what_is_no_file_in_the_place_of_an_npz_is_an_error(kind, content, run, tmp_path, decoded):
    (tmp_path / 'out').mkdir()
    if kind == 'folder':
        (tmp_path / 'out' / 'dev.npz').mkdir()
    elif hasattr(os, 'mkfifo'):
        os.mkfifo(tmp_path / 'out' / 'dev.npz')
    else:
        pytest.skip('this system has no pipes in folders')
    assert 'dev.npz is there already, but' in error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    assert not decoded


def test_too_little_memory_for_a_sound_image_ends_the_run_and_skips_nothing(content, run, tmp_path, monkeypatch):
    source = lay_out(content, 'tars', tmp_path / 'in')

    def exhaust(*args):
        raise MemoryError
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, 'decode', exhaust)
        error = error_of(run, source)
    assert 'too little memory' in error and '--workers' in error and 'n00000010.tar' in error
    assert not list((tmp_path / 'out').glob('*.npz'))
    check(run(source))


def test_finished_npz_are_kept_and_missing_ones_made(content, run, tmp_path, decoded, capsys):
    source = lay_out(content, 'tars', tmp_path / 'in')
    run(source)
    before = {split: os.stat(tmp_path / 'out' / f'{split}.npz').st_mtime_ns for split in CLASSES}
    del decoded[:]
    run(source)
    assert not decoded and capsys.readouterr().out.count('there already') == 3
    os.remove(tmp_path / 'out' / 'dev.npz')
    run(source)
    assert len(decoded) == len(RANKS)
    for split in ('train', 'test'):
        assert os.stat(tmp_path / 'out' / f'{split}.npz').st_mtime_ns == before[split]


@pytest.mark.parametrize('found', ['other size', 'other classes', 'more images', 'no archive'])
def test_other_npz_in_the_output_folder_is_not_overwritten(found, content, run, tmp_path, decoded):
    (tmp_path / 'out').mkdir()
    path = tmp_path / 'out' / 'dev.npz'
    shapes = {'other size': ('n00000003', 4, 28), 'other classes': ('n00000010', 4, 84),
              'more images': ('n00000003', 5, 84), 'no archive': ('n00000003', 4, 84)}
    synset, n, size = shapes[found]
    np.savez(path, **{synset: np.zeros((n, size, size, 3), np.uint8)})
    if found == 'no archive':
        path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    assert str(path) in error and '--output' in error
    assert path.read_bytes() == before and not decoded


def test_npz_of_other_split_files_or_from_elsewhere_are_told(content, run, tmp_path, decoded, capsys):
    source = lay_out(content, 'folders', tmp_path / 'in')
    run(source)
    capsys.readouterr()
    run(source)
    assert capsys.readouterr().out.count(f'images listed, from {source}. To make it again') == 3
    note = tmp_path / 'out' / 'train.json'
    whole = note.read_text()
    note.write_text(json.dumps({**json.loads(whole), 'listing': 'of others'}))
    assert 'train.npz is there already, but is not what these split files give' in error_of(run, source)
    for damaged in '{"listing": ', '[]', '{"listing": 1, "source": "a"}', None:
        os.remove(note)
        if damaged is not None:
            note.write_text(damaged)
        run(source)
        assert capsys.readouterr().out.count('; whether of these very names is not known. To make') == 1
        note.write_text(whole)


def test_a_run_that_waited_for_another_one_takes_what_that_has_made(content, run, tmp_path, monkeypatch, capsys):
    source = lay_out(content, 'folders', tmp_path / 'in')

    @contextlib.contextmanager
    def waiting(output):
        monkeypatch.setattr(preprocess, 'alone', alone)
        run(source)
        yield
    monkeypatch.setattr(preprocess, 'alone', waiting)
    run(source)
    assert capsys.readouterr().out.count('npz is there already') == 3
    assert not (tmp_path / 'out' / 'partial').exists()


def test_why_images_are_refused_is_said(content, run, tmp_path, monkeypatch, capsys):
    source = lay_out(content, 'folders', tmp_path / 'in')
    whole = preprocess.decode
    seen = []

    def decode(data, size):
        seen.append(data)
        if len(seen) in (2, 3):  # the second image, as it is and with an end mark
            raise ValueError('its pixels are of 12 bits')
        return whole(data, size)
    monkeypatch.setattr(preprocess, 'decode', decode)
    run(source, '--workers=1')
    assert '1 skipped, cannot be read (the first: its pixels are of 12 bits): ' in capsys.readouterr().out


def test_an_image_of_a_class_called_train_is_not_that_of_another_class(content, run, tmp_path, decoded):
    rows = {'train': ['2.png,cat', '0.png,cat', '0.png,train'], 'dev': ['0.png,dog'], 'test': ['0.png,owl']}
    for split, listed in rows.items():
        (tmp_path / 'splits' / CSV_FILES[split]).write_text('\n'.join(['filename,label', *listed, '']))
        for label in {row.split(',')[1] for row in listed}:
            (tmp_path / 'in' / label).mkdir(parents=True)
            for name in '0.png', '2.png':
                Image.new('RGB', (9, 9), (len(label), 0, 0)).save(tmp_path / 'in' / label / name)
    assert {label: len(images) for label, images in run(tmp_path / 'in')['train'].items()} == {'cat': 2, 'train': 1}
    shutil.rmtree(tmp_path / 'out')
    os.remove(tmp_path / 'in' / 'cat' / '2.png')
    del decoded[:]
    assert '2.png of class cat is not below' in error_of(run, tmp_path / 'in')
    assert not decoded


def test_files_of_the_system_in_a_tar_are_not_looked_at(content, tmp_path):
    path = tmp_path / 'a.tar'
    path.write_bytes(make_tar({'.DS_Store': b'', 'x/.DS_Store': b'', '._a.jpg': b'', 'x/._a.jpg': b'', 'a.jpg': b'1'}))
    assert list(tar_files(str(path))) == ['a.jpg']


# As a program ---------------------------------------------------------------------------------------------------------


def test_command_line(content, tmp_path):
    source = lay_out(content, 'big_tar', tmp_path / 'in')
    command = [sys.executable, os.path.join(ROOT, 'preprocess_mini_imagenet.py'), str(source),
               '--output', str(tmp_path / 'out'), '--workers', '2', '--splits']
    failed = subprocess.run(command + [str(tmp_path)], capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode == 1 and failed.stderr.startswith('error: train.csv')
    done = subprocess.run(command + [str(write_splits(tmp_path / 'splits'))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'test.npz: 1 classes, 4 images' in done.stdout
    assert load(tmp_path / 'out')['test']['n00000004'].shape == (4, 84, 84, 3)


def test_bars_are_for_terminals_and_a_closed_pipe_stops_nothing(content, tmp_path):
    source = write_splits(lay_out(content, 'images', tmp_path / 'in'))
    command = [sys.executable, os.path.join(ROOT, 'preprocess_mini_imagenet.py'), str(source)]
    done = subprocess.run(command + ['--output', str(tmp_path / 'out')], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ''
    started = subprocess.Popen(command + ['--output', str(tmp_path / 'piped')], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    started.stdout.close()
    assert started.stderr.read() == '' and started.wait() == 0
    check(load(tmp_path / 'piped'))


def test_names_that_the_terminal_lacks_or_that_steer_it_are_escaped(content, tmp_path):
    for name, data in (('\u00e9.jpg', b'broken'), ('a.jpg', content['n00000003'][0])):
        (tmp_path / name).write_bytes(data)
    for split, csv in CSV_FILES.items():
        rows = ['filename,label', f'a.jpg,\u732b {split}', f'\u00e9.jpg,\u732b {split}']
        (tmp_path / split).mkdir()
        (tmp_path / csv).write_text('\n'.join(rows), encoding='utf-8')
        for name in ('\u00e9.jpg', 'a.jpg'):
            shutil.copy(tmp_path / name, tmp_path / split / name)
    for name in ('\u00e9.jpg', 'a.jpg'):
        os.remove(tmp_path / name)

    def run(source):
        command = [sys.executable, os.path.join(ROOT, 'preprocess_mini_imagenet.py'), str(source)]
        return subprocess.run(command + ['--output', str(tmp_path / 'out')], capture_output=True, text=True,
                              env={**os.environ, 'LC_ALL': 'C', 'PYTHONIOENCODING': 'ascii'})
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('1 skipped, cannot be read (the first: it is in no known image format): \\xe9.jpg\n') == 3
    os.remove(tmp_path / 'dev' / 'a.jpg')
    os.remove(tmp_path / 'out' / 'dev.npz')
    done = run(tmp_path)
    assert done.returncode == 1 and 'a.jpg of class \\u732b dev is not below' in done.stderr
    done = run(tmp_path / 'a\x1b[31m\u732b')
    assert done.returncode == 1 and 'a\\x1b[31m\\u732b' in done.stderr and '\x1b' not in done.stderr
