"""One run: its training and tests by the script, each in a process of its own. Here, or on a worker of a cluster.

Nothing but the standard library is imported here: this module is sent to workers that do not have the project.
"""
import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile

POLL = 1  # seconds between looks at a run
BEATS = 120  # seconds without a word of the command after which its runs stop
THREADS = 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'VECLIB_MAXIMUM_THREADS'
RESULT = re.compile(r'^(.*), (\d+)-way (\d+)-shot: ([\d.]+) \+- ([\d.]+|nan) % on (\d+) test episodes;', re.MULTILINE)
COLUMNS = 'label', 'way', 'shot', 'accuracy', 'interval', 'episodes'  # of a result
STAND_IN = '!!  THIS IS NOT '  # in what a script says where its data are missing
MODEL = '["model"]'  # key of done.json: the training that the folder's models are of
BESTS = 'best.npz', 'best_average.npz'
BACK = ('settings.json', 'log', 'log.csv', 'learning_curve.png', 'final_test.csv', 'final_test_2.csv',
        'final_test_3.csv', 'model.npz', *BESTS, 'output.txt', 'done.json')
PACKAGES = 'ops', 'experiment', 'sources', 'reproduction'


# The project's code ---------------------------------------------------------------------------------------------------


def project_files(root):
    """{name: content} of the files that the scripts need, from the folder of the project."""
    names = [name for name in sorted(os.listdir(root)) if name.endswith('.py')]
    names += [f'{folder}/{name}' for folder in PACKAGES if os.path.isdir(os.path.join(root, folder))
              for name in sorted(os.listdir(os.path.join(root, folder))) if name.endswith('.py')]
    names += [f'data/{name}' for name in sorted(os.listdir(os.path.join(root, 'data'))) if name.endswith('.csv')]
    files = {}
    for name in names:
        with open(os.path.join(root, name), 'rb') as file:
            files[name] = file.read()
    return files


def digest_of(files):
    """A hash of {name: content}."""
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(f'{name} {len(content)}\n'.encode() + content)
    return whole.hexdigest()[:16]


def pack(files):
    """The bytes of a zip archive of {name: content}."""
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return buffer.getvalue()


def project_folder(root, digest, archive):
    """The project's folder on this machine: `root` where that holds the same code, else one made of the archive."""
    if archive is None:
        return root
    if _holds(root, digest):
        return root
    home = os.path.join(os.path.expanduser('~'), '.cache', 'metanet')
    folder = os.path.join(home, digest)
    if not _holds(folder, digest):
        os.makedirs(home, exist_ok=True)
        fresh = tempfile.mkdtemp(dir=home)
        with zipfile.ZipFile(io.BytesIO(archive)) as packed:
            packed.extractall(fresh)
        try:
            if os.path.isdir(folder):  # edited, or cut short by a power cut
                os.rename(folder, f'{folder}.{os.path.basename(fresh)}')
            os.rename(fresh, folder)
        except OSError:  # another worker was faster
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _holds(folder, digest):
    """Whether the project's code in a folder, if there is any, is that of a digest."""
    try:
        return digest_of(project_files(folder)) == digest
    except OSError:
        return False


# One run --------------------------------------------------------------------------------------------------------------


def work(task, say, stopping, root=None, folder=None, alone=False):
    """Trains and tests; goes on from what is in the run's folder, and does not repeat what is done.

    Args:
        task: dict of `name`, `folder`, `root` (of the project), `script`, `options` (of the training) and `tests` (a
            list of options of `SCRIPT --evaluate`).
        say: function that takes a dict with news of the run: `start`, or `episodes` and `accuracy` (0 to 1), `stage`.
        stopping: function, called every second, that tells whether the run is to stop.
        root, folder: in place of the task's.
        alone: whether the run has the machine to itself: then it may use more than one core.

    Returns:
        dict of `name`, `state` (done, stopped or failed), `message`, `rows` (of results, dicts), `source` (the data, or
        None) and `folder`.
    """
    root, folder = root or task['root'], folder or task['folder']
    os.makedirs(folder, exist_ok=True)
    done = _read_done(folder)
    if not stopping():
        say({'start': True, 'episodes': _snapshot(folder),
             'where': f'{socket.gethostname()}, process {os.getpid()}'})
    outcome = {'name': task['name'], 'state': 'done', 'message': '', 'rows': [], 'folder': folder}
    (trained, _), *tests = _steps(task, folder)
    if done.get(MODEL, trained) != trained and any(key not in done for key, _ in tests):
        done.pop(trained, None)  # the models are of other options by now: the script shall judge before the tests
    for key, words in _steps(task, folder):
        rows = done.get(key)
        if rows is None:
            if stopping():
                outcome['state'] = 'stopped'
                break
            if key == trained:
                done[MODEL] = trained
                _write_done(folder, done)
            code, output, stopped = _run_script(root, folder, [task['script'], *words], say, stopping, alone)
            if code:
                outcome.update(state='stopped' if stopped else 'failed', message=_last_words(output, code))
                break
            rows = [dict(zip(COLUMNS, match.groups())) for match in RESULT.finditer(output)]
            if STAND_IN in output:  # not done: the data may be there the next time
                outcome['message'] = 'on invented data, which is no result: output.txt says where to put the data; ' \
                                     f'then remove {folder}'
            else:
                done[key] = rows
                _write_done(folder, done)
        outcome['rows'] += rows
    outcome['source'] = _trained_on(folder)
    return outcome


