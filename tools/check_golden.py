"""Compares MetaNet with an episode computed by the authors' own code.

    python tools/check_golden.py FILE.npz ...

A file with grad/ entries is a training episode, one without is a test episode; any way and shot will do. Prints the
worst relative error of each kind, each array's on the scale of its largest entry, and exits with 1 where one is past
1e-3.

Logits can be as large as -1000, where neighbouring float32 numbers lie 1e-4 apart, and some gradients of m are sums
that nearly cancel: they amplify that rounding to some 1e-3 of themselves (1e-2 against the same episode in float64). So
once the logits have been compared, gradients are propagated from the authors' logits; what they are from our own is
printed beside, for information.

Where the two largest numbers of a pooling window differ by no more than rounding, either may win, and the gradient
takes another way. Channels past 1e-3 that have such a tie are counted and left out; the rest is judged as ever.

Where batch normalisation comes before the pooling, some of a million windows are as close as that, and a gradient that
takes another way is worth up to 6e-3 in the layers below. So gradients of these models come from Chainer's own
functions, which round as the authors' code does. Ours agree with them to 1e-13 in float64.
"""
import argparse
import collections
import contextlib
import os
import re
import sys
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))

import numpy as np

import metanet
from experiment import console
from experiment.console import plain_errors, say
from ops import normalization
from ops.compat import F, chainer, cuda
from ops.pooling import Windows
from sources.archives import read_npz

TOLERANCE = 1e-3
# How far apart rounding may put two numbers of a feature map that would be equal, relative to the largest there.
ROUNDING = 1e-6


class Golden:
    """One episode of the authors' code, and this project's model with its parameters."""

    def __init__(self, path):
        self.arrays = read_npz(path, 'give another one')
        if not {'support_x', 'param/embed/conv1/W', 'logits'} <= self.arrays.keys():
            raise ValueError(f'{path} is no episode of the authors\' code: give one of tests/golden')
        self.support_x, self.query_x = (self[name].astype(np.float32) / 255 for name in ('support_x', 'query_x'))
        self.support_y, self.query_y = self['support_y'], self['query_y']
        self.training = any(key.startswith('grad/') for key in self.arrays)
        self.model = self.build()
        self.params = dict(self.model.namedparams())
        # With one way in training and test the authors have two softmax layers of one size: a test uses its own.
        for key in sorted(self.arrays, reverse=self.training):
            if key.startswith('param/'):
                self.array(key)[...] = self[key]

    def build(self):
        """The model that has the file's parameters: full, partial, or partial with a base learner on the keys."""
        n_filters, in_channels = self['param/embed/conv1/W'].shape[:2]
        sizes = {'n_filters': n_filters, 'in_channels': in_channels, 'image_size': self.query_x.shape[-1],
                 'n_slow': sum(f'param/embed/conv{i}/bn/gamma' in self.arrays for i in range(1, 6))}
        embed = metanet.CNN(activation=None, **sizes)
        on_keys = 'param/base/conv1/W' not in self.arrays
        base = metanet.MLP(embed.n_out) if on_keys else metanet.CNN(**sizes)
        ways = {len(array) for key, array in self.arrays.items() if key.startswith('param/base/softmax')}
        return metanet.MetaNet(base, embed, ways, n_steps=10 if in_channels == 3 else 5, base_on_keys=on_keys)

    def array(self, key):
        """Our array for a key of the file: a parameter's, or a running average's."""
        value = self.model
        for name in self.ours(key)[1:].split('/'):
            value = getattr(value, name)
        return getattr(value, 'array', value)

    def __getitem__(self, key):
        return self.arrays[key]

    def ours(self, key):
        """The authors' name of a parameter to ours: param/base/softmax/W -> /base/softmax5/W."""
        name = key[key.index('/'):]
        for head in ('/softmax_test/', '/softmax/'):
            name = name.replace(head, f'/softmax{len(self["param" + name])}/') if head in name else name
        return name

    def scores(self):
        """Class scores of the query set, memory keys R and query keys r of one forward pass."""
        seen = []
        read = metanet.Memory.read

        def spy(memory, queries):
            seen.extend((memory.keys, queries))
            return read(memory, queries)

        with mock.patch.object(metanet.Memory, 'read', spy):
            return (self.model(self.support_x, self.support_y, self.query_x), *seen)

    def loss(self, scores):
        return F.sum(F.softmax_cross_entropy(scores, self.query_y, reduce='no'))

    def gradients(self, logits):
        """{key: gradient} of every parameter that has one, with the loss taken at `logits`."""
        with mock.patch.object(normalization, 'suits', lambda *args: False):
            with Ties(self.model) as ties:
                scores, _, _ = self.scores()
            self.ties = ties.channels
            at = chainer.Variable(logits.copy())
            self.loss(at).backward()
            self.model.cleargrads()
            scores.grad = at.grad
            scores.backward()
        return {name: param.grad for name, param in self.params.items() if param.grad is not None}


