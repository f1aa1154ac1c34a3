"""Reads docs/runs.csv, the project's runs and what they came to, and docs/paper.csv, the paper's numbers.

One row of docs/runs.csv is one test of one run. A run may have several: at other ways, at other shots, with its last
iterate, with its averaged weights, with views. Its first row describes the run; in the others the columns from `data`
on may stay empty. Columns:

    name            of the run, such as 5A; `pixels...`: a yardstick, which nothing has trained
    weights         of the test: last (iterate) or average
    way_tested      classes of a test episode
    shot            support images of a class in the test
    accuracy        in %, with the decimals to be shown
    interval        half width of its 95 % interval over the test episodes
    test_episodes   how many
    test_options    of `SCRIPT --evaluate MODEL` for this test; empty: the run itself ends with it
    data            what was trained and tested on: Omniglot, mini-ImageNet, ...
    split           of Omniglot: previous, standard or dev
    way_trained     classes of a training episode
    model           the paper's name of it: MetaNet, MetaNet-, ...
    setting         how the model departs from the paper's; empty: not at all
    seed
    episodes        trained
    script          that trains it
    options         of the script, to be split as a shell does
    hours           of training and the tests after its epochs
    hardware
    log             its log.csv, kept in assets/
    broke_down      yes, or empty
    live            share of b's fc1's fast activations that are alive, mean over the last 1,000 episodes
    remark          sentences for docs/results.md
"""
import csv
import dataclasses
import os
import shlex
from typing import Optional

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCS = os.path.join(ROOT, 'docs')
RUNS = os.path.join(DOCS, 'runs.csv')
PAPER = os.path.join(DOCS, 'paper.csv')
WEIGHTS = 'last', 'average'


@dataclasses.dataclass(frozen=True)
class Test:
    """An accuracy, in %. It and its interval are the csv's text, as it is to be shown."""

    weights: str
    way: int
    shot: int
    accuracy: str
    interval: str
    episodes: int
    options: list[str]  # of `SCRIPT --evaluate MODEL`; empty: the run itself ends with this test

    @property
    def kind(self):
        """Its weights, and what else than the images as they are made the keys."""
        return test_kind(self.weights, settings_of(self.options).get('views'))


@dataclasses.dataclass(frozen=True)
class Run:
    """A training and its tests, or a yardstick: that has no `script`, no `way`, no `seed` and no `episodes`."""

    name: str
    data: str
    split: str
    way: Optional[int]
    model: str
    setting: str
    seed: Optional[int]
    episodes: Optional[int]
    script: str
    options: list[str]
    hours: str
    hardware: str
    log: str
    broke_down: bool
    live: str
    remark: str
    tests: list[Test]

    @property
    def kind(self):
        """Its model, and how that departs from the paper's."""
        return f'{self.model}, {self.setting}' if self.setting else self.model

    def test(self, way, shot=1, kind='last'):
        """The `Test` of that way, shot and kind, as `test_kind` gives it, or None."""
        return next((test for test in self.tests if (test.way, test.shot, test.kind) == (way, shot, kind)), None)


def settings_of(options):
    """{setting: its text} of a list such as ['--seed', '1']."""
    return {name[2:]: value for name, value in zip(options[::2], options[1::2])}


def test_kind(weights, views=''):
    """What tells a run's tests at one way and shot apart: 'last', 'average', 'average, views: shifted', ..."""
    return f'{weights}, views: {views}' if views else weights


def read_runs(path=RUNS):
    """The runs, in the file's order.

    Returns:
        {name: Run}

    Raises:
        ValueError: a row is incomplete, contradicts the run's first row, or repeats another; with the line's number.
            Or there is no such column.
        OSError: the file cannot be read.
    """
    first, runs = {}, {}
    for line, row in _rows(path):
        try:
            name = row['name']
            _check(row, first.setdefault(name, row))
            if name not in runs:
                runs[name] = _run(row)
            run = runs[name]
            test = Test(row['weights'], int(row['way_tested']), int(row['shot']), _number(row['accuracy']),
                        _number(row['interval']), int(row['test_episodes']), shlex.split(row['test_options']))
            if run.test(test.way, test.shot, test.kind):
                raise ValueError(f'{name} has such a test already: leave one of the two')
            run.tests.append(test)
        except ValueError as error:
            raise ValueError(f'{path}, line {line}: {error}') from error
        except KeyError as error:
            raise ValueError(f'{path} has no column {error}') from error
    return runs


def _rows(path):
    """Pairs of a row's last line and the row, a dict."""
    with open(path, encoding='utf-8', newline='') as file:
        reader = csv.DictReader(file, restval='')
        for row in reader:
            yield reader.line_num, row


def _check(row, first):
    """Refuses a row that lacks something, or contradicts its run's `first` row."""
    needed = ['name', 'way_tested', 'shot', 'accuracy', 'interval', 'test_episodes', 'data', 'model']
    if first['script']:
        needed += ['weights', 'way_trained', 'seed', 'episodes']
    missing = [column for column in needed if not row[column] and (row is first or column not in _OF_THE_RUN)]
    if missing:
        raise ValueError(f'{", ".join(missing)} missing: fill in')
    if None in row:
        raise ValueError(f'{row[None][0]!r} is one field too many: put text with a comma in quotation marks')
    if row['broke_down'] not in ('', 'yes'):
        raise ValueError(f'broke_down = {row["broke_down"]!r}: choose yes, or leave empty')
    if row['weights'] not in WEIGHTS + (() if first['script'] else ('',)):
        raise ValueError(f'weights = {row["weights"]!r}: choose last or average')
    changed = [column for column in _OF_THE_RUN if row[column] not in ('', first[column])]
    if changed:
        raise ValueError(f'{", ".join(changed)} not as in the first row of {row["name"]}: leave empty, or give the run '
                         'another name')


_OF_THE_RUN = ('data', 'split', 'way_trained', 'model', 'setting', 'seed', 'episodes', 'script', 'options', 'hours',
               'hardware', 'log', 'broke_down', 'live', 'remark')


def _number(text):
    float(text)
    return text


def _run(row):
    """The run that its first row describes, without tests yet."""
    whole = {name: int(row[name]) if row[name] else None for name in ('way_trained', 'seed', 'episodes')}
    return Run(name=row['name'], data=row['data'], split=row['split'], way=whole['way_trained'], model=row['model'],
               setting=row['setting'], seed=whole['seed'], episodes=whole['episodes'], script=row['script'],
               options=shlex.split(row['options']), hours=row['hours'], hardware=row['hardware'], log=row['log'],
               broke_down=row['broke_down'] == 'yes', live=row['live'], remark=row['remark'], tests=[])


def read_paper(path=PAPER):
    """The paper's one-shot accuracies, as it gives them, in %.

    Returns:
        {table, such as 'table 1': {(data, split, model, way trained, way tested): text}}

    Raises:
        OSError: the file cannot be read.
    """
    tables = {}
    for _, row in _rows(path):
        if row['measure'] == 'accuracy' and row['way_trained']:
            case = row['data'], row['split'], row['model'], int(row['way_trained']), int(row['way_tested'])
            tables.setdefault(row['table'], {})[case] = row['value']
    return tables


def table_names(path=PAPER):
    """The names of the paper's tables and figures, in the file's order.

    Raises:
        OSError: the file cannot be read.
    """
    return list(dict.fromkeys(row['table'] for _, row in _rows(path)))
