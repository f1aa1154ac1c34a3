"""reproduce.py: what it runs, that runs go on, end alone and come to the script's own numbers."""
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from data_sets import drawings, save_own

import reproduce
import train_omniglot
from experiment.settings import configured
from reproduction import engines, plan, progress, runs, work

ROOT = runs.ROOT
posix = pytest.mark.skipif(os.name != 'posix', reason='kills a process as POSIX does')
dask = pytest.mark.skipif(importlib.util.find_spec('distributed') is None, reason='needs dask.distributed')

# Counts to `--n`, slowly with `--slow`, keeps what it has counted, and tests what it has made.
SCRIPT = '''
import os, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if '--evaluate' in options:
    assert os.path.exists(options['--evaluate'])
    weights = 'averaged weights' if 'average' in options['--evaluate'] else 'last iterate'
    print(f'Stub ({weights}) trained 5-way, on Omniglot, 10-way 1-shot: 50.00 +- 1.00 % on 7 test episodes; ...')
    sys.exit()
out = options['--out']
n = max((int(name[9:]) for name in os.listdir(out) if name.startswith('snapshot_')), default=0)
first = n
with open(os.path.join(out, 'starts'), 'a') as file:
    file.write(f'{n} {os.getpid()}\\n')
with open(os.path.join(out, 'settings.json'), 'w') as file:
    file.write('{"data": "Omniglot"}')
if '--bad' in options:
    sys.exit('error: the parameters are no longer finite')
try:
    while n < int(options['--n']):
        n += 1
        with open(os.path.join(out, f'snapshot_{n}'), 'w'), open(os.path.join(out, 'log.csv'), 'w') as file:
            file.write(f'iteration,test/5-way/accuracy\\n{n},0.5\\n')
        if '--slow' in options and first < 3:
            time.sleep(0.1)
except KeyboardInterrupt:
    sys.exit('Stopped')
for name in ['model.npz', *(['best.npz', 'best_average.npz'] if '--bests' in options else [])]:
    open(os.path.join(out, name), 'w').close()
print(f'Stub (averaged weights) trained 5-way, on Omniglot, 5-way 1-shot: {n}.00 +- 1.00 % on 9 test episodes; ...')
'''


@pytest.fixture
def task(tmp_path):
    """A function that makes tasks of the script above."""
    script = tmp_path / 'stub.py'
    script.write_text(SCRIPT)

    def make(name, *options, tests=()):
        return {'name': name, 'root': ROOT, 'host': 'here', 'folder': str(tmp_path / 'out' / name), 'hours': None,
                'script': str(script), 'options': ['--n', '5', *options], 'tests': list(tests), 'episodes': 5}
    (tmp_path / 'out').mkdir()
    return make


def starts(task):
    """The episodes from which a task's script has started, and the process, of each time."""
    with open(os.path.join(task['folder'], 'starts'), encoding='utf-8') as file:
        return [tuple(map(int, line.split())) for line in file]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, 'nothing has happened for a minute'
        time.sleep(0.05)


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def run(task, stopping=lambda: False):
    return work.work(task, lambda news: None, stopping)


# What is run ----------------------------------------------------------------------------------------------------------


def test_every_table_and_figure_of_the_paper_is_listed(capsys):
    assert reproduce.main([]) == 0
    out = capsys.readouterr().out
    assert [name for name in ('table1', 'table2', 'table3', 'table4', 'figures/figure3.py', 'figures/figure4.py',
                                 'figures/figure5.py') if name not in out] == []
    assert [name for name, run in runs.read_runs().items() if run.script and f'  {name} ' not in out] == []


def test_table_1_takes_the_longest_runs_that_did_not_break_down_with_all_seeds(monkeypatch):
    chosen = {part.run.name for part in plan.choose(['table1'])}
    assert {'5M', '20R', '20S'} <= chosen
    assert chosen & {'5A', '5C', '5I', '20A', '20B', '20G'} == set()
    known = runs.read_runs()
    shorter = {name: run for name, run in known.items() if name not in ('5M', '5Q')}
    monkeypatch.setattr(plan, 'read_runs', lambda: shorter)
    assert {'5A', '5B', '20R'} <= {part.run.name for part in plan.choose(['table1'])}


