"""What a run keeps in its folder to go on from: its settings and snapshots."""
import contextlib
import json
import os
import re
import shutil

import numpy as np

from experiment.console import fail, warn
from experiment.settings import shortened
from ops.compat import chainer, training
from sources.archives import read_npz, write_arrays
from sources.files import alone, clear_strays, replacing

# Settings that a continued run may change: where it runs and its final test. Where no learning rate depends on it,
# `claim` adds n_epoch.
CHANGEABLE = 'input_path', 'out', 'gpu', 'n_final_episodes', 'evaluate', 'evaluate_on', 'views'

CLASS = 'class_of_'  # begins the names of settings that say of which class a model and its parts are
DIGEST = 'data_digest'  # the setting that tells data of one's own from others of the same name

ANOTHER_FOLDER = 'give this run another folder (out), or remove that one'
# Names of the files that runs write.
SNAPSHOT = re.compile('snapshot_(0|[1-9][0-9]*)')
BEFORE = re.compile(SNAPSHOT.pattern + r'\.before')
OURS = re.compile(SNAPSHOT.pattern + r'|settings\.json|log|log\.csv|learning_curve\.png|model\.npz|best\.npz|'
                                     r'best_average\.npz|final_test(_[23])?\.csv')
MAX_SETTINGS = 1 << 20  # characters of the settings in a file
SETTLED = 2000  # episodes by which the loss has come down
GOOD, JUMP = 2, 10  # times the lowest loss so far: what a good epoch's is at most, and what one of a breakdown is above


# Settings -------------------------------------------------------------------------------------------------------------


def check_folder(out):
    """Refuses a folder that could not be written to, before anything is done for it.

    Raises:
        OSError: it, or the folder to make it in, is no folder or cannot be written to.
    """
    try:
        place = os.path.abspath(out)
    except FileNotFoundError as error:
        raise FileNotFoundError('the folder that this was started in is gone: change to another one') from error
    while not os.path.lexists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise NotADirectoryError(f'the folder {out} cannot be made, for {place} is no folder: give another one (out)')
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f'{place} cannot be written to: allow it, or give another folder (out)')


def refuse_folders(folder, names):
    """Refuses a folder in which a folder has one of the names that files are to get.

    Raises:
        IsADirectoryError: it names that.
    """
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            raise IsADirectoryError(f'{path} is a folder, but a file of that name is to be written: rename it, or give '
                                    'another folder (out)')


def claim(out, settings, earlier):
    """Notes a run's settings in its folder, and clears what killed runs have left of files half written.

    Args:
        out: the folder; it is made if need be.
        settings: dict of the script's settings.
        earlier: dict of what runs of earlier versions of the script did whose settings don't say so: values, or
            functions of the settings.

    Raises:
        ValueError: the folder holds another run, one whose settings are damaged or missing, or results of one whose
            snapshots are; or the learning rate of a new run is to fall over more epochs than it has.
        OSError: it cannot be written to.
    """
    changeable = CHANGEABLE if settings.get('n_decay') else CHANGEABLE + ('n_epoch',)
    own = json.loads(json.dumps({name: value for name, value in settings.items() if name not in changeable}))
    with alone(out, name='.claim'):  # of two that begin at once one finds the other's settings
        _refuse_other_run(out, settings, own, changeable, earlier)
        names = os.listdir(out) if os.path.isdir(out) else []
        _refuse_leftovers(out, names)
        refuse_folders(out, filter(OURS.fullmatch, names))
        with replacing(os.path.join(out, 'settings.json'), 'w') as file:
            json.dump(own, file, indent=4)
        written = (re.sub(r'\.[0-9]+\.part$', '', name) for name in names)
        clear_strays(*{os.path.join(out, name) for name in written if OURS.fullmatch(name)})


