"""What a run keeps in its folder: its settings, snapshots to go on from, and trained models."""
import contextlib
import json
import os
import re
import sys
import zipfile

import numpy as np

from experiment.console import fail, warn
from experiment.settings import check, shortened
from ops.compat import chainer, training
from sources.archives import read_npz
from sources.files import clear_strays, replacing

# Settings that a continued run may change: where it runs, its final test, and how long it runs unless the learning rate
# depends on that.
CHANGEABLE = 'input_path', 'out', 'gpu', 'n_final_episodes', 'evaluate', 'evaluate_on', 'views'

# How a model's weights are called, in results and in files, where there is also their average.
WEIGHTS = {'last': 'last iterate', 'average': 'averaged weights'}

CLASS = 'class_of_'  # begins the names of settings that say of which class a model and its parts are

REMEDY = 'give a model.npz or best.npz of a run'
ANOTHER_FOLDER = 'give this run another folder (out), or remove that one'
# Names of the files that runs write.
SNAPSHOT = re.compile('snapshot_(0|[1-9][0-9]*)')
OURS = re.compile(SNAPSHOT.pattern + r'|settings\.json|log|log\.csv|learning_curve\.png|model\.npz|best\.npz|'
                                     r'best_average\.npz|final_test(_[23])?\.csv')
MAX_SETTINGS = 1 << 20  # characters of the settings in a file


# Settings -------------------------------------------------------------------------------------------------------------


def check_folder(out):
    """Refuses a folder that could not be written to, before anything is done for it.

    Raises:
        OSError: it, or the folder to make it in, is no folder or cannot be written to.
    """
    place = os.path.abspath(out)
    while not os.path.lexists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise NotADirectoryError(f'the folder {out} cannot be made, for {place} is no folder: give another one (out)')
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f'{place} cannot be written to: allow it, or give another folder (out)')


def claim(out, settings, earlier):
    """Notes a run's settings in its folder, and clears what killed runs have left of files half written.

    Args:
        out: the folder; it is made if need be.
        settings: dict of the script's settings.
        earlier: dict of what runs of earlier versions of the script did whose settings don't say so: values, or
            functions of the settings.

    Raises:
        ValueError: the folder holds another run, or one whose settings are damaged or missing.
        OSError: it cannot be written to.
    """
    path = os.path.join(out, 'settings.json')
    changeable = CHANGEABLE if settings.get('n_decay') else CHANGEABLE + ('n_epoch',)
    own = json.loads(json.dumps({name: value for name, value in settings.items() if name not in changeable}))
    if os.path.lexists(path):
        unrecorded = {name: value for name, value in own.items() if name.startswith(CLASS)}
        other = {**unrecorded, **run_settings(out, earlier)}
        changed = [f'{name} ({shortened(other.get(name))} there, {shortened(own.get(name))} now)'
                   for name in sorted(own.keys() | other.keys()) if own.get(name) != other.get(name)]
        if changed:
            more = f' and {len(changed) - 5} more' if len(changed) > 5 else ''
            raise ValueError(f'the folder {out} holds a run with other settings: {", ".join(changed[:5])}{more}; give '
                             'this run another folder (out), or take the same settings to go on with that one')
    elif snapshots(out):
        raise ValueError(f'the folder {out} holds snapshots, but no settings.json that says of which run: put that '
                         f'file back, or {ANOTHER_FOLDER}')
    names = os.listdir(out) if os.path.isdir(out) else []
    for name in names:
        if OURS.fullmatch(name) and os.path.isdir(os.path.join(out, name)):
            raise IsADirectoryError(f'{os.path.join(out, name)} is a folder, but a file of that name is to be written: '
                                    'rename it, or give this run another folder (out)')
    with replacing(path, 'w') as file:
        json.dump(own, file, indent=4)
    written = (re.sub(r'\.[0-9]+\.part$', '', name) for name in names)
    clear_strays(*{os.path.join(out, name) for name in written if OURS.fullmatch(name)})


def _completed(settings, earlier):
    """The settings, a dict, with what they lack from `earlier`, as of `claim`."""
    return {**{name: value(settings) if callable(value) else value for name, value in earlier.items()}, **settings}


def run_settings(out, earlier):
    """The settings of the run in a folder, a dict; `earlier` as of `claim`.

    Raises:
        ValueError: its settings.json is missing or damaged.
        OSError: it cannot be read.
    """
    return _completed(_read_settings(os.path.join(out, 'settings.json')), earlier)