def test_table_2_takes_no_run_of_an_extension(monkeypatch):
    known = runs.read_runs()
    own, extended = (dataclasses.replace(known['M3'], name=name, setting=setting, way=5)
                     for name, setting in (('own', '"partial"'), ('extended', '"partial", centred')))
    monkeypatch.setattr(plan, 'read_runs', lambda: {'own': own, 'extended': extended})
    assert [part.run.name for part in plan.choose(['table2'])] == ['own']
    monkeypatch.setattr(plan, 'read_runs', lambda: {'extended': extended})
    with pytest.raises(ValueError, match='no runs for table2 yet'):
        plan.choose(['table2'])


def test_table_4_takes_the_tests_at_other_ways_and_leaves_out_those_at_other_shots(monkeypatch):
    shorter = {name: run for name, run in runs.read_runs().items() if name != '5M'}
    monkeypatch.setattr(plan, 'read_runs', lambda: shorter)
    part = next(part for part in plan.choose(['table4']) if part.run.name == '5A')
    assert part.wanted == {(5, 1), (10, 1), (15, 1), (20, 1)}
    assert [test[1] for test in plan.task_of(part, 'out')['tests']] == ['10,15,20']


def test_a_run_that_is_asked_for_twice_is_done_once_with_all_tests():
    (part,) = (part for part in plan.choose(['table1', '5A', 'table4']) if part.run.name == '5A')
    assert (5, 5) in part.wanted


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match=r'file/runs cannot be made .* give another one \(--out\)'):
        reproduce.main(['5A', '--out', str(tmp_path / 'file' / 'runs')])


@pytest.mark.parametrize('word, words', [('99Z', 'no table and no run'), ('M-pixels', 'no table and no run'),
                                         ('figure4', 'python figures/figure4.py')])
def test_what_cannot_be_run_is_refused(word, words):
    with pytest.raises(ValueError, match=words):
        plan.choose([word])


@pytest.mark.parametrize('part', plan.choose(['all']), ids=lambda part: part.run.name)
def test_a_run_is_called_as_in_the_csv_and_quick_is_a_hundredth_of_its_episodes(part):
    task = plan.task_of(part, 'out')
    assert task['options'] == part.run.options and task['episodes'] == part.run.episodes
    quick = plan.task_of(part, 'out', quick=True)
    assert 0.5 <= 100 * quick['episodes'] / part.run.episodes <= 2  # a run of five epochs keeps one
    changed = {name: value for name, value in plan.settings_of(quick['options']).items()
               if plan.settings_of(task['options']).get(name) != value}
    assert set(changed) <= set(plan.QUICK)


def test_quick_keeps_whole_updates():
    assert plan.quicker(['--n_episodes_per_update', '4'], {'n_episodes': 100})[-1] == '8'


def test_further_options_go_to_the_training_and_those_for_tests_to_these_too():
    (part,) = plan.choose(['20E'])
    task = plan.task_of(part, 'out', further=['--n_filters', '8', '--gpu', '0'])
    assert task['options'][-4:] == ['--n_filters', '8', '--gpu', '0']
    assert all(test[-2:] == ['--gpu', '0'] and '--n_filters' not in test for test in task['tests'])
    task = plan.task_of(part, 'out', further=['--n_queries_test', '5', '--seed', '3', '--n_outputs_test', '9'])
    assert all(test[-4:] == ['--n_queries_test', '5', '--seed', '3'] for test in task['tests'])


def test_the_constants_that_the_runs_were_made_with_are_the_scripts_own():
    usual = plan.usual_constants()
    assert usual == {script: {name: value for name, value in plan.constants_of(script).items()
                              if name.islower() and name not in plan.ELSEWHERE} for script in usual}
    assert set(usual) == {run.script for run in runs.read_runs().values() if run.script}


def test_runs_of_an_edited_script_are_those_of_the_script_as_it_came(monkeypatch):
    constants = plan.constants_of('train_omniglot.py')
    edited = {'gpu': 1, 'input_path': 'there', 'alpha': 1.0, 'centred': 'fc', 'n_epoch': 3, 'n_queries_test': 7}
    (part,) = plan.choose(['20A'])
    as_it_came = plan.task_of(part, 'out')
    monkeypatch.setattr(plan, 'constants_of', lambda script: {**constants, **edited})
    task = plan.task_of(part, 'out')
    assert '--n_epoch' in as_it_came['options'] and task['episodes'] == as_it_came['episodes']
    given = as_it_came['options'] + ['--n_queries_test', '10', '--centred', '', '--alpha', '0.001']
    assert task['options'] == given
    assert task['tests'] == [test + ['--n_queries_test', '10'] for test in as_it_came['tests']] != []
    with configured(vars(train_omniglot), given, train_omniglot.CHECKS) as (settings, _):
        assert (settings['n_queries_test'], settings['centred'], settings['alpha']) == (10, '', 0.001)


