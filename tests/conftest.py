"""Puts the project and its tools on the path of its tests."""
import os
import sys

import pytest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path[:0] = [ROOT, os.path.join(ROOT, 'tools')]


def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: set by chainer.testing')


@pytest.fixture(scope='session')
def straight(tmp_path_factory):
    """A small run of three epochs without a stop: its folder and its model."""
    from small_runs import run
    out = tmp_path_factory.mktemp('straight')
    return out, run(out, 3)
