"""2x2 max pooling: within a convolution's blocks (`Windows`), and on its own."""
import numpy

import ops.kernels as kernels
from ops.blocks import ELEMENTS, blocks_of, in_parts, scratch
from ops.compat import chainer, cuda, type_check


class Windows:
    """Pools feature maps with their channels last: pairs of neighbours in a row, then pairs of rows.

    It remembers which of each pair was the larger, so that gradients find their way back.

    Args:
        shape: (n, h, w, c), of all feature maps.
        xp: numpy or cupy.
        keep: whether `unpool` will be called.
    """

    def __init__(self, shape, xp, keep):
        n, h, w, c = shape
        self.on_gpu = xp is not numpy
        self.pooled = n, -(-h // 2), -(-w // 2), c
        # On a GPU: where in its window each maximum was.
        self.place = xp.empty(self.pooled, numpy.uint8) if self.on_gpu else None
        self.narrow = h, -(-w // 2), c
        # Whether the second of a pair is the larger, one array for pairs in a row and one for pairs of rows.
        self.second = (xp.empty((n, h, w // 2, c), bool), xp.empty((n, h // 2, -(-w // 2), c), bool)) if (
            keep and not self.on_gpu) else None

    def pool(self, x, start, stop, out):
        """Examples start to stop, x (stop - start, h, w, c), into out."""
        if self.on_gpu:
            kernels.pool(x, out, self.place[start:stop])
            return
        narrow = scratch('narrow', (stop - start,) + self.narrow, x)
        self._pool(x, 2, narrow, self.second and self.second[0][start:stop])
        self._pool(narrow, 1, out, self.second and self.second[1][start:stop])

    def unpool(self, gy, start, stop, out):
        """The way back: gradients go where the maxima were, of equals to the first, as in Chainer's own pooling."""
        if self.on_gpu:
            kernels.unpool(gy, self.place[start:stop], out)
            return
        g_narrow = scratch('narrow', (stop - start,) + self.narrow, gy)
        self._unpool(gy, 1, g_narrow, self.second[1][start:stop])
        self._unpool(g_narrow, 2, out, self.second[0][start:stop])

    @staticmethod
    def _pair(x, axis):
        """The first and second members of the pairs; where the length is odd, the last has no second."""
        x = x.swapaxes(1, axis)
        return x[:, 0::2].swapaxes(1, axis), x[:, 1::2].swapaxes(1, axis)

    @staticmethod
    def _like(x, other, axis):
        """x as far as `other` goes along the axis"""
        return x[:, :other.shape[1]] if axis == 1 else x[:, :, :other.shape[2]]

    def _pool(self, x, axis, out, second):
        xp = cuda.get_array_module(x)
        a, b = self._pair(x, axis)
        whole = self._like(a, b, axis)
        xp.maximum(whole, b, out=self._like(out, b, axis))
        if second is not None:
            xp.greater(b, whole, out=second)
        if a.shape != b.shape:
            last = (slice(None),) * axis + (slice(-1, None),)
            out[last] = a[last]

    def _unpool(self, g, axis, out, second):
        xp = cuda.get_array_module(g)
        g_a, g_b = self._pair(out, axis)
        g_whole = self._like(g, g_b, axis)
        xp.multiply(g_whole, second, out=g_b)
        xp.subtract(g_whole, g_b, out=self._like(g_a, g_b, axis))
        if g_a.shape != g_b.shape:
            last = (slice(None),) * axis + (slice(-1, None),)
            g_a[last] = g[last]


class _MaxPooling(chainer.FunctionNode):

    def check_type_forward(self, in_types):
        type_check.expect(in_types.size() == 1, in_types[0].dtype.kind == 'f', in_types[0].ndim == 4)

    def _cut(self, x):
        return blocks_of(len(x), len(x) if isinstance(x, cuda.ndarray) else max(1, ELEMENTS // x[0].size))

    def forward(self, inputs):
        x = inputs[0].transpose(0, 2, 3, 1)
        xp = cuda.get_array_module(x)
        self.shape = x.shape
        self.windows = Windows(x.shape, xp, chainer.config.enable_backprop)
        y = xp.empty(self.windows.pooled, x.dtype)

        def work(blocks):
            for start, stop in blocks:
                self.windows.pool(x[start:stop], start, stop, y[start:stop])

        in_parts(work, self._cut(x), xp)
        return y.transpose(0, 3, 1, 2),

    def backward(self, indexes, grad_outputs):
        gy = grad_outputs[0].array.transpose(0, 2, 3, 1)
        xp = cuda.get_array_module(gy)
        gx = xp.empty(self.shape, gy.dtype)

        def work(blocks):
            for start, stop in blocks:
                self.windows.unpool(gy[start:stop], start, stop, gx[start:stop])

        in_parts(work, self._cut(gx), xp)
        return chainer.as_variable(gx.transpose(0, 3, 1, 2)),


def max_pooling(x):
    """Maximum over 2x2 windows, stride 2; windows may overhang the edge (ceil mode).

    Args:
        x: feature maps, float (n, c, h, w).

    Returns:
        chainer.Variable: float (n, c, ceil(h / 2), ceil(w / 2)).
    """
    return _MaxPooling().apply((x,))[0]
