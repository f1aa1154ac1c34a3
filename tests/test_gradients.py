"""`gradients`: computed when asked for, never above their limit, and not at all where nothing depends on them."""
import math

import numpy as np
import pytest
from small_models import episode, small_model

from beyond import ScaledCNN
from metanet import CNN, MLP, FastLinear, MetaNet, augmented
from ops import bounds, convolution, gradients, late_mixture, tiled
from ops.compat import F, chainer
from ops.gradients import Gradients, part


def draw(*shape, scale=1, seed=0):
    return np.random.RandomState(seed).normal(0, scale, shape).astype(np.float32)


def loss_of(network, x, group, scale=1):
    """The loss of support examples with copies of the slow weights, and these."""
    layers = network.fast_layers(3)
    for i, layer in enumerate(layers):
        layer.W.array[...] = draw(*layer.W.shape, scale=scale, seed=i)
    n_groups = -(-len(x) // group)
    copies = [chainer.Variable(np.broadcast_to(layer.slow().array.copy(), (n_groups, *layer.slow().shape)))
              for layer in layers]
    y = np.arange(len(x), dtype=np.int32) % 3
    with augmented(layers, copies=copies, group=group):
        scores = network.softmax(3)(network(x))
        losses = F.softmax_cross_entropy(scores, y, reduce='no')
    return F.sum(losses * np.linspace(.5, 2, len(x), dtype=np.float32)), copies


def embedding():
    network = CNN(8, activation=None)
    network.add_way(3)
    return network


@pytest.mark.parametrize('scale', [.01, .1, 1])
@pytest.mark.parametrize('group', [1, 2, 4])
@pytest.mark.parametrize('in_tiles', [False, True])
def test_no_gradient_is_above_its_limit(scale, group, in_tiles, monkeypatch):
    if not in_tiles:
        monkeypatch.setattr(tiled, 'suits', lambda *args: False)
    loss, copies = loss_of(embedding(), np.random.RandomState(0).rand(4, 1, 28, 28).astype(np.float32), group, scale)
    limits = gradients.norms(loss, copies)
    for limit, copy in zip(limits, chainer.grad([loss], copies)):
        norm = np.sqrt((copy.array.astype(np.float64) ** 2).sum())
        assert 0 < norm <= limit < 1e12
    assert Gradients(loss, copies).limit() == gradients.MARGIN * max(limits)


def test_of_one_linear_layer_the_limit_is_close():
    x, weight = draw(1, 30), chainer.Variable(draw(5, 30, scale=.01))
    loss = F.sum(F.softmax_cross_entropy(F.linear(x, weight), np.array([2], np.int32), reduce='no'))
    assert gradients.norms(loss, [weight]) == [math.inf]  # not one of the functions that it knows
    layer = MLP(30).fc2
    layer.activation = None
    copies = [chainer.Variable(draw(1, 30, 30, scale=.01))]
    with augmented([layer], copies=copies):
        loss = F.sum(F.softmax_cross_entropy(layer(x), np.array([2], np.int32), reduce='no'))
    limit, = gradients.norms(loss, copies)
    gradient, = chainer.grad([loss], copies)
    assert 1 <= limit / np.linalg.norm(gradient.array) < 3


CLASSES = np.array([0, 2, 1], np.int32)


@pytest.mark.parametrize('function', [
    F.tanh, lambda x: 2 / x, lambda x: x + x, lambda x: F.normalize(x, axis=0),
    lambda x: x * draw(1, 4), lambda x: x * draw(2, 1, 1),
    lambda x: F.softmax_cross_entropy(x, draw(3, 4), reduce='no'), lambda x: F.softmax_cross_entropy(x, CLASSES),
    lambda x: F.softmax_cross_entropy(x, CLASSES, reduce='no', class_weight=draw(4))])
def test_nothing_is_known_of_functions_of_ones_own(function):
    x = chainer.Variable(draw(3, 4))
    assert Gradients(F.sum(function(x)), [x]).limit() == math.inf


@pytest.mark.parametrize('function', [lambda x: x * -3, lambda x: x / 3, F.normalize, lambda x: F.normalize(x, eps=1)])
def test_the_limit_of_a_scaled_layer(function):
    x = chainer.Variable(draw(3, 4) / 100)
    weights = np.zeros((3, 4), np.float32)
    weights[np.arange(3), abs(x.array).argmin(axis=1)] = 1  # next to at right angles, where a norm takes nothing off
    loss = F.sum(function(x) * weights)
    gradient, = chainer.grad([loss], [x])
    limit, = gradients.norms(loss, [x])
    assert .999 <= limit / np.linalg.norm(gradient.array) < 4


def test_the_limit_holds_for_a_scaled_base_learner():
    network = ScaledCNN(8, hidden_scale=2)
    network.add_way(3)
    loss, copies = loss_of(network, draw(3, 1, 28, 28) ** 2, 1)
    for limit, gradient in zip(gradients.norms(loss, copies), chainer.grad([loss], copies)):
        assert np.linalg.norm(gradient.array) <= limit < math.inf


def test_equal_examples_count_one_by_one():
    """Unlike equal weights of groups, of which an example meets one."""
    layer = FastLinear(4, 4, activation=None)
    x = chainer.Variable(np.broadcast_to(draw(1, 4), (25, 4)))
    copies = [chainer.Variable(draw(1, 4, 4))]
    with augmented([layer], copies=copies, group=25):
        loss = F.sum(layer(x))
    limit, at_x = gradients.norms(loss, [*copies, x])
    gradient, g_x = chainer.grad([loss], [*copies, x])
    assert np.linalg.norm(gradient.array) <= 1.001 * limit and np.linalg.norm(g_x.array) <= 1.001 * at_x


def test_nothing_is_known_of_kernels_that_are_means():
    pytest.importorskip('numba')
    slow, shares, values = (chainer.Variable(draw(*shape)) for shape in ((4, 3, 3, 2), (6, 2), (2, 4, 3, 3, 2)))
    y = convolution(draw(6, 2, 4, 4), [slow, *late_mixture(shares, [values])], relu=True, pool=True)
    assert Gradients(F.sum(y), [slow, values]).limit() == math.inf


def test_nothing_is_known_where_numbers_overflow():
    with np.errstate(all='ignore'):
        loss, copies = loss_of(embedding(), np.ones((2, 1, 28, 28), np.float32), 1, scale=1e10)
        assert Gradients(loss, copies).limit() == math.inf


def test_nothing_is_known_where_one_of_several_is_not_finite():
    """With softmax weights of 0 nothing comes back, and 0 times what nobody knows is nan."""
    network = CNN(8, image_size=84, in_channels=3, n_slow=3)
    network.add_way(3)
    x = np.random.RandomState(0).rand(3, 3, 84, 84).astype(np.float32)
    loss, copies = loss_of(network, x, 1, scale=0)
    limits = gradients.norms(loss, [*copies, network.conv1.W])
    assert [math.isfinite(limit) for limit in limits] == [True] * 4 + [False]
    assert Gradients(loss, [*copies, network.conv1.W]).limit() == math.inf


def test_they_behave_as_a_list_of_arrays():
    loss, copies = loss_of(embedding(), draw(4, 1, 28, 28), 2)
    unused = chainer.Variable(draw(2, 3))
    found = Gradients(loss, [*copies, unused])
    assert len(found) == 8 and found.shapes == [copy.shape for copy in [*copies, unused]]
    expected = [gradient.array for gradient in chainer.grad([loss], copies)]
    for other, array in zip(part(found, [6, 2]), (expected[6], expected[2])):
        np.testing.assert_array_equal(other, array)
    for array, other in zip(expected, found):
        np.testing.assert_array_equal(array, other)
    assert not found[-1].any() and [array.shape for array in found[5:]] == found.shapes[5:]
    np.testing.assert_array_equal(part(found, [3])[0], part(list(found), [3])[0])
    assert found.limit() == math.inf


def test_they_are_those_of_the_weights_at_the_time():
    model = small_model()
    task = episode(5, 1)
    now = [array.copy() for array in model.meta_information(model.base, *task[:2], 5, 1)]
    later = model.meta_information(model.base, *task[:2], 5, 1)
    for param in model.params():
        param.array += 1
    for before, array in zip(now, later):
        np.testing.assert_array_equal(before, array)


@pytest.mark.parametrize('kind', [MetaNet, None])
def test_convolutions_get_none_where_their_fast_weights_are_known_to_be_negative(kind, monkeypatch):
    """From the second episode on; and all numbers stay the same."""
    model = small_model() if kind else small_model(centred='fc')
    model.d_conv.out.b.array[...] = model.m_conv.l3.b.array[...] = -10
    monkeypatch.setattr(bounds, '_kept', [])
    asked = []
    grad = chainer.grad
    monkeypatch.setattr(chainer, 'grad', lambda outputs, inputs: asked.append(
        [copy.ndim for copy in inputs]) or grad(outputs, inputs))
    tasks = [episode(5, 1, seed=seed) for seed in range(2)]
    scores = [model(*task[:3]).array for task in tasks]
    convolutions, fc = [5] * 5, [3, 3]
    assert asked == [convolutions, fc] * 2 + [fc] * 2
    monkeypatch.setattr(bounds, 'is_known_negative', lambda *args: False)
    for task, before in zip(tasks, scores):
        np.testing.assert_array_equal(before, model(*task[:3]).array)
    assert asked[6:] == [convolutions, fc] * 4
