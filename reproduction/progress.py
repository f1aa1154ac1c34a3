"""What is shown of runs: one display for all, and the table with the paper's numbers beside ours."""
import re
import shlex
import shutil
import sys
import time
import zlib

from experiment.console import drop_output, warn
from reproduction.plan import ELSEWHERE
from reproduction.runs import test_kind
from sources.files import printable, replacing

EVERY = 60  # seconds between lines where the output is no terminal


class Progress:
    """The display of all runs.

    Args:
        tasks: as `plan.task_of` makes them.
        report: function, called without arguments when a run has ended, after its outcome is in `outcomes`.

    Attributes:
        outcomes: {name: as `work.work` returns it}.
    """

    def __init__(self, tasks, report=lambda: None):
        self.tasks = {task['name']: task for task in tasks}
        self.report = report
        self.outcomes = {}
        self.running = {}  # name: dict of its latest news
        self.seconds = {}  # name: (episodes, seconds) of what was trained under this command
        self.start = time.monotonic()
        self.shown = self.start
        self.lines = 0  # below which the cursor is

    # News -------------------------------------------------------------------------------------------------------------

    def news(self, name, item):
        """Takes a dict as `work.work` gives it to `say`."""
        if name in self.outcomes:
            return
        if item.pop('start', False):
            begun = item['episodes']
            where = f'goes on after {begun:,} episodes' if begun else 'starts'
            if name in self.running:
                where = f'has lost its worker, and {where if begun else "starts anew"}'
            self.say(f'{name} {where} ({item["where"]})')
            self.running[name] = {'begun': begun, 'since': time.monotonic(), **item}
        elif name in self.running:
            self.running[name].update(item)
            self._count(name)

    def _count(self, name):
        run = self.running[name]
        episodes = run.get('episodes', 0) - run['begun']
        if episodes > self.seconds.get(name, (0, 0))[0]:
            self.seconds[name] = episodes, time.monotonic() - run['since']

    def end(self, outcome):
        """Takes what `work.work` returns."""
        name = outcome['name']
        self.running.pop(name, None)
        self.outcomes[name] = outcome
        try:
            self.report()
        except OSError as error:
            warn(f'the table cannot be written ({error}): mend that before the next run ends; the runs go on')
        words = {'done': ', but '.join(filter(None, ('is done', outcome['message']))),
                 'stopped': 'has stopped; the same command goes on from there',
                 'failed': f'has failed: {outcome["message"]}'}[outcome['state']]
        self.say(f'{name} {words}')

    # Display ----------------------------------------------------------------------------------------------------------

    def say(self, text):
        """Prints a line above the display."""
        self._clear()
        self._print(printable(text, keep='\n') + '\n')

    def show(self):
        """Draws the display anew in a terminal; elsewhere prints it as one line, now and then."""
        if sys.stdout.isatty():
            self._clear()
            lines = [self._line(name) for name in self.running] + [self.summary()]
            width = shutil.get_terminal_size().columns - 1  # a longer line would take two, of which one is cleared
            self._print(''.join(printable(line)[:width] + '\n' for line in lines))
            self.lines = len(lines)
        elif time.monotonic() - self.shown >= EVERY:
            self.shown = time.monotonic()
            self.say('; '.join([self._line(name) for name in self.running] + [self.summary()]))

    def _clear(self):
        if self.lines:
            self._print(f'\033[{self.lines}A\033[J')
            self.lines = 0

    @staticmethod
    def _print(text):
        """Writes to stdout; where nobody reads it any more, the runs go on all the same."""
        try:
            print(text, end='', flush=True)
        except OSError as error:
            drop_output()
            warn(f'the output cannot be written any more ({error.strerror or error}); the runs go on, and the table '
                 'grows in its file')

    def _line(self, name):
        run, total = self.running[name], self.tasks[name]['episodes']
        accuracy = '' if run.get('accuracy') is None else f', {100 * run["accuracy"]:.1f} %'
        stage = ', in its final tests' if run.get('stage') == 'tests' or run.get('episodes', 0) >= total else ''
        return f'{name}: {run.get("episodes", 0):,} of {total:,} episodes{accuracy}{stage}'

    def summary(self):
        """How many runs are done, how fast all are together, and how long it will take."""
        episodes = sum(count for count, _ in self.seconds.values())
        text = f'{len(self.outcomes)} of {len(self.tasks)} runs have ended, {len(self.running)} running'
        if episodes:
            speed = episodes / max(time.monotonic() - self.start, 1e-3)  # Windows' clock goes in steps
            text += f'; {speed:.1f} episodes a second together'
        if len(self.outcomes) < len(self.tasks):
            text += f'; about {self._left():.1f} hours left'
        return text

    def _left(self):
        """Hours, judged by how long the runs took that are in docs/runs.csv, and how much slower it goes now."""
        ended = [name for name in self.tasks if name in self.outcomes]
        spent = sum(seconds for _, seconds in self.seconds.values()) / 3600
        expected = sum(self._hours(name) * count / self.tasks[name]['episodes']
                       for name, (count, _) in self.seconds.items())
        slower = spent / expected if expected else 1
        left = {name: self._hours(name) * slower * max(0, 1 - self.running.get(name, {}).get('episodes', 0)
                                                       / self.tasks[name]['episodes'])
                for name in self.tasks if name not in ended}
        return max([sum(left.values()) / max(1, len(self.running)), *left.values()], default=0)

    def _hours(self, name):
        task = self.tasks[name]
        return task['hours'] or task['episodes'] * 0.2 / 3600


