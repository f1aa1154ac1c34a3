"""What a run keeps in its folder: settings, snapshots and models."""
import os

import numpy as np
import pytest
from small_runs import content, run


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
