"""The model: meta information, memory, layers, variants, and networks of one's own."""
import re

import numpy as np
import pytest
from small_models import episode, fast_weights, small_model

import data
from beyond import Health
from metanet import CNN, MLP, FastConvolution2D, FastLayer, FastLinear, Memory, MetaNet, Network, augmented
from ops import bounds, lazy, tiled, tiled_sums
from ops.compat import F, chainer
from ops.lazy import made


@pytest.mark.parametrize('n_support, group', [(5, 1), (6, 2), (7, 3), (4, 9)])
def test_meta_information_is_each_groups_own_gradient(n_support, group):
    network = CNN(8)
    model = MetaNet(network, CNN(8, activation=None), [3])
    random = np.random.RandomState(0)
    x = random.rand(n_support, 1, 28, 28).astype(np.float32)
    y = random.randint(3, size=n_support).astype(np.int32)
    layers = network.fast_layers(3)
    gradients = model.meta_information(network, x, y, 3, group)
    for i, start in enumerate(range(0, n_support, group)):
        network.cleargrads()
        part = slice(start, start + group)
        F.softmax_cross_entropy(network.softmax3(network(x[part])), y[part]).backward()
        for layer, gradient in zip(layers, gradients):
            expected = layer.W.grad if layer.W.ndim == 2 else layer.W.grad.transpose(0, 2, 3, 1)
            np.testing.assert_allclose(gradient[i], expected, rtol=1e-4, atol=1e-6 * abs(expected).max())


@pytest.mark.parametrize('n_support, steps, size', [(5, 5, 1), (3, 5, 1), (12, 5, 2), (25, 5, 5), (100, 10, 10)])
def test_the_support_set_is_cut_into_as_many_groups_as_d_has_steps(n_support, steps, size, monkeypatch):
    model = small_model(ways=[n_support], n_steps=steps)
    groups = []
    information = model.meta_information
    monkeypatch.setattr(model, 'meta_information', lambda network, x, y, way, group: (
        groups.append((network.name, group)) or information(network, x, y, way, group)))
    model(*episode(n_support, 1, n_query=1)[:3])
    assert groups == [('embed', size), ('base', 1)]


@pytest.mark.parametrize('way, shot', [(2, 1), (3, 1), (5, 1), (5, 5), (4, 3)])
def test_any_way_and_shot(way, shot):
    model = small_model([way])
    task = episode(way, shot)
    loss = model.loss(task)
    model.cleargrads()
    loss.backward()
    assert np.isfinite(loss.array)
    assert model(task.support_x, task.support_y, task.query_x).shape == (2 * way, way)
    without = [name for name, param in model.namedparams() if param.grad is None]
    assert without == [f'/embed/softmax{way}/W']


def test_huge_keys_have_cosines_and_gradients():
    """As a model's first episodes have them with the authors' initialisation; their squares are beyond float32."""
    random = np.random.RandomState(0)
    keys, queries = (random.randn(n, 6).astype(np.float32) for n in (4, 5))
    expected = Memory(chainer.Variable(keys), []).attention(chainer.Variable(queries)).array
    huge = [chainer.Variable(np.float32(2. ** power) * x) for power, x in ((40, keys), (50, queries))]
    attention = Memory(huge[0], []).attention(huge[1])
    np.testing.assert_allclose(attention.array, expected, rtol=1e-5)
    F.sum(attention * random.randn(5, 4).astype(np.float32)).backward()
    assert all(x.grad.any() and np.isfinite(x.grad).all() for x in huge)


def test_memory_reads_by_cosine():
    keys = np.array([[1, 0], [0, 2], [3, 3]], np.float32)
    values = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    queries = np.array([[5, 0]], np.float32)
    memory = Memory(chainer.Variable(keys), [chainer.Variable(values)])
    weights = np.exp([1, 0, 0.5 ** 0.5])
    weights /= weights.sum()
    np.testing.assert_allclose(memory.attention(chainer.Variable(queries)).array[0], weights, rtol=1e-5)
    read = made(*memory.read(chainer.Variable(queries)))
    np.testing.assert_allclose(read.array[0], np.tensordot(weights, values, 1), rtol=1e-5)


