"""`ops.tiled`: against Chainer's own ops, and with Numba against without."""
import errno
import sys

import numpy as np
import pytest
import reference
from test_ops import TILED, assert_same, draw, normalized, products, results

import ops
from ops import tiled
from ops.compat import chainer, type_check

TOLERANCES = {np.float32: 1e-4, np.float64: 1e-10}  # float32 goes through Numba's loops, where they are


@pytest.mark.parametrize('case', TILED)
def test_tiled_convolutions(case):
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(TILED[case])]
    options = dict(relu=True, pool=True)
    function, expected = products(ops, 'convolution', **options), products(reference, 'convolution', **options)
    assert_same(function, expected, arrays)
    arrays[0] = arrays[0].transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)  # channels last in memory
    assert_same(function, expected, arrays)
    with chainer.no_backprop_mode():
        np.testing.assert_allclose(function(*arrays).array, expected(*arrays).array, atol=1e-10)
    single = [array.astype(np.float32) for array in arrays]
    assert_same(function, expected, single, TOLERANCES[np.float32])
    np.testing.assert_allclose(function(*single).array, expected(*arrays).array, atol=1e-4)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('group', [1, 2, 3])
@pytest.mark.parametrize('case', TILED)
def test_groups_that_share_a_weight_have_gradients_of_their_own(case, group, dtype):
    x, weight = (draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(TILED[case]))
    shared = np.broadcast_to(weight, (-(-len(x) // group), *weight.shape))
    function = products(ops, 'convolution', relu=True, pool=True, group=group)
    for actual, desired in zip(results(function, [x, shared]), results(function, [x, shared.copy()])):
        assert actual.shape == desired.shape
        np.testing.assert_allclose(actual, desired, atol=TOLERANCES[dtype] * max(1, abs(desired).max()), rtol=0)


def test_a_weight_for_another_number_of_groups_is_refused():
    with pytest.raises(type_check.InvalidType):
        ops.convolution(draw(4, 2, 8, 8), [np.broadcast_to(draw(3, 3, 3, 2), (3, 3, 3, 3, 2))], 2, True, True)


@pytest.mark.parametrize('case', TILED)
def test_numba_and_numpy_agree(case, monkeypatch):
    pytest.importorskip('numba')
    dtype = np.float32
    arrays = [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(TILED[case])]
    shared = arrays[0], np.broadcast_to(arrays[1], (-(-len(arrays[0]) // 2), *arrays[1].shape))
    own = draw(*shared[1].shape, seed=7, dtype=dtype)
    scales = np.linspace(-1, 1, len(arrays[1]), dtype=dtype)
    calls = [(products(ops, 'convolution', relu=True, pool=True), arrays),
             (products(ops, 'convolution', relu=True, pool=True, group=2), shared),
             (products(ops, 'convolution', relu=True, pool=True, group=2), [arrays[0], own, arrays[1], own + 1]),
             (products(ops, 'convolution', relu=True, pool=True), [abs(arrays[0]), arrays[1], -abs(arrays[1])]),
             (normalized(ops, True, {}), [*arrays, scales, scales])]
    compiled = [results(*call) for call in calls]
    assert tiled._loops() is not None
    monkeypatch.setattr(tiled, '_loops', lambda: None)
    for call, arrays in zip(calls, compiled):
        for array, other in zip(arrays, results(*call)):
            assert array.dtype == other.dtype == dtype
            n_weights = sum(array.ndim > 3 for array in call[1]) - 1
            bound = 8 * max(1, n_weights - 1) * np.finfo(dtype).eps  # a sum of several convolutions rounds more often
            np.testing.assert_allclose(array, other, atol=bound * max(1, abs(other).max()), rtol=0)


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch):
    numba = pytest.importorskip('numba')
    from ops.loops import _compiled

    def full(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(numba.core.caching.FunctionCache, 'save_overload', full)
    assert _compiled(_twice)(3) == 6


def _twice(x):
    return 2 * x


def test_without_numba_or_with_one_that_cannot_be_used_numpy_does_the_work(monkeypatch):
    monkeypatch.setenv('NUMBA_DISABLE_JIT', '1')
    assert tiled._loops.__wrapped__() is None
    monkeypatch.delenv('NUMBA_DISABLE_JIT')
    monkeypatch.delitem(sys.modules, 'ops.loops', raising=False)
    monkeypatch.delattr(ops, 'loops', raising=False)
    monkeypatch.setitem(sys.modules, 'numba', None)
    assert tiled._loops.__wrapped__() is None
    monkeypatch.setitem(sys.modules, 'ops.loops', None)
    with pytest.warns(UserWarning, match='Numba cannot be used'):
        assert tiled._loops.__wrapped__() is None


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('n_channels', [2, 16])
def test_weights_whose_activations_are_all_dead_get_and_give_no_gradient(n_channels, dtype):
    x = abs(draw(40, n_channels, 14, 14, dtype=dtype))
    shared, own = (-abs(draw(*shape, 16, 3, 3, n_channels, dtype=dtype)) for shape in ((), (40,)))
    own[5] = -own[5]
    assert_same(products(ops, 'convolution', relu=True, pool=True),
                products(reference, 'convolution', relu=True, pool=True), [x, shared, own], TOLERANCES[dtype])


def mixed(module, pool=True):
    """A function of maps, shared kernels, and shares and values of kernels that each example has a mean of."""
    mixture = ops.late_mixture if module is ops else reference.mixture
    return lambda x, shared, shares, values: module.convolution(
        x, [shared, *mixture(shares, [values])], relu=True, pool=pool)


@pytest.mark.parametrize('pool', [True, False])
@pytest.mark.parametrize('n_channels', [2, 16])
@pytest.mark.parametrize('side', [1, 7, 14])
def test_kernels_that_are_means_of_a_few(side, n_channels, pool):
    shapes = (40, n_channels, side, side), (16, 3, 3, n_channels), (40, 3), (3, 16, 3, 3, n_channels)
    arrays = [draw(*shape, seed=i, dtype=np.float32) for i, shape in enumerate(shapes)]
    assert_same(mixed(ops, pool), mixed(reference, pool), arrays, TOLERANCES[np.float32])
    arrays[0], arrays[2], arrays[3] = map(abs, (arrays[0], arrays[2], arrays[3]))
    assert_same(mixed(ops, pool), mixed(reference, pool), [*arrays[:3], -arrays[3]], TOLERANCES[np.float32])


@pytest.mark.parametrize('weights', [lambda shared, mean, own: [own, mean, shared, shared],
                                     lambda shared, mean, own: [shared, mean, mean, own]])
def test_kernels_that_are_means_beside_others(weights):
    shapes = (6, 2, 4, 4), (3, 3, 3, 2), (6, 2), (2, 3, 3, 3, 2), (6, 3, 3, 3, 2)
    arrays = [draw(*shape, seed=i, dtype=np.float32) for i, shape in enumerate(shapes)]

    def late(x, shared, shares, values, own):
        mean, = ops.late_mixture(shares, [values])
        return ops.convolution(x, weights(shared, mean, own), relu=True, pool=True)

    def early(x, shared, shares, values, own):
        mean, = reference.mixture(shares, [values])
        return reference.convolution(x, weights(shared, mean, own), relu=True, pool=True)

    assert_same(late, early, arrays, TOLERANCES[np.float32])


def test_means_of_kernels_that_do_not_fit_are_refused():
    x, shared, shares = (draw(*shape, dtype=np.float32) for shape in ((5, 2, 4, 4), (3, 3, 3, 2), (5, 2)))
    for shape in (3, 3, 3, 3, 2), (2, 4, 3, 3, 2), (2, 3, 3, 3, 1):
        with pytest.raises(type_check.InvalidType):
            mixed(ops)(x, shared, shares, draw(*shape, dtype=np.float32))
    with pytest.raises(type_check.InvalidType):
        mixed(ops)(x, shared, shares[:4], draw(2, 3, 3, 3, 2, dtype=np.float32))


def test_arrays_that_are_read_only_need_no_compiling():
    """Numba takes them for another type."""
    loops = pytest.importorskip('ops.loops')
    arrays = [draw(*shape, dtype=np.float32) for shape in ((4, 1, 6, 6), (3, 3, 3, 1), (4, 3, 3, 3, 1))]
    results(products(ops, 'convolution', relu=True, pool=True), arrays)
    before = [len(function.signatures) for function in (loops.forward, loops.backward)]
    for array in arrays:
        array.flags.writeable = False
    x, shared, own = arrays
    for weights in [shared], [shared, own], [np.broadcast_to(shared, (4, *shared.shape))]:
        results(products(ops, 'convolution', relu=True, pool=True), [x, *weights])
    results(mixed(ops), [x, shared, np.broadcast_to(np.float32(.5), (4, 4)), own])
    assert [len(function.signatures) for function in (loops.forward, loops.backward)] == before


@pytest.mark.parametrize('n_channels', [2, 16])
@pytest.mark.parametrize('n_weights', [1, 3])
def test_tiled_convolutions_skip_what_needs_no_gradient(n_channels, n_weights):
    shapes = [(3, n_channels, 5, 4), (3, 3, 3, n_channels), (3, 3, 3, 3, n_channels), (3, 3, 3, n_channels)]
    arrays = [draw(*shape, dtype=np.float32) for shape in shapes[:1 + n_weights]]
    together = results(products(ops, 'convolution', relu=True, pool=True), arrays)[1:]
    for i in range(len(arrays)):
        variables = list(arrays)
        variables[i] = chainer.Variable(arrays[i])
        y = ops.convolution(variables[0], variables[1:], relu=True, pool=True)
        y.grad = draw(*y.shape, seed=5, dtype=np.float32)
        y.backward()
        assert [node.requires_grad for node in y.creator_node.inputs] == [i == j for j in range(len(arrays))]
        np.testing.assert_array_equal(variables[i].grad, together[i])
