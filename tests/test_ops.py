"""`ops` against Chainer's own ops (`reference`), numerical gradients and values worked out by hand."""
import functools

import numpy as np
import pytest
import reference
import threadpoolctl

import ops
import ops.blocks
from ops import lazy
from ops.compat import chainer, cuda, gradient_check, type_check
from ops.device import n_gpus


def draw(*shape, seed=0, dtype=np.float64, scale=1):
    return (scale * np.random.RandomState(seed + sum(shape)).randn(*shape)).astype(dtype)


def listed(ys):
    return ys if isinstance(ys, list) else [ys]


def results(function, variables, seed=5):
    """Outputs, and the gradients of a random weighting of them with respect to `variables`."""
    variables = [chainer.Variable(array) for array in variables]
    ys = listed(function(*variables))
    loss = sum(chainer.functions.sum(y * draw(*y.shape, seed=seed + i, dtype=y.dtype)) for i, y in enumerate(ys))
    loss.backward()
    # Chainer leaves out the gradient of what had no part in the outputs.
    return [y.array for y in ys] + [np.zeros_like(variable.array) if variable.grad is None else variable.grad
                                    for variable in variables]


def assert_same(function, expected, arrays, tolerance=1e-10):
    for actual, desired in zip(results(function, arrays), results(expected, arrays)):
        assert actual.dtype == desired.dtype and actual.shape == desired.shape
        np.testing.assert_allclose(actual, desired, atol=tolerance * max(1, abs(desired).max()), rtol=0)


def products(module, name, **options):
    return lambda x, *weights: getattr(module, name)(x, weights, **options)


def sequences(module, name, gradients):
    return lambda *parameters: getattr(module, name)(gradients, *parameters)


MLP = (6, 2), (6,), (6, 6), (6,), (1, 6), (1,)
LSTM = (24, 2), (24,), (24, 6), (1, 6), (1,)
# x, then weights, and the examples to a group
CONVOLUTIONS = {
    'shared': ([(3, 2, 7, 5), (4, 3, 3, 2)], 1),
    'two shared': ([(3, 2, 4, 4), (4, 3, 3, 2), (4, 3, 3, 2)], 1),
    'grouped': ([(4, 2, 4, 4), (4, 4, 3, 3, 2)], 1),
    'mixed': ([(4, 2, 3, 3), (4, 3, 3, 2), (2, 4, 3, 3, 2)], 2),
    'short last group': ([(7, 2, 3, 3), (3, 4, 3, 3, 2), (4, 3, 3, 2)], 3),
    'wide kernel': ([(2, 3, 5, 6), (2, 1, 5, 3)], 1),
    'single pixel': ([(5, 2, 1, 1), (4, 3, 3, 2), (5, 4, 3, 3, 2)], 1),
    'many blocks': ([(37, 16, 14, 14), (8, 3, 3, 16), (37, 8, 3, 3, 16)], 1),
    'many blocks of groups': ([(50, 16, 14, 14), (17, 8, 3, 3, 16), (8, 3, 3, 16)], 3),
}
TILED = {  # one weight for all examples, and a pooling that follows
    'one channel': [(3, 1, 28, 28), (5, 3, 3, 1)],
    'few channels': [(4, 3, 5, 8), (2, 3, 3, 3)],
    'many channels': [(3, 16, 6, 8), (5, 3, 3, 16)],
    'odd sides': [(3, 20, 7, 5), (17, 3, 3, 20)],
    'single pixels': [(4, 16, 1, 1), (3, 3, 3, 16)],
    'narrow': [(2, 16, 1, 4), (3, 3, 3, 16)],
    'many blocks': [(60, 16, 14, 14), (16, 3, 3, 16)],
    'many blocks of few channels': [(60, 2, 28, 28), (16, 3, 3, 2)],
}
LINEARS = {
    'shared': ([(5, 4), (3, 4)], 1),
    'two shared': ([(5, 4), (3, 4), (3, 4)], 1),
    'grouped': ([(5, 4), (5, 3, 4)], 1),
    'short last group': ([(7, 4), (3, 3, 4), (3, 4)], 3),
    'many blocks': ([(80, 4096), (8, 4096), (80, 8, 4096)], 1),
}


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('name, case', [('convolution', case) for case in CONVOLUTIONS]
                         + [('linear', case) for case in LINEARS])
