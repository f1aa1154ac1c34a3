"""What the meta learner sees of a gradient."""
import math

import numpy

import ops.kernels as kernels
from ops.compat import cuda

P = 7  # the exponent that parts large gradients from small ones
EPSILON = float(numpy.finfo(numpy.float32).eps)


def preprocess(gradient, out=None):
    """Two channels, magnitude and sign, of each gradient (Andrychowicz et al., 2016, appendix A).

    Args:
        gradient: float array of any shape.
        out: a pair of arrays of that shape to write them to; None for new ones.

    Returns:
        A pair of arrays of that shape: max(log(|g| + eps) / P, -1), and clip(g * e^P, -1, 1).
    """
    xp = cuda.get_array_module(gradient)
    magnitude, sign = out or (xp.empty_like(gradient), xp.empty_like(gradient))
    if xp is not numpy:
        kernels.preprocess(gradient, P, magnitude, sign)
    else:
        numpy.maximum(logarithm(gradient) / P, -1, out=magnitude)
        numpy.clip(gradient * math.exp(P), -1, 1, out=sign)
    return magnitude, sign


def positions(gradient):
    """Where gradients lie on the curve of their channels (`bounds`), and how far beside it.

    At a position the magnitude is max(|position|, 1) - 2, the sign clip(position, -1, 1). The epsilon lifts the
    magnitude of the few just below e^-p a little above -1, by 2e-5 at most.

    Args:
        gradient: array of any shape, not on a GPU.

    Returns:
        A pair of arrays of that shape: positions, and what the magnitude is above that of the position.
    """
    small, far = gradient * math.exp(P), logarithm(gradient) / P + 2
    near = abs(small) < 1
    return numpy.where(near, small, numpy.copysign(far, gradient)), numpy.where(near, numpy.maximum(far - 1, 0), 0)


def logarithm(gradient, out=None):
    """log(|g| + eps), into `out` if it is given."""
    return numpy.log(numpy.add(numpy.abs(gradient, out=out), EPSILON, out=out), out=out)
