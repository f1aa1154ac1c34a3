"""Chainer 7.8.1, its last release, made to import on today's NumPy and Python: take it from here.

    from ops.compat import F, L, chainer

Each patch puts back one name that Chainer looks up and its dependency has since removed. Where the original is still
there, nothing is touched.
"""
import sys
import types
import warnings

import numpy

# NumPy 2.0 removed `sctypes`; chainer.functions.as_strided builds its tables of integer and float types from it.
if not hasattr(numpy, 'sctypes'):
    numpy.sctypes = {
        'int': [numpy.int8, numpy.int16, numpy.int32, numpy.int64],
        'uint': [numpy.uint8, numpy.uint16, numpy.uint32, numpy.uint64],
        'float': [numpy.float16, numpy.float32, numpy.float64, numpy.longdouble],
        'complex': [numpy.complex64, numpy.complex128, numpy.clongdouble],
        'others': [bool, object, bytes, str, numpy.void],
    }

# Python 3.12 ended numpy.distutils. Chainer imports system_info at start-up and calls its get_info on macOS alone, to
# warn of a BLAS that wheels no longer link; an empty answer means "no such BLAS".
with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    try:
        import numpy.distutils.system_info  # noqa: F401
    except ImportError:
        _distutils = types.ModuleType('numpy.distutils')
        _distutils.system_info = types.ModuleType('numpy.distutils.system_info')
        _distutils.system_info.get_info = lambda name: {}
        sys.modules.setdefault('numpy.distutils', _distutils)
        sys.modules.setdefault('numpy.distutils.system_info', _distutils.system_info)
        if not hasattr(numpy, 'distutils'):
            numpy.distutils = _distutils

# Chainer checks its optional dependencies through pkg_resources, which warns of its own age at every start.
warnings.filterwarnings('ignore', message='pkg_resources is deprecated', category=UserWarning)

# On a GPU, Chainer misses cuDNN and CuPy misses NCCL: nothing here uses either.
warnings.filterwarnings('ignore', message=r'cuDNN is not enabled', category=UserWarning)
warnings.filterwarnings('ignore', message=r'\s*(nccl|cudnn) library could not be loaded', category=UserWarning)

import chainer  # noqa: E402  (after the patches)
import chainer.functions as F  # noqa: E402
import chainer.links as L  # noqa: E402
from chainer import gradient_check, training  # noqa: E402
from chainer.backends import cuda  # noqa: E402
from chainer.training import extensions  # noqa: E402
from chainer.utils import type_check  # noqa: E402

# The models are float32, whatever CHAINER_DTYPE says; and where there is a cuDNN after all, it stays out of it.
chainer.global_config.dtype = numpy.float32
chainer.global_config.use_cudnn = 'never'

__all__ = ['F', 'L', 'chainer', 'cuda', 'extensions', 'gradient_check', 'training', 'type_check']