def test_products(name, case, relu):
    shapes, group = (CONVOLUTIONS if name == 'convolution' else LINEARS)[case]
    options = dict(group=group, relu=relu)
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    function, expected = products(ops, name, **options), products(reference, name, **options)
    assert_same(function, expected, arrays)
    assert_same(function, expected, [array.astype(np.float32) for array in arrays], 1e-4)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_pooled_convolutions(case, relu):
    shapes, group = CONVOLUTIONS[case]
    options = dict(group=group, relu=relu, pool=True)
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    function, expected = products(ops, 'convolution', **options), products(reference, 'convolution', **options)
    assert_same(function, expected, arrays)
    assert_same(function, expected, [array.astype(np.float32) for array in arrays], 1e-4)
    # Of equals, here of the ReLUs' zeros, the same one takes the gradient, and each weight by its own ReLU.
    arrays[0] = np.round(arrays[0])
    assert_same(function, expected, arrays)
    assert_same(function, expected, [array.astype(np.float32) for array in arrays], 1e-4)


@pytest.mark.parametrize('name, shapes', [('convolution', CONVOLUTIONS['short last group'][0]),
                                          ('linear', LINEARS['short last group'][0])])
@pytest.mark.parametrize('relu', [False, True])
def test_products_numerically(name, shapes, relu):
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    function = products(ops, name, group=3, relu=relu)
    gy = draw(*function(*arrays).shape)
    gradient_check.check_backward(function, arrays, gy, dtype=np.float64, atol=1e-6, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize('name, shapes', [('convolution', CONVOLUTIONS['mixed'][0]),
                                          ('linear', [(4, 4), (3, 4), (2, 3, 4)])])
def test_products_of_views(name, shapes):
    """Neither inputs nor the gradient of the output need be contiguous."""
    arrays = [draw(*shape[::-1]).T for shape in shapes]
    function, expected = products(ops, name, group=2), products(reference, name, group=2)
    transpose = chainer.functions.transpose
    assert_same(lambda *a: transpose(function(*a)), lambda *a: transpose(expected(*a)), arrays)


@pytest.mark.parametrize('name, shapes', [('convolution', [(4, 2, 3, 3), (4, 3, 3, 2), (2, 4, 3, 3, 2)]),
                                          ('linear', [(4, 4), (3, 4), (2, 3, 4)])])
@pytest.mark.parametrize('shut', [1, 2])
def test_products_with_shut_relus(name, shapes, shut):
    """Weights whose every ReLU is shut get a gradient of zero, and leave the others' as they are."""
    arrays = [abs(draw(*shape, seed=i)) for i, shape in enumerate(shapes)]
    arrays[shut] *= -1
    options = dict(group=2, relu=True)
    function = products(ops, name, **options)
    assert_same(function, products(reference, name, **options), arrays)
    assert not results(function, arrays)[1 + shut].any()


@pytest.mark.parametrize('name, shapes', [('convolution', [(4, 2, 3, 3), (4, 3, 3, 2), (2, 4, 3, 3, 2)]),
                                          ('linear', [(4, 4), (3, 4), (2, 3, 4)])])
@pytest.mark.parametrize('relu, negative_input', [(True, True), (False, False)])
def test_negative_weights_alone_shut_nothing(name, shapes, relu, negative_input):
    arrays = [abs(draw(*shape, seed=i)) for i, shape in enumerate(shapes)]
    arrays[2] *= -1
    if negative_input:
        arrays[0][0] *= -1
    options = dict(group=2, relu=relu)
    function = products(ops, name, **options)
    assert_same(function, products(reference, name, **options), arrays)
    assert results(function, arrays)[3].any()


def test_products_skip_what_needs_no_gradient():
    x, weight = draw(4, 2, 3, 3), chainer.Variable(draw(4, 3, 3, 2))
    y = ops.convolution(x, [weight, draw(4, 4, 3, 3, 2)], relu=True)
    y.grad = draw(*y.shape)
    y.backward()
    assert weight.grad is not None
    assert [node.requires_grad for node in y.creator_node.inputs] == [False, True, False]


@pytest.mark.parametrize('name, shapes', [
    ('convolution', [(4, 2, 3, 3), (4, 3, 3, 5)]),  # channels
    ('convolution', [(4, 2, 3, 3), (3, 4, 3, 3, 2)]),  # groups
    ('convolution', [(4, 2, 3), (4, 3, 3, 2)]),
    ('linear', [(4, 2), (4, 3)]),
    ('linear', [(4, 2), (3, 4, 2)]),
    ('convolution', [(4, 2, 3, 3), (4, 3, 3, 2), (2, 5, 3, 3, 2)]),  # outputs
    ('convolution', [(4, 2, 3, 3), (4, 3, 3, 2), (1, 2, 4, 3, 3, 2)]),
    ('convolution', [(4, 2, 3, 3), (4, 3, 3, 2), (3, 3, 2)]),
    ('linear', [(4, 2), (3, 2), (4, 2)]),
    ('linear', [(4, 2, 1), (4, 2)])])
@pytest.mark.parametrize('options', [{}, {'relu': True, 'pool': True}])
def test_products_refuse_shapes(name, shapes, options):
    if name == 'linear':
        options = {}
    with pytest.raises(type_check.InvalidType):
        products(ops, name, group=2, **options)(*(draw(*shape, dtype=np.float32) for shape in shapes))


def test_dtypes_are_refused():
    x, weight = draw(4, 2, 3, 3), draw(4, 3, 3, 2)
    parameters = [draw(*shape) for shape in MLP]
    for call in (lambda: ops.convolution(x, [weight.astype(np.float32)]),
                 lambda: ops.convolution(x.astype(int), [weight.astype(int)]),
                 lambda: ops.linear(x[0, 0], [weight[0, 0].astype(np.float32)]),
                 lambda: ops.max_pooling(x.astype(int)),
                 lambda: ops.max_pooling(x[0]),
                 lambda: ops.mixture(draw(3, 2), [draw(2, 4).astype(np.float32)]),
                 lambda: ops.mixture(draw(3, 2), [draw(3, 4)]),
                 lambda: ops.mlp([draw(5).astype(np.float32)], *parameters),
                 lambda: ops.mlp([draw(5), draw(5).astype(np.float32)], *parameters),
                 lambda: ops.lstm([draw(2, 5).astype(np.float32)], *(draw(*shape) for shape in LSTM))):
        with pytest.raises(type_check.InvalidType):
            call()


@pytest.mark.parametrize('side', [(7, 7), (3, 4), (4, 3), (1, 1), (1, 4), (2, 2), (28, 28)])
@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_max_pooling(side, dtype):
    x = draw(50, 16, *side, dtype=dtype)
    assert_same(ops.max_pooling, reference.max_pooling, [x], 0)
    assert_same(ops.max_pooling, reference.max_pooling, [x.transpose(1, 0, 3, 2)], 0)


@pytest.mark.parametrize('side', [(7, 7), (3, 4), (4, 4)])
def test_max_pooling_of_ties(side):
    x = np.random.RandomState(0).randint(0, 2, (5, 3) + side).astype(np.float64)
    assert_same(ops.max_pooling, reference.max_pooling, [x], 0)


def test_max_pooling_by_hand():
    x = chainer.Variable(np.array([[[[1, 3, 5], [3, 3, 5], [7, 2, -1]]]], np.float32))
    y = ops.max_pooling(x)
    assert y.array.tolist() == [[[[3, 5], [7, -1]]]]
    y.grad = np.array([[[[1, 2], [3, 4]]]], np.float32)
    y.backward()
    assert x.grad.tolist() == [[[[0, 1, 2], [0, 0, 0], [3, 0, 4]]]]


def test_max_pooling_numerically():
    x = np.random.RandomState(0).permutation(2 * 3 * 7 * 3).reshape(2, 3, 7, 3) / 10
    gradient_check.check_backward(ops.max_pooling, x, draw(2, 3, 4, 2), dtype=np.float64)


def normalized(module, train, averages):
    """`normalized_convolution` of x, weight, gamma and beta, with running averages that go on in `averages`."""
    def function(x, weight, gamma, beta):
        bn = chainer.links.BatchNormalization(len(gamma), dtype=x.dtype)
        # Variables in the place of parameters: gradients then reach the arguments.
        for name, value in (('gamma', gamma), ('beta', beta)):
            object.__setattr__(bn, name, chainer.as_variable(value))
        bn.avg_mean[...], bn.avg_var[...] = 0.3, 1.5
        bn.to_device(chainer.backend.get_device_from_array(chainer.as_array(x)))
        with chainer.using_config('train', train):
            y = module.normalized_convolution(x, weight, bn)
        averages[module.__name__] = bn.avg_mean, bn.avg_var
        return y
    return function


NORMALIZED = {
    'few channels': [(4, 3, 5, 6), (2, 3, 3, 3)],
    'many channels': [(3, 16, 6, 4), (5, 3, 3, 16)],
    'odd sides': [(3, 16, 7, 5), (4, 3, 3, 16)],
    'one example': [(1, 2, 1, 3), (2, 3, 3, 2)],
    'many blocks': [(30, 16, 20, 20), (24, 3, 3, 16)],
    'another kernel': [(3, 2, 5, 4), (2, 5, 3, 2)],
}


@pytest.mark.parametrize('case', NORMALIZED)
@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('scale', [None, -1e-3])
@pytest.mark.parametrize('in_tiles', [True, False])
def test_normalized_convolution(case, train, scale, in_tiles, monkeypatch):
    if not in_tiles:
        monkeypatch.setattr(ops.normalization, 'suits', lambda *args: False)
    averages = {}
    shapes = NORMALIZED[case] + [NORMALIZED[case][1][:1]] * 2
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    arrays[0] += 1
    if scale is not None:
        arrays[2][0] = scale
    function, expected = (normalized(module, train, averages) for module in (ops, reference))
    assert_same(function, expected, arrays)
    for ours, chainers in zip(averages['ops'], averages['reference']):
        np.testing.assert_allclose(ours, chainers, rtol=1e-11)
    with chainer.no_backprop_mode():
        np.testing.assert_allclose(function(*arrays).array, expected(*arrays).array, atol=1e-10)
        single = [array.astype(np.float32) for array in arrays]
        np.testing.assert_allclose(function(*single).array, expected(*arrays).array, atol=1e-4)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('case', ['few channels', 'odd sides', 'another kernel'])
def test_normalized_convolution_numerically(case, train):
    shapes = NORMALIZED[case] + [NORMALIZED[case][1][:1]] * 2
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    function = normalized(ops, train, {})
    gradient_check.check_backward(function, arrays, draw(*function(*arrays).shape, seed=2), dtype=np.float64,
                                  atol=1e-5, rtol=1e-4, eps=1e-6)


@pytest.mark.parametrize('shapes', [[(3, 2), (2, 4)], [(3, 2), (2, 4), (2, 3, 5), (2, 1)],
                                    [(50, 5), (5, 64, 300), (5, 7)]])
def test_mixture(shapes):
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    function, expected = (lambda weights, *values, module=module: module.mixture(weights, values)
                          for module in (ops, reference))
    assert_same(function, expected, arrays)
    assert_same(function, expected, [array.astype(np.float32) for array in arrays], 1e-4)


def test_mixture_numerically():
    arrays = [draw(3, 2), draw(2, 4), draw(2, 3, 2)]
    gradient_check.check_backward(lambda weights, *values: tuple(ops.mixture(weights, values)), arrays,
                                  (draw(3, 4), draw(3, 3, 2)), dtype=np.float64)


def late(x, weight, weights, values, relu=True):
    """An augmented layer with a mean of fast weights for each example, mixed after the products."""
    return ops.linear(x, [weight, *ops.late_mixture(weights, [values])], relu=relu)


def early(x, weight, weights, values, relu=True):
    return reference.linear(x, [weight, *reference.mixture(weights, [values])], relu=relu)


LATE = {'one': [(1, 3), (2, 3), (1, 1), (1, 2, 3)], 'some': [(4, 3), (5, 3), (4, 2), (2, 5, 3)],
        'many blocks': [(300, 70), (90, 70), (300, 20), (20, 90, 70)]}


@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize('case', LATE)
def test_weights_that_are_mixed_after_their_products(case, relu):
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(LATE[case])]
    functions = [functools.partial(function, relu=relu) for function in (late, early)]
    assert_same(*functions, arrays)
    assert_same(*functions, [array.astype(np.float32) for array in arrays], 1e-3)


