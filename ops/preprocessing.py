"""What the meta learner sees of a gradient."""
import numpy

from ops.compat import cuda


def preprocess(gradient, p=7):
    """Two channels, magnitude and sign, of each gradient (section 4 of the paper, after Andrychowicz et al. 2016).

    Args:
        gradient: float array of any shape.
        p: the exponent that parts large gradients from small ones.

    Returns:
        A pair of arrays of that shape: max(log(|g| + eps) / p, -1), and clip(g * e^p, -1, 1).
    """
    xp = cuda.get_array_module(gradient)
    eps = float(numpy.finfo(numpy.float32).eps)
    return (xp.maximum(xp.log(xp.abs(gradient) + eps) / p, -1),
            xp.clip(gradient * float(numpy.exp(p)), -1, 1))