class OwnLayer(FastLinear):
    def augment(self, x, weights):
        return sum(F.sum(F.absolute(weight)) for weight in weights)


@pytest.mark.parametrize('layer, group', [(OwnLayer(3, 2), 1), (FastLinear(3, 2), 2)])
def test_means_are_made_for_layers_that_do_not_mix_products(layer, group):
    random = np.random.RandomState(0)
    memory = Memory(chainer.Variable(random.rand(2, 3).astype(np.float32)),
                    [chainer.Variable(random.rand(2, 2, 3).astype(np.float32))])
    read = memory.read(chainer.Variable(random.rand(2, 3).astype(np.float32)))
    x = random.rand(2 * group, 3).astype(np.float32)
    with augmented([layer], read, group=group):
        late = layer(x).array
    with augmented([layer], [made(*read)], group=group):
        np.testing.assert_array_equal(layer(x).array, late)


def test_layer_augmentation():
    layer = FastLinear(3, 2)
    x = np.random.RandomState(0).randn(4, 3).astype(np.float32)
    slow = layer.W.array
    np.testing.assert_allclose(layer(x).array, np.maximum(x @ slow.T, 0), rtol=1e-5)
    layer.fast = chainer.Variable(np.random.RandomState(1).randn(4, 2, 3).astype(np.float32))
    fast = np.einsum('noi,ni->no', layer.fast.array, x)
    np.testing.assert_allclose(layer(x).array, np.maximum(x @ slow.T, 0) + np.maximum(fast, 0), rtol=1e-5, atol=1e-6)
    layer.activation = None
    np.testing.assert_allclose(layer(x).array, x @ slow.T + fast, rtol=1e-5, atol=1e-6)
    layer.activation = F.tanh
    np.testing.assert_allclose(layer(x).array, np.tanh(x @ slow.T) + np.tanh(fast), rtol=1e-5, atol=1e-6)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match='odd'):
        FastConvolution2D(1, 1, ksize=2)


@pytest.mark.parametrize('n_slow', [-1, 6])
def test_more_slow_convolutions_than_there_are_are_refused(n_slow):
    with pytest.raises(ValueError, match=f'n_slow = {n_slow}'):
        CNN(4, n_slow=n_slow)


@pytest.mark.parametrize('wrong', [{'centred': 'FC'}, {'n_steps': 0}, {'ways': 5}, {'ways': [1]}])
def test_settings_that_make_no_sense_are_refused(wrong):
    (name, value), = wrong.items()
    with pytest.raises(ValueError, match=re.escape(f'{name} = {value!r}: ')):
        small_model(**wrong)


def test_only_keys_go_through_a_relu_before_the_softmax_layer():
    networks = [MLP(4), MLP(4)]
    for network in networks:
        network.fc2.activation = F.tanh
    model = MetaNet(*networks, [3])
    x = np.random.RandomState(0).randn(6, 4).astype(np.float32)
    hidden = [network(x).array for network in networks]
    assert all((h < 0).any() for h in hidden)
    for network, h in zip(networks, [hidden[0], np.maximum(hidden[1], 0)]):
        np.testing.assert_allclose(model.scores(network, x, 3).array, h @ network.softmax3.W.array.T, rtol=1e-4)


def test_metanet_minus_has_no_task_level_weights():
    model = small_model(task_level=False)
    assert not any(name.startswith('/d_') for name, _ in model.namedparams())
    model.loss(episode(5, 1)).backward()
    assert model.embed.conv1.W.grad is not None


def negative_model(**settings):
    """The fast weights of its convolutions are all negative."""
    model = small_model(**settings)
    model.d_conv.out.b.array[...] = model.m_conv.l3.b.array[...] = -10
    return model


def outcome(model, task):
    """Scores, and the gradients of all parameters."""
    scores = model(task.support_x, task.support_y, task.query_x)
    model.cleargrads()
    F.sum(F.softmax_cross_entropy(scores, task.query_y, reduce='no')).backward()
    return [scores.array] + [np.zeros_like(param.array) if param.grad is None else param.grad
                             for _, param in sorted(model.namedparams())]


