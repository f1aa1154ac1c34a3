"""docs/results.md, the csv files that it is made from, and the README's numbers."""
import csv
import json
import os
import re

import numpy as np
import pytest

import train_mini_imagenet
import train_omniglot
from figures import figure4, figure5
from reproduction import runs
from tools import make_results

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
HEAD = ('name,weights,way_tested,shot,accuracy,interval,test_episodes,test_options,data,split,way_trained,model,'
        'setting,seed,episodes,script,options,hours,hardware,log,broke_down,live,remark\n')
RUN = '9A,last,5,1,98.10,0.07,1000,,Omniglot,previous,5,MetaNet,,0,26000,train_omniglot.py,--n_epoch 260,,,,,,\n'
TRAINED = {name: run for name, run in runs.read_runs().items() if run.script}
SCRIPTS = {'train_omniglot.py': train_omniglot, 'train_mini_imagenet.py': train_mini_imagenet}


def text(*path):
    with open(os.path.join(ROOT, *path), encoding='utf-8') as file:
        return file.read()


def read(tmp_path, rows):
    path = tmp_path / 'runs.csv'
    path.write_text(HEAD + rows)
    return runs.read_runs(path)


def prose():
    """The README without its commands and their output."""
    return re.sub('```.*?```', '', text('README.md'), flags=re.DOTALL)


def options_of(words):
    """{setting: its text} of a list of options."""
    assert all(word.startswith('--') for word in words[::2]) and len(words) % 2 == 0
    return {name[2:]: value for name, value in zip(words[::2], words[1::2])}


def test_results_are_what_the_tool_makes_of_the_csv_files():
    assert text('docs', 'results.md') == make_results.make(), 'run python tools/make_results.py'


@pytest.mark.parametrize('name', [name for name, run in TRAINED.items() if run.data == 'Omniglot' and run.log])
def test_a_run_broke_down_if_its_log_says_so(name):
    with open(os.path.join(ROOT, TRAINED[name].log), newline='') as file:
        losses = [float(row['main/loss']) for row in csv.DictReader(file) if int(row['iteration']) > 2000]
    assert TRAINED[name].broke_down == any(loss > 2 for loss in losses)


def test_every_percentage_of_the_readme_is_in_the_results():
    numbers = re.findall(r'(\d+\.\d+)(?: ± \d+\.\d+)? %', prose())
    assert len(numbers) >= 4
    known = set(re.findall(r'\d+\.\d+', text('docs', 'results.md')))
    assert [number for number in numbers if number not in known] == []


def test_every_time_of_the_readme_is_in_the_page_on_speed():
    times = re.findall(r'\d+\.\d+ to \d+\.\d+ s', prose())
    assert len(times) >= 1
    assert [time for time in times if time[:-2] not in text('docs', 'speed.md')] == []


@pytest.mark.parametrize('name', TRAINED)
def test_a_runs_options_are_settings_of_its_script_and_agree_with_its_columns(name):
    run = TRAINED[name]
    script = vars(SCRIPTS[run.script])
    options = options_of(run.options)
    assert [option for option in options if option not in script] == []

    def value(setting):
        return options.get(setting, str(script[setting]))

    assert int(value('n_epoch')) * int(value('n_episodes')) == run.episodes
    assert int(value('n_outputs_train')) == run.way
    assert int(value('seed')) == run.seed
    assert value('split' if run.data == 'Omniglot' else 'model') == (run.split or run.setting.split('"')[1])
    if 'variant' in script:
        assert value('variant') == run.model
    for test in run.tests:
        given = options_of(test.options)
        assert [option for option in given if option not in script] == []
        of_tests = 'n_test_episodes' if run.split == '' else 'n_final_episodes'
        ways, episodes, shot = (given.get(name, str(script[name]) if test.options else value(name))
                                for name in ('n_outputs_test', of_tests, 'nb_samples_per_class_test'))
        assert str(test.way) in ways.split(',') and int(episodes) == test.episodes and int(shot) == test.shot
        assert given.get('views', '') in ('', 'shifted', 'mirrored', 'shifted, mirrored')  # as labels have them


@pytest.mark.parametrize('name', [name for name, run in TRAINED.items() if run.log])
def test_a_runs_log_is_as_long_as_the_run(name):
    with open(os.path.join(ROOT, TRAINED[name].log), encoding='utf-8', newline='') as file:
        assert int(list(csv.DictReader(file))[-1]['iteration']) == TRAINED[name].episodes


