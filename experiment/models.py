"""Trained models and the settings of their training, in an npz that can be handed on."""
import json
import os
import sys

from experiment.checkpoints import CHANGEABLE, CLASS, Reader, completed, parse_settings, snapshots, write_npz
from experiment.settings import check, shortened
from ops.compat import chainer
from sources.archives import read_npz

# How a model's weights are called, in results and in files, where there is also their average.
WEIGHTS = {'last': 'last iterate', 'average': 'averaged weights'}

# Of the names in a model's npz.
_PREFIXES = {'last': '', 'average': 'average/'}

REMEDY = 'give a model.npz or best.npz of a run'


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
    write_npz(path, arrays)


def settings_in(path):
    """The settings in a model's npz, a dict, before anything else about it is known: they may be of any script.

    Raises:
        ValueError: the file is no npz, or has no settings.
        OSError: it cannot be read.
    """
    arrays = read_npz(path, REMEDY)
    if 'settings' not in arrays or arrays['settings'].dtype.kind != 'U':
        raise ValueError(f'{path} is not a model, for it has no settings: {REMEDY}')
    try:
        return parse_settings(str(arrays['settings']))
    except ValueError as error:
        raise ValueError(f'the settings in {path} are damaged ({error}): {REMEDY}') from error


def load_model(path, build, checks, earlier, weights='', surplus='/softmax'):
    """A model saved by `save_models`.

    Args:
        path: the npz.
        build: a function of the settings, a dict, that returns the untrained model.
        checks: {name: `settings.Check`}; the file's settings must pass.
        earlier: as of `checkpoints.claim`.
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
    settings = {'data': 'unknown data', **completed(parse_settings(str(arrays['settings'])), earlier)}
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
    reader = Reader(arrays)
    for name, array in sorted(_arrays(model).items()):
        reader(name, array)
    reader.load(model)
    return reader.used


def _group(arrays, weights):
    """{name in the model: array} of the last or the averaged weights in a model's npz."""
    prefix, other = _PREFIXES[weights], _PREFIXES['average']
    return {name[len(prefix):]: array for name, array in arrays.items()
            if name.startswith(prefix) and (prefix or not name.startswith(other)) and name != 'settings'}
