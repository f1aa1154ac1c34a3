"""A strict stand-in for CuPy: NumPy underneath, without a GPU; put in CuPy's place before Chainer is imported.

It has an array type of its own, which refuses what CuPy's refuses: implicit conversion to NumPy, operations with
arrays of the host, and, by not having them, functions that CuPy hasn't. Functions that nothing here calls are missing,
too: add what is needed, after a look at CuPy's own documentation.

`counts` has the launches of kernels (copies and fills included), the uploads, and the synchronisations: whatever makes
the host wait for the device. Views cost nothing. Numbers are estimates: CuPy may need a kernel more for an operation
whose arrays are not contiguous.
"""
import sys
import types

import numpy

counts = {'launches': 0, 'uploads': 0, 'synchronisations': 0}


def reset():
    """Sets all counts to 0."""
    counts.update(dict.fromkeys(counts, 0))


def _count(name, n=1):
    counts[name] += n


def _host(x):
    """The NumPy array below a device array; scalars as they are.

    Raises:
        TypeError: x is an array of the host.
    """
    if isinstance(x, ndarray):
        return x._array
    if isinstance(x, tuple) and all(isinstance(i, int) for i in x):  # axes
        return x
    if isinstance(x, (list, tuple)) or hasattr(x, '__array__') and not isinstance(x, numpy.generic):
        raise TypeError(f'Unsupported type {type(x)}')
    return x


def _call(function, args, settings, launches=1):
    _count('launches', launches + (_copies(*map(_host, args), **settings) if function is numpy.matmul else 0))
    return _device(function(*map(_host, args), **{name: _host(x) if isinstance(x, ndarray) else x
                                                  for name, x in settings.items()}))


def _copies(a, b, out=None):
    """What a product takes beside itself: CuPy copies what cuBLAS can't read or write as it lies.

    With three axes that is what isn't in C's order, and where one is broadcast, pointers are made for all three.
    """
    if a.ndim <= 2 and b.ndim <= 2:
        copies = sum(not (x.flags.c_contiguous or x.flags.f_contiguous) for x in (a, b))
    else:
        copies = sum(not x.flags.c_contiguous for x in (a, b)) + 3 * (a.shape[:-2] != b.shape[:-2])
    return copies + (out is not None and not _host(out).flags.c_contiguous)


def _device(result):
    """Device arrays for whatever NumPy returns: also for scalars, which CuPy doesn't know."""
    return ndarray(numpy.asarray(result))


class ndarray:
    """Stands in for cupy.ndarray."""

    __array_priority__ = 100

    def __init__(self, array):
        self._array = array

    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    itemsize = property(lambda self: self._array.itemsize)
    nbytes = property(lambda self: self._array.nbytes)
    strides = property(lambda self: self._array.strides)
    flags = property(lambda self: self._array.flags)
    T = property(lambda self: ndarray(self._array.T))
    device = property(lambda self: Device(0))

    def __array__(self, *args, **settings):
        raise TypeError('Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy '
                        'array explicitly.')

    def __array_function__(self, function, kinds, args, settings):
        raise TypeError(f'numpy.{function.__name__} of a device array')

    def __array_ufunc__(self, ufunc, method, *args, **settings):
        """What a NumPy scalar to the left of an operator calls."""
        if method != '__call__' or settings:
            return NotImplemented
        return _call(ufunc, args, {})

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def get(self, *args, **settings):
        _count('synchronisations')
        return self._array.copy()

    def set(self, array, *args):
        if not isinstance(array, numpy.ndarray) or array.shape != self.shape or array.dtype != self.dtype:
            raise TypeError('set takes an array of the host, of the same shape and dtype')
        _count('uploads')
        self._array[...] = array

    def item(self):
        _count('synchronisations')
        return self._array.item()

    def __bool__(self):
        return bool(self.get())

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __repr__(self):
        return f'fake_cupy.{self._array!r}'

    def _index(self, key):
        parts = []
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, list):
                _count('uploads')
                part = numpy.array(part)
            elif isinstance(part, ndarray) and part.dtype == bool:
                _count('synchronisations')
            parts.append(_host(part) if not isinstance(part, numpy.ndarray) else part)
            if isinstance(part, ndarray) and part.dtype != bool and part.size and not (
                    0 <= abs(part._array).max() < self.size):
                raise IndexError('CuPy wraps such an index silently')
        return tuple(parts)

    def __getitem__(self, key):
        if isinstance(key, numpy.ndarray):
            raise TypeError('an index of the host')
        result = self._array[self._index(key)]
        if isinstance(result, numpy.ndarray) and numpy.shares_memory(result, self._array) or not numpy.ndim(result):
            return ndarray(result) if isinstance(result, numpy.ndarray) else ndarray(
                self._array[self._index(key) + (...,)])
        _count('launches')
        return ndarray(numpy.asarray(result))

    def __setitem__(self, key, value):
        if isinstance(key, numpy.ndarray):
            raise TypeError('an index of the host')
        _count('launches')
        self._array[self._index(key)] = _host(value)

    def reshape(self, *shape):
        result = self._array.reshape(*shape)
        _count('launches', int(self.size and not numpy.shares_memory(result, self._array)))
        return ndarray(result)

    def ravel(self):
        return self.reshape(-1)

    def transpose(self, *axes):
        return ndarray(self._array.transpose(*axes))

    def reduced_view(self):
        return self

    def swapaxes(self, a, b):
        return ndarray(self._array.swapaxes(a, b))

    def squeeze(self, axis=None):
        return ndarray(self._array.squeeze(axis))

    def astype(self, dtype, copy=True):
        if not copy and self.dtype == dtype:
            return self
        return _call(numpy.ndarray.astype, (self,), {'dtype': dtype})

    def fill(self, value):
        _count('launches')
        self._array.fill(_host(value))

    def copy(self, order='C'):
        return _call(numpy.array, (self,), {'order': order})

    def take(self, indices, axis=None):
        return _call(numpy.take, (self, indices), {'axis': axis})


