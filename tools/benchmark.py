"""Times one training and one test episode of MetaNet on invented images, part by part.

    python tools/benchmark.py
    python tools/benchmark.py --way 20 --query 5
    python tools/benchmark.py --model "partial, u"      # of mini-ImageNet; or partial
    PEER_PYTHON=/path/to/python python tools/benchmark.py --peer FILE.py     # in turn with another implementation

Omniglot's model is timed twice: with initial weights, and with those of `assets/omniglot_5way.npz`. The latter is how
it is from some dozens of training episodes on: all fast weights of convolutions are negative, which is shown before
they are made, so they aren't, nor their products, that no ReLU would let through.

The parts "gradients" are the losses on the support set. Their gradients are computed when d and m ask for them, and
count there; on a GPU they are at once.

A part's rate counts the multiply-adds of its matrix products, two operations each, once: neither what is computed again
in the backward pass, nor what isn't made. A peer is a script that takes --way, --shot, --query and --repeats and prints
`train: SECONDS s per episode` and `test: SECONDS s per episode`.
"""
import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from unittest import mock

try:
    import resource
except ImportError:  # Windows
    resource = None

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)

import numpy as np

import metanet
import train_mini_imagenet
import train_omniglot
from data import EpisodeSampler, synthetic_strokes, synthetic_textures
from experiment import console
from experiment.console import plain_errors
from experiment.loop import Clipping
from ops.blocks import THREADS, one_blas_thread
from ops.compat import chainer
from ops.device import use_device
from ops.lazy import Deferred
from ops.normalization import NormalizedConvolution2D

MODELS = {'full': {'channels': 1, 'size': 28, 'query': 10}, 'partial': {'channels': 3, 'size': 84, 'query': 15},
          'partial, u': {'channels': 3, 'size': 84, 'query': 15}}


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


