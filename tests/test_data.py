import hashlib
import io
import os
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

import data

ZIPS = ('images_background.zip', 'images_evaluation.zip')


def marked_classes(n_classes=8, n_images=6, shape=(4, 4)):
    """Classes whose images tell where they come from: pixel (0, 0) is the class, (0, 1) the image."""
    classes = {}
    for c in range(n_classes):
        images = np.zeros((n_images,) + shape, np.uint8)
        images[:, 0, 0] = (10 + c) if len(shape) == 2 else [10 + c, 0, 255]
        images[:, 0, 1] = np.arange(n_images).reshape((-1,) + (1,) * (len(shape) - 2))
        classes[f'class {c}'] = images
    return classes


def origins(x):
    """The (class, image) pairs of a batch of unrotated images of `marked_classes`."""
    levels = np.rint(x * 255).astype(int)
    return list(zip((levels[:, 0, 0, 0] - 10).tolist(), levels[:, 0, 0, 1].tolist()))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


def same_classes(a, b):
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


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
    monkeypatch.setattr(data, 'SPLIT_TABLE', str(table))
    monkeypatch.setattr(data, 'N_CHARACTERS', dict(zip(ZIPS, map(len, CHARACTERS))))
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


# Episodes


@pytest.mark.parametrize('shape, images', [((4, 4), (1, 4, 4)), ((4, 4, 3), (3, 4, 4))])
def test_shapes_dtypes_and_range_of_an_episode(shape, images):
    sampler = data.EpisodeSampler(marked_classes(shape=shape), way=5, shot=2, n_query=3)
    for episode in (sampler.sample(), next(iter(sampler))):
        assert isinstance(episode, data.Episode)
        assert episode.support_x.shape == (10,) + images and episode.query_x.shape == (15,) + images
        assert episode.support_x.dtype == episode.query_x.dtype == np.float32
        assert episode.support_y.dtype == episode.query_y.dtype == np.int32
        assert episode.support_x.flags.c_contiguous and episode.query_x.flags.c_contiguous


def test_images_are_scaled_to_the_unit_interval_with_channels_first():
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[:, 0, 1] = [0, 51, 255]
    x = data.EpisodeSampler({'a': images, 'b': images}, way=2, shot=1, n_query=1).sample().support_x
    assert np.array_equal(x[0, :, 0, 1], np.float32([0, 0.2, 1]))
    assert x[0].sum() == np.float32(1.2)


def test_an_episode_has_way_classes_with_shot_and_n_query_different_images_each():
    sampler = data.EpisodeSampler(marked_classes(), way=5, shot=2, n_query=4)
    for _ in range(50):
        support_x, support_y, query_x, query_y = sampler.sample()
        assert np.bincount(support_y).tolist() == [2] * 5
        assert np.bincount(query_y).tolist() == [4] * 5
        pairs = origins(support_x) + origins(query_x)
        assert len(set(pairs)) == 30  # so that support and query share no image
        labels = np.concatenate([support_y, query_y]).tolist()
        class_and_label = {(c, label) for (c, _), label in zip(pairs, labels)}
        assert len(class_and_label) == 5  # one label a class, one class a label


def test_labels_classes_and_positions_are_random():
    sampler = data.EpisodeSampler(marked_classes(3), way=3, shot=1, n_query=1)
    episodes = [sampler.sample() for _ in range(200)]
    labels = [y for e in episodes for (c, _), y in zip(origins(e.support_x), e.support_y) if c == 0]
    assert np.bincount(labels, minlength=3).min() > 40
    for field in ('support_y', 'query_y'):
        assert len({tuple(getattr(e, field).tolist()) for e in episodes}) == 6
    assert any(e.support_y.tolist() != e.query_y.tolist() for e in episodes)


def test_rotation_is_shared_by_the_images_of_a_class_and_differs_between_classes():
    sampler = data.EpisodeSampler(marked_classes(), way=4, shot=3, n_query=3, rotate=True)
    corners = [(0, 0), (3, 0), (3, 3), (0, 3)]  # where the mark of the class goes, turn by turn
    all_turns = []
    for _ in range(30):
        support_x, support_y, query_x, query_y = sampler.sample()
        x, y = np.concatenate([support_x, query_x])[:, 0], np.concatenate([support_y, query_y])
        turns = np.argmax([x[:, i, j] * 255 > 9 for i, j in corners], axis=0)
        assert all(len(set(turns[y == label])) == 1 for label in range(4))
        all_turns.append(tuple(turns[y == label][0] for label in range(4)))
        # Turned back, these are images of the data set.
        upright = np.stack([np.rot90(image, -turn) for image, turn in zip(x, turns)])[:, None]
        assert len(set(origins(upright))) == 24
    assert set(np.ravel(all_turns)) == {0, 1, 2, 3}
    assert any(len(set(turns)) > 1 for turns in all_turns)


