"""The log of a run: a row for every epoch, in files, in a picture and on the terminal."""
import csv
import json
import os
import re
import sys
import warnings

from experiment.checkpoints import Snapshot
from experiment.console import is_terminal, say, warn
from experiment.pictures import new_picture
from ops.compat import extensions, training
from sources.files import printable, replacing

NEEDED = {'epoch', 'iteration', 'seconds', 'main/loss', 'main/accuracy'}  # in every row


def record(trainer, source):
    """Has a trainer keep a log, snapshots to go on from, and reports of its epochs; returns the `Log`.

    Args:
        trainer: `chainer.training.Trainer`.
        source: name of the data, for every row of the log.
    """
    log = Log(source)
    for extension in log, Snapshot(), Report(log):
        trainer.extend(extension)
    return log


class Log(extensions.LogReport):
    """Chainer's LogReport, whose rows `Report` writes and prints.

    Args:
        source: name of the data, for every row.
    """

    default_name = 'log'

    def __init__(self, source):
        super().__init__(filename=None, log_name=None, postprocess=self._label)
        self.source = source

    def _label(self, row):
        row['data'] = self.source

    def serialize(self, serializer):
        super().serialize(serializer)
        if not isinstance(self.log, list) or not all(map(_is_row, self.log)):
            raise ValueError('the log in it is damaged')
        self._summary.compute_mean()  # of the episodes since the last row: fails if these are damaged


def _is_row(row):
    return isinstance(row, dict) and isinstance(row.get('iteration'), int) and NEEDED <= row.keys() and all(
        isinstance(value, str if name == 'data' else (int, float)) for name, value in row.items())


class Report(training.Extension):
    """Writes `log` (JSON), `log.csv` and `learning_curve.png`, and prints a line, whenever a log has a new row.

    It comes after the snapshot of the same epoch. A file that cannot be written costs a warning, and is written whole
    in the next epoch, or when the run goes on.

    (Chainer's PrintReport cannot print the data's name; its PlotReport forgets the episodes before an interruption.)

    Args:
        log: `Log`.
    """

    priority = -200  # after the snapshot
    default_name = 'report'

    def __init__(self, log):
        self.log = log
        self.n_rows = 0  # those reported

    def trigger(self, trainer):
        return len(self.log.log) > self.n_rows

    def initialize(self, trainer):
        """Writes the files of a run that goes on: it may have been ended after its snapshot, but before these."""
        self.n_rows = len(self.log.log)
        if self.n_rows:
            self._write_all(trainer.out)

    def __call__(self, trainer):
        self.n_rows = len(self.log.log)
        self._write_all(trainer.out)
        self._print(self.log.log[-1])

    def _write_all(self, out):
        for name, write, mode in (('log', self._write_json, 'w'), ('log.csv', self._write_csv, 'w'),
                                  ('learning_curve.png', self._draw, 'wb')):
            options = {'newline': '', 'errors': 'backslashreplace'} if mode == 'w' else {}
            try:
                with replacing(os.path.join(out, name), mode, **options) as file:
                    write(file)
            except OSError as error:
                warn(f'{error}; its content is kept, and written with the next epoch')

    def _names(self):
        """Of all columns: not every row has all."""
        return list(dict.fromkeys(name for row in self.log.log for name in row))

    def _write_json(self, file):
        json.dump(self.log.log, file, indent=4)

    def _write_csv(self, file):
        writer = csv.DictWriter(file, self._names())
        writer.writeheader()
        writer.writerows(self.log.log)

    def _draw(self, file):
        figure, axes = new_picture(6.4, 4.8)
        for name in self._names():
            if name.endswith('/accuracy'):
                points = [(row['iteration'], 100 * row[name]) for row in self.log.log if name in row]
                axes.plot(*zip(*points), label=name.replace('main/', 'training/').rsplit('/', 1)[0])
        axes.set(xlabel='training episodes', ylabel='accuracy (%)')
        axes.set_title(printable(self.log.source), parse_math=False)
        axes.grid(alpha=0.3)
        axes.legend()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # of characters that its font lacks
            figure.savefig(file, format='png')

    def _print(self, row):
        names = [name[:-len('/accuracy')] for name in row if re.fullmatch('(average/)?(dev|test)/.*/accuracy', name)]
        tests = ', '.join(f'{name.replace("/", " ")} {row[name + "/loss"]:.3f} / {100 * row[name + "/accuracy"]:.1f} %'
                          for name in names) + '; ' * bool(names)
        # A terminal may hold Chainer's progress bar below the cursor; as its own reports do, this clears it away.
        say(f'epoch {row["epoch"]} ({row["iteration"]} episodes): training loss {row["main/loss"]:.3f} / accuracy '
            f'{100 * row["main/accuracy"]:.1f} %; {tests}{row["seconds"]:.2f} s an episode [{self.log.source}]',
            start='\033[J' if is_terminal(sys.stdout) else '')
