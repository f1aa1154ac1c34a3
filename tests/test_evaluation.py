"""Tests of a model: on episodes, after every epoch, and the final one with its file of results."""
import csv
import functools
import os

import numpy as np
import pytest
from small_runs import Classifier, rows, same, sampler

import beyond
import data
from experiment import evaluation, results
from experiment.checkpoints import Snapshot
from experiment.evaluation import Best, Tasks, interval, pixel_accuracy
from experiment.evaluation import test as run_test
from experiment.log import Log, Report
from experiment.loop import EpisodeUpdater, Epochs, train
from experiment.results import final_test, write_results
from ops.compat import chainer, training


def test_the_best_model_on_dev_tasks_is_kept_and_tested(tmp_path, monkeypatch, capsys):
    model = Classifier()
    optimizer = chainer.optimizers.Adam().setup(model)
    dev, tests = sampler(1), sampler(2)
    accuracies = iter([0.5, 0.4, 0.6])  # of the dev tasks after each epoch, as if
    tested, starts = [], []

    def fake(model, sampler, n, progress=None):
        if sampler is dev:
            return np.array([[1.0, next(accuracies)]] * n)
        starts.append(sampler.get_state())
        assert (tmp_path / 'best.npz').exists() == (len(starts) == 2)  # until the test is done the last best stays
        tested.append(run_test(model, sampler, n))
        return tested[-1]

    monkeypatch.setattr(evaluation, 'test', fake)
    best = Best(model, 'last', {'data': 'strokes'}, str(tmp_path / 'best.npz'), 'dev/3-way/accuracy', 'test/3-way',
                tests, 4)
    trainer = training.Trainer(EpisodeUpdater(model, optimizer, sampler(), 2), Epochs(3), str(tmp_path))
    log = Log('strokes')
    for extension in Tasks(model, {'dev/3-way': dev}, 2, same=True), best, log, Snapshot(), Report(log):
        trainer.extend(extension)
    train(trainer)
    assert len(tested) == 2 and (starts[0] == starts[1]).all()
    np.testing.assert_allclose(best.test_result, [6, 60, *interval(100 * tested[-1][:, 1])], rtol=1e-6)
    assert [row['test/3-way/accuracy'] != '' for row in rows(tmp_path)] == [True, False, True]
    saved = Classifier()
    chainer.serializers.load_npz(str(tmp_path / 'best.npz'), saved)
    assert same(saved, model)
    capsys.readouterr()
    best.initialize(trainer)
    assert capsys.readouterr().err == ''
    best.test_result[0] = 4
    best.initialize(trainer)
    assert 'best.npz is of 6 training episodes, but the best model so far is that of 4: put' in capsys.readouterr().err
    os.truncate(tmp_path / 'best.npz', 50)
    best.initialize(trainer)
    error = capsys.readouterr().err
    assert 'best.npz cannot be read (' in error and 'the best model so far: put it back' in error


def test_dev_tasks_can_be_the_same_each_epoch():
    model = Classifier()
    source = sampler()
    seen = []
    for same_tasks in (True, False):
        tasks = Tasks(model, {'dev/3-way': source}, 3, same=same_tasks)
        for _ in range(2):
            observation = {}
            with chainer.Reporter().scope(observation):
                tasks(None)
            seen.append(observation['dev/3-way/loss'])
    assert seen[0] == seen[1] != seen[3]


@pytest.mark.parametrize('n_episodes', [3, 13])
def test_all_episodes_of_an_epoch_count_and_the_average_has_the_same(n_episodes):
    model, observation = Classifier(), {}
    with chainer.Reporter().scope(observation):
        Tasks(model, {'test/3-way': sampler()}, n_episodes, average=model)(None)
    loss, accuracy = run_test(model, sampler(), n_episodes).mean(axis=0)
    for name in 'test/3-way', 'average/test/3-way':
        np.testing.assert_allclose([observation[f'{name}/loss'], observation[f'{name}/accuracy']], [loss, accuracy])


def test_pixel_accuracy_is_the_nearest_neighbours():
    noise = data.EpisodeSampler({name: np.random.RandomState(i).randint(256, size=(9, 3, 3)).astype(np.uint8)
                                 for i, name in enumerate('abc')}, 3, 2, 5)
    start, expected = noise.get_state(), []
    for _ in range(5):
        support_x, support_y, query_x, query_y = noise.sample()
        distances = ((query_x[:, None] - support_x) ** 2).sum(axis=(2, 3, 4))
        expected.append(np.mean(support_y[distances.argmin(axis=1)] == query_y))
    noise.set_state(start)
    np.testing.assert_allclose(pixel_accuracy(noise, 5), expected)
    assert len(set(expected)) > 1


def test_testing_neither_learns_nor_touches_the_training_log():
    model = Classifier()
    before = [param.array.copy() for param in model.params()] + [model.bn.avg_mean.copy()]
    observation = {}
    with chainer.Reporter().scope(observation):
        results = run_test(model, sampler(1), 4)
    assert results.shape == (4, 2) and (results[:, 1] * 3 % 1 < 1e-6).all() and not observation
    after = [param.array for param in model.params()] + [model.bn.avg_mean]
    assert all((a == b).all() for a, b in zip(after, before))