def test_four_turns_make_four_classes():
    classes = data.synthetic_strokes(2)
    turned = data.turned(classes)
    assert len(turned) == 8
    for name, images in classes.items():
        quarter = turned[name + ', 90 degrees']
        np.testing.assert_array_equal(turned[name + ', 0 degrees'], images)
        np.testing.assert_array_equal(quarter[:, 0, :], images[:, :, -1])  # the right edge has come to the top
        np.testing.assert_array_equal(quarter[3], np.rot90(images[3]))
        np.testing.assert_array_equal(turned[name + ', 270 degrees'], images.transpose(0, 2, 1)[:, :, ::-1])
    # An episode may hold several turns of one character, as classes of their own.
    episode = data.EpisodeSampler(turned, 8, 1, 1).sample()
    assert sorted(episode.support_y.tolist()) == list(range(8))


def test_images_stay_upright_without_rotation():
    sampler = data.EpisodeSampler(marked_classes(), way=4, shot=1, n_query=5)
    assert all((sampler.sample().query_x[:, 0, 0, 0] > 0).all() for _ in range(20))


def test_episodes_depend_on_the_seed_alone():
    def draw(seed):
        sampler = data.EpisodeSampler(marked_classes(), 3, 1, 2, rotate=True, seed=seed)
        return [sampler.sample() for _ in range(5)]

    np.random.seed(1)
    first = draw(seed=7)
    np.random.seed(2)
    before = np.random.get_state()[1].copy()
    second = draw(seed=7)
    assert all(map(same, first, second))
    assert not all(map(same, first, draw(seed=8)))
    assert np.array_equal(before, np.random.get_state()[1])


def test_a_sampler_goes_on_exactly_from_a_saved_state(tmp_path):
    sampler = data.EpisodeSampler(marked_classes(), 3, 1, 2, rotate=True, seed=1)
    for _ in range(9):
        sampler.sample()
    np.savez(tmp_path / 'state.npz', state=sampler.get_state())
    expected = [sampler.sample() for _ in range(100)]
    with np.load(tmp_path / 'state.npz') as archive:
        state = archive['state']
    assert state.dtype == np.uint32 and state.ndim == 1
    other = data.EpisodeSampler(marked_classes(), 3, 1, 2, rotate=True, seed=2)
    other.set_state(state)
    assert np.array_equal(other.get_state(), state)
    assert all(same(other.sample(), episode) for episode in expected)
    assert np.array_equal(other.get_state(), sampler.get_state())


def test_every_part_of_a_state_is_kept():
    state = data.EpisodeSampler(marked_classes(), 3, 1, 2).get_state()
    state[624:626] = 17, 1  # the position in the key, and the flag of a cached Gaussian number...
    state[626:] = np.array([0.1]).view(np.uint32)  # ...and that number
    sampler = data.EpisodeSampler(marked_classes(), 3, 1, 2, seed=1)
    sampler.set_state(state)
    assert np.array_equal(sampler.get_state(), state)


@pytest.mark.parametrize('state', [np.zeros(627, np.uint32), np.zeros(628, np.float32)])
def test_a_wrong_state_is_refused(state):
    with pytest.raises(ValueError, match='get_state'):
        data.EpisodeSampler(marked_classes(), 3, 1, 2).set_state(state)


def test_arrays_are_made_by_xp():
    class Device:
        asarray = staticmethod(lambda array: ('on the device', array))

    episode = data.EpisodeSampler(marked_classes(), 3, 1, 2, xp=Device).sample()
    assert all(place == 'on the device' and isinstance(array, np.ndarray) for place, array in episode)


@pytest.mark.parametrize('settings, message', [
    (dict(way=1), 'way is 1'),
    (dict(shot=0), 'shot is 0'),
    (dict(n_query=0), 'n_query is 0'),
    (dict(way=9), '9 classes, but there are only 8'),
    (dict(classes={}), 'no classes'),
    (dict(classes={**marked_classes(), 'scaled': np.zeros((6, 4, 4), np.float32)}), "'scaled' are float32"),
    (dict(classes=marked_classes(shape=(4, 5)), rotate=True), "'class 0' are 4x5"),
])
def test_impossible_episodes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        data.EpisodeSampler(**{**dict(classes=marked_classes(), way=5, shot=1, n_query=5), **settings})