def test_a_script_that_was_edited_to_begin_with_a_model_is_refused(monkeypatch):
    constants = plan.constants_of('train_omniglot.py')
    monkeypatch.setattr(plan, 'constants_of', lambda script: {**constants, 'start_from': 'a.npz'})
    with pytest.raises(SystemExit, match='start_from has been edited in train_omniglot.py, .*: put that back'):
        reproduce.main(['5A', '--jobs', '1'])


@pytest.mark.parametrize('words, message', [
    ('5A --jobs 0', 'must be 1 or more'), ('5A -- --n_filters', 'options and their values'),
    ('5A -- --out x', 'leave them out'), ('5A -- --n_epoch x', 'of 5A must be whole'),
    ('5A -- --n_epoch 0', 'of 5A must be 1 or more'),
    ('5A -- --gpu=0 --seed=1', '--gpu=0: after -- put a space'),
    ('5A --jobs 2', 'need Dask'), ('5A --scheduler tcp://a:1', 'need Dask'),
])
def test_a_bad_command_line_is_refused(words, message, monkeypatch):
    monkeypatch.setattr(engines, 'has_dask', lambda: False)
    with pytest.raises(SystemExit, match=message):
        reproduce.main(words.split())


def test_paths_are_those_of_the_folder_that_the_command_is_given_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = reproduce.arguments('5A --jobs 1 -- --seed 3 --input_path own --start_from a/model.npz'.split())
    reproduce.check(args)
    assert args.further[3::2] == [str(tmp_path / 'own'), str(tmp_path / 'a' / 'model.npz')]


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_and_tested_and_what_is_done_is_not_repeated(task):
    one = task('one', tests=[['--n_outputs_test', '10']])
    outcome = run(one)
    assert outcome['state'] == 'done' and outcome['source'] == 'Omniglot'
    assert [(row['way'], row['accuracy']) for row in outcome['rows']] == [('5', '5.00'), ('10', '50.00')]
    assert run(one)['rows'] == outcome['rows']
    assert len(starts(one)) == 1


def test_of_best_models_both_are_tested_further(task):
    one = task('one', '--bests', '1', tests=[['--n_outputs_test', '10']])
    rows = run(one)['rows']
    assert [(row['way'], row['label'].split(') ')[0]) for row in rows] == [
        ('5', 'Stub (averaged weights'), ('10', 'Stub (last iterate'), ('10', 'Stub (averaged weights')]
    assert run(one)['rows'] == rows


def test_what_is_trained_on_is_tested_again(task):
    one = task('one', tests=[['--n_outputs_test', '10']])
    run(one)
    os.remove(os.path.join(one['folder'], 'output.txt'))
    run(dict(one, options=['--n', '7']))
    with open(os.path.join(one['folder'], 'output.txt'), encoding='utf-8') as file:
        assert [line.split(':')[0][-13:] for line in file] == [' 5-way 1-shot', '10-way 1-shot']


def test_what_another_line_has_trained_meanwhile_is_not_tested_as_ones_own(task):
    one = task('one')
    run(one)
    run(dict(one, options=['--n', '7']))
    run(dict(one, tests=[['--n_outputs_test', '10']]))
    with open(os.path.join(one['folder'], 'output.txt'), encoding='utf-8') as file:
        assert [line.split('%')[0].split(', ')[-1][:20] for line in file] == [
            '5-way 1-shot: 5.00 +', '5-way 1-shot: 7.00 +', '5-way 1-shot: 7.00 +', '10-way 1-shot: 50.00']


def test_a_script_that_ends_as_it_is_asked_to_stop_is_done(task, monkeypatch):
    one, asked = task('one'), []
    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, 'wait', lambda child, timeout=None: wait(child))

    def stopping():
        asked.append(True)
        return len(asked) > 2

    assert run(one, stopping)['state'] == 'done' and len(asked) == 3
    assert len(run(one)['rows']) == len(starts(one)) == 1


