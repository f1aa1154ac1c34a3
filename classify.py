"""Classifies images of characters by a few examples of each, with a model that train_omniglot.py has trained.

    python classify.py assets/omniglot_5way.npz FOLDER

FOLDER/support/CLASS/ holds the examples, the same number for each class, and FOLDER/query/ the images to classify: dark
strokes on light paper, a character filling most of each. Prints a line for each query: the file, its class, and the
class's probability.
"""
import argparse
import os
import sys

import numpy as np

import data
from experiment.console import plain_errors
from ops.compat import F, chainer
from train_omniglot import load


def read_folder(folder):
    """Paths of the files in a folder, by name; hidden ones are left out.

    Raises:
        ValueError: there are none.
        OSError: it is no folder.
    """
    names = sorted(name for name in os.listdir(folder) if not name.startswith('.'))
    if not names:
        raise ValueError('%s is empty: put the images there' % folder)
    return [os.path.join(folder, name) for name in names]


def read_images(paths):
    """Files -> float32 (n, 1, 28, 28) in [0, 1], 1 for ink."""
    return np.stack([data.read_character(path) for path in paths])[:, None] / np.float32(255)


def probabilities(model, support_x, support_y, query_x):
    """Of each class for each query image, float32 (n_query, way)."""
    with chainer.no_backprop_mode(), chainer.using_config('train', False):
        return F.softmax(model(support_x, support_y, query_x)).array


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model', help='npz of a trained model')
    parser.add_argument('folder', help='holds support/CLASS/ and query/')
    args = parser.parse_args()
    with plain_errors():
        classes = read_folder(os.path.join(args.folder, 'support'))
        if len(classes) < 2:
            raise ValueError('%s holds one class: give examples of two or more' % os.path.dirname(classes[0]))
        supports = [read_folder(name) for name in classes]
        if len(set(map(len, supports))) > 1:
            counts = ['%s: %d' % (os.path.basename(name), len(paths)) for name, paths in zip(classes, supports)]
            raise ValueError('the classes in %s have different numbers of images (%s): give as many of each, or the '
                             'model prefers the largest' % (os.path.dirname(classes[0]), ', '.join(counts)))
        examples = [(path, label) for label, paths in enumerate(supports) for path in paths]
        # The task-level gradients are of groups of examples: as in training, each should see several classes.
        examples = [examples[i] for i in np.random.RandomState(0).permutation(len(examples))]
        support, labels = zip(*examples)
        queries = read_folder(os.path.join(args.folder, 'query'))
        support_x, query_x = read_images(support), read_images(queries)
        model, settings = load(args.model, ways=[len(classes)], inserted_scale=0)  # more accurate, see the README
        if settings['data'] != 'Omniglot':
            print('%s was trained on %s, not on Omniglot: expect little of it' % (args.model, settings['data']),
                  file=sys.stderr)
    for path, p in zip(queries, probabilities(model, support_x, np.array(labels, np.int32), query_x)):
        print('%s: %s %.3f' % (os.path.basename(path), os.path.basename(classes[p.argmax()]), p.max()))


if __name__ == '__main__':
    main()
