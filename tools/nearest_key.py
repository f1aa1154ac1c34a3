"""Compares a trained model with the nearest neighbour among its own keys: what do its fast weights add?

    python tools/nearest_key.py assets/omniglot_20way_centred.npz --n_outputs_test 5,20
    python tools/nearest_key.py assets/mini_imagenet_u.npz --classes train

A query gets the class of the support example whose key is most like its own, by the memory's measure, the cosine: once
with keys as the model makes them, and once with those of the embedding's slow weights alone. All see the same episodes.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from experiment import console

if __name__ == '__main__':
    console.start()  # the imports below take seconds, in which Ctrl-C shall be no traceback either

import numpy as np

import classify
import data
import train_mini_imagenet
import train_omniglot
from beyond import watched
from experiment.console import plain_errors, say
from experiment.evaluation import interval
from experiment.models import settings_in
from experiment.results import tested_on
from experiment.settings import as_tuple, check, refuse_images
from ops.blocks import one_blas_thread
from ops.compat import chainer


def accuracies(model, episode):
    """Accuracy (0 to 1) of the model, of its nearest keys, and of the nearest keys on slow weights."""
    memory, seen = model.memory, []
    support_x, support_y, query_x, query_y = episode
    with one_blas_thread(), chainer.no_backprop_mode(), chainer.using_config('train', False):
        model.memory = watched(memory, seen.append)
        try:
            scores = model(support_x, support_y, query_x).array
        finally:
            model.memory = memory
        seen.append(memory(model.embed(support_x), []).attention(model.embed(query_x)).array)
    return [np.mean(predicted == query_y) for predicted in (
        scores.argmax(axis=1), *(support_y[weights.argmax(axis=1)] for weights in seen))]


def compare(path, ways, n_queries, n_episodes, classes, input_path):
    """Prints a line for each way.

    Raises:
        ValueError: the model, the data or the classes are not what they should be.
        OSError: something cannot be read.
    """
    script = classify.script_of(settings_in(path))
    model, settings = script.load(path, ways, inserted_scale=0)
    input_path = input_path or script.input_path
    if classes not in script.PARTS:
        raise ValueError(f'classes = {classes!r}: those of this model are {", ".join(script.PARTS)}')
    *parts, source = (data.omniglot(input_path, settings['split']) if script is train_omniglot else
                      data.mini_imagenet(input_path))
    source = tested_on(source, data.digest_of(source, *parts), settings)
    chosen = dict(zip(script.PARTS, parts))[classes]
    refuse_images(settings, data.image_shape(chosen), input_path)
    n_queries = script.n_queries_test if n_queries is None else n_queries
    samplers = {way: data.EpisodeSampler(chosen, way, 1, n_queries, seed=(0, 3, way)) for way in ways}
    for way, sampler in samplers.items():
        results = 100 * np.array([accuracies(model, sampler.sample()) for _ in range(n_episodes)])
        words = ['model {:.2f} +- {:.2f} %'.format(*interval(results[:, 0]))]
        for name, values in ('nearest key', results[:, 1]), ('nearest key on slow weights', results[:, 2]):
            difference = '{:+.2f} +- {:.2f}'.format(*interval(values - results[:, 0]))
            words.append(f'{name} {values.mean():.2f} %, {difference}')
        say(f'{way}-way 1-shot, {n_episodes} episodes of {source}, {classes} classes: {"; ".join(words)}')


def main(words=None):
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('path', help='npz of a trained model; of several weights, the average')
    parser.add_argument('--n_outputs_test', type=train_omniglot.CHECKS['n_outputs_test'].read, default=5,
                        metavar='WAYS', help='way, or several: 5,20 (default: 5)')
    parser.add_argument('--n_queries_test', type=int, help="query images a class (default: the script's)")
    parser.add_argument('--n_episodes', type=int, default=500, help='of each way (default: 500)')
    parser.add_argument('--classes', choices=train_mini_imagenet.PARTS, default='test', help='(default: test)')
    parser.add_argument('--input_path', help="folder of the data (default: the script's)")
    args = parser.parse_args(words)
    if args.n_episodes < 2:
        parser.error('--n_episodes: two or more make an interval')
    with plain_errors():
        check({'n_outputs_test': args.n_outputs_test}, train_omniglot.CHECKS)
        compare(args.path, as_tuple(args.n_outputs_test), args.n_queries_test, args.n_episodes, args.classes,
                args.input_path)


if __name__ == '__main__':
    console.run(main)