def test_classes_with_too_few_images_are_counted_and_five_are_named():
    classes = {**marked_classes(8, n_images=5), **{'big': np.zeros((6, 4, 4), np.uint8)}}
    data.EpisodeSampler(classes, 5, 1, 4)
    with pytest.raises(ValueError, match='8 of the 9 classes') as error:
        data.EpisodeSampler(classes, 5, 1, 5)
    assert 'class 4, ...' in str(error.value)
    assert 'class 5' not in str(error.value) and 'big' not in str(error.value)


# Files of classes


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


# Omniglot


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
    table = data._split_table()
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
    next((extracted / 'images_evaluation').rglob('0008_03.png')).unlink()
    with pytest.raises(ValueError, match='images_evaluation.*character08 has 19 drawings'):
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


def test_ink_is_255_and_paper_0(folder):
    train, _, _ = data.omniglot(folder)
    for images in train.values():
        assert images.shape == (20, 28, 28) and images.dtype == np.uint8
        assert (images[:, :4] == 255).all() and (images[:, 4:9] == 0).all()  # 15 of 105 rows are 4 of 28


def test_a_second_call_needs_no_zips(folder, capsys):
    first = data.omniglot(folder)
    assert 'decoding' in capsys.readouterr().err
    for name in ZIPS:
        (folder / name).unlink()
    second = data.omniglot(folder, download=False)
    assert capsys.readouterr().err == ''
    assert second[2] == 'Omniglot'
    assert same_classes(first[0], second[0]) and same_classes(first[1], second[1])


