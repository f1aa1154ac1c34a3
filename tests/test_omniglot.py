"""Omniglot, of which the tests make small copies, and data of the user's own in its place."""

import functools
import hashlib
import io
import os
import shutil
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
from data_sets import drawings, same, same_classes, save_own
from PIL import Image

import data
from sources import omniglot

ZIPS = ('images_background.zip', 'images_evaluation.zip')


def drawing(character, drawer):
    """A PNG, 105x105, black on white: a bar, 15 pixels high, and below it marks of its own, seven pixels wide."""
    image = Image.new('1', (105, 105), 1)
    image.paste(0, (0, 0, 105, 15))
    for place, count in (35, character), (70, drawer):
        for bit in range(5):
            if count >> bit & 1:
                image.paste(0, (14 * bit, place, 14 * bit + 7, place + 7))
    png = io.BytesIO()
    image.save(png, 'png')
    return png.getvalue()


def members(root, characters, n_drawings=20, folder='Greek/character{:02d}'):
    """{name: content} of the members of an Omniglot zip."""
    return {f'{root}/{folder.format(c)}/{c:04d}_{d:02d}.png': drawing(c, d)
            for c in characters for d in range(1, n_drawings + 1)}


def write_zip(path, content):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('folder/', b'')
        for name, png in content.items():
            archive.writestr(name, png)


CHARACTERS = (range(1, 7), range(7, 11))  # of the two zips of the small Omniglot
PARTS = dict(zip(range(1, 11), ['train', 'test', 'train', 'dev', 'train', 'train', 'test', 'train', 'dev', 'test']))


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
    """Omniglot with 6 + 4 characters, and no trace of the user's own copy of it or of the network."""
    def no_network(*args, **kwargs):
        raise AssertionError('the network was used')

    table = tmp_path_factory.mktemp('table') / 'omniglot_split.csv'
    table.write_text('character,part\n' + ''.join(f'{c:04d},{part}\n' for c, part in PARTS.items()))
    monkeypatch.setattr(omniglot, 'SPLIT_TABLE', str(table))
    monkeypatch.setattr(omniglot, 'N_CHARACTERS', dict(zip(ZIPS, map(len, CHARACTERS))))
    monkeypatch.setattr(urllib.request, 'urlopen', no_network)
    monkeypatch.delenv('OMNIGLOT_DIR', raising=False)


@pytest.fixture
def folder(small, tmp_path):
    """A folder with the two zips of the small Omniglot."""
    path = tmp_path / 'zips'
    path.mkdir()
    for name, characters in zip(ZIPS, CHARACTERS):
        write_zip(path / name, members(name[:-len('.zip')], characters))
    return path


class Response(io.BytesIO):
    def __init__(self, content):
        super().__init__(content)
        self.headers = {'Content-Length': str(len(content))}


def ids(part):
    return [f'{c:04d}' for c in part]


@pytest.mark.parametrize('split, train_characters, test_characters', [
    ('previous', [1, 3, 4, 5, 6, 8, 9], [2, 7, 10]),
    ('standard', *CHARACTERS),
    ('dev', [1, 3, 5, 6, 8], [4, 9]),
])
def test_the_splits_hold_their_characters_in_order(folder, split, train_characters, test_characters):
    train, test, name = data.omniglot(folder, split)
    assert (list(train), list(test), name) == (ids(train_characters), ids(test_characters), 'Omniglot')
    for c, images in [*train.items(), *test.items()]:
        marks = images[:, [10, 19]][:, :, [0, 4, 8, 12, 15]] > 128
        assert (marks @ [1, 2, 4, 8, 16]).tolist() == [[int(c), d] for d in range(1, 21)]


@pytest.mark.parametrize('split', data.SPLITS)
def test_copies_with_other_folder_names_and_another_order_give_the_same_episodes(folder, tmp_path, split):
    other = tmp_path / 'copy'
    other.mkdir()
    for name, characters in zip(ZIPS, CHARACTERS):
        content = {f'{name[:-4]}/alphabet {37 * c % 5}/sign{50 - c}/{c:04d}_{d:02d}.png': drawing(c, d)
                   for c in characters for d in range(1, 21)}
        order = np.random.RandomState(0).permutation(len(content))
        write_zip(other / name, {list(content)[i]: list(content.values())[i] for i in order})
    parts, other_parts = data.omniglot(folder, split)[:2], data.omniglot(other, split)[:2]
    assert all(map(same_classes, parts, other_parts))
    for a, b in zip(parts, other_parts):
        one, two = (data.EpisodeSampler(classes, 2, 1, 3, rotate=True, seed=3) for classes in (a, b))
        assert all(same(one.sample(), two.sample()) for _ in range(100))


