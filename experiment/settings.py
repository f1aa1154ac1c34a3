"""Settings: the constants at the top of a script, what the command line makes of them, and what each may be."""
import argparse
import ast
import contextlib
import os
import re
import typing

from beyond import CENTRED, VIEWS
from experiment.console import plain_errors
from sources.distortion import MOST
from sources.files import printable

BILLION = 10 ** 9  # bounds counts, 1e30 other numbers: float32 can hold it
LONGEST = 60  # characters of a value in an error's message


# What a setting may be ------------------------------------------------------------------------------------------------


class Check(typing.NamedTuple):
    """What a setting may be.

    Attributes:
        words: end of the sentence "NAME = VALUE: must be ...".
        holds: function that tells whether a value is right.
        read: function from a word of the command line to a value.
        optional: whether it may also be the empty text in the script, but not on the command line.
    """

    words: str
    holds: typing.Callable
    read: typing.Callable
    optional: bool = False


def _literal(word):
    """The number, truth value or tuple that a word spells; else the word itself, which no check takes for one."""
    try:
        return ast.literal_eval(word)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return word


def _number(word):
    value = _literal(word)
    return float(value) if type(value) is int and abs(value) <= 1e30 else value


def whole(least, most=BILLION):
    """A whole number in these bounds."""
    return Check(f'a whole number from {least} to {most}',
                 lambda value: type(value) is int and least <= value <= most, _literal)


def wholes(least, most=BILLION):
    """A whole number in these bounds, or a tuple of one or more."""
    one = whole(least, most)
    return Check(f'{one.words}, or several as in 5,10,20',
                 lambda value: as_tuple(value) != () and all(map(one.holds, as_tuple(value))), _literal)


def number(words, holds):
    """A number for which a function `holds`; nan and infinity are none."""
    return Check(words, lambda value: type(value) in (int, float) and abs(value) <= 1e30 and holds(value), _number)


def flag():
    """True or False."""
    return Check('True or False', lambda value: type(value) is bool, _literal)


def one_of(*options):
    """One of several texts."""
    return Check(f'one of {", ".join(map(repr, options))}', lambda value: type(value) is str and value in options, str)


def some_of(*options):
    """Some of several texts, in this order and with commas between them, or none; a word may have another order."""
    def read(word):
        names = word.replace(' ', '').split(',')
        return ', '.join(name for name in options if name in names) if set(names) <= set(options) else word

    def holds(value):
        return type(value) is str and (value == '' or set(value.split(', ')) <= set(options) and read(value) == value)

    return Check(f"'', or some of {', '.join(map(repr, options))}, in this order, as in {', '.join(options[:2])!r}",
                 holds, read)


def path_of(what, optional=False):
    """A path, of a folder for one; `optional` as of `Check`."""
    return Check(f'the path of {what}, written out where it has a ~', _is_path, str, optional)


def _is_path(value):
    return isinstance(value, str) and value.strip() != '' and '\0' not in value and not value.startswith('~')


