"""The training loop and the script: settings, resuming, stopping, logs and the final test."""
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import beyond
import data
import train_omniglot
import training
from metanet import CNN, MetaNet
from ops.compat import F, chainer

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
CLASSES = data.synthetic_strokes(12, seed=1)


class StopAt(data.EpisodeSampler):
    """Presses Ctrl-C while its nth episode is being drawn."""

    def __init__(self, n, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.n = n

    def sample(self):
        self.n -= 1
        if self.n == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().sample()


def run(out, n_epoch, stop_at=-1, **changes):
    """Trains a small model on synthetic strokes; returns it."""
    settings = dict({'out': str(out), 'n_epoch': n_epoch, 'n_episodes': 3, 'n_episodes_per_update': 1, 'alpha': 1e-3,
                     'n_decay': 0, 'data': 'synthetic strokes'}, **changes)
    np.random.seed(0)
    model = MetaNet(CNN(4), CNN(4, activation=None), [3])
    optimizer = chainer.optimizers.Adam(settings['alpha']).setup(model)
    optimizer.add_hook(training.Clipping(10))
    average = beyond.Average(model, 0.9)
    sampler = StopAt(stop_at, CLASSES, 3, 1, 2, rotate=True, seed=0)
    tasks = [training.Tasks(model, {'test/3-way': data.EpisodeSampler(CLASSES, 3, 1, 2, seed=1)}, 2,
                            average=average.model, watch=beyond.LiveActivations)]
    tasks += training.decay(optimizer, settings)
    training.train(model, optimizer, sampler, tasks, settings, average)
    model.average = average.model  # not a child: for the tests to look at
    return model


def same(model, other):
    return all((a.array == b.array).all() for a, b in zip(model.params(), other.params())) and (
        not (hasattr(model, 'average') and hasattr(other, 'average')) or same(model.average, other.average))


def rows(out, timeless=True):
    with open(os.path.join(str(out), 'log.csv'), newline='') as file:
        return [{key: value for key, value in row.items() if not timeless or key not in ('seconds', 'elapsed_time')}
                for row in csv.DictReader(file)]


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
    """A run of three epochs without a stop: its folder and its model."""
    out = tmp_path_factory.mktemp('straight')
    return out, run(out, 3)


def test_log_says_all(straight):
    out, _ = straight
    log = rows(out, timeless=False)
    assert [row['epoch'] for row in log] == ['1', '2', '3']
    assert [row['iteration'] for row in log] == ['3', '6', '9']
    for row in log:
        assert float(row['main/loss']) > 0 and 0 <= float(row['main/accuracy']) <= 1
        for prefix in ('', 'average/'):
            assert float(row[prefix + 'test/3-way/loss']) > 0 and 0 <= float(row[prefix + 'test/3-way/accuracy']) <= 1
        assert float(row['gradient_norm']) > 0 and float(row['main/largest_logit']) > 0
        assert float(row['seconds']) > 0
        assert 0 <= float(row['alive/base/conv1']) <= 1 and 0 <= float(row['alive/base/fc1']) <= 1
        assert row['data'] == 'synthetic strokes'
    with open(out / 'learning_curve.png', 'rb') as file:
        assert file.read(4) == b'\x89PNG'
    assert [name for name in os.listdir(out) if name.startswith('snapshot')] == ['snapshot_9']


def test_an_epochs_row_is_the_mean_over_its_episodes(tmp_path, straight, monkeypatch):
    losses = []
    loss = MetaNet.loss

    def recorded(self, episode):
        value = loss(self, episode)
        if chainer.config.train:
            losses.append(float(value.array) / len(episode.query_y))
        return value

    monkeypatch.setattr(MetaNet, 'loss', recorded)
    run(tmp_path, 2)
    logged = [float(row['main/loss']) for row in rows(tmp_path)]
    np.testing.assert_allclose(logged, np.mean(np.reshape(losses, (2, 3)), 1), rtol=1e-5)


def test_more_epochs_go_on_bit_for_bit(tmp_path, straight):
    run(tmp_path, 1)
    assert same(run(tmp_path, 3), straight[1])
    assert rows(tmp_path) == rows(straight[0])


def test_ctrl_c_amid_an_epoch_loses_nothing(tmp_path, straight):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match='Stopped after 5 episodes'):
        run(tmp_path, 3, stop_at=5)
    assert 'snapshot_5' in os.listdir(tmp_path) and 'model.npz' not in os.listdir(tmp_path)
    assert same(run(tmp_path, 3), straight[1])
    assert rows(tmp_path) == rows(straight[0])
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_the_last_episode_stops_before_the_final_test(tmp_path, straight, capfd):
    with pytest.raises(SystemExit, match='Stopped after 9 episodes'):
        run(tmp_path, 3, stop_at=9)
    assert 'Stopping after the episodes at hand' in capfd.readouterr().err
    assert same(run(tmp_path, 3), straight[1])
    assert rows(tmp_path) == rows(straight[0])


