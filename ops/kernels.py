"""Kernels that exist on a GPU alone: one launch for what NumPy does in several calls.

On a GPU an episode is bound by the number of launches, not by arithmetic. Each kernel stands beside its *definition*,
the same in NumPy, slow and plain: what it computes in tests, and what a GPU is compared with. Raw arrays have no gaps,
feature maps with their channels last: (examples, h, w, c).
"""
from collections import namedtuple

import numpy

from ops.compat import cuda

# Arguments as cupy.ElementwiseKernel has them; `definition` takes the inputs and returns the outputs, as a tuple.
Kernel = namedtuple('Kernel', 'inputs outputs operation definition')


def _patches(maps, h, w, c, kh, kw):
    maps = maps.reshape(-1, h, w, c)
    padded = numpy.pad(maps, ((0, 0), (kh // 2,) * 2, (kw // 2,) * 2, (0, 0)))
    return numpy.stack([padded[:, row:row + h, column:column + w] for row in range(kh) for column in range(kw)], 3),


def _fold(g, h, w, c, kh, kw):
    g = numpy.moveaxis(g.reshape(-1, h, w, kh * kw, c), 3, 0)
    padded = numpy.zeros((g.shape[1], h + kh - 1, w + kw - 1, c), g.dtype)
    for tap in range(kh * kw):
        padded[:, tap // kw:tap // kw + h, tap % kw:tap % kw + w] += g[tap]
    return padded[:, kh // 2:kh // 2 + h, kw // 2:kw // 2 + w],


def _pool(maps, h, w, c):
    maps = maps.reshape(-1, h, w, c)
    padded = numpy.pad(maps, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=-numpy.inf)
    windows = numpy.stack([padded[:, row::2, column::2] for row in (0, 1) for column in (0, 1)])
    return windows.max(0), windows.argmax(0).astype(numpy.uint8)


def _unpool(g, place, h, w, c):
    shape = -1, -(-h // 2), -(-w // 2), c
    g, place = g.reshape(shape), place.reshape(shape)
    maps = numpy.zeros((len(g), 2 * shape[1], 2 * shape[2], c), g.dtype)
    for i in range(4):
        maps[:, i // 2::2, i % 2::2] = numpy.where(place == i, g, 0)
    return maps[:, :h, :w],


def _rectify(product, before, first):
    return numpy.clip(product, 0, numpy.inf) + (0 if first else before), product > 0


def _preprocess(gradient, p):
    magnitude = numpy.log(abs(gradient) + numpy.finfo(numpy.float32).eps) / p
    return numpy.clip(magnitude, -1, numpy.inf), numpy.clip(gradient * numpy.exp(p), -1, 1)


def _lstm_step(a, i, o, f, past, t):
    a, i, o, f = numpy.tanh(a), 1 + numpy.tanh(i), 1 + numpy.tanh(o), 1 + numpy.tanh(f) if t else f
    cell = (a * i + f * past if t else a * i) / 2
    tanh_cell = numpy.tanh(cell)
    return a, i, o, f, cell, tanh_cell, o * tanh_cell


def _lstm_back(g_hidden, g_cell, a, i, o, f, tanh_cell, past, t):
    g_hidden = g_hidden * o
    g_o = g_hidden * tanh_cell
    g_cell = (g_cell + g_hidden - g_o * tanh_cell) / 2
    g_a = g_cell * i
    g_i = g_a * a
    g_cell = g_cell * f if t else g_cell
    g_f = g_cell * past * (2 - f) if t else numpy.zeros_like(g_a)
    return g_a - g_i * a, g_i * (2 - i), g_o * (2 - o), g_f, g_cell


KERNELS = {
    'patches': Kernel('raw T maps, int32 h, int32 w, int32 c, int32 kh, int32 kw', 'T y', '''
        int channel = i % c, column = i / c % kw, row = i / c / kw % kh;
        int place = i / c / kw / kh;  // of an example's map
        int up = place / w % h + row - kh / 2, across = place % w + column - kw / 2;
        bool inside = 0 <= up && up < h && 0 <= across && across < w;
        y = inside ? maps[((place / w / h * h + up) * w + across) * c + channel] : T(0);
        ''', _patches),
    'fold': Kernel('raw T g, int32 h, int32 w, int32 c, int32 kh, int32 kw', 'T y', '''
        int channel = i % c, place = i / c;
        y = 0;
        for (int row = 0; row < kh; row++)
            for (int column = 0; column < kw; column++) {
                int up = place / w % h + kh / 2 - row, across = place % w + kw / 2 - column;
                if (0 <= up && up < h && 0 <= across && across < w)
                    y += g[((((place / w / h * h + up) * w + across) * kh + row) * kw + column) * c + channel];
            }
        ''', _fold),
    'pool': Kernel('raw T maps, int32 h, int32 w, int32 c', 'T y, uint8 place', '''
        int channel = i % c, narrow = (w + 1) / 2, low = (h + 1) / 2;
        int across = i / c % narrow * 2, up = i / c / narrow % low * 2, example = i / c / narrow / low;
        for (int k = 0; k < 4; k++)
            if (up + k / 2 < h && across + k % 2 < w) {
                T x = maps[((example * h + up + k / 2) * w + across + k % 2) * c + channel];
                if (k == 0 || x > y || x != x) {  // of equals the first; nan stays
                    y = x;
                    place = k;
                }
            }
        ''', _pool),
    'unpool': Kernel('raw T g, raw uint8 place, int32 h, int32 w, int32 c', 'T y', '''
        int channel = i % c, across = i / c % w, up = i / c / w % h, example = i / c / w / h;
        int window = ((example * ((h + 1) / 2) + up / 2) * ((w + 1) / 2) + across / 2) * c + channel;
        y = place[window] == up % 2 * 2 + across % 2 ? g[window] : T(0);
        ''', _unpool),
    'moderate': Kernel('T largest', 'T factor', 'factor = largest > T(1 << 24) ? T(1 << 24) / largest : T(1);',
                       lambda largest: (numpy.float32(2 ** 24) / numpy.maximum(largest, numpy.float32(2 ** 24)),)),
    'average': Kernel('T before, T value, T rate', 'T average', 'average = before + rate * (value - before);',
                      lambda before, value, rate: (before + rate * (value - before),)),
    # Comparisons that let nan through, as NumPy's clip does.
    'rectify': Kernel('T product, T before, int32 first', 'T y, bool alive', '''
        alive = product > 0;
        T passed = product < 0 ? T(0) : product;
        y = first ? passed : before + passed;
        ''', _rectify),
    'preprocess': Kernel('T gradient, int32 p', 'T magnitude, T sign', '''
        T logarithm = log(fabs(gradient) + T(1.1920929e-07)) / T(p), large = gradient * exp(T(p));
        magnitude = logarithm < T(-1) ? T(-1) : logarithm;
        sign = large < T(-1) ? T(-1) : large > T(1) ? T(1) : large;
        ''', _preprocess),
    # As `meta_learners` has it: sigmoids are doubled, and step 0 has no past.
    'lstm_step': Kernel('T a_in, T i_in, T o_in, T f_in, T past, int32 t',
                        'T a_gate, T i_gate, T o_gate, T f_gate, T cell, T tanh_cell, T hidden', '''
        T before = 0, f_new = f_in;
        if (t) {
            f_new = 1 + tanh(f_in);
            before = f_new * past;
        }
        T a_new = tanh(a_in), i_new = 1 + tanh(i_in), o_new = 1 + tanh(o_in);
        T cell_new = (a_new * i_new + before) * T(0.5), tanh_new = tanh(cell_new);
        a_gate = a_new;
        i_gate = i_new;
        o_gate = o_new;
        f_gate = f_new;
        cell = cell_new;
        tanh_cell = tanh_new;
        hidden = o_new * tanh_new;
        ''', _lstm_step),
    'lstm_back': Kernel('T g_hidden, T g_cell_in, T a_gate, T i_gate, T o_gate, T f_gate, T tanh_cell, T past, int32 t',
                        'T g_a, T g_i, T g_o, T g_f, T g_cell', '''
        T through = g_hidden * o_gate, d_o = through * tanh_cell;
        T d_cell = (g_cell_in + through - d_o * tanh_cell) * T(0.5);
        T d_a = d_cell * i_gate, d_i = d_a * a_gate, d_f = 0;
        if (t) {
            d_cell *= f_gate;
            d_f = d_cell * past * (2 - f_gate);
        }
        g_a = d_a - d_i * a_gate;
        g_i = d_i * (2 - i_gate);
        g_o = d_o * (2 - o_gate);
        g_f = d_f;
        g_cell = d_cell;
        ''', _lstm_back),
}


def _run(name, *args):
    kernel = KERNELS[name]
    return cuda.elementwise(kernel.inputs, kernel.outputs, kernel.operation, name)(*args)


def patches(maps, kernel):
    """The inputs under a kernel (kh, kw) at each position of maps: (examples, h w, kh kw c)."""
    (n, h, w, c), (kh, kw) = maps.shape, kernel
    y = cuda.cupy.empty((n, h * w, kh * kw * c), maps.dtype)
    _run('patches', cuda.cupy.ascontiguousarray(maps), h, w, c, kh, kw, y)
    return y


def fold(g, shape, kernel):
    """The way back: sums, (examples, h w, c), of g (taps, examples, h w, c), in memory (examples, h w, taps, c).

    `shape` is (h, w).
    """
    y = cuda.cupy.empty(g.shape[1:], g.dtype)
    _run('fold', g, *shape, g.shape[-1], *kernel, y)
    return y


def pool(maps, y, place):
    """2x2 max pooling of maps into y; into place where in its window each maximum was, 0 to 3."""
    _run('pool', cuda.cupy.ascontiguousarray(maps), *maps.shape[1:], y, place)


def average(before, value, rate):
    """Brings arrays before nearer to value, in place, by a share `rate` of the way."""
    _run('average', before, value, rate, before)


def moderate(largest):
    """What brings a largest number () to 2 ** 24 if it is above, an array (): 1 if it isn't."""
    factor = cuda.cupy.empty_like(largest)
    _run('moderate', largest, factor)
    return factor


def unpool(g, place, y):
    """The way back: g, of pooled maps, into y, of maps, where the maxima were; 0 elsewhere."""
    _run('unpool', cuda.cupy.ascontiguousarray(g), place, *y.shape[1:], y)


def rectify(product, y, alive, first):
    """Puts a product through a ReLU into y, or adds it there unless it is the first; `alive`: where it is above 0."""
    _run('rectify', product, y, int(first), y, alive)


def preprocess(gradient, p, magnitude, sign):
    """The two channels of `ops.preprocess`, into arrays of the gradient's shape."""
    _run('preprocess', gradient, p, magnitude, sign)


def lstm_step(t, gates, past, cell, tanh_cell, hidden):
    """Step t of the LSTM: from what goes into the gates a, i, o, f to these, in place, and to the states.

    Args:
        t: the step, from 0.
        gates: four arrays; others of their shape follow.
        past: the cell's state before; not looked at in step 0.
        cell, tanh_cell, hidden: where the states after it go.
    """
    _run('lstm_step', *gates, past, t, *gates, cell, tanh_cell, hidden)


def lstm_back(t, g_hidden, g_cell, gates, tanh_cell, past, g_gates):
    """The way back through step t: into g_gates, and g_cell in place."""
    _run('lstm_back', g_hidden, g_cell, *gates, tanh_cell, past, t, *g_gates, g_cell)
