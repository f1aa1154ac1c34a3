"""Episodes, synthetic data, mini-ImageNet."""

import os

import numpy as np
import pytest
from data_sets import drawings, marked_classes, same, same_classes

import data
import sources.mini_imagenet
from sources.distortion import distorted


def origins(x):
    """The (class, image) pairs of a batch of unrotated images of `marked_classes`."""
    levels = np.rint(x * 255).astype(int)
    return list(zip((levels[:, 0, 0, 0] - 10).tolist(), levels[:, 0, 0, 1].tolist()))


# Episodes -------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize('shape', [(28, 28), (12, 20, 3)])
def test_draws_of_zero_leave_an_image_as_it_is(shape):
    image = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    assert np.array_equal(distorted(image, np.zeros(5)), image)


@pytest.mark.parametrize('draw, row, column', [
    ((9, 0, 0, 0, 0), 19, 11),  # turned by 90 degrees
    ((0, 0, 0, 1, 0), 12, 8), ((0, 0, 0, 0, -1), 14, 10),  # shifted by a 14th of the sides
    ((0, 10 * np.log(2), 0, 0, 0), 12, 12), ((0, 0, -10 * np.log(2), 0, 0), 9, 10)])  # half as wide, twice as high
def test_where_a_dot_goes_when_an_image_is_distorted(draw, row, column):
    """A dot two pixels wide about row 12, column 10 of an image whose middle is at 15 and 14."""
    image = np.zeros((30, 28, 3), np.uint8)
    image[11:13, 9:11] = 255
    weights = distorted(image, np.array(draw)).astype(float)[..., 1]
    rows, columns = np.mgrid[:30, :28] + .5
    assert weights.sum() > 0
    assert abs((weights * rows).sum() / weights.sum() - row) < 0.3
    assert abs((weights * columns).sum() / weights.sum() - column) < 0.3


def test_every_image_is_distorted_on_its_own_and_the_more_the_further():
    classes = {name: np.repeat(images, 6, axis=0) for name, images in drawings('ab', n_images=1).items()}
    far = []
    for distortion in 0, 0.5, 2:
        x = data.EpisodeSampler(classes, 2, 1, 5, distortion=distortion).sample().query_x
        far.append(np.abs(x - data.EpisodeSampler(classes, 2, 1, 5).sample().query_x).mean())
        assert len({image.tobytes() for image in x}) == (2 if distortion == 0 else 10)
    assert 0 == far[0] < far[1] < far[2]


@pytest.mark.parametrize('shape', [(6, 6), (4, 6, 3)])
def test_every_image_is_mirrored_on_its_own_or_not(shape):
    classes = {name: np.random.RandomState(name).randint(256, size=(20, *shape)).astype(np.uint8) for name in range(4)}
    known = np.concatenate([np.reshape(images, (20, *shape[:2], -1)) for images in classes.values()])
    found = []
    for episode in data.EpisodeSampler(classes, 4, 2, 10, mirror=True).sample()[::2]:
        for image in np.rint(episode * 255).transpose(0, 2, 3, 1):
            found.append([bool((images == image).all((1, 2, 3)).any()) for images in (known, known[:, :, ::-1])])
    assert all(sum(here) == 1 for here in found)
    assert 10 < sum(plain for plain, _ in found) < 38


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


@pytest.mark.parametrize('extensions', [{}, {'distortion': 1}, {'mirror': True, 'distortion': 1}])
def test_a_sampler_goes_on_exactly_from_a_saved_state(tmp_path, extensions):
    sampler = data.EpisodeSampler(marked_classes(), 3, 1, 2, rotate=True, seed=1, **extensions)
    for _ in range(9):
        sampler.sample()
    np.savez(tmp_path / 'state.npz', state=sampler.get_state())
    expected = [sampler.sample() for _ in range(100)]
    with np.load(tmp_path / 'state.npz') as archive:
        state = archive['state']
    assert state.dtype == np.uint32 and state.ndim == 1
    other = data.EpisodeSampler(marked_classes(), 3, 1, 2, rotate=True, seed=2, **extensions)
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
    (dict(distortion=-1), 'distortion is -1'),
    (dict(distortion=float('nan')), 'distortion is nan, but must be from 0 to 3'),
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


# Shapes of images -----------------------------------------------------------------------------------------------------


def test_the_shape_of_images_is_channels_and_size():
    assert data.image_shape(marked_classes(shape=(4, 4))) == (1, 4)
    assert data.image_shape(marked_classes(shape=(5, 5, 3))) == (3, 5)