def test_a_decaying_run_goes_on_bit_for_bit_and_has_a_fixed_length(tmp_path, straight):
    model = run(tmp_path / 'straight', 3, n_decay=2)
    with pytest.raises(SystemExit, match='Stopped after 5 episodes'):
        run(tmp_path / 'stopped', 3, stop_at=5, n_decay=2)
    assert same(run(tmp_path / 'stopped', 3, n_decay=2), model)
    assert not same(model, straight[1])
    with pytest.raises(SystemExit, match='n_epoch'):
        run(tmp_path / 'stopped', 4, n_decay=2)


@pytest.mark.filterwarnings('ignore:invalid value')
def test_a_run_that_diverges_ends_and_keeps_its_last_snapshot(tmp_path, straight, monkeypatch):
    run(tmp_path, 1)
    loss = MetaNet.loss
    with monkeypatch.context() as patch:
        patch.setattr(MetaNet, 'loss', lambda self, episode: loss(self, episode) * np.float32('inf'))
        with pytest.raises(SystemExit, match='no longer finite after episode 4'):
            run(tmp_path, 3)
    assert same(run(tmp_path, 3), straight[1])


@pytest.mark.filterwarnings('error')
def test_gradients_of_zero_are_clipped_without_a_warning():
    model = chainer.Chain()
    model.add_param('w', shape=2, initializer=chainer.initializers.One())
    model.loss = lambda episode: 0 * F.sum(model.w)
    optimizer = chainer.optimizers.SGD().setup(model)
    optimizer.add_hook(training.Clipping(10))
    with chainer.Reporter():
        training.EpisodeUpdater(model, optimizer, data.EpisodeSampler(CLASSES, 3, 1, 2), 1).update()
    assert (model.w.array == 1).all()


def clipped(hook):
    """Gradients of norms 5 and 26 after a hook, and the norm that it reports."""
    model = chainer.Chain()
    for name, gradient in ('v', [3., -4.]), ('w', [[10.], [24.]]):
        model.add_param(name, initializer=np.zeros_like(gradient, np.float32))
        model[name].grad = np.array(gradient, np.float32)
    optimizer = chainer.optimizers.SGD().setup(model)
    observation = {}
    with chainer.Reporter().scope(observation):
        hook(optimizer)
    return model.v.grad, model.w.grad, observation


def test_the_norm_of_all_gradients_is_clipped_as_chainer_does_and_reported():
    v, w, observation = clipped(training.Clipping(10))
    expected = clipped(chainer.optimizer_hooks.GradientClipping(10))
    assert (v == expected[0]).all() and (w == expected[1]).all() and abs(w).max() < 24
    assert float(observation['gradient_norm']) == pytest.approx((25 + 676) ** 0.5)
    assert clipped(training.Clipping(30))[0].tolist() == [3, -4]


def test_gradients_can_be_clipped_apart():
    v, w, _ = clipped(training.Clipping(13, apart=True))
    assert v.tolist() == [3, -4] and w.tolist() == [[5], [12]]


