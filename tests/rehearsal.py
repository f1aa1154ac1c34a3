"""What `test_cuda.py` runs in a process of its own, where a stand-in has taken CuPy's place."""
import os
import sys

import fake_cupy

fake_cupy.install()

import check_golden  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import train_mini_imagenet  # noqa: E402
import train_omniglot  # noqa: E402
from beyond import Average, CentredMemory, Health, ScaledCNN, Views  # noqa: E402
from data import EpisodeSampler, synthetic_strokes, synthetic_textures  # noqa: E402
from experiment.loop import Clipping, EpisodeUpdater  # noqa: E402
from metanet import CNN, Memory, MetaNet  # noqa: E402
from ops import convolution, device, meta_learners, normalization, tiled  # noqa: E402
from ops.blocks import blocks_of  # noqa: E402
from ops.compat import chainer, cuda  # noqa: E402

TESTS = os.path.dirname(os.path.abspath(__file__))
TRAINED, CENTRED = (os.path.join(TESTS, os.pardir, 'assets', f'omniglot_{name}.npz')
                    for name in ('5way', '20way_centred'))
cupy = cuda.cupy


def on_gpu(array):
    return cupy.asarray(np.asarray(array, np.float32))


REFUSED = {
    'conversion': lambda x: np.asarray(x),
    'function of NumPy': lambda x: np.concatenate([x, x]),
    'function of NumPy, element by element': lambda x: np.exp(x, out=np.zeros(3, np.float32)),
    'host array to the right': lambda x: x + np.ones(3, np.float32),
    'host array to the left': lambda x: np.ones(3, np.float32) * x,
    'host array in place': lambda x: x.__iadd__(np.ones(3, np.float32)),
    'device array in place of a host array': lambda x: np.ones(3, np.float32).__iadd__(x),
    'host array among arguments': lambda x: cupy.maximum(x, np.ones(3, np.float32)),
    'host array assigned': lambda x: x.__setitem__(slice(None), np.ones(3, np.float32)),
    'assigned to a host array': lambda x: np.zeros(3, np.float32).__setitem__(slice(None), x),
    'host array among joined ones': lambda x: cupy.concatenate([x, np.ones(3, np.float32)]),
    'list': lambda x: cupy.maximum(x, [1, 2, 3]),
    'index of the host': lambda x: x[np.array([0, 1])],
}


@pytest.mark.parametrize('case', REFUSED)
def test_stand_in_refuses(case):
    with pytest.raises((TypeError, ValueError)):
        REFUSED[case](on_gpu([1, 2, 3]))


@pytest.mark.parametrize('name', ['errstate', 'ndindex', 'float128', 'testing'])
def test_stand_in_lacks_what_cupy_lacks_and_what_nothing_here_calls(name):
    with pytest.raises(AttributeError):
        getattr(cupy, name)


def test_stand_in_counts_launches_and_synchronisations():
    x = on_gpu([1, 2, 3])
    fake_cupy.reset()
    y = x[1:].reshape(2, 1).T
    assert fake_cupy.counts == {'launches': 0, 'uploads': 0, 'synchronisations': 0}
    y = y + 1
    y *= 2
    assert fake_cupy.counts == {'launches': 2, 'uploads': 0, 'synchronisations': 0}
    for wait in (lambda: bool((y > 0).all()), lambda: float(y.sum()), y.get, lambda: cupy.asnumpy(y),
                 lambda: y.max().item(), lambda: cupy.flatnonzero(y)):
        fake_cupy.reset()
        wait()
        assert fake_cupy.counts['synchronisations'] == 1


class GoldenOnGpu(check_golden.Golden):
    """The same episode with model and images on the device; gradients come back."""

    def __init__(self, path):
        super().__init__(path)
        self.model.to_device(device.use_device(0))
        for name in 'support_x', 'support_y', 'query_x', 'query_y':
            setattr(self, name, cupy.asarray(getattr(self, name)))

    def gradients(self, logits):
        return {name: cuda.to_cpu(grad) for name, grad in super().gradients(cupy.asarray(logits)).items()}


