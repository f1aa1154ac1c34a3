"""Puts the project on the path of its tests."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), os.pardir))


def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: set by chainer.testing')