@pytest.mark.parametrize('name', [name for name, run in TRAINED.items() if run.log and run.hours])
def test_a_runs_hours_are_those_of_its_log(name):
    with open(os.path.join(ROOT, TRAINED[name].log), encoding='utf-8', newline='') as file:
        seconds = float(list(csv.DictReader(file))[-1]['elapsed_time'])
    assert abs(seconds / 3600 - float(TRAINED[name].hours)) < 0.06


@pytest.mark.parametrize('name', os.listdir(os.path.join(ROOT, 'assets', 'unfinished')))
def test_an_unfinished_run_can_go_on_with_its_own_options(name):
    folder, run = os.path.join(ROOT, 'assets', 'unfinished', name), TRAINED[name]
    settings = json.loads(text('assets', 'unfinished', name, 'settings.json'))
    given = {option: value for option, value in options_of(run.options).items() if option in settings}
    assert {'n_episodes', 'average_decay'} <= set(given)
    for option, value in given.items():
        kept = settings[option]
        assert value == (','.join(map(str, kept)) if isinstance(kept, list) else str(kept)) or float(value) == kept
    # A run whose best model is missing could end with the accuracy of none that is there.
    models = ['best.npz', 'best_average.npz'] if run.data == 'mini-ImageNet' else []
    *others, snapshot = sorted(os.listdir(folder))
    assert others == [*models, 'settings.json']
    for model in models:
        train_mini_imagenet.load(os.path.join(folder, model), [5])
    with np.load(os.path.join(folder, snapshot)) as arrays:
        assert snapshot == f'snapshot_{arrays["updater/iteration"]}' and arrays['updater/iteration'] >= run.episodes
        assert all(np.isfinite(arrays[array]).all() for array in arrays.files if array.startswith('updater/model/'))
    assert f'cp -r assets/unfinished/{name} ' in text('docs', 'reproducing.md')


def test_options_are_split_as_a_shell_does(tmp_path):
    (run,) = read(tmp_path, RUN.replace('--n_epoch 260', '"--model ""partial, u"""')).values()
    assert [run.script, *run.options] == ['train_omniglot.py', '--model', 'partial, u']


def test_a_further_row_adds_a_test_to_its_run(tmp_path):
    runs_read = read(tmp_path, RUN + '9A,average,20,1,95.0,0.1,500,--n_outputs_test 20' + ',' * 15 + '\n')
    assert [(test.weights, test.way, test.episodes) for test in runs_read['9A'].tests] == [
        ('last', 5, 1000), ('average', 20, 500)]
    assert runs_read['9A'].test(20, kind='average').options == ['--n_outputs_test', '20']


def test_a_test_with_views_is_another_one(tmp_path):
    row = '9A,last,5,1,{},0.1,1000,{}' + ',' * 15 + '\n'
    views = '"--views ""shifted, mirrored"" --seed 1"'
    run = read(tmp_path, RUN + row.format(99.1, '--views shifted') + row.format(99.2, views))['9A']
    assert [run.test(5, kind=kind).accuracy for kind in ('last, views: shifted', 'last, views: shifted, mirrored')] == [
        '99.1', '99.2']
    with pytest.raises(ValueError, match='line 4.*9A has such a test already'):
        read(tmp_path, RUN + 2 * row.format(99.1, '--views shifted'))


@pytest.mark.parametrize('row, words', [
    (RUN, 'line 3.*9A has such a test already'),
    (RUN.replace('last', 'average').replace('26000', '99'), 'line 3.*episodes not as in the first row of 9A'),
    (RUN.replace('9A,last', '9B,'), 'line 3.*weights missing'),
    (RUN.replace('9A,last', '9B,mean'), "line 3.*'mean': choose last or average"),
    (RUN.replace('9A', '9B').replace('98.10', 'good'), "line 3.*'good'"),
    ('9B,last,5\n', 'line 3.*shot, accuracy.*missing'),
    (RUN.replace('9A', '9B').replace(',,,,,,\n', ',,,,maybe,,\n'), "line 3.*broke_down = 'maybe': choose yes"),
    (RUN.replace('9A', '9B').replace('\n', 'slow, too\n'), "line 3.*' too' is one field too many"),
])
def test_a_bad_row_is_refused_with_its_line(tmp_path, row, words):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, RUN + row)


