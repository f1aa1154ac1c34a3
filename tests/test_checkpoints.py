"""What a run keeps in its folder: settings, snapshots and models."""
import errno
import functools
import io
import json
import os
import pickle
import shutil
import stat
import threading
import time

import numpy as np
import pytest
from small_runs import content, ending, rows, run, same

from experiment import checkpoints, loop
from experiment.checkpoints import check_folder, claim, loss_rise
from ops.compat import chainer
from sources.archives import BadFile
from sources.files import alone


def test_last_and_averaged_weights_are_saved_side_by_side(straight):
    out, model = straight
    with np.load(out / 'model.npz') as file:
        assert (file['l1/W'] == model.l1.W.array).all()
        assert (file['average/l1/W'] == model.average.l1.W.array).all()
        assert (file['l1/W'] != file['average/l1/W']).any()


@pytest.mark.parametrize('name, remedy', [
    ('snapshot_3', 'the snapshot in'), ('settings.json', 'settings.json is damaged')])
def test_a_damaged_run_is_refused_and_left_alone(tmp_path, name, remedy):
    run(tmp_path, 1)
    (tmp_path / name).write_bytes(b'x')
    before = content(tmp_path)
    with pytest.raises((SystemExit, ValueError), match=f'{remedy}.*another folder'):
        run(tmp_path, 2)
    assert content(tmp_path) == before


def test_a_folder_with_another_run_is_refused(tmp_path):
    run(tmp_path, 1)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r'other settings: alpha \(0.001 there, 0.01 now\)'):
        run(tmp_path, 1, alpha=0.01)
    assert content(tmp_path) == before


def test_the_last_two_snapshots_are_kept(straight):
    out, _ = straight
    assert sorted(name for name in os.listdir(out) if name.startswith('snapshot')) == ['snapshot_6', 'snapshot_9']


# Snapshots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('losses, every, rise', [
    ([9, .05, .06], 1000, 1.2),
    ([9, .05, .06, 37.], 1000, 740),
    ([9, .05, .06, .9], 1000, 10),  # a good many times as large, but still no wonder
    ([2.4, 2.3, 4.6], 1000, 2),
    ([2.4, 2.3, 46.], 1000, 20),
    ([.05, 37.], 1000, 1),  # in the first 2,000 episodes
    ([.05, np.inf], 2000, np.inf),
    ([np.nan, 3, 3], 1000, 1),
    ([0, 0, 0], 1000, 0),
    ([37.], 4000, 1),
])
def test_the_rise_of_the_loss(losses, every, rise):
    rows = [{'main/loss': loss, 'iteration': (i + 1) * every} for i, loss in enumerate(losses)]
    assert loss_rise(rows) == pytest.approx(rise)


def with_rises(monkeypatch, **rises):
    """Lets the loss rise by so much in an epoch, `_2` for the second; else it is good."""
    monkeypatch.setattr(checkpoints, 'loss_rise', lambda rows: rises.get(f'_{len(rows)}', 1))


def test_a_rate_that_falls_for_longer_than_the_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match='n_decay = 3: the learning rate can fall over n_epoch = 2 epochs at most'):
        run(tmp_path, 2, n_decay=3)
    assert not os.listdir(tmp_path)


def snapshots_in(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith('snapshot'))


