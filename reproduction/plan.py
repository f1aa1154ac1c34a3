"""Which runs and tests a table of the paper needs, and what they are called with."""
import ast
import dataclasses
import glob
import json
import os
import socket

from reproduction.runs import ROOT, read_paper, read_runs, settings_of, table_names

# A hundredth of the episodes: a tenth of the epochs, each of a tenth of the episodes.
QUICK = {'n_epoch': (10, 1), 'n_episodes': (10, 1), 'n_decay': (10, 0), 'n_test_episodes': (100, 2),
         'n_dev_episodes': (100, 2), 'n_final_episodes': (100, 2)}  # setting: (divisor, least)
# What `setting` in docs/runs.csv says of the paper's own models.
PAPERS_OWN = '', '"partial"', '"partial, u"'
# Of a script's TEST_SETTINGS, those that a test of docs/runs.csv sets for itself.
OF_A_TEST = 'evaluate_on', 'views', 'n_outputs_test', 'nb_samples_per_class_test', 'inserted_scale'
# Settings that change neither what is trained nor how it is tested: the machine's, and what every run is given.
ELSEWHERE = 'gpu', 'input_path', 'out'


@dataclasses.dataclass(frozen=True)
class Part:
    """A run and the (way, shot) of its tests that are wanted."""

    run: object
    wanted: frozenset


def names():
    """{name of a table, such as table1: (its name in the paper's csv, its runs' names)}."""
    runs, paper = read_runs(), read_paper()
    return {table.replace(' ', ''): (table, list(_of_table(runs, paper.get(table, {})))) for table in table_names()
            if table.replace(' ', '') not in figures()}


def figures():
    """{name of a figure, such as figure3: the script that makes it}."""
    paths = sorted(glob.glob(os.path.join(ROOT, 'figures', 'figure*.py')))
    return {os.path.basename(path)[:-3]: f'figures/{os.path.basename(path)}' for path in paths}


def choose(words):
    """The parts that names of tables, of runs, or `all` stand for, each run once.

    Raises:
        ValueError: a name is unknown, or a table has no runs.
        OSError: docs/runs.csv or docs/paper.csv cannot be read.
    """
    runs, paper, tables = read_runs(), read_paper(), names()
    trained = {name: run for name, run in runs.items() if run.script}
    wanted = {}
    for word in words:
        if word == 'all':
            more = {name: _all_tests(run) for name, run in trained.items()}
        elif word in trained:
            more = {word: _all_tests(trained[word])}
        elif word in tables:
            more = _of_table(runs, paper.get(tables[word][0], {}))
            if not more:
                raise ValueError(f'docs/runs.csv has no runs for {word} yet: choose another table, or add some')
        elif word in figures():
            raise ValueError(f'{word} has a script of its own: python {figures()[word]}')
        else:
            raise ValueError(f'{word} is no table and no run: python reproduce.py lists them')
        for name, tests in more.items():
            wanted[name] = wanted.get(name, frozenset()) | tests
    return [Part(runs[name], tests) for name, tests in wanted.items()]


def _all_tests(run):
    return frozenset((test.way, test.shot) for test in run.tests)


def _of_table(runs, cases):
    """{run's name: its (way, shot) that are in a table}, for runs that do as the paper and have not broken down.

    Of those of a kind, the ones that fill most of the table, then the longest; that is several where seeds differ.
    """
    kinds = {}
    for run in runs.values():
        if run.script and run.setting in PAPERS_OWN and not run.broke_down:
            tests = frozenset((test.way, test.shot) for test in run.tests if test.shot == 1 and
                              (run.data, run.split, run.model, run.way, test.way) in cases)
            if tests:
                kinds.setdefault((run.data, run.split, run.model, run.setting, run.way), []).append((run, tests))
    chosen = {}
    for members in kinds.values():
        best = max((len(tests), run.episodes) for run, tests in members)
        chosen.update({run.name: tests for run, tests in members if (len(tests), run.episodes) == best})
    return chosen


