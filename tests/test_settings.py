"""Settings: a script's constants, the command line, and what each may be."""
import re

import numpy as np
import pytest
from small_runs import ending

from experiment.settings import (
    COMMON,
    as_tuple,
    check,
    configured,
    flag,
    number,
    one_of,
    path_of,
    some_of,
    whole,
    wholes,
)

SCRIPT = '''"""A script.

More about it.
"""
whole = 3  # a whole number
several = (5, 10)  # numbers
real = 0.5  # a number, 100 %
word = 'x'  # a word
flag = False  # yes or no
folder = 'here'
evaluate = ''  # a model
CONSTANT = 4  # none of the settings
'''
CHECKS = {'whole': whole(1, 50), 'several': wholes(2), 'real': number('a number above 0', lambda value: value > 0),
          'word': one_of('x', '1'), 'flag': flag(), 'folder': path_of('a folder'), 'evaluate': COMMON['evaluate'],
          'kept': whole(1)}


@pytest.fixture
def script(tmp_path):
    """The `globals()` of a script."""
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    names = {'__file__': str(path)}
    exec(SCRIPT, names)
    return names


@pytest.mark.parametrize('words, expected', [
    ([], {}),
    (['--whole', '4', '--several', '7', '--real', '1', '--word', '1', '--flag', 'True', '--evaluate', 'a.npz'],
     {'whole': 4, 'several': 7, 'real': 1.0, 'word': '1', 'flag': True, 'evaluate': 'a.npz'}),
    (['--several', '5,20'], {'several': (5, 20)}),
    (['--whole', '4', '--whole', '5'], {'whole': 5}),
])
def test_the_command_line_replaces_constants_and_leaves_the_script_as_it_was(script, words, expected):
    before = dict(script)
    with configured(script, words, CHECKS) as (settings, given):
        assert given == set(expected)
        assert settings == {name: expected.get(name, before[name]) for name in CHECKS if name in before}
        assert all(type(settings[name]) is type(value) for name, value in expected.items())
        assert {name: script[name] for name in settings} == settings
    assert script == before


@pytest.mark.parametrize('words, message', [
    (['--CONSTANT', '5'], 'unrecognized arguments: --CONSTANT 5'),
    (['--whol', '4'], 'unrecognized arguments: --whol 4'),
    (['--whole'], 'argument --whole: expected one argument'),
    (['--kept', '3'], 'unrecognized arguments: --kept 3'),
    (['5', '\x1b[31m'], r'unrecognized arguments: 5 \x1b[31m'),
])
def test_unknown_words_are_refused(script, words, message, capsys):
    assert ending(lambda: configured(script, words, CHECKS).__enter__()) == 2
    assert f'{message}; --help lists the settings' in capsys.readouterr().err


def test_help_lists_each_setting_with_its_value_and_its_comment(script, capsys):
    assert ending(lambda: configured(script, ['--help'], CHECKS).__enter__()) == 0
    shown = ' '.join(capsys.readouterr().out.split())
    for text in ('A script.', '--whole 3 a whole number', '--several (5, 10) numbers', '--real 0.5 a number, 100 %',
                 "--folder 'here'"):
        assert text in shown
    assert 'CONSTANT' not in shown and 'kept' not in shown


WHOLE = 'whole = {}: must be a whole number from 1 to 50'
REAL = 'real = {}: must be a number above 0'
SEVERAL = 'several = {}: must be a whole number from 2 to 1000000000, or several as in 5,10,20'


@pytest.mark.parametrize('name, word, message', [
    ('whole', '0', WHOLE), ('whole', '51', WHOLE), ('whole', '1.5', WHOLE), ('whole', '5,20', WHOLE.format('(5, 20)')),
    ('whole', '10k', WHOLE.format("'10k'")), ('whole', 'True', WHOLE), ('whole', 'None', WHOLE),
    ('whole', '', WHOLE.format("''")),
    ('whole', '1' * 400, f'whole = {"1" * 60}... (400 characters): must be'), ('whole', str(2 ** 64), WHOLE),
    ('whole', '(' * 9999, 'characters): must be a whole number'), ('whole', '9' * 5000, 'must be a whole number'),
    ('whole', 'nan', WHOLE.format("'nan'")), ('whole', '1e3', WHOLE.format('1000.0')), ('whole', '[1]', WHOLE),
    ('whole', '{[]}', WHOLE.format("'{[]}'")), ('whole', '\x1b[2J', r"whole = '\x1b[2J'"),
    ('real', '0', REAL.format('0.0')), ('real', 'nan', REAL.format("'nan'")), ('real', 'inf', REAL.format("'inf'")),
    ('real', '1e999', REAL.format('inf')), ('real', '-1e999', REAL.format('-inf')),
    ('real', '1e-999', REAL.format('0.0')),
    ('real', '1e31', REAL.format('1e+31')), ('real', '9' * 400, 'characters): must be a number above 0'),
    ('real', '1j', REAL), ('real', 'x', REAL.format("'x'")), ('real', 'True', REAL),
    ('several', '()', SEVERAL), ('several', '5,1', SEVERAL.format('(5, 1)')),
    ('several', '5,x', SEVERAL.format("'5,x'")),
    ('several', '5,2.5', SEVERAL.format('(5, 2.5)')), ('several', '(5,(6,7))', SEVERAL.format('(5, (6, 7))')),
    ('word', 'y', "word = 'y': must be one of 'x', '1'"), ('flag', '1', 'flag = 1: must be True or False'),
    ('folder', '', "folder = '': must be the path of a folder"), ('folder', ' ', "folder = ' ': must be"),
    ('folder', 'a\0b', r"folder = 'a\x00b': must be the path of a folder"),
    ('folder', '~/own', "folder = '~/own': must be the path of a folder, written out where it has a ~"),
    ('evaluate', '', "evaluate = '': must be the path of the npz of a trained model"),
], ids=lambda text: text[:20])
def test_bad_values_are_refused_in_a_sentence(script, name, word, message):
    before = dict(script)
    end = ending(lambda: configured(script, [f'--{name}={word}'], CHECKS).__enter__())
    assert end.startswith('error: ') and message.replace('{}', word) in end and '\n' not in end and len(end) < 250
    assert script == before


