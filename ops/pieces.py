"""m as what it is: a function of one number that is linear, piece by piece.

The meta learner's example-level network gets two channels, but both come from one gradient, so that they lie on a curve
of three straight lines (`bounds` has its positions, and what an epsilon does to them). Along it every unit is linear
until a ReLU opens or closes. So is the output, and within a piece it is one product with each channel. Backwards, the
sums of a piece's output gradients, alone and times each channel, are all that the gradients of the parameters need.
"""
import numpy

# Equal cells, from the first edge to the last, but not beyond gradients of 1e12 of either sign.
CELLS = 2048
FAR = 6.


class Pieces:
    """The pieces of a network with two hidden layers of ReLUs.

    Args:
        W1, b1, W2, b2, W3, b3: parameters, as of `meta_learners.mlp`.

    Attributes:
        edges: float (k - 1,), increasing: positions on the curve where one of the k pieces ends and the next starts.
        coefficients: (k, 3), of the channels and of 1.
        open: a pair of bool (k, u): which units of each hidden layer are above 0.
    """

    def __init__(self, W1, b1, W2, b2, W3, b3):
        self.parameters = [array.astype(numpy.float64) for array in (W1, b1, W2, b2, W3, b3)]
        W1, b1, W2, b2, W3, b3 = self.parameters
        # On each line the channels are start + position slope.
        start, slope = numpy.array([[-2, -1], [-1, 0], [-2, 1]]), numpy.array([[-1, 0], [0, 1], [1, 0]])
        units = start.dot(W1.T) + b1, slope.dot(W1.T)
        edges = numpy.array([-1., 1.])
        lines, edges = _cut(edges, *units)
        first = self._at(edges, *(values[lines] for values in units))
        hidden = [numpy.where(first, values[lines], 0) for values in units]
        pieces, self.edges = _cut(edges, hidden[0].dot(W2.T) + b2, hidden[1].dot(W2.T))
        first, hidden = first[pieces], [values[pieces] for values in hidden]
        second = self._at(self.edges, hidden[0].dot(W2.T) + b2, hidden[1].dot(W2.T))
        self.open = first, second
        back = self._back()
        constant = b3 + (second * W3).dot(b2) + (back * first).dot(b1)
        self.coefficients = numpy.column_stack(((back * first).dot(W1), constant))

    def cells(self):
        """(first, low, rate): cell i is from position low + i / rate on, and the piece there is first[i + 1]."""
        low, high = max(self.edges[0], -FAR), min(self.edges[-1], FAR)
        rate = CELLS / (high - low)
        starts = numpy.append(-numpy.inf, low + numpy.arange(CELLS) / rate)
        return numpy.searchsorted(self.edges, starts).astype(numpy.uint32), low, rate

    @staticmethod
    def _at(edges, start, slope):
        """Which units are above 0 within each piece."""
        middle = numpy.concatenate((edges[:1] - 1, (edges[:-1] + edges[1:]) / 2, edges[-1:] + 1))
        return start + middle[:, None] * slope > 0

    def _back(self):
        """Of each piece the output's gradient with respect to the first hidden layer, (k, u)."""
        _, _, W2, _, W3, _ = self.parameters
        return (self.open[1] * W3).dot(W2)

    def gradients(self, sums):
        """Gradients of the parameters.

        Args:
            sums: float64 (k, 3): of each piece, the sums of output gradients times the channels, and of these alone.
        """
        W1, b1, W2, b2, W3, _ = self.parameters
        first, second = self.open
        hidden = first * (sums[:, :2].dot(W1.T) + sums[:, 2:] * b1)
        last = second * (hidden.dot(W2.T) + sums[:, 2:] * b2)
        g_first, g_second = first * self._back(), second * W3
        return (g_first.T.dot(sums[:, :2]), g_first.T.dot(sums[:, 2]), g_second.T.dot(hidden),
                g_second.T.dot(sums[:, 2]), last.sum(axis=0)[None], sums[:, 2].sum()[None])


def _cut(edges, start, slope):
    """Cuts pieces where units, start + position slope (k, u) in each of them, cross 0.

    Returns:
        For each of the new pieces which of the old it was part of, and the new edges.
    """
    with numpy.errstate(divide='ignore', invalid='ignore', over='ignore'):
        crossings = -start / slope
    bounds = numpy.concatenate(([-numpy.inf], edges, [numpy.inf]))
    inside = (bounds[:-1, None] < crossings) & (crossings < bounds[1:, None])
    new = numpy.unique(numpy.concatenate((edges, crossings[inside])))
    starts = numpy.concatenate(([-numpy.inf], new))
    return numpy.searchsorted(edges, starts, side='right'), new