def test_the_split_table_lists_every_character_once():
    table = omniglot._split_table()
    assert list(table) == ids(range(1, 1624))
    parts = list(table.values())
    assert [parts.count(part) for part in ('train', 'dev', 'test')] == [1100, 100, 423]
    # The shipped models were trained by this very table.
    assert hashlib.md5(''.join(part[1] for part in parts).encode()).hexdigest() == 'f76b80fb10239a010d3361dcc85f89f8'


def test_extracted_folders_are_read_too(folder, tmp_path, monkeypatch):
    train, test, _ = data.omniglot(folder, 'standard')
    extracted = tmp_path / 'extracted'
    for name in ZIPS:
        zipfile.ZipFile(folder / name).extractall(extracted)
    (extracted / 'images_background' / 'Greek' / '._character01').write_bytes(b'of the operating system')
    (extracted / 'images_background' / 'Greek' / 'Thumbs.db').write_bytes(b'of the operating system')
    again = data.omniglot(extracted, 'standard', download=False)
    assert same_classes(again[0], train) and same_classes(again[1], test) and again[2] == 'Omniglot'
    monkeypatch.setenv('OMNIGLOT_DIR', str(extracted))
    again = data.omniglot(tmp_path / 'input', 'standard')
    assert same_classes(again[0], train) and same_classes(again[1], test)
    drawing = next((extracted / 'images_evaluation').rglob('0008_03.png'))
    drawing.rename(drawing.with_suffix('.PNG'))
    shutil.move(extracted / 'images_background' / 'Greek', tmp_path / 'alphabet')
    os.symlink(tmp_path / 'alphabet', extracted / 'images_background' / 'Linked', target_is_directory=True)
    os.symlink(extracted / 'images_background', tmp_path / 'alphabet' / 'above', target_is_directory=True)
    again = data.omniglot(tmp_path / 'another', 'standard')
    assert same_classes(again[0], train) and same_classes(again[1], test)
    os.remove(drawing.with_suffix('.PNG'))
    with pytest.raises(ValueError, match='images_evaluation.*character08 has 19 drawings.*; put there all that is in'):
        data.omniglot(tmp_path / 'input', 'dev')


def test_the_files_that_macos_adds_to_zips_are_skipped(folder):
    train, test, _ = data.omniglot(folder, 'standard')
    for name, characters in zip(ZIPS, CHARACTERS):
        root = name[:-len('.zip')]
        content = members(root, characters)
        for member in list(content):
            path, file_name = os.path.split(member)
            content[f'{path}/._{file_name}'] = content[f'__MACOSX/{path}/._{file_name}'] = b'attributes'
            content[f'__MACOSX/{member}'] = b'attributes'
        write_zip(folder / name, content)
    for name in ('train.npz', 'test.npz'):
        (folder / 'standard' / name).unlink()
    again = data.omniglot(folder, 'standard')
    assert same_classes(again[0], train) and same_classes(again[1], test)


def old_names(classes):
    return {f'images_background/Greek/{name}': images for name, images in reversed(classes.items())}


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize('split', data.SPLITS)
@pytest.mark.parametrize('spoil', [
    lambda path: data.save_classes(path, old_names(data.load_classes(path))),
    lambda path: data.save_classes(path, dict(reversed(data.load_classes(path).items()))),
    lambda path: data.save_classes(path, dict(list(data.load_classes(path).items())[1:])),
    cut, flip, lambda path: path.unlink(),
])
def test_kept_files_of_another_order_and_damaged_ones_are_made_anew(folder, capsys, split, spoil):
    train, test, _ = data.omniglot(folder, split)
    for part in ('train.npz', 'test.npz'):
        spoil(folder / split / part)
        capsys.readouterr()
        again = data.omniglot(folder, split)
        assert same_classes(again[0], train) and same_classes(again[1], test) and again[2] == 'Omniglot'
        assert 'made anew' in capsys.readouterr().err
        assert same_classes(data.load_classes(folder / split / part), (train if part == 'train.npz' else test))
    spoil(folder / split / 'train.npz')
    before = sorted(os.listdir(folder / split))
    for name in ZIPS:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r'(?s)train\.npz.*the zips are needed.*images_background\.zip'):
        data.omniglot(folder, split, download=False)
    assert sorted(os.listdir(folder / split)) == before


