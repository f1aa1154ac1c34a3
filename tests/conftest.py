"""Puts the project and its tools on the path of its tests."""
import os
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path[:0] = [ROOT, os.path.join(ROOT, 'tools')]


def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: set by chainer.testing')
