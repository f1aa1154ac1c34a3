"""What reproduce.py keeps of a run and sends to workers of a cluster: whole after a power cut, nothing lost."""
import json
import os

import pytest

from reproduction import plan, work

TRAINING = json.dumps(['training', '--n', '5'])
ROW = dict(zip(work.COLUMNS, ('Stub', '5', '1', '90.00', '1.00', '9')))


@pytest.fixture
def folder(tmp_path):
    """The folder of a run with its files, each with its name as content."""
    folder = tmp_path / 'run'
    folder.mkdir()
    for name in (*work.BACK, 'snapshot_3', 'snapshot_20', 'snapshot_100', 'snapshot_9.before', 'best.npz.7.part'):
        (folder / name).write_text(name)
    return folder


def test_what_comes_back_are_the_last_two_snapshots_and_those_from_before_a_jump(folder):
    assert work.read_folder(str(folder)) == {name: name.encode() for name in (
        'snapshot_20', 'snapshot_100', 'snapshot_9.before', *work.BACK)}


def test_what_says_that_a_run_is_done_is_written_last(folder, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(os, 'replace', lambda fresh, path, replace=os.replace: (
        written.append(os.path.basename(path)), replace(fresh, path)))
    work.write_folder(str(tmp_path / 'other'), work.read_folder(str(folder)))
    assert written[-1] == 'done.json' and set(written) == set(os.listdir(tmp_path / 'other'))


def test_files_are_on_the_disk_before_they_get_their_names(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, 'fsync', lambda handle: order.append('sync'))
    monkeypatch.setattr(os, 'replace', lambda fresh, path, replace=os.replace: (
        order.append('name'), replace(fresh, path)))
    work._write_done(str(tmp_path), {TRAINING: [ROW]})
    work.write_folder(str(tmp_path), {'log': b''})
    assert order == ['sync', 'name'] * 2 and work._read_done(str(tmp_path)) == {TRAINING: [ROW]}


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    def full(handle):
        raise OSError('No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        work._write_done(str(tmp_path), {})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('damaged', [
    [{}], [{**ROW, 'way': 5}], [{**ROW, 'more': ''}], [[]], 'text', 3, None, {'way': '5'}])
def test_a_damaged_entry_of_what_is_done_is_not_done(damaged):
    text = json.dumps({TRAINING: damaged, 'whole': [ROW], work.MODEL: TRAINING})
    assert work._done_in(text) == {'whole': [ROW], work.MODEL: TRAINING}
    assert work._done_in(json.dumps({work.MODEL: damaged})) == ({work.MODEL: 'text'} if damaged == 'text' else {})


@pytest.mark.parametrize('text', ['{"a": [', '[]', '[' * 10 ** 5])
def test_what_is_no_list_of_what_is_done_says_nothing(text):
    assert work._done_in(text) == {}


@pytest.mark.parametrize('settings, source', [
    ('{"data": "own data (mine)"}', 'own data (mine)'), ('\ufeff{"data": "Omniglot"}', 'Omniglot'),
    ('{"data": 3}', None), ('{}', None), ('[]', None), ('{"data": "Omn', None), (None, None)])
def test_the_data_are_those_of_the_settings_whatever_became_of_the_log(tmp_path, settings, source):
    if settings is not None:
        (tmp_path / 'settings.json').write_text(settings, encoding='utf-8')
    assert work._trained_on(str(tmp_path)) == source


def test_a_workers_copy_of_the_project_that_is_not_whole_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    files = {'a.py': b'1', 'ops/b.py': b'2', 'data/c.csv': b'3'}
    digest, archive = work.digest_of(files), work.pack(files)
    folder = work.project_folder('nowhere', digest, archive)
    assert work.project_files(folder) == files
    with open(os.path.join(folder, 'a.py'), 'wb'):  # a power cut
        pass
    assert work.project_folder('nowhere', digest, archive) == folder and work.project_files(folder) == files
    assert len(os.listdir(os.path.dirname(folder))) == 2  # what an edit may have been is kept


def test_a_script_that_is_no_python_is_named_with_the_line(tmp_path, monkeypatch):
    (tmp_path / 'train_omniglot.py').write_text('gpu = -1\nseed = \n')
    monkeypatch.setattr(plan, 'ROOT', str(tmp_path))
    with pytest.raises(ValueError, match='line 2 of train_omniglot.py is no Python .*: mend it'):
        plan.constants_of('train_omniglot.py')