class Ties(chainer.LinkHook):
    """Collects, within a `with`, the channels of convolutions in which a pooling window has a tie.

    Attributes:
        channels: {layer, such as '/embed/conv1': set of its output channels}.
    """

    name = 'Ties'

    def __init__(self, model):
        self.names = {id(link): name for name, link in model.namedlinks()}
        self.channels = collections.defaultdict(set)
        self.layer = None

    def forward_preprocess(self, args):
        # A convolution's batch normalisation is a link of its own.
        self.layer = re.sub(r'(/conv\d+)/.*', r'\1', self.names[id(args.link)])

    def __enter__(self):
        convolution, pool = metanet.convolution, Windows.pool

        def spy(x, weights, group, relu, pool):
            if pool:
                with chainer.no_backprop_mode():
                    self.note(convolution(x, weights, group, relu).array.transpose(0, 2, 3, 1))
            return convolution(x, weights, group, relu, pool)

        def spy_on_windows(windows, x, start, stop, out):
            self.note(x)
            return pool(windows, x, start, stop, out)

        self.patch = contextlib.ExitStack()
        self.patch.enter_context(mock.patch.object(metanet, 'convolution', spy))
        self.patch.enter_context(mock.patch.object(Windows, 'pool', spy_on_windows))
        return super().__enter__()

    def note(self, maps):
        self.channels[self.layer].update(tied_channels(cuda.to_cpu(maps)))

    def __exit__(self, *exception):
        self.patch.close()
        return super().__exit__(*exception)


def tied_channels(x):
    """Channels of feature maps (n, h, w, c) in which the two largest of a 2x2 window differ by rounding alone.

    Windows without a positive number don't count: a ReLU lets no gradient through there.
    """
    n, h, w, c = x.shape
    padded = np.full((n, h + h % 2, w + w % 2, c), -np.inf, x.dtype)
    padded[:, :h, :w] = x
    windows = padded.reshape(n, -(-h // 2), 2, -(-w // 2), 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(-1, c, 4)
    second, first = np.moveaxis(np.partition(windows, 2, axis=2)[..., 2:], 2, 0)
    tied = (first > 0) & (first - second <= ROUNDING * abs(x).max())
    return np.flatnonzero(tied.any(axis=0)).tolist()


def error(ours, theirs, scale=None):
    """Largest difference, relative to the largest entry of `scale`, by default of `theirs`."""
    if np.shape(ours) != np.shape(theirs):
        raise ValueError(f'shape {np.shape(ours)}, not {np.shape(theirs)}')
    return float(abs(ours - theirs).max() / abs(theirs if scale is None else scale).max())


def gradient_errors(golden, logits):
    """Relative errors of the gradients.

    Returns:
        {parameter: error}, infinite for a gradient on one side alone; and {parameter: number of channels left out for a
        tie}.
    """
    ours = golden.gradients(logits)
    theirs = {golden.ours(key): key for key in golden.arrays if key.startswith('grad/')}
    errors, left_out = dict.fromkeys(set(ours) ^ set(theirs), float('inf')), {}
    for name in set(ours) & set(theirs):
        key = theirs[name]
        # The gradient of m_fc's last bias sums up fast weights' gradients that cancel: it is rounding and little else.
        scale = golden[key[:-1] + 'W'] if key == 'grad/m_fc/l3/b' else golden[key]
        layer = name[:name.index('/', name.index('conv'))] if '/conv' in name else None
        tied = [channel for channel in golden.ties.get(layer, ())
                if error(ours[name][channel], golden[key][channel], scale) > TOLERANCE]
        if tied:
            left_out[name] = len(tied)
        rest = np.setdiff1d(np.arange(len(ours[name])), tied)
        errors[name] = error(ours[name][rest], golden[key][rest], scale) if len(rest) else 0.
    return errors, left_out


def compare(golden, from_our_logits=True):
    """{kind: (worst relative error, where)} of everything that the file holds.

    Without `from_our_logits` gradients are taken from the file's logits alone, which is half of the work.
    """
    with chainer.using_config('train', golden.training):
        scores, memory_keys, query_keys = golden.scores()
        worst = {
            'logits': (error(scores.array, golden['logits']), ''),
            'loss': (error(golden.loss(scores).array, golden['loss']), ''),
            'memory keys': (error(memory_keys.array, golden['memory_keys']), ''),
            'query keys': (error(query_keys.array, golden['query_keys']), ''),
        }
        averages = {key: error(golden.array(key), golden[key]) for key in golden.arrays if key.startswith('after/')}
        if averages:
            where = max(averages, key=averages.get)
            worst['running averages'] = averages[where], golden.ours(where)
        if golden.training:
            origins = [('gradients', golden['logits'])]
            if from_our_logits:
                origins.append(('gradients from our logits', scores.array))
            for kind, logits in origins:
                errors, left_out = gradient_errors(golden, logits)
                where = max(errors, key=errors.get)
                ties = ', '.join(f'{n} of {name}' for name, n in sorted(left_out.items()))
                worst[kind] = errors[where], where + (f' (left out for ties: channels {ties})' if ties else '')
    return worst


def main(argv=None):
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('files', nargs='+', metavar='FILE.npz')
    passed = True
    for path in parser.parse_args(argv).files:
        with plain_errors():
            golden = Golden(path)
        kind = 'training' if golden.training else 'test'
        say(f'{path}: {golden.support_y.max() + 1}-way {np.bincount(golden.support_y)[0]}-shot, {kind}')
        for kind, (value, where) in compare(golden).items():
            judged = kind != 'gradients from our logits'
            fine = not judged or value <= TOLERANCE
            passed &= fine
            verdict = '' if not judged else 'ok' if fine else 'TOO FAR'
            say(f'  {kind:26} {value:.1e}  {verdict:8}{where}')
    return 0 if passed else 1


if __name__ == '__main__':
    console.run(lambda words: sys.exit(main(words)))