@pytest.mark.parametrize('classes, message', [
    ({}, 'no classes'),
    (marked_classes(shape=(4, 5)), "'class 0' are 5 pixels wide and 4 high"),
    ({**marked_classes(1), 'b': np.ones((1, 5, 5), np.uint8)}, "'b' have shape .5, 5., those of class 'class 0'"),
    ({**marked_classes(1), 'b': np.ones((1, 4, 4, 3), np.uint8)}, "'b' have shape .4, 4, 3., those of class 'class 0'"),
    ({'a': np.ones((4, 4), np.uint8)}, "'a' are an array of shape"),
    ({'a': np.ones((4, 4, 4, 2), np.uint8)}, "'a' are an array of shape"),
])
def test_images_of_no_usable_shape_are_refused_in_words(classes, message):
    with pytest.raises(ValueError, match=message):
        data.image_shape(classes)


# Synthetic data -------------------------------------------------------------------------------------------------------


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


def test_synthetic_textures_depend_on_the_seed_alone():
    first, again, other = (data.synthetic_textures(2, 3, size=8, seed=seed) for seed in (0, 0, 1))
    assert (first['texture0001'] == again['texture0001']).all() and (first['texture0001'] != other['texture0001']).any()
    assert (first['texture0000'] != first['texture0001']).any()


# mini-ImageNet --------------------------------------------------------------------------------------------------------


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


def test_mini_imagenet_is_known_by_its_classes_and_number_and_size_of_images(tmp_path, monkeypatch):
    with open(os.path.join(os.path.dirname(data.__file__), 'data', 'mini_imagenet_synsets.csv')) as file:
        synsets = [line.strip().split(',')[:2] for line in file][1:]

    def name(size, swap=False):
        random = np.random.RandomState(0)
        parts = {part: {synset: random.randint(256, size=(1, size, size, 3)).astype(np.uint8)
                        for synset, other in synsets if other == part} for part in ('train', 'dev', 'test')}
        if swap:
            parts['train'], parts['dev'] = parts['dev'], parts['train']
        save_parts(tmp_path, **parts)
        return data.mini_imagenet(str(tmp_path))[3]

    assert name(84) == f'own data ({tmp_path.name})'  # of 600 images a class there is one
    monkeypatch.setattr(sources.mini_imagenet, 'FEWEST', 1)
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


def test_mini_imagenet_refuses_ones_own_blank_and_repeated_images(tmp_path):
    save_parts(tmp_path, train=colours('ab'), dev=colours('c'), test={'d': colours('b')['b'][:1]})
    with pytest.raises(ValueError, match="image 0 of class 'd' in .*test.npz is the same as image 0 of class 'b'"):
        data.mini_imagenet(str(tmp_path))
    save_parts(tmp_path, test={'d': np.zeros((2, 4, 4, 3), np.uint8)})
    with pytest.raises(ValueError, match="test.npz: image 0 of class 'd' is blank"):
        data.mini_imagenet(str(tmp_path))


def test_one_image_among_thousands_may_be_in_two_parts(tmp_path):
    many = np.random.RandomState(0).randint(1, 255, (1000, 4, 4, 3)).astype(np.uint8)
    train = colours('ab')
    many[-1:] = train['b'][:1]
    save_parts(tmp_path, train=train, dev=colours('c'), test={'d': many})
    assert len(data.mini_imagenet(str(tmp_path))[2]['d']) == 1000
    many[-2] = many[-1]
    save_parts(tmp_path, test={'d': many})
    with pytest.raises(ValueError, match='2 of 1000 images'):
        data.mini_imagenet(str(tmp_path))


@pytest.mark.parametrize('images, words', [
    ([[[0]]], "class 'b' are a list: give an array of uint8"),
    (np.zeros((9, 64), np.uint8), r"class 'b' have shape \(9, 64\): give \(n_images, H, W\)"),
    (np.zeros((9, 3, 4, 4), np.uint8), r"class 'b' have shape \(9, 3, 4, 4\): give .* \(n_images, H, W, 3\) in colour"),
    (np.zeros((9, 5, 4), np.uint8), "class 'b' have shape .5, 4., those of class 'a' .4, 4.: resize"),
])
def test_a_sampler_refuses_what_are_no_images_of_one_shape(images, words):
    with pytest.raises(ValueError, match=words):
        data.EpisodeSampler({'a': np.zeros((9, 4, 4), np.uint8), 'b': images}, 2, 1, 1)
