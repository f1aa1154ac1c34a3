"""Times one training and one test episode of MetaNet on random images, part by part.

    python tests/benchmark.py
    python tests/benchmark.py --way 20 --query 5
    PEER_PYTHON=/path/to/python python tests/benchmark.py --peer FILE.py     # in turn with another implementation

A part's rate counts the multiply-adds of its matrix products, two operations each, once: what is computed again in the
backward pass, and what zeros let a part leave out, is not taken into account. A peer is a script that takes --way,
--shot, --query and --repeats and prints `train: SECONDS s per episode` and `test: SECONDS s per episode`.
"""
import argparse
import contextlib
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import chainer_compat  # noqa: E402, F401
import chainer  # noqa: E402
import numpy as np  # noqa: E402

import functions  # noqa: E402
import metanet  # noqa: E402
from data import Episode  # noqa: E402


class Clock:
    """Seconds of one episode, by part. On a GPU it waits for the device whenever it is read."""

    def __init__(self, device):
        self.device = device
        self.seconds = {}
        self.busy = False

    def now(self):
        if self.device.xp is not np:
            self.device.xp.cuda.Stream.null.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def part(self, name):
        """Within another part it counts as that."""
        if self.busy:
            yield
            return
        self.busy = True
        start = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + self.now() - start
        self.busy = False

    def timed(self, call, name):
        """`call`, counted as the part `name`: a string, or a function of the call's arguments."""
        def timed(*args, **kwargs):
            with self.part(name(*args) if callable(name) else name):
                return call(*args, **kwargs)

        return timed


def multiply_adds(model, way, shot, query):
    """Of the products in each part's forward pass."""
    network = sum(layer.W.size * side ** 2 for layer, side in zip(model.base.fast_layers(), (28, 14, 7, 4, 2, 1)))
    coordinates = sum(layer.W.size for layer in model.base.fast_layers(way))
    support, queries, steps = way * shot, way * query, min(way * shot, model.n_steps)
    lstm, mlp = steps * 4 * 20 * (2 + 20) + 20, 2 * 20 + 20 * 20 + 20
    parts = {'embed gradients': 3 * support * network, 'd': coordinates * lstm,
             'embed': 2 * (support + queries) * network, 'base gradients': 3 * support * network,
             'm': support * coordinates * mlp, 'reading': queries * support * coordinates,
             'base': 2 * queries * network}
    # Two more products of the same size for each, one with respect to the inputs, one to the weights.
    parts['backward'] = 2 * sum(parts[name] for name in ('d', 'embed', 'm', 'reading', 'base'))
    return parts


def episodes(args, device):
    random = np.random.RandomState(0)
    support, query = args.way * args.shot, args.way * args.query
    while True:
        images = (random.rand(support + query, 1, 28, 28) > 0.9).astype(np.float32)
        labels = np.arange(args.way, dtype=np.int32)
        arrays = images[:support], labels.repeat(args.shot), images[support:], labels.repeat(args.query)
        yield Episode(*(device.send(array) for array in arrays))


def run(args):
    """Two dicts, training and test: {part: list of seconds, one for each episode}, the whole under `episode`."""
    device = chainer.get_device('@numpy' if args.gpu < 0 else '@cupy:%d' % args.gpu)
    device.use()
    model = metanet.MetaNet(metanet.CNN(), metanet.CNN(activation=None), ways=[args.way])
    model.initialize_uniform(0)
    model.to_device(device)
    optimizer = chainer.optimizers.Adam(1e-3).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(10))
    clock = Clock(device)
    model.meta_information = clock.timed(
        model.meta_information, lambda network, *_: '%s gradients' % ('base' if network is model.base else 'embed'))
    model.meta_learner = clock.timed(model.meta_learner, lambda name, *_: name)
    model.base.classify = clock.timed(model.base.classify, 'base')
    model.embed.forward = clock.timed(model.embed.forward, 'embed')
    with mock.patch.object(metanet.Memory, 'read', clock.timed(metanet.Memory.read, 'reading')):
        return model, time_episodes(args, model, optimizer, clock)