def as_tuple(value):
    """Of a setting that may be one value or several (a tuple, or a list from a file), all."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


# Settings that mean the same in every script.
COMMON = {
    'data_digest': Check('text', lambda value: isinstance(value, str), str),
    'input_path': path_of('a folder'),
    'out': path_of('a folder'),
    'evaluate': path_of('the npz of a trained model', optional=True),
    'views': some_of(*VIEWS),
    'start_from': path_of('the npz of a trained model', optional=True),
    'gpu': whole(-1, 1000),
    'seed': whole(0, 2 ** 32 - 1),  # what NumPy takes
    'n_outputs_train': whole(2, 10 ** 5),
    'nb_samples_per_class': whole(1),
    'nb_samples_per_class_test': whole(1),
    'n_queries': whole(1),
    'distortion': number(f'a number from 0 to {MOST}', lambda value: 0 <= value <= MOST),
    'n_epoch': whole(1),
    'n_episodes': whole(1),
    'n_episodes_per_update': whole(1),
    'n_filters': whole(1, 1024),
    'n_steps': whole(1),
    'centred': some_of(*CENTRED),
    **dict.fromkeys(('hidden_scale', 'fast_scale'), number(
        '0, or a number from 0.001 to 1000', lambda value: value == 0 or 1e-3 <= value <= 1e3)),
    'inserted_scale': number('a number, at least 0', lambda value: value >= 0),
    'initialisation': one_of('uniform', 'chainer'),
    'alpha': number('a number above 0', lambda value: value > 0),
    'n_decay': whole(0),
    'inverse_decay': whole(0),
    'amsgrad': flag(),
    'clip': number('a number above 0', lambda value: value > 0),
    'clipping': one_of('together', 'apart'),
    'average_decay': number('a number from 0, and below 1', lambda value: 0 <= value < 1),
}


def check(settings, checks, given=()):
    """Refuses settings that are not what they may be.

    Args:
        settings: dict; of the names in `checks`, any may be missing.
        checks: {name: `Check`}.
        given: names of those that the command line gave.

    Raises:
        ValueError: with the first such setting's name and value, and what it must be.
    """
    for name, what in checks.items():
        value = settings.get(name)
        is_unset = what.optional and name not in given and type(value) is str and value == ''
        if name in settings and not is_unset and not what.holds(value):
            raise ValueError(f'{name} = {shortened(value)}: must be {what.words}')
    n_episodes, per_update = settings.get('n_episodes', 1), settings.get('n_episodes_per_update', 1)
    if n_episodes % per_update:
        raise ValueError(f'n_episodes = {n_episodes} is not a multiple of n_episodes_per_update = {per_update}: change '
                         'one of them')
    if settings.get('n_decay') and settings.get('inverse_decay'):
        raise ValueError(f'n_decay = {settings["n_decay"]} and inverse_decay = {settings["inverse_decay"]}: the '
                         'learning rate can fall in one way alone, set one of them to 0')
    if settings.get('variant') == 'MetaNet+' and settings.get('centred'):
        raise ValueError(f"centred = {settings['centred']!r} goes with MetaNet and MetaNet-: '' for MetaNet+")
    for name, usual in ('evaluate_on', 'test'), ('views', ''):
        if settings.get('evaluate') == '' and settings.get(name, usual) != usual:
            raise ValueError(f'{name} = {settings[name]!r} is for the test of a trained model: give its npz '
                             '(evaluate), or leave it out')


def shortened(value):
    """A value as Python writes it, cut off if it is very long."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return 'a number of thousands of digits'
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}... ({len(text)} characters)'


def refuse_conflicts(given, trained):
    """Refuses settings of the command line by which a trained model was not trained, and a folder for its results.

    Args:
        given: dict of the settings that the command line gave, without those that only concern the test.
        trained: dict of the settings of the model's training.

    Raises:
        ValueError: with the first such setting's name and both values.
    """
    if 'out' in given:
        raise ValueError('out is given, but with evaluate nothing is saved: leave it out, and keep what is printed')
    for name, value in given.items():
        if name in trained and value != trained[name]:
            raise ValueError(f'{name} = {value!r}, but the model to evaluate was trained with '
                             f'{shortened(trained[name])}: leave that setting out')


def refuse_images(trained, shape, where):
    """Refuses images of another kind than a model was trained on.

    Args:
        trained: dict of the settings of the model's training, with `channels` and `image_size`.
        shape: (channels, size) of the images, as of `data.image_shape`.
        where: where they are from, for the message.

    Raises:
        ValueError: with both kinds.
    """
    known = trained['channels'], trained['image_size']
    if shape != known:
        raise ValueError(f'the model to evaluate was trained on images of size {known[1]} with {known[0]} channels, '
                         f'those in {where} are of size {shape[1]} with {shape[0]}: give others (input_path)')


# The command line -----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        super().error(f'{message}; --help lists the settings')

    def _print_message(self, message, file=None):
        super()._print_message(message and printable(message, file, keep='\n'), file)


@contextlib.contextmanager
def configured(script, words, checks):
    """Within it the constants at the top of a script are what the command line says, `--name value`; then as before.

    Unknown names and bad values, on the command line or in the script, end the program (SystemExit).

    Args:
        script: the script's `globals()`.
        words: of the command line, a list such as ['--n_epoch', '5'].
        checks: {name: `Check`} of the constants that are settings.

    Yields:
        A dict of all settings, and the set of the names of those that the command line gave.
    """
    with open(script['__file__'], encoding='utf-8') as file:
        comments = dict(re.findall(r'^(\w+) = .*?  # (.*)$', file.read(), re.MULTILINE))
    constants = {name: value for name, value in script.items() if name in checks}
    parser = _Parser(prog=os.path.basename(script['__file__']), description=(script['__doc__'] or '').split('\n')[0],
                     usage='%(prog)s [--NAME VALUE ...]', allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name, value in constants.items():
        parser.add_argument('--' + name, metavar=shortened(value), help=comments.get(name, '').replace('%', '%%'))
    given = {name: checks[name].read(word) for name, word in vars(parser.parse_args(words)).items()}
    settings = {**constants, **given}
    with plain_errors():
        check(settings, checks, given)
    script.update(given)
    try:
        yield settings, set(given)
    finally:
        script.update(constants)
