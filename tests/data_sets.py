"""Small data sets for the tests, and comparisons of them."""

import numpy as np

import data


def marked_classes(n_classes=8, n_images=6, shape=(4, 4)):
    """Classes whose images tell where they come from: pixel (0, 0) is the class, (0, 1) the image."""
    classes = {}
    for c in range(n_classes):
        images = np.zeros((n_images,) + shape, np.uint8)
        images[:, 0, 0] = (10 + c) if len(shape) == 2 else [10 + c, 0, 255]
        images[:, 0, 1] = np.arange(n_images).reshape((-1,) + (1,) * (len(shape) - 2))
        classes[f'class {c}'] = images
    return classes


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


def same_classes(a, b):
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


def drawings(names, size=28, colour=False, seed=0, n_images=20):
    random = np.random.RandomState(seed)
    shape = (n_images, size, size, 3) if colour else (n_images, size, size)
    return {name: random.randint(256, size=shape).astype(np.uint8) for name in names}


def save_own(folder, train, test):
    data.save_classes(folder / 'train.npz', train)
    data.save_classes(folder / 'test.npz', test)