def time_episodes(args, model, optimizer, clock):
    device = clock.device
    source = episodes(args, device)
    times = {}, {}
    for i in range(args.repeats + 2):  # the first two warm up
        for training in (True, False):
            clock.seconds.clear()
            episode = next(source)
            start = clock.now()
            with chainer.using_config('enable_backprop', training), chainer.using_config('train', training):
                loss = model.loss(episode)
            if training:
                model.cleargrads()
                with clock.part('backward'):
                    loss.backward()
                with clock.part('update'):
                    optimizer.update()
            del loss
            clock.seconds['episode'] = clock.now() - start
            for part, seconds in clock.seconds.items():
                times[not training].setdefault(part, []).extend([seconds] if i >= 2 else [])
    return times


def product_rate(n=2048):
    """GFLOP/s of the machine's own matrix product."""
    a = np.ones((n, n), np.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a.dot(a)
        seconds.append(time.perf_counter() - start)
    return 2e-9 * n ** 3 / min(seconds)


def report(args, model, times):
    rate = product_rate()
    counts = multiply_adds(model, args.way, args.shot, args.query)
    print('%d-way %d-shot, %d query images a class, %d episodes; a matrix product of the CPU: %.0f GFLOP/s; %d threads'
          % (args.way, args.shot, args.query, args.repeats, rate, functions.THREADS))
    for title, parts in zip(('train', 'test'), times):
        print('\n%-16s %8s %8s %8s' % (title, 'median', 'min', 'GFLOP/s'))
        for part in list(counts) + ['update', 'episode']:
            if part in parts:
                flop = 2 * counts[part] if part in counts else 0
                print('%-16s %6.0f ms %5.0f ms %8s' % (
                    part, 1e3 * statistics.median(parts[part]), 1e3 * min(parts[part]),
                    '%.0f' % (1e-9 * flop / statistics.median(parts[part])) if flop else ''))
    # Linux counts in KiB, macOS in bytes.
    print('\npeak memory %.2f GB' % (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                                     * (1 if sys.platform == 'darwin' else 1024) / 1e9))


def race(args, mine):
    """Prints the ratios of the peer's medians to ours over several rounds, in turn; `mine` is our first round."""
    command = [os.environ.get('PEER_PYTHON', sys.executable), args.peer]
    for name in ('way', 'shot', 'query', 'repeats'):
        command += ['--' + name, str(getattr(args, name))]
    peers = [], []
    ours = [parts['episode'] for parts in mine]
    for i in range(args.rounds):
        if i:
            ours = [a + b['episode'] for a, b in zip(ours, run(args)[1])]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout
        for seconds, name in zip(peers, ('train', 'test')):
            seconds.append(float(re.search(r'^%s: ([0-9.]+) s' % name, output, re.MULTILINE).group(1)))
    print('\npeer, median of %d rounds: train %.3f s, test %.3f s' % (args.rounds, *map(statistics.median, peers)))
    for name, theirs, us in zip(('train', 'test'), peers, ours):
        print('ratio %s %.2f' % (name, statistics.median(theirs) / statistics.median(us)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--way', type=int, default=5)
    parser.add_argument('--shot', type=int, default=1)
    parser.add_argument('--query', type=int, default=10, help='query images a class')
    parser.add_argument('--repeats', type=int, default=7, help='episodes to time')
    parser.add_argument('--gpu', type=int, default=-1, help='-1 for the CPU')
    parser.add_argument('--peer', metavar='FILE', help='a script to race; PEER_PYTHON names its interpreter')
    parser.add_argument('--rounds', type=int, default=3, help='turns each takes in a race')
    args = parser.parse_args()
    model, times = run(args)
    report(args, model, times)
    if args.peer:
        race(args, times)


if __name__ == '__main__':
    main()