def _refuse_other_run(out, settings, own, changeable, earlier):
    """Refuses a folder of another run than that of `own`, the settings but those that are `changeable`."""
    if os.path.lexists(os.path.join(out, 'settings.json')):
        unrecorded = {name: value for name, value in own.items() if name.startswith(CLASS) or name == DIGEST}
        recorded = {name: value for name, value in run_settings(out, earlier).items()
                    if name not in changeable and (name, value) != (DIGEST, '')}
        other = {**unrecorded, **recorded}
        changed = [f'{name} ({shortened(other.get(name))} there, {shortened(own.get(name))} now)'
                   for name in sorted(own.keys() | other.keys()) if own.get(name) != other.get(name)]
        if changed:
            more = f' and {len(changed) - 5} more' if len(changed) > 5 else ''
            raise ValueError(f'the folder {out} holds a run with other settings: {", ".join(changed[:5])}{more}; give '
                             'this run another folder (out), or take the same settings to go on with that one')
    elif snapshots(out):
        raise ValueError(f'the folder {out} holds snapshots, but no settings.json that says of which run: put that '
                         f'file back, or {ANOTHER_FOLDER}')
    elif settings.get('n_decay', 0) > settings.get('n_epoch', float('inf')):
        raise ValueError(f'n_decay = {settings["n_decay"]}: the learning rate can fall over n_epoch = '
                         f'{settings["n_epoch"]} epochs at most, lower it')


def _refuse_leftovers(out, names):
    """Refuses a folder, with files of these names, of a run whose snapshots are gone."""
    # A run that was killed in its first epoch may have left a best model, and goes on.
    best = '' if 'settings.json' in names else r'|best(_average)?\.npz'
    left = [name for name in names if re.fullmatch(r'log|log\.csv|model\.npz|final_test(_[23])?\.csv' + best, name)
            and os.path.isfile(os.path.join(out, name))]
    if left and not snapshots(out):
        raise ValueError(f'the folder {out} holds {min(left)} of a run, but no snapshot to go on from: put that back, '
                         'or give this run another folder (out), or it would replace what is there')


def completed(settings, earlier):
    """The settings, a dict, with what they lack from `earlier`, as of `claim`."""
    return {**{name: value(settings) if callable(value) else value for name, value in earlier.items()}, **settings}


def run_settings(out, earlier):
    """The settings of the run in a folder, a dict; `earlier` as of `claim`.

    Raises:
        ValueError: its settings.json is missing or damaged.
        OSError: it cannot be read.
    """
    return completed(_read_settings(os.path.join(out, 'settings.json')), earlier)


def _read_settings(path):
    try:
        if not os.path.isfile(path):
            raise ValueError('it is no file')
        with open(path, encoding='utf-8-sig') as file:  # some editors begin a file with a mark
            return parse_settings(file.read(MAX_SETTINGS + 1))
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}): {ANOTHER_FOLDER}') from error


def parse_settings(text):
    """The dict that a JSON text holds.

    Raises:
        ValueError: it holds something else, or too much.
    """
    if len(text) > MAX_SETTINGS:
        raise ValueError('it has too many settings')
    try:
        settings = json.loads(text)
    except RecursionError as error:
        raise ValueError('its brackets go too deep') from error
    if not isinstance(settings, dict):
        raise ValueError('it holds no settings by name')
    return settings


# Snapshots ------------------------------------------------------------------------------------------------------------