def task_of(part, out, quick=False, further=()):
    """What `work.work` takes.

    Args:
        part: `Part`.
        out: the folder of all runs.
        quick: whether to train and test on a hundredth of the episodes.
        further: options for every run, a list such as ['--gpu', '0'].

    Returns:
        dict; `episodes` in it is how many will be trained, `hours` how long the same run took, or None.

    Raises:
        ValueError: the number of episodes is none, or a constant of the script has been edited to a model's path.
    """
    run = part.run
    constants = constants_of(run.script)
    usual = _edited(run, constants)
    options, tests = _completed(run.options, usual), []
    for test in run.tests:
        if test.options and (test.way, test.shot) in part.wanted:
            test = _completed(test.options, {name: usual[name] for name in constants['TEST_SETTINGS'] if name in usual})
            if test not in tests:
                tests.append(test)
    if quick:
        options = quicker(options, constants)
        of_tests = 'n_final_episodes' if 'n_final_episodes' in constants else 'n_test_episodes'
        tests = [quicker(test, constants, only=(of_tests,)) for test in tests]
    options += further
    for_tests = {'gpu', 'input_path', *constants['TEST_SETTINGS']}.difference(OF_A_TEST)
    in_tests = [word for name, value in zip(further[::2], further[1::2]) if name[2:] in for_tests
                for word in (name, value)]
    settings = {**constants, **settings_of(options)}
    try:
        episodes = int(settings['n_epoch']) * int(settings['n_episodes'])
    except ValueError as error:
        raise ValueError(f'n_epoch and n_episodes of {run.name} must be whole numbers ({error})') from error
    if episodes < 1:
        raise ValueError(f'n_epoch and n_episodes of {run.name} must be 1 or more')
    return {'name': run.name, 'root': ROOT, 'host': socket.gethostname(), 'folder': os.path.join(out, run.name),
            'script': run.script, 'options': options, 'tests': [test + in_tests for test in tests],
            'episodes': episodes, 'hours': float(run.hours) * episodes / run.episodes if run.hours else None}


def _edited(run, constants):
    """{name: value that the script came with} of the constants that have been edited since: a run has that value."""
    edited = {name: value for name, value in usual_constants()[run.script].items() if constants.get(name) != value}
    for name in 'evaluate', 'start_from':  # the command line cannot take these back
        if name in edited:
            raise ValueError(f"{name} has been edited in {run.script}, but {run.name} has '' there: put that back")
    return edited


def _completed(options, usual):
    """Options, a list, and those that give the settings that they lack a value from the dict `usual`."""
    lacking = usual.keys() - settings_of(options).keys()
    return [*options, *(word for name in usual if name in lacking for word in (f'--{name}', str(usual[name])))]


def usual_constants():
    """{script: {name: value}} of the constants that the scripts came with, but for `ELSEWHERE`."""
    with open(os.path.join(ROOT, 'reproduction', 'constants.json'), encoding='utf-8') as file:
        return json.load(file)


def constants_of(script):
    """{name: value} of the constants at the top of a script.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no Python.
    """
    try:
        with open(os.path.join(ROOT, script), encoding='utf-8') as file:
            tree = ast.parse(file.read())
    except SyntaxError as error:
        raise ValueError(f'line {error.lineno} of {script} is no Python ({error.msg}): mend it') from error
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                constants[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:  # something computed
                pass
    return constants


def quicker(options, constants, only=tuple(QUICK)):
    """Options as `options`, with a hundredth of the episodes; in a test only their number changes."""
    settings = settings_of(options)
    averaged = int(settings.get('n_episodes_per_update', constants.get('n_episodes_per_update', 1)))
    n_epoch = int(settings.get('n_epoch', constants.get('n_epoch', 10)))
    for name in only:
        if name in constants:
            divisor, least = QUICK[name]
            if name == 'n_episodes' and n_epoch < 10:  # one epoch stays, so it is shortened by more
                divisor = 100 // n_epoch
            number = max(least, int(settings.get(name, constants[name])) // divisor)
            if name == 'n_episodes':
                number = max(1, number // averaged) * averaged
            settings[name] = str(number)
    return [word for name, value in settings.items() for word in (f'--{name}', value)]