def test_the_snapshot_before_a_jump_of_the_loss_is_kept_and_a_run_can_end_there(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        with_rises(patch, _3=5, _4=11, _6=11)
        run(tmp_path / 'jumped', 7, n_decay=2)
    assert snapshots_in(tmp_path / 'jumped') == ['snapshot_18', 'snapshot_21', 'snapshot_6.before']
    shown = capsys.readouterr().err
    assert shown.count('the training loss has jumped') == 1
    assert 'copy it, as snapshot_6, and settings.json, with n_epoch = 2 in it, to another folder' in shown
    os.mkdir(tmp_path / 'ended')
    settings = json.loads((tmp_path / 'jumped' / 'settings.json').read_text())
    (tmp_path / 'ended' / 'settings.json').write_text(json.dumps({**settings, 'n_epoch': 2}))
    shutil.copy(tmp_path / 'jumped' / 'snapshot_6.before', tmp_path / 'ended' / 'snapshot_6')
    assert same(run(tmp_path / 'ended', 2, n_decay=2), run(tmp_path / 'two', 2))


def test_an_interruption_does_not_change_what_is_kept_from_before_a_jump(tmp_path, monkeypatch):
    with_rises(monkeypatch, _2=5, _3=11)
    for n_episode in 8, 3:  # in the third epoch, which jumps, and in the fourth
        with pytest.raises(SystemExit):
            run(tmp_path, 5, stop_at=n_episode)
    run(tmp_path, 6)
    assert snapshots_in(tmp_path) == ['snapshot_15', 'snapshot_18', 'snapshot_3.before']


@pytest.mark.parametrize('full', [False, True])
def test_where_there_are_no_links_a_copy_is_kept_or_a_warning_given(tmp_path, monkeypatch, capsys, full):
    def refuse(*args):
        raise OSError(errno.ENOSPC if full else errno.EPERM, 'No such thing')

    with_rises(monkeypatch, _2=11)
    monkeypatch.setattr(os, 'link', refuse)
    if full:
        monkeypatch.setattr(shutil, 'copyfileobj', refuse)
    run(tmp_path, 3)
    kept = snapshots_in(tmp_path)
    assert kept == (['snapshot_6', 'snapshot_9'] if full else ['snapshot_3.before', 'snapshot_6', 'snapshot_9'])
    assert ('snapshot_3 cannot be kept: ' in capsys.readouterr().err) == full


def test_a_snapshot_is_on_the_disk_before_the_one_that_it_replaces_goes(tmp_path, monkeypatch):
    run(tmp_path, 2)
    calls = []

    def recorded(name, real):
        def call(first, *args, **kwargs):
            if name == 'fsync':
                calls.append('fsync folder' if stat.S_ISDIR(os.fstat(first).st_mode) else 'fsync file')
            elif 'snapshot' in str(first):
                calls.append(f'{name} {os.path.basename(args[0] if name == "replace" else first)}')
            return real(first, *args, **kwargs)
        return call

    for name in 'fsync', 'replace', 'remove':
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))
    run(tmp_path, 3)
    start = calls.index('replace snapshot_9')
    assert calls[start - 1:start + 3] == ['fsync file', 'replace snapshot_9', 'fsync folder', 'remove snapshot_3']


def changed(path, **changes):
    """Arrays of a snapshot in place of its own, None for none: a sound file, that cannot be loaded."""
    with np.load(path) as file:
        arrays = {**file, **{name.replace('_', '/'): array for name, array in changes.items()}}
    with open(path, 'wb') as file:
        np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize('damage', [lambda path: path.write_bytes(b''), lambda path: path.write_bytes(b'PK\3\4'),
                                    lambda path: path.write_bytes(path.read_bytes()[:-99]),
                                    lambda path: flip(path, 2000),
                                    lambda path: changed(path, updater_model_l1_W=np.zeros((2, 3), np.float32)),
                                    lambda path: changed(path, updater_optimizer_l1_W_m=np.zeros(5, np.float32)),
                                    lambda path: changed(path, updater_optimizer_l1_W_v=np.zeros((6, 784))),
                                    lambda path: changed(path, updater_optimizer_l2_b_m=None)])
def test_the_snapshot_before_takes_the_place_of_one_that_cannot_be_read(tmp_path, straight, capsys, damage):
    run(tmp_path, 2)
    damage(tmp_path / 'snapshot_6')
    damaged = content(tmp_path)['snapshot_6']
    assert same(run(tmp_path, 3), straight[1])
    assert rows(tmp_path) == rows(straight[0])
    shown = capsys.readouterr()
    assert f'going on after 3 episodes, from the snapshot in {tmp_path}' in shown.out
    assert 'snapshot_6' in shown.err and 'Going on from the snapshot before it' in shown.err
    assert content(tmp_path)['snapshot_6.unreadable'] == damaged


@pytest.mark.parametrize('error, words', [
    (OSError(5, 'Input/output error'), r'snapshot_6 cannot be read \(Input/output error\)'),
    (BadFile('snapshot_6: it does not fit into memory'), 'goes on from that snapshot')])
