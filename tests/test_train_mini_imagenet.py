"""train_mini_imagenet.py: the paper's protocol, on invented textures and on files of images."""
import json
import os

import numpy as np
import pytest
from small_runs import ROOT
from small_scripts import SMALL, TEXTURES, call, refusal, save_parts, train

import data
import train_mini_imagenet


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Its name; runs are in a folder that has images in `images`."""
    monkeypatch.chdir(tmp_path)
    save_parts('images')
    return 'train_mini_imagenet'


@pytest.mark.parametrize('model, options, name', [
    ('partial', [], 'partial'),
    ('partial', ['--hidden_scale=2'], 'partial, hidden scale 2.0'),
    ('partial, u', ['--centred=fc', '--hidden_scale=1', '--fast_scale=4'],
     'partial, u, centred: fc, hidden scale 1.0, fast scale 4.0')])
def test_the_best_models_test_is_the_result(script, capsys, model, options, name):
    train(script, '--input_path=images', '--model', model, *options, '--n_outputs_train=6')
    lines = capsys.readouterr().out.splitlines()
    assert {'best.npz', 'best_average.npz', 'model.npz', 'log.csv', 'final_test.csv'} <= set(os.listdir('here'))
    for weights, best, line in ('last iterate', 'best', lines[-3]), ('averaged weights', 'best_average', lines[-1]):
        its_name = name.replace(model, f'{model}, 4 filters, {weights}')
        assert f'MetaNet ({its_name}) trained 6-way, on own data (images), 5-way 1-shot' in line
        # The only epoch's model is the best: its test is repeated.
        call(script, '--evaluate', f'here/{best}.npz', '--n_test_episodes=2', '--n_queries_test=2',
             '--input_path=images')
        assert capsys.readouterr().out.splitlines() == [line]
    call(script, '--evaluate=here/best.npz', '--n_test_episodes=2', '--n_queries_test=2', '--input_path=images',
         '--views=mirrored')
    assert ', views: mirrored' in capsys.readouterr().out
    for classes, words in ('dev', 'dev'), ('train', 'training'):
        call(script, '--evaluate=here/best.npz', '--n_test_episodes=2', '--n_queries_test=2', '--input_path=images',
             '--evaluate_on', classes)
        shown = capsys.readouterr().out
        assert f'on own data (images), tested on {words} classes, 5-way' in shown and 'no such number' in shown


def test_training_images_alone_are_mirrored(script, capsys, monkeypatch):
    made = []
    sampler = data.EpisodeSampler
    monkeypatch.setattr(data, 'EpisodeSampler', lambda *args, **settings: (
        made.append(settings['mirror']) or sampler(*args, **settings)))
    train(script, '--input_path=images', '--mirror=True')
    assert made == [True, False, False] and 'mirrored images' in capsys.readouterr().out


def test_without_images_it_runs_on_textures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train('train_mini_imagenet')
    shown = capsys.readouterr()
    assert 'NOT MINI-IMAGENET' in shown.err and 'trained 5-way, on synthetic textures' in shown.out


def test_a_model_is_not_tested_on_images_of_another_size(script, capsys):
    train(script, '--input_path=images')
    assert refusal(script, '--evaluate', 'here/best.npz') == (
        'error: the model to evaluate was trained on images of size 32 with 3 channels, those in data/miniImagenet are '
        'of size 84 with 3: give others (input_path)')


def test_a_model_of_which_only_the_average_is_sound_is_refused(script):
    train(script, '--input_path=images')
    with np.load('here/model.npz') as file:
        np.savez('bad.npz', **{name: array for name, array in file.items() if name != 'base/fc1/W'})
    words = refusal(script, '--evaluate=bad.npz', '--input_path=images', '--n_queries_test=2')
    assert 'bad.npz is not a model that this script' in words


def test_a_folder_that_was_named_is_not_replaced_by_textures(script):
    end = refusal(script, '--out=here', '--input_path=none')
    assert 'train.npz' in end and 'missing' in end
    assert not os.path.exists('here')


def test_classes_in_two_files_are_refused(script):
    data.save_classes('images/dev.npz', dict(TEXTURES[:7]))
    assert 'is in both' in refusal(script, '--out=here', '--input_path=images')


def test_a_run_of_an_earlier_version_had_as_many_queries_in_tests_as_in_training(script, capsys):
    train(script, '--input_path=images', '--n_queries_test=3')
    with open('here/settings.json', encoding='utf-8') as file:
        settings = json.load(file)
    assert settings.pop('n_queries_test') == 3
    with open('here/settings.json', 'w', encoding='utf-8') as file:
        json.dump(settings, file)
    assert 'n_queries_test (3 there, 2 now)' in refusal(script, *SMALL[script], '--input_path=images', '--n_epoch=2')
    os.remove('here/best.npz')
    train(script, '--input_path=images', '--n_queries_test=3', '--n_epoch=2')
    shown = capsys.readouterr()
    assert 'going on after 1 episodes' in shown.out
    assert 'best.npz is missing' in shown.err and 'best_average.npz' not in shown.err


def test_a_model_of_the_other_script_is_named_as_such(script):
    end = refusal(script, '--evaluate', os.path.join(ROOT, 'assets', 'omniglot_5way.npz'))
    assert 'omniglot_5way.npz' in end and 'it is one of train_omniglot.py, which tests it' in end


def test_a_run_starts_from_the_best_of_another(script, capsys):
    train(script, '--input_path=images')
    train(script, '--input_path=images', '--start_from=here/best.npz', '--n_outputs_train=6', '--alpha=1e-30',
          '--out=there')
    assert 'started from here/best.npz' in capsys.readouterr().out
    before, after = (dict(train_mini_imagenet.load(path, [5])[0].namedparams())
                     for path in ('here/best.npz', 'there/best.npz'))
    assert before['/embed/conv5/W'].array.any()
    assert all((param.array == after[name].array).all() for name, param in before.items() if 'softmax' not in name)