def test_the_average_forgets_at_its_rate_and_training_does_not_see_it():
    class Learning(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.w = chainer.Parameter(np.zeros(2, np.float32))
                self.bn = chainer.links.BatchNormalization(2)

    model = Learning()
    average = beyond.Average(model, 0.5)
    expected = 0
    for i, value in enumerate([4, 8, 6, -2, 0, 1, 1, 1, 1, 1, 1, 1]):
        model.w.array[...] = value
        model.bn.avg_mean[...] = value
        average(None)
        kept = min(0.5, (1 + i) / (10 + i))
        expected = kept * expected + (1 - kept) * value
        np.testing.assert_allclose(average.model.w.array, expected, rtol=1e-5)
        np.testing.assert_allclose(average.model.bn.avg_mean, expected, rtol=1e-5)
        assert (model.w.array == value).all()
    assert average.model.w.array.dtype == np.float32


def test_last_and_averaged_weights_are_saved_side_by_side(straight):
    out, model = straight
    with np.load(out / 'model.npz') as file:
        assert (file['base/fc1/W'] == model.base.fc1.W.array).all()
        assert (file['average/base/fc1/W'] == model.average.base.fc1.W.array).all()
        assert (file['base/fc1/W'] != file['average/base/fc1/W']).any()


def test_several_episodes_make_an_update_with_their_mean_gradient():
    def learn(episodes, n_averaged):
        np.random.seed(0)
        model = MetaNet(CNN(4), CNN(4, activation=None), [3])
        optimizer = chainer.optimizers.SGD(1).setup(model)
        episodes = iter(episodes)
        sampler = data.EpisodeSampler(CLASSES, 3, 1, 2)
        sampler.sample = lambda: next(episodes)
        updater = training.EpisodeUpdater(model, optimizer, sampler, 4, n_averaged)
        observation, reporter = {}, chainer.Reporter()
        reporter.add_observer('main', model)
        with reporter.scope(observation):
            updater.update()
        gradients = [param.grad for param in model.params() if param.grad is not None]
        return updater, float(observation['main/loss']), gradients

    sampler = data.EpisodeSampler(CLASSES, 3, 1, 2, seed=5)
    first, second = sampler.sample(), sampler.sample()
    _, loss_1, gradients_1 = learn([first], 1)
    _, loss_2, gradients_2 = learn([second], 1)
    updater, loss, gradients = learn([first, second], 2)
    assert loss == pytest.approx((loss_1 + loss_2) / 2, rel=1e-5)
    for both, a, b in zip(gradients, gradients_1, gradients_2):
        np.testing.assert_allclose(both, (a + b) / 2, atol=1e-5 * abs(both).max())
    assert (updater.iteration, updater.previous_epoch_detail, updater.is_new_epoch) == (2, 0, False)


def test_averaged_runs_log_and_decay_by_episodes(tmp_path):
    run(tmp_path, 2, n_episodes=4, n_episodes_per_update=2, n_decay=2)
    assert [row['iteration'] for row in rows(tmp_path)] == ['4', '8']
    optimizer = chainer.optimizers.Adam(1e-3)
    (shift,) = training.decay(optimizer, {'n_epoch': 4, 'n_episodes': 6, 'n_episodes_per_update': 3, 'n_decay': 1})
    rates = []
    for _ in range(8):  # updates
        shift(None)
        rates.append(optimizer.alpha)
    np.testing.assert_allclose(rates, [1e-3] * 6 + [5e-4, 0], atol=1e-12)


def test_decay_ends_at_zero():
    optimizer = chainer.optimizers.Adam(1e-3)
    (shift,) = training.decay(optimizer, {'n_epoch': 4, 'n_episodes': 5, 'n_decay': 2, 'n_episodes_per_update': 1})
    rates = []
    for _ in range(20):
        shift(None)
        rates.append(optimizer.alpha)
    np.testing.assert_allclose(rates, [1e-3] * 10 + [1e-3 * (10 - i) / 10 for i in range(1, 11)], atol=1e-12)


def test_a_finished_run_is_loaded_not_trained(tmp_path, straight):
    run(tmp_path, 1)
    before = os.stat(tmp_path / 'log.csv').st_mtime_ns
    model = run(tmp_path, 1, stop_at=1)
    assert os.stat(tmp_path / 'log.csv').st_mtime_ns == before
    saved = MetaNet(CNN(4), CNN(4, activation=None), [3])
    chainer.serializers.load_npz(str(tmp_path / 'model.npz'), saved)
    assert same(model, saved)


def test_a_run_is_not_taken_for_a_shorter_one(tmp_path):
    run(tmp_path, 2)
    before = (tmp_path / 'model.npz').read_bytes()
    with pytest.raises(SystemExit, match='has trained for 2 epochs, more than n_epoch = 1'):
        run(tmp_path, 1)
    assert (tmp_path / 'model.npz').read_bytes() == before


def test_a_run_stopped_amid_an_epoch_is_not_taken_for_one_that_ended_before_it(tmp_path):
    with pytest.raises(SystemExit, match='Stopped after 5 episodes'):
        run(tmp_path, 3, stop_at=5)
    with pytest.raises(SystemExit, match='more than n_epoch = 1'):
        run(tmp_path, 1)
    assert 'model.npz' not in os.listdir(tmp_path)


def test_a_run_that_goes_on_says_so(tmp_path, capsys):
    run(tmp_path, 1)
    assert 'going on' not in capsys.readouterr().out
    run(tmp_path, 2)
    assert 'going on after 3 episodes, from the snapshot in %s' % tmp_path in capsys.readouterr().out


@pytest.mark.parametrize('name, remedy', [
    ('snapshot_3', 'the snapshot in'), ('settings.json', 'settings.json is damaged')])
def test_a_damaged_run_is_refused_and_left_alone(tmp_path, name, remedy):
    run(tmp_path, 1)
    (tmp_path / name).write_bytes(b'x')
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SystemExit, match='%s.*another folder' % remedy):
        run(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_with_another_run_is_refused(tmp_path):
    run(tmp_path, 1)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SystemExit, match=r'other settings: alpha \(0.001 there, 0.01 now\)'):
        run(tmp_path, 1, alpha=0.01)
    assert sorted(os.listdir(tmp_path)) == before


