"""The training loop: updates, clipping, the falling learning rate, Ctrl-C, and runs that go on."""
import os
import signal

import numpy as np
import pytest
import small_runs
from small_runs import Classifier, content, rows, run, same, sampler

import beyond
from experiment import evaluation
from experiment.loop import Clipping, EpisodeUpdater, decay
from ops.compat import F, chainer


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


def test_ctrl_c_before_the_first_episode_leaves_a_run_that_begins(tmp_path, straight):
    with pytest.raises(SystemExit, match='Stopped after 0 episodes'):
        run(tmp_path, 3, before=lambda trainer: setattr(trainer.stop_trigger, 'pressed', True))
    assert same(run(tmp_path, 3), straight[1])


def test_ctrl_c_in_the_last_episode_stops_before_the_final_test(tmp_path, straight, capfd):
    with pytest.raises(SystemExit, match='Stopped after 9 episodes'):
        run(tmp_path, 3, stop_at=9)
    assert 'Stopping after the episodes at hand' in capfd.readouterr().err
    assert same(run(tmp_path, 3), straight[1])
    assert rows(tmp_path) == rows(straight[0])


@pytest.mark.parametrize('falls', [{'n_decay': 2}, {'inverse_decay': 2}])
def test_a_run_whose_rate_falls_goes_on_bit_for_bit(tmp_path, straight, falls):
    model = run(tmp_path / 'straight', 3, **falls)
    with pytest.raises(SystemExit, match='Stopped after 5 episodes'):
        run(tmp_path / 'stopped', 3, stop_at=5, **falls)
    assert same(run(tmp_path / 'stopped', 3, **falls), model)
    assert not same(model, straight[1])
    if 'n_decay' in falls:
        with pytest.raises(ValueError, match=r'n_epoch \(3 there, 4 now\)'):
            run(tmp_path / 'stopped', 4, **falls)
    else:
        assert same(run(tmp_path / 'stopped', 4, **falls), run(tmp_path / 'longer', 4, **falls))


class Dropping(Classifier):
    """Draws which units to drop."""

    def loss(self, episode):
        return super().loss(episode._replace(support_x=F.dropout(episode.support_x)))


@pytest.mark.parametrize('averaged', [1, 3])
def test_a_run_of_a_model_that_draws_goes_on_bit_for_bit(tmp_path, monkeypatch, straight, averaged):
    monkeypatch.setattr(small_runs, 'Classifier', Dropping)
    model = run(tmp_path / 'straight', 3, n_episodes_per_update=averaged)
    run(tmp_path / 'stopped', 2, n_episodes_per_update=averaged)
    assert same(run(tmp_path / 'stopped', 3, n_episodes_per_update=averaged), model) and not same(model, straight[1])


def test_a_loss_that_reports_nothing_is_told_so():
    model = Classifier()
    model.loss = lambda episode: F.sum(model.l1.W)
    with pytest.raises(ValueError, match='Classifier.loss does not report its loss and its accuracy: let it call'):
        evaluation.test(model, sampler(), 2, 'test')


@pytest.mark.filterwarnings('ignore:invalid value')
def test_a_run_that_diverges_ends_and_keeps_its_last_snapshot(tmp_path, straight, monkeypatch):
    run(tmp_path, 1)
    loss = Classifier.loss
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, 'loss', lambda self, episode: loss(self, episode) * np.float32('inf'))
        with pytest.raises(SystemExit, match='no longer finite after episode 4'):
            run(tmp_path, 3)
    assert same(run(tmp_path, 3), straight[1])


@pytest.mark.filterwarnings('error')
def test_gradients_of_zero_are_clipped_without_a_warning():
    model = chainer.Chain()
    model.add_param('w', shape=2, initializer=chainer.initializers.One())
    model.loss = lambda episode: 0 * F.sum(model.w)
    optimizer = chainer.optimizers.SGD().setup(model)
    optimizer.add_hook(Clipping(10))
    with chainer.Reporter():
        EpisodeUpdater(model, optimizer, sampler(), 1).update()
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
    v, w, observation = clipped(Clipping(10))
    expected = clipped(chainer.optimizer_hooks.GradientClipping(10))
    assert (v == expected[0]).all() and (w == expected[1]).all() and abs(w).max() < 24
    assert float(observation['gradient_norm']) == pytest.approx((25 + 676) ** 0.5)
    assert clipped(Clipping(30))[0].tolist() == [3, -4]


def test_gradients_can_be_clipped_apart():
    v, w, _ = clipped(Clipping(13, apart=True))
    assert v.tolist() == [3, -4] and w.tolist() == [[5], [12]]


