"""The extensions: centring, and what tells whether a model is well."""
import numpy as np
import pytest
from small_models import episode, fast_weights, small_model

import beyond
from beyond import CentredMemory, CentredMetaNet, Health, Scaled, ScaledCNN, ScaledMLP, Views
from metanet import CNN, MLP, FastLinear, Memory, MetaNet, Network, augmented
from ops.compat import chainer
from ops.lazy import Deferred, made
from variants import MetaNetPlus


@pytest.mark.parametrize('kinds', ['conv', 'fc', 'conv, fc'])
def test_centred_weights_have_no_mean_and_nothing_else_changes(kinds):
    plain, centred = small_model(), small_model(centred=kinds)
    task = episode(5, 1)
    for learner, first in (('m', 2), ('d', 1)):
        ours, others = [[made(w).array for w in fast_weights(model, learner, *task[:2], 5)]
                        for model in (centred, plain)]
        for i, (fast, other) in enumerate(zip(ours, others)):
            if i < 5 and 'conv' in kinds or i == 5 and 'fc' in kinds:  # 6 is the softmax layer
                other = other - other.mean(axis=tuple(range(first, other.ndim)), keepdims=True)
            np.testing.assert_allclose(fast, other, atol=1e-6 * abs(other).max())


def test_centred_keys_have_nothing_in_common():
    """What is added to all keys and queries changes nothing; without centring it levels attention out."""
    random = np.random.RandomState(0)
    keys, queries, common = (random.randn(n, 8).astype(np.float32) for n in (5, 3, 1))

    def attention(memory, shift):
        return memory(chainer.Variable(keys + shift), []).attention(chainer.Variable(queries + shift)).array

    centre = keys.mean(axis=0)
    expected = Memory(chainer.Variable(keys - centre), []).attention(chainer.Variable(queries - centre)).array
    np.testing.assert_allclose(attention(CentredMemory, 0), expected, rtol=1e-5)
    np.testing.assert_allclose(attention(CentredMemory, 100 * common), expected, rtol=1e-3)
    np.testing.assert_allclose(attention(Memory, 100 * common), .2, atol=1e-3)
    assert abs(expected - .2).max() > .05


@pytest.mark.parametrize('kinds, uses', [('fc', Memory), ('keys', CentredMemory), ('conv, fc, keys', CentredMemory)])
def test_keys_are_centred_where_the_setting_says_so(kinds, uses):
    plain, centred = small_model(), small_model(centred=kinds)
    assert type(plain).memory is Memory and centred.memory is uses
    task = episode(5, 1)
    if kinds == 'keys':
        for ours, others in zip(*(fast_weights(model, 'm', *task[:2], 5) for model in (centred, plain))):
            np.testing.assert_array_equal(made(ours).array, made(others).array)
    scores = centred(*task[:3]).array
    centred.memory = Memory
    assert (abs(centred(*task[:3]).array - scores).max() > 1e-6) == (uses is CentredMemory)


def test_fast_weights_of_one_input_are_not_centred():
    np.random.seed(0)
    model = CentredMetaNet(MLP(1), MLP(1), [2], centred='fc')
    x, y = np.random.rand(4, 1).astype(np.float32), np.arange(4, dtype=np.int32) % 2
    first, *_ = fast_weights(model, 'm', x, y, 2)
    assert first.shape == (4, 1, 1) and made(first).array.any()


def test_live_fast_activations_are_counted():
    model = small_model()
    for param in model.m_conv.l3.params():
        param.array[...] = 0
    with Health(model) as found:
        model(*episode(5, 1)[:3])
    assert found['alive/base/conv1'] == [0.0] and {'alive/base/fc1', 'alive/embed/conv1'} < set(found)
    assert not {'alive/embed/fc1', 'alive/base/softmax5'} & set(found)  # without an activation all passes
    assert len(found['alive/embed/conv1']) == 2 and 0 < found['alive/embed/conv1'][0] <= 1
    model(*episode(5, 1)[:3])
    assert len(found['alive/base/conv1']) == 1


