"""train_omniglot.py: trainings, tests of a trained model, and the paper's numbers."""
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_runs import ROOT, rows, same
from small_scripts import SMALL, STROKES, TEXTURES, call, refusal, save_strokes, train

import data
import train_omniglot
from beyond import Views
from experiment.models import take_weights
from metanet import CNN, MetaNet


def prepare(folder, patch):
    """Lets runs be in a folder, and on invented characters. Returns the script's name."""
    patch.chdir(folder)
    patch.setattr(data, 'omniglot', lambda input_path, split: (dict(STROKES[:18]), dict(STROKES[18:]),
                                                               'synthetic strokes'))
    return 'train_omniglot'


@pytest.fixture
def script(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder in which a training has made `here/model.npz`."""
    folder = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as patch:
        train(prepare(folder, patch), '--n_outputs_test=5,8')
    return folder


def test_it_runs_anywhere_as_a_program_and_says_that_it_is_not_omniglot(tmp_path):
    offline = {name: value for name, value in os.environ.items() if name != 'OMNIGLOT_DIR'}
    offline.update(http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9')  # where nobody listens
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, 'train_omniglot.py'), '--input_path', 'data', '--n_epoch', '1',
         '--n_episodes', '2', '--n_test_episodes', '2', '--n_final_episodes', '3', '--n_filters', '4',
         '--n_outputs_test', '5,8', '--out', 'here'], capture_output=True, text=True, cwd=str(tmp_path), env=offline)
    assert done.returncode == 0, done.stderr
    assert 'NOT OMNIGLOT' in done.stderr
    assert '\r' not in done.stderr + done.stdout  # no progress bars
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and all('synthetic' in line for line in lines)
    assert 'the paper has no such number' in lines[1] and '8-way 1-shot' in lines[2]
    assert '(4 filters, last iterate)' in lines[2]
    assert '(4 filters, averaged weights)' in lines[3] and '5-way 1-shot' in lines[3]
    pixels = [line.partition(';')[2] for line in lines[1:]]
    assert pixels[:2] == pixels[2:]  # both on the same episodes
    with open(tmp_path / 'here' / 'settings.json') as file:
        settings = json.load(file)
    assert settings['data'] == 'synthetic strokes' and settings['n_filters'] == 4


def test_evaluate_repeats_the_final_test(script, capsys):
    train(script, '--n_outputs_test=5,8')
    printed = capsys.readouterr().out
    before = sorted(os.listdir('here'))
    # The file knows the model: its number of filters need not be given again.
    call(script, '--evaluate', 'here/model.npz', '--n_outputs_test=5,8,7', '--n_queries_test=2', '--n_final_episodes=3')
    lines = capsys.readouterr().out.splitlines()
    last, average = lines[:3], lines[3:]
    assert last[:2] + average[:2] == printed.splitlines()[-4:]
    assert '7-way 1-shot' in last[2] and '7-way 1-shot' in average[2]
    assert sorted(os.listdir('here')) == before


def test_data_of_ones_own_may_have_another_size_and_be_in_colour(script, monkeypatch, capsys):
    monkeypatch.setattr(data, 'omniglot', lambda *args: (dict(TEXTURES[:12]), dict(TEXTURES[12:]), 'own data (mine)'))
    train(script, '--rotations=classes')
    assert 'trained 5-way, on own data (mine), 5-way 1-shot' in capsys.readouterr().out
    call(script, '--evaluate=here/model.npz', '--n_queries_test=2', '--n_final_episodes=3')
    monkeypatch.setattr(data, 'omniglot', lambda *args: (dict(STROKES[:18]), dict(STROKES[18:]), 'synthetic strokes'))
    assert refusal(script, '--evaluate=here/model.npz', '--input_path=folder') == (
        'error: the model to evaluate was trained on images of size 32 with 3 channels, those in folder are of size 28 '
        'with 1: give others (input_path)')


def test_other_images_in_a_folder_of_the_same_name_are_other_data(script, monkeypatch, capsys):
    def give(classes):
        monkeypatch.setattr(data, 'omniglot', lambda *args: (dict(classes[:18]), dict(classes[18:]), 'own data (mine)'))

    give(STROKES)
    train(script)
    give(STROKES[::-1])
    assert 'holds a run with other settings: data_digest (' in refusal(script, *SMALL[script], '--n_epoch=2')
    capsys.readouterr()
    for classes, words in (STROKES, 'on own data (mine), 5-way'), (STROKES[::-1], 'own data (mine) with other images'):
        give(classes)
        call(script, '--evaluate=here/model.npz', '--n_queries_test=2', '--n_final_episodes=3')
        assert words in capsys.readouterr().out


def test_characters_are_turned_and_what_must_not_be_turned_is_not(script, monkeypatch):
    seen = []

    def sampler(classes, *args, rotate, **settings):
        seen.append(rotate)
        raise ValueError('seen')

    monkeypatch.setattr(data, 'EpisodeSampler', sampler)
    for rotations in 'episode', 'none', 'classes':
        assert refusal(script, f'--rotations={rotations}') == 'error: seen'
    assert seen == [True, False, False]


def test_evaluate_refuses_what_the_model_was_not_trained_with(script, trained):
    end = refusal(script, '--evaluate', str(trained / 'here/model.npz'), '--n_filters', '4', '--split', 'standard')
    assert "split = 'standard', but the model to evaluate was trained with 'previous'" in end


def test_a_model_is_tested_on_its_own_split(script, monkeypatch):
    seen = []
    omniglot = data.omniglot
    monkeypatch.setattr(data, 'omniglot', lambda input_path, split: seen.append(split) or omniglot(input_path, split))
    train(script, '--split=dev')
    call(script, '--evaluate=here/model.npz', '--n_queries_test=2', '--n_final_episodes=3')
    assert seen == ['dev', 'dev']


def test_a_model_is_tested_on_the_classes_it_was_trained_on(script, trained, capsys, monkeypatch):
    seen = []
    sampler = data.EpisodeSampler
    monkeypatch.setattr(data, 'EpisodeSampler', lambda classes, *args, **settings: (
        seen.append(len(classes)) or sampler(classes, *args, **settings)))
    monkeypatch.setattr(data, 'omniglot', lambda *args: (dict(STROKES[:18]), dict(STROKES[18:]), 'Omniglot'))
    lines = []
    for classes in 'train', 'test':
        call(script, '--evaluate', str(trained / 'here/model.npz'), '--n_queries_test=2', '--n_final_episodes=3',
             '--evaluate_on', classes)
        lines.append(capsys.readouterr().out)
    assert seen == [18, len(STROKES) - 18]
    assert 'tested on Omniglot training classes, 5-way' in lines[0] and 'tested on Omniglot, 5-way' in lines[1]


def test_a_test_with_views_takes_their_keys_and_says_so(script, trained, capsys, monkeypatch):
    seen = []
    forward = Views.forward
    monkeypatch.setattr(Views, 'forward', lambda self, x: seen.append(self.views) or forward(self, x))
    for views in 'shifted', 'shifted, mirrored':
        call(script, '--evaluate', str(trained / 'here/model.npz'), '--n_queries_test=2', '--n_final_episodes=3',
             '--views', views)
        assert f', views: {views})' in capsys.readouterr().out
        assert seen and all(names == views.split(', ') for names in seen)
        seen.clear()


def test_results_name_what_was_trained_and_tested_on():
    settings = {'split': 'previous', 'variant': 'MetaNet-', 'n_outputs_train': 5, 'data': 'Omniglot', 'centred': 'fc'}
    assert train_omniglot.label(settings, 'Omniglot') == (
        'MetaNet- (centred: fc) trained 5-way, on Omniglot, previous split')
    settings.update(nb_samples_per_class=3, rotations='classes', n_episodes_per_update=4, distortion=0.5)
    assert train_omniglot.label(settings, 'Omniglot').startswith(
        'MetaNet- (centred: fc, 3-shot, rotations: classes, distortion 0.5, 4 episodes an update) trained')
    settings.update(centred='', nb_samples_per_class=1, rotations='episode', n_episodes_per_update=1, distortion=0,
                    n_decay=30, inverse_decay=0)
    assert train_omniglot.label(settings, 'Omniglot').startswith('MetaNet- (learning rate falling over 30 epochs) tr')
    settings.update(n_decay=0, inverse_decay=2000)
    assert train_omniglot.label(settings, 'Omniglot').startswith('MetaNet- (inverse_decay 2000) trained')
    settings.update(inverse_decay=0, initialisation='chainer', alpha=0.01, clip=1.0)
    assert train_omniglot.label(settings, 'Omniglot').startswith(
        'MetaNet- (initialisation: chainer, alpha 0.01, clip 1.0) trained')
    settings.update(initialisation='uniform', alpha=1e-3, clip=10.0)
    settings['data'] = 'synthetic strokes'
    assert train_omniglot.label(settings, 'Omniglot') == (
        'MetaNet- trained 5-way, on synthetic strokes, tested on Omniglot')
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot') == {}


def test_inserted_softmax_layers_are_the_same_each_time(trained):
    path = str(trained / 'here' / 'model.npz')
    model, settings = train_omniglot.load(path, [9])
    last, its_settings = train_omniglot.load(path, [9], weights='last')
    assert (settings['weights'], its_settings['weights']) == ('average', 'last')
    assert not same(model, last) and (model.base.softmax9.W.array == last.base.softmax9.W.array).all()
    again, _ = train_omniglot.load(path, [9])
    assert settings['n_filters'] == 4 and same(model, again)
    assert not {'input_path', 'out', 'gpu'} & set(settings)  # a model is handed on without its maker's paths
    assert 0.09 < abs(model.base.softmax9.W.array).max() < 0.1
    quieter, _ = train_omniglot.load(path, [9], inserted_scale=0.001)
    np.testing.assert_allclose(quieter.base.softmax9.W.array, 0.01 * model.base.softmax9.W.array, rtol=1e-5)
    assert (quieter.base.fc1.W.array == model.base.fc1.W.array).all()
    among_others, _ = train_omniglot.load(path, [5, 8, 9])
    assert (among_others.base.softmax9.W.array == model.base.softmax9.W.array).all()
    # The file has a softmax layer for 8 classes, too, but training hasn't seen it.
    quieter, _ = train_omniglot.load(path, [8], inserted_scale=0.001)
    assert abs(quieter.base.softmax8.W.array).max() < 0.001


def save_npy(path):
    with open(path, 'wb') as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize('damage, message', [
    (lambda path: path.write_bytes(b'no npz'), 'is not an npz file'),
    (save_npy, 'is not an npz file'),
    (lambda path: np.savez(path, a=1), 'it has no settings'),
    (lambda path: np.savez(path, settings='{"seed": 0}'), 'its settings lack n_outputs_train'),
    (lambda path: np.savez(path, settings='{"model": "partial"}'), 'it is one of train_mini_imagenet.py, which tests'),
    (lambda path: path.unlink(missing_ok=True), 'model.npz does not exist'),
])
def test_evaluate_refuses_what_is_no_model(script, tmp_path, damage, message):
    damage(tmp_path / 'model.npz')
    end = refusal(script, '--evaluate', 'model.npz')
    assert end.startswith('error: model.npz ') and message in end


def test_a_model_that_lacks_a_part_is_refused(trained, tmp_path):
    with np.load(trained / 'here' / 'model.npz') as file:
        np.savez(tmp_path / 'model.npz', **{name: file[name] for name in file if name != 'average/m_fc/l2/b'})
    with pytest.raises(ValueError, match='it lacks m_fc/l2/b'):
        train_omniglot.load(str(tmp_path / 'model.npz'), [5])


def test_a_model_is_refused_by_a_network_that_lacks_a_part(trained, monkeypatch):
    class Convolutions(CNN):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            del self.fc1

    Convolutions.__name__, Convolutions.__module__ = 'CNN', 'metanet'  # as if it had been changed in place
    monkeypatch.setattr(train_omniglot, 'CNN', Convolutions)
    with pytest.raises(ValueError, match='the model lacks its base/fc1/W, embed/fc1/W'):
        train_omniglot.load(str(trained / 'here' / 'model.npz'), [5])


def test_each_number_of_the_paper_is_for_its_own_setting():
    settings = {'split': 'previous', 'variant': 'MetaNet', 'n_outputs_train': 5, 'nb_samples_per_class': 1,
                'data': 'Omniglot'}
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot') == {5: 98.95, 10: 96.4, 15: 93.6, 20: 93.07}
    settings['n_outputs_train'] = 20
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot')[5] == 99.55
    settings['split'] = 'standard'
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot') == {20: 95.92}
    assert train_omniglot.paper_accuracies(settings, 5, 'Omniglot') == {}
    assert train_omniglot.paper_accuracies(settings, 1, 'synthetic strokes') == {}
    settings['nb_samples_per_class'] = 5
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot') == {}


def test_a_terminal_has_a_progress_bar(tmp_path):
    pty = pytest.importorskip('pty')
    save_strokes(tmp_path)
    terminal, end = pty.openpty()
    process = subprocess.Popen([sys.executable, os.path.join(ROOT, 'train_omniglot.py'), '--input_path', str(tmp_path),
                                *SMALL['train_omniglot']], stdin=end, stdout=end, stderr=end, cwd=str(tmp_path))
    os.close(end)
    shown = bytearray()
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while True:
            part = os.read(terminal, 1024)
            if not part:
                break
            shown.extend(part)
    os.close(terminal)
    assert process.wait() == 0
    text = shown.decode()
    assert 'this epoch [' in text and 'epoch 1 (1 episodes)' in text and '5-way 1-shot' in text


@pytest.mark.parametrize('initialisation', ['uniform', 'chainer'])
def test_the_seed_decides_all(script, initialisation):
    logs = []
    for i, seed in enumerate('112'):
        train(script, '--initialisation', initialisation, '--seed', seed, '--out', f'run{i}')
        logs.append(rows(f'run{i}'))
    assert logs[0] == logs[1] != logs[2]


def test_more_epochs_go_on_bit_for_bit(script):
    for n_epoch, out in (1, 'stopped'), (2, 'stopped'), (2, 'straight'):
        train(script, f'--n_epoch={n_epoch}', '--out', out)
    assert rows('stopped') == rows('straight')
    stopped, straight = (train_omniglot.load(f'{out}/model.npz', [5])[0] for out in ('stopped', 'straight'))
    assert same(stopped, straight)


@pytest.mark.parametrize('words, message', [
    (['--centred', 'softmax'], "centred = 'softmax': must be '', or some of 'conv', 'fc', 'keys', in this order"),
    (['--centred', 'fc,'], "centred = 'fc,': must be '', or some of"),
    (['--variant', 'MetaNet*'], "variant = 'MetaNet*': must be one of 'MetaNet', 'MetaNet-', 'MetaNet+'"),
    (['--variant', 'MetaNet+', '--centred', 'fc'], "centred = 'fc' goes with MetaNet and MetaNet-"),
    (['--split', 'mine'], "split = 'mine': must be one of 'previous', 'standard', 'dev'"),
    (['--nb_samples_per_class', '15', '--n_queries', '10'], 'shot + n_query = 25'),
    (['--n_outputs_train', '19'], '19-way episodes need 19 classes'),
    (['--gpu', '99'], 'gpu = 99 cannot be used'),
])
def test_bad_settings_are_refused_before_any_work(script, words, message):
    assert message in refusal(script, '--out', 'here', *words)
    assert not os.path.exists('here')


class Wide(CNN):
    """A network of one's own, of which no parameter tells."""


def test_a_network_of_ones_own_is_named_and_not_compared_with_the_paper(script, monkeypatch, capsys):
    monkeypatch.setattr(data, 'omniglot', lambda *args: (dict(STROKES[:18]), dict(STROKES[18:]), 'Omniglot'))
    monkeypatch.setattr(train_omniglot, 'SIZES', {'n_filters': 4, 'n_steps': 5})  # as if small were the paper's
    train(script)
    assert 'MetaNet (last iterate) trained' in capsys.readouterr().out
    monkeypatch.setattr(train_omniglot, 'CNN', Wide)
    train(script, '--out=wide')
    shown = capsys.readouterr().out
    name = 'MetaNet (base: test_train_omniglot.Wide, embed: test_train_omniglot.Wide, last iterate) trained'
    assert name in shown and 'the paper has no such number' in shown and '98.95' not in shown
    call(script, '--evaluate=wide/model.npz', '--n_queries_test=2', '--n_final_episodes=3')
    again = capsys.readouterr().out
    assert name in again and '98.95' not in again and again.splitlines() == shown.splitlines()[1:]


def test_a_network_of_another_class_neither_goes_on_nor_loads(script, trained, monkeypatch):
    train(script)
    path = str(trained / 'here' / 'model.npz')
    monkeypatch.setattr(train_omniglot, 'CNN', Wide)
    with pytest.raises(ValueError, match="class_of_base is 'metanet.CNN', but test_train_omniglot.Wide is built now"):
        train_omniglot.load(path, [5])
    end = refusal(script, *SMALL[script], '--n_epoch=2')
    assert "other settings: class_of_base ('metanet.CNN' there, 'test_train_omniglot.Wide' now), class_of_embed" in end


def test_only_the_papers_own_model_is_compared_with_it():
    settings = {'split': 'previous', 'variant': 'MetaNet', 'n_outputs_train': 5, 'nb_samples_per_class': 1,
                'data': 'Omniglot', 'n_filters': 64, 'n_steps': 5, 'centred': ''}
    settings.update(train_omniglot.usual_classes(settings))
    assert train_omniglot.paper_accuracies(settings, 1, 'Omniglot')[5] == 98.95
    assert train_omniglot.label(settings, 'Omniglot') == 'MetaNet trained 5-way, on Omniglot, previous split'
    for name, value, words in (('n_filters', 32, 'MetaNet (32 filters)'), ('n_steps', 3, 'MetaNet (3 steps)'),
                               ('class_of_base', 'mine.MLP', 'MetaNet (base: mine.MLP)'),
                               ('class_of_model', 'mine.Net', 'mine.Net')):
        other = dict(settings, **{name: value})
        assert train_omniglot.paper_accuracies(other, 1, 'Omniglot') == {}
        assert train_omniglot.label(other, 'Omniglot').startswith(words + ' trained')
    # A named extension stands beside the paper's numbers.
    centred = dict(settings, centred='fc', class_of_model='beyond.CentredMetaNet')
    scaled = dict(settings, hidden_scale=1.0, class_of_base='beyond.ScaledCNN')
    fast_scaled = dict(settings, fast_scale=4.0, class_of_base='beyond.ScaledCNN')
    for extended, words in (centred, 'centred: fc'), (scaled, 'hidden scale 1.0'), (fast_scaled, 'fast scale 4.0'):
        assert train_omniglot.paper_accuracies(extended, 1, 'Omniglot')[5] == 98.95
        assert train_omniglot.label(extended, 'Omniglot').startswith(f'MetaNet ({words}) trained')


def test_models_of_earlier_versions_load():
    path = os.path.join(ROOT, 'assets', 'omniglot_5way.npz')
    with np.load(path) as file:
        assert 'class_of_base' not in str(file['settings'])
    model, settings = train_omniglot.load(path, [7])
    assert settings['class_of_base'] == 'metanet.CNN' and settings['average_decay'] == 0
    assert train_omniglot.label(settings, 'Omniglot') == (
        'MetaNet (learning rate falling over 86 epochs) trained 5-way, on Omniglot, previous split')


@pytest.mark.parametrize('of_model, of_run, fine', [
    ('previous', 'dev', False), ('previous', 'standard', False), ('standard', 'previous', False),
    ('dev', 'previous', True), ('dev', 'dev', True)])
def test_a_run_does_not_start_from_a_model_that_knows_its_test_characters(of_model, of_run, fine, tmp_path):
    def build(split):
        settings = {'n_outputs_train': 5, 'data': 'Omniglot', 'split': split}
        return MetaNet(CNN(2), CNN(2, activation=None), [5]), settings

    model, run = build(of_run)
    start = functools.partial(take_weights, str(tmp_path), 'x.npz', lambda path, ways: build(of_model), model, run)
    if fine:
        start()
    else:
        with pytest.raises(ValueError, match=f'characters of the split {of_model!r}, some of which are test char'):
            start()


@pytest.mark.parametrize('digests, fine', [(('a', 'a'), True), (('a', 'b'), False), (('', 'b'), True)])
def test_a_run_does_not_start_from_a_model_of_data_that_have_changed(tmp_path, digests, fine):
    built = [(MetaNet(CNN(2), CNN(2, activation=None), [5]), {'n_outputs_train': 5, 'data': 'own data (mine)',
                                                             'data_digest': digest}) for digest in digests]
    start = functools.partial(take_weights, str(tmp_path), 'x.npz', lambda path, ways: built[0], *built[1])
    if fine:
        start()
    else:
        with pytest.raises(ValueError, match='when it had other images or classes'):
            start()


def test_a_test_takes_no_folder_for_results(script, trained):
    assert 'with evaluate nothing is saved' in refusal(script, f'--evaluate={trained}/here/model.npz', '--out=there')


def test_a_run_starts_from_a_trained_model(script, trained, capsys):
    """From its average, here with a learning rate that changes nothing; and what another model has is refused."""
    start = str(trained / 'here/model.npz')
    words = ('--start_from', start, '--n_outputs_train=4', '--n_outputs_test=5', '--alpha=1e-30', '--out=there',
             '--inserted_scale=0')
    train(script, *words)
    printed = capsys.readouterr().out
    assert f'(4 filters, last iterate, started from {start}, inserted scale 0.0, alpha 1e-30) trained 4-way' in printed
    call(script, '--evaluate=there/model.npz', '--n_outputs_test=5', '--n_queries_test=2', '--n_final_episodes=3',
         '--inserted_scale=0')
    assert capsys.readouterr().out.splitlines() == printed.splitlines()[-2:]
    before, after = (dict(train_omniglot.load(path, [5], weights=weights)[0].namedparams()) for path, weights in (
        (start, 'average'), ('there/model.npz', 'last')))
    assert after['/base/softmax4/W'].array.any()
    for name, param in before.items():
        if 'softmax' not in name:
            np.testing.assert_array_equal(param.array, after[name].array)
    for other, message in ('--n_filters=5', 'float32 (4'), ('--variant=MetaNet-', 'd_conv'), (
            '--variant=MetaNet+', 'it lacks d_base_'):
        end = refusal(script, *SMALL[script], '--start_from', start, '--out=other', other)
        assert 'is not of the model that these settings make' in end and message in end
    assert not os.path.exists('other')


def test_a_run_that_goes_on_does_not_need_what_it_started_from(script, trained, capsys):
    shutil.copy(trained / 'here/model.npz', 'start.npz')
    train(script, '--start_from=start.npz', '--out=there')
    os.remove('start.npz')
    train(script, '--start_from=start.npz', '--out=there', '--n_epoch=2')
    assert 'going on after 1 episodes' in capsys.readouterr().out
    assert 'start.npz does not exist' in refusal(script, *SMALL[script], '--start_from=start.npz', '--out=other')
