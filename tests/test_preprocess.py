"""preprocess_mini_imagenet: from small ImageNets, made here in every layout, to the three npz files."""
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
from PIL import Image
import pytest

import preprocess_mini_imagenet as preprocess
from sources.splits import CSV_FILES

ROOT = os.path.dirname(os.path.abspath(preprocess.__file__))
CLASSES = {'train': ['n00000010', 'n00000002'], 'dev': ['n00000003'], 'test': ['n00000004']}
SYNSETS = [synset for names in CLASSES.values() for synset in names]
# In numeric order; sorted as text, 1000 and 33 would come before 9.
NUMBERS = [2, 9, 10, 33, 200, 1000]
RANKS = [1, 2, 3, 6]
LAYOUTS = ['big_tar', 'tars', 'folders', 'images']


def color(synset, rank):
    return 40 * SYNSETS.index(synset) + 60, 30 * rank + 20, 120


def encode(image, kind='JPEG', **options):
    f = io.BytesIO()
    image.save(f, kind, **options)
    return f.getvalue()


def make_tar(files):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w') as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return f.getvalue()


def name_of(synset, rank):
    return f'{synset}{rank:08d}.jpg'


@pytest.fixture
def content():
    """{synset: [bytes of the image of rank 1, of rank 2, ...]}, for a test to change and lay out."""
    return {synset: [encode(Image.new('RGB', (120, 100), color(synset, rank)), quality=95)
                     for rank in range(1, len(NUMBERS) + 1)] for synset in SYNSETS}


def write_splits(folder, extra=None):
    """Write the split files; `extra` is {csv name: rows to add}."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, synsets in CLASSES.items():
        name = CSV_FILES[split]
        rows = [f'{name_of(synset, rank)},{synset}' for synset in synsets for rank in RANKS]
        (folder / name).write_text('\n'.join(['filename,label'] + rows + (extra or {}).get(name, [])) + '\n')
    return folder


def lay_out(content, layout, folder):
    """Write the images in one of the layouts and return the SOURCE."""
    # A stranger among the synsets and a stray file among the images, which the ranks must not count.
    synsets = dict(content, n00000099=content[SYNSETS[0]])
    files = {synset: {f'{synset}_{number}.JPEG': data for number, data in zip(NUMBERS, images)}
             for synset, images in synsets.items()}
    folder.mkdir(parents=True)
    for synset, images in files.items():
        files[synset] = dict(sorted(images.items()), **{'notes.txt': b'not an image'})
    if layout == 'big_tar':
        path = folder / 'ILSVRC2012_img_train.tar'
        path.write_bytes(make_tar({synset + '.tar': make_tar(images) for synset, images in files.items()}))
        return path
    for synset, images in files.items():
        if layout == 'tars':
            (folder / f'{synset}.tar').write_bytes(make_tar(images))
        elif layout == 'folders':
            (folder / synset).mkdir()
            for name, data in images.items():
                (folder / synset / name).write_bytes(data)
    if layout == 'images':
        (folder / 'images').mkdir()
        for synset, images in content.items():
            for rank, data in enumerate(images, 1):
                (folder / 'images' / name_of(synset, rank)).write_bytes(data)
    return folder


@pytest.fixture
def run(tmp_path):
    """Run the script on a source with the split files in tmp_path/splits; return {split: {synset: array}}."""
    def run(source, *args, splits=tmp_path / 'splits', output=tmp_path / 'out'):
        preprocess.main([str(source), '--splits', str(splits), '--output', str(output), *args])
        return load(output)
    write_splits(tmp_path / 'splits')
    return run


def load(output):
    result = {}
    for split in CLASSES:
        with np.load(output / f'{split}.npz') as npz:
            result[split] = dict(npz)
    return result


def error_of(call, *args, **options):
    with pytest.raises(SystemExit) as caught:
        call(*args, **options)
    assert isinstance(caught.value.code, str) and caught.value.code.startswith('error: ')
    return caught.value.code


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows by one entry for each image decoded."""
    calls, decode = [], preprocess.decode

    def counting(data, size):
        calls.append(size)
        return decode(data, size)
    monkeypatch.setattr(preprocess, 'decode', counting)
    return calls


# ---- The result ----