class Snapshot(training.Extension):
    """Writes `snapshot_N` after every epoch, with all that a run needs to go on from episode N; keeps the last two.

    It also keeps the one after the last epoch whose loss was as it should be. When the loss jumps, that becomes
    `snapshot_N.before` for good, unless the run has one of these: what came before a later jump is of less use.

    Ends the program (SystemExit), with the earlier snapshots as they were, where the state to be written is not finite.
    """

    priority = -100  # after all that changes the state, before `log.Report`
    default_name = 'snapshot'

    def __init__(self):
        self.kept = []  # paths of those that are whole
        self.good = None  # path of the latest at the end of a good epoch

    def trigger(self, trainer):
        return trainer.updater.is_new_epoch

    def __call__(self, trainer):
        iteration = trainer.updater.iteration
        serializer = chainer.serializers.DictionarySerializer()
        serializer.save(trainer)
        infinite = [name for name, array in serializer.target.items() if _is_infinite(name, np.asarray(array))]
        if infinite:
            fail(f'{infinite[0]} is no longer finite after episode {iteration}; what was saved before is as it was. '
                 'Give a run with a smaller alpha or clip, or another seed, another folder (out)')
        path = os.path.join(trainer.out, f'snapshot_{iteration}')
        write_npz(path, serializer.target)
        if trainer.updater.is_new_epoch:
            rise = loss_rise(trainer.get_extension('log').log)
            if rise <= GOOD:
                self.good = path
            elif rise > JUMP and self.good and not any(map(BEFORE.fullmatch, os.listdir(trainer.out))):
                _keep(self.good, trainer.updater.epoch_size)
        self.kept = [other for other in self.kept if other != path][-1:] + [path]
        for other in snapshots(trainer.out):
            if other not in (*self.kept, self.good) and _episodes(other) < iteration:
                with contextlib.suppress(OSError):
                    os.remove(other)


def _keep(path, epoch_size):
    """Keeps a snapshot from before a jump of the loss."""
    kept = path + '.before'
    try:
        try:
            os.link(path, kept)  # takes no room: the other name goes
        except OSError:  # some disks have no links
            with open(path, 'rb') as source, replacing(kept, 'wb') as file:
                shutil.copyfileobj(source, file)
    except OSError as error:
        warn(f'the training loss has jumped, and {path} cannot be kept: {error}')
        return
    name = os.path.basename(path)
    epochs = _episodes(name) // epoch_size
    warn(f'the training loss has jumped: the run may be breaking down. Its last good snapshot is kept as {kept}. To '
         f'end a run there, copy it, as {name}, and settings.json, with n_epoch = {epochs} in it, to another folder, '
         f'with best models if there are some, and give that run this folder (out) and n_epoch = {epochs}')


def loss_rise(rows):
    """How many times the lowest loss of a log's epochs the last one's is.

    It is 1 in the first `SETTLED` episodes, where losses of any size are usual, and not above `JUMP` while the loss is
    below 1.

    Args:
        rows: of the log, an epoch each.
    """
    losses = [row['main/loss'] for row in rows]
    if rows[-1]['iteration'] <= SETTLED:
        return 1
    rise = losses[-1] / max(min(filter(np.isfinite, losses), default=1), 1e-3)
    return rise if losses[-1] > 1 else min(JUMP, rise)


def snapshots(out):
    """Paths of the snapshots in a run's folder, the latest first."""
    if not os.path.isdir(out):
        return []
    names = [name for name in os.listdir(out) if SNAPSHOT.fullmatch(name)
             and os.path.isfile(os.path.join(out, name))]
    return [os.path.join(out, name) for name in sorted(names, key=_episodes, reverse=True)]


def _episodes(name):
    """The number of episodes that a snapshot's name ends with."""
    return int(name.rpartition('_')[2])


def _is_infinite(name, array):
    """Whether an array of a snapshot has nan or infinity where it must not: losses in the log may be infinite."""
    return array.dtype.kind in 'fc' and not name.startswith('extensions/log/') and not np.isfinite(array).all()


def resume(trainer):
    """Brings a trainer to the state of the latest snapshot in its folder that can be read.

    A later one that cannot be read gets another name, `snapshot_N.unreadable`, and a warning says so.

    Returns:
        Whether there is a snapshot.

    Raises:
        SystemExit: there are snapshots, but none can be read, or they are of another network.
    """
    bad = []
    for path in snapshots(trainer.out):
        try:
            _load_snapshot(path, trainer)
        except (ValueError, FileNotFoundError) as error:
            if isinstance(error.__cause__, MemoryError):
                fail(f'{error}. The same command then goes on from that snapshot')
            bad.append((path, error))
            continue
        except OSError as error:  # the disk or the rights, and not the snapshot
            fail(f'{path} cannot be read ({error.strerror or error}): mend that; the same command then goes on from it')
        snapshot = trainer.get_extension('snapshot')
        snapshot.kept = [path]
        ends = [other for other in snapshots(trainer.out) if not _episodes(other) % trainer.updater.epoch_size]
        snapshot.good = ends[-1] if ends else None  # the oldest: whether later epochs were good isn't known here
        for other, error in bad:
            os.replace(other, other + '.unreadable')
            warn(f'{error}. Going on from the snapshot before it, {path}; it is kept as {other}.unreadable')
        return True
    if bad:
        fail(f'the snapshot in {trainer.out} cannot be read, or is of another network ({bad[0][1]}): {ANOTHER_FOLDER}')
    return False