def test_interval_is_that_of_the_normal_approximation():
    assert interval(np.array([1., 2., 4.])) == pytest.approx((7 / 3, 1.96 * np.sqrt(7 / 9)))


def test_interval_covers_the_mean():
    random = np.random.RandomState(0)
    hits = []
    for _ in range(500):
        mean, half = interval(random.rand(100))
        hits.append(abs(mean - 0.5) < half)
    assert 0.92 < np.mean(hits) < 0.98


def kept(tmp_path, name='final_test.csv'):
    with open(tmp_path / name, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def test_final_test_writes_what_it_prints(tmp_path, capsys):
    final_test(Classifier(), {3: sampler()}, 5, 'MetaNet on synthetic', {3: 99.0},
               functools.partial(write_results, str(tmp_path), 30))
    line = capsys.readouterr().out
    (row,) = kept(tmp_path)
    expected = {'trained': '30', 'way': '3', 'shot': '1', 'episodes': '5', 'paper': '99.0'}
    assert {name: row[name] for name in expected} == expected
    assert 'MetaNet on synthetic, 3-way 1-shot: {:.2f} +- {:.2f} % on 5 test episodes; nearest neighbour'.format(
        float(row['accuracy']), float(row['interval'])) in line


def test_pixels_are_compared_once_for_all_models_on_the_same_episodes(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(results, 'pixel_accuracy',
                        lambda sampler, n: calls.append(n) or pixel_accuracy(sampler, n))
    samplers = {3: sampler()}
    for label in 'one', 'two':
        final_test(Classifier(), samplers, 5, label, {})
    final_test(Classifier(), samplers, 4, 'fewer', {})
    samplers[3].skip(1)
    final_test(Classifier(), samplers, 4, 'others', {})
    assert calls == [5, 4, 4]
    pixels = [line.split('pixels ')[1] for line in capsys.readouterr().out.splitlines()]
    assert pixels[0] == pixels[1] and len(set(pixels)) == 3


def test_another_test_keeps_the_results_of_earlier_ones(tmp_path):
    row = {'way': 5, 'episodes': 100, 'accuracy': 98.1, 'paper': None}
    for n_trained, episodes in ((10, 100), (10, 20), (10, 100), (30, 100)):
        write_results(str(tmp_path), n_trained, dict(row, episodes=episodes))
    found = [(row['trained'], row['episodes'], row['accuracy'], row['paper']) for row in kept(tmp_path)]
    assert found == [('10', '20', '98.1', ''), ('10', '100', '98.1', ''), ('30', '100', '98.1', '')]


ROW = {'model': 'MetaNet', 'way': 5, 'episodes': 100, 'accuracy': 98.1, 'paper': None}


@pytest.mark.parametrize('content', [b'\xff\xfet\x00r\x00', b'trained,b\n1,2,3\n', b'\x00\x00', b'my notes',
                                     b'trained\n' + b'9' * 200000])
def test_results_that_cannot_be_read_stay_and_the_new_ones_go_elsewhere(tmp_path, capsys, content):
    (tmp_path / 'final_test.csv').write_bytes(content)
    for n_trained in 10, 20:
        write_results(str(tmp_path), n_trained, ROW)
    assert (tmp_path / 'final_test.csv').read_bytes() == content
    assert [row['trained'] for row in kept(tmp_path, 'final_test_2.csv')] == ['10', '20']
    assert 'final_test.csv (' in capsys.readouterr().err


def test_results_that_cannot_be_written_are_printed(tmp_path, capsys):
    for name in 'final_test.csv', 'final_test_2.csv', 'final_test_3.csv':
        os.mkdir(tmp_path / name)
    write_results(str(tmp_path), 10, ROW)
    assert 'the result is in no file, but here: trained 10, model MetaNet, way 5' in capsys.readouterr().err


def test_columns_of_others_stay(tmp_path):
    (tmp_path / 'final_test.csv').write_text('trained,note\n5,mine\n')
    write_results(str(tmp_path), 10, ROW)
    assert [(row['trained'], row['note'], row['way']) for row in kept(tmp_path)] == [('5', 'mine', ''), ('10', '', '5')]


def test_a_result_is_kept_before_it_is_printed(tmp_path, monkeypatch):
    def closed(text):
        raise SystemExit

    monkeypatch.setattr(results, 'say', closed)
    with pytest.raises(SystemExit):
        final_test(Classifier(), {3: sampler()}, 2, 'MetaNet', {}, functools.partial(write_results, str(tmp_path), 30))
    assert len(kept(tmp_path)) == 1


def test_the_average_is_tested_with_the_update_that_ends_the_epoch(tmp_path, monkeypatch):
    model = Classifier()
    optimizer = chainer.optimizers.Adam().setup(model)
    average = beyond.Average(model, 0.9)
    counts = []
    monkeypatch.setattr(evaluation, 'test', lambda *args: counts.append(average.n_updates) or np.zeros((1, 2)))
    trainer = training.Trainer(EpisodeUpdater(model, optimizer, sampler(), 3), Epochs(1), str(tmp_path))
    trainer.extend(average)
    trainer.extend(Tasks(model, {'test/3-way': sampler(1)}, 1, average=average.model))
    trainer.run()
    assert counts == [3, 3]