@pytest.mark.parametrize('name', ['full', 'partial', 'partial_u'])
def test_golden_episode(name, monkeypatch):
    error = check_golden.error
    monkeypatch.setattr(check_golden, 'error', lambda ours, *others: error(cuda.to_cpu(ours), *others))
    # Rounding decides what ties in a pooling: statistics are taken as the authors took them.
    monkeypatch.setattr(normalization._Implementation, 'get_mean_and_var', normalization._usual_statistics)
    golden = GoldenOnGpu(os.path.join(TESTS, 'golden', f'{name}_5way_1shot.npz'))
    errors = check_golden.compare(golden, from_our_logits=False)
    assert 'gradients' in errors and ('running averages' in errors) == (name != 'full')
    for kind, (worst, where) in errors.items():
        assert worst <= check_golden.TOLERANCE, (kind, where)


def trained(gpu, path=TRAINED):
    place = device.use_device(gpu)
    model = train_omniglot.load(path, [5])[0]
    model.to_device(place)
    optimizer = chainer.optimizers.Adam(1e-3).setup(model)
    return model, optimizer, EpisodeSampler(synthetic_strokes(5, 6), 5, 1, 5, xp=place.xp)


def learn(model, optimizer, sampler):
    loss = model.loss(sampler.sample())
    model.cleargrads()
    loss.backward()
    optimizer.update()


def parameters(model):
    return {name: cuda.to_cpu(param.array) for name, param in model.namedparams()}


@pytest.mark.parametrize('centred', [False, True])
def test_training_agrees_with_the_cpu(monkeypatch, centred):
    # Logits of 1,000 and more make much of rounding: m is the same network on both; `test_pieces` has its pieces.
    monkeypatch.setattr(meta_learners, '_PiecewiseMLP', meta_learners._MLP)
    monkeypatch.setattr(meta_learners._Coordinatewise, '_cut', lambda self: blocks_of(
        self.coordinates.shape[1], self.coordinates.shape[1], self.chunk))  # a GPU's one product rounds in its own way
    # Invented strokes are so regular that rounding decides what ties in a pooling.
    monkeypatch.setattr(tiled, 'suits', lambda *args: False)
    results = []
    for gpu in (-1, 0):
        model, optimizer, sampler = trained(gpu, CENTRED if centred else TRAINED)
        if centred:
            model.memory = CentredMemory
        loss = model.loss(sampler.sample())
        model.cleargrads()
        loss.backward()
        results.append({name: cuda.to_cpu(param.grad) for name, param in model.namedparams() if param.grad is not None})
        optimizer.update()
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        # Of a bias that centring takes off again, nothing is left but rounding: compare with the weights' gradient.
        size = max(abs(other).max() for key, other in results[0].items() if key.startswith(name.rpartition('/')[0]))
        np.testing.assert_allclose(results[1][name], gradient, rtol=1e-2, atol=1e-3 * size, err_msg=name)


def test_a_short_last_group_agrees_with_the_cpu(monkeypatch):
    """Of seven examples in groups of three, as 13-way sets have one in groups of two."""
    shapes = [(7, 2, 5, 4), (3, 4, 3, 3, 2), (4, 3, 3, 2)]
    random = np.random.RandomState(0)
    arrays = [random.randn(*shape).astype(np.float32) for shape in shapes]
    for relu, pool in ((True, True), (False, True), (True, False)):
        results = []
        for place in np, cupy:
            x, *weights = [chainer.Variable(place.asarray(array)) for array in arrays]
            y = convolution(x, weights, group=3, relu=relu, pool=pool)
            y.grad = place.asarray(np.random.RandomState(1).randn(*y.shape).astype(np.float32))
            y.backward()
            results.append([cuda.to_cpu(array) for array in (y.array, x.grad, *(weight.grad for weight in weights))])
        for ours, others in zip(*results):
            np.testing.assert_allclose(ours, others, rtol=1e-4, atol=1e-4)


