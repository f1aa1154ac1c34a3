"""What m sees of a gradient; and m by its pieces, with Numba and without, against the network itself."""
import numpy as np
import pytest
import reference

from ops import meta_learners, preprocess
from ops.compat import chainer
from ops.pieces import Pieces, _cut

SHAPES = (20, 2), (20,), (20, 20), (20,), (1, 20), (1,)


@pytest.fixture(params=['Numba', 'NumPy'])
def loops(request, monkeypatch):
    if request.param == 'NumPy':
        monkeypatch.setattr(meta_learners, 'loops', lambda dtype: None)
    else:
        pytest.importorskip('numba')


def parameters(scale, seed=0, dtype=np.float64):
    random = np.random.RandomState(seed)
    return [random.uniform(-scale, scale, shape).astype(dtype) for shape in SHAPES]


def gradients(dtype=np.float64, size=20000):
    """Of all magnitudes and both signs, and some of zero."""
    random = np.random.RandomState(1)
    return (random.choice([-1, 0, 1], size) * np.exp(random.uniform(-30, 60, size))).astype(dtype)


def outcome(function, arrays, params):
    """Outputs, and gradients of the parameters for random gradients of the outputs."""
    params = [chainer.Variable(array) for array in params]
    ys = function(arrays, *params)
    random = np.random.RandomState(2)
    sum(chainer.functions.sum(y * random.randn(*y.shape).astype(y.dtype)) for y in ys).backward()
    return [y.array for y in ys] + [param.grad for param in params]


def test_preprocess_by_hand():
    # log|g| / 7 from e^-7 on, -1 below; g e^7 up to e^-7, the sign above.
    gradient = np.array([np.exp(-3.5), -np.exp(-7), np.exp(-8), 0, -1, np.exp(7)])
    magnitude, sign = preprocess(gradient)
    np.testing.assert_allclose(magnitude, [-.5, -1, -1, -1, 0, 1], atol=2e-5)
    np.testing.assert_allclose(sign, [1, -1, np.exp(-1), 0, -1, 1], atol=1e-12)
    assert all(channel.dtype == np.float32 for channel in preprocess(gradient.astype(np.float32)))


@pytest.mark.parametrize('dtype, tolerance', [(np.float64, 1e-11), (np.float32, 2e-5)])
@pytest.mark.parametrize('scale', [.01, .1, 1, 3])
@pytest.mark.usefixtures('loops')
def test_the_same_as_the_network(scale, dtype, tolerance):
    params = parameters(scale, dtype=dtype)
    arrays = [gradients(dtype).reshape(4, -1), gradients(dtype, 7)]
    exact = outcome(reference.mlp, [array.astype(np.float64) for array in arrays],
                    [param.astype(np.float64) for param in params])
    for found, expected in zip(outcome(meta_learners.mlp, arrays, params), exact):
        assert found.dtype == dtype and found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=tolerance * abs(expected).max(), rtol=0)


@pytest.mark.parametrize('change', [lambda params: [0 * param for param in params],
                                    lambda params: [params[0] * [[0, 1]], *params[1:]],
                                    lambda params: [*params[:2], np.tile(params[2][:1], (20, 1)), *params[3:]],
                                    lambda params: [params[0], 0 * params[1], params[2], 0 * params[3], *params[4:]]])
@pytest.mark.usefixtures('loops')
def test_units_that_never_open_or_open_together(change):
    params = change(parameters(.1))
    arrays = [gradients()]
    for found, expected in zip(outcome(meta_learners.mlp, arrays, params), outcome(reference.mlp, arrays, params)):
        np.testing.assert_allclose(found, expected, atol=1e-11 * abs(expected).max(), rtol=0)


@pytest.mark.parametrize('dtype, tolerance', [(np.float64, 1e-11), (np.float32, 5e-4)])
@pytest.mark.usefixtures('loops')
def test_gradients_whose_magnitude_the_epsilon_lifts(dtype, tolerance):
    params = [np.zeros(shape, dtype) for shape in SHAPES]
    params[0][0, 0], params[1][0] = 1000, 1000.01  # times 1 + magnitude, which is 0 here but for the epsilon
    params[2][0, 0] = params[4][0, 0] = 1
    array = np.exp(-7) - np.linspace(1e-9, 2 * np.finfo(np.float32).eps, 600)
    array[::3] *= -1
    found = outcome(meta_learners.mlp, [array.astype(dtype)], params)
    expected = outcome(reference.mlp, [array.astype(dtype).astype(np.float64)],
                       [param.astype(np.float64) for param in params])
    assert .02 < expected[0].max() < .03
    np.testing.assert_allclose(found[0], expected[0], atol=tolerance, rtol=0)
    for gradient, its in zip(found[1:], expected[1:]):
        np.testing.assert_allclose(gradient, its, atol=100 * tolerance * max(1, abs(its).max()), rtol=0)


@pytest.mark.usefixtures('loops')
def test_what_is_not_a_number_stays_so_and_harms_no_other():
    params = parameters(.1, dtype=np.float32)
    array = gradients(np.float32, 50)
    clean, = meta_learners.mlp([array], *params)
    array[3], array[5], array[7] = np.nan, np.inf, -np.inf
    with np.errstate(invalid='ignore'):
        found, = meta_learners.mlp([array], *params)
    others = np.delete(np.arange(50), [3, 5, 7])
    assert np.isnan(found.array[3]) and not np.isfinite(found.array[[5, 7]]).any()
    np.testing.assert_array_equal(found.array[others], clean.array[others])
    params[2][0, 0] = np.nan
    assert np.isnan(meta_learners.mlp([array], *params)[0].array).all()


def test_pieces_are_cut_where_units_cross_zero():
    # Two lines: x - 1 and -2 below 0, 3 - x above it.
    lines, edges = _cut(np.array([0.]), np.array([[-1., -2.], [-1., 3.]]), np.array([[1., 0.], [1., -1.]]))
    assert edges.tolist() == [0, 1, 3] and lines.tolist() == [0, 1, 1, 1]


def test_there_are_no_more_pieces_than_units_open_and_close():
    pieces = Pieces(*parameters(1))
    first, second = pieces.open
    changes = (first[1:] != first[:-1]).sum(axis=1) + (second[1:] != second[:-1]).sum(axis=1)
    corners = np.isin(pieces.edges, [-1, 1])
    assert (changes[~corners] == 1).all() and corners.sum() == 2 and len(pieces.coefficients) == len(pieces.edges) + 1