def test_zips_are_found_in_the_folder_of_the_environment_variable(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('OMNIGLOT_DIR', str(folder))
    train, test, name = data.omniglot(tmp_path / 'input', 'standard')
    assert (len(train), len(test), name) == (6, 4, 'Omniglot')
    assert sorted(os.listdir(tmp_path / 'input' / 'standard')) == ['test.npz', 'train.npz']
    assert sorted(os.listdir(folder)) == list(ZIPS)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_zips_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data, '_read_source', None)
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
    monkeypatch.setattr(data, 'OMNIGLOT_MD5', {
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
@pytest.mark.parametrize('split, n_train, n_test',
                         [('previous', 1200, 423), ('standard', 964, 659), ('dev', 1100, 100)])
def test_the_real_omniglot(tmp_path, split, n_train, n_test):
    train, test, name = data.omniglot(tmp_path, split)
    assert (len(train), len(test), name) == (n_train, n_test, 'Omniglot')
    assert not train.keys() & test.keys()
    assert all(images.shape == (20, 28, 28) for images in [*train.values(), *test.values()])
    for classes in (train, test):
        images = np.concatenate(list(classes.values()))
        assert 0.05 < images.mean() / 255 < 0.12  # thin strokes of ink on empty paper
        assert (images.max(axis=(1, 2)) > 128).mean() > 0.99


# Synthetic characters


def test_synthetic_characters_depend_on_the_seed_alone():
    classes = data.synthetic_strokes(5, n_drawers=3, seed=4)
    assert len(classes) == 5
    assert all(images.shape == (3, 28, 28) and images.dtype == np.uint8 for images in classes.values())
    np.random.seed(0)
    assert same_classes(classes, data.synthetic_strokes(5, n_drawers=3, seed=4))
    assert not same_classes(classes, data.synthetic_strokes(5, n_drawers=3, seed=5))


def test_synthetic_characters_look_like_omniglot_to_statistics():
    images = np.concatenate(list(data.synthetic_strokes(50).values()))
    assert 0.05 < images.mean() / 255 < 0.12
    assert (images.max(axis=(1, 2)) > 128).all()
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_synthetic_characters_are_about_as_hard_as_omniglot():
    # The nearest neighbour in pixels is right in 43 % of the 5-way 1-shot queries on Omniglot.
    sampler = data.EpisodeSampler(data.synthetic_strokes(200), way=5, shot=1, n_query=5)
    correct = []
    for _ in range(200):
        support_x, support_y, query_x, query_y = sampler.sample()
        distances = ((query_x[:, None] - support_x[None]) ** 2).sum(axis=(2, 3, 4))
        correct.append(support_y[distances.argmin(axis=1)] == query_y)
    assert 0.40 < np.mean(correct) < 0.60


# mini-ImageNet --------------------------------------------------------------------------------------------


def save_parts(folder, **parts):
    for part, classes in parts.items():
        data.save_classes(os.path.join(str(folder), part + '.npz'), classes)


def colours(names, size=4, n_images=3):
    return {name: np.full((n_images, size, size, 3), ord(name), np.uint8) for name in names}


def test_mini_imagenet_reads_its_three_files(tmp_path):
    folder = tmp_path / 'myset'
    folder.mkdir()
    save_parts(folder, train=colours('ab'), dev=colours('c'), test=colours('de'))
    train, dev, test, name = data.mini_imagenet(str(folder))
    assert (list(train), list(dev), list(test), name) == (['a', 'b'], ['c'], ['d', 'e'], 'own data (myset)')
    assert train['b'].dtype == np.uint8 and (train['b'] == ord('b')).all()


def test_mini_imagenet_is_known_by_its_classes_and_size(tmp_path):
    with open(os.path.join(os.path.dirname(data.__file__), 'data', 'mini_imagenet_synsets.csv')) as file:
        synsets = [line.strip().split(',') for line in file][1:]

    def name(size, swap=False):
        parts = {part: {synset: np.zeros((1, size, size, 3), np.uint8) for synset, other in synsets if other == part}
                 for part in ('train', 'dev', 'test')}
        if swap:
            parts['train'], parts['dev'] = parts['dev'], parts['train']
        save_parts(tmp_path, **parts)
        return data.mini_imagenet(str(tmp_path))[3]

    assert name(84) == 'mini-ImageNet'
    assert name(84, swap=True) == name(42) == f'own data ({tmp_path.name})'


def test_mini_imagenet_refuses_what_does_not_fit(tmp_path):
    save_parts(tmp_path, train=colours('ab'), dev=colours('c'))
    with pytest.raises(FileNotFoundError, match='test.npz missing'):
        data.mini_imagenet(str(tmp_path))
    save_parts(tmp_path, test=colours('bd'))
    with pytest.raises(ValueError, match="class 'b' is in both .*train.npz and .*test.npz"):
        data.mini_imagenet(str(tmp_path))
    save_parts(tmp_path, test=colours('d', size=5))
    with pytest.raises(ValueError, match=r'test.npz have shape \(5, 5, 3\)'):
        data.mini_imagenet(str(tmp_path))
    save_parts(tmp_path, train={'a': np.zeros((2, 4, 4), np.uint8)})
    with pytest.raises(ValueError, match=r'train.npz have shape \(4, 4\)'):
        data.mini_imagenet(str(tmp_path))


def test_without_mini_imagenet_textures_take_its_place(tmp_path, capsys, monkeypatch):
    with pytest.raises(FileNotFoundError, match='train.npz.*missing'):
        data.mini_imagenet(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train, dev, test, name = data.mini_imagenet()
    assert (len(train), len(dev), len(test), name) == (64, 16, 20, 'synthetic textures')
    assert train['texture0000'].shape == (40, 84, 84, 3)
    assert 'THIS IS NOT MINI-IMAGENET' in capsys.readouterr().err


def test_synthetic_textures_depend_on_the_seed_alone():
    first, again, other = (data.synthetic_textures(2, 3, size=8, seed=seed) for seed in (0, 0, 1))
    assert (first['texture0001'] == again['texture0001']).all() and (first['texture0001'] != other['texture0001']).any()
    assert (first['texture0000'] != first['texture0001']).any()


def test_large_files_are_mapped_and_equal_what_is_read(tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    classes = {name: random.randint(256, size=(3, 4, 5)).astype(np.uint8) for name in ('a', 'b/c', 'd')}
    path = str(tmp_path / 'classes.npz')
    data.save_classes(path, classes)
    monkeypatch.setattr(data, 'MAPPED_SIZE', 0)
    mapped = data.load_classes(path)
    assert list(mapped) == list(classes) and all((mapped[name] == classes[name]).all() for name in classes)
    assert not mapped['a'].flags.writeable
    np.savez_compressed(path, **classes)
    assert all((data.load_classes(path)[name] == classes[name]).all() for name in classes)
    np.savez(path, a=classes['a'] / np.float32(255), b=np.asfortranarray(classes['d']))
    loaded = data.load_classes(path)
    assert (loaded['a'] == classes['a']).all() and (loaded['b'] == classes['d']).all()