def test_held_scales_agree_with_the_cpu_and_wait_for_nothing_more():
    gradients = []
    for gpu in (-1, 0):
        place = device.use_device(gpu)
        base = ScaledCNN(4, hidden_scale=1, fast_scale=12)
        model = MetaNet(base, CNN(4, activation=None), [5])
        model.initialize_uniform(0, scale=.3)
        model.to_device(place)
        episode = EpisodeSampler(synthetic_strokes(5, 6), 5, 1, 5, xp=place.xp).sample()
        fake_cupy.reset()
        loss = model.loss(episode)
        loss.backward()
        waits = fake_cupy.counts['synchronisations']
        gradients.append({name: cuda.to_cpu(param.grad) for name, param in model.namedparams()
                          if param.grad is not None})
    assert waits <= 6
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], gradient, rtol=1e-2, atol=1e-3 * abs(gradient).max() + 1e-6,
                                   err_msg=name)


def test_the_average_agrees_with_the_cpu():
    averages = []
    for gpu in (-1, 0):
        model = MetaNet(CNN(2), CNN(2, activation=None), [2])
        model.initialize_uniform(0)
        model.to_device(device.use_device(gpu))
        average = Average(model, .9)
        for param in model.params():
            param.array[...] = param.array + 1
        fake_cupy.reset()
        average(None)
        averages.append(parameters(average.model))
    assert fake_cupy.counts['launches'] == len(averages[0])
    for name, array in averages[0].items():
        np.testing.assert_allclose(averages[1][name], array, rtol=1e-6, err_msg=name)


def test_layers_that_come_later_live_where_the_model_does():
    model = MetaNet(CNN(2), CNN(2, activation=None), [2])
    model.to_device(device.use_device(0))
    model.add_ways([3])
    model.initialize_inserted(2, 0)
    model.embed = Views(model.embed, 'shifted, mirrored')
    episode = EpisodeSampler(synthetic_strokes(3, 2), 3, 1, 1, xp=cupy).sample()
    with chainer.no_backprop_mode(), chainer.using_config('train', False), Health(model) as found:
        assert model(*episode[:3]).shape == (3, 3)
    assert len(found['scores/spread']) == len(found['attention/peak']) == 1


def test_arrays_of_another_device_are_named():
    model = MetaNet(CNN(2), CNN(2, activation=None), [3])
    episode = EpisodeSampler(synthetic_strokes(3, 2), 3, 1, 1, xp=cupy).sample()
    with pytest.raises(ValueError, match='the model is on the CPU, but support_x on a GPU: make the sampler with xp='):
        model(*episode[:3])
    model.to_device(device.use_device(0))
    for i, name in enumerate(episode._fields):
        arrays = list(episode)
        arrays[i] = cuda.to_cpu(arrays[i])
        with pytest.raises(ValueError, match=f'the model is on a GPU, but {name} on the CPU'):
            model.loss(arrays)


def test_the_same_seed_draws_the_same_weights():
    model, other = (MetaNet(CNN(2), CNN(2, activation=None), [2]) for _ in range(2))
    model.to_device(device.use_device(0))
    for one in model, other:
        one.initialize_uniform(3)
    for (name, array), expected in zip(parameters(model).items(), parameters(other).values()):
        assert (array == expected).all(), name


@pytest.mark.parametrize('size', [1e-3, 1, 1e12, 1e25])
def test_attention_of_large_keys_agrees_with_the_cpu(size):
    random = np.random.RandomState(0)
    keys, queries = ((size * random.randn(n, 4)).astype(np.float32) for n in (3, 5))
    expected, found = (Memory(chainer.Variable(place.asarray(keys)), []).attention(chainer.Variable(
        place.asarray(queries))) for place in (np, cupy))
    assert found.dtype == np.float32
    np.testing.assert_allclose(cuda.to_cpu(found.array), expected.array, rtol=1e-5)
    assert expected.array.std() > 0.01 or size < 1


