"""What a user may hand to a model, and networks and meta information of one's own that do not fit."""
import numpy as np
import pytest

from beyond import Average, Views
from data import Episode
from metanet import CNN, MLP, FastConvolution2D, FastLinear, Memory, MetaNet, Network
from ops.compat import F, L, chainer


def support(counts=(1, 1, 1), size=28):
    y = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.random.RandomState(0).rand(len(y), 1, size, size).astype(np.float32), y


def model():
    np.random.seed(0)
    return MetaNet(CNN(4), CNN(4, activation=None), [3])


X, Y = support()
NAN = X.copy()
NAN[1, 0, 2, 2] = np.nan


@pytest.mark.parametrize('support_x, support_y, query_x, message', [
    (X.astype(np.float64), Y, X, r'support_x is float64 of \(3, 1, 28, 28\): give a float32'),
    (X, Y, (255 * X).astype(np.uint8), r'query_x is uint8 of \(3, 1, 28, 28\): .* divided by 255'),
    (X.tolist(), Y, X, 'support_x is a list'),
    (chainer.Variable(X), Y, X, r'support_x is a Variable, float32 of \(3, 1, 28, 28\): give a float32 array'),
    (X, Y, X[0, 0, 0], r'query_x is float32 of \(28,\): give \(n, ...\)'),
    (X, Y, X[:0], 'at least one example'),
    (X, Y, NAN, 'query_x has entries that are NaN'),
    (X, Y, X[:, :, :14], r'support_x is .*, query_x float32 of \(3, 1, 14, 28\): give both the same shape'),
    (X[:, 0], Y, X[:, 0], r'the images are float32 of \(3, 28, 28\): give float32 \(n, 1, 28, 28\), channels first'),
    (X.transpose(0, 2, 3, 1), Y, X.transpose(0, 2, 3, 1), r'the images are float32 of \(3, 28, 28, 1\)'),
    (255 * X, Y, 255 * X, r'reach from .* to 25\d.*in \[0, 1\]; divide by 255'),
    (X, Y.astype(np.float32), X, r'support_y is float32 of \(3,\): give an int32 array of \(3,\)'),
    (X, Y.tolist(), X, 'support_y is a list'),
    (X, Y[:2], X, r'support_y is int32 of \(2,\): give an int32 array of \(3,\)'),
    (X, Y + 1, X, 'support_y reaches from 1 to 3 for 3 support examples: number the classes 0 to N - 1'),
    (X, Y - 1, X, 'support_y reaches from -1 to 1'),
    (X, np.array([0, 2, 2], np.int32), X, '1 of class 0, 0 of class 1, 2 of class 2: give the same number'),
    (*support([2, 1, 1]), X, '2 of class 0, 1 of class 1, 1 of class 2: give the same number'),
    (X[:1], Y[:1], X, 'support_y names one class'),
])
def test_what_is_no_episode_is_refused_in_words(support_x, support_y, query_x, message):
    with pytest.raises(ValueError, match=message):
        model()(support_x, support_y, query_x)


@pytest.mark.parametrize('query_y, message', [
    (Y.astype(np.float32), r'query_y is float32 of \(3,\): give an int32 array of \(3,\), a label for each query'),
    (Y.tolist(), 'query_y is a list'),
    (Y[:2], r'query_y is int32 of \(2,\): give an int32 array of \(3,\)'),
    (Y - 1, 'query_y reaches from -1 to 1 where the support set has 3 classes: give labels from 0 to 2'),
    (Y + 1, 'query_y reaches from 1 to 3'),
])
def test_labels_that_are_not_of_the_queries_are_refused_in_words(query_y, message):
    with pytest.raises(ValueError, match=message):
        model().loss(Episode(X, Y, X, query_y))


def test_the_order_of_the_support_set_and_int64_labels_are_fine():
    order = np.array([2, 0, 1])
    assert model()(X[order], Y[order].astype(np.int64), X).shape == (3, 3)


class Words(Network):
    """Of sequences of token ids (n, 4)."""

    def __init__(self):
        super().__init__(n_out=6)
        with self.init_scope():
            self.embedding = L.EmbedID(10, 6)
            self.fc1 = FastLinear(6, 6)

    def forward(self, x):
        return self.fc1(F.mean(self.embedding(x), axis=1))


