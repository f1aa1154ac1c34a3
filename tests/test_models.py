"""Files of trained models that have been tampered with, by the scripts that load them."""
import json
import os
import shutil

import numpy as np
import pytest
from small_runs import ROOT

import train_omniglot
from experiment.models import class_names, take_weights
from metanet import MLP, MetaNet
from ops.compat import L

MODEL = os.path.join(ROOT, 'assets', 'omniglot_5way.npz')


def tampered(path, described=None, **changes):
    """Writes the shipped model with other arrays, and described by other settings; arrays that are None go."""
    with np.load(MODEL) as file:
        arrays = {name: file[name] for name in file.files}
    if described is not None:
        changes['settings'] = json.dumps({**json.loads(str(arrays['settings'])), **described})
    arrays.update({name.replace('__', '/'): value for name, value in changes.items()})
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


class Runs:
    """Pickles to a command."""

    def __reduce__(self):
        return os.mkdir, ('ran',)


@pytest.mark.parametrize('changes, message', [
    ({'base__conv1__W': np.float32(0.1)}, r'base/conv1/W is float32 \(\), not float32 \(64, 1, 3, 3\)'),
    ({'base__conv1__W': np.zeros((64, 1, 3, 1), np.float32)}, r'base/conv1/W is float32 \(64, 1, 3, 1\), not'),
    ({'base__conv1__W': np.zeros((64, 1, 3, 3))}, 'base/conv1/W is float64'),
    ({'base__conv1__W': np.zeros((64, 1, 3, 3), 'U3')}, 'base/conv1/W is <U3'),
    ({'m_fc__l1__b': np.full(20, np.nan, np.float32)}, 'NaN or infinite'),
    ({'m_fc__l1__b': np.full(20, np.inf, np.float32)}, 'NaN or infinite'),
    ({'m_fc__l1__b': np.array([Runs()] * 20)}, 'Python objects'),
    ({'settings': np.array(Runs(), object)}, 'Python objects'),
    ({'settings': None}, 'it has no settings'), ({'settings': np.arange(3)}, 'it has no settings'),
    ({'settings': ''}, 'is not a model'), ({'settings': 'null'}, 'it holds no settings by name'),
    ({'settings': '[' * 99999}, 'its brackets go too deep'), ({'settings': b'{}'}, 'it has no settings'),
    ({'base__conv6__W': np.float32(0)}, 'the model lacks its base/conv6/W'),
    ({'embed__fc1__W': None}, 'it lacks embed/fc1/W'), ({'base__softmax5__W': None}, 'it lacks base/softmax5/W'),
])
def test_tampered_arrays_are_refused_and_run_nothing(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    path = tampered(tmp_path / 'model.npz', **changes)
    with pytest.raises(ValueError, match=f'model.npz.*{message}.*[:;] give a model.npz'):
        train_omniglot.load(path, [5])
    assert os.listdir(tmp_path) == ['model.npz']


@pytest.mark.parametrize('name, value', [
    ('n_filters', 10 ** 9), ('n_filters', 0), ('n_filters', '64'), ('n_filters', None), ('n_filters', 64.5),
    ('n_filters', True), ('n_filters', [64]), ('n_steps', -1), ('n_outputs_train', 1), ('n_outputs_train', 10 ** 12),
    ('seed', 2 ** 64), ('seed', -1), ('alpha', float('nan')), ('variant', 'Net'), ('split', '../x'), ('centred', {}),
    ('image_size', 10 ** 6), ('channels', 4), ('n_outputs_test', []), ('n_episodes_per_update', 7),
])
def test_settings_in_a_model_must_pass_as_those_of_the_command_line(tmp_path, name, value):
    path = tampered(tmp_path / 'model.npz', {name: value})
    with pytest.raises(ValueError, match=f'model.npz is not a model .*{name} = .*: give a model.npz'):
        train_omniglot.load(path, [5])


@pytest.mark.parametrize('settings, message', [
    ({'data': 5}, 'do not name its data'), ({'class_of_base': 'metanet.MLP'}, "class_of_base is 'metanet.MLP'"),
    ({'class_of_none': 5}, 'class_of_none is 5'), ({'n_filters': 32}, 'float32'),
])
def test_other_settings_than_the_arrays_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=f'model.npz is not a model .*{message}'):
        train_omniglot.load(tampered(tmp_path / 'model.npz', settings), [5])


def test_sizes_that_no_memory_holds_are_refused(tmp_path):
    path = tampered(tmp_path / 'model.npz', {'image_size': 4096})
    with pytest.raises(ValueError, match='model.npz is not a model .*Unable to allocate'):
        train_omniglot.load(path, [5])


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no pipes by name')
def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for path in tmp_path, tmp_path / 'pipe', tmp_path / 'none', '/dev/zero':
        with pytest.raises(OSError, match='does not exist or is no file'):
            train_omniglot.load(str(path), [5])


def test_a_copy_loads(tmp_path):
    shutil.copy(MODEL, tmp_path)
    train_omniglot.load(str(tmp_path / 'omniglot_5way.npz'), [5])
    train_omniglot.load(tampered(tmp_path / 'model.npz', {'n_outputs_test': [5, 10], 'note': 'mine'}), [5])


def test_a_layer_that_is_called_softmax_something_is_no_softmax_layer(tmp_path):
    class Gated(MLP):
        def __init__(self):
            super().__init__(4)
            with self.init_scope():
                self.softmax_gate = L.Linear(4, 4)

    trained, model = MetaNet(Gated(), MLP(4), [3]), MetaNet(Gated(), MLP(4), [5])
    settings = {'data': 'own data (x)', 'n_outputs_train': 3}
    take_weights(str(tmp_path), 'there.npz', lambda path, ways: (trained, settings), model,
                 dict(settings, n_outputs_train=5))
    assert (model.base.softmax_gate.W.array == trained.base.softmax_gate.W.array).all()
    assert (model.base.fc1.W.array == trained.base.fc1.W.array).all()


def test_a_part_that_files_would_take_for_averaged_weights_is_refused():
    model, settings = train_omniglot.load(MODEL, [5])
    with model.init_scope():
        model.average = model.base.fc1.copy()
    with pytest.raises(ValueError, match='a link called average'):
        class_names(model, train_omniglot.usual_classes(settings))
