"""What can be known of the GPU path without a GPU: a rehearsal on a stand-in for CuPy, and the kernels' C code."""
import ctypes
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ops import kernels
from ops.device import use_device

TESTS = os.path.dirname(os.path.abspath(__file__))
MAPS = 3, 5, 7, 2  # odd sides: windows and kernels overhang
CASES = {
    'patches': [(MAPS,), (5, 7, 2, 3, 5), [(3, 5, 7, 15, 2)]],
    'fold': [((3, 5, 7, 9, 2),), (5, 7, 2, 3, 3), [MAPS]],
    'pool': [(MAPS,), (5, 7, 2), [(3, 3, 4, 2), (3, 3, 4, 2)]],
    'unpool': [((3, 3, 4, 2), (3, 3, 4, 2)), (5, 7, 2), [MAPS]],
    'average': [(MAPS,) * 3, (), [MAPS]],
    'moderate': [(MAPS,), (), [MAPS]],
    'rectify': [(MAPS, MAPS), (1,), [MAPS] * 2],
    'preprocess': [(MAPS,), (7,), [MAPS] * 2],
    'lstm_step': [(MAPS,) * 5, (1,), [MAPS] * 7],
    'lstm_back': [(MAPS,) * 8, (1,), [MAPS] * 5],
}


def arguments(name):
    """Inputs of a kernel, with ties for pooling, and its empty outputs."""
    shapes, sizes, outputs = CASES[name]
    random = np.random.RandomState(0)
    unit = 2 ** 24 if name == 'moderate' else 1
    inputs = [unit * random.randint(0 if kind == np.uint8 else -3, 4, shape).astype(kind)
              for shape, kind in zip(shapes, types(kernels.KERNELS[name].inputs))]
    return inputs, sizes, [np.empty(shape, kind) for shape, kind in zip(outputs, types(kernels.KERNELS[name].outputs))]


def types(declarations):
    """NumPy's types of a kernel's arguments."""
    kinds = {'T': np.float32, 'int32': np.int32, 'uint8': np.uint8, 'bool': np.bool_}
    return [kinds[declaration.split()[-2]] for declaration in declarations.split(',')]


def words(declarations):
    """The (type, name) pairs of a kernel's arguments."""
    found = [declaration.replace('raw ', '').split() for declaration in declarations.split(',')]
    kinds = {'T': 'float', 'int32': 'int', 'uint8': 'unsigned char', 'bool': 'bool'}
    return [(kinds[kind], name) for kind, name in found]


def source(name, head='extern "C"', start='0', step='1'):
    """C++ that runs a kernel in a loop, as ElementwiseKernel does on a GPU; here first on the host."""
    kernel = kernels.KERNELS[name]
    inputs = words(kernel.inputs)
    raw = ['raw' in declaration for declaration in kernel.inputs.split(',')]
    given = [f'const {kind} {argument}' if kind == 'int' else f'const {kind} *{argument}{"" if is_raw else "_"}'
             for (kind, argument), is_raw in zip(inputs, raw)]
    outputs = words(kernel.outputs)
    arguments = ', '.join(['long long size'] + given + [f'{kind} *{argument}_' for kind, argument in outputs])
    return ('#ifndef __CUDACC_RTC__\n#include <cmath>\nusing namespace std;\n#endif\ntypedef float T;\n'
            f'{head} void {name}({arguments}) {{ for (long long i = {start}; i < size; i += {step}) {{'
            + ''.join(f'const {kind} {argument} = {argument}_[i]; ' for (kind, argument), is_raw in zip(inputs, raw)
                      if kind != 'int' and not is_raw)
            + ''.join(f'{kind} &{argument} = {argument}_[i]; ' for kind, argument in outputs)
            + kernel.operation + '}}')


@pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')
@pytest.mark.parametrize('name', kernels.KERNELS)
def test_kernels_code_does_what_its_definition_says(name, tmp_path):
    kernel = kernels.KERNELS[name]
    (tmp_path / 'kernel.cpp').write_text(source(name))
    library = str(tmp_path / 'kernel.so')
    subprocess.run(['g++', '-shared', '-fPIC', '-o', library, str(tmp_path / 'kernel.cpp')], check=True)
    inputs, sizes, outputs = arguments(name)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in inputs + outputs]
    run = ctypes.CDLL(library)[name]
    run(ctypes.c_longlong(outputs[0].size), *pointers[:len(inputs)], *sizes, *pointers[len(inputs):])
    for output, expected in zip(outputs, kernel.definition(*inputs, *sizes)):
        np.testing.assert_allclose(output, expected.reshape(output.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('architecture', [70, 80, 90])
def test_kernels_compile(architecture):
    """Compiling needs CuPy's wheel and NVRTC, but neither a driver nor a GPU."""
    nvrtc = pytest.importorskip('cupy_backends.cuda.libs.nvrtc', exc_type=ImportError)
    try:
        nvrtc.getVersion()
    except Exception:  # CuPy's own class of errors
        pytest.skip('needs NVRTC')
    if architecture not in nvrtc.getSupportedArchs():
        pytest.skip(f'this NVRTC does not know sm_{architecture}')
    for name in kernels.KERNELS:
        code = source(name, 'extern "C" __global__', 'blockIdx.x * blockDim.x + threadIdx.x', 'blockDim.x * gridDim.x')
        program = nvrtc.createProgram(code, f'{name}.cu', (), ())
        nvrtc.compileProgram(program, (f'--gpu-architecture=sm_{architecture}',))


def test_rehearsal_on_a_stand_in_for_cupy():
    path = os.pathsep.join([TESTS, os.path.join(TESTS, os.pardir), os.path.join(TESTS, os.pardir, 'tools')])
    done = subprocess.run([sys.executable, os.path.join(TESTS, 'rehearsal.py')], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, env={**os.environ, 'PYTHONPATH': path})
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif('cupy' in sys.modules, reason='needs that CuPy is missing')
def test_without_cupy_the_message_names_what_to_install():
    with pytest.raises(ValueError, match=r'gpu = 0 cannot be used: CuPy is missing: pip install -U "cupy-cuda12x\[ctk'):
        use_device(0)
