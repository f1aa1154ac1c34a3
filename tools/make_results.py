"""Makes docs/results.md from docs/runs.csv, docs/paper.csv and the prose in docs/results_template.md.

    python tools/make_results.py

In the template {{ name argument ... }} stands for what the function `name` below returns: a table on a line of its own,
or a number in a sentence.
"""
import collections
import decimal
import os
import re
import shlex
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from reproduction.runs import DOCS, read_paper, read_runs
from sources.files import replacing

NOTE = '<!-- Made by tools/make_results.py from runs.csv, paper.csv and results_template.md: edit these. -->\n'
WAYS = 5, 10, 15, 20


class Results:
    """The tables: each public method is a name for the template.

    Args:
        runs: {name: `reproduction.runs.Run`}.
        paper: the paper's accuracies, as `reproduction.runs.read_paper` returns them.
    """

    def __init__(self, runs, paper):
        self.runs = runs
        self.own = {case: value for table in ('table 1', 'table 2', 'table 3') for case, value in paper[table].items()}
        self.across = paper['table 4']

    # Tables -----------------------------------------------------------------------------------------------------------

    def own_way(self, data, split=''):
        """The runs on these data, each tested as it was trained, and the means over seeds."""
        entries = list(self._own_way(data, split))
        members = collections.defaultdict(list)
        for run, test in entries:
            members[_group(run, test)].append((run, test))
        rows = []
        for run, test in entries:
            paper = self._paper(run, test)
            log = f'[{run.name}](../{run.log})' if run.log else run.name
            rows.append([f'{test.way}-way', run.kind, _text(run.seed), test.kind, _accuracy(test), paper,
                         _count(test.episodes), _count(run.episodes), _rate(run), run.hours, log])
            same = members[_group(run, test)]
            if len(same) > 1 and (run, test) == same[-1]:
                rows.append(['', f'mean of {len(same)} seeds', '', test.kind, f'**{_mean(same)} %**', paper,
                             '', '', '', '', ''])
        return _table(['', 'model', 'seed', 'weights', 'accuracy', 'the paper', 'test episodes', 'trained on',
                       'learning rate', 'hours', 'run'], rows)

    def beside_the_paper(self, data, split=''):
        """Accuracy less the paper's: of each kind of model the longest runs that did not break down, mean of seeds."""
        longest = {}
        for run, test in self._own_way(data, split):
            if run.broke_down or not self._paper(run, test):
                continue
            kind = run.kind, test.kind
            members = longest.setdefault(kind, {}).setdefault(test.way, [])
            if members and members[0][0].episodes < run.episodes:
                members.clear()
            if not members or _group(*members[0]) == _group(run, test):
                members.append((run, test))
        ways = sorted({way for cells in longest.values() for way in cells})
        rows = []
        for (model, kind), cells in longest.items():
            row = [model, kind]
            for way in ways:
                members = cells.get(way)
                if members:
                    names = ', '.join(run.name for run, _ in members)
                    row.append(f'{_less(_mean(members), self._paper(*members[0]))} ({names})')
                else:
                    row.append('')
            rows.append(row)
        return _table(['model', 'weights', *(f'{way}-way' for way in ways)], rows)

    def every_way(self, *names):
        """Accuracy at every way less the paper's for a model trained for that way: one model in place of four."""
        rows = []
        for name in names:
            run = self.runs[name]
            for kind in dict.fromkeys(test.kind for test in run.tests):
                tests = [run.test(way, kind=kind) for way in WAYS]
                rows.append([f'{run.kind}, trained {run.way}-way ({name})', kind, *(
                    _less(test.accuracy, self.own[run.data, run.split, run.model, test.way, test.way])
                    if test else '' for test in tests)])
        return _table(['model', 'weights', *(f'{way}-way' for way in WAYS)], rows)

    def across_ways(self, data, split=''):
        """The runs that were tested at other ways than their own, and the paper's rows for their ways of training."""
        rows = []
        runs = [run for run in self._of(data, split)
                if run.way and any(test.way != run.way and test.shot == 1 for test in run.tests)]
        runs.sort(key=lambda run: run.way)
        for i, run in enumerate(runs):
            for kind in dict.fromkeys(test.kind for test in run.tests):
                tests = [run.test(way, kind=kind) for way in WAYS]
                counts = dict.fromkeys(_count(test.episodes) for test in tests if test)
                if len(counts) > 1:
                    counts = [_count(test.episodes) if test else '' for test in tests]
                rows.append([f'{run.way}-way', run.kind, run.name, _text(run.seed), kind,
                             *(_accuracy(test) if test else '' for test in tests), ', '.join(counts)])
            if i + 1 == len(runs) or runs[i + 1].way != run.way:
                paper = [self.across.get((data, split, 'MetaNet', run.way, way)) for way in WAYS]
                if all(paper):
                    rows.append([f'{run.way}-way', 'the paper', '', '', '', *(f'{value} %' for value in paper), ''])
        return _table(['trained', 'model', 'run', 'seed', 'weights', *(f'tested {way}-way' for way in WAYS),
                       'test episodes'], rows)

    def options_tried(self, data, split):
        """Runs that differ in one option, with a column for each seed."""
        runs = list(self._of(data, split))
        seeds = sorted({run.seed for run in runs})
        kinds = {}
        for run in runs:
            for test in run.tests:
                key = run.episodes, _option(run), test.kind
                kinds.setdefault(key, {})[run.seed] = run, test
        rows = []
        for (episodes, option, kind), cells in kinds.items():
            row = [_count(episodes), f'`{option}`' if option else 'none', kind]
            for seed in seeds:
                run, test = cells.get(seed, (None, None))
                row += [_accuracy(test), run.live] if run else ['', '']
            rows.append(row + [', '.join(run.name for run, _ in cells.values())])
        columns = [column for seed in seeds for column in (f'seed {seed}', 'fc1 alive')]
        return _table(['episodes', 'option', 'weights', *columns, 'runs'], rows)

    def commands(self, data, split=''):
        """The options of the runs on these data."""
        return _table(['run', 'options'], [[run.name, f'`{shlex.join(run.options)}`' if run.options else 'none']
                                           for run in self._of(data, split) if run.script])

    def tests(self, data, split=''):
        """The options of the tests that were made after a run had ended."""
        kinds = {}
        for run in self._of(data, split):
            for test in run.tests:
                if test.options:
                    kinds.setdefault(shlex.join(test.options), []).append(run.name)
        return _table(['runs', 'options'], [[', '.join(dict.fromkeys(names)), f'`{options}`']
                                            for options, names in kinds.items()])

    def remarks(self, data):
        """What is to be said of single runs on these data, each sentence once."""
        said = {}
        for run in (run for run in self.runs.values() if run.data == data):
            for sentence in re.findall(r'\S.*?\.(?=\s|$)', run.remark):
                said.setdefault(sentence, []).append(run.name)
        return '\n'.join(f'- {", ".join(names)}: {sentence}' for sentence, names in said.items())

    # Numbers ----------------------------------------------------------------------------------------------------------

    def accuracy(self, name, way, shot=1, kind='last'):
        """One test's accuracy and interval."""
        return _accuracy(self.runs[name].test(int(way), int(shot), kind))

    def ways(self, name, kind='last'):
        """Cells of one run's accuracies at every way."""
        return ' | '.join(self.accuracy(name, way, kind=kind) for way in WAYS)

    def papers_ways(self, data, split):
        """The same of the paper's MetaNets, one for each way."""
        return ' | '.join(f"{self.own[data, split, 'MetaNet', way, way]} %" for way in WAYS)

    def mean(self, way, kind, *names):
        """The mean of several runs' accuracies, of one-shot tests of a kind."""
        return f'{_mean([(self.runs[name], self.runs[name].test(int(way), kind=kind)) for name in names])} %'

    # Parts ------------------------------------------------------------------------------------------------------------

    def _of(self, data, split):
        return (run for run in self.runs.values() if (run.data, run.split) == (data, split))

    def _own_way(self, data, split):
        """Pairs of a run and its one-shot test at its own way; of a yardstick, at any."""
        for run in self._of(data, split):
            for test in run.tests:
                if test.shot == 1 and test.way == (run.way or test.way):
                    yield run, test

    def _paper(self, run, test):
        """The paper's number for a model trained and tested at this way, as text, or ''."""
        value = self.own.get((run.data, run.split, run.model, run.way, test.way))
        return f'{value} %' if value else ''


