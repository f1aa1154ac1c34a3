"""Where runs go: one after another in this process, or to the workers of a Dask cluster, one run each."""
import contextlib
import importlib.util
import logging
import os
import queue
import secrets
import signal
import time

from experiment.console import Stop
from reproduction import work

STOPPING = 'Stopping: the runs at hand write their snapshots. Press Ctrl-C again to end them at once.'


def has_dask():
    """Whether dask.distributed is installed."""
    return importlib.util.find_spec('distributed') is not None


def cores():
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def run_here(tasks, progress):
    """Runs tasks, as `plan.task_of` makes them, in order; tells `progress`, a `progress.Progress`, of each.

    Returns:
        Whether Ctrl-C was pressed.
    """
    with Stop(STOPPING) as stop:
        def stopping():
            progress.show()
            return stop.pressed

        for task in tasks:
            if not stop.pressed:
                try:
                    outcome = work.work(task, lambda news, name=task['name']: progress.news(name, news), stopping,
                                        alone=True)
                except OSError as error:  # of its folder; the other runs go on
                    outcome = _failed(task, error)
                progress.end(outcome)
    return stop.pressed


@contextlib.contextmanager
def client_of(jobs, scheduler):
    """A client of a cluster: of `scheduler`, such as tcp://10.0.0.1:8786, or, where that is empty, one made here.

    Raises:
        OSError: the scheduler does not answer.
    """
    from distributed import Client, LocalCluster
    logging.getLogger('distributed.client').setLevel(logging.CRITICAL)  # its tracebacks; what matters is said here
    if scheduler:
        try:
            client = Client(scheduler, timeout=15, set_as_default=False)
        except (OSError, ValueError) as error:
            raise OSError(f'the scheduler {scheduler} does not answer ({error}): start it with `dask scheduler`, or '
                          'give its address (--scheduler)') from error
        with client:
            yield client
        return
    # Processes that begin now ignore Ctrl-C: this one alone answers it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cluster = LocalCluster(n_workers=jobs, threads_per_worker=1, processes=True, memory_limit=0,
                               dashboard_address='127.0.0.1:0', silence_logs='CRITICAL')
    finally:
        signal.signal(signal.SIGINT, before)
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


def run_on_dask(tasks, progress, out, jobs, scheduler='', gpus=False):
    """Runs tasks on the workers of a cluster, one run each at a time; tells `progress` of each.

    A run whose worker dies goes to another one.

    Args:
        tasks: as `plan.task_of` makes them.
        progress: `progress.Progress`.
        out: the folder of all runs.
        jobs: workers to make here; unused where there is a `scheduler`.
        scheduler: its address, or ''.
        gpus: whether a run needs a GPU of its own: the resource GPU of a scheduler's workers; here, worker i has GPU i.

    Returns:
        Whether Ctrl-C was pressed.

    Raises:
        OSError: the scheduler does not answer, or not any more.
    """
    from distributed import Variable

    token = f'.reproduce_{secrets.token_hex(8)}'
    with open(os.path.join(out, token), 'w', encoding='utf-8'):
        pass
    try:
        with client_of(jobs, scheduler) as client, Stop(STOPPING) as stop:
            news = queue.SimpleQueue()
            client.subscribe_topic(token, lambda event: news.put(event[1]))
            variable = Variable(token, client=client)
            variable.set(0)
            project = work.project_files(tasks[0]['root'])
            digest, archive = work.digest_of(project), work.pack(project) if scheduler else None
            pinned = not scheduler and jobs >= cores()
            function, futures, place = _on_any_worker(), {}, _place(out)
            for task in tasks:
                files = work.read_folder(task['folder']) if scheduler else {}
                futures[task['name']] = client.submit(
                    function, dict(task, place=place), token, digest, archive, files, pinned, gpus and not scheduler,
                    key=f'{task["name"]}-{token}', pure=False, priority=_hours(task),
                    resources={'GPU': 1} if gpus and scheduler else None)
            _watch(client, {task['name']: task for task in tasks}, futures, progress, stop, variable, news)
            variable.delete()
    finally:
        with contextlib.suppress(OSError):
            os.remove(os.path.join(out, token))
    return stop.pressed


def _on_any_worker():
    """`work.work_on_worker` as a function that scheduler and workers can unpickle without this project."""
    import cloudpickle
    cloudpickle.register_pickle_by_value(work)
    try:
        pickled = cloudpickle.dumps(work.work_on_worker)
    finally:
        cloudpickle.unregister_pickle_by_value(work)

    # A function within a function goes by value, always.
    def call(*arguments):
        import cloudpickle
        return cloudpickle.loads(pickled)(*arguments)

    return call


def _hours(task):
    """How long a run may take: the longest come first, so that none is left alone at the end."""
    return task['hours'] or task['episodes'] / 18000


def _watch(client, tasks, futures, progress, stop, variable, news):
    """Waits for all runs, and says meanwhile that the command lives, or that they are to stop."""
    beat, alone = 0, False
    while futures:
        while not news.empty():
            item = news.get()
            progress.news(item.pop('name'), item)
        if client.status != 'running' or any(future.cancelled() for future in futures.values()):
            raise OSError('the scheduler does not answer any more: its runs stop by themselves, and the same command '
                          'goes on from their snapshots when there is a scheduler again')
        for name in [name for name, future in futures.items() if future.done()]:
            progress.end(_outcome(futures.pop(name), tasks[name]))
        without = not client.scheduler_info().get('workers')
        if without and not alone:
            progress.say('no worker is there: waiting for one')
        alone = without
        beat += 1
        variable.set('stop' if stop.pressed else beat)
        if stop.pressed and without:
            break
        progress.show()
        time.sleep(work.POLL)


def _outcome(future, task):
    """What became of a run: its task's result, with the files that came back written."""
    try:
        outcome = future.result()
        if outcome.get('files') is not None:
            work.write_folder(task['folder'], outcome['files'])
        return outcome
    except Exception as error:  # whatever a worker, Dask or the disk raises: the other runs go on
        return _failed(task, error)


def _failed(task, error):
    """The outcome of a run that an exception has ended."""
    words = ' '.join(str(error).split()) or type(error).__name__
    return {'name': task['name'], 'state': 'failed', 'message': f'{type(error).__name__}: {words}', 'rows': []}


def _place(out):
    """What tells one folder of runs from a later one of the same path: a word in a file there, made if need be."""
    path = os.path.join(out, '.place')
    with contextlib.suppress(FileExistsError), open(path, 'x', encoding='utf-8') as file:
        file.write(secrets.token_hex(8))
    with open(path, encoding='utf-8') as file:
        return file.read()
