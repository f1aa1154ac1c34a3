"""How the scripts speak and end: errors, Ctrl-C, closed pipes, poor terminals."""
import ctypes
import io
import os
import subprocess
import sys

import pytest
from small_runs import ROOT, ending
from small_scripts import SMALL, save_strokes

import train_mini_imagenet
import train_omniglot
from experiment import console


def program(*words, name='train_omniglot', **options):
    """A script as a program of its own."""
    return subprocess.Popen([sys.executable, os.path.join(ROOT, f'{name}.py'), *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize('error, message', [
    (ValueError('n_way: \x1b[2J'), r'error: n_way: \x1b[2J'),
    (OSError(28, 'No space left on device', 'a'), 'error: [Errno 28]'),
    (MemoryError(), 'error: there is not enough memory: choose smaller sizes, or end other programs'),
    (MemoryError('Unable to allocate 9 EiB'), 'error: there is not enough memory (Unable to allocate 9 EiB): choose'),
])
def test_errors_of_settings_data_and_memory_are_a_sentence(error, message):
    def fail():
        with console.plain_errors():
            raise error

    assert ending(fail).startswith(message)


def test_arrays_take_the_memory_of_earlier_ones():
    resource = pytest.importorskip('resource')
    if not hasattr(ctypes.CDLL(None), 'mallopt'):
        pytest.skip('a C library without mallopt')
    code = """if True:
        import resource
        import numpy as np
        from experiment import console
        console.run(lambda words: [np.ones(64 << 20, np.uint8) for _ in range(3)].clear())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(9):
            np.ones(64 << 20, np.uint8)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True,
                          env=dict(os.environ, NUMPY_MADVISE_HUGEPAGE='0'))
    pages = (64 << 20) // resource.getpagesize()
    assert int(done.stdout) < pages


def test_mistakes_in_code_are_not_hidden():
    with pytest.raises(TypeError), console.plain_errors():
        raise TypeError


def test_ctrl_c_ends_a_script_with_a_sentence(monkeypatch, capfd):
    def main(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(console, '_limit_memory', lambda: None)
    assert ending(console.run, main) == 130
    assert capfd.readouterr().err == f'\n{console.STOPPED}\n'


PRESS_WHILE_IMPORTING = '''
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it would be ignored

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'numpy':
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
'''


@pytest.mark.parametrize('name', ['train_omniglot', 'train_mini_imagenet'])
def test_ctrl_c_while_importing_is_no_traceback(tmp_path, name):
    (tmp_path / 'sitecustomize.py').write_text(PRESS_WHILE_IMPORTING)
    process = program('--help', name=name, env=dict(os.environ, PYTHONPATH=str(tmp_path)))
    out, error = process.communicate()
    assert process.returncode == 130 and not out and error.decode() == f'\n{console.STOPPED}\n'


def test_a_closed_pipe_ends_a_training_with_a_sentence_after_its_snapshot(tmp_path):
    save_strokes(tmp_path)
    process = program('--input_path', str(tmp_path), *SMALL['train_omniglot'], cwd=str(tmp_path))
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() == 1
    assert error.startswith('error: the output cannot be written any more (') and len(error.splitlines()) == 1
    assert {'snapshot_1', 'log.csv'} < set(os.listdir(tmp_path / 'here'))


def test_names_that_a_terminal_lacks_are_escaped(tmp_path):
    folder = tmp_path / '\u65e5\u672c'
    save_strokes(folder)
    process = program('--input_path', str(folder), *SMALL['train_omniglot'], cwd=str(tmp_path),
                      env=dict(os.environ, PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', LC_ALL='C'))
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert out.count(rb'own data (\udce6\udc97\udca5\udce6\udc9c\udcac)') == 3 and b'Traceback' not in error


def test_no_output_at_all_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', None)
    console.say('unheard')
    assert not console.is_terminal(sys.stdout) and not console.is_terminal(io.StringIO())


@pytest.mark.parametrize('script', [train_omniglot, train_mini_imagenet])
def test_called_from_a_notebook_a_script_does_not_read_the_notebooks_words(tmp_path, monkeypatch, script):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['ipykernel_launcher.py', '-f', 'kernel.json'])
    monkeypatch.setattr(script, 'evaluate', 'none.npz')
    assert 'none.npz does not exist' in ending(script.main)
    assert 'n_epoch = 0: must be' in ending(script.main, ['--n_epoch', '0'])
    assert 'none.npz does not exist' in ending(script.main)  # the words of one call are not those of the next
