"""The training scripts: every setting reaches what it is meant for, and every part of the data what it is for."""
import importlib
import inspect

import numpy as np
import pytest
from small_runs import same
from small_scripts import SMALL, call, save_parts, save_strokes, train

import data
from experiment.evaluation import Best, Tasks
from metanet import F
from ops.compat import chainer

DATA = {'train_omniglot': '--input_path=strokes', 'train_mini_imagenet': '--input_path=images'}
scripts = pytest.mark.parametrize('script', list(DATA))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Runs are in a folder that has invented characters in `strokes`, and images in `images`."""
    monkeypatch.chdir(tmp_path)
    save_strokes('strokes')
    save_parts('images')


@pytest.fixture
def calls(monkeypatch):
    """Function of an object and a name of its: a list that gets the arguments of all calls, {parameter: value}."""
    def record(place, name):
        original, found = getattr(place, name), []
        signature = inspect.signature(original)

        def recorded(*args, **settings):
            bound = signature.bind(*args, **settings)
            bound.apply_defaults()
            found.append(bound.arguments)
            return original(*args, **settings)

        monkeypatch.setattr(place, name, recorded)
        return found

    return record


def classes_of(path):
    return list(data.load_classes(path))


@scripts
def test_settings_of_the_training_arrive(script, calls):
    module = importlib.import_module(script)
    adam, hook = calls(chainer.optimizers, 'Adam'), calls(module, 'Clipping')
    decay, average, updater = calls(module, 'decay'), calls(module, 'Average'), calls(module, 'EpisodeUpdater')
    train(script, DATA[script], '--alpha=0.002', '--amsgrad=True', '--clip=3', '--clipping=apart', '--inverse_decay=7',
          '--average_decay=0.5', '--n_episodes=2', '--n_episodes_per_update=2')
    assert [(found['alpha'], found['amsgrad']) for found in adam] == [(0.002, True)]
    assert [list(found.values()) for found in hook] == [[3.0, True]]
    assert [list(found.values())[1:] for found in decay] == [[1, 0, 7]]
    assert [list(found.values())[1:] for found in average] == [[0.5]]
    assert [list(found.values())[3:] for found in updater] == [[2, 2]]
    train(script, DATA[script], '--n_decay=1', '--out=there')
    assert [list(found.values())[1:] for found in decay[1:]] == [[1, 1, 0]]
    train(script, DATA[script], '--average_decay=0', '--out=elsewhere')
    assert len(decay) == 2 and len(average) == 2


@scripts
def test_settings_of_the_model_arrive(script):
    train(script, DATA[script], '--n_steps=3')
    model, _ = importlib.import_module(script).load('here/model.npz', [5])
    assert model.n_steps == 3 and model.task_level and len(model.embed.conv1.W) == 4
    assert model.embed.fc1.activation is None and model.base.fc1.activation is F.relu


def drawn(found):
    """What samplers draw: classes' names, way, shot, queries, seed, distortion."""
    return [(list(one['classes']), one['way'], one['shot'], one['n_query'], one['seed'], one['distortion'])
            for one in found]


WORDS = ('--n_outputs_train=6', '--n_outputs_test=4', '--nb_samples_per_class=2', '--nb_samples_per_class_test=3',
         '--n_queries=1', '--distortion=1', '--seed=9')


def test_omniglots_samplers_draw_from_the_right_classes(calls):
    found, tested = calls(data, 'EpisodeSampler'), calls(Tasks, '__init__')
    train('train_omniglot', DATA['train_omniglot'], *WORDS)
    new = classes_of('strokes/test.npz'), 4, 3, 2
    assert drawn(found) == [(classes_of('strokes/train.npz'), 6, 2, 1, (9, 0), 1.0), (*new, (9, 1, 4), 0),
                            (*new, (9, 2, 4), 0)]
    assert [one['same'] for one in tested] == [False]


def test_mini_imagenets_samplers_draw_from_the_right_classes(calls):
    found, tested = calls(data, 'EpisodeSampler'), calls(Tasks, '__init__')
    train('train_mini_imagenet', DATA['train_mini_imagenet'], *WORDS)
    assert drawn(found) == [(classes_of('images/train.npz'), 6, 2, 1, (9, 0), 1.0),
                            (classes_of('images/dev.npz'), 4, 3, 2, (9, 1), 0),
                            (classes_of('images/test.npz'), 4, 3, 2, (9, 2), 0)]
    assert [one['same'] for one in tested] == [True]
    found.clear()
    for part in 'train', 'dev', 'test':
        call('train_mini_imagenet', '--evaluate=here/best.npz', DATA['train_mini_imagenet'], '--n_test_episodes=2',
             '--n_queries_test=2', '--evaluate_on', part)
    assert [list(one['classes']) for one in found] == [classes_of(f'images/{part}.npz')
                                                       for part in ('train', 'dev', 'test')]


def test_each_weights_are_chosen_by_their_own_dev_accuracy_and_kept(calls):
    found = calls(Best, '__init__')
    train('train_mini_imagenet', DATA['train_mini_imagenet'])
    assert [(one['weights'], one['dev_accuracy']) for one in found] == [
        ('last', 'dev/5-way/accuracy'), ('average', 'average/dev/5-way/accuracy')]
    load = importlib.import_module('train_mini_imagenet').load
    last, average = (load('here/model.npz', [5], weights=weights)[0] for weights in ('last', 'average'))
    assert not same(last, average)
    assert same(load('here/best.npz', [5])[0], last) and same(load('here/best_average.npz', [5])[0], average)


def test_inserted_layers_are_those_of_the_runs_seed():
    train('train_omniglot', DATA['train_omniglot'], '--seed=3', '--n_outputs_test=5,8')
    model, _ = importlib.import_module('train_omniglot').load('here/model.npz', [8], weights='last')
    with np.load('here/model.npz') as file:
        np.testing.assert_array_equal(model.base.softmax8.W.array, file['base/softmax8/W'])


@scripts
def test_a_run_that_starts_from_another_takes_its_softmax_layer_of_the_same_way(script):
    train(script, DATA[script])
    call(script, *SMALL[script], DATA[script], '--start_from=here/model.npz', '--alpha=1e-30', '--out=there')
    load = importlib.import_module(script).load
    before, after = load('here/model.npz', [5])[0], load('there/model.npz', [5], weights='last')[0]
    np.testing.assert_array_equal(before.base.softmax5.W.array, after.base.softmax5.W.array)
