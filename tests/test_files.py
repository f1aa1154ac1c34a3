"""Writing files so that nothing is lost, and text that every terminal can show."""

import errno
import io
import os
import re
import stat
import subprocess
import sys

import pytest

import data
from sources import files

needs_locks = pytest.mark.skipif(files.fcntl is None, reason='only POSIX has these locks')
ROOT = os.path.dirname(os.path.abspath(data.__file__))


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    calls = []

    def record(name, call):
        def recorded(*args):
            if name == 'fsync':
                calls.append('fsync folder' if stat.S_ISDIR(os.fstat(args[0]).st_mode) else 'fsync file')
            else:
                calls.append(name)
            return call(*args)
        return recorded

    monkeypatch.setattr(os, 'fsync', record('fsync', os.fsync))
    monkeypatch.setattr(os, 'replace', record('replace', os.replace))
    with data.replacing(tmp_path / 'a.txt', 'w') as file:
        file.write('text')
    assert calls == ['fsync file', 'replace', 'fsync folder'][:2 if os.name == 'nt' else 3]
    assert (tmp_path / 'a.txt').read_text() == 'text'


@pytest.mark.parametrize('refusal', [PermissionError(errno.EACCES, 'no'), OSError(errno.EINVAL, 'no')])
def test_systems_that_cannot_flush_folders_still_write_files(tmp_path, monkeypatch, refusal):
    original = os.open

    def refuse(path, *args, **options):
        if os.path.isdir(path):
            raise refusal
        return original(path, *args, **options)

    monkeypatch.setattr(os, 'open', refuse)
    with data.replacing(tmp_path / 'a') as file:
        file.write(b'1')
    assert os.listdir(tmp_path) == ['a']


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = "import data\nwith data.replacing('a.txt', 'w') as file:\n    file.write('\\u6f22')"
    environment = {**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0',
                   'PYTHONPATH': os.path.dirname(data.__file__)}
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / 'a.txt').read_bytes() == '\u6f22'.encode()


@pytest.mark.parametrize('failure', [OSError('broken'), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / 'a'
    path.write_bytes(b'old')
    with pytest.raises(type(failure)), data.replacing(path) as file:
        file.write(b'new')
        raise failure
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['a']


def test_a_full_disk_is_said_in_a_sentence_with_the_name_of_the_file(tmp_path):
    with pytest.raises(OSError, match='^.*model.npz cannot be written .No space left.*: make room') as error:
        with data.replacing(tmp_path / 'model.npz') as file:
            file.write(b'new')
            raise OSError(errno.ENOSPC, 'No space left on device')
    assert error.value.errno == errno.ENOSPC and os.listdir(tmp_path) == []


def test_places_that_cannot_be_written_to_are_refused_by_name(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_text('')
    for path in ('folder', os.path.join('file', 'a.npz')):
        with pytest.raises(OSError, match=path.replace('\\', '.') + ' (is a folder|cannot be written)'):
            with data.replacing(tmp_path / path):
                raise AssertionError('was opened')
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder']


def test_a_folder_that_vanishes_in_the_meantime_is_an_error_that_names_the_file(tmp_path):
    folder = tmp_path / 'result'
    with pytest.raises(FileNotFoundError, match='log.csv cannot be written'):
        with data.replacing(folder / 'log.csv', 'w'):
            folder.rename(tmp_path / 'renamed')


def test_strays_of_killed_writers_are_cleared_and_nothing_else(tmp_path):
    kept = ['a.npz', 'a.npz.part', 'a.npz.x7.part', 'a.npz.7.part.txt', 'b.npz.7.part', 'xa.npz.7.part']
    for name in [*kept, 'a.npz.7.part', 'a.npz.123456.part']:
        (tmp_path / name).write_text('')
    (tmp_path / 'a.npz.8.part').mkdir()
    files.clear_strays(tmp_path / 'a.npz', tmp_path / 'missing' / 'c.npz')
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, 'a.npz.8.part'])
    (tmp_path / 'a.npz.7.part').write_text('')
    with data.replacing(tmp_path / 'a.npz'):  # writing clears too
        assert not (tmp_path / 'a.npz.7.part').exists()


def test_without_locks_as_on_windows_files_are_written_and_strays_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'fcntl', None)
    (tmp_path / 'a.7.part').write_text('')
    for text in ('old', 'new'):
        with data.replacing(tmp_path / 'a', 'w') as file:
            file.write(text)
    assert os.listdir(tmp_path) == ['a'] and (tmp_path / 'a').read_text() == 'new'


@needs_locks
def test_the_file_of_a_living_writer_stays_and_that_of_a_killed_one_goes(tmp_path):
    code = ("import data, sys, time\nwith data.replacing('a'):\n    print('open', flush=True)\n    sys.stdin.read()")
    environment = {**os.environ, 'PYTHONPATH': os.path.dirname(data.__file__)}
    with subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path, env=environment, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == 'open\n'
        files.clear_strays(tmp_path / 'a')
        names = os.listdir(tmp_path)
        assert len(names) == 1 and re.fullmatch(r'a\.[0-9]+\.part', names[0])
        writer.kill()
        writer.wait()
    assert os.listdir(tmp_path) == names
    files.clear_strays(tmp_path / 'a')
    assert os.listdir(tmp_path) == []


@needs_locks
def test_a_folder_is_one_process_at_a_time(tmp_path):
    code = 'import sys; from sources.files import alone\nwith alone(sys.argv[1], 0): print("in")'
    command = [sys.executable, '-c', code, str(tmp_path)]
    (tmp_path / '.lock').write_bytes(b'')  # as a killed process leaves it
    with files.alone(tmp_path):
        other = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert other.returncode == 1 and 'another process is at work in the folder' in other.stderr
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout == 'in\n'
    assert os.listdir(tmp_path) == []


def test_without_locks_a_folder_is_everybodys(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'fcntl', None)
    with files.alone(tmp_path), files.alone(tmp_path, 0):
        pass


def test_names_can_neither_steer_the_terminal_nor_fail_to_be_encoded():
    ascii_terminal = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    utf8_terminal = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
    name = 'a\x1b[2J\r\n\u202e\udcff\u6f22\u3000z'
    assert data.printable(name, utf8_terminal) == 'a\\x1b[2J\\r\\n\\u202e\\udcff\u6f22\u3000z'
    assert data.printable(name, ascii_terminal) == 'a\\x1b[2J\\r\\n\\u202e\\udcff\\u6f22\\u3000z'
    assert data.printable('plain: ä', utf8_terminal) == 'plain: ä'
    assert data.printable('two\nlines\x07', utf8_terminal, keep='\n') == 'two\nlines\\x07'
    assert data.printable(ValueError('a\x07'), io.StringIO()) == 'a\\x07'


def test_the_banner_is_whole_whatever_names_are_in_it(capsys):
    files.print_banner('Omniglot', 'others', 'x\x1b does not exist', 'put it\nthere')
    err = capsys.readouterr().err
    assert 'NOT OMNIGLOT: others are used' in err and 'x\\x1b does not exist.' in err and '\x1b' not in err
    assert '!!  To get the data: put it\n!!  there.\n' in err


def test_streams_that_are_not_there_are_replaced_and_others_stay(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', None)
    there = sys.stdout
    files.open_streams()
    print('text', file=sys.stderr)
    assert sys.stdout is there and not sys.stderr.isatty()
    sys.stderr.close()