def test_data_of_ones_own_that_look_like_kept_files_are_put_aside(folder, capsys):
    data.omniglot(folder, 'previous')
    path = folder / 'previous' / 'train.npz'
    data.save_classes(path, {name: 255 - images for name, images in reversed(data.load_classes(path).items())})
    content = path.read_bytes()
    data.omniglot(folder, 'previous')
    assert (folder / 'previous' / 'train.npz.old1').read_bytes() == content
    assert 'train.npz.old1' in capsys.readouterr().err


def test_ink_is_255_and_paper_0(folder):
    train, _, _ = data.omniglot(folder)
    for images in train.values():
        assert images.shape == (20, 28, 28) and images.dtype == np.uint8
        assert (images[:, :4] == 255).all() and (images[:, 4:9] == 0).all()  # 15 of 105 rows are 4 of 28


def test_a_second_call_needs_no_zips(folder, capsys):
    first = data.omniglot(folder)
    for name in ZIPS:
        (folder / name).unlink()
    second = data.omniglot(folder, download=False)
    assert capsys.readouterr().err == ''  # nor are there progress bars where there is no terminal
    assert second[2] == 'Omniglot'
    assert same_classes(first[0], second[0]) and same_classes(first[1], second[1])


def test_zips_are_found_in_the_folder_of_the_environment_variable(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('OMNIGLOT_DIR', str(folder))
    train, test, name = data.omniglot(tmp_path / 'input', 'standard')
    assert (len(train), len(test), name) == (6, 4, 'Omniglot')
    assert sorted(os.listdir(tmp_path / 'input' / 'standard')) == ['test.npz', 'train.npz']
    assert sorted(os.listdir(folder)) == list(ZIPS)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_zips_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot, '_read_source', None)
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file/omniglot cannot be made .*: set input_path'):
        data.omniglot(str(tmp_path / 'file' / 'omniglot'))


def test_a_zip_missing_from_the_folder_of_the_environment_variable_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('OMNIGLOT_DIR', str(folder))
    (folder / ZIPS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=r'OMNIGLOT_DIR.*images_evaluation\.zip'):
        data.omniglot(tmp_path / 'input')


def test_zips_are_downloaded_and_checked(folder, tmp_path, monkeypatch):
    def urlopen(url, timeout):
        assert url.startswith('https://github.com/brendenlake/omniglot/') and 0 < timeout <= 30
        return Response((folder / url.rsplit('/', 1)[1]).read_bytes())

    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    monkeypatch.setattr(omniglot, 'OMNIGLOT_MD5', {
        name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ZIPS})
    _, _, name = data.omniglot(tmp_path / 'input')
    assert name == 'Omniglot'
    assert sorted(os.listdir(tmp_path / 'input')) == [*ZIPS, 'previous']
    assert (tmp_path / 'input' / ZIPS[0]).read_bytes() == (folder / ZIPS[0]).read_bytes()


def test_a_download_with_a_wrong_checksum_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, 'urlopen', lambda *args, **kwargs: Response(b'Please log in'))
    with pytest.raises(ValueError, match=r'images_background\.zip has the MD5'):
        data.omniglot(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('failure', [urllib.error.URLError('no route'), TimeoutError('no route')])
def test_offline_the_synthetic_characters_come_with_a_banner(small, tmp_path, monkeypatch, capsys, failure):
    def urlopen(*args, **kwargs):
        raise failure

    monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
    train, test, name = data.omniglot(tmp_path)
    assert name == 'synthetic strokes'
    assert len(train) == 400 and len(test) == 200 and not train.keys() & test.keys()
    assert os.listdir(tmp_path) == []
    banner = capsys.readouterr().err
    for part in ('!!!!!!!!', 'NOT OMNIGLOT', 'synthetic', 'no route', str(tmp_path), 'OMNIGLOT_DIR', *ZIPS):
        assert part in banner


def test_without_leave_to_download_the_network_is_not_touched(small, tmp_path, capsys):
    _, _, name = data.omniglot(tmp_path, download=False)
    assert name == 'synthetic strokes'
    assert 'downloads are switched off' in capsys.readouterr().err


def test_an_unknown_split_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="'previous', 'standard'"):
        data.omniglot(tmp_path, split='vinyals')


