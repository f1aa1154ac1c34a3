"""Classifies images by a few examples of each class, with a model that one of the two scripts has trained.

    python classify.py assets/omniglot_5way.npz FOLDER

FOLDER/support/CLASS/ holds the examples, the same number for each class, and FOLDER/query/ the images to classify.
For a model of train_omniglot.py they are characters, dark strokes on light paper, one filling most of each; for a model
of train_mini_imagenet.py, colour photos, of which the middle square is taken. Prints a line for each query: the file,
its class, and the class's probability.
"""
import signal

if __name__ == '__main__':
    # Ctrl-C and a closed pipe end it at once and silently, from the imports on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, 'SIGPIPE'):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

import argparse
import os
import sys
import warnings

import numpy as np

import train_mini_imagenet
import train_omniglot
from experiment.console import plain_errors, say
from experiment.models import settings_in
from ops.compat import F, chainer
from sources.files import open_streams, printable
from sources.images import is_system_file, read_character, read_photo


def read_folder(folder, kind='images'):
    """Paths of the files, or folders, in a folder, by name; hidden ones and the operating system's are left out.

    Args:
        folder: path of the folder.
        kind: 'images', or 'folders of images'.

    Raises:
        ValueError: there are none, or something of the other kind.
        OSError: it is no folder.
    """
    if not os.path.isdir(folder):
        raise NotADirectoryError(f'there is no folder {folder}: make it, and put the {kind} there')
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if not is_system_file(name)]
    if not paths:
        raise ValueError(f'{folder} is empty: put the {kind} there')
    for path in paths:
        if os.path.isdir(path) == (kind == 'images'):
            raise ValueError(f'{path} is {"a" if kind == "images" else "no"} folder: put only {kind} there')
    return paths


def read_images(paths, image_size=None):
    """Files -> float32 images in [0, 1].

    Args:
        paths: of the image files.
        image_size: None for characters, or the height and width of photos.

    Returns:
        (n, 1, 28, 28), 1 for ink, or (n, 3, image_size, image_size).
    """
    if image_size is None:
        images = np.stack([read_character(path) for path in paths])[:, None]
    else:
        images = np.stack([read_photo(path, image_size) for path in paths]).transpose(0, 3, 1, 2)
    return np.divide(images, 255, dtype=np.float32, order='C')


def load(path, way):
    """A model of either script, with a softmax layer for `way` classes.

    Args:
        path: npz of a trained model; where it has averaged weights, these are taken.
        way: number of classes, 2 or more.

    Returns:
        `MetaNet`, on the CPU, and the settings of its training.

    Raises:
        ValueError: the file is not such a model.
        OSError: it cannot be read.
    """
    return script_of(settings_in(path)).load(path, [way], inserted_scale=0)  # 0 is best, see docs/results.md


def script_of(settings):
    """The script, a module, that settings are of."""
    return train_mini_imagenet if 'model' in settings else train_omniglot


def is_for_photos(settings):
    """Whether settings are those of train_mini_imagenet.py."""
    return script_of(settings) is train_mini_imagenet


def describe(path, settings):
    """What kind of model a file holds, in words."""
    kind, usual = 'characters', 'Omniglot'
    if is_for_photos(settings):
        kind, usual = f'photos of {settings["image_size"]}x{settings["image_size"]}', 'mini-ImageNet'
    text = f'{path} is a model for {kind}, trained on {settings["data"]}'
    if settings['data'] == usual or settings['data'].startswith('own data'):
        return text
    return f'{text}, not on {usual}: expect little of it'


def probabilities(model, support_x, support_y, query_x):
    """Of each class for each query image.

    Args:
        model: what `load` returned.
        support_x, query_x: float32 (n, channels, size, size) in [0, 1], as `read_images` reads them.
        support_y: int32 (n_support,), labels 0 to way - 1, as many of each.

    Returns:
        float32 (n_query, way); each row sums to 1.

    Raises:
        ValueError: the arrays do not make an episode of `way` classes.
    """
    with chainer.no_backprop_mode(), chainer.using_config('train', False):
        return F.softmax(model(support_x, support_y, query_x)).array


def classify(model_path, folder):
    """Classifies FOLDER/query by FOLDER/support.

    Args:
        model_path: npz of a trained model.
        folder: holds support/CLASS/ and query/.

    Returns:
        A list of (file name, class, its probability), one for each query.

    Raises:
        ValueError: a file is not what it should be, or the classes have different numbers of examples.
        OSError: a file or folder cannot be read.
    """
    classes = read_folder(os.path.join(folder, 'support'), 'folders of images')
    if len(classes) < 2:
        raise ValueError(f'{os.path.dirname(classes[0])} holds one class: give examples of two or more')
    supports = [read_folder(name) for name in classes]
    if len(set(map(len, supports))) > 1:
        counts = [f'{os.path.basename(name)}: {len(paths)}' for name, paths in zip(classes, supports)]
        raise ValueError(f'the classes in {os.path.dirname(classes[0])} have different numbers of images '
                         f'({", ".join(counts)}): give as many of each, or the model prefers the largest')
    queries = read_folder(os.path.join(folder, 'query'))
    model, settings = load(model_path, len(classes))
    print(printable(describe(model_path, settings), sys.stderr), file=sys.stderr)
    kind = settings['channels'], settings['image_size']
    if not is_for_photos(settings) and kind != (1, 28):
        raise ValueError(f'{model_path} was trained on images of {kind[1]}x{kind[1]} with {kind[0]} channels, but what '
                         'is read here is characters, grey and 28x28: give a model of such images')
    examples = [(path, label) for label, paths in enumerate(supports) for path in paths]
    # The task-level gradients are of groups of examples: as in training, each should see several classes.
    examples = [examples[i] for i in np.random.RandomState(0).permutation(len(examples))]
    support, labels = zip(*examples)
    size = settings['image_size'] if is_for_photos(settings) else None
    support_x, query_x = (read_images(paths, size) for paths in (support, queries))
    return [(os.path.basename(path), os.path.basename(classes[p.argmax()]), p.max()) for path, p in
            zip(queries, probabilities(model, support_x, np.array(labels, np.int32), query_x))]


def main():
    open_streams()
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('model', help='npz of a trained model')
    parser.add_argument('folder', help='holds support/CLASS/ and query/')
    args = parser.parse_args()
    warnings.filterwarnings('ignore', module='PIL')  # sources.images decides what is wrong with an image
    with plain_errors():
        found = classify(args.model, args.folder)
    for name, label, probability in found:
        say(f'{name}: {label} {probability:.3f}')


if __name__ == '__main__':
    main()