def own_options(further):
    """Those of the user's options for every run that change what is trained or tested, as text for a shell.

    Args:
        further: a list such as ['--n_filters', '8'].
    """
    return ' '.join(shlex.quote(word) for name, value in zip(further[::2], further[1::2]) if name[2:] not in ELSEWHERE
                    for word in (name, value))


def table_name(what, quick=False, own=''):
    """The name of the file of a table: another one for other runs, and for other options of the user's own."""
    name = '_'.join(what)
    if len(name) > 60:  # more than one list begins so
        name = f'{name[:50]}_{zlib.crc32(name.encode()):08x}'
    return name + ('_quick' if quick else '') + (f'_{zlib.crc32(own.encode()):08x}' if own else '') + '.md'


def table_of(parts, outcomes, paper, quick=False, own=''):
    """Markdown: for every wanted test ours, that of docs/runs.csv and the paper's number.

    These two stay out where there are options of the user's own.

    Args:
        parts: list of `plan.Part`.
        outcomes: {name: as `work.work` returns it}, of the runs that have ended.
        paper: {(data, split, model, way trained, way tested): text}.
        quick: whether it was a hundredth of the episodes.
        own: as `own_options` returns them.
    """
    rows = [('run', 'model', 'trained', 'tested', 'weights', 'here', 'test episodes', 'docs/results.md', 'the paper')]
    for part in parts:
        run = part.run
        about = run.name, run.kind, f'{run.way}-way'
        outcome = outcomes.get(run.name)
        if outcome is None or outcome['state'] != 'done':
            words = 'to come' if outcome is None else outcome['state']
            rows.append((*about, '', '', words, '', '', ''))
            continue
        strange = outcome.get('source') != run.data
        for row in outcome['rows']:
            way, shot = int(row['way']), int(row['shot'])
            if (way, shot) in part.wanted:
                kind = _kind(row['label'])
                before = run.test(way, shot, kind)
                value = paper.get((run.data, run.split, run.model, run.way, way)) if shot == 1 else None
                ours = f'{row["accuracy"]} ± {row["interval"]} %'
                ours += f' on {outcome.get("source") or "unknown data"}' * strange
                rows.append((*about, f'{way}-way {shot}-shot', kind, ours, row['episodes'],
                             f'{before.accuracy} ± {before.interval} %' if before and not own else '',
                             f'{value} %' if value and not strange and not own else ''))
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    lines.insert(1, '|---' * len(rows[0]) + '|')
    note = 'Trained and tested on a hundredth of the episodes: these are no results.\n\n' if quick else ''
    if own:
        note += f'With options of your own, `{own}`: other runs than those they are named after.\n\n'
    return note + '\n'.join(lines) + '\n'


def _kind(label):
    """The `reproduction.runs.test_kind` that a line of results names."""
    weights = 'average' if 'averaged weights' in label else 'last'
    views = re.search('views: (shifted, mirrored|shifted|mirrored)', label)
    return test_kind(weights, views and views[1])


def write_table(path, text):
    """Writes the table, whole or not at all."""
    with replacing(path, 'w', newline='\n') as file:
        file.write(text)