def damage(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 255
    path.write_bytes(content)


def remake(characters, *args, **options):
    """Writes the second zip of the small Omniglot, with other characters, or otherwise."""
    return lambda path: write_zip(path, members('images_evaluation', characters, *args, **options))


def rename(old, new, root='images_evaluation/Greek/'):
    """Writes the second zip of the small Omniglot, one of its members under another name."""
    def write(path):
        content = members('images_evaluation', CHARACTERS[1])
        content[root + new] = content.pop(root + old)
        write_zip(path, content)
    return write


@pytest.mark.parametrize('spoil, message', [
    (lambda path: path.write_bytes(b'not a zip'), 'cannot be read'),
    (damage, 'cannot be read'),
    (remake(range(7, 10)), 'holds 3 characters, not 4'),
    (remake(range(7, 11), 19), 'character07 has 19 drawings, not 20'),
    (remake(range(8, 12)), 'a character 0011, which Omniglot has not'),
    (remake(range(6, 10)), 'character 0006 is in images_background'),
    (remake(range(7, 11), folder='Greek'), '0007 and 0008'),
    (rename('character08/0008_20.png', 'character88/0008_20.png'), 'character 0008 are in more than one folder'),
    (rename('character08/0008_20.png', 'character08/0008_21.png'), 'no drawing 0008_20.png'),
    (rename('character08/0008_20.png', 'character08/0007_21.png'), '0008 and 0007'),
    (rename('character08/0008_20.png', 'character08/alpha.png'), 'alpha.png is not named as'),
    (lambda path: write_zip(path, {**members('images_evaluation', CHARACTERS[1]),
                                   'images_evaluation/Greek/character08/0008_03.png': b'no image'}),
     'character08/0008_03.png cannot be read'),
])
def test_a_bad_zip_is_refused(folder, spoil, message):
    spoil(folder / ZIPS[1])
    with pytest.raises(ValueError, match=rf'(?s)images_evaluation\.zip.*{message}.*https://'):
        data.omniglot(folder)
    assert sorted(os.listdir(folder)) == list(ZIPS)


@pytest.mark.skipif(not os.environ.get('OMNIGLOT_DIR'),
                    reason='OMNIGLOT_DIR does not name a folder with the two zips of the real Omniglot')
def test_the_real_omniglot(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot, '_read_source', functools.lru_cache(None)(omniglot._read_source))
    for split, n_train, n_test in ('previous', 1200, 423), ('standard', 964, 659), ('dev', 1100, 100):
        train, test, name = data.omniglot(tmp_path, split)
        assert (len(train), len(test), name) == (n_train, n_test, 'Omniglot')
        assert not train.keys() & test.keys()
        assert all(images.shape == (20, 28, 28) for images in [*train.values(), *test.values()])
        for classes in (train, test):
            images = np.concatenate(list(classes.values()))
            assert 0.05 < images.mean() / 255 < 0.12  # thin strokes of ink on empty paper
            assert (images.max(axis=(1, 2)) > 128).mean() > 0.99
        again = data.omniglot(tmp_path, split, download=False)  # from the kept files
        assert same_classes(again[0], train) and same_classes(again[1], test) and again[2] == 'Omniglot'


# Data of one's own ----------------------------------------------------------------------------------------------------


def test_ones_own_classes_go_before_the_zips_and_are_never_written_over(folder):
    save_own(folder, drawings('ab'), drawings('c', seed=1))
    save_own(folder / 'previous', drawings('de'), drawings('f', seed=1))
    assert list(data.omniglot(folder)[0]) == ['a', 'b']
    for name in ('train.npz', 'test.npz'):
        (folder / name).unlink()
    assert list(data.omniglot(folder)[0]) == ['d', 'e']
    cut(folder / 'previous' / 'test.npz')
    with pytest.raises(ValueError, match='test.npz'):
        data.omniglot(folder)
    (folder / 'previous' / 'test.npz').unlink()
    with pytest.raises(FileNotFoundError, match='test.npz does not exist'):
        data.omniglot(folder)
    assert list(data.load_classes(folder / 'previous' / 'train.npz')) == ['d', 'e']


def test_omniglots_numbers_alone_do_not_make_data_omniglot(folder):
    train, test, name = data.omniglot(folder)
    assert name == 'Omniglot'
    save_own(folder / 'previous', drawings(train, size=32), drawings(test, size=32, seed=1))
    assert data.omniglot(folder)[2] == f'own data ({folder.name})'
    save_own(folder / 'previous', drawings(train, n_images=19), drawings(test, n_images=19, seed=1))
    assert data.omniglot(folder)[2] == f'own data ({folder.name})'
    save_own(folder / 'previous', {c: np.zeros((20, 28, 28), np.uint8) for c in train}, test)
    with pytest.raises(ValueError, match="image 0 of class '0001' is blank"):
        data.omniglot(folder)


@pytest.mark.parametrize('spoil, message', [
    (lambda png: b'', 'cannot identify image'),
    (lambda png: png[:60], 'truncated'),
    (lambda png: png + bytes(1 << 20), r'it has \d+ bytes'),
    (lambda png: large_image(20000, 1), '20000x1'),
    (lambda png: large_image(105, 105), 'blank'),
])
def test_drawings_that_are_broken_huge_or_blank_are_refused_by_name(folder, tmp_path, spoil, message):
    content = members('images_evaluation', CHARACTERS[1])
    name = 'images_evaluation/Greek/character09/0009_02.png'
    content[name] = spoil(content[name])
    write_zip(folder / ZIPS[1], content)
    with pytest.raises(ValueError, match=f'{name} cannot be read.*{message}'):
        data.omniglot(folder)
    (folder / ZIPS[1]).rename(tmp_path / 'other.zip')
    with zipfile.ZipFile(tmp_path / 'other.zip') as archive:
        archive.extractall(folder)
    with pytest.raises(ValueError, match=f'{name[18:]} cannot be read.*{message}'):
        data.omniglot(folder)


def test_a_drawing_shrinks_to_the_shares_of_ink():
    ink = np.zeros((105, 105), bool)
    ink[:, 50], ink[30, 20:90] = True, True  # lines as thin as a pen's
    png = io.BytesIO()
    Image.fromarray(~ink).save(png, 'png')
    shares = ink.repeat(4, axis=0).repeat(4, axis=1).reshape(28, 15, 28, 15).mean(axis=(1, 3))  # 105 * 4 = 28 * 15
    np.testing.assert_allclose(omniglot._decode(png.getvalue()), 255 * shares, atol=8)  # Pillow counts whole pixels


def large_image(width, height):
    png = io.BytesIO()
    Image.new('1', (width, height), 1).save(png, 'png')
    return png.getvalue()


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no pipes with names')
def test_a_pipe_among_extracted_drawings_is_not_waited_for(folder):
    with zipfile.ZipFile(folder / ZIPS[0]) as archive:
        archive.extractall(folder)
    (folder / ZIPS[0]).unlink()
    path = folder / 'images_background' / 'Greek' / 'character02' / '0002_05.png'
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match='0002_05.png cannot be read.*it is no file'):
        data.omniglot(folder)


@pytest.mark.parametrize('offset, value', [(8, 1), (10, 99)])
def test_zips_that_are_encrypted_or_compressed_in_an_unknown_way_are_refused(folder, offset, value):
    content = bytearray((folder / ZIPS[1]).read_bytes())
    content[content.rindex(b'PK\x01\x02') + offset] = value
    (folder / ZIPS[1]).write_bytes(content)
    with pytest.raises(ValueError, match=r'images_evaluation\.zip.*cannot be read.*https://'):
        data.omniglot(folder)