@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout_gives_each_class_the_images_of_its_ranks(layout, content, run, tmp_path):
    result = run(lay_out(content, layout, tmp_path / 'in'))
    assert {split: list(classes) for split, classes in result.items()} == CLASSES
    for classes in result.values():
        for synset, images in classes.items():
            assert images.shape == (len(RANKS), 84, 84, 3) and images.dtype == np.uint8
            for image, rank in zip(images, RANKS):
                assert np.abs(image - np.array(color(synset, rank), float)).max() <= 3


def test_layouts_agree_to_the_byte(content, run, tmp_path):
    outputs = []
    for layout in LAYOUTS:
        run(lay_out(content, layout, tmp_path / layout), output=tmp_path / f'out_{layout}')
        outputs.append([(tmp_path / f'out_{layout}' / f'{split}.npz').read_bytes() for split in CLASSES])
    assert all(output == outputs[0] for output in outputs)


def test_folder_with_its_split_files_needs_no_splits_argument(content, tmp_path):
    source = write_splits(lay_out(content, 'images', tmp_path / 'in'))
    preprocess.main([str(source), '--output', str(tmp_path / 'out')])
    assert list(load(tmp_path / 'out')['train']) == CLASSES['train']


def test_npz_is_stored_uncompressed_and_nothing_else_is_left(content, run, tmp_path):
    run(lay_out(content, 'tars', tmp_path / 'in'))
    assert sorted(os.listdir(tmp_path / 'out')) == ['dev.npz', 'test.npz', 'train.npz']
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
    content['n00000002'] = good
    shutil.rmtree(tmp_path / 'in')
    run(lay_out(content, 'folders', tmp_path / 'in'))
    assert len(decoded) == len(RANKS)


# ---- Starting again ----

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
    assert sorted(os.listdir(tmp_path / 'out')) == ['dev.npz', 'test.npz', 'train.npz']
    fresh = run(source, output=tmp_path / 'fresh')
    for split, classes in fresh.items():
        for synset, images in classes.items():
            np.testing.assert_array_equal(resumed[split][synset], images)


@pytest.mark.parametrize('change', ['size', 'splits', 'source'])
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
        image = run(lay_out(inverted, 'tars', tmp_path / 'other'))['train']['n00000010'][0]
        assert np.abs(image - np.array(color('n00000010', 6), float)).max() <= 3


def test_failure_while_writing_leaves_no_npz_and_no_temporary_file(content, run, tmp_path, monkeypatch):
    source = lay_out(content, 'tars', tmp_path / 'in')

    def full_disk(a, b):
        b.write(b'a part')
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(preprocess.shutil, 'copyfileobj', full_disk)
        assert 'No space left' in error_of(run, source)
    assert os.listdir(tmp_path / 'out') == ['partial']
    assert list(run(source)['train']) == CLASSES['train']


def test_leftover_of_a_killed_process_is_no_obstacle(content, run, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'train.npz.123.part').write_bytes(b'half an archive')
    run(lay_out(content, 'tars', tmp_path / 'in'))
    assert sorted(os.listdir(tmp_path / 'out')) == ['dev.npz', 'test.npz', 'train.npz']


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


# ---- Bad input: an error before any image is decoded ----

def test_missing_split_files_error_tells_where_to_get_them_and_names_the_synsets(content, tmp_path):
    source = lay_out(content, 'tars', tmp_path / 'in')
    error = error_of(preprocess.main, [str(source), '--output', str(tmp_path / 'out')])
    assert 'train.csv, val.csv, test.csv' in error and 'meta-learning-lstm' in error and '--splits' in error
    lines = {line.split(':')[0].strip(): line.split()[1:] for line in error.splitlines()[1:]}
    assert [len(lines[split]) for split in CLASSES] == [64, 16, 20]
    assert len(set(sum(lines.values(), []))) == 100


def test_only_the_missing_split_file_is_named(content, run, tmp_path):
    os.remove(tmp_path / 'splits' / 'val.csv')
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    assert 'val.csv' in error and 'train.csv' not in error


