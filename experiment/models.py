"""Trained models and the settings of their training, in an npz that can be handed on."""
import json
import os
import re
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
    """{name: class with its module} for names such as class_of_model, the model itself, and class_of_base, a part.

    Raises:
        ValueError: a part has the name by which files tell averaged weights.
    """
    if any(child.name == 'average' for child in model.children()):
        raise ValueError("the model has a link called average, as files call averaged weights: rename the link")
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
    try:
        return _settings_in(arrays)
    except ValueError as error:
        raise ValueError(f'{path} is not a model ({error}): {REMEDY}') from error


def load_model(path, ways, inserted_scale, weights, build, usual_classes, checks, earlier):
    """A model saved by `save_models`.

    Args:
        path, ways, inserted_scale, weights: as of `train_omniglot.load`.
        build: function of the settings, a dict, and of ways, that returns the untrained model.
        usual_classes: function of the settings: {name: class} of what `build` makes as it stands.
        checks: {name: `settings.Check`}; the file's settings must pass.
        earlier: as of `checkpoints.claim`.

    Returns:
        The model, on the CPU, and the settings of its training; `weights` in these is 'last' or 'average', and
        `all_weights` a list of those that the file has.

    Raises:
        ValueError: the file is not such an npz, or does not fit the model.
        OSError: it cannot be read.
    """
    arrays = read_npz(path, REMEDY, finite=True)
    try:
        settings = {'data': 'unknown data', **completed(_settings_in(arrays), earlier)}
        _check_trained(settings, checks)
        model = build(settings, [settings['n_outputs_train']])
        its = {kind: _group(arrays, kind) for kind in WEIGHTS}
        there = [kind for kind in WEIGHTS if its[kind]]
        if not there:
            raise ValueError('it has no weights')
        weights = weights or there[-1]
        settings.update(weights=weights, all_weights=there)
        if weights not in there:
            raise ValueError(f'it has no {WEIGHTS[weights]}')
        for name, built in class_names(model, [name for name in settings if name.startswith(CLASS)]).items():
            if settings[name] != built:
                raise ValueError(f'its {name} is {shortened(settings[name])}, but {built} is built now')
        ours, its = _arrays(model), its[weights]
        lost = sorted(name for name in its if name not in ours and not _is_softmax(name))  # of another way
        if lost:
            raise ValueError(f'the model lacks its {", ".join(lost)}')
        missing = sorted(name for name in ours if name not in its)
        if missing:
            raise ValueError(f'it lacks {", ".join(missing)}')
        _fill(model, its)
    except (KeyError, TypeError, ValueError, MemoryError) as error:
        raise ValueError(f'{path} is not a model that this script, as it is now, has trained ({error}): {REMEDY}'
                         ) from error
    settings.update(class_names(model, usual_classes(settings)))
    model.add_ways(ways)
    model.initialize_inserted(settings['n_outputs_train'], settings['seed'], inserted_scale)
    return model, settings


def take_weights(out, path, load, model, run):
    """Gives the model of a new run the weights of a trained one.

    Of its softmax layers it takes that for the run's way if the other was trained for it. All others stay the run's
    own, as they are made again where its model is loaded.

    Args:
        out: the run's folder; if there are snapshots, nothing is done, for they have the weights.
        path: npz of the trained model.
        load: function of the path and of ways to add, none here, that returns it and its settings.
        model: on the CPU.
        run: the settings of the run, a dict.

    Raises:
        ValueError: the file is no model, of other networks, or was trained on another split of the run's data.
        OSError: it cannot be read.
    """
    if snapshots(out):
        return
    trained, settings = load(path, ())
    splits = settings.get('split'), run.get('split')
    # All that 'dev' trains on, 'previous' trains on, too.
    if settings['data'] == run['data'] == 'Omniglot' and splits[0] != splits[1] and splits != ('dev', 'previous'):
        raise ValueError(f'start_from = {path!r} was trained on characters of the split {splits[0]!r}, some of which '
                         f'are test characters of split = {splits[1]!r}: give a model of that split')
    digests = settings.get('data_digest'), run.get('data_digest')
    if settings['data'] == run['data'] and all(digests) and digests[0] != digests[1]:
        raise ValueError(f'start_from = {path!r} was trained on {settings["data"]} when it had other images or '
                         'classes, perhaps those that are tested on now: give a model of the data as they are')
    same = settings['n_outputs_train'] == run['n_outputs_train']
    its = {name: array for name, array in _arrays(trained).items() if same or not _is_softmax(name)}
    own = {name: array for name, array in _arrays(model).items() if _is_softmax(name)}
    try:
        lost = sorted(set(its) - _fill(model, {**own, **its}))
        if lost:
            raise ValueError(f'it has {", ".join(lost)}, too')
    except ValueError as error:
        raise ValueError(f'start_from = {path!r} is not of the model that these settings make ({error}): give one that '
                         'is, or its own settings') from error


def _settings_in(arrays):
    """The settings among the arrays of a model's npz, a dict; a ValueError if there are none."""
    if 'settings' not in arrays or arrays['settings'].dtype.kind != 'U':
        raise ValueError('it has no settings')
    try:
        return parse_settings(str(arrays['settings']))
    except ValueError as error:
        raise ValueError(f'the settings in it are damaged: {error}') from error


def _check_trained(settings, checks):
    """Refuses settings of a training that a script cannot have made."""
    for other, script in ('model', 'train_mini_imagenet.py'), ('variant', 'train_omniglot.py'):
        if other in settings and other not in checks:
            raise ValueError(f'it is one of {script}, which tests it')
    missing = [name for name in checks if name not in settings and name not in CHANGEABLE]
    if missing:
        raise ValueError(f'its settings lack {", ".join(missing)}')
    check(settings, checks)
    if not isinstance(settings['data'], str):
        raise ValueError('its settings do not name its data')


def _arrays(model):
    """{name: array} of all that a model keeps."""
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(model)
    return serializer.target


def _is_softmax(name):
    """Whether an array is of a softmax layer, as `Network.add_way` names them."""
    return re.search(r'/softmax\d+/', name)


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
