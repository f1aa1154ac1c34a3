"""Blocks of work for the cores of a CPU.

A *block* is what a thread works on at a time: as many examples, weights or coordinates as fit its core's cache. The
blocks are dealt out in *parts*, runs of consecutive blocks; each part adds up its own gradient, and the sums of the
parts are added in their order. Both depend on the shapes alone, so no result depends on the number of threads. Where
nothing is added up, there are only as many parts as keep the threads busy. (A *chunk*, in `meta_learners`, is a piece
of a block for one matrix product.) On a GPU all is one block.
"""
import contextlib
import functools
import math
import operator
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy
from threadpoolctl import ThreadpoolController

from ops.compat import cuda

# Numbers in a block's largest array, of a convolution or of pooling: what fits a core's cache, beside the others.
ELEMENTS = 1 << 18
# Parts that the blocks are dealt into, where their results are added up.
PARTS = 8


def _threads():
    """The cores this process may use; fewer where OMP_NUM_THREADS says so, as for other numerical libraries."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    asked = os.environ.get('OMP_NUM_THREADS', '')
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores


THREADS = _threads()

_pool = ThreadPoolExecutor()


@functools.cache
def _blas(with_scipy):
    """The BLAS libraries that this process has loaded: NumPy's, and later SciPy's own."""
    return ThreadpoolController().select(user_api='blas')


def one_blas_thread():
    """Keeps BLAS to one thread within a `with`. To ask for it again in there costs next to nothing."""
    blas = _blas('scipy.linalg' in sys.modules)
    if all(library.num_threads == 1 for library in blas.lib_controllers):
        return contextlib.nullcontext()
    return blas.limit(limits=1)


def in_parts(work, blocks, xp, summed=False):
    """Calls `work` on runs of consecutive `blocks` in up to `THREADS` threads; returns its results in order.

    With `summed` there are up to `PARTS` runs, whatever the number of threads. On a GPU all is done in this thread:
    others have another current device.
    """
    count = PARTS if summed else 2 * THREADS if THREADS > 1 else 1
    edges = [i * len(blocks) // count for i in range(count + 1)]
    runs = [blocks[start:stop] for start, stop in zip(edges, edges[1:]) if start < stop]
    results, left = [None] * len(runs), enumerate(runs)
    threads = min(THREADS, len(runs)) if xp is numpy else 1

    def take():
        for i, run in left:
            results[i] = work(run)

    # The threads already fill the cores: BLAS must not start threads of its own in each of them.
    with one_blas_thread():
        helpers = [_pool.submit(take) for _ in range(threads - 1)]
        take()
        for helper in helpers:
            if not helper.cancel():  # one that hasn't begun isn't needed any more
                helper.result()
    return results


def blocks_of(length, size, step=1):
    """Cuts `range(length)` into (start, stop) of at most `size`, at multiples of `step`; a short rest stands alone.

    One block or an even number of them, all of nearly the same size, for threads to have equal shares.
    """
    steps, size = length // step, max(1, size // step)
    count = -(-steps // size)
    count += count > 1 and count % 2
    edges = [i * steps // count * step for i in range(count)] + [steps * step, length]
    return [(start, stop) for start, stop in zip(edges, edges[1:]) if start < stop]


class Scratch(threading.local):
    """Arrays a thread works in, block after block: NumPy's own come from fresh pages each time, outside the cache."""

    def __init__(self):
        self.arrays = {}

    def __call__(self, name, shape, like):
        """An uninitialised array with the dtype of `like`, valid until the thread's next call for that name."""
        if isinstance(like, cuda.ndarray):
            return cuda.cupy.empty(shape, like.dtype)
        size = math.prod(shape) * like.itemsize
        if name not in self.arrays or self.arrays[name].size < size:
            memory = numpy.empty(size + 64, numpy.uint8)
            start = -memory.ctypes.data % 64  # a cache line, and the width of the widest vectors
            self.arrays[name] = memory[start:start + size]
        return self.arrays[name][:size].view(like.dtype).reshape(shape)


scratch = Scratch()


def added(terms):
    """The sum of arrays, without a 0 before the first: on a GPU that is a kernel less."""
    return functools.reduce(operator.add, terms)


def matmul(a, b, out):
    """a b into `out`, any view; returns `out`."""
    if isinstance(out, cuda.ndarray) and out.ndim == 3 and len(out) == 1:  # CuPy copies transposed operands but of 2-D
        cuda.cupy.matmul(*(array[0] if array.ndim == 3 else array for array in (a, b)), out=out[0])
        return out
    return cuda.get_array_module(out).matmul(a, b, out=out)


def relu_in_place(x):
    """NumPy clips several times faster than it takes the maximum with a scalar."""
    return cuda.get_array_module(x).clip(x, 0, numpy.inf, out=x)
