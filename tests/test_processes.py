"""Tests shared out among processes."""
import functools
import importlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from small_runs import ROOT, Classifier, sampler

import data
import ops.blocks
from experiment import console, processes, program
from experiment.evaluation import test as run_test


class Deadly(Classifier):
    """Ends every process but the one that it was made in."""

    def __init__(self):
        super().__init__()
        self.home = os.getpid()

    def loss(self, episode):
        if os.getpid() != self.home:
            os._exit(1)
        return super().loss(episode)


@pytest.fixture
def shares(monkeypatch):
    """Few episodes at a time on two processes; what becomes of `shared`."""
    monkeypatch.setattr(console, 'importable', True)
    monkeypatch.setattr(processes, 'LEAST', 3)
    monkeypatch.setattr(processes, 'AT_A_TIME', 2)
    monkeypatch.setattr(ops.blocks, 'THREADS', 2)
    results = []

    @functools.wraps(processes.shared)
    def shared(*args):
        results.append(processes_shared(*args))
        return results[-1]

    processes_shared = processes.shared
    monkeypatch.setattr('experiment.evaluation.shared', shared)
    return results


def alone(model, n_episodes):
    tests = sampler()
    return [run_test(model, tests, 1)[0] for _ in range(n_episodes)], tests.get_state()


def test_results_are_those_of_one_process(shares):
    model, tests = Classifier(), sampler()
    expected, state = alone(model, 7)
    assert not shares
    np.testing.assert_array_equal(run_test(model, tests, 7), expected)
    assert len(shares) == 1 and len(shares[0]) == 7
    np.testing.assert_array_equal(tests.get_state(), state)


def test_where_a_process_dies_one_goes_on_alone(shares, capsys):
    model, tests = Deadly(), sampler()
    expected, state = alone(model, 7)
    np.testing.assert_array_equal(run_test(model, tests, 7), expected)
    assert shares == [None] and 'the test goes on in one process' in capsys.readouterr().err
    np.testing.assert_array_equal(tests.get_state(), state)


def test_a_sampler_of_ones_own_without_skip_is_tested_here(shares, monkeypatch):
    monkeypatch.delattr(data.EpisodeSampler, 'skip')
    model, tests = Classifier(), sampler()
    expected, state = alone(model, 7)
    np.testing.assert_array_equal(run_test(model, tests, 7), expected)
    assert shares == [None]
    np.testing.assert_array_equal(tests.get_state(), state)


def test_a_model_that_cannot_be_handed_on_is_tested_here(shares):
    model = Classifier()
    model.function = lambda x: x
    expected, _ = alone(model, 7)
    np.testing.assert_array_equal(run_test(model, sampler(), 7), expected)
    assert shares == [None]


def test_after_a_change_of_the_programs_files_one_process_goes_on_alone(shares, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / 'code_of_ones_own.py'
    path.write_text('x = 1')
    importlib.import_module(path.stem)
    program.note()
    model = Classifier()
    run_test(model, sampler(), 7)
    path.write_text('x = 2')
    tests = sampler()
    expected, state = alone(model, 7)
    np.testing.assert_array_equal(run_test(model, tests, 7), expected)
    assert len(shares[0]) == 7 and shares[1] is None
    assert f'for {path} changed since the program began' in capsys.readouterr().err
    np.testing.assert_array_equal(tests.get_state(), state)
    path.unlink()
    assert str(path) in program.changed()
    del sys.modules[path.stem], program._digests[str(path)]


def test_short_tests_are_not_shared_out(shares):
    run_test(Classifier(), sampler(), 5)
    assert not shares
    assert processes.worth(Classifier(), 5) == 1 and processes.worth(Classifier(), 100) == 2


def test_a_program_that_others_cannot_import_tests_alone(shares, monkeypatch):
    monkeypatch.setattr(console, 'importable', False)
    run_test(Classifier(), sampler(), 7)
    assert not shares


SCRIPT = """if True:
    import multiprocessing, sys, threading, time
    from small_runs import ROOT, Classifier, sampler
    from experiment import console, processes
    from experiment.evaluation import test
    from experiment.loop import Epochs
    if __name__ == '__main__':
        def tell():
            while len(multiprocessing.active_children()) < 2:
                time.sleep(0.01)
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        threading.Thread(target=tell, daemon=True).start()
        console.importable = True
        processes.LEAST, processes.ops.blocks.THREADS = 1, 2
        with Epochs(1) as stop:
            print(len(test(Classifier(), sampler(), int(sys.argv[1]))), stop.pressed)
"""


@pytest.fixture
def started(tmp_path):
    """Starts a program that shares out so many episodes, and returns it and its processes, that are just beginning."""
    path = tmp_path / 'program.py'
    path.write_text(SCRIPT)
    folders = os.pathsep.join([os.path.dirname(__file__), ROOT])

    def start(n_episodes, **environment):
        running = subprocess.Popen([sys.executable, str(path), str(n_episodes)], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True,
                                   env=dict(os.environ, PYTHONPATH=folders, **environment))
        return running, [int(word) for word in running.stdout.readline().split()]

    return start


@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='signals of another kind')
def test_ctrl_c_waits_for_the_episodes_at_hand(started):
    running, _ = started(40)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert out.split() == ['40', 'True'] and 'Traceback' not in err and 'one process' not in err


@pytest.mark.skipif(not hasattr(os, 'killpg'), reason='signals of another kind')
def test_processes_end_with_the_program_and_leave_nothing(started, tmp_path):
    (tmp_path / 'temporary').mkdir()
    running, children = started(2000, TMPDIR=str(tmp_path / 'temporary'))
    assert os.listdir(tmp_path / 'temporary')
    running.kill()
    running.communicate(timeout=60)
    for _ in range(600):
        if not any(map(is_there, children)):
            assert os.listdir(tmp_path / 'temporary') == []
            return
        time.sleep(0.05)
    raise AssertionError('they are still there')


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f'/proc/{pid}/stat', encoding='ascii') as file:
        return file.read().rsplit(')', 1)[1].split()[0] != 'Z'


@pytest.mark.parametrize('rotate', [False, True])
def test_skipped_episodes_are_those_drawn(rotate):
    classes = data.synthetic_strokes(6)
    drawn, skipped = (data.EpisodeSampler(classes, 3, 2, 2, rotate, seed=1) for _ in range(2))
    for _ in range(3):
        drawn.sample()
    skipped.skip(3)
    for one, other in zip(drawn.sample(), skipped.sample()):
        np.testing.assert_array_equal(one, other)