def test_a_snapshot_that_may_be_sound_stays(tmp_path, monkeypatch, error, words):
    run(tmp_path, 2)
    before = content(tmp_path)

    class Unsteady(io.FileIO):
        def read(self, size=-1):
            raise error

    def read(*args):
        raise error from MemoryError()

    if isinstance(error, OSError):
        monkeypatch.setattr(checkpoints, 'open', lambda path, mode='r', **options: (
            Unsteady(path) if mode == 'rb' else open(path, mode, **options)), raising=False)
    else:
        monkeypatch.setattr(checkpoints, 'read_npz', read)
    with pytest.raises(SystemExit, match=words):
        run(tmp_path, 3)
    assert set(content(tmp_path)) >= set(before) and content(tmp_path)['snapshot_6'] == before['snapshot_6']


def test_damaged_settings_are_named_whatever_the_folder_is_called(tmp_path):
    run(tmp_path / '50%run', 1)
    (tmp_path / '50%run' / 'settings.json').write_text('{')
    with pytest.raises(ValueError, match='50%run.*is damaged'):
        checkpoints.run_settings(str(tmp_path / '50%run'), {})


def flip(path, i):
    """Changes a byte of a file."""
    damaged = bytearray(path.read_bytes())
    damaged[i] ^= 255
    path.write_bytes(bytes(damaged))


def test_only_snapshots_by_their_very_names_are_touched(tmp_path, straight):
    run(tmp_path, 1)
    others = {name: (tmp_path / name).write_bytes(b'mine') and b'mine'
              for name in ('snapshot_2_backup', 'snapshot_99.npz', 'my_snapshot_9', 'snapshot_', 'snapshot_007')}
    os.mkdir(tmp_path / 'snapshot_98_too')
    assert same(run(tmp_path, 3), straight[1])
    after = content(tmp_path)
    assert {name: after[name] for name in others} == others and os.path.isdir(tmp_path / 'snapshot_98_too')
    assert sorted(name for name in after if name not in others and name.startswith('snapshot')) == [
        'snapshot_6', 'snapshot_9']


class Shell:
    """Pickles to a shell command."""

    def __reduce__(self):
        return os.system, ('touch ran',)