def test_fast_weights_that_are_known_to_be_dead_count_as_dead_ones_do():
    model = small_model()
    layer, x = model.base.fc1, np.ones((2, 8), np.float32)
    alive, dead = (np.full((8, 8), value, np.float32) for value in (1, -1))
    for fast in (alive, dead), (alive, Deferred(lambda: dead)):
        with Health(model) as found, augmented([layer], [fast]):
            layer(chainer.Variable(x))
        assert found['alive/base/fc1'] == [0.5]


@pytest.mark.parametrize('make, settings', [(MetaNet, {}), (MetaNet, {'task_level': False}), (MetaNetPlus, {}),
                                            (CentredMetaNet, {'centred': 'keys'})])
def test_the_peak_of_attention(make, settings):
    """The share of the most attended of five, times five, in the mean over queries."""
    model, task = make(CNN(8), CNN(8, activation=None), [5], **settings), episode(5, 1)
    usual = model.memory
    with Health(model) as found:
        model(*task[:3])
    assert model.memory is usual and len(found['attention/peak']) == 1 and 1 <= found['attention/peak'][0] < 5

    class Uneven(Memory):
        def attention(self, queries):
            weights = np.full((len(queries), 5), .2, np.float32)
            weights[0] = .1, .6, .1, .1, .1
            return chainer.Variable(weights)

    model.memory = Uneven
    with Health(model) as found:
        model(*task[:3])
    np.testing.assert_allclose(found['attention/peak'], [1 + 2 / 10], rtol=1e-5)  # 3 for one of ten queries


def test_the_spread_of_scores():
    """Of b's answers to the queries alone, whatever all classes have in common."""
    model, task = small_model(), episode(5, 1)
    with Health(model) as found:
        scores = model(*task[:3]).array
    np.testing.assert_allclose(found['scores/spread'], [scores.std(axis=1).mean()], rtol=1e-5)


def test_layers_that_are_called_by_name_are_counted():
    class Named(Network):
        def __init__(self):
            super().__init__(4)
            with self.init_scope():
                self.fc1 = FastLinear(784, 4)

        def forward(self, x):
            return self.fc1(x=x.reshape(len(x), -1))

    model = MetaNet(Named(), Named(), [5])
    with Health(model) as found:
        model(*episode(5, 1)[:3])
    assert len(found['alive/embed/fc1']) == 2