def outcome_with_all_made(model, task, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(bounds, 'is_negative', lambda *args: False)
        return outcome(model, task)


def count_makings(monkeypatch):
    """A list that gets an entry whenever deferred weights are made."""
    makings = []
    make = lazy.made
    monkeypatch.setattr(lazy, 'made', lambda weights: (
        makings.append(weights) if isinstance(weights, lazy.Deferred) else None) or make(weights))
    return makings


@pytest.fixture
def untiled(monkeypatch):
    """Convolutions of one weight round as those of two."""
    monkeypatch.setattr(tiled, 'suits', lambda *args: False)
    monkeypatch.setattr(tiled_sums, 'suits', lambda *args: False)


@pytest.mark.parametrize('negative_images', [False, True])
def test_negative_weights_are_made_only_where_they_matter_and_nothing_changes(negative_images, untiled, monkeypatch):
    task = episode(5, 1)
    if negative_images:
        task = data.Episode(task.support_x - .5, task.support_y, task.query_x - .5, task.query_y)
    model = negative_model()
    makings = count_makings(monkeypatch)
    ours = outcome(model, task)
    # Of each network's first convolution alone, whose input is the images: u's for keys and queries, b's once.
    assert len(makings) == (3 if negative_images else 0)
    for array, desired in zip(ours, outcome_with_all_made(model, task, monkeypatch)):
        np.testing.assert_array_equal(array, desired)


def test_negative_weights_matter_without_relu(untiled, monkeypatch):
    model = negative_model()
    for network in (model.base, model.embed):
        network.conv3.activation = F.tanh
    makings = count_makings(monkeypatch)
    ours = outcome(model, episode(5, 1))
    assert len(makings) == 6  # of conv3, and of conv4, whose input has negative numbers
    for array, desired in zip(ours, outcome_with_all_made(model, episode(5, 1), monkeypatch)):
        np.testing.assert_allclose(array, desired, rtol=1e-4, atol=1e-6 * abs(desired).max())


class CentredConvolution(FastConvolution2D):
    """Of negative weights it makes some that are not."""

    def product(self, x, weights, relu):
        centred = [weight - F.broadcast_to(F.mean(weight, axis=(-3, -2, -1), keepdims=True), weight.shape)
                   for weight in weights]
        return super().product(x, centred, relu)


def test_negative_weights_matter_to_a_product_of_ones_own(untiled, monkeypatch):
    model = negative_model()
    for network in (model.base, model.embed):
        del network.conv3
        with network.init_scope():
            network.conv3 = CentredConvolution(8, 8, pool=True)
    task = episode(5, 1)
    with Health(model) as found:
        ours = outcome(model, task)
    assert found['alive/base/conv2'] == [0] and found['alive/base/conv3'][0] > .1
    for array, desired in zip(ours, outcome_with_all_made(model, task, monkeypatch)):
        np.testing.assert_allclose(array, desired, rtol=1e-4, atol=1e-6 * abs(desired).max())


def test_negative_weights_can_be_looked_at_and_count_as_dead():
    model = negative_model()
    task = episode(5, 1)
    with Health(model) as found:
        model(*task[:3])
    assert found['alive/base/conv2'] == [0.0] and found['alive/embed/conv2'] == [0.0, 0.0]
    for learner in 'dm':
        weights = [made(fast).array for fast in fast_weights(model, learner, *task[:2], 5)]
        assert all((fast < -1).all() for fast in weights[:5]) and weights[0].shape[-4:] == (8, 3, 3, 1)


def test_centred_filters_are_never_taken_for_negative():
    assert (outcome(negative_model(centred='conv'), episode(5, 1))[0]
            != outcome(negative_model(), episode(5, 1))[0]).any()


def test_an_inserted_softmax_layer_is_never_trained():
    model = small_model([5, 7])
    optimizer = chainer.optimizers.Adam().setup(model)
    before = {name: param.array.copy() for name, param in model.namedparams()}
    optimizer.update(model.loss, episode(5, 1))
    same = {name for name, param in model.namedparams() if (param.array == before[name]).all()}
    assert {'/base/softmax7/W', '/embed/softmax7/W', '/embed/softmax5/W'} <= same
    assert '/base/softmax5/W' not in same
    assert model(*episode(7, 1)[:3]).shape == (14, 7)


def test_a_way_without_softmax_layer_is_refused():
    with pytest.raises(ValueError, match='no softmax layer for 4 classes'):
        small_model([5]).loss(episode(4, 1))


def test_fast_weights_are_gone_after_the_forward_pass():
    model = small_model()
    model.loss(episode(5, 1))
    assert all(layer.fast is None and layer.copies is None
               for network in (model.base, model.embed) for layer in network.fast_layers(5))


def test_a_layer_that_is_not_used_has_gradients_of_zero():
    class Idle(MLP):
        def forward(self, x):
            return self.fc1(x)

    np.random.seed(0)
    model = MetaNet(Idle(4), Idle(4), [3])
    x, y = np.random.rand(6, 4).astype(np.float32), np.arange(6, dtype=np.int32) % 3
    used, idle, softmax = model.meta_information(model.base, x, y, 3, 2)
    assert used.any() and softmax.any()
    assert idle.shape == (3, 4, 4) and not idle.any()


def test_initialize_uniform():
    model = small_model()
    model.initialize_uniform(seed=1)
    values = np.concatenate([param.array.ravel() for param in model.params()])
    assert values.dtype == np.float32 and values.min() >= -0.1 and values.max() < 0.1 and abs(values.mean()) < 0.01
    again = small_model(seed=5)
    again.initialize_uniform(seed=1)
    assert all((a.array == b.array).all() for a, b in zip(model.params(), again.params()))


def test_a_layer_without_a_shape_yet_is_named():
    network = CNN(8)
    with network.init_scope():
        network.last = chainer.links.Linear(None, 8)
    with pytest.raises(ValueError, match='/base/last/W has no shape yet'):
        MetaNet(network, CNN(8), [3]).initialize_uniform(seed=0)


def test_initial_weights_do_not_depend_on_other_ways():
    several, one = (small_model(ways) for ways in ([5, 3, 7], [5]))
    own = dict(one.namedparams())
    params = dict(several.namedparams())
    assert all((params[name].array == param.array).all() for name, param in own.items())
    for model in (several, one):
        model.initialize_uniform(seed=1, way=5)
    assert all((params[name].array == param.array).all() for name, param in own.items())


def test_initialize_uniform_leaves_batch_normalisation_alone():
    model = partial_model(on_keys=False)
    model.initialize_uniform(seed=0)
    assert (model.base.conv1.bn.gamma.array == 1).all() and (model.base.conv1.bn.beta.array == 0).all()
    assert abs(model.base.conv1.W.array).max() < 0.1


def test_initialize_uniform_leaves_other_normalisations_alone():
    network = MLP(4)
    with network.init_scope():
        network.layer, network.groups = chainer.links.LayerNormalization(4), chainer.links.GroupNormalization(2, 4)
    MetaNet(network, MLP(4), [3]).initialize_uniform(seed=0)
    for link in network.layer, network.groups:
        assert (link.gamma.array == 1).all() and (link.beta.array == 0).all()


def test_a_network_of_ones_own_learns():
    class Mine(Network):
        def __init__(self):
            super().__init__(n_out=16)
            with self.init_scope():
                self.first = chainer.links.Linear(64, 32)
                self.fc1 = FastLinear(32, 32, activation=F.leaky_relu)
                self.fc2 = FastLinear(32, 16)

        def forward(self, x):
            return self.fc2(self.fc1(F.relu(self.first(F.reshape(x, (len(x), -1))))))

    np.random.seed(0)
    model = MetaNet(Mine(), Mine(), ways=[3])
    optimizer = chainer.optimizers.Adam(3e-3).setup(model)
    task = episode(3, 2, size=8)
    losses = []
    for _ in range(30):
        losses.append(float(model.loss(task).array))
        optimizer.update(model.loss, task)
    assert losses[-1] < 0.5 * losses[0]
    assert [layer.name for layer in model.base.fast_layers(3)] == ['fc1', 'fc2', 'softmax3']


def test_an_adaptable_layer_of_ones_own_learns():
    class Heads(FastLayer):
        """Four fully connected layers side by side, each of a quarter of the units."""

        def __init__(self):
            super().__init__((4, 2, 16), F.relu)

        def product(self, x, weights, relu):
            x = F.reshape(x, (len(x), 4, 1, 16))
            products = []
            for weight in weights:
                copies = self.group if weight.ndim == 4 else len(x)
                weight = F.repeat(weight if weight.ndim == 4 else weight[None], copies, axis=0)[:len(x)]
                products.append(F.reshape(F.sum(weight * F.broadcast_to(x, weight.shape), axis=3), (len(x), 8)))
            return sum(map(F.relu, products) if relu else products)

    class Mine(Network):
        def __init__(self):
            super().__init__(n_out=8)
            with self.init_scope():
                self.heads = Heads()

        def forward(self, x):
            return self.heads(F.reshape(x, (len(x), -1)))

    np.random.seed(0)
    model = MetaNet(Mine(), Mine(), ways=[3])
    optimizer = chainer.optimizers.Adam(3e-3).setup(model)
    task = episode(3, 2, size=8)
    first, second = fast_weights(model, 'm', task.support_x, task.support_y, 3)
    assert first.shape == (6, 4, 2, 16) and second.shape == (6, 3, 8)
    losses = []
    for _ in range(30):
        losses.append(float(model.loss(task).array))
        optimizer.update(model.loss, task)
    assert losses[-1] < 0.5 * losses[0]


def partial_model(on_keys, ways=(3, 4)):
    np.random.seed(0)
    sizes = {'n_filters': 8, 'in_channels': 1, 'image_size': 28, 'n_slow': 3}
    embed = CNN(activation=None, **sizes)
    return MetaNet(MLP(embed.n_out) if on_keys else CNN(**sizes), embed, ways, n_steps=10, base_on_keys=on_keys)


@pytest.mark.parametrize('on_keys', [False, True])
def test_partial_models_learn_and_take_another_way_in_a_test(on_keys):
    model = partial_model(on_keys)
    optimizer = chainer.optimizers.Adam(3e-3).setup(model)
    task = episode(3, 2)
    losses = []
    for _ in range(30):
        losses.append(float(model.loss(task).array))
        optimizer.update(model.loss, task)
    assert losses[-1] < 0.5 * losses[0]
    averages = model.embed.conv1.bn.avg_mean.copy()
    with chainer.using_config('train', False):
        assert model(*episode(4, 3)[:3]).shape == (8, 4)
    assert (model.embed.conv1.bn.avg_mean == averages).all()


def test_only_unmarked_layers_lack_fast_weights():
    model = partial_model(on_keys=False)
    assert [layer.name for layer in model.base.fast_layers(3)] == ['conv4', 'conv5', 'fc1', 'softmax3']
    assert [layer.name for layer in partial_model(on_keys=True).base.fast_layers(3)] == ['fc1', 'fc2', 'softmax3']


def test_keys_as_the_base_learners_input_are_constants_on_the_support_side_alone(monkeypatch):
    model = partial_model(on_keys=True)
    task = episode(3, 1)
    seen = []
    scores = MetaNet.scores

    def scored(self, network, x, way):
        if network is model.base:
            seen.append(x)
        return scores(self, network, x, way)

    monkeypatch.setattr(MetaNet, 'scores', scored)
    model(*task[:3])
    support, query = seen
    assert not isinstance(support, chainer.Variable) and isinstance(query, chainer.Variable) and query.requires_grad


def test_model_is_saved_and_loaded(tmp_path):
    model, other = small_model(seed=1), small_model(seed=2)
    chainer.serializers.save_npz(tmp_path / 'model.npz', model)
    chainer.serializers.load_npz(tmp_path / 'model.npz', other)
    task = episode(5, 1)
    assert (model(*task[:3]).array == other(*task[:3]).array).all()


def test_float64():
    model = small_model()
    task = episode(5, 1)
    expected = model(*task[:3]).array
    for param in model.params():
        param.array = param.array.astype(np.float64)
    scores = model(task.support_x.astype(np.float64), task.support_y, task.query_x.astype(np.float64))
    np.testing.assert_allclose(scores.array, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())