def test_the_best_model_on_dev_tasks_is_kept_and_tested(tmp_path, monkeypatch):
    model = MetaNet(CNN(4), CNN(4, activation=None), [3])
    optimizer = chainer.optimizers.Adam().setup(model)
    dev, tests = (data.EpisodeSampler(CLASSES, 3, 1, 2, seed=i) for i in (1, 2))
    accuracies = iter([0.5, 0.4, 0.6])  # of the dev tasks after each epoch, as if
    real = training.test
    tested = []

    def fake(model, sampler, n, progress=None):
        if sampler is dev:
            return np.array([[1.0, next(accuracies)]] * n)
        tested.append(real(model, sampler, n))
        return tested[-1]

    monkeypatch.setattr(training, 'test', fake)
    settings = {'out': str(tmp_path), 'n_epoch': 3, 'n_episodes': 2, 'n_episodes_per_update': 1, 'data': 'strokes'}
    best = training.Best(model, 'last', settings, str(tmp_path / 'best.npz'), 'dev/3-way/accuracy', 'test/3-way', tests, 4)
    tasks = [training.Tasks(model, {'dev/3-way': dev}, 2, same=True), best]
    training.train(model, optimizer, data.EpisodeSampler(CLASSES, 3, 1, 2), tasks, settings)
    assert len(tested) == 2
    np.testing.assert_allclose(best.test_result, [6, 60, *training.interval(100 * tested[-1][:, 1])], rtol=1e-6)
    assert [row['test/3-way/accuracy'] != '' for row in rows(tmp_path)] == [True, False, True]
    saved = MetaNet(CNN(4), CNN(4, activation=None), [3])
    chainer.serializers.load_npz(str(tmp_path / 'best.npz'), saved)
    assert same(saved, model)


def test_dev_tasks_can_be_the_same_each_epoch():
    model = MetaNet(CNN(4), CNN(4, activation=None), [3])
    sampler = data.EpisodeSampler(CLASSES, 3, 1, 2)
    seen = []
    for same_tasks in (True, False):
        tasks = training.Tasks(model, {'dev/3-way': sampler}, 3, same=same_tasks)
        for _ in range(2):
            observation = {}
            with chainer.Reporter().scope(observation):
                tasks(None)
            seen.append(observation['dev/3-way/loss'])
    assert seen[0] == seen[1] != seen[3]


def test_pixel_accuracy_is_the_nearest_neighbours():
    flat = {name: np.full((3, 2, 2), 80 * i, np.uint8) for i, name in enumerate('abc')}
    assert (training.pixel_accuracy(data.EpisodeSampler(flat, 3, 1, 2), 5) == 1).all()


def test_testing_neither_learns_nor_touches_the_training_log():
    model = MetaNet(CNN(4), CNN(4, activation=None), [3])
    before = [param.array.copy() for param in model.params()]
    sampler = data.EpisodeSampler(CLASSES, 3, 1, 2, seed=1)
    results = training.test(model, sampler, 4)
    assert results.shape == (4, 2) and (results[:, 1] * 6 % 1 < 1e-6).all()
    assert all((param.array == array).all() for param, array in zip(model.params(), before))


def test_interval_covers_the_mean():
    random = np.random.RandomState(0)
    hits = []
    for _ in range(500):
        mean, half = training.interval(random.rand(100))
        hits.append(abs(mean - 0.5) < half)
    assert 0.92 < np.mean(hits) < 0.98


