"""The differentiable functions that MetaNet spends its time in, on NumPy and on CuPy alike.

`augmented` has layer augmentation (section 3.3 of the paper) as one primitive: a sum of products of the same input,
each with weights of its own, shared by all examples or one per group of examples. Run forwards with fast weights per
query it is the augmented layer; run backwards with a copy of the slow weights per support example it gives the meta
information.
`tiled` is a quicker way for 3x3 convolutions on a CPU, and `tiled_sums` for augmented ones, with loops that Numba
compiles in `loops`. `meta_learners` has the meta learner's two coordinate-wise networks, `memory` the reading of the
memory, `pooling` and `normalization` what stands between convolutions. `lazy`, `bounds` and `gradients` are about fast
weights that need not be made, `kernels` and `device` about a GPU. `preprocessing` and `pieces` serve the meta learner,
`blocks` shares work out among threads, `checks` refuses bad input.

Nothing here can be differentiated twice: the paper's meta information is a constant (first order). Every module takes
Chainer from `compat`.
"""
from ops.augmented import channels_last, convolution, linear
from ops.memory import late_mixture, mixture
from ops.meta_learners import lstm, mlp
from ops.normalization import NormalizedConvolution2D, normalized_convolution
from ops.pooling import max_pooling
from ops.preprocessing import preprocess

__all__ = ['NormalizedConvolution2D', 'channels_last', 'convolution', 'late_mixture', 'linear', 'lstm', 'max_pooling',
           'mixture', 'mlp', 'normalized_convolution', 'preprocess']
