"""figures/: the paper's figures, on invented characters and digits."""
import csv

import numpy as np
import pytest
from small_runs import ending
from small_scripts import save_strokes, train

import data
from figures import figure3, figure4, figure5
from ops.compat import chainer
from tools import draw_curves, draw_figures, draw_metanet

DIGITS = data.synthetic_digits(20)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a figure runs, with characters in `characters`, and few digits for MNIST's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'characters').mkdir()
    save_strokes(tmp_path / 'characters')
    monkeypatch.setattr(data, 'mnist', lambda path: (DIGITS, DIGITS, 'few digits'))
    return tmp_path


def rows(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def arrays(link):
    return {name: param.array.copy() for name, param in link.namedparams()}


# Figure 3 -------------------------------------------------------------------------------------------------------------

THREE = ['--input_path=characters', '--n_queries=2', '--n_filters=4', '--n_filters_fixed=2,6', '--n_epoch=1',
         '--n_episodes=2', '--n_test_episodes=3', '--out=here']


def test_figure3_tests_all_base_learners_from_the_start_on(folder, capsys):
    figure3.main(THREE)
    first = rows('here/figure3.csv')
    assert [(row['episodes'], row['filters']) for row in first] == [
        (episodes, filters) for episodes in '02' for filters in '426']
    assert (folder / 'here' / 'figure3.png').stat().st_size > 1000
    assert [line.split(':')[0] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        '4 filters, trained', '2 filters, fixed', '6 filters, fixed']
    figure3.main(THREE + ['--n_epoch=2'])
    assert rows('here/figure3.csv')[:6] == first


def test_figure3_goes_on_with_the_base_learners_it_began_with(folder, monkeypatch, capsys):
    figure3.main(THREE + ['--n_epoch=2', '--out=straight'])
    figure3.main(THREE)
    build = figure3.build
    monkeypatch.setattr(figure3, 'build', lambda settings, filters, number=0: build(settings, filters, number and 9))
    figure3.main(THREE + ['--n_epoch=2'])
    assert rows('here/figure3.csv') == rows('straight/figure3.csv')
    tested = []
    monkeypatch.setattr(figure3, 'test', lambda *args: tested.append(args))
    assert 'more than n_epoch = 1' in ending(figure3.main, THREE)
    assert not tested


@pytest.mark.parametrize('fixed', ['4,6', '6,6', '4'])
def test_figure3_needs_different_base_learners(folder, fixed):
    assert 'give different numbers' in ending(figure3.main, THREE + ['--n_filters_fixed', fixed])


@pytest.mark.parametrize('initialisation', ['uniform', 'chainer'])
def test_fixed_slow_weights_stay_and_all_else_is_the_trained_models(monkeypatch, initialisation):
    for name, value in {'n_filters': 4, 'n_test_episodes': 3, 'initialisation_fixed': initialisation}.items():
        monkeypatch.setattr(figure3, name, value)
    model, other = (figure3.build({'channels': 1, 'image_size': 28}, filters, number)
                    for number, filters in enumerate((4, 3)))
    own = arrays(other)
    largest = max(abs(value).max() for name, value in own.items() if name.startswith('/base/'))
    assert (largest < 0.1) == (initialisation == 'uniform')
    bases = figure3.OtherBases(model, {3: other}, data.EpisodeSampler(DIGITS, 5, 1, 2))
    first, trained = bases.test(), arrays(model)
    assert set(first) == {3, 4} and first == bases.test()
    for name, value in arrays(other).items():
        np.testing.assert_array_equal(value, (own if name.startswith('/base/') else trained)[name])


# Figure 4 -------------------------------------------------------------------------------------------------------------

FOUR = ['--input_path=characters', '--n_outputs_train=3', '--n_queries=2', '--n_units=4', '--n_permutations=2',
        '--n_epoch_omniglot=1', '--n_epoch=2', '--n_episodes=2', '--n_test_episodes=5', '--out=here']


def test_figure4_goes_on_and_ends_in_a_table(folder, capsys):
    figure4.main(FOUR)
    first = rows('here/figure4.csv')
    assert [row['episodes'] for row in first] == ['0', '2', '4']
    assert [row['change'] for row in first][0] == '0.0' and (folder / 'here' / 'figure4.png').stat().st_size > 1000
    lines = capsys.readouterr().out.splitlines()
    assert 'before MNIST' in lines[-3] and 'the paper +1.24 %' in lines[-2] and 'the paper -1.70 %' in lines[-1]
    figure4.main(FOUR[:6] + ['--n_epoch=3'] + FOUR[7:])
    longer = rows('here/figure4.csv')
    assert longer[:3] == first and longer[3]['episodes'] == '6'


def test_changes_are_those_of_the_same_episodes(monkeypatch):
    """Where the meta learner stays, nothing changes."""
    monkeypatch.setattr(figure4, 'n_units', 4)
    model = figure4.build(28 * 28, 0)
    sampler = data.EpisodeSampler(DIGITS, 5, 1, 2)
    retention = figure4.Retention(model, model, sampler, 3)
    observation = {}
    with chainer.Reporter().scope(observation):
        retention(None)
    assert observation['test/Omniglot/change'] == observation['test/Omniglot/interval'] == 0
    assert observation['test/Omniglot/loss'] == retention.before[:, 0].mean()
    assert len(set(retention.before[:, 0])) == 3


def test_figure4_goes_on_with_mnist_elsewhere(folder, capsys):
    figure4.main(FOUR)
    figure4.main(FOUR + ['--mnist_path=elsewhere'])
    assert 'going on after 4 episodes' in capsys.readouterr().out


def test_figure4_needs_characters_of_the_digits_size(folder):
    for part, names in ('train', 'abcdef'), ('test', 'uvwxyz'):
        data.save_classes(folder / 'characters' / f'{part}.npz', {
            name: np.random.RandomState(ord(name)).randint(256, size=(20, 20, 20)).astype(np.uint8) for name in names})
    assert 'characters have (channels, size) (1, 20)' in ending(figure4.main, FOUR)


@pytest.mark.parametrize('figure, words', [(figure3, 'THREE'), (figure4, 'FOUR'), (figure5, 'FIVE')])
def test_a_folder_in_the_place_of_the_result_is_found_at_once(folder, figure, words):
    name = figure.__name__.split('.')[1]
    (folder / 'here' / f'{name}.csv').mkdir(parents=True)
    assert 'rename it' in ending(figure.main, globals()[words])
    assert len(list((folder / 'here').iterdir())) == 1


def test_figure4_refuses_the_folder_of_another_run(folder):
    figure4.main(FOUR)
    assert 'n_units (4 there, 5 now)' in ending(figure4.main, FOUR + ['--n_units=5'])


def test_only_the_meta_learner_is_carried_over(monkeypatch):
    monkeypatch.setattr(figure4, 'n_units', 4)
    source, target = figure4.build(9, 0), figure4.build(9, 1)
    own, other = arrays(target), arrays(source)
    assert all((own[name] != other[name]).any() for name in own)
    figure4.carry(source, target)
    for name, value in arrays(target).items():
        meta = name.split('/')[1] in ('m_conv', 'm_fc', 'd_conv', 'd_fc')
        np.testing.assert_array_equal(value, (other if meta else own)[name])


def test_a_permuted_class_has_its_pixels_in_one_order():
    order = np.random.RandomState(0).permutation(28 * 28)
    images = figure4.Permuted(DIGITS['3'], order)
    some = images[np.array([4, 0])]
    assert some.dtype == np.uint8 and len(images) == 20
    np.testing.assert_array_equal(some.reshape(2, -1), DIGITS['3'][[4, 0]].reshape(2, -1)[:, order])


def test_kept_slow_weights_stay(monkeypatch):
    monkeypatch.setattr(figure4, 'n_units', 4)
    trained, kept = (figure4.build(28 * 28, number) for number in range(2))
    sampler = data.EpisodeSampler(DIGITS, 5, 1, 2)
    before = arrays(kept)
    retention = figure4.Retention(trained, kept, sampler, 3)
    with chainer.Reporter():
        retention(None)
    changed = {name for name, value in arrays(kept).items() if (value != before[name]).any()}
    assert changed and not any(name.startswith(('/base', '/embed')) for name in changed)


# Figure 5 -------------------------------------------------------------------------------------------------------------


FIVE = ['--models=model.npz', '--out=here']


def test_figure5_tests_every_model_and_its_average(folder, capsys):
    train('train_omniglot', '--input_path=characters')
    train('train_omniglot', '--input_path=characters', '--variant=MetaNet-', '--average_decay=0', '--seed=3',
          '--out=minus')
    capsys.readouterr()
    figure5.main(['--models=here/model.npz, minus/model.npz', '--n_test_episodes=3', '--n_queries=2', '--out=five'])
    lines = capsys.readouterr().out.splitlines()
    table = rows('five/figure5.csv')
    assert [row['model'] for row in table] == [line.rsplit(', 10-way 1-shot', 1)[0] for line in lines]
    assert [row['seed'] for row in table] == ['0', '0', '3']
    for row, name in zip(table, ('MetaNet (4 filters, last iterate, inserted scale 0.0)',
                                 'MetaNet (4 filters, averaged weights, inserted scale 0.0)',
                                 'MetaNet- (4 filters, inserted scale 0.0)')):
        assert row['model'].startswith(f'{name} trained 5-way, on own data (characters), tested on few digits')
    assert (folder / 'five' / 'figure5.png').stat().st_size > 1000


@pytest.mark.parametrize('as_trained, paper', [({}, ''), ({'data': 'Omniglot'}, ''),
                                               ({'data': 'Omniglot', 'n_filters': 64}, '74.8')])
def test_figure5_names_the_papers_number_beside_the_papers_models(folder, monkeypatch, as_trained, paper):
    monkeypatch.setattr(data, 'mnist', lambda path: (DIGITS, DIGITS, 'MNIST'))
    train('train_omniglot', '--input_path=characters', '--average_decay=0')
    model, settings = figure5.train_omniglot.load('here/model.npz', [10])
    monkeypatch.setattr(figure5.train_omniglot, 'load', lambda *args: (model, {**settings, **as_trained}))
    figure5.main(['--models=here/model.npz', '--n_test_episodes=2', '--n_queries=2', '--out=five'])
    assert [row['paper'] for row in rows('five/figure5.csv')] == [paper]


def test_figure5_needs_enough_images(folder):
    train('train_omniglot', '--input_path=characters', '--average_decay=0')
    assert 'lower shot or n_query' in ending(figure5.main, ['--models=here/model.npz', '--n_queries=20'])


@pytest.mark.parametrize('tool', [draw_curves, draw_figures, draw_metanet])
def test_pictures_that_cannot_be_written_are_named(folder, tool):
    (folder / 'file').write_text('')
    assert ending(tool.main, ['--out=file/pictures']).startswith('error: ')


def test_figure5_needs_models_of_characters(folder, monkeypatch):
    monkeypatch.setattr(data, 'mnist', None)  # it looks for the models before it fetches digits
    assert 'none.npz' in ending(figure5.main, ['--models=none.npz'])
    assert 'models = ' in ending(figure5.main, ['--models=a.npz,'])
