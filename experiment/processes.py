"""A test shared out among processes: each takes some episodes at a time, and results are those of one process."""
import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading

import ops.blocks
from experiment import console, program
from ops.compat import cuda

LEAST = 100  # episodes that are worth a process, which takes seconds to start
MOST = 61  # processes: Windows waits for no more
AT_A_TIME = 4  # episodes: after Ctrl-C those at hand are finished

_work = None  # of a process: function, model, sampler


def worth(model, n_episodes):
    """How many processes are worth starting for a test of a model on so many episodes.

    One on a GPU; and one where other processes might do over again what the program has done, a training for one.
    """
    if model.xp is cuda.cupy or not console.importable:
        return 1
    return max(1, min(ops.blocks.THREADS, n_episodes // LEAST, MOST))


def shared(function, model, sampler, n_episodes, n_processes, done):
    """What `function` returns for all episodes, computed by several processes.

    Args:
        function: of model, sampler and a number of episodes, that returns a list; one that a module has.
        model: a link on the CPU.
        sampler: `data.EpisodeSampler`; in the end it is where it would be if it had drawn them.
        n_episodes: how many to draw.
        n_processes: how many processes.
        done: function that is told how many more episodes are done.

    Returns:
        The lists of all episodes in their order, as one; None, after a warning, where it cannot be shared out: a
        process died, the model's or the sampler's class cannot be handed to another one, a sampler of one's own has no
        `skip`, or a file of the program has changed, whose code the others would run. The sampler is then as before.
    """
    changed = program.changed()
    if changed:
        console.warn(f'the test goes on in one process, for {", ".join(changed)} changed since the program began, and '
                     'others would run what is there now')
        return None
    start = sampler.get_state()
    parts = []
    try:
        for first in range(0, n_episodes, AT_A_TIME):
            parts.append((sampler.get_state(), min(AT_A_TIME, n_episodes - first)))
            sampler.skip(parts[-1][1])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'work')
            with open(path, 'wb') as file:
                pickle.dump((function, model, sampler), file)
            return _results(path, parts, n_processes, done)
    except (pickle.PicklingError, AttributeError, TypeError, OSError, NotImplementedError,
            concurrent.futures.BrokenExecutor) as error:
        console.warn(f'the test goes on in one process, for it cannot be shared out ({error or type(error).__name__})')
        sampler.set_state(start)
        return None


def _results(path, parts, n_processes, done):
    # Spawned, not forked: BLAS's threads don't survive a fork.
    with concurrent.futures.ProcessPoolExecutor(n_processes, multiprocessing.get_context('spawn'), _begin,
                                                (path, max(1, ops.blocks.THREADS // n_processes))) as pool:
        try:
            with _ctrl_c_later():  # it would end processes that are just beginning
                futures = [pool.submit(_do, *part) for part in parts]
            for future in concurrent.futures.as_completed(futures):
                done(len(future.result()))
            return [result for future in futures for result in future.result()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def _ctrl_c_later():
    """Keeps Ctrl-C until the end of a `with`, and for good from the processes that begin within it."""
    if not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(path, threads):
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that shares out
    threading.Thread(target=_end_with_parent, args=(os.path.dirname(path),), daemon=True).start()
    console.keep_memory()
    ops.blocks.THREADS = threads
    with open(path, 'rb') as file:
        _work = pickle.load(file)


def _end_with_parent(folder):
    """A process whose parent was killed would wait for work for ever, and nobody would remove the folder of it."""
    multiprocessing.parent_process().join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _do(state, n_episodes):
    function, model, sampler = _work
    sampler.set_state(state)
    return function(model, sampler, n_episodes)
