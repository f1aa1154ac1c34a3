"""Images a little turned, stretched and shifted: more of a class than there are of it."""
import numpy as np
from PIL import Image

N_DRAWS = 5  # random numbers that an image takes
DEGREES = 10
STRETCH = 0.1  # of the width and of the height, each on its own, as a logarithm
SHIFT = 1 / 14  # of the sides
MOST = 3  # times that; beyond, images come out blank


def distorted(image, draws):
    """An image turned about its middle, stretched and shifted; what comes in from outside is 0.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        draws: float (5,): the angle in 10 degrees, the width's and the height's change in 10 %, the shifts in a 14th
            of the sides. The paper's images are those of zeros.

    Returns:
        uint8, of the image's shape; between pixels it is interpolated linearly.
    """
    sides = np.array(image.shape[1::-1])
    angle = np.radians(DEGREES * draws[0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.exp(STRETCH * draws[1:3])[:, None] * turn
    offset = sides / 2 - matrix.dot(sides / 2) + SHIFT * draws[3:] * sides
    # Pillow asks where in the image a pixel of the result lies.
    return np.asarray(Image.fromarray(image).transform(
        tuple(sides.tolist()), Image.Transform.AFFINE, (*matrix[0], offset[0], *matrix[1], offset[1]),
        Image.Resampling.BILINEAR))