@pytest.mark.parametrize('value', [None, 2.5, (5, 10), 0, [], 10 ** 5000, float('nan'), b'3', True],
                         ids=lambda value: type(value).__name__)
def test_an_edited_constant_of_a_wrong_kind_is_refused(value):
    with pytest.raises(ValueError, match=r'n_queries = .*: must be a whole number from 1 to 1000000000'):
        check({'n_queries': value}, COMMON)


def test_an_update_must_not_reach_beyond_its_epoch():
    check({'n_episodes': 100, 'n_episodes_per_update': 4}, COMMON)
    with pytest.raises(ValueError, match='n_episodes = 100 is not a multiple of n_episodes_per_update = 3'):
        check({'n_episodes': 100, 'n_episodes_per_update': 3}, COMMON)


def test_one_value_or_several_make_a_tuple():
    assert as_tuple(5) == (5,) and as_tuple((5, 10)) == as_tuple([5, 10]) == (5, 10)


@pytest.mark.parametrize('script', ['train_omniglot', 'train_mini_imagenet'])
def test_every_constant_with_a_small_name_has_a_check_and_a_comment(script):
    module = __import__(script)
    with open(module.__file__, encoding='utf-8') as file:
        lines = re.findall(r'^([a-z_]+) = (.*)', file.read(), re.MULTILINE)
    assert len(lines) > 25
    assert [name for name, _ in lines if name not in module.CHECKS] == []
    assert [name for name, rest in lines if '  # ' not in rest] == []


@pytest.mark.parametrize('word, value', [
    ('', ''), ('b', 'b'), ('c,a', 'a, c'), ('a, b', 'a, b'), (' b ,c,a', 'a, b, c'), ('a,a', 'a')])
def test_some_of_several_may_come_in_any_order(word, value):
    some = some_of('a', 'b', 'c')
    assert some.read(word) == value and some.holds(value)


@pytest.mark.parametrize('value', ['d', 'a, d', 'b, a', 'a,b', 'a, ', ', a', ('a', 'b'), None, 'a, a',
                                   np.array(['a', 'b'])])
def test_other_texts_are_refused(value):
    with pytest.raises(ValueError, match="must be '', or some of 'a', 'b', 'c', in this order, as in 'a, b'"):
        check({'name': value}, {'name': some_of('a', 'b', 'c')})


@pytest.mark.parametrize('name', ['split', 'evaluate', 'centred', 'input_path'])
def test_an_array_of_texts_is_no_text(name):
    checks = {**COMMON, 'split': one_of('previous', 'standard')}
    for value in np.array(['previous', 'standard']), np.array(['previous']), np.array(['']):
        with pytest.raises(ValueError, match=f'{name} = array.*: must be '):
            check({name: value}, checks)


def test_the_classes_of_a_test_are_chosen_with_the_model_to_test():
    checks = {'evaluate': COMMON['evaluate'], 'evaluate_on': one_of('train', 'test')}
    check({'evaluate': 'model.npz', 'evaluate_on': 'train'}, checks)
    check({'evaluate_on': 'train'}, checks)  # settings of a file
    with pytest.raises(ValueError, match="evaluate_on = 'train' is for the test of a trained model: give its npz"):
        check({'evaluate': '', 'evaluate_on': 'train'}, checks)
    checks = {'evaluate': COMMON['evaluate'], 'views': COMMON['views']}
    with pytest.raises(ValueError, match="views = 'shifted' is for the test of a trained model: give its npz"):
        check({'evaluate': '', 'views': 'shifted'}, checks)


def test_the_learning_rate_falls_in_one_way_alone():
    checks = {name: COMMON[name] for name in ('n_decay', 'inverse_decay')}
    check({'n_decay': 0, 'inverse_decay': 9}, checks)
    check({'n_decay': 9, 'inverse_decay': 0}, checks)
    with pytest.raises(ValueError, match='n_decay = 1 and inverse_decay = 9: the learning rate can fall in one way'):
        check({'n_decay': 1, 'inverse_decay': 9}, checks)