def _operator(name, function):
    def operate(self, other):
        if isinstance(other, ndarray) or numpy.isscalar(other):
            return _call(function, (other, self) if name.startswith('__r') else (self, other), {})
        if isinstance(other, numpy.ndarray):
            raise TypeError(f'Unsupported type {type(other)}')
        return NotImplemented

    def operate_in_place(self, other):
        _count('launches')
        function(self._array, _host(other), out=self._array)
        return self

    setattr(ndarray, name, operate)
    if name[2:-2] in _IN_PLACE:
        setattr(ndarray, f'__i{name[2:]}', operate_in_place)


_IN_PLACE = 'add', 'sub', 'mul', 'truediv', 'pow'
for _name, _function in {'add': numpy.add, 'sub': numpy.subtract, 'mul': numpy.multiply, 'truediv': numpy.divide,
                         'pow': numpy.power, 'and': numpy.bitwise_and, 'or': numpy.bitwise_or,
                         'mod': numpy.remainder, 'floordiv': numpy.floor_divide}.items():
    _operator(f'__{_name}__', _function)
    _operator(f'__r{_name}__', _function)
for _name, _function in {'lt': numpy.less, 'le': numpy.less_equal, 'gt': numpy.greater, 'ge': numpy.greater_equal,
                         'eq': numpy.equal, 'ne': numpy.not_equal, 'matmul': numpy.matmul}.items():
    _operator(f'__{_name}__', _function)
ndarray.__hash__ = None
for _name, _function in {'neg': numpy.negative, 'abs': numpy.abs, 'invert': numpy.invert}.items():
    setattr(ndarray, f'__{_name}__', lambda self, function=_function: _call(function, (self,), {}))
for _function in (numpy.sum, numpy.max, numpy.min, numpy.any, numpy.all, numpy.mean, numpy.var, numpy.std, numpy.dot,
                  numpy.argmax, numpy.clip):
    _name = {'amax': 'max', 'amin': 'min'}.get(_function.__name__, _function.__name__)
    setattr(ndarray, _name, lambda self, *args, function=_function, **settings:
            _call(function, (self,) + args, settings))


class Device:
    """Stands in for cupy.cuda.Device: there is one, number 0."""

    def __init__(self, number=0):
        if number not in (0, None):
            raise RuntimeError('cudaErrorInvalidDevice: invalid device ordinal')
        self.id = 0

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def __eq__(self, other):
        return isinstance(other, Device)

    def __hash__(self):
        return 0

    def __int__(self):
        return self.id

    def use(self):
        pass

    def synchronize(self):
        _count('synchronisations')