def test_final_test_writes_what_it_prints(tmp_path, capsys):
    model = MetaNet(CNN(4), CNN(4, activation=None), [3])
    samplers = {3: data.EpisodeSampler(CLASSES, 3, 1, 2)}
    results = training.final_test(model, samplers, 5, 'MetaNet on synthetic', {3: 99.0})
    training.write_results(str(tmp_path), 30, results)
    line = capsys.readouterr().out
    with open(tmp_path / 'final_test.csv', newline='') as file:
        (row,) = csv.DictReader(file)
    expected = {'trained': '30', 'way': '3', 'shot': '1', 'episodes': '5', 'paper': '99.0'}
    assert {name: row[name] for name in expected} == expected
    assert 'MetaNet on synthetic, 3-way 1-shot: %.2f +- %.2f %% on 5 test episodes; nearest neighbour' % (
        float(row['accuracy']), float(row['interval'])) in line


def test_another_test_keeps_the_results_of_earlier_ones(tmp_path):
    row = {'way': 5, 'episodes': 100, 'accuracy': 98.1, 'paper': None}
    for n_trained, episodes in ((10, 100), (10, 20), (10, 100), (30, 100)):
        training.write_results(str(tmp_path), n_trained, [dict(row, episodes=episodes)])
    with open(tmp_path / 'final_test.csv', newline='') as file:
        kept = [(row['trained'], row['episodes'], row['accuracy'], row['paper']) for row in csv.DictReader(file)]
    assert kept == [('10', '20', '98.1', ''), ('10', '100', '98.1', ''), ('30', '100', '98.1', '')]


SCRIPT = '''"""A script.

More about it.
"""
whole = 3  # a whole number
several = (5, 10)  # numbers
real = 0.5  # a number
word = 'x'  # a word
flag = False  # yes or no
CONSTANT = 4  # none of the settings
import sys
sys.path.insert(0, %r)
import training
settings, given = training.configure(globals(), several=['several'])
print(settings == {name: globals()[name] for name in ('whole', 'several', 'real', 'word', 'flag')})
print((whole, several, real, word, flag), *sorted(given))
''' % ROOT


@pytest.mark.parametrize('words, expected', [
    ([], "(3, (5, 10), 0.5, 'x', False)"),
    (['--whole', '4', '--several', '7', '--real', '1', '--word', '1', '--flag', 'True'],
     "(4, 7, 1.0, '1', True) flag real several whole word"),
    (['--several', '5,20'], "(3, (5, 20), 0.5, 'x', False) several"),
    (['--whole', '5,20'], "argument --whole: invalid whole number value: '5,20'"),
    (['--whole', '10k'], "argument --whole: invalid whole number value: '10k'"),
    (['--CONSTANT', '5'], 'unrecognized arguments: --CONSTANT 5'),
    (['--whole', '1.5'], "argument --whole: invalid whole number value: '1.5'"),
    (['--flag', '1'], "argument --flag: invalid True or False value: '1'"),
    (['--whol', '4'], 'unrecognized arguments: --whol 4'),
])
def test_configure(tmp_path, words, expected):
    (tmp_path / 'script.py').write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(tmp_path / 'script.py')] + words, capture_output=True, text=True)
    if not expected.startswith('('):
        assert done.returncode == 2 and expected in done.stderr
        assert all('--' + name in done.stderr for name in ('whole', 'several', 'real', 'word', 'flag'))
    else:
        assert done.stdout == 'True\n%s\n' % expected


@pytest.mark.parametrize('value', [None, 2.5, (5, 10), 0])
def test_an_edited_constant_of_a_wrong_kind_is_refused(value):
    with pytest.raises(ValueError, match='n_queries = .*: must be a whole number, at least 1'):
        training.at_least(1, {'n_queries': value} if value is not None else {}, 'n_queries')
    training.at_least(0., {'clip': 2.5}, 'clip')