def test_the_key_of_several_views_is_the_mean_of_theirs():
    network = CNN(3, activation=None)
    x = np.random.RandomState(0).uniform(0, 1, (4, 1, 28, 28)).astype(np.float32)
    up, right = np.concatenate((x[:, :, 2:], x[:, :, -1:], x[:, :, -1:]), 2), np.concatenate(
        (x[..., :1], x[..., :1], x[..., :-2]), 3)
    down, left = np.concatenate((x[:, :, :1], x[:, :, :1], x[:, :, :-2]), 2), np.concatenate(
        (x[..., 2:], x[..., -1:], x[..., -1:]), 3)
    shifted = [x, up, right, down, left]
    with chainer.no_backprop_mode():
        for views, images in (('shifted', shifted), ('mirrored', [x, x[..., ::-1]]),
                              ('shifted, mirrored', shifted + [image[..., ::-1] for image in shifted])):
            mean = sum(network(np.ascontiguousarray(image)).array for image in images) / len(images)
            np.testing.assert_allclose(Views(network, views)(x).array, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(Views(network, 'shifted')(x).array, network(x).array)  # what gradients are of


def test_two_models_are_watched_at_once_each_for_itself():
    x, y = np.random.RandomState(0).rand(3, 4).astype(np.float32), np.arange(3, dtype=np.int32)
    model, other = (MetaNet(MLP(4), MLP(4), [3]) for _ in range(2))
    with Health(model) as found, Health(other) as of_other:
        model(x, y, x)
        assert len(found['scores/spread']) == 1 and not of_other['scores/spread']
        other(x, y, x)
    assert [len(values) for values in found.values()] == [len(values) for values in of_other.values()]


def test_views_are_shifted_by_a_part_of_their_own_sides():
    x = np.zeros((1, 1, 28, 140), np.float32)
    x[:, :, 14, 70] = 1
    places = [np.unravel_index(image[0, 0].argmax(), image.shape[2:]) for image in beyond._shifted(x)]
    assert sorted(places) == [(12, 70), (14, 60), (14, 70), (14, 80), (16, 70)]


def test_other_views_are_refused():
    with pytest.raises(ValueError, match="views = 'turned': name some of shifted, mirrored, as in"):
        Views(CNN(3), 'turned')


@pytest.mark.parametrize('plain, scaled, shape', [
    (lambda: CNN(8), lambda: ScaledCNN(8, hidden_scale=3), (4, 1, 28, 28)),
    (lambda: MLP(6), lambda: ScaledMLP(6, hidden_scale=3), (4, 6))])
def test_a_scaled_base_learner_keeps_its_directions_and_has_one_size(plain, scaled, shape):
    x = np.random.RandomState(0).uniform(0, 1, shape).astype(np.float32)
    networks = plain(), scaled()
    for network in networks:
        for param in network.params():
            param.array[...] = np.random.RandomState(1).uniform(-1, 1, param.shape)
    expected, found = (network(x).array for network in networks)
    np.testing.assert_allclose(found, 3 * expected / np.sqrt((expected ** 2).mean(axis=1, keepdims=True)), rtol=1e-3)
    networks[1].fc1.W.array *= 1000  # as a step of training may do
    np.testing.assert_allclose(networks[1](x).array, found, rtol=1e-3)


def test_a_scaled_base_learner_may_have_a_layer_of_any_name():
    class Own(Network):
        def __init__(self):
            super().__init__(4)
            with self.init_scope():
                self.norm = chainer.links.BatchNormalization(4)

        def forward(self, x):
            return self.norm(x)

    class ScaledOwn(Scaled, Own):
        pass

    hidden = ScaledOwn(hidden_scale=2)(np.random.RandomState(0).rand(3, 4).astype(np.float32)).array
    np.testing.assert_allclose((hidden ** 2).mean(axis=1), 4, rtol=1e-4)


def test_a_scaled_base_learner_with_nothing_alive_stays_finite():
    network = ScaledCNN(8, hidden_scale=1)
    for param in network.params():
        param.array[...] = -1
    network.cleargrads()
    hidden = network(np.ones((2, 1, 28, 28), np.float32))
    chainer.functions.sum(hidden).backward()
    assert not hidden.array.any() and np.isfinite(network.fc1.W.grad).all()


@pytest.mark.parametrize('fast_shape', [(4, 3, 8), (3, 8)])
def test_scaled_fast_weights_keep_their_directions_and_have_one_size(fast_shape):
    network = ScaledCNN(8, fast_scale=2)
    network.add_way(3)
    network.add_way(3)
    layer = network.softmax(3)
    random = np.random.RandomState(0)
    x, fast = (random.randn(*shape).astype(np.float32) for shape in ((4, 8), fast_shape))
    slow = x.dot(layer.W.array.T)
    np.testing.assert_allclose(layer(x).array, slow, rtol=1e-5)  # slow weights alone are as they are
    size = np.sqrt((fast ** 2).mean(axis=(-2, -1), keepdims=True))
    expected = slow + np.einsum('...oi,...i->...o', 2 * fast / size, x)
    for factor in 1, 1000:
        with augmented([layer], [chainer.Variable(factor * fast)]):
            np.testing.assert_allclose(layer(x).array, expected, rtol=1e-4, atol=1e-4)


def test_a_model_of_scaled_fast_weights_learns_whatever_the_meta_learner_makes():
    """And attention cannot be made up for: larger fast weights change nothing."""
    model = MetaNet(ScaledMLP(12, hidden_scale=1, fast_scale=2), MLP(12), [3])
    model.initialize_uniform(seed=0)
    random = np.random.RandomState(0)
    support, query = (random.rand(n, 12).astype(np.float32) for n in (3, 6))
    scores = model(support, np.arange(3, dtype=np.int32), query)
    model.cleargrads()
    chainer.functions.sum(scores * random.randn(*scores.shape).astype(np.float32)).backward()
    assert all(np.isfinite(param.grad).all() for param in model.m_fc.params())
    assert any(param.grad.any() for param in model.m_fc.params())
