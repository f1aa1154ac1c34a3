"""MetaNet+: its base learner's task-level fast weights."""
import numpy as np
import pytest

import data
from metanet import CNN, MLP, FastLinear, MetaNet, augmented
from ops import bounds, tiled
from ops.compat import F, chainer
from variants import MetaNetPlus


def small_plus(seed=0):
    np.random.seed(seed)
    model = MetaNetPlus(CNN(4), CNN(4, activation=None), [3])
    model.initialize_uniform(seed)
    return model


@pytest.fixture
def episode():
    return data.EpisodeSampler(data.synthetic_strokes(3, 6, seed=2), 3, 1, 2).sample()


def test_an_adaptable_layer_takes_several_fast_weights():
    layer = FastLinear(3, 2)
    random = np.random.RandomState(0)
    x, own, shared = (random.randn(*shape).astype(np.float32) for shape in ((4, 3), (4, 2, 3), (2, 3)))
    with augmented([layer], [(chainer.Variable(own), chainer.Variable(shared))]):
        y = layer(x).array
    expected = sum(np.maximum(product, 0) for product in (
        x @ layer.W.array.T, np.einsum('noi,ni->no', own, x), x @ shared.T))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_gradients_of_three_weights_are_right_where_the_first_is_dead():
    layer = FastLinear(3, 2)
    layer.W.array[...] = -1
    x = chainer.Variable(np.random.RandomState(0).rand(4, 3).astype(np.float32))
    fast = [chainer.Variable(np.full(shape, value, np.float32)) for shape, value in (((4, 2, 3), 2), ((2, 3), 5))]
    with augmented([layer], [tuple(fast)]):
        F.sum(layer(x)).backward()
    np.testing.assert_allclose(x.grad, np.full((4, 3), 2 * (2 + 5), np.float32))


def test_the_base_learner_has_task_level_weights_of_its_own(episode):
    model = small_plus()
    loss = model.loss(episode)
    model.cleargrads()
    loss.backward()
    assert all(param.grad is not None for name, param in model.namedparams() if name.startswith('/d_base_fc'))
    scores = model(*episode[:3]).array
    model.d_base_fc.out.b.array += 1
    assert (model(*episode[:3]).array != scores).any()


def test_the_embedding_keeps_its_task_level_weights(episode):
    model = small_plus()
    before = model(*episode[:3]).array
    model.d_fc.out.b.array += 1
    assert (model(*episode[:3]).array != before).any()


def test_its_gradients_are_of_the_groups_that_they_are_for(monkeypatch):
    seen = []
    meta_information = MetaNetPlus.meta_information
    monkeypatch.setattr(MetaNetPlus, 'meta_information', lambda self, network, x, y, way, group: (
        seen.append((network.name, group)) or meta_information(self, network, x, y, way, group)))
    small_plus()(*data.EpisodeSampler(data.synthetic_strokes(3, 8, seed=2), 3, 5, 1).sample()[:3])
    assert seen == [('embed', 3), ('base', 1), ('base', 3)]


def test_its_deferred_weights_change_nothing(episode, monkeypatch):
    monkeypatch.setattr(tiled, 'suits', lambda *args: False)  # what takes one weight rounds in another way
    model = small_plus()
    for learner in model.d_conv, model.d_base_conv:
        learner.out.b.array[...] = -10
    model.m_conv.l3.b.array[...] = -10
    deferred = model(*episode[:3]).array
    monkeypatch.setattr(bounds, 'is_negative', lambda *args: False)
    np.testing.assert_array_equal(deferred, model(*episode[:3]).array)


def test_it_learns_and_works_on_keys_too():
    np.random.seed(0)
    model = MetaNetPlus(MLP(8), MLP(8), [3], base_on_keys=True)
    optimizer = chainer.optimizers.Adam(3e-3).setup(model)
    random = np.random.RandomState(0)
    y = np.arange(3, dtype=np.int32)
    task = data.Episode(*(array for _ in range(2) for array in (random.rand(3, 8).astype(np.float32), y)))
    losses = []
    for _ in range(30):
        losses.append(float(model.loss(task).array))
        optimizer.update(model.loss, task)
    assert losses[-1] < 0.5 * losses[0]


def test_a_meta_learner_of_ones_own():
    class Sum(chainer.Chain):
        def forward(self, gradients):
            return [-chainer.as_variable(gradient) for gradient in gradients]

    np.random.seed(0)
    model = MetaNet(MLP(4), MLP(4), ways=[3], task_level=False)
    del model.m_fc
    with model.init_scope():
        model.m_fc = Sum()
    x, y = np.random.rand(3, 4).astype(np.float32), np.arange(3, dtype=np.int32)
    attention = model.memory(model.embed(x), []).attention(model.embed(x)).array
    layers = model.base.fast_layers(3)
    fast = [-np.tensordot(attention, gradient, 1) for gradient in model.meta_information(model.base, x, y, 3, 1)]
    hidden = x[:, :, None]
    for layer, weights in zip(layers, fast):
        hidden = sum(np.maximum(w @ hidden, 0) if layer.activation else w @ hidden for w in (layer.W.array, weights))
    np.testing.assert_allclose(model(x, y, x).array, hidden[:, :, 0], rtol=1e-5)
