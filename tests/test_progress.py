"""What reproduce.py shows: the display of all runs, and the table with the paper's numbers beside ours."""
import dataclasses
import os
import subprocess
import sys

import pytest

import reproduce
from reproduction import plan, progress, runs

posix = pytest.mark.skipif(os.name != 'posix', reason='kills a process as POSIX does')


def test_other_runs_have_another_table():
    names = [f'{way}{letter}' for way in (5, 10, 15, 20) for letter in 'ABCDEFG']
    several = [progress.table_name(*args) for args in (
        (['5A'],), (['5A'], True), (['5A'], False, '--seed 1'), (names,), (names[:-1],), (names[:-2],))]
    assert several[0] == '5A.md' and len(set(several)) == 6 and max(map(len, several)) < 80


@posix
def test_where_nobody_reads_the_output_the_runs_go_on():
    program = '''if True:
        from reproduction.progress import Progress
        shown = Progress([])
        for i in range(3):
            shown.say('a line')
        raise SystemExit('went on')'''
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, '-c', program], cwd=runs.ROOT, stdout=write, stderr=subprocess.PIPE,
                          text=True)
    os.close(write)
    assert done.stderr.count('the runs go on') == 1 and done.stderr.endswith('went on\n')


def test_the_display_keeps_to_the_terminals_width(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '20')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    shown = progress.Progress([])
    shown.show()
    assert [len(line) for line in capsys.readouterr().out.splitlines()] == [19]


def test_the_display_needs_no_time_to_have_passed(monkeypatch):
    monkeypatch.setattr(progress.time, 'monotonic', lambda: 0.0)
    shown = progress.Progress([{'name': 'a', 'episodes': 5, 'hours': None}])
    assert shown.summary().startswith('0 of 1 runs have ended')
    shown.news('a', {'start': True, 'episodes': 0, 'where': 'here'})
    shown.news('a', {'episodes': 5})
    assert '0 of 1 runs have ended, 1 running; 5000.0 episodes a second' in shown.summary()


def test_the_table_has_the_papers_numbers_beside_ours_and_says_what_is_to_come():
    parts = plan.choose(['5A', '5B', '5F', '5H'])
    row = {'label': 'MetaNet (last iterate) trained 5-way', 'way': '5', 'shot': '1', 'accuracy': '98.11',
           'interval': '0.07', 'episodes': '10000'}
    outcomes = {'5A': {'state': 'done', 'source': 'Omniglot', 'rows': [row]},
                '5B': {'state': 'done', 'source': 'invented characters', 'rows': [row]},
                '5H': {'state': 'done', 'source': None, 'rows': [row]}}
    lines = progress.table_of(parts, outcomes, reproduce.accuracies_of(['table1'])).splitlines()
    assert lines[2].endswith('| last | 98.11 ± 0.07 % | 10000 | 98.10 ± 0.07 % | 98.95 % |')
    assert '98.11 ± 0.07 % on invented characters' in lines[3] and '98.95' not in lines[3]
    assert '| to come |' in lines[4]
    assert '98.11 ± 0.07 % on unknown data' in lines[5] and '98.95' not in lines[5]


def test_runs_with_options_of_ones_own_stand_beside_no_other_numbers():
    row = {'label': 'MetaNet (last iterate) trained 5-way', 'way': '5', 'shot': '1', 'accuracy': '20.00',
           'interval': '0.07', 'episodes': '10000'}
    outcomes = {'5A': {'state': 'done', 'source': 'Omniglot', 'rows': [row]}}
    parts, paper = plan.choose(['5A']), reproduce.accuracies_of(['table1'])
    table = progress.table_of(parts, outcomes, paper, own=progress.own_options(['--gpu', '0', '--n_filters', '8']))
    assert '`--n_filters 8`' in table and '20.00' in table and '98.' not in table
    elsewhere = progress.own_options(['--input_path', 'there', '--gpu', '0'])
    assert '98.95 %' in progress.table_of(parts, outcomes, paper, own=elsewhere)


@pytest.mark.parametrize('label, kind', [
    ('MetaNet (last iterate)', 'last'), ('MetaNet (averaged weights, centred: fc)', 'average'),
    ('MetaNet (last iterate, views: shifted, trained on mirrored images)', 'last, views: shifted'),
    ('MetaNet (averaged weights, views: mirrored)', 'average, views: mirrored'),
    ('MetaNet (averaged weights, views: shifted, mirrored, alpha 0.01)', 'average, views: shifted, mirrored')])
def test_the_kind_of_a_test_is_read_from_its_line(label, kind):
    run = runs.Run(*[None] * 16, tests=[runs.Test(kind.split(',')[0], 5, 1, '97.0', '0.1', 1000, [
        '--views', kind.split(': ')[1]] if 'views' in kind else [])])
    rows = [{'label': label, 'way': '5', 'shot': '1', 'accuracy': '97.01', 'interval': '0.1', 'episodes': '9'}]
    run = dataclasses.replace(run, name='9A', model='MetaNet', data='Omniglot')
    outcomes = {'9A': {'state': 'done', 'source': 'Omniglot', 'rows': rows}}
    table = progress.table_of([plan.Part(run, {(5, 1)})], outcomes, {})
    assert f'| {kind} | 97.01 ± 0.1 % | 9 | 97.0 ± 0.1 % |' in table


def test_where_the_papers_tables_differ_the_one_asked_for_counts():
    case = 'Omniglot', 'previous', 'MetaNet', 10, 10
    assert reproduce.accuracies_of(['table4'])[case] == '96.87'
    assert reproduce.accuracies_of(['table1', 'table4'])[case] == reproduce.accuracies_of(['10B'])[case] == '98.67'
