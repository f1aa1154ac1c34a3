"""What the meta learner sees of a gradient."""
import numpy

import ops.kernels as kernels
from ops.compat import cuda


def preprocess(gradient, p=7, out=None):
    """Two channels, magnitude and sign, of each gradient (section 4 of the paper, after Andrychowicz et al. 2016).

    Args:
        gradient: float array of any shape.
        p: the exponent that parts large gradients from small ones, a whole number.
        out: a pair of arrays of that shape to write them to; None for new ones.

    Returns:
        A pair of arrays of that shape: max(log(|g| + eps) / p, -1), and clip(g * e^p, -1, 1).
    """
    xp = cuda.get_array_module(gradient)
    magnitude, sign = out or (xp.empty_like(gradient), xp.empty_like(gradient))
    if xp is not numpy:
        kernels.preprocess(gradient, p, magnitude, sign)
    else:
        numpy.maximum(numpy.log(abs(gradient) + float(numpy.finfo(numpy.float32).eps)) / p, -1, out=magnitude)
        numpy.clip(gradient * float(numpy.exp(p)), -1, 1, out=sign)
    return magnitude, sign