class ElementwiseKernel:
    """Stands in for kernels written in C: NumPy does what those of Chainer that are met do, by their names."""

    # Each takes the arrays before the outputs, or where the outputs are given, them as well.
    meanings = {
        'relu_bwd': lambda y, gy: numpy.where(y > 0, gy, 0).astype(gy.dtype),
        'softmax_crossent_no_reduce_fwd': lambda t, log_y, channels, ignored: numpy.where(
            t == ignored, 0, -log_y.reshape(-1)[numpy.arange(t.size) * channels + t.ravel()].reshape(t.shape)),
        'softmax_crossent_bwd': lambda y, t, gloss, coeff, channels, spatial, ignored: numpy.where(
            t == ignored, 0, gloss * coeff * (y - (numpy.arange(channels) == t))).astype(y.dtype),
        'pow_var_const_bwd': lambda x, gy, value: (value * x ** (value - 1) * gy).astype(x.dtype),
        'div_bwd': lambda x0, x1, gy: (gy / x1, -gy / x1 * x0 / x1),
        'bn_fwd': lambda x, mean, inv_std, gamma, beta: gamma * (x - mean) * inv_std + beta,
        'bn_bwd': lambda gy, x_hat, gamma, inv_std, ggamma, gbeta, inv_m: (
            gamma * inv_std * (gy - (x_hat * ggamma + gbeta) * inv_m)),
    }

    def __init__(self, inputs, outputs, operation, name='kernel', **settings):
        self.n_in, self.n_out = (len(names.split(',')) for names in (inputs, outputs))
        self.words = inputs.split(',')
        self.name = name

    def __call__(self, *args, size=None):
        _count('launches')
        args = [_host(arg) for arg in args]
        if self.name in ('adam', 'update_mean_var'):
            return getattr(self, f'_{self.name}')(*args)
        own = sys.modules['ops.kernels'].KERNELS
        if self.name in own:
            if any('raw' in words and not arg.flags.c_contiguous for words, arg in zip(self.words, args)):
                raise ValueError(f'the kernel {self.name} wants contiguous arrays')
            results = own[self.name].definition(*args[:self.n_in])
        elif self.name in self.meanings:
            results = self.meanings[self.name](*args[:self.n_in])
        else:
            raise NotImplementedError(f'say in fake_cupy what the kernel {self.name} does')
        results = results if isinstance(results, tuple) else (results,)
        if len(args) > self.n_in:
            for out, result in zip(args[self.n_in:], results):
                out[...] = result.reshape(out.shape)
            results = args[self.n_in:]
        return _device(results[0]) if len(results) == 1 else tuple(map(_device, results))

    @staticmethod
    def _adam(grad, alpha, one_minus_beta1, one_minus_beta2, eps, eta, decay, dummy, param, m, v, vhat=None):
        m += one_minus_beta1 * (grad - m)
        v += one_minus_beta2 * (grad * grad - v)
        largest = v if vhat is None else numpy.maximum(vhat, v, out=vhat)
        param -= eta * (alpha * m / (numpy.sqrt(largest) + eps) + decay * param)


    @staticmethod
    def _update_mean_var(mean, var, decay, adjust, r_mean, r_var):
        r_mean += (1 - decay) * (mean - r_mean)
        r_var += (1 - decay) * (var * adjust - r_var)


class ReductionKernel:
    """Stands in for reductions written in C, which nothing here calls."""

    def __init__(self, *args, **settings):
        pass


def _upload(x, dtype=None):
    if isinstance(x, ndarray):
        return x if dtype in (None, x.dtype) else x.astype(dtype)
    _count('uploads')
    return ndarray(numpy.array(x, dtype))


def _made(function, launches):
    return lambda *args, **settings: _call(function, args, settings, launches)


def _viewed(function):
    return lambda x, *args, **settings: ndarray(function(_host(x), *args, **settings))


def _joined(function):
    def join(arrays, axis=0):
        at_once = len(arrays) > 8 and len({array.dtype for array in arrays}) == 1  # and below 2 MB each, as CuPy does
        _count('launches', 1 if at_once else len(arrays))
        _count('uploads', 3 if at_once else 0)
        return ndarray(function([_host(array) for array in arrays], axis=axis))

    return join


def _found(function):
    def find(x):
        _count('launches', 2)
        _count('synchronisations')  # for the number of results
        found = function(_host(x))
        return tuple(map(ndarray, found)) if isinstance(found, tuple) else ndarray(found)

    return find


def _contiguous(x, dtype=None):
    if x.flags.c_contiguous and dtype in (None, x.dtype):
        return x
    return _call(numpy.ascontiguousarray, (x,), {'dtype': dtype})


def _as_strided(x, shape=None, strides=None):
    return ndarray(numpy.lib.stride_tricks.as_strided(_host(x), shape, strides))