@pytest.mark.parametrize('row, words', [
    ('n000000100000001.jpg,n00000010', []),  # seven digits of rank
    ('n0000001000000000.jpg,n00000010', ['from 1']),
    ('n0000001000000005.png,n00000010', []),
    ('n0000001000000005.jpg', []),
    ('n0000001000000005.jpg,n00000010,5', []),
    ('n0000001000000005.jpg,n00000002', ['label', 'n00000002']),
    ('n0000001000000003.jpg,n00000010', ['row 4']),  # a duplicate
])
def test_bad_row_is_named(row, words, content, run, tmp_path, decoded):
    splits = write_splits(tmp_path / 'splits', {'train.csv': [row]})
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    for word in ['train.csv, row 10', row.split(',')[0][:9]] + words:
        assert word in error
    assert str(splits) in error and not decoded


def test_class_of_two_splits_is_an_error(content, run, tmp_path, decoded):
    write_splits(tmp_path / 'splits', {'test.csv': ['n0000001000000005.jpg,n00000010']})
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    assert 'test.csv, row 6' in error and 'class n00000010' in error and 'train.csv' in error
    assert not decoded


def test_all_bad_rows_and_headers_are_named_at_once(content, run, tmp_path):
    splits = write_splits(tmp_path / 'splits', {'train.csv': ['first,bad', 'second,bad']})
    (splits / 'val.csv').write_bytes(b'file,class\xff\n')
    (splits / 'test.csv').write_text('filename,label\n')
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    for word in ('row 10', 'row 11', 'file,class', 'test.csv: no images'):
        assert word in error


@pytest.mark.parametrize('layout', ['big_tar', 'tars', 'folders'])
def test_all_missing_synsets_and_images_are_named_at_once(layout, content, run, tmp_path, decoded):
    del content['n00000002'], content['n00000004']
    del content['n00000003'][5]
    error = error_of(run, lay_out(content, layout, tmp_path / 'in'))
    assert 'n00000002 n00000004' in error and 'n00000010' not in error
    assert 'n00000003' in error and 'rank 6' in error and 'only 5' in error
    assert not decoded


def test_missing_jpgs_are_named(content, run, tmp_path, decoded):
    source = lay_out(content, 'images', tmp_path / 'in')
    for name in ('n0000001000000001.jpg', 'n0000000300000002.jpg'):
        os.remove(source / 'images' / name)
    error = error_of(run, source)
    assert 'n0000001000000001.jpg' in error and 'n0000000300000002.jpg' in error and '2 problem' in error
    assert not decoded


def test_two_images_of_one_number_are_an_error(content, run, tmp_path):
    source = lay_out(content, 'folders', tmp_path / 'in')
    (source / 'n00000003' / 'n00000003_09.jpg').write_bytes(content['n00000003'][0])
    error = error_of(run, source)
    assert 'n00000003' in error and 'same number' in error


@pytest.mark.parametrize('damage', ['cut', 'cut between images', 'broken header', 'not a tar', 'empty'])
def test_damaged_tars_are_named(damage, content, run, tmp_path, decoded):
    source = lay_out(content, 'tars', tmp_path / 'in')
    for synset in ('n00000010', 'n00000003'):
        path = source / f'{synset}.tar'
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            last = tar.getmembers()[-1].offset
        path.write_bytes({
            'cut': data[:last - 700], 'cut between images': data[:last], 'not a tar': b'a web page' * 99,
            'broken header': data[:last] + b'x' * 512 + data[last + 512:], 'empty': b''}[damage])
    error = error_of(run, source)
    assert 'n00000010.tar' in error and 'n00000003.tar' in error and 'n00000002' not in error
    assert not decoded


def test_damage_inside_the_big_tar_is_named(content, run, tmp_path):
    source = lay_out(content, 'big_tar', tmp_path / 'in')
    with tarfile.open(source) as tar:
        start = tar.getmember('n00000003.tar').offset_data
    with open(source, 'r+b') as f:
        f.seek(start)
        f.write(b'x' * 100)
    error = error_of(run, source)
    assert 'n00000003' in error and str(source) in error and 'n00000010' not in error


def test_big_tar_whose_download_stopped_is_named(content, run, tmp_path):
    source = lay_out(content, 'big_tar', tmp_path / 'in')
    os.truncate(source, os.path.getsize(source) // 2)
    assert str(source) in error_of(run, source)


def test_missing_source_is_named(run, tmp_path):
    assert str(tmp_path / 'nowhere') in error_of(run, tmp_path / 'nowhere')


@pytest.mark.parametrize('option', ['--size', '--workers'])
def test_options_below_one_are_refused(option, run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, option, '0')
    assert option in capsys.readouterr().err


# ---- As a program ----

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