def test_weights_that_are_mixed_after_their_products_numerically():
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(LATE['some'])]
    gradient_check.check_backward(functools.partial(late, relu=False), arrays, draw(4, 5), dtype=np.float64)


def test_dead_products_of_mixed_weights_get_and_give_no_gradient():
    x, weight, weights, values = (chainer.Variable(draw(*shape, seed=i)) for i, shape in enumerate(LATE['some']))
    x.array[...], weights.array[...], values.array[...] = 1, 1, -1
    chainer.functions.sum(late(x, weight, weights, values)).backward()
    assert not weights.grad.any() and not values.grad.any() and weight.grad.any()


def test_mixed_weights_may_be_asked_for():
    weights, values = draw(4, 2), draw(2, 5, 3, seed=1)
    mixed, other = ops.late_mixture(chainer.Variable(weights), list(map(chainer.Variable, (values, values[:, 0]))))
    np.testing.assert_allclose(lazy.made(mixed).array, np.einsum('nm,moc->noc', weights, values))
    np.testing.assert_allclose(lazy.made(other).array, weights.dot(values[:, 0]))
    needed, = lazy.needed(mixed, draw(4, 3), None)
    assert needed.shape == (4, 5, 3) and lazy.needed(mixed, draw(4, 3), None, late=True) == [mixed]