def _steps(task, folder):
    """Training and tests in their order: pairs of a key for what comes of it, and the script's words."""
    yield json.dumps(['training', *task['options']]), [*task['options'], '--out', folder]
    # Trained by now. Where one model is the best on dev tasks, there may be another with averaged weights.
    models = [name for name in BESTS if os.path.exists(os.path.join(folder, name))] or ['model.npz']
    for options in task['tests']:
        for name in models:
            # Earlier versions tested the other one alone, by a key without its name.
            key = ['tests', *task['options'], *options, *([name] if name == BESTS[1] else [])]
            yield json.dumps(key), ['--evaluate', os.path.join(folder, name), *options]


def _run_script(root, folder, words, say, stopping, alone):
    """Runs a script to its end; returns its exit code, its output, and whether it was asked to stop."""
    environment = dict(os.environ, PYTHONUNBUFFERED='1', PYTHONIOENCODING='utf-8')
    for name in 'OMNIGLOT_DIR', 'MNIST_DIR':  # the script runs in the project's folder
        if environment.get(name):
            environment[name] = os.path.abspath(environment[name])
    if not alone:
        environment.update(dict.fromkeys(THREADS, '1'))
    # Apart from the terminal's Ctrl-C, which is passed on once.
    apart = {'start_new_session': True} if os.name == 'posix' else {
        'creationflags': getattr(subprocess, 'CREATE_NEW_PROCESS_GROUP', 0)}
    command = [sys.executable, os.path.join(root, 'reproduction', 'child.py'), folder,
               os.path.join(root, words[0]), *words[1:]]
    path = os.path.join(folder, 'output.txt')
    with open(path, 'ab') as log:
        start = log.tell()
        child = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=root,
                                 env=environment, **apart)
    stopped, shown = False, None
    try:
        while child.poll() is None:
            try:
                child.wait(POLL)
            except subprocess.TimeoutExpired:
                pass
            news = _progress(folder)
            if news != shown:
                say({**news, 'stage': 'tests' if '--evaluate' in words else 'training'})
                shown = news
            if stopping() and not stopped:
                stopped = True
                try:
                    child.stdin.write(b's')
                except OSError:  # it has ended meanwhile
                    pass
    finally:
        child.stdin.close()  # ends it, if it has not ended
        child.wait()
    with open(path, 'rb') as log:
        log.seek(start)
        return child.returncode, log.read().decode('utf-8', 'replace').replace('\r\n', '\n'), stopped


def _last_words(output, code):
    """Why a script failed, from what it said."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('error: ')]
    if code < 0 and not errors:
        return f'it was ended by {signal.Signals(-code).name}'
    return (errors or lines or [f'it ended with exit status {code}'])[-1].replace('error: ', '', 1)


def _snapshot(folder):
    """Episodes of the latest snapshot in a folder; 0 where there is none."""
    return _latest(os.listdir(folder))


def _latest(names):
    """Episodes of the latest snapshot among files; 0 where there is none."""
    return max((int(name.rpartition('_')[2]) for name in names if re.fullmatch(r'snapshot_\d+', name)), default=0)


def _progress(folder):
    """What the last row of log.csv says: {'episodes', 'accuracy'}, or nothing."""
    try:
        with open(os.path.join(folder, 'log.csv'), encoding='utf-8', newline='') as file:
            row = list(csv.DictReader(file))[-1]
        accuracies = [float(value) for name, value in row.items()
                      if re.fullmatch(r'(test|dev)/.*/accuracy', name) and value]
        return {'episodes': int(row['iteration']), 'accuracy': accuracies[0] if accuracies else None}
    except (OSError, IndexError, KeyError, ValueError, TypeError, AttributeError, csv.Error):
        return {}


def _trained_on(folder):
    """The data that settings.json names; None where it says nothing of them."""
    try:
        with open(os.path.join(folder, 'settings.json'), encoding='utf-8-sig') as file:
            data = json.load(file)['data']
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return data if isinstance(data, str) else None


def _read_done(folder):
    """{stage: its rows of results} of what is done, and at `MODEL` the stage that the folder's models are of."""
    try:
        with open(os.path.join(folder, 'done.json'), 'rb') as file:
            return _done_in(file.read())
    except OSError:
        return {}