def per_example(network, side):
    """Multiply-adds of an example and one set of weights, and the number of weights, by kind of layer.

    Returns:
        A pair of dicts {kind: int}, the kinds 'slow', of slow weights alone, and of adaptable layers 'conv' and 'fc'.
    """
    products, weights = ({'slow': 0, 'conv': 0, 'fc': 0} for _ in range(2))
    for link in network.links():
        if isinstance(link, (metanet.FastLayer, NormalizedConvolution2D, chainer.links.Linear)) and not (
                isinstance(link, metanet.SoftmaxLayer)):
            kind = 'slow' if not isinstance(link, metanet.FastLayer) else link.kind
            products[kind] += link.W.size * (side ** 2 if link.W.ndim == 4 else 1)
            weights[kind] += link.W.size
            if link.W.ndim == 4:
                side = -(-side // 2)
    return products, weights


def multiply_adds(args, model, unmade):
    """Of the products in each part's forward pass; `unmade` tells which of 'd' and 'm' leave out convolutions."""
    support, queries = args.way * args.shot, args.way * args.query
    steps = -(-support // max(1, support // model.n_steps))
    lstm = steps * 4 * 20 * (2 + 20) + 20
    parts, backward = {}, 0
    for part, network, learner, examples in (('embed', model.embed, 'd', support + queries),
                                             ('base', model.base, 'm', queries)):
        products, weights = per_example(network, MODELS[args.model]['size'])
        made = (lambda counts: counts['fc']) if learner in unmade else lambda counts: counts['conv'] + counts['fc']
        parts[part + ' gradients'] = support * sum(products.values())
        # m is looked up on a CPU, d is not. Both ask for gradients: with respect to inputs and to weights.
        learning = made(weights) * lstm if learner == 'd' else 0
        parts[learner] = learning + support * 2 * made(products)
        parts[part] = examples * (sum(products.values()) + made(products))
        if part == 'base':  # means of convolutions' weights, and of fully connected layers' products
            parts['reading'] = queries * support * (made(weights) - weights['fc'])
            parts['base'] += queries * (support - 1) * products['fc']
            backward += 2 * parts['reading']
        # Two more products of the same size for each, one with respect to the inputs, one to the weights.
        backward += 2 * (learning + parts[part])
    return dict(parts, backward=backward)


def build(args, weights):
    """A model with `weights`: 'initial' or 'trained'."""
    if weights == 'trained':
        return train_omniglot.load(os.path.join(ROOT, 'assets', 'omniglot_5way.npz'), [args.way])[0]
    if args.model == 'full':
        model = metanet.MetaNet(metanet.CNN(), metanet.CNN(activation=None), ways=[args.way])
    else:
        sizes = MODELS[args.model]
        settings = dict(vars(train_mini_imagenet), model=args.model, channels=sizes['channels'],
                        image_size=sizes['size'])
        model = train_mini_imagenet.build(settings, [args.way])
    model.initialize_uniform(0)
    return model


def sampler(args, device):
    invent = synthetic_strokes if args.model == 'full' else synthetic_textures
    return EpisodeSampler(invent(args.way, args.shot + args.query), args.way, args.shot, args.query, xp=device.xp)


def run(args, weights):
    """Times episodes of a new model.

    Returns:
        The model; which of its meta learners, 'd' and 'm', left convolutions' fast weights unmade in the end; two
        dicts, of training and test: {part: list of seconds, one for each episode}, the whole under `episode`.
    """
    device = use_device(args.gpu)
    model = build(args, weights)
    model.to_device(device)
    optimizer = chainer.optimizers.Adam(1e-3).setup(model)
    optimizer.add_hook(Clipping(10))
    clock = Clock(device)
    model.meta_information = clock.timed(
        model.meta_information, lambda network, *_: f"{'base' if network is model.base else 'embed'} gradients")
    unmade = {}
    meta_learner = clock.timed(model.meta_learner, lambda name, *_: name)

    def watched(name, gradients, layers):
        generated = meta_learner(name, gradients, layers)
        unmade[name] = any(isinstance(weights, Deferred) for weights in generated)
        return generated

    model.meta_learner = watched
    model.scores = clock.timed(model.scores, lambda network, *_: 'base' if network is model.base else 'embed')
    model.embed.forward = clock.timed(model.embed.forward, 'embed')
    with mock.patch.object(metanet.Memory, 'read', clock.timed(metanet.Memory.read, 'reading')):
        times = time_episodes(args, model, optimizer, clock)
    return model, {name for name in unmade if unmade[name]}, times


def time_episodes(args, model, optimizer, clock):
    source = sampler(args, clock.device)
    times = {}, {}
    for i in range(args.repeats + 2):  # the first two warm up
        for training in (True, False):
            clock.seconds.clear()
            episode = next(source)
            start = clock.now()
            with one_blas_thread():  # as the training scripts do
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


def product_rate(device, n=2048):
    """GFLOP/s of the device's own matrix product."""
    clock = Clock(device)
    a = device.xp.ones((n, n), np.float32)
    seconds = []
    for _ in range(5):
        start = clock.now()
        a.dot(a)
        seconds.append(clock.now() - start)
    return 2e-9 * n ** 3 / min(seconds)


def report(args, model, unmade, times):
    """Prints the tables of one `run`."""
    counts = multiply_adds(args, model, unmade)
    digits = 0 if args.gpu < 0 else 1
    for title, parts in zip(('train', 'test'), times):
        print(f"\n{title:16} {'median':>8} {'min':>8} {'GFLOP/s':>8}")
        for part in list(counts) + ['update', 'episode']:
            if part in parts:
                flop = 2 * counts[part] if part in counts else 0
                median = statistics.median(parts[part])
                rate = f'{1e-9 * flop / median:.0f}' if flop else ''
                print(f'{part:16} {1e3 * median:6.{digits}f} ms {1e3 * min(parts[part]):5.{digits}f} ms {rate:>8}')


def race(args, ours):
    """Prints the ratios of the peer's medians to ours over several rounds, in turn; `ours` is our first round.

    Args:
        args: from the command line.
        ours: {weights: a pair of lists, the seconds of training and of test episodes}.
    """
    command = [os.environ.get('PEER_PYTHON', sys.executable), args.peer]
    for name in ('way', 'shot', 'query', 'repeats'):
        command += ['--' + name, str(getattr(args, name))]
    peers = [], []
    for i in range(args.rounds):
        for weights in ours if i else ():
            for seconds, parts in zip(ours[weights], run(args, weights)[-1]):
                seconds += parts['episode']
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for seconds, name in zip(peers, ('train', 'test')):
            found = re.search(rf'^{name}: ([0-9.]+) s', output, re.MULTILINE)
            if not found:
                raise ValueError(f'{args.peer} has printed no line "{name}: SECONDS s": let it')
            seconds.append(float(found[1]))
    print(f'\nmedians of {args.rounds} rounds')
    for name, contender in [('peer', peers)] + list(ours.items()):
        train, test = map(statistics.median, contender)
        print(f'{name:8} train {train:.3f} s, test {test:.3f} s')
    for weights, (training, test) in ours.items():
        print(f'\nof the peer to {weights} weights')
        print(f'ratio train {statistics.median(peers[0]) / statistics.median(training):.2f}')
        print(f'ratio test {statistics.median(peers[1]) / statistics.median(test):.2f}')


def main(words=None):
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--way', type=int, default=5)
    parser.add_argument('--shot', type=int, default=1)
    parser.add_argument('--query', type=int, help='query images a class: 10, of mini-ImageNet 15')
    parser.add_argument('--model', choices=MODELS, default='full', help="the paper's, of Omniglot or mini-ImageNet")
    parser.add_argument('--repeats', type=int, default=7, help='episodes to time')
    parser.add_argument('--gpu', type=int, default=-1, help='-1 for the CPU')
    parser.add_argument('--peer', metavar='FILE', help='a script to race; PEER_PYTHON names its interpreter')
    parser.add_argument('--rounds', type=int, default=3, help='turns each takes in a race')
    args = parser.parse_args(words)
    if args.query is None:
        args.query = MODELS[args.model]['query']
    if min(args.way - 1, args.shot, args.query, args.repeats, args.rounds) < 1:
        parser.error('--way is at least 2, --shot, --query, --repeats and --rounds are at least 1')
    if args.peer and not os.path.isfile(args.peer):
        parser.error(f'--peer {args.peer}: there is no such file')
    with plain_errors():
        device = use_device(args.gpu)
    where = f'{THREADS} threads'
    if args.gpu >= 0:
        where = device.xp.cuda.runtime.getDeviceProperties(args.gpu)['name'].decode()
    print(f'{args.model} model, {args.way}-way {args.shot}-shot, {args.query} query images a class, {args.repeats} '
          f'episodes; a matrix product of the device: {product_rate(device):.0f} GFLOP/s; {where}')
    if args.gpu >= 0:
        print('the first two episodes are not timed: they compile kernels, which may take up to a minute', flush=True)
    ours = {}
    for weights in ('initial', 'trained') if args.model == 'full' else ('initial',):
        model, unmade, times = run(args, weights)
        print(f'\n{weights} weights')
        report(args, model, unmade, times)
        ours[weights] = [list(parts['episode']) for parts in times]
    if resource:  # Linux counts in KiB, macOS in bytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
        print(f'\npeak memory {peak / 1e9:.2f} GB')
    if args.gpu >= 0:
        print(f'device memory {device.xp.get_default_memory_pool().total_bytes() / 1e9:.2f} GB')
    if args.peer:
        with plain_errors((ValueError, OSError, subprocess.CalledProcessError)):
            race(args, ours)


if __name__ == '__main__':
    console.run(main)