def test_meta_information_of_tokens_is_their_gradient():
    np.random.seed(0)
    network = Words()
    metanet = MetaNet(network, Words(), [3], n_steps=2)
    x, y = np.random.randint(10, size=(6, 4)).astype(np.int32), np.arange(6, dtype=np.int32) % 3
    gradients = metanet.meta_information(network, x, y, 3, group=3)
    network.cleargrads()
    F.softmax_cross_entropy(network.softmax3(network(x[3:])), y[3:]).backward()
    assert network.fc1.W.grad.any()
    np.testing.assert_allclose(gradients[0][1], network.fc1.W.grad, atol=1e-6)
    assert metanet(x, y, x).shape == (6, 3)


def test_a_loss_of_ones_own_is_the_meta_information():
    class Hinge(MetaNet):
        def support_losses(self, network, x, y, way):
            scores = self.scores(network, x, way)
            return F.sum(F.relu(1 - scores * (2 * np.eye(way, dtype=np.float32)[y] - 1)), axis=1)

    np.random.seed(0)
    metanet = Hinge(MLP(4), MLP(4), [3])
    x, y = np.random.rand(6, 4).astype(np.float32), np.arange(6, dtype=np.int32) % 3
    *_, softmax = metanet.meta_information(metanet.base, x, y, 3, group=1)
    hidden = metanet.base(x).array
    scores = hidden @ metanet.base.softmax3.W.array.T
    signs = 2 * np.eye(3)[y] - 1
    slopes = np.where(1 - scores * signs > 0, -signs, 0)
    np.testing.assert_allclose(softmax, slopes[:, :, None] * hidden[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('keepdims, axis, shape', [(True, 1, r'\(6, 1\)'), (False, None, r'\(\)')])
def test_losses_that_are_not_one_for_each_example_are_refused(keepdims, axis, shape):
    class Wrong(MetaNet):
        def support_losses(self, network, x, y, way):
            return F.sum(self.scores(network, x, way) ** 2, axis=axis, keepdims=keepdims)

    x, y = np.ones((6, 4), np.float32), np.arange(6, dtype=np.int32) % 3
    with pytest.raises(ValueError, match=f'returned a Variable, float32 of {shape} for 6 .* return \\(6,\\)'):
        Wrong(MLP(4), MLP(4), [3])(x, y, x)


def test_a_model_in_the_hands_of_another_thread_is_refused_and_each_may_have_a_copy():
    class Busy(MLP):
        def forward(self, x):
            if self.fc1.fast is not None and not others:
                others.append(None)
                others[0] = [outcome(other, X) for other in (metanet, copy)]
            return super().forward(x)

    def outcome(which, x):
        try:
            return which(x, Y, x).array
        except RuntimeError as error:
            return str(error)

    X, others = np.random.RandomState(0).rand(3, 4).astype(np.float32), []
    metanet = MetaNet(Busy(4), MLP(4), [3])
    copy = metanet.copy('share')
    own = outcome(metanet, X)
    assert "give each thread its own model.copy('share')" in others[0][0]
    np.testing.assert_array_equal(others[0][1], own)


@pytest.mark.parametrize('change, message', [
    (lambda gradients: gradients[:-1], r'\(n_groups, ...\) of .* for layers of \[\(4, 4\), \(4, 4\), \(3, 4\)\]'),
    (lambda gradients: [np.stack([g, g], axis=-1) for g in gradients], r'of \[\(4, 4, 2\), .*one number for each slow'),
    (lambda gradients: gradients[::-1], 'in their order'),
    (lambda gradients: [g.astype(np.float64) for g in gradients], 'an array of float64: return float32'),
    (lambda gradients: (g for g in gradients), 'returned a generator: return a list of arrays'),
    (lambda gradients: [gradients[0][:2], *gradients[1:]], r'arrays of \[2, 6, 6\] groups'),
    (lambda gradients: [g[:1] for g in gradients], '1 sets of fast weights for 6 support examples'),
])
def test_meta_information_that_does_not_fit_the_layers_is_refused(change, message):
    class Wrong(MetaNet):
        def meta_information(self, *args):
            return change(super().meta_information(*args))

    np.random.seed(0)
    x, y = np.random.rand(6, 4).astype(np.float32), np.arange(6, dtype=np.int32) % 3
    with pytest.raises(ValueError, match=message):
        Wrong(MLP(4), MLP(4), [3], task_level=False)(x, y, x)


def test_networks_that_cannot_adapt_are_refused():
    with pytest.raises(TypeError, match='derived from Network, not Chain'):
        MetaNet(chainer.Chain(), MLP(4), [3])


def test_sequences_are_refused_by_fully_connected_layers():
    with pytest.raises(ValueError, match=r'4 inputs got float32 of \(6, 5, 4\): give it \(n, 4\)'):
        FastLinear(4, 3)(np.zeros((6, 5, 4), np.float32))


def test_an_attention_with_negative_shares_is_refused():
    """A mean of negative fast weights is taken to be negative, and left out where a ReLU comes next."""
    class Contrast(Memory):
        def attention(self, queries):
            return super().attention(queries) - .5

    metanet = MetaNet(MLP(4), MLP(4), [3])
    metanet.memory = Contrast
    x = np.random.RandomState(0).rand(3, 4).astype(np.float32)
    with pytest.raises(ValueError, match='attention returned shares down to -0.*none negative'):
        metanet(x, Y, x)
    metanet.memory = type('Turned', (Memory,), {'attention': lambda self, queries: F.transpose(
        Memory.attention(self, queries))})
    with pytest.raises(ValueError, match=r'attention returned .*float32 of \(3, 2\)\)?: return a variable of \(2, 3\)'):
        metanet(x, Y, x[:2])


@pytest.mark.parametrize('parts', ['a layer', 'a network', 'base and embed'])
def test_a_parameter_that_is_registered_twice_is_refused(parts):
    base, embed = MLP(4), MLP(4)
    with base.init_scope():
        if parts == 'a layer':
            base.again = base.fc1
        elif parts == 'a network':
            base.others = chainer.ChainList(base.fc2, L.Linear(4, 4), base.fc2)
    with pytest.raises(ValueError, match='are one parameter: .*[Rr]egister a layer once'):
        MetaNet(base, base if parts == 'base and embed' else embed, [3])


def test_a_layer_that_is_called_twice_is_fine():
    class Twice(MLP):
        def forward(self, x):
            return self.fc2(self.fc1(self.fc1(x)))

    x = np.random.RandomState(0).rand(3, 4).astype(np.float32)
    assert MetaNet(Twice(4), MLP(4), [3])(x, Y, x).shape == (3, 3)


@pytest.mark.parametrize('make, kind, message', [
    (lambda: FastLinear(4, 4, L.PReLU()), TypeError, 'the activation is a link, PReLU'),
    (lambda: FastLinear(None, 4), ValueError, r'weights \(4, None\) lacks a size'),
    (lambda: FastConvolution2D(1, None), ValueError, 'lacks a size'),
    (lambda: FastConvolution2D(1, 4, (3, 5)), ValueError, r'an odd number .*, not \(3, 5\)'),
    (lambda: CNN(4, image_size=(28, 20)), ValueError, r'image_size = \(28, 20\): .* images are square'),
    (lambda: CNN(4, n_slow=6), ValueError, 'n_slow = 6'),
    (lambda: MetaNet(MLP(4), MLP(4), np.int64(5)), ValueError, r'ways = 5: give a list'),
    (lambda: MetaNet(MLP(4), MLP(4), []), ValueError, r'ways is empty: give a list'),
    (lambda: MetaNet(MLP(4), MLP(4), [[5]]), ValueError, r'ways = \[\[5\]\]: give a list'),
    (lambda: MetaNet(MLP(4), MLP(4), [3], n_steps=2.5), ValueError, 'n_steps = 2.5: must be a whole number'),
    (lambda: model().add_ways([1]), ValueError, r'ways = \[1\]: give a list'),
    (lambda: Average(model(), 1), ValueError, 'decay = 1: must be at least 0 and below 1'),
    (lambda: Views(CNN(4), ['shifted']), ValueError, r"views = \['shifted'\]: name some of shifted, mirrored"),
    (lambda: model().loss((X, Y, X)), ValueError, 'the episode is a tuple of 3: give a data.Episode, four arrays'),
    (lambda: model().loss(X), ValueError, 'the episode is a ndarray: give'),
])
def test_parts_and_episodes_that_are_none_are_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_an_array_of_ways_is_a_list():
    assert MetaNet(MLP(4), MLP(4), np.array([4, 3, 4])).base.softmax(4).W.shape == (4, 4)


def test_an_average_of_a_model_that_has_got_a_way_since_is_refused():
    metanet = MetaNet(MLP(4), MLP(4), [3])
    average = Average(metanet, 0.9)
    metanet.add_ways([4])
    with pytest.raises(ValueError, match='make Average after add_ways'):
        average(None)


@pytest.mark.parametrize('name, wrong, message', [
    ('d_fc', lambda gradients: gradients, r'a learner d returned fast weights of \(3, 4, 4\): return \(4, 4\)'),
    ('m_fc', lambda gradients: [gradient[0] for gradient in gradients],
     r"a learner m returned fast weights of \(4, 4\): return \('n_groups', 4, 4\)"),
    ('m_fc', lambda gradients: list(gradients)[:-1], 'a learner m returned 2 fast weights for 3 layers: return one'),
    ('d_fc', lambda gradients: [gradients[0]] * 4, 'a learner d returned 4 fast weights for 3 layers: return one')])
def test_learners_that_make_no_fast_weights_are_refused(name, wrong, message):
    class Wrong(chainer.Link):
        def forward(self, gradients):
            return [chainer.as_variable(weights) for weights in wrong(gradients)]

    metanet = MetaNet(MLP(4), MLP(4), [3], n_steps=3)
    delattr(metanet, name)
    with metanet.init_scope():
        setattr(metanet, name, Wrong())
    x = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        metanet(x, Y, x)


class Listed(MLP):
    """Has layers where `keep` puts them."""

    def __init__(self, keep):
        super().__init__(4)
        keep(self)


@pytest.mark.parametrize('keep, message', [
    (lambda net: setattr(net, 'more', [FastLinear(4, 4)]), 'Listed.more is a list of layers, which Chainer neither'),
    (lambda net: setattr(net, 'more', (net.fc1, net.fc2)), 'Listed.more is a tuple of layers'),
    (lambda net: setattr(net, 'more', {'a': net.fc1}), 'Listed.more is a dict of layers'),
    (lambda net: setattr(net, 'more', FastLinear(4, 4)), 'Listed.more is a layer that Chainer neither trains nor'),
    (lambda net: setattr(net, 'again', net.fc1), 'Listed.again is a layer .* where it has a name already use that')])
def test_layers_that_chainer_does_not_see_are_refused(keep, message):
    with pytest.raises(ValueError, match=message):
        MetaNet(Listed(keep), MLP(4), [3])
    with pytest.raises(ValueError, match=message):
        MetaNet(MLP(4), Listed(keep), [3])


def test_lists_that_chainer_sees_are_fine():
    def keep(net):
        with net.init_scope():
            net.more = chainer.ChainList(FastLinear(4, 4), chainer.Sequential(FastLinear(4, 4), F.relu))
            net.plain = chainer.Sequential(L.Linear(4, 4))

    metanet = MetaNet(Listed(keep), MLP(4), [3])
    assert len(metanet.base.fast_layers(3)) == 5


@pytest.mark.parametrize('layer, words', [
    (lambda: FastConvolution2D(1, 4, 3, 1, 1), 'activation = 1: give a function .* stride 1 and pad by themselves'),
    (lambda: FastLinear(6, 8, True), 'activation = True: give a function such as F.relu, or None; .* no bias'),
    (lambda: FastLinear(6, 8, 'relu'), "activation = 'relu': give a function")])
def test_what_is_no_activation_is_refused(layer, words):
    with pytest.raises(TypeError, match=words):
        layer()


@pytest.mark.parametrize('output, words', [
    (lambda y: y[:, :3], r'forward of Own returned a Variable, float32 of \(6, 3\) for 6 inputs: .* of \(6, 4\)'),
    (lambda y: y[:, :, None, None], r'a Variable, float32 of \(6, 4, 1, 1\)'),
    (lambda y: (y, y), 'forward of Own returned a tuple'), (lambda y: None, 'a NoneType'),
    (lambda y: y.array, r'forward of Own returned float32 of \(6, 4\) for 6 inputs: return a variable of \(6, 4\)')])
@pytest.mark.parametrize('task_level', [True, False])
def test_what_is_no_output_is_refused(output, words, task_level):
    class Own(MLP):
        def forward(self, x):
            return output(super().forward(x))

    x, y = np.ones((6, 4), np.float32), np.arange(6, dtype=np.int32) % 3
    for networks in (Own(4), MLP(4)), (MLP(4), Own(4)):
        with pytest.raises(ValueError, match=words):
            MetaNet(*networks, [3], task_level=task_level)(x, y, x)


@pytest.mark.parametrize('kind', ['fc', 'conv'])
def test_more_rows_than_examples_are_refused(kind):
    class Own(Network):
        def __init__(self):
            super().__init__(n_out=4)
            with self.init_scope():
                self.layer = FastLinear(4, 4) if kind == 'fc' else FastConvolution2D(1, 1)

        def forward(self, x):
            x = x.reshape((-1, 4) if kind == 'fc' else (-1, 1, 2, 2))
            return F.mean(F.reshape(self.layer(x), (-1, 5, 4)), axis=1)

    x, y = np.ones((3, 5, 4), np.float32), np.arange(3, dtype=np.int32)
    with pytest.raises(ValueError, match='got 15 inputs for 3 groups of 1 examples: keep the examples along the first'):
        MetaNet(Own(), Own(), [3])(x, y, x)


def test_a_missing_way_names_the_models_own_method():
    x, y = np.ones((4, 4), np.float32), np.arange(4, dtype=np.int32)
    metanet = MetaNet(MLP(4), MLP(4), [3])
    with pytest.raises(ValueError, match=r'for 4 classes: make it by add_ways\(\[4\]\), initialize_ins'):
        metanet(x, y, x)
    metanet.add_ways([4])
    assert metanet(x, y, x).shape == (4, 4)


def test_a_softmax_layer_of_another_class_is_refused():
    network = MLP(4)
    network.softmax_layer = FastLinear
    with pytest.raises(TypeError, match='softmax_layer made a FastLinear: .* of a class derived from SoftmaxLayer'):
        MetaNet(network, MLP(4), [3])


@pytest.mark.parametrize('ways', [None, 5, 'ab', (way for way in [5]), [1], [2.5]])
def test_what_is_no_list_of_ways_is_refused(ways):
    with pytest.raises(ValueError, match=r'ways = .*: give a list of numbers of classes, each at least 2, such as \[5'):
        MetaNet(MLP(4), MLP(4), ways)


def test_an_average_before_all_parameters_have_a_shape_is_refused():
    with pytest.raises(ValueError, match='/W has no shape yet: give its layer the size of its input instead of None'):
        Average(L.Linear(None, 8), 0.9)


def test_meta_information_of_variables_is_named():
    class Wrong(MetaNet):
        def meta_information(self, *args):
            return [chainer.as_variable(array) for array in super().meta_information(*args)]

    x = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match='returned a Variable, float32 of .*: return a list of arrays'):
        Wrong(MLP(4), MLP(4), [3])(x, Y, x)


def test_labels_in_a_variable_are_named():
    with pytest.raises(ValueError, match=r'support_y is a Variable, int32 of \(3,\): give an int32 array'):
        model()(X, chainer.Variable(Y), X)


def test_views_of_what_is_no_image_are_refused():
    metanet = MetaNet(MLP(4), Views(MLP(4), 'shifted'), [3])
    x = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match=r'views are of images .*, not \(3, 4\)'), chainer.no_backprop_mode():
        metanet(x, Y, x)


def test_four_arrays_are_an_episode():
    assert np.isfinite(model().loss([X, Y, X, Y]).array)


def test_a_layer_of_an_unknown_kind_is_refused():
    metanet = MetaNet(MLP(4), MLP(4), [3])
    metanet.base.fc1.kind = 'linear'
    x = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="FastLinear.kind is 'linear': choose 'conv' or 'fc'"):
        metanet(x, Y, x)


def test_losses_that_are_no_variable_are_refused():
    class Wrong(MetaNet):
        def support_losses(self, network, x, y, way):
            return super().support_losses(network, x, y, way).array

    x = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match='support_losses returned float32 of .* return .* a variable'):
        Wrong(MLP(4), MLP(4), [3])(x, Y, x)