def test_a_run_on_invented_data_says_so_and_is_not_done(task, capsys):
    banner = 'print("!!  THIS IS NOT OMNIGLOT: synthetic strokes")\n'
    one = task('one')
    with open(one['script'], 'r+', encoding='utf-8') as file:
        text = file.read()
        file.seek(0)
        file.write(banner + text)
    outcome = run(one)
    assert outcome['state'] == 'done' and len(outcome['rows']) == 1
    progress.Progress([one]).end(outcome)
    said = capsys.readouterr().out
    assert 'one is done, but on invented data, which is no result: ' in said and f'remove {one["folder"]}' in said
    run(one)
    assert len(starts(one)) == 2


def test_a_training_on_invented_data_is_not_done_by_tests_on_real_ones(task):
    one = task('one', tests=[['--n_outputs_test', '10']])
    with open(one['script'], 'r+', encoding='utf-8') as file:
        text = file.read()
        file.seek(0)
        file.write('import sys\nif "--evaluate" not in sys.argv:\n    print("!!  THIS IS NOT OMNIGLOT")\n' + text)
    assert len(run(one)['rows']) > 1
    with open(os.path.join(one['folder'], 'done.json'), encoding='utf-8') as file:
        assert [json.loads(key)[0] for key in json.load(file)] == ['model', 'tests']


def test_a_table_that_cannot_be_written_does_not_end_the_runs(task, capsys):
    def report():
        raise OSError('No space left on device')

    tasks = [task('one'), task('two')]
    engines.run_here(tasks, shown := progress.Progress(tasks, report))
    assert [outcome['state'] for outcome in shown.outcomes.values()] == ['done', 'done']
    assert 'the table cannot be written (No space left on device): mend that' in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_table_is_named(tmp_path):
    (tmp_path / '5A.md').mkdir()
    with pytest.raises(SystemExit, match='5A.md is a folder, but the table is to have that name'):
        reproduce.main(['5A', '--jobs', '1', '--out', str(tmp_path)])


def test_a_stopped_run_goes_on_from_its_snapshot(task):
    slow = task('slow', '--n', '500', '--slow', '1')
    outcome = run(slow, lambda: os.path.exists(os.path.join(slow['folder'], 'snapshot_3')))
    assert outcome['state'] == 'stopped'
    assert run(slow)['rows'][0]['accuracy'] == '500.00'
    assert [start >= 3 for start, _ in starts(slow)] == [False, True]


def test_a_run_that_fails_is_reported_and_the_others_go_on(task, capsys):
    tasks = [task('bad', '--bad', '1'), task('good')]
    shown = progress.Progress(tasks)
    assert not engines.run_here(tasks, shown)
    assert {name: outcome['state'] for name, outcome in shown.outcomes.items()} == {'bad': 'failed', 'good': 'done'}
    assert 'bad has failed: the parameters are no longer finite' in capsys.readouterr().out


def test_a_run_whose_folder_cannot_be_made_does_not_end_the_others(task, capsys):
    tasks = [task('in the way'), task('good')]
    open(tasks[0]['folder'], 'w').close()
    shown = progress.Progress(tasks)
    engines.run_here(tasks, shown)
    assert {name: outcome['state'] for name, outcome in shown.outcomes.items()} == {
        'in the way': 'failed', 'good': 'done'}
    assert 'in the way has failed: FileExistsError' in capsys.readouterr().out


@posix
def test_a_script_ends_with_the_process_that_started_it(task, tmp_path):
    slow = task('slow', '--n', '5000', '--slow', '1')
    code = 'import json, sys; from reproduction.work import work; work(json.load(open(sys.argv[1])), id, lambda: False)'
    (tmp_path / 'task.json').write_text(json.dumps(slow))
    parent = subprocess.Popen([sys.executable, '-c', code, str(tmp_path / 'task.json')], cwd=ROOT)
    wait_for(lambda: os.path.exists(os.path.join(slow['folder'], 'snapshot_3')))
    parent.kill()
    parent.wait()
    (_, pid), = starts(slow)
    wait_for(lambda: not lives(pid))
    assert run(dict(slow, options=['--n', '100']))['state'] == 'done'


