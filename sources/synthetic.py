"""Invented images, for work without the data sets: the same seed gives the same images everywhere."""

import numpy as np

SIZE = 28  # height and width of a character, in pixels


# Characters -----------------------------------------------------------------------------------------------------------


def synthetic_strokes(n_classes=600, n_drawers=20, seed=0):
    """Invented characters, about as hard to tell apart as Omniglot's.

    A class is 2 to 4 curved strokes; each of its drawers has a hand, a slant, a place and a pen of their own.

    Args:
        n_classes, n_drawers: how many.
        seed: of the random numbers.

    Returns:
        {class name: uint8 (n_drawers, 28, 28)}, where 255 is ink.
    """
    rng = np.random.RandomState(seed)
    return {f'strokes{i:04d}': _draw(_invent_strokes(rng), n_drawers, rng) for i in range(n_classes)}


# The cubic Bezier curves of the digits: four control points (x, y) each, in [-1, 1], y downwards.
DIGITS = {
    '0': [[(0, -1), (-.9, -1), (-.9, 1), (0, 1)], [(0, 1), (.9, 1), (.9, -1), (0, -1)]],
    '1': [[(0, -1), (0, -.4), (0, .4), (0, 1)], [(-.4, -.6), (-.3, -.7), (-.1, -.9), (0, -1)]],
    '2': [[(-.6, -.5), (-.4, -1.4), (1.3, -.9), (-.6, 1)], [(-.6, 1), (-.2, 1), (.2, 1), (.7, 1)]],
    '3': [[(-.5, -.9), (.9, -1.2), (.8, 0), (-.1, 0)], [(-.1, 0), (1, 0), (.9, 1.3), (-.6, .9)]],
    '4': [[(.1, -1), (-.2, -.5), (-.5, 0), (-.7, .3)], [(-.7, .3), (-.2, .3), (.3, .3), (.7, .3)],
          [(.3, -.4), (.3, 0), (.3, .5), (.3, 1)]],
    '5': [[(.6, -1), (.3, -1), (-.1, -1), (-.4, -1)], [(-.4, -1), (-.4, -.7), (-.5, -.4), (-.5, -.1)],
          [(-.5, -.1), (.9, -.5), (.9, 1.3), (-.6, .9)]],
    '6': [[(.4, -1), (-.6, -.6), (-.9, 1), (0, 1)], [(0, 1), (.9, 1), (.7, -.4), (-.5, .3)]],
    '7': [[(-.6, -1), (-.2, -1), (.2, -1), (.6, -1)], [(.6, -1), (.2, -.3), (-.1, .3), (-.2, 1)]],
    '8': [[(0, 0), (-.8, -.2), (-.6, -1), (0, -1)], [(0, -1), (.6, -1), (.8, -.2), (0, 0)],
          [(0, 0), (-.9, .2), (-.8, 1), (0, 1)], [(0, 1), (.8, 1), (.9, .2), (0, 0)]],
    '9': [[(.5, -.6), (-.1, -1.4), (-1.1, -.1), (0, 0)], [(0, 0), (.3, 0), (.5, -.3), (.5, -.6)],
          [(.5, -.6), (.5, 0), (.4, .5), (.2, 1)]],
}


def synthetic_digits(n_images=250, seed=0):
    """Digits drawn by invented hands, in place of MNIST.

    Args:
        n_images: of each digit.
        seed: of the random numbers.

    Returns:
        {'0' to '9': uint8 (n_images, 28, 28)}, where 255 is ink.
    """
    rng = np.random.RandomState(seed)
    return {digit: _draw(np.array(strokes), n_images, rng) for digit, strokes in DIGITS.items()}