# One coordinate; several arrays; more coordinates than a chunk, and than a block, with a short rest.
@pytest.mark.parametrize('name, shapes', [
    ('mlp', [(1,)]), ('mlp', [(5, 3), (2, 3, 4)]), ('mlp', [(5, 1000), (30011,)]),
    ('lstm', [(5, 1)]), ('lstm', [(1, 7)]), ('lstm', [(3, 2, 3), (3, 4)]), ('lstm', [(2, 1300), (2, 9001)])])
def test_meta_learners(name, shapes):
    gradients = [draw(*shape, seed=i, scale=.01) for i, shape in enumerate(shapes)]
    gradients[0].flat[::3] = 0
    parameters = [draw(*shape, seed=i) for i, shape in enumerate(dict(mlp=MLP, lstm=LSTM)[name])]
    assert_same(sequences(ops, name, gradients), sequences(reference, name, gradients), parameters)
    gradients, parameters = ([array.astype(np.float32) for array in arrays] for arrays in (gradients, parameters))
    assert_same(sequences(ops, name, gradients), sequences(reference, name, gradients), parameters, 1e-4)


@pytest.mark.parametrize('name, shape', [('mlp', (2, 5)), ('lstm', (4, 5))])
def test_meta_learners_numerically(name, shape):
    function = sequences(ops, name, [draw(*shape, scale=.01)])
    parameters = [draw(*shape, seed=i) for i, shape in enumerate(dict(mlp=MLP, lstm=LSTM)[name])]
    y, = function(*parameters)
    gradient_check.check_backward(lambda *parameters: function(*parameters)[0], parameters, draw(*y.shape),
                                  dtype=np.float64, atol=1e-6, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize('name, shape', [('mlp', (2, 30000)), ('lstm', (3, 9000))])
def test_meta_learners_where_some_outputs_are_unused(name, shape):
    """Gradients of zero, or none at all, are left out of the sums."""
    gradients = [draw(*shape, seed=i, scale=.01) for i in range(2)]

    def half(module, *parameters):
        y, _ = sequences(module, name, gradients)(*parameters)
        return chainer.functions.flatten(y)[:100]

    parameters = [draw(*shape, seed=i) for i, shape in enumerate(dict(mlp=MLP, lstm=LSTM)[name])]
    assert_same(functools.partial(half, ops), functools.partial(half, reference), parameters)


CALLS = {
    'convolution': (products(ops, 'convolution', relu=True), CONVOLUTIONS['many blocks'][0]),
    'pooled': (products(ops, 'convolution', relu=True, pool=True), CONVOLUTIONS['many blocks'][0]),
    'linear': (products(ops, 'linear', relu=True), LINEARS['many blocks'][0]),
    'tiled': (products(ops, 'convolution', relu=True, pool=True), TILED['many blocks']),
    'tiled, few channels': (products(ops, 'convolution', relu=True, pool=True), TILED['many blocks of few channels']),
    'max_pooling': (ops.max_pooling, [(50, 16, 28, 28)]),
    'mixture': (lambda weights, *values: ops.mixture(weights, values), [(50, 5), (5, 90000), (5, 7)]),
    'late mixture': (late, LATE['many blocks']),
    'normalized_convolution': (normalized(ops, True, {}), NORMALIZED['many blocks'] + [(24,), (24,)]),
    'mlp': (sequences(ops, 'mlp', [draw(2, 50000, dtype=np.float32)]), MLP),
    'lstm': (sequences(ops, 'lstm', [draw(3, 20000, dtype=np.float32)]), LSTM),
}


@pytest.mark.parametrize('name', CALLS)
def test_threads_change_nothing(name, monkeypatch):
    """Bit for bit."""
    function, shapes = CALLS[name]
    arrays = [draw(*shape, seed=i, dtype=np.float32) for i, shape in enumerate(shapes)]
    monkeypatch.setattr(ops.blocks, 'THREADS', 1)
    alone = results(function, arrays)
    for threads in 2, 4, 4:
        monkeypatch.setattr(ops.blocks, 'THREADS', threads)
        for a, b in zip(alone, results(function, arrays)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('asked, threads', [('1', 1), ('', None), ('99999', None), ('0', None), ('4,2', None)])
def test_fewer_threads_can_be_asked_for(asked, threads, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    cores = ops.blocks._threads()
    monkeypatch.setenv('OMP_NUM_THREADS', asked)
    assert ops.blocks._threads() == (threads or cores)


def test_blas_threads_are_restored():
    def blas():
        return [library['num_threads'] for library in threadpoolctl.threadpool_info() if library['user_api'] == 'blas']

    with threadpoolctl.threadpool_limits(2, user_api='blas'):
        before = blas()
        function, shapes = CALLS['convolution']
        results(function, [draw(*shape) for shape in shapes])
        assert blas() == before
        with pytest.raises(ZeroDivisionError):
            ops.blocks.in_parts(lambda blocks: 1 / 0, [(0, 1), (1, 2)], np)
        assert blas() == before
        with ops.blocks.one_blas_thread():
            with ops.blocks.one_blas_thread():
                assert set(blas()) == {1}
            assert set(blas()) == {1}
        assert blas() == before


@pytest.mark.skipif(not n_gpus(), reason='needs CuPy and a GPU')
@pytest.mark.parametrize('name', CALLS)
def test_gpu(name):
    function, shapes = CALLS[name]
    if name in ('mlp', 'lstm'):
        gradient = draw(3, 2000, dtype=np.float32)

        def function(*parameters):
            xp = cuda.get_array_module(parameters[0].array)
            return getattr(ops, name)([xp.asarray(gradient)], *parameters)

    arrays = [draw(*shape, seed=i, dtype=np.float32) for i, shape in enumerate(shapes)]

    def on_gpu(*variables):
        ys = function(*(chainer.functions.copy(variable, 0) for variable in variables))
        return [chainer.functions.copy(y, -1) for y in listed(ys)]

    assert_same(on_gpu, function, arrays, 1e-3)