def offline():
    """An environment without Omniglot, whose downloads go to a port where nobody listens."""
    environment = {name: value for name, value in os.environ.items() if name != 'OMNIGLOT_DIR'}
    return dict(environment, http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9')


def script(tmp_path, *words, name='train_omniglot.py'):
    return subprocess.run([sys.executable, os.path.join(ROOT, name), '--input_path', str(tmp_path / 'data')]
                          + list(words), capture_output=True, text=True, cwd=str(tmp_path), env=offline())


def test_script_runs_anywhere_and_says_that_it_is_not_omniglot(tmp_path):
    done = script(tmp_path, '--n_epoch', '1', '--n_episodes', '2', '--n_test_episodes', '2', '--n_final_episodes', '3',
                  '--n_filters', '4', '--n_outputs_test', '5,8', '--out', 'here')
    assert done.returncode == 0, done.stderr
    assert 'NOT OMNIGLOT' in done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all('synthetic' in line for line in lines)
    assert 'the paper has no such number' in lines[1] and '8-way 1-shot' in lines[2]
    assert '(last iterate)' in lines[2] and '(averaged weights)' in lines[3] and '5-way 1-shot' in lines[3]
    pixels = [line.partition(';')[2] for line in lines[1:]]
    assert pixels[:2] == pixels[2:]  # both on the same episodes
    with open(tmp_path / 'here' / 'settings.json') as file:
        settings = json.load(file)
    assert settings['data'] == 'synthetic strokes' and settings['n_filters'] == 4


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder in which train_omniglot.py has made `here/model.npz`, and what it printed."""
    folder = tmp_path_factory.mktemp('trained')
    done = script(folder, '--n_epoch', '1', '--n_episodes', '1', '--n_test_episodes', '1', '--n_final_episodes', '3',
                  '--n_filters', '4', '--n_outputs_test', '5,8', '--out', 'here')
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_evaluate_repeats_the_final_test(trained):
    folder, printed = trained
    before = sorted(os.listdir(folder / 'here'))
    # The file knows the model: its number of filters need not be given again.
    done = script(folder, '--evaluate', 'here/model.npz', '--n_outputs_test', '5,8,7', '--n_final_episodes', '3')
    assert done.returncode == 0, done.stderr
    last, average = done.stdout.splitlines()[:3], done.stdout.splitlines()[3:]
    assert last[:2] + average[:2] == printed.splitlines()[-4:]
    assert '7-way 1-shot' in last[2] and '7-way 1-shot' in average[2]
    assert sorted(os.listdir(folder / 'here')) == before


def test_evaluate_refuses_what_the_model_was_not_trained_with(trained):
    done = script(trained[0], '--evaluate', 'here/model.npz', '--n_filters', '4', '--split', 'standard')
    assert done.returncode == 1
    assert "split = 'standard', but the model to evaluate was trained with 'previous'" in done.stderr


def test_results_name_what_was_trained_and_tested_on():
    settings = {'split': 'previous', 'variant': 'MetaNet-', 'n_outputs_train': 5, 'data': 'Omniglot', 'centred': 'fc'}
    assert train_omniglot.label(settings, 'Omniglot') == (
        'MetaNet- (centred: fc) trained 5-way, on Omniglot, previous split')
    settings.update(nb_samples_per_class=3, rotations='classes', n_episodes_per_update=4)
    assert train_omniglot.label(settings, 'Omniglot').startswith(
        'MetaNet- (centred: fc, 3-shot, rotations: classes, 4 episodes an update) trained')
    settings.update(centred='', nb_samples_per_class=1, rotations='episode', n_episodes_per_update=1)
    settings['data'] = 'synthetic strokes'
    assert train_omniglot.label(settings, 'Omniglot') == (
        'MetaNet- trained 5-way, on synthetic strokes, tested on Omniglot')
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot') == {}


def test_inserted_softmax_layers_are_the_same_each_time(trained):
    path = str(trained[0] / 'here' / 'model.npz')
    model, settings = train_omniglot.load(path, [9])
    last, its_settings = train_omniglot.load(path, [9], weights='last')
    assert (settings['weights'], its_settings['weights']) == ('average', 'last')
    assert not same(model, last) and (model.base.softmax9.W.array == last.base.softmax9.W.array).all()
    again, _ = train_omniglot.load(path, [9])
    assert settings['n_filters'] == 4 and same(model, again)
    assert not {'input_path', 'out', 'gpu'} & set(settings)  # a model is handed on without its maker's paths
    assert 0.09 < abs(model.base.softmax9.W.array).max() < 0.1
    quieter, _ = train_omniglot.load(path, [9], inserted_scale=0.001)
    np.testing.assert_allclose(quieter.base.softmax9.W.array, 0.01 * model.base.softmax9.W.array, rtol=1e-5)
    assert (quieter.base.fc1.W.array == model.base.fc1.W.array).all()
    among_others, _ = train_omniglot.load(path, [5, 8, 9])
    assert (among_others.base.softmax9.W.array == model.base.softmax9.W.array).all()
    # The file has a softmax layer for 8 classes, too, but training hasn't seen it.
    quieter, _ = train_omniglot.load(path, [8], inserted_scale=0.001)
    assert abs(quieter.base.softmax8.W.array).max() < 0.001


def save_npy(path):
    with open(path, 'wb') as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize('damage, message', [
    (lambda path: path.write_bytes(b'no npz'), 'is not a model that this script, as it is now, has trained'),
    (save_npy, 'is not a model that this script, as it is now, has trained'),
    (lambda path: np.savez(path, a=1), "'settings is not a file in the archive'"),
    (lambda path: np.savez(path, settings='{"seed": 0}'), "('n_filters')"),
    (lambda path: path.unlink(missing_ok=True), 'No such file'),
])
def test_evaluate_refuses_what_is_no_model(tmp_path, damage, message):
    damage(tmp_path / 'model.npz')
    done = script(tmp_path, '--evaluate', 'model.npz')
    assert done.returncode == 1 and message in done.stderr and 'Traceback' not in done.stderr


def test_a_model_that_lacks_a_part_is_refused(trained, tmp_path):
    with np.load(trained[0] / 'here' / 'model.npz') as file:
        np.savez(tmp_path / 'model.npz', **{name: file[name] for name in file if name != 'average/m_fc/l2/b'})
    with pytest.raises(ValueError, match='it lacks m_fc/l2/b'):
        train_omniglot.load(str(tmp_path / 'model.npz'), [5])


def test_a_model_is_refused_by_a_network_that_lacks_a_part(trained, monkeypatch):
    class Convolutions(CNN):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            del self.fc1

    monkeypatch.setattr(train_omniglot, 'CNN', Convolutions)
    with pytest.raises(ValueError, match='the model lacks its base/fc1/W, embed/fc1/W'):
        train_omniglot.load(str(trained[0] / 'here' / 'model.npz'), [5])


def test_each_number_of_the_paper_is_for_its_own_setting():
    settings = {'split': 'previous', 'variant': 'MetaNet', 'n_outputs_train': 5, 'nb_samples_per_class': 1,
                'data': 'Omniglot'}
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot') == {5: 98.95, 10: 96.4, 15: 93.6, 20: 93.07}
    settings['n_outputs_train'] = 20
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot')[5] == 99.55
    settings['split'] = 'standard'
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot') == {20: 95.92}
    assert train_omniglot.paper_accuracies(settings, 5, 'Omniglot') == {}
    assert train_omniglot.paper_accuracies(settings, 1, 'synthetic strokes') == {}
    settings['nb_samples_per_class'] = 5
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot') == {}


def test_a_terminal_has_a_progress_bar(tmp_path):
    pty = pytest.importorskip('pty')
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, 'train_omniglot.py'), '--input_path', str(tmp_path / 'none'),
         '--n_epoch', '1', '--n_episodes', '2', '--n_test_episodes', '1', '--n_final_episodes', '2', '--n_filters', '4',
         '--out', str(tmp_path / 'out')], stdin=end, stdout=end, stderr=end, env=offline())
    os.close(end)
    shown = bytearray()
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while True:
            part = os.read(terminal, 1024)
            if not part:
                break
            shown.extend(part)
    os.close(terminal)
    assert process.wait() == 0
    text = shown.decode()
    assert 'this epoch [' in text and 'epoch 1 (2 episodes)' in text and '5-way 1-shot' in text


@pytest.mark.parametrize('initialisation', ['uniform', 'chainer'])
def test_the_seed_decides_all(tmp_path, initialisation):
    logs = []
    for i, seed in enumerate('112'):
        done = script(tmp_path, '--n_epoch', '1', '--n_episodes', '1', '--n_test_episodes', '1',
                      '--n_final_episodes', '2', '--n_filters', '4', '--initialisation', initialisation,
                      '--seed', seed, '--out', 'run%d' % i)
        assert done.returncode == 0, done.stderr
        logs.append(rows(tmp_path / ('run%d' % i)))
    assert logs[0] == logs[1] != logs[2]


@pytest.mark.parametrize('words, message', [
    (['--centred', 'softmax'], "centred = 'softmax': choose among '', 'fc', 'conv', 'conv, fc'"),
    (['--variant', 'MetaNet+'], "variant = 'MetaNet+': choose among 'MetaNet', 'MetaNet-'"),
    (['--initialisation', 'zero'], "initialisation = 'zero': choose among 'uniform', 'chainer'"),
    (['--split', 'mine'], "unknown split 'mine'"),
    (['--n_outputs_test', '5,1'], 'n_outputs_test = (5, 1): give a whole number, at least 2, or several'),
    (['--clip', '0'], 'clip = 0.0: must be a number above 0'),
    (['--input_path', ''], "input_path = '': give the path of a folder"),
    (['--nb_samples_per_class', '15'], 'shot + n_query = 25'),
    (['--rotations', 'none'], "rotations = 'none': choose among 'episode', 'classes'"),
    (['--clipping', 'each'], "clipping = 'each': choose among 'together', 'apart'"),
    (['--average_decay', '1'], 'average_decay = 1.0: must be a number from 0, and below 1'),
    (['--n_episodes_per_update', '3'], 'n_episodes = 100 is not a multiple of n_episodes_per_update = 3'),
    (['--n_epoch', '0'], 'n_epoch = 0: must be a whole number, at least 1'),
    (['--n_outputs_train', '1'], 'n_outputs_train = 1: must be a whole number, at least 2'),
    (['--n_decay', '-3'], 'n_decay = -3: must be a whole number, at least 0'),
    (['--n_final_episodes', '1'], 'n_final_episodes = 1: must be a whole number, at least 2'),
    (['--inserted_scale', '-1'], 'inserted_scale = -1.0: must be a number, at least 0'),
    (['--gpu', '99'], 'gpu = 99 cannot be used'),
])
def test_bad_settings_are_refused_before_any_work(tmp_path, words, message):
    done = script(tmp_path, '--out', 'here', *words)
    assert done.returncode == 1 and message in done.stderr
    assert not os.path.exists(tmp_path / 'here') and 'Traceback' not in done.stderr


SHORT = ['--n_epoch', '1', '--n_episodes', '1', '--n_dev_episodes', '2', '--n_test_episodes', '2', '--n_filters', '4',
         '--n_queries', '2', '--out', 'here']
NO_IMAGES = ['--input_path', 'data/miniImagenet']  # the default: textures take their place


@pytest.mark.parametrize('model, centred, name', [('partial', '', 'partial'),
                                                  ('partial, u', 'fc', 'partial, u, centred: fc')])
def test_mini_imagenet_script_runs_anywhere(tmp_path, model, centred, name):
    done = script(tmp_path, *SHORT, *NO_IMAGES, '--model', model, '--centred', centred, '--n_outputs_train', '6',
                  name='train_mini_imagenet.py')
    assert done.returncode == 0, done.stderr
    assert 'NOT MINI-IMAGENET' in done.stderr
    lines = done.stdout.splitlines()
    assert 'synthetic' in lines[0]
    assert {'best.npz', 'best_average.npz', 'model.npz', 'log.csv', 'final_test.csv'} <= set(
        os.listdir(tmp_path / 'here'))
    for weights, best, line in ('last iterate', 'best', lines[-3]), ('averaged weights', 'best_average', lines[-1]):
        words = 'MetaNet (%s) trained 6-way, on synthetic textures, 5-way 1-shot' % name.replace(
            model, model + ', ' + weights)
        assert words in line
        # The only epoch's model is the best: its test is repeated.
        again = script(tmp_path, '--evaluate', 'here/%s.npz' % best, '--n_test_episodes', '2', '--n_queries', '2',
                       *NO_IMAGES, name='train_mini_imagenet.py')
        assert again.returncode == 0, again.stderr
        assert again.stdout.splitlines() == [line]


def test_mini_imagenet_script_trains_on_files(tmp_path):
    os.mkdir(tmp_path / 'data')
    textures = data.synthetic_textures(15, 8, size=32)
    for i, part in enumerate(('train', 'dev', 'test')):
        data.save_classes(str(tmp_path / 'data' / (part + '.npz')), dict(list(textures.items())[5 * i:5 * i + 5]))
    done = script(tmp_path, *SHORT, name='train_mini_imagenet.py')
    assert done.returncode == 0, done.stderr
    assert 'MetaNet (partial, averaged weights) trained 5-way, on own data (data)' in done.stdout and not done.stderr.strip()
    done = script(tmp_path, '--evaluate', 'here/best.npz', *NO_IMAGES, name='train_mini_imagenet.py')
    assert done.returncode == 1 and 'trained on images of size 32' in done.stderr


def test_mini_imagenet_script_does_not_replace_a_folder_that_was_named(tmp_path):
    done = script(tmp_path, *SHORT, name='train_mini_imagenet.py')
    assert done.returncode == 1 and 'train.npz' in done.stderr and 'missing' in done.stderr
    assert not os.path.exists(tmp_path / 'here')


def test_mini_imagenet_script_refuses_too_few_images(tmp_path):
    os.mkdir(tmp_path / 'data')
    for part in ('train', 'dev', 'test'):
        classes = data.synthetic_textures(5, 8, size=32, seed=ord(part[0]))
        data.save_classes(str(tmp_path / 'data' / (part + '.npz')), classes)
    done = script(tmp_path, '--out', 'here', name='train_mini_imagenet.py')
    assert done.returncode == 1 and 'is in both' in done.stderr