def _load_snapshot(path, trainer):
    with open(path, 'rb') as file:  # an error of the disk shall come from here, where it isn't taken for a bad file
        while file.read(1 << 20):
            pass
    arrays = read_npz(path, 'it is damaged')
    reader = Reader(arrays)
    for optimizer in trainer.updater.get_all_optimizers().values():
        for param in optimizer.target.params():
            param.update_rule._state = None  # a snapshot that couldn't be loaded to its end may have left some
    try:
        for name, array in arrays.items():
            if _is_infinite(name, array):
                raise ValueError(f'{name} has entries that are nan or infinite')
        reader.load(trainer)
        if trainer.updater.iteration != _episodes(path):
            raise ValueError(f'it is of episode {trainer.updater.iteration}')
        surplus = [name for name in arrays if name not in reader.used and not name.startswith('extension_triggers/')]
        if surplus:
            raise ValueError(f'this run lacks its {surplus[0]}')
        for optimizer in trainer.updater.get_all_optimizers().values():
            for name, param in optimizer.target.namedparams():
                _check_update_rule(name, param, optimizer.t)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f'{path}: {error}') from error


def _check_update_rule(name, param, n_updates):
    """Refuses an optimizer's state of another shape than its parameter: Chainer loads it with nothing to compare."""
    if param.update_rule.t > n_updates:
        raise ValueError(f'{name} has had {param.update_rule.t} updates, more than there were')
    for key, value in (param.update_rule.state or {}).items():
        if getattr(value, 'shape', None) != param.shape or value.dtype != param.dtype:
            raise ValueError(f"the optimizer's {key} of {name} does not have the shape {param.shape}")


class Reader(chainer.serializers.NpzDeserializer):
    """Gives an object its arrays, each if it has the shape and the kind of numbers that the object has there.

    Args:
        arrays: {name: array}.

    Attributes:
        used: set of the names of those that were given.
    """

    def __init__(self, arrays, path='', used=None):
        super().__init__(arrays, path)
        self.used = set() if used is None else used

    def __getitem__(self, key):
        return Reader(self.npz, f'{self.path}{key.strip("/")}/', self.used)

    def __call__(self, key, value):
        name = self.path + key.lstrip('/')
        if name not in self.npz:
            raise ValueError(f'it lacks {name}')
        array = self.npz[name]
        if isinstance(value, chainer.get_array_types()):
            if (array.shape, array.dtype) != (value.shape, value.dtype):
                raise ValueError(f'its {name} is {array.dtype} {array.shape}, not {value.dtype} {value.shape}')
        elif value is not None and array.shape != ():
            raise ValueError(f'its {name} has shape {array.shape}, but is one value')
        elif value is None and array.dtype.kind not in 'fiu':
            raise ValueError(f'its {name} is not of numbers')
        elif type(value) is int and not (array.dtype.kind in 'iu' and array >= 0):
            raise ValueError(f'its {name} is no number of something')
        self.used.add(name)
        return super().__call__(key, value)


def write_npz(path, arrays):
    """Writes {name: array} to a file of a run, without pickles, and not to a folder that the run has not claimed."""
    folder = os.path.dirname(path) or '.'
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'the folder {folder} is gone, so {os.path.basename(path)} cannot be written: put it '
                                'back, and the same command goes on from its last snapshot')
    write_arrays(path, arrays)