def _group(run, test):
    """What runs that differ in their seed alone have in common."""
    return (run.name, test.way) if run.seed is None else (run.kind, run.way, run.episodes, _option(run), test.kind)


def _option(run):
    """A run's options but for its data, seed, length and tests."""
    words, options = iter(run.options), []
    for name, value in zip(words, words):
        if name not in ('--split', '--seed', '--n_epoch', '--n_test_episodes', '--n_final_episodes'):
            options += [name, value]
    return shlex.join(options)


def _rate(run):
    """What a run's learning rate does."""
    if not run.script:
        return ''
    falls = {'--inverse_decay': 'falls', '--n_decay': 'falls at the end'}
    return next((words for option, words in falls.items() if option in run.options), 'constant')


def _text(value):
    return '' if value is None else str(value)


def _count(number):
    return '' if number is None else f'{number:,}'


def _accuracy(test):
    return f'{test.accuracy} ± {test.interval} %'


def _mean(members):
    """Mean accuracy of pairs of run and test, with two decimals."""
    accuracies = [decimal.Decimal(test.accuracy) for _, test in members]
    return str((sum(accuracies) / len(accuracies)).quantize(decimal.Decimal('0.01')))


def _less(accuracy, paper):
    """The difference of two texts, with its sign and one decimal."""
    difference = (decimal.Decimal(accuracy) - decimal.Decimal(paper.split()[0])).quantize(decimal.Decimal('0.1'))
    return f'{difference:+}' if difference else '0.0'


def _table(head, rows):
    """Markdown; columns with nothing in them are left out."""
    filled = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(line[i] for i in filled) + ' |' for line in lines)


def render(template, results):
    """The template with what its {{ }} stand for.

    Raises:
        ValueError: one of them names no table, run or test, or lacks an end.
    """
    def replace(match):
        name, *arguments = shlex.split(match.group(1))
        try:
            return getattr(results, name)(*arguments)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f'{match.group()} in the template: no such table, run or test ({error})') from error

    text = re.sub(r'\{\{(.*?)\}\}', replace, template, flags=re.DOTALL)
    if '{{' in text or '}}' in text:
        raise ValueError('the template has a {{ without its }}, or a }} without its {{')
    return NOTE + text


def make():
    """The text of docs/results.md."""
    with open(os.path.join(DOCS, 'results_template.md'), encoding='utf-8') as file:
        return render(file.read(), Results(read_runs(), read_paper()))


def main():
    try:
        text = make()
        with replacing(os.path.join(DOCS, 'results.md'), 'w', newline='\n') as file:
            file.write(text)
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