def _done_in(text):
    """What bytes of done.json say, without what is damaged."""
    try:
        done = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(done, dict):
        return {}
    return {key: value for key, value in done.items() if (isinstance(value, str) if key == MODEL else _are_rows(value))}


def _are_rows(value):
    """Whether a value is a list of results, as `work` keeps them."""
    return isinstance(value, list) and all(isinstance(row, dict) and row.keys() == set(COLUMNS)
                                           and all(isinstance(text, str) for text in row.values()) for row in value)


def _write_done(folder, done):
    _write(os.path.join(folder, 'done.json'), json.dumps(done, indent=1).encode())


def _write(path, content):
    """Writes bytes to a file, which is whole or not there at all, after a power cut, too."""
    fresh = f'{path}.{os.urandom(4).hex()}.new'
    try:
        with open(fresh, 'xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        if os.path.exists(fresh):
            os.remove(fresh)


# On a worker ----------------------------------------------------------------------------------------------------------


def work_on_worker(task, token, digest, archive, files, pinned, gpus):
    """`work` as a task of Dask.

    Args:
        task: as of `work`.
        token: name of the topic for news, of the variable that says whether to stop, and of a file in the folder of all
            runs, by which a worker knows whether it has that folder, too.
        digest, archive: of the project; the archive is None where workers surely have it.
        files: {name: bytes} of what the run's folder holds, for a worker that does not have it.
        pinned: whether the run keeps to one core, that of the worker's number.
        gpus: whether the worker's number is that of its GPU.

    Returns:
        dict as of `work`, with `files`, {name: bytes} to bring back, or None where the folder is the command's own.
    """
    from distributed import Variable, get_client, get_worker
    worker = get_worker()
    number = int(worker.name) if str(worker.name).isdigit() else None
    if pinned and number is not None and hasattr(os, 'sched_setaffinity'):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    if gpus and number is not None:
        visible = os.environ.setdefault('METANET_GPUS', os.environ.get('CUDA_VISIBLE_DEVICES', ''))
        os.environ['CUDA_VISIBLE_DEVICES'] = visible.split(',')[number] if visible else str(number)
    root = project_folder(task['root'], digest, archive)
    shared = os.path.isfile(os.path.join(os.path.dirname(task['folder']), token))
    folder = task['folder'] if shared else _own_folder(task, files)

    variable = Variable(token, client=get_client())
    last = [variable.get(), time.monotonic()]

    def stopping():
        try:
            word = variable.get(timeout=BEATS)
        except Exception:  # whatever a scheduler that is gone raises: the same as no word
            word = last[0]
        if word != last[0]:
            last[:] = word, time.monotonic()
        return word == 'stop' or time.monotonic() - last[1] > BEATS

    outcome = work(task, lambda news: worker.log_event(token, {'name': task['name'], **news}), stopping, root, folder)
    outcome['files'] = None if shared else read_folder(folder)
    return outcome


def _own_folder(task, files):
    """The run's folder on a worker that does not have the command's; it stays, to go on from."""
    place = hashlib.sha256(f'{task["host"]} {task["folder"]} {task["place"]}'.encode()).hexdigest()[:16]
    folder = os.path.join(os.path.expanduser('~'), '.cache', 'metanet', 'runs', place, task['name'])
    os.makedirs(folder, exist_ok=True)
    theirs = len(_done_in(files.get('done.json', b''))), _latest(files)
    if theirs > (len(_read_done(folder)), _snapshot(folder)):
        write_folder(folder, files)
    return folder


def read_folder(folder):
    """{name: bytes} of a run's files, of its snapshots the last two and those from before a jump of the loss."""
    files = {}
    names = os.listdir(folder) if os.path.isdir(folder) else []
    last = sorted((_latest([name]), name) for name in names if re.fullmatch(r'snapshot_\d+', name))[-2:]
    before = [name for name in names if re.fullmatch(r'snapshot_\d+\.before', name)]
    for name in (*(name for _, name in last), *before, *BACK):
        if os.path.isfile(os.path.join(folder, name)):
            with open(os.path.join(folder, name), 'rb') as file:
                files[name] = file.read()
    return files


def write_folder(folder, files):
    """Writes {name: bytes} in this order: done.json, which tells of the others, comes last in `read_folder`'s."""
    os.makedirs(folder, exist_ok=True)
    for name, content in files.items():
        _write(os.path.join(folder, name), content)