def _download(x, *args, **settings):
    return x.get() if isinstance(x, ndarray) else numpy.asarray(x)


def _array_module(*args):
    return sys.modules['cupy'] if any(isinstance(arg, ndarray) for arg in args) else numpy


def _module(name, **members):
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    return module


def install():
    """Becomes `cupy`, once: to be called before Chainer is imported.

    Raises:
        RuntimeError: Chainer is there already.
    """
    if getattr(sys.modules.get('cupy'), 'ndarray', None) is ndarray:
        return
    if 'chainer' in sys.modules:
        raise RuntimeError('Chainer has looked for CuPy already')
    operations = ('add', 'subtract', 'multiply', 'divide', 'maximum', 'minimum', 'greater', 'less', 'equal', 'sqrt',
                  'exp', 'log', 'log1p', 'tanh', 'abs', 'sign', 'square', 'isfinite', 'logical_and', 'negative',
                  'clip', 'where', 'matmul', 'dot', 'sum', 'max', 'min', 'any', 'all', 'mean', 'argmax', 'take',
                  'zeros_like', 'ones_like', 'full_like', 'copyto', 'isnan', 'amax', 'reciprocal')
    cupy = _module('cupy', __version__='14.2.0', __path__=[], ndarray=ndarray, float32=numpy.float32,
                   float64=numpy.float64, int32=numpy.int32, int64=numpy.int64, bool_=numpy.bool_, newaxis=None,
                   ElementwiseKernel=ElementwiseKernel, ReductionKernel=ReductionKernel,
                   memoize=lambda *args, **settings: lambda function: function, clear_memo=lambda: None,
                   fuse=lambda **settings: lambda function: function,
                   asnumpy=_download, asarray=_upload, array=_upload, get_array_module=_array_module,
                   ascontiguousarray=_contiguous, concatenate=_joined(numpy.concatenate), stack=_joined(numpy.stack),
                   split=lambda x, ends: [ndarray(part) for part in numpy.split(_host(x), ends)],
                   flatnonzero=_found(numpy.flatnonzero), nonzero=_found(numpy.nonzero),
                   get_default_memory_pool=lambda: types.SimpleNamespace(total_bytes=lambda: 0),
                   get_default_pinned_memory_pool=lambda: None)
    for name in operations:
        setattr(cupy, name, _made(getattr(numpy, name), 1))
    for name, launches in (('zeros', 1), ('ones', 1), ('full', 1), ('arange', 1), ('eye', 1), ('empty', 0)):
        setattr(cupy, name, _made_of_shape(getattr(numpy, name), launches))
    cupy.empty_like = _made(numpy.empty_like, 0)
    cupy.pad = lambda x, width, mode: _call(lambda host: numpy.pad(host, width, mode), (x,), {}, 5)  # 4 edges, too
    for name in ('broadcast_to', 'rollaxis', 'expand_dims', 'transpose', 'swapaxes', 'moveaxis', 'squeeze'):
        setattr(cupy, name, _viewed(getattr(numpy, name)))
    cupy.lib = _module('cupy.lib', __path__=[])
    cupy.lib.stride_tricks = _module('cupy.lib.stride_tricks', as_strided=_as_strided)
    cupy.cuda = _module('cupy.cuda', __path__=[], Device=Device, Event=object, Stream=types.SimpleNamespace(
        null=types.SimpleNamespace(synchronize=lambda: _count('synchronisations'))))
    cupy.cuda.runtime = _module('cupy.cuda.runtime', getDeviceCount=lambda: 1)
    cupy.cuda.cublas = _module('cupy.cuda.cublas')
    cupy._util = _module('cupy._util', PerformanceWarning=type('PerformanceWarning', (Warning,), {}))
    for name in 'cupyx', 'cupyx.scipy', 'cupyx.scipy.linalg', 'cupyx.scipy.special':
        _module(name, __path__=[])
    sys.modules['cupyx'].scipy = sys.modules['cupyx.scipy']
    sys.modules['cupyx'].rsqrt = _made(
        lambda x, dtype=None: (1 / numpy.sqrt(x)).astype(dtype), 1)
    for name in 'linalg', 'special':
        setattr(sys.modules['cupyx.scipy'], name, sys.modules[f'cupyx.scipy.{name}'])


def _made_of_shape(function, launches):
    def make(*args, **settings):
        _count('launches', launches)
        return ndarray(function(*args, **settings))

    return make