def _read_settings(path):
    damaged = f'{path} is damaged (%s): {ANOTHER_FOLDER}'
    if not os.path.isfile(path):
        raise ValueError(damaged % 'it is no file')
    with open(path, encoding='utf-8') as file:
        try:
            return _parse_settings(file.read(MAX_SETTINGS + 1))
        except ValueError as error:
            raise ValueError(damaged % error) from error


def _parse_settings(text):
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

    Ends the program (SystemExit), with the earlier snapshots as they were, where the state to be written is not finite.
    """

    priority = -100  # after all that changes the state, before `log.Report`
    default_name = 'snapshot'

    def __init__(self):
        self.kept = []  # paths of those that are whole

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
        _write_npz(path, serializer.target)
        self.kept = [other for other in self.kept if other != path][-1:] + [path]
        for other in snapshots(trainer.out):
            if other not in self.kept:
                with contextlib.suppress(OSError):
                    os.remove(other)


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
        except (ValueError, OSError) as error:
            bad.append((path, error))
            continue
        trainer.get_extension('snapshot').kept = [path]
        for other, error in bad:
            os.replace(other, other + '.unreadable')
            warn(f'{error}. Going on from the snapshot before it, {path}; it is kept as {other}.unreadable')
        return True
    if bad:
        fail(f'the snapshot in {trainer.out} cannot be read, or is of another network ({bad[0][1]}): {ANOTHER_FOLDER}')
    return False


def _load_snapshot(path, trainer):
    arrays = read_npz(path, 'it is damaged')
    reader = _Reader(arrays)
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


class _Reader(chainer.serializers.NpzDeserializer):
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
        return _Reader(self.npz, f'{self.path}{key.strip("/")}/', self.used)

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


# Models ---------------------------------------------------------------------------------------------------------------

# Of the names in a model's npz.
_PREFIXES = {'last': '', 'average': 'average/'}


def class_names(model, names):
    """{name: class with its module} for names such as class_of_model, the model itself, and class_of_base, a part."""
    parts = {name: model if name == CLASS + 'model' else getattr(model, name[len(CLASS):], None) for name in names}
    return {name: _class_name(type(part)) for name, part in parts.items()}


def _class_name(cls):
    module = cls.__module__
    if module == '__main__':  # as it is called where it is imported
        module = os.path.splitext(os.path.basename(getattr(sys.modules[module], '__file__', module)))[0]
    return f'{module}.{cls.__name__}'


def save_models(path, models, settings):
    """Writes parameters and the settings of their training to an npz, which is whole or not there at all.

    What says where it was trained is left out, for a model is to be handed on; `start_from` stays as it was given.

    Args:
        path: the npz.
        models: {'last': the trained model, 'average': the averaged one}, or one of the two.
        settings: dict of the script's settings.

    Raises:
        OSError: it cannot be written, or its folder is gone.
    """
    arrays = {'settings': json.dumps({name: value for name, value in settings.items() if name not in CHANGEABLE})}
    for weights, model in models.items():
        arrays.update((_PREFIXES[weights] + name, value) for name, value in _arrays(model).items())
    _write_npz(path, arrays)


def _write_npz(path, arrays):
    """Writes {name: array} to a file of a run, without pickles, and not to a folder that the run has not claimed."""
    folder = os.path.dirname(path) or '.'
    if not os.path.isdir(folder):
        raise FileNotFoundError(f'the folder {folder} is gone, so {os.path.basename(path)} cannot be written: put it '
                                'back, and the same command goes on from its last snapshot')
    with replacing(path) as file, zipfile.ZipFile(file, 'w', allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def settings_in(path):
    """The settings in a model's npz, a dict, before anything else about it is known: they may be of any script.

    Raises:
        ValueError: the file is no npz, or has no settings.
        OSError: it cannot be read.
    """
    arrays = read_npz(path, REMEDY)
    if 'settings' not in arrays or arrays['settings'].dtype.kind != 'U':
        raise ValueError(f'{path} is not a model, for it has no settings: {REMEDY}')
    return _parse_settings(str(arrays['settings']))


def load_model(path, build, checks, earlier, weights='', surplus='/softmax'):
    """A model saved by `save_models`.

    Args:
        path: the npz.
        build: a function of the settings, a dict, that returns the untrained model.
        checks: {name: `settings.Check`}; the file's settings must pass.
        earlier: as of `claim`.
        weights: 'last' or 'average'; '' for the average where the file has one.
        surplus: part of the names of the arrays that the file may have and the model lack: by default those of softmax
            layers for other numbers of classes.

    Returns:
        The model, on the CPU, and the settings of its training; `weights` in these is 'last' or 'average', and
        `all_weights` a list of those that the file has.

    Raises:
        ValueError: the file is not such an npz, or does not fit the model.
        OSError: it cannot be read.
    """
    arrays = read_npz(path, REMEDY, finite=True)
    try:
        settings = _trained_settings(arrays, checks, earlier)
        model = build(settings)
        its = {kind: _group(arrays, kind) for kind in WEIGHTS}
        there = [kind for kind in WEIGHTS if its[kind]]
        weights = weights or there[-1]
        settings.update(weights=weights, all_weights=there)
        if weights not in there:
            raise ValueError(f'it has no {WEIGHTS[weights]}')
        for name, built in class_names(model, [name for name in settings if name.startswith(CLASS)]).items():
            if settings[name] != built:
                raise ValueError(f'its {name} is {shortened(settings[name])}, but {built} is built now')
        ours, its = _arrays(model), its[weights]
        lost = sorted(name for name in its if name not in ours and surplus not in name)
        if lost:
            raise ValueError(f'the model lacks its {", ".join(lost)}')
        missing = sorted(name for name in ours if name not in its)
        if missing:
            raise ValueError(f'it lacks {", ".join(missing)}')
        _fill(model, its)
    except (KeyError, TypeError, ValueError, IndexError, MemoryError) as error:
        raise ValueError(f'{path} is not a model that this script, as it is now, has trained ({error}): {REMEDY}'
                         ) from error
    return model, settings


def take_weights(out, path, load, model, way):
    """Gives the model of a new run the weights of a trained one.

    Of its softmax layers it takes that for `way` classes if the other was trained for them. All others stay the run's
    own, as they are made again where its model is loaded.

    Args:
        out: the run's folder; if there are snapshots, nothing is done, for they have the weights.
        path: npz of the trained model.
        load: function of the path and of ways to add, none here, that returns it and its settings.
        model: on the CPU.
        way: that the run trains.

    Raises:
        ValueError: the file is no model, or of other networks.
        OSError: it cannot be read.
    """
    if snapshots(out):
        return
    trained, settings = load(path, ())
    same = settings['n_outputs_train'] == way
    its = {name: array for name, array in _arrays(trained).items() if same or '/softmax' not in name}
    own = {name: array for name, array in _arrays(model).items() if '/softmax' in name}
    try:
        lost = sorted(set(its) - _fill(model, {**own, **its}))
        if lost:
            raise ValueError(f'it has {", ".join(lost)}, too')
    except ValueError as error:
        raise ValueError(f'start_from = {path!r} is not of the model that these settings make ({error}): give one that '
                         'is, or its own settings') from error


def _trained_settings(arrays, checks, earlier):
    """The settings in a model's npz, a dict."""
    if 'settings' not in arrays or arrays['settings'].dtype.kind != 'U':
        raise ValueError('it has no settings')
    settings = {'data': 'unknown data', **_completed(_parse_settings(str(arrays['settings'])), earlier)}
    missing = [name for name in checks if name not in settings and name not in CHANGEABLE]
    if missing:
        raise ValueError(f'its settings lack {", ".join(missing)}')
    check(settings, checks)
    if not isinstance(settings['data'], str):
        raise ValueError('its settings do not name its data')
    return settings


def _arrays(model):
    """{name: array} of all that a model keeps."""
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(model)
    return serializer.target


def _fill(model, arrays):
    """Gives a model {name: array}, in the order of names, for that of Chainer, a set, varies; returns names used."""
    reader = _Reader(arrays)
    for name, array in sorted(_arrays(model).items()):
        reader(name, array)
    reader.load(model)
    return reader.used


def _group(arrays, weights):
    """{name in the model: array} of the last or the averaged weights in a model's npz."""
    prefix, other = _PREFIXES[weights], _PREFIXES['average']
    return {name[len(prefix):]: array for name, array in arrays.items()
            if name.startswith(prefix) and (prefix or not name.startswith(other)) and name != 'settings'}
