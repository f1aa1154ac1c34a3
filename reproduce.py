"""Reproduces tables 1, 3 and 4 of the paper by one command, on this machine or on a Dask cluster.

    python reproduce.py                      lists tables and runs
    python reproduce.py table1 --quick       a hundredth of the episodes, to see that all works
    python reproduce.py table1 table4
    python reproduce.py 5A 20E --jobs 2
    python reproduce.py all --scheduler tcp://10.0.0.1:8786 --out /shared/metanet
    python reproduce.py --draw               the pictures of assets/, from the logs there

What follows `--` are options for every run: `python reproduce.py 5A -- --gpu 0`. The same line goes on where it was
stopped, and does not repeat what is done. A run's numbers are those of its own command, docs/results.md has it.
"""
import argparse
import glob
import os
import subprocess
import sys

from experiment.console import say
from reproduction import engines, plan
from reproduction.progress import Progress, own_options, table_name, table_of, write_table
from reproduction.runs import ROOT, read_paper, read_runs
from sources.files import open_streams


def arguments(words):
    """The command line; `further` is what follows `--`."""
    words = list(words)
    at = words.index('--') if '--' in words else len(words)
    parser = argparse.ArgumentParser(prog='reproduce.py', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='*', help='tables or runs; nothing: lists them; all: every run')
    parser.add_argument('--jobs', type=int, help='runs at a time on this machine; by default one a core, or a GPU')
    parser.add_argument('--quick', action='store_true', help='a hundredth of the episodes, to see that all works')
    parser.add_argument('--scheduler', default='', help='address of a Dask scheduler, whose workers do the runs')
    parser.add_argument('--gpus', action='store_true', help='a GPU for each run: worker i has GPU i, or, with '
                                                            '--scheduler, a worker has the resource GPU')
    parser.add_argument('--out', help='folder of a folder for each run, result/reproduce by default')
    parser.add_argument('--draw', action='store_true', help='draws the pictures of assets/')
    args = parser.parse_args(words[:at])
    args.further = words[at + 1:]
    return args


def check(args):
    """Refuses what cannot be done, and fills in what was left out.

    Raises:
        ValueError: with what to do instead.
    """
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f'--jobs {args.jobs}: must be 1 or more')
    if len(args.further) % 2 or any(not word.startswith('--') for word in args.further[::2]):
        raise ValueError(f'{" ".join(args.further)}: after -- give options and their values, as in -- --n_filters 8')
    joined = [word for word in args.further[::2] if '=' in word]
    if joined:
        raise ValueError(f'{joined[0]}: after -- put a space between an option and its value')
    for i, word in enumerate(args.further[:-1:2]):
        if word in ('--input_path', '--start_from') and args.further[2 * i + 1]:  # runs work in the project's folder
            args.further[2 * i + 1] = os.path.abspath(args.further[2 * i + 1])
    if {'--out', '--evaluate'} & set(args.further[::2]):
        raise ValueError('out and evaluate are set for every run: leave them out; --out before -- is for all runs')
    if (args.scheduler or args.gpus or (args.jobs or 1) > 1) and not engines.has_dask():
        raise ValueError('several runs at a time need Dask: pip install distributed, or give --jobs 1')
    if args.jobs is None:
        args.jobs = engines.cores() if engines.has_dask() else 1
        if args.gpus:
            from ops.device import n_gpus  # with Chainer, which takes a while
            args.jobs = max(1, n_gpus())
    if args.gpus:
        args.further += ['--gpu', '0']  # of those that the run sees
    args.out = os.path.abspath(args.out or os.path.join('result', 'reproduce_quick' if args.quick else 'reproduce'))


def list_all():
    """Prints tables and runs."""
    say('Tables of the paper, and the runs that make them:')
    for name, (_, runs) in plan.names().items():
        say(f'  {name:8} {" ".join(runs) or "no runs yet"}')
    say('Figures, and what makes them:')
    for name, script in plan.figures().items():
        say(f'  {name:8} python {script}')
    say('Runs (hours that they took on one core):')
    for run in read_runs().values():
        if run.script:
            say(f'  {run.name:8} {run.data}{", " + run.split if run.split else ""}, {run.way}-way, {run.kind}, '
                f'{run.episodes:,} episodes, seed {run.seed}{f", {run.hours} h" if run.hours else ""}')
    say('python reproduce.py NAME ... reproduces them; --help tells the options.')


def draw():
    """Draws every picture of assets/."""
    for path in sorted(glob.glob(os.path.join(ROOT, 'tools', 'draw_*.py'))):
        say(f'python tools/{os.path.basename(path)}')
        subprocess.run([sys.executable, path], cwd=ROOT, check=True)


def accuracies_of(what):
    """The paper's accuracies, {case: text}; where tables differ, that of the one in `what`, then of the first."""
    tables, accuracies = read_paper(), {}
    for table in sorted(tables, key=lambda table: table.replace(' ', '') not in what):
        accuracies = {**tables[table], **accuracies}
    return accuracies


def reproduce(args):
    """Does the runs; returns the exit status: 0 if all are done, 130 after Ctrl-C, else 1."""
    parts = plan.choose(args.what)
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        raise ValueError(f'the folder {args.out} cannot be made ({error.strerror or error}): give another one (--out)'
                         ) from error
    tasks = [plan.task_of(part, args.out, args.quick, args.further) for part in parts]
    accuracies = accuracies_of(args.what)
    own = own_options(args.further)
    path = os.path.join(args.out, table_name(args.what, args.quick, own))
    if os.path.isdir(path):
        raise ValueError(f'{path} is a folder, but the table is to have that name: rename it, or give another --out')

    def table():
        return table_of(parts, progress.outcomes, accuracies, args.quick, own)

    progress = Progress(tasks, lambda: write_table(path, table()))
    jobs = min(args.jobs, len(tasks))
    where = f'on {args.scheduler}' if args.scheduler else f'{jobs} at a time'
    progress.say(f'{len(tasks)} run{"s" * (len(tasks) > 1)}, {where}, in {args.out}; the table grows in {path}')
    if args.scheduler or jobs > 1 or args.gpus:
        pressed = engines.run_on_dask(tasks, progress, args.out, jobs, args.scheduler, args.gpus)
    else:
        pressed = engines.run_here(tasks, progress)
    progress.say(table())
    progress.say(progress.summary())
    failed = [f'{name}: {outcome["message"]}' for name, outcome in progress.outcomes.items()
              if outcome['state'] == 'failed']
    for line in failed:
        print(f'failed: {line}', file=sys.stderr)
    if pressed:
        print('Stopped; the same command goes on from there.', file=sys.stderr)
        return 130
    return int(any(outcome['state'] != 'done' for outcome in progress.outcomes.values()))


def main(words):
    """Does what the command line says; returns the exit status."""
    open_streams()
    args = arguments(words)
    try:
        if args.draw:
            draw()
        if args.what:
            check(args)
            return reproduce(args)
        if not args.draw:
            list_all()
        return 0
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit('\nEnded at once; the same command goes on from the snapshots.')