def test_batch_statistics_are_taken_in_two_steps(monkeypatch):
    means = []
    mean = cupy.ndarray.mean
    monkeypatch.setattr(cupy.ndarray, 'mean', lambda self, axis=None, **settings: (
        means.append(axis) or mean(self, axis, **settings)))
    x = np.random.RandomState(0).randn(4, 3, 5, 6).astype(np.float32)
    results = []
    for place in np, cupy:
        link = chainer.links.BatchNormalization(3)
        link.to_device(device.use_device(0 if place is cupy else -1))
        inputs = chainer.Variable(place.asarray(x))
        y = link(inputs)
        y.grad = place.asarray(x[::-1].copy())
        y.backward()
        results.append([cuda.to_cpu(array) for array in (y.array, link.avg_mean, link.avg_var, inputs.grad)])
    assert means == [(2, 3), 0, (2, 3), 0]
    for ours, others in zip(*results):
        np.testing.assert_allclose(ours, others, rtol=1e-5, atol=1e-6)


def test_training_resumes_to_the_last_bit(tmp_path):
    model, optimizer, sampler = trained(0)
    learn(model, optimizer, sampler)
    for name, part in ('model', model), ('optimizer', optimizer):
        chainer.serializers.save_npz(tmp_path / f'{name}.npz', part)
    state = sampler.get_state()
    learn(model, optimizer, sampler)
    other, other_optimizer, other_sampler = trained(0)
    for name, part in ('model', other), ('optimizer', other_optimizer):
        chainer.serializers.load_npz(tmp_path / f'{name}.npz', part)
    other_sampler.set_state(state)
    learn(other, other_optimizer, other_sampler)
    for (name, array), other_array in zip(parameters(model).items(), parameters(other).values()):
        assert (array == other_array).all(), name


@pytest.mark.parametrize('kind', ['partial', 'partial, u'])
def test_mini_imagenets_models_test_as_on_the_cpu(kind):
    losses = []
    for gpu in (-1, 0):
        place = device.use_device(gpu)
        settings = dict(vars(train_mini_imagenet), model=kind, channels=3, image_size=42)
        model = train_mini_imagenet.build(settings, [2])
        model.initialize_uniform(0)
        model.to_device(place)
        episode = EpisodeSampler(synthetic_textures(2, 2, 42), 2, 1, 1, xp=place.xp).sample()
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            losses.append(float(cuda.to_cpu(model.loss(episode).array)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize('training, launches, synchronisations', [(True, 850, 6), (False, 420, 5)])
def test_an_episode_stays_within_its_budget(training, launches, synchronisations):
    model, optimizer, sampler = trained(0)
    optimizer.add_hook(Clipping(10))
    update = EpisodeUpdater(model, optimizer, sampler, 100).update
    reporter = chainer.Reporter()
    reporter.add_observer('main', model)
    with reporter, chainer.using_config('train', training), chainer.using_config('enable_backprop', training):
        if training:
            update()  # makes the optimizer's state
        episode = sampler.sample()
        fake_cupy.reset()
        update() if training else model.loss(episode)
    assert fake_cupy.counts['launches'] <= launches
    assert fake_cupy.counts['synchronisations'] <= synchronisations
    assert fake_cupy.counts['launches'] > launches * .9, 'fewer than ever: lower the budget'


def fail(*args):
    raise RuntimeError('cudaErrorInsufficientDriver')


@pytest.mark.parametrize('gpu, name, message', [
    (1, None, 'GPUs here are numbered from 0 to 0'),
    (0, 'cuda.runtime.getDeviceCount', 'the driver is missing'),
    (0, 'zeros', 'perhaps another program holds it or its memory'),
    (0, 'ndarray.__add__', 'headers or its compiler'),
    (0, 'ndarray.dot', "CUDA's libraries are missing: pip install"),
])
def test_device_says_what_is_missing(monkeypatch, gpu, name, message):
    if name:
        *owner, attribute = name.split('.')
        place = cupy
        for part in owner:
            place = getattr(place, part)
        monkeypatch.setattr(place, attribute, fail)
    with pytest.raises(ValueError, match=message):
        device.use_device(gpu)


if __name__ == '__main__':
    sys.exit(pytest.main([__file__, '-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))
