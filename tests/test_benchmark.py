"""The benchmark's output, which other programs read; what it measures is no test's business."""
import os
import re
import subprocess
import sys

import pytest

BENCHMARK = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, 'tools', 'benchmark.py')
PEER = '''
import argparse
parser = argparse.ArgumentParser()
for name in ('--way', '--shot', '--query', '--repeats'):
    parser.add_argument(name, type=int, required=True)
args = parser.parse_args()
print('train: %d.5 s per episode' % (100 * args.way))
print('test: %d.5 s per episode' % (100 * args.query))
'''


def test_a_peer_that_is_missing_is_found_at_once(tmp_path):
    done = subprocess.run([sys.executable, BENCHMARK, '--peer', str(tmp_path / 'peer.py')], capture_output=True,
                          text=True)
    assert done.returncode == 2 and 'peer.py: there is no such file' in done.stderr and not done.stdout


def test_race(tmp_path):
    peer = tmp_path / 'peer.py'
    peer.write_text(PEER)
    options = ['--way', '2', '--query', '1', '--repeats', '1', '--rounds', '2', '--peer', str(peer)]
    lines = subprocess.run([sys.executable, BENCHMARK] + options, check=True, stdout=subprocess.PIPE,
                           text=True).stdout.splitlines()
    assert [bool(re.match(rf'ratio {name} \d+\.\d\d$', line))
            for name, line in zip(('train', 'test'), lines[-2:])] == [True, True]
    assert [line for line in lines if line.startswith('peer ')] == ['peer     train 200.500 s, test 100.500 s']
    # Each part of an episode has a line in each table: of initial and trained weights, training and test.
    parts = 'embed gradients', 'd', 'embed', 'base gradients', 'm', 'reading', 'base', 'episode'
    for part in parts:
        assert len([line for line in lines if re.match(part + r'  +\d+ ms', line)]) == 4, part


def test_mini_imagenets_models_are_timed_too():
    options = ['--model', 'partial, u', '--way', '2', '--query', '1', '--repeats', '1']
    shown = subprocess.run([sys.executable, BENCHMARK] + options, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert len(re.findall(r'^episode  +\d+ ms', shown, re.MULTILINE)) == 2 and 'peak memory' in shown


@pytest.mark.parametrize('words', [['--way=1'], ['--query=0'], ['--repeats=0'], ['--gpu=99']])
def test_what_cannot_be_timed_is_refused(words):
    ended = subprocess.run([sys.executable, BENCHMARK] + words, stderr=subprocess.PIPE, text=True)
    assert ended.returncode and 'error: ' in ended.stderr and 'Traceback' not in ended.stderr


def test_launches_are_counted_by_part_without_a_gpu():
    script = os.path.join(os.path.dirname(BENCHMARK), 'launches.py')
    options = ['--model', 'partial, u', '--way', '2', '--query', '1']
    shown = subprocess.run([sys.executable, script] + options, check=True, stdout=subprocess.PIPE, text=True).stdout
    tables = [[int(line.split()[-2]) for line in table.splitlines()[1:]] for table in shown.strip().split('\n\n')]
    assert len(tables) == 2
    for *parts, episode in tables:
        assert sum(parts) == episode > 0
