"""MNIST (LeCun et al., 1998), from its four IDX files or from OpenML."""

import gzip
import io
import os
import socket
import struct
import zlib

import numpy as np

from sources.files import print_banner
from sources.synthetic import SIZE, synthetic_digits

DIGITS = tuple('0123456789')
SIZES = (60000, 10000)  # images to train on and to test on
COUNTS = 5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949  # of each digit, to train on; others look like it
MAX_BYTES = 1 << 28  # of a file that is read, unpacked
NETWORK_TIMEOUT = 30  # seconds
URL = 'https://ossci-datasets.s3.amazonaws.com/mnist/'


def mnist(path=None):
    """MNIST (LeCun et al., 1998): handwritten digits, 28x28.

    The four IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k- for the test), gzipped (.gz) or not,
    are read from `path`, or else from the folder that the environment variable MNIST_DIR names. Without either, they
    come from OpenML through scikit-learn, where that is installed, which keeps its own copy. If that fails too, a
    banner on stderr says so, and synthetic digits are returned.

    Args:
        path: a folder, or None.

    Returns:
        (train, test, name): two dicts {'0' to '9': uint8 (n_images, 28, 28)}, where 255 is ink and 0 is paper, in the
        order of the files, and the data set's name: 'MNIST', 'own data (FOLDER)' for files with other numbers of images
        than MNIST's, such as Fashion-MNIST's, or 'synthetic digits' (200 and 50 of each).

    Raises:
        FileNotFoundError: a folder is named, but a file is missing there.
        ValueError: a file is damaged, or holds other things than its name says; or a digit has no image.
    """
    folder = os.environ.get('MNIST_DIR') if path is None else os.fspath(path)
    if folder:
        parts = [_read_part(folder, prefix) for prefix in ('train', 't10k')]
        name = f'own data ({os.path.basename(os.path.abspath(folder))})'
    else:
        try:
            images, labels = _fetch()
        except Exception as reason:  # scikit-learn, pandas and the network fail in many ways
            print_banner('MNIST', 'synthetic digits', str(reason) or type(reason).__name__, (
                f'put its four files\nfrom {URL}\ninto a folder, and set the environment variable MNIST_DIR to it'))
            digits = synthetic_digits(250)
            return ({digit: images[:200] for digit, images in digits.items()},
                    {digit: images[200:] for digit, images in digits.items()}, 'synthetic digits')
        parts = [(images[:SIZES[0]], labels[:SIZES[0]]), (images[SIZES[0]:], labels[SIZES[0]:])]
        name = 'own data (OpenML)'
    if tuple(len(labels) for _, labels in parts) == SIZES and tuple(np.bincount(parts[0][1])) == COUNTS:
        name = 'MNIST'
    return (*(_by_digit(images, labels, folder or 'OpenML') for images, labels in parts), name)


def _by_digit(images, labels, where):
    classes = {digit: images[labels == int(digit)] for digit in DIGITS}
    for digit, of_digit in classes.items():
        if not len(of_digit):
            raise ValueError(f'{where}: the digit {digit} is missing from one of the parts: get the files anew '
                             f'from {URL}')
    return classes


# IDX files ------------------------------------------------------------------------------------------------------------


def _read_part(folder, prefix):
    """uint8 images (n, 28, 28) and labels (n,), 0 to 9, of the training or the test files."""
    image_path, label_path = (_find(folder, prefix, kind) for kind in ('images-idx3', 'labels-idx1'))
    images, labels = _read_idx(image_path, 3), _read_idx(label_path, 1)
    if images.shape[1:] != (SIZE, SIZE):
        raise ValueError(f'{image_path}: the images are {images.shape[2]}x{images.shape[1]}, not {SIZE}x{SIZE}: '
                         f'get it anew from {URL}')
    if len(images) != len(labels):
        raise ValueError(f'{image_path} has {len(images)} images, but {label_path} {len(labels)} labels: get both anew '
                         f'from {URL}')
    if labels.max(initial=0) > 9:
        raise ValueError(f'{label_path}: there is a label {labels.max()}, but digits are 0 to 9: get it anew '
                         f'from {URL}')
    return images, labels


def _find(folder, prefix, kind):
    """The path of a file under one of the names it is known by."""
    name = f'{prefix}-{kind}-ubyte'
    for known in (name, f'{name}.gz', name.replace('-idx', '.idx'), name.replace('-idx', '.idx') + '.gz'):
        path = os.path.join(folder, known)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f'{os.path.join(folder, name)}.gz does not exist: put the four files of MNIST there '
                            f'(from {URL}), or name another folder')


def _read_idx(path, n_dimensions):
    """The uint8 array of an IDX file, gzipped or not."""
    remedy = f'get it anew from {URL}'
    try:
        with open(path, 'rb') as file:
            content = file.read(MAX_BYTES + 1)
        if content[:2] == b'\x1f\x8b':
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f'{path} cannot be read, it seems damaged ({error}): {remedy}') from error
    if len(content) > MAX_BYTES:
        raise ValueError(f'{path} is larger than a file of MNIST can be: {remedy}')
    start = 4 + 4 * n_dimensions
    # Two zeros, 8 for bytes, and the number of dimensions.
    if len(content) < start or content[:4] != bytes([0, 0, 8, n_dimensions]):
        raise ValueError(f'{path} does not begin with the magic number {2048 + n_dimensions}, as '
                         f'{"images" if n_dimensions == 3 else "labels"} in the IDX format do: {remedy}')
    shape = struct.unpack(f'>{n_dimensions}I', content[4:start])
    expected = 1
    for n in shape:
        expected *= n
    if expected != len(content) - start:
        raise ValueError(f'{path} claims {expected} bytes of content, but has {len(content) - start}: {remedy}')
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# OpenML ---------------------------------------------------------------------------------------------------------------


def _fetch():
    """uint8 images (70000, 28, 28) and labels (70000,), the training images first."""
    try:
        from sklearn.datasets import fetch_openml
    except ImportError as error:
        raise ImportError('neither a folder is named nor is scikit-learn installed, which could fetch the data'
                          ) from error
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)  # scikit-learn sets none; its other parser needs pandas
    try:
        images, labels = fetch_openml('mnist_784', version=1, return_X_y=True, as_frame=False, parser='liac-arff')
    finally:
        socket.setdefaulttimeout(timeout)
    images, labels = np.asarray(images), np.asarray(labels).astype(int)
    if images.shape != (sum(SIZES), SIZE * SIZE) or labels.shape != (sum(SIZES),):
        raise ValueError(f'OpenML gave arrays of shapes {images.shape} and {labels.shape}')
    if not (images.min() >= 0 and images.max() <= 255 and labels.min() >= 0 and labels.max() <= 9):
        raise ValueError('OpenML gave pixels or labels out of their range')
    return images.astype(np.uint8).reshape(-1, SIZE, SIZE), labels
