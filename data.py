"""Few-shot data: Omniglot, mini-ImageNet, MNIST, synthetic stand-ins for them, and the sampler of episodes.

A data set is a plain dict {class name: uint8 array of images}; the images of a class have the shape (n_images, H, W),
or (n_images, H, W, 3) in colour, and 255 means full ink or full brightness. `save_classes` writes one's own to a file.
"""
import importlib
import typing

import numpy as np

from sources.archives import load_classes, save_classes
from sources.checks import check_sampling, digest_of, image_shape
from sources.distortion import N_DRAWS, distorted
from sources.files import printable, replacing
from sources.images import read_character
from sources.mini_imagenet import mini_imagenet
from sources.mnist import mnist
from sources.omniglot import SPLITS, omniglot
from sources.synthetic import synthetic_digits, synthetic_strokes, synthetic_textures

__all__ = ['SPLITS', 'Episode', 'EpisodeSampler', 'digest_of', 'image_shape', 'load_classes', 'mini_imagenet', 'mnist',
           'omniglot', 'printable', 'read_character', 'replacing', 'save_classes', 'synthetic_digits',
           'synthetic_strokes', 'synthetic_textures', 'turned']


def turned(classes):
    """Four classes of each: its square images turned by 0, 90, 180 and 270 degrees.

    Args:
        classes: a data set, {class name: uint8 images}.

    Returns:
        A data set with names such as 'name, 90 degrees'; the images are views of the given.
    """
    return {f'{name}, {90 * turns} degrees': np.rot90(images, turns, axes=(1, 2))
            for name, images in classes.items() for turns in range(4)}


# Episodes -------------------------------------------------------------------------------------------------------------


class Episode(typing.NamedTuple):
    """One task: a labelled support set to learn from, and a query set to be tested on.

    Images are float32 in [0, 1], labels int32 in 0..way-1; C is 1, or 3 in colour.
    """

    support_x: np.ndarray  # (way * shot, C, H, W)
    support_y: np.ndarray  # (way * shot,)
    query_x: np.ndarray  # (way * n_query, C, H, W)
    query_y: np.ndarray  # (way * n_query,)


class EpisodeSampler:
    """An endless iterator over random episodes.

    The random numbers are the sampler's own and depend on the seed alone.

    Args:
        classes: a data set, {class name: uint8 (n_images, H, W) or (n_images, H, W, 3)}.
        way: different classes in an episode, 2 or more, labelled in random order.
        shot, n_query: support and query images of each of them, 1 or more, all different.
        rotate: turn each class by a random multiple of 90 degrees, support and query alike.
        seed: what `numpy.random.RandomState` takes.
        xp: the module of the arrays, numpy or cupy.
        distortion: how far each image is turned, stretched and shifted besides, anew each time, 0 to 3; at 1 by up to
            10 degrees, 10 % and a 14th of its sides. Not in the paper.
        mirror: each image has its left and right exchanged, or not, at random. Not in the paper.

    Raises:
        ValueError: way, shot or n_query is too small, distortion out of its range, there are too few classes or images
            for them, images are not uint8 of one such shape, or images to rotate are not square.
    """

    def __init__(self, classes, way, shot, n_query, rotate=False, seed=0, xp=np, distortion=0, mirror=False):
        check_sampling(classes, way, shot, n_query, rotate, distortion)
        self.way = way
        self.shot = shot
        self.n_query = n_query
        self.rotate = rotate
        self.distortion = distortion
        self.mirror = mirror
        self.xp = xp
        self._classes = list(classes.values())
        self._rng = np.random.RandomState(seed)

    def __iter__(self):
        return self

    def __next__(self):
        return self.sample()

    def sample(self):
        """Draws an Episode."""
        support, query = [], []
        picks, support_order, query_order = self._draw()
        for i, chosen, turns, mirrored, distortions in picks:
            images = np.rot90(self._classes[i][chosen], turns, axes=(1, 2))
            if self.mirror:
                images[mirrored] = images[mirrored][:, :, ::-1]
            if self.distortion:
                images = np.stack([distorted(image, draws) for image, draws in zip(images, distortions)])
            support.append(images[:self.shot])
            query.append(images[self.shot:])
        return Episode(*self._shuffle(support, support_order), *self._shuffle(query, query_order))

    def skip(self, n_episodes):
        """Goes on as if so many episodes had been drawn, without making them."""
        for _ in range(n_episodes):
            self._draw()

    def _draw(self):
        """All that is random: (class, images, quarter turns, which to mirror, distortions) by label, and two orders."""
        picks = []
        for i in self._rng.permutation(len(self._classes))[:self.way]:
            chosen = self._rng.permutation(len(self._classes[i]))[:self.shot + self.n_query]
            turns = self._rng.randint(4) if self.rotate else 0
            mirrored = self.mirror and self._rng.randint(2, size=len(chosen)).astype(bool)
            distortions = self.distortion and self._rng.uniform(-1, 1, (len(chosen), N_DRAWS)) * self.distortion
            picks.append((i, chosen, turns, mirrored, distortions))
        return picks, self._rng.permutation(self.way * self.shot), self._rng.permutation(self.way * self.n_query)

    def _shuffle(self, images, order):
        """Images by label, a list of `way` uint8 arrays, to a batch (x, y) in that order."""
        x = np.concatenate(images)[order]
        x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        y = np.repeat(np.arange(self.way, dtype=np.int32), len(images[0]))[order]
        return self.xp.asarray(np.divide(x, 255, dtype=np.float32, order='C')), self.xp.asarray(y)

    def __getstate__(self):
        # Modules are not pickled, but their names.
        return dict(vars(self), xp=self.xp.__name__)

    def __setstate__(self, state):
        vars(self).update(state, xp=importlib.import_module(state['xp']))

    def get_state(self):
        """The state of the random generator.

        Returns:
            A uint32 array (628,), which fits in an npz.
        """
        _, key, position, has_gauss, gauss = self._rng.get_state()
        counters = np.array([position, has_gauss], dtype=np.uint32)
        return np.concatenate([key, counters, np.array([gauss]).view(np.uint32)])

    def set_state(self, state):
        """Goes on exactly where another sampler was.

        Args:
            state: what its `get_state` gave, a uint32 array (628,).

        Raises:
            ValueError: `state` is no such array.
        """
        if state.shape != (628,) or state.dtype != np.uint32:
            raise ValueError(f'a {state.dtype} array of shape {state.shape} is not the state of a sampler: '
                             'give the uint32 array (628,) that get_state returned')
        key, (position, has_gauss), gauss = state[:624], state[624:626].tolist(), state[626:].view(np.float64)
        if position > len(key):  # NumPy would read beyond them
            raise ValueError('the state of a sampler is damaged: give one that get_state returned')
        self._rng.set_state(('MT19937', key, position, has_gauss, gauss.item()))