def test_the_average_forgets_at_its_rate_and_training_does_not_see_it():
    class Learning(chainer.Chain):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.w = chainer.Parameter(np.zeros(2, np.float32))
                self.one = chainer.Parameter(np.zeros((), np.float32))
                self.bn = chainer.links.BatchNormalization(2)

    model = Learning()
    average = beyond.Average(model, 0.5)
    expected = 0
    for i, value in enumerate([4, 8, 6, -2, 0, 1, 1, 1, 1, 1, 1, 1]):
        for array in model.w.array, model.one.array, model.bn.avg_mean:
            array[...] = value
        average(None)
        kept = min(0.5, (1 + i) / (10 + i))
        expected = kept * expected + (1 - kept) * value
        for array in average.model.w.array, average.model.one.array, average.model.bn.avg_mean:
            np.testing.assert_allclose(array, expected, rtol=1e-5)
        assert (model.w.array == value).all()
    assert average.model.w.array.dtype == np.float32


def test_several_episodes_make_an_update_with_their_mean_gradient():
    def learn(episodes, n_episodes_per_update):
        np.random.seed(0)
        model = Classifier()
        optimizer = chainer.optimizers.SGD(1).setup(model)
        episodes = iter(episodes)
        source = sampler()
        source.sample = lambda: next(episodes)
        updater = EpisodeUpdater(model, optimizer, source, 4, n_episodes_per_update)
        observation, reporter = {}, chainer.Reporter()
        reporter.add_observer('main', model)
        with reporter.scope(observation):
            updater.update()
        gradients = [param.grad for param in model.params() if param.grad is not None]
        return updater, float(observation['main/loss']), gradients

    source = sampler(5)
    first, second = source.sample(), source.sample()
    _, loss_1, gradients_1 = learn([first], 1)
    _, loss_2, gradients_2 = learn([second], 1)
    updater, loss, gradients = learn([first, second], 2)
    assert loss == pytest.approx((loss_1 + loss_2) / 2, rel=1e-5)
    for both, a, b in zip(gradients, gradients_1, gradients_2):
        np.testing.assert_allclose(both, (a + b) / 2, atol=1e-5 * abs(both).max())
    assert (updater.iteration, updater.previous_epoch_detail, updater.is_new_epoch) == (2, 0, False)


def rates(n_updates, epoch_size, n_episodes_per_update, n_epoch, n_decay, inverse_decay=0):
    """The learning rate after each update."""
    model = Classifier()
    optimizer = chainer.optimizers.Adam(1e-3).setup(model)
    shift = decay(EpisodeUpdater(model, optimizer, sampler(), epoch_size, n_episodes_per_update), n_epoch, n_decay,
                  inverse_decay)
    result = []
    for _ in range(n_updates):
        shift(None)
        result.append(optimizer.alpha)
    return result


def test_averaged_runs_log_and_decay_by_episodes(tmp_path):
    run(tmp_path, 2, n_episodes=4, n_episodes_per_update=2, n_decay=2)
    assert [row['iteration'] for row in rows(tmp_path)] == ['4', '8']
    np.testing.assert_allclose(rates(8, 6, 3, n_epoch=4, n_decay=1), [1e-3] * 6 + [5e-4, 0], atol=1e-12)


def test_decay_ends_at_zero():
    np.testing.assert_allclose(rates(20, 5, 1, n_epoch=4, n_decay=2),
                               [1e-3] * 10 + [1e-3 * (10 - i) / 10 for i in range(1, 11)], atol=1e-12)


def test_an_inverse_decay_counts_episodes():
    np.testing.assert_allclose(rates(9, 6, 2, 3, 0, inverse_decay=6), 1e-3 / np.sqrt(1 + np.arange(2, 20, 2) / 6))


def test_a_finished_run_is_loaded_not_trained(tmp_path):
    run(tmp_path, 1)
    before = rows(tmp_path)
    model = run(tmp_path, 1, stop_at=1)
    assert rows(tmp_path) == before
    saved = Classifier()
    chainer.serializers.load_npz(str(tmp_path / 'model.npz'), saved)
    assert same(model, saved)


def test_a_run_is_not_taken_for_a_shorter_one(tmp_path):
    run(tmp_path, 2)
    before = content(tmp_path)['model.npz']
    with pytest.raises(SystemExit, match='has trained for 2 epochs, more than n_epoch = 1'):
        run(tmp_path, 1)
    assert content(tmp_path)['model.npz'] == before


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
    assert f'going on after 3 episodes, from the snapshot in {tmp_path}' in capsys.readouterr().out