def change(path, **changes):
    """Replaces arrays in a snapshot; those that are None go."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays.update({name.replace('__', '/'): value for name, value in changes.items()})
    with open(path, 'wb') as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})


STATE = np.zeros(628, np.uint32)
STATE[624] = 10 ** 6


@pytest.mark.parametrize('tamper, message', [
    (lambda path: path.write_bytes(pickle.dumps(Shell())), 'is not an npz file'),
    (lambda path: change(path, updater__model__l1__W=np.array(Shell(), object)), 'Python objects'),
    (lambda path: change(path, updater__model__l1__W=np.float32(0)), r'updater/model/l1/W is float32 \(\)'),
    (lambda path: change(path, updater__model__l1__W=np.zeros((6, 784))), 'is float64'),
    (lambda path: change(path, updater__model__l2__b=np.float32([1, np.nan, 0])), 'nan or infinite'),
    (lambda path: change(path, updater__model__bn__avg_var=np.full(6, np.inf, np.float32)), 'nan or infinite'),
    (lambda path: change(path, updater__optimizer__l1__W__m=np.float32(0)), 'm of /l1/W does not have the shape'),
    (lambda path: change(path, updater__optimizer__l1__W__m=np.zeros((6, 784), 'U1')), 'is not of numbers'),
    (lambda path: change(path, updater__optimizer__l1__W__v=None), 'it lacks updater/optimizer/l1/W/v'),
    (lambda path: change(path, updater__model__l3__W=np.float32(0)), 'this run lacks its updater/model/l3/W'),
    (lambda path: change(path, updater__iteration=np.array(-3)), 'is no number of something'),
    (lambda path: change(path, updater__iteration=np.array(9)), '3 updates are not those of 9 episodes'),
    (lambda path: change(path, updater__optimizer__t=np.array([3])), 'is one value'),
    (lambda path: change(path, updater__sampler=STATE), 'the state of a sampler is damaged'),
    (lambda path: change(path, extensions__log___log=np.array('[[]]')), 'the log in it is damaged'),
    (lambda path: change(path, extensions__log___log=np.array('[{"iteration": 3, "epoch": 1, "seconds": 1}]')),
     'the log in it is damaged'),
    (lambda path: change(path, extensions__log___log=np.array('[' * 99999)), 'snapshot_3: '),
    (lambda path: change(path, extensions__log___summary___names=np.array('["x"]')), 'it lacks extensions/log/'),
    (lambda path: change(path, _snapshot_elapsed_time=np.array('x')), 'snapshot_3: '),
])
def test_a_tampered_snapshot_is_refused_and_runs_nothing(tmp_path, monkeypatch, tamper, message):
    monkeypatch.chdir(tmp_path)
    run(tmp_path, 1)
    tamper(tmp_path / 'snapshot_3')
    before = content(tmp_path)
    with pytest.raises(SystemExit, match=message + '.*another folder'):
        run(tmp_path, 2)
    assert content(tmp_path) == before and 'ran' not in before


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    def spoil(trainer):
        class Spoil(chainer.training.Extension):
            trigger = 6, 'iteration'

            def __call__(self, trainer):
                next(trainer.updater.model.params()).update_rule.state['v'][...] = np.inf

        trainer.extend(Spoil())

    with pytest.raises(SystemExit, match='is no longer finite after episode 6'):
        run(tmp_path, 3, before=spoil)
    assert 'snapshot_3' in os.listdir(tmp_path) and 'snapshot_6' not in os.listdir(tmp_path)


@pytest.mark.parametrize('remove', [lambda out: os.rename(out, f'{out}_else'), shutil.rmtree])
def test_a_run_ends_when_its_folder_has_gone(tmp_path, remove):
    out = tmp_path / 'run'

    def remove_later(trainer):
        trainer.extend(lambda trainer: remove(out), name='remove', trigger=(5, 'iteration'))

    with pytest.raises(SystemExit, match='the folder .*run is gone, so snapshot_6 cannot be written: put it back'):
        run(out, 3, before=remove_later)
    assert not out.exists()


def test_a_full_disk_ends_a_run_with_a_sentence_and_keeps_what_there_is(tmp_path, straight, monkeypatch):
    run(tmp_path, 1)
    before = content(tmp_path)
    real = open

    def full(path, *args, **kwargs):
        if 'snapshot_6' in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr('builtins.open', full)
        with pytest.raises(SystemExit, match='snapshot_6 cannot be written .*: make room on its disk'):
            run(tmp_path, 3)
    assert content(tmp_path)['snapshot_3'] == before['snapshot_3']
    assert same(run(tmp_path, 3), straight[1])


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('text, message', [
    (b'', 'settings.json is damaged'), (b'[]', 'it holds no settings by name'), (b'null', 'holds no settings by name'),
    (b'{"alpha": 0.001', 'is damaged'), (b'\xff\xfe{}', 'is damaged'), (b'[' * 99999, 'its brackets go too deep'),
    (b'1' * 9999, 'is damaged'), (b' ' * (1 << 21), 'it has too many settings'),
    (b'{}', r'other settings: alpha \(None there, 0.001 now\)'),
    (b'{"\\u001b[2J": "\\u001b"}', r'other settings: \x1b\[2J \(\'\\x1b\' there, None now\)'),
], ids=lambda value: str(value)[:20])
def test_settings_that_are_none_are_refused(tmp_path, text, message):
    run(tmp_path, 1)
    (tmp_path / 'settings.json').write_bytes(text)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f'{message}.* another folder'):
        run(tmp_path, 2)
    assert content(tmp_path) == before


def test_snapshots_without_settings_are_refused(tmp_path):
    run(tmp_path, 1)
    os.remove(tmp_path / 'settings.json')
    with pytest.raises(ValueError, match='holds snapshots, but no settings.json .*: put that file back'):
        run(tmp_path, 2)


@pytest.mark.parametrize('kept', [['log.csv'], ['model.npz', 'settings.json'], ['final_test_2.csv']])
def test_results_whose_snapshots_are_gone_are_not_replaced(tmp_path, kept):
    run(tmp_path, 1)
    (tmp_path / 'final_test_2.csv').write_text('')
    for name in set(os.listdir(tmp_path)) - set(kept):
        os.remove(tmp_path / name)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=f'holds {kept[0]} of a run, but no snapshot .* another folder'):
        run(tmp_path, 2)
    assert content(tmp_path) == before


def test_a_best_model_from_before_the_first_snapshot_is_no_obstacle(tmp_path):
    run(tmp_path / 'whole', 1)
    (tmp_path / 'killed').mkdir()
    shutil.copy(tmp_path / 'whole' / 'settings.json', tmp_path / 'killed')
    (tmp_path / 'killed' / 'best.npz').write_bytes(b'x')
    run(tmp_path / 'killed', 1)


@pytest.mark.parametrize('name', ['best.npz', 'best_average.npz'])
def test_a_best_model_of_nobody_knows_which_run_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_bytes(b'x')
    with pytest.raises(ValueError, match=f'holds {name} of a run, but no snapshot'):
        run(tmp_path, 1)
    assert (tmp_path / name).read_bytes() == b'x'


def test_settings_may_begin_with_a_mark_of_an_editor(tmp_path):
    run(tmp_path, 1)
    text = (tmp_path / 'settings.json').read_text()
    (tmp_path / 'settings.json').write_text(text, encoding='utf-8-sig')
    run(tmp_path, 2)


@pytest.mark.skipif(os.name != 'posix', reason='there are no locks')
def test_of_two_runs_that_begin_at_once_the_second_finds_the_first(tmp_path):
    with alone(tmp_path, name='.claim'):
        thread = threading.Thread(target=claim, args=(str(tmp_path), {'seed': 1}, {}))
        thread.start()
        time.sleep(0.2)
        assert not (tmp_path / 'settings.json').exists()
    thread.join()
    with pytest.raises(ValueError, match='another run|other settings: seed'):
        claim(str(tmp_path), {'seed': 0}, {})


def test_an_n_epoch_among_the_settings_is_no_other_setting(tmp_path):
    run(tmp_path, 1)
    settings = json.loads((tmp_path / 'settings.json').read_text())
    (tmp_path / 'settings.json').write_text(json.dumps({**settings, 'n_epoch': 1}))
    run(tmp_path, 2)


@pytest.mark.skipif(os.name != 'posix', reason='there are no locks')
def test_no_other_process_trains_in_the_folder_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'alone', functools.partial(alone, patience=0))
    with alone(tmp_path):
        assert f'another process is at work in the folder {tmp_path}: wait' in ending(run, tmp_path, 1)
    run(tmp_path, 1)
    assert '.lock' not in os.listdir(tmp_path)


def test_later_snapshots_than_the_present_stay(tmp_path):
    run(tmp_path, 4, before=lambda trainer: trainer.extend(
        lambda trainer: (tmp_path / 'snapshot_60').write_bytes(b'x'), trigger=(1, 'epoch'), name='another process'))
    assert (tmp_path / 'snapshot_60').read_bytes() == b'x'


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no pipes by name')
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'settings.json')
    with pytest.raises(ValueError, match='settings.json is damaged .it is no file.'):
        run(tmp_path, 1)


@pytest.mark.parametrize('name', ['settings.json', 'log.csv', 'model.npz', 'final_test.csv', 'snapshot_98'])
def test_a_folder_where_a_file_is_to_be_is_refused_before_training(tmp_path, name):
    os.mkdir(tmp_path / name)
    with pytest.raises((OSError, ValueError), match=f'{name} is '):
        run(tmp_path, 1)
    assert os.listdir(tmp_path) == [name]


def test_what_killed_runs_have_left_is_cleared_and_nothing_else(tmp_path):
    run(tmp_path, 1)
    left = ['snapshot_6.123.part', 'log.csv.99999.part', 'model.npz.5.part', 'settings.json.7.part',
            'learning_curve.png.8.part', 'final_test_2.csv.8.part']
    others = ['thesis.123.part', 'snapshot_x.1.part', 'log.csv.part', 'log.csv.1.part.bak', 'snapshot_6.1.party']
    for name in left + others:
        (tmp_path / name).write_bytes(b'x')
    os.mkdir(tmp_path / 'log.1.part')
    run(tmp_path, 2)
    assert not set(left) & set(os.listdir(tmp_path)) and {*others, 'log.1.part'} < set(os.listdir(tmp_path))


@pytest.mark.parametrize('make, message', [
    (lambda path: path.write_bytes(b''), 'is no folder: give another one'),
    (lambda path: path.symlink_to('nowhere'), 'is no folder: give another one'),
])
def test_what_cannot_become_the_folder_is_refused(tmp_path, make, message):
    make(tmp_path / 'file')
    for out in tmp_path / 'file', tmp_path / 'file' / 'in' / 'it':
        with pytest.raises(OSError, match=message):
            check_folder(str(out))
    check_folder(str(tmp_path / 'new' / 'one'))
    assert os.listdir(tmp_path) == ['file']
