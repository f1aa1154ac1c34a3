"""m as what it is: a function of one number that is linear, piece by piece.

The meta learner's example-level network gets two channels, but both come from one gradient, so that they lie on a curve
of three straight lines (`preprocessing.positions`), or next to it. Along it every unit is linear until a ReLU opens or
closes. So is the output, and within a piece it is a product with the position, and a constant. Backwards, the sums of a
piece's output gradients, alone and times the positions, are all that the gradients of the parameters need.
"""
import numpy

# Equal cells, from the first edge to the last, but not beyond gradients of 1e12 of either sign.
CELLS = 2048
FAR = 6.
# On each of the three lines the channels are START + position SLOPE.
START = numpy.array([[-2, -1], [-1, 0], [-2, 1]])
SLOPE = numpy.array([[-1, 0], [0, 1], [1, 0]])


class Pieces:
    """The pieces of a network with two hidden layers of ReLUs.

    Args:
        W1, b1, W2, b2, W3, b3: parameters, as of `meta_learners.mlp`.

    Attributes:
        edges: float (k - 1,), increasing: positions on the curve where one of the k pieces ends and the next starts.
        coefficients: (k, 3), of the position, of 1, and of what the magnitude is above that of the position.
        lines: (k,), which of the three lines a piece is of.
        open: a pair of bool (k, u): which units of each hidden layer are above 0.
    """

    def __init__(self, W1, b1, W2, b2, W3, b3):
        self.parameters = [array.astype(numpy.float64) for array in (W1, b1, W2, b2, W3, b3)]
        W1, b1, W2, b2, W3, b3 = self.parameters
        units = START.dot(W1.T) + b1, SLOPE.dot(W1.T)
        edges = numpy.array([-1., 1.])
        lines, edges = _cut(edges, *units)
        first = self._at(edges, *(values[lines] for values in units))
        hidden = [numpy.where(first, values[lines], 0) for values in units]
        pieces, self.edges = _cut(edges, hidden[0].dot(W2.T) + b2, hidden[1].dot(W2.T))
        first, hidden = first[pieces], [values[pieces] for values in hidden]
        second = self._at(self.edges, hidden[0].dot(W2.T) + b2, hidden[1].dot(W2.T))
        self.open, self.lines = (first, second), lines[pieces]
        constant = b3 + (second * W3).dot(b2)
        back = self._back() * first
        start, slope = (values[self.lines] for values in units)
        self.coefficients = numpy.column_stack(((back * slope).sum(axis=1), (back * start).sum(axis=1) + constant,
                                                back.dot(W1[:, 0])))

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
            sums: float64 (k, 3): of each piece, the sums of output gradients times what `coefficients` are of.
        """
        W1, b1, W2, b2, W3, _ = self.parameters
        first, second = self.open
        along, alone, above = (sums[:, i:i + 1] for i in range(3))
        channels = START[self.lines] * alone + SLOPE[self.lines] * along + above * [1, 0]
        hidden = first * (channels.dot(W1.T) + alone * b1)
        last = second * (hidden.dot(W2.T) + alone * b2)
        g_first, g_second = first * self._back(), second * W3
        return (g_first.T.dot(channels), g_first.T.dot(alone)[:, 0], g_second.T.dot(hidden),
                g_second.T.dot(alone)[:, 0], last.sum(axis=0)[None], alone.sum()[None])


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