def test_seeds_of_one_setting_have_a_mean_and_other_settings_none(tmp_path):
    second = RUN.replace('9A', '9B').replace('98.10', '97.10').replace('0,26000', '1,26000')
    second = second.replace('260,', '260 --seed 1,')
    third = RUN.replace('9A', '9C').replace('260,', '260 --n_decay 9,')
    results = make_results.Results(read(tmp_path, RUN + second + third), runs.read_paper())
    table = results.own_way('Omniglot', 'previous')
    assert re.findall(r'mean of .*', table) == ['mean of 2 seeds |  | last | **97.60 %** | 98.95 % |  |  |  |  |']


def test_tests_with_views_have_means_of_their_own(tmp_path):
    second = RUN.replace('9A', '9B').replace('98.10', '97.10').replace('0,26000', '1,26000')
    rows = ''.join(f'{name},last,5,1,{accuracy},0.1,1000,--views shifted' + ',' * 15 + '\n'
                   for name, accuracy in (('9A', 98.52), ('9B', 98.3)))
    results = make_results.Results(read(tmp_path, RUN + second.replace('260,', '260 --seed 1,') + rows),
                                   runs.read_paper())
    assert re.findall(r'mean of 2 seeds \|  \| (.*?) \| 98.95', results.own_way('Omniglot', 'previous')) == [
        'last | **97.60 %**', 'last, views: shifted | **98.41 %**']
    assert results.mean('5', 'last, views: shifted', '9A', '9B') == '98.41 %'
    beside = results.beside_the_paper('Omniglot', 'previous')
    assert '| last | -1.4 (9A, 9B) |' in beside and '| last, views: shifted | -0.5 (9A, 9B) |' in beside
    assert '| last, views: shifted | -0.4 |' in results.every_way('9A')


def test_the_longest_sound_run_is_put_beside_the_paper(tmp_path):
    longer = RUN.replace('9A', '9B').replace('98.10', '99.15').replace('26000', '30000')
    broken = longer.replace('9B', '9C').replace('30000', '40000').replace(',,,,,,\n', ',,,,yes,,\n')
    results = make_results.Results(read(tmp_path, RUN + longer + broken), runs.read_paper())
    assert '| MetaNet | last | +0.2 (9B) |' in results.beside_the_paper('Omniglot', 'previous')


def test_a_template_that_asks_for_an_unknown_run_is_refused():
    results = make_results.Results(runs.read_runs(), runs.read_paper())
    with pytest.raises(ValueError, match='accuracy 99Z 5'):
        make_results.render('{{ accuracy 99Z 5 }}', results)
    with pytest.raises(ValueError, match='without its'):
        make_results.render('{{ accuracy 5A 5', results)
    assert '98.10' in make_results.render('{{ accuracy 5A\n5 }}', results)


def test_scripts_and_figures_have_the_papers_numbers():
    with open(runs.PAPER, encoding='utf-8', newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['model'].startswith('MetaNet') or row['table'] == 'figure 5']
    omniglot = {(row['table'], row['split'], row['model'], row['way_trained'], row['way_tested']): float(row['value'])
                for row in rows if row['table'] in ('table 1', 'table 3', 'table 4')}
    own = {('table 3' if split == 'standard' else 'table 1', split, model, str(way), str(way)): value
           for (split, model), accuracies in train_omniglot.PAPER.items() for way, value in accuracies.items()}
    across = {('table 4', 'previous', 'MetaNet', str(way), str(tested)): value
              for way, accuracies in train_omniglot.PAPER_ACROSS.items() for tested, value in accuracies.items()}
    assert {**own, **across} == {key: value for key, value in omniglot.items()
                                 if key[0] != 'table 4' or key[3] != key[4]}
    others = {table: {row['model']: float(row['value']) for row in rows if row['table'] == table}
              for table in ('table 2', 'figure 5')}
    assert others == {'table 2': {'MetaNet': train_mini_imagenet.PAPER},
                      'figure 5': {**figure5.PAPER, **figure5.OTHERS}}
    assert figure4.PAPER == tuple(float(row['value']) for row in rows if row['table'] == 'figure 4')
