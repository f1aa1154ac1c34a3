"""The device that arrays live on: the CPU, or a GPU that is shown to work before anything is asked of it."""
from ops.compat import chainer, cuda

INSTALL = ('pip install -U "cupy-cuda12x[ctk]>=14" for CUDA 12, "cupy-cuda13x[ctk]>=14" for CUDA 13 (nvidia-smi shows '
           'which), with Python 3.10 or later')


def n_gpus():
    """How many GPUs there are to use: 0 without CuPy, and without a driver."""
    try:
        return cuda.cupy.cuda.runtime.getDeviceCount() if cuda.available else 0
    except Exception:  # CuPy's own class of errors, which may not be there
        return 0


def use_device(gpu):
    """Makes a device the current one, after a kernel was compiled and a matrix product ran on it.

    Args:
        gpu: number of the CUDA device; -1 for the CPU.

    Returns:
        chainer.backend.Device.

    Raises:
        ValueError: the GPU cannot be used; says whether CuPy, the driver, CUDA's libraries or its headers are missing,
            or it may be busy.
    """
    if gpu < 0:
        return chainer.get_device('@numpy')
    missing = ''
    try:
        missing = f'CuPy is missing: {INSTALL}'
        import cupy

        missing = f"CUDA's libraries are missing: {INSTALL}"
        chainer.backends.cuda.check_cuda_available()
        missing = 'the driver is missing, or older than CuPy needs: nvidia-smi has to list the GPU'
        count = cupy.cuda.runtime.getDeviceCount()
        if gpu >= count:
            missing = f'GPUs here are numbered from 0 to {count - 1}'
            raise IndexError(gpu)
        missing = 'it is there, but perhaps another program holds it or its memory, as nvidia-smi shows'
        device = chainer.get_device(f'@cupy:{gpu}')
        device.use()
        ones = cupy.zeros((2, 2), 'f')
        missing = f"CUDA's headers or its compiler, NVRTC, are missing: {INSTALL}"
        ones = ones + 1
        missing = f"CUDA's libraries are missing: {INSTALL}"
        if float(ones.dot(ones).sum()) != 8:
            missing = 'it computes a wrong matrix product'
            raise ArithmeticError('2x2')
    except Exception as error:  # whatever CuPy, Chainer and the CUDA driver raise
        reason = ' '.join(str(error).split())
        raise ValueError(f'gpu = {gpu} cannot be used: {missing}; or set gpu = -1 for the CPU ({reason})') from error
    return device