def _invent_strokes(rng):
    """Control points, (n_strokes, 4, 2) in about [-1, 1], of the cubic Bezier curves of a new character."""
    n_strokes = rng.randint(2, 5)
    # Strokes run between points of a 3x3 grid: like a letter's, they share corners and heights.
    ends = np.array([rng.permutation(9)[:2] for _ in range(n_strokes)])
    ends = np.stack([ends % 3, ends // 3], axis=2) - 1
    straight = np.linspace([1, 0], [0, 1], 4) @ ends
    bend = rng.normal(0, 0.6, (n_strokes, 1, 2)) * [[0], [1], [1], [0]]
    return straight + bend + rng.normal(0, 0.25, (n_strokes, 4, 2))


def _draw(strokes, n_drawers, rng):
    """uint8 (n_drawers, 28, 28): the character as drawn by `n_drawers` hands."""
    n_strokes = len(strokes)
    hand = (strokes + rng.normal(0, 0.15, (n_drawers, n_strokes, 1, 2))  # strokes misplaced...
            + rng.normal(0, 0.15, (n_drawers, n_strokes, 4, 2)))  # ...and misshapen
    warp = np.eye(2) + rng.normal(0, 0.12, (n_drawers, 1, 2, 2))  # slant, scale and rotation
    shift = rng.normal(0, 1.3, (n_drawers, 1, 1, 2))
    pen = rng.uniform(0.4, 0.6, (n_drawers, 1, 1))

    t = np.linspace(0, 1, 40)[:, None]
    bezier = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t ** 2 * (1 - t), t ** 3])
    curves = 0.27 * SIZE * (bezier @ hand @ warp) + (SIZE - 1) / 2 + shift
    lengths = np.linalg.norm(np.gradient(curves, axis=2), axis=3).reshape(n_drawers, -1, 1)
    x, y = np.moveaxis(curves.reshape(n_drawers, -1, 1, 2), 3, 0)

    # The pen's tip is a Gaussian, a product of one factor in x and one in y, so that the ink, its integral
    # along the curves, is one matrix product a drawing.
    tip_x, tip_y = [np.exp(-0.5 * ((centre - np.arange(SIZE)) / pen) ** 2) for centre in (x, y)]
    ink = tip_y.transpose(0, 2, 1) @ (tip_x * lengths / (np.sqrt(2 * np.pi) * pen))
    return np.rint(255 * np.minimum(ink, 1)).astype(np.uint8)


# Textures -------------------------------------------------------------------------------------------------------------


def synthetic_textures(n_classes=100, n_images=40, size=84, seed=0):
    """Invented colour textures, in place of mini-ImageNet.

    A class is three waves, each with a direction, a length and a colour of its own; its images differ in phase, scale,
    turn and light.

    Args:
        n_classes, n_images: how many classes, and images of each.
        size: height and width of the images, in pixels.
        seed: of the random numbers.

    Returns:
        {class name: uint8 (n_images, size, size, 3)}.
    """
    rng = np.random.RandomState(seed)
    y, x = (np.mgrid[:size, :size] / size - 0.5).astype(np.float32)
    classes = {}
    for i in range(n_classes):
        angle, frequency = rng.uniform(0, np.pi, 3), rng.uniform(2, 9, 3)
        colour, base = rng.normal(0, 1, (3, 3)), rng.uniform(0.35, 0.65, 3)
        angle = angle + rng.normal(0, 0.25, (n_images, 1))
        frequency = 2 * np.pi * frequency * np.exp(rng.normal(0, 0.2, (n_images, 1)))
        phase = rng.uniform(0, 2 * np.pi, (n_images, 3))
        across, down = [(frequency * f(angle)).astype(np.float32)[:, :, None, None] for f in (np.cos, np.sin)]
        waves = np.sin(across * x + down * y + phase.astype(np.float32)[:, :, None, None])
        colour = colour + rng.normal(0, 0.4, (n_images, 3, 3))
        light = base + rng.normal(0, 0.12, (n_images, 1, 1, 3))
        images = 0.15 * np.einsum('nwyx,nwc->nyxc', waves, colour) + light
        classes[f'texture{i:04d}'] = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    return classes
