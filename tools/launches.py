"""Counts what an episode asks of a GPU, part by part, on a stand-in for CuPy: kernel launches and waits for the device.

    python tools/launches.py
    python tools/launches.py --way 20 --query 5 --model "partial, u"

It needs neither CuPy nor a GPU: tests/fake_cupy.py takes CuPy's place, and says what its counts leave out. Parts are
those of tools/benchmark.py; 'rest' is what lies between them.
"""
import argparse
import os
import sys
from unittest import mock

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path[:0] = [ROOT, os.path.join(ROOT, 'tests')]

import fake_cupy

fake_cupy.install()

import benchmark
import numpy as np

from experiment import console


class Counter(benchmark.Clock):
    """Launches and waits in place of seconds."""

    def now(self):
        return np.array([fake_cupy.counts['launches'], fake_cupy.counts['synchronisations']])


def main(words=None):
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--way', type=int, default=5)
    parser.add_argument('--query', type=int, default=10, help='query images a class')
    parser.add_argument('--model', choices=benchmark.MODELS, default='full', help="the paper's")
    args = parser.parse_args(words, argparse.Namespace(shot=1, gpu=0, repeats=1))
    if args.way < 2 or args.query < 1:
        parser.error('--way is at least 2, --query at least 1')
    with mock.patch.object(benchmark, 'Clock', Counter):
        times = benchmark.run(args, 'trained' if args.model == 'full' else 'initial')[-1]
    for title, parts in zip(('train', 'test'), times):
        print(f'\n{title:16} {"launches":>8} {"waits":>8}')
        totals = {part: counts[-1] for part, counts in parts.items()}
        whole = totals.pop('episode')
        for part, (launches, waits) in [*totals.items(), ('rest', whole - sum(totals.values())), ('episode', whole)]:
            print(f'{part:16} {launches:8} {waits:8}')


if __name__ == '__main__':
    console.run(main)