def test_a_runs_numbers_are_those_of_the_script(tmp_path):
    save_own(tmp_path, drawings('abcdef', n_images=4), drawings('ghijkl', seed=1, n_images=4))
    words = ['--input_path', str(tmp_path), '--n_filters', '2', '--n_steps', '1', '--n_queries', '1', '--n_epoch', '2',
             '--n_queries_test', '1', '--n_episodes', '2', '--n_test_episodes', '1', '--n_final_episodes', '3']
    one = {'name': 'one', 'root': ROOT, 'folder': str(tmp_path / 'one'), 'script': 'train_omniglot.py',
           'options': words, 'tests': []}
    own = str(tmp_path / 'own')
    with subprocess.Popen([sys.executable, 'train_omniglot.py', *words, '--out', own], cwd=ROOT,
                          env={**os.environ, **dict.fromkeys(work.THREADS, '1')}, stdout=subprocess.DEVNULL) as script:
        outcome = run(one)
    assert (script.returncode, outcome['state']) == (0, 'done'), outcome['message']
    for name in 'final_test.csv', 'settings.json':
        with open(os.path.join(own, name)) as a, open(os.path.join(one['folder'], name)) as b:
            assert a.read() == b.read()
    with np.load(os.path.join(own, 'model.npz')) as a, np.load(os.path.join(one['folder'], 'model.npz')) as b:
        assert set(a.files) == set(b.files) and all(np.array_equal(a[name], b[name]) for name in a.files)


# A cluster ------------------------------------------------------------------------------------------------------------


def test_a_worker_without_the_project_unpacks_it_and_one_with_it_takes_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    files = work.project_files(ROOT)
    assert {'train_omniglot.py', 'reproduction/child.py', 'data/omniglot_split.csv'} <= set(files)
    digest, archive = work.digest_of(files), work.pack(files)
    assert work.project_folder(ROOT, digest, archive) == ROOT
    (tmp_path / 'other').mkdir()
    for _ in range(2):
        folder = work.project_folder(str(tmp_path / 'other'), digest, archive)
        assert folder.startswith(str(tmp_path)) and work.project_files(folder) == files


def test_a_worker_without_the_runs_folder_gets_what_is_done_and_tests_that(task, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    one = task('one')
    assert run(one)['state'] == 'done'
    more = dict(one, tests=[['--n_outputs_test', '10']], place='')
    folder = work._own_folder(more, work.read_folder(one['folder']))
    outcome = work.work(more, lambda news: None, lambda: False, folder=folder)
    assert outcome['state'] == 'done' and [row['way'] for row in outcome['rows']] == ['5', '10']
    assert 'starts' not in os.listdir(folder)


def test_a_stopped_run_goes_on_with_another_worker(task, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    slow = dict(task('slow', '--n', '500', '--slow', '1'), place='')
    assert run(slow, lambda: os.path.exists(os.path.join(slow['folder'], 'snapshot_3')))['state'] == 'stopped'
    files = work.read_folder(slow['folder'])
    folder = work._own_folder(slow, files)
    outcome = work.work(slow, lambda news: None, lambda: False, folder=folder)
    assert outcome['rows'][0]['accuracy'] == '500.00' and starts(dict(slow, folder=folder))[0][0] >= 3
    assert work._own_folder(slow, files) == folder and work._snapshot(folder) == 500


@posix
@dask
def test_a_run_whose_worker_is_killed_goes_on_with_another(task, tmp_path, capsys):
    tasks = [task('one', '--n', '20', '--slow', '1'), task('two')]
    killed = []

    class Shown(progress.Progress):
        def show(self):
            folder = tasks[0]['folder']
            if not killed and 'one' in self.running and os.path.exists(os.path.join(folder, 'snapshot_3')):
                killed.append(int(self.running['one']['where'].split()[-1]))
                os.kill(killed[0], signal.SIGKILL)

    shown = Shown(tasks)
    assert not engines.run_on_dask(tasks, shown, str(tmp_path / 'out'), 2)
    assert killed
    assert [(name, shown.outcomes[name]['rows'][0]['accuracy']) for name in ('one', 'two')] == [
        ('one', '20.00'), ('two', '5.00')]
    assert [start >= 3 for start, _ in starts(tasks[0])] == [False, True]
    assert 'one has lost its worker, and goes on after' in capsys.readouterr().out
