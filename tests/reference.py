"""What `ops` computes, put together from Chainer's own functions and links: slow, and plain to check."""
import numpy as np

from ops.compat import F, L, chainer


def _apply(product, x, weights, n_dims, group, relu):
    """Sum over weights, each shared or one for each group of consecutive examples."""
    total = 0
    for weight in weights:
        if weight.ndim == n_dims:
            y = product(x, weight)
        else:
            y = F.concat([product(x[i * group:(i + 1) * group], weight[i]) for i in range(len(weight))], axis=0)
        total += F.relu(y) if relu else y
    return total


def convolution(x, weights, group=1, relu=False, pool=False):
    def product(x, weight):
        return F.convolution_2d(x, F.transpose(weight, (0, 3, 1, 2)), pad=(weight.shape[1] // 2, weight.shape[2] // 2))

    y = _apply(product, x, weights, 4, group, relu)
    return max_pooling(y) if pool else y


def linear(x, weights, group=1, relu=False):
    return _apply(F.linear, x, weights, 2, group, relu)


def max_pooling(x):
    return F.max_pooling_2d(x, 2, 2)  # cover_all: windows may overhang


def normalized_convolution(x, weight, bn):
    return max_pooling(F.relu(bn(convolution(x, [weight]))))


def mixture(weights, values):
    return [F.reshape(F.matmul(weights, F.reshape(value, (len(value), -1))), weights.shape[:1] + value.shape[1:])
            for value in values]


def preprocess(gradient):
    magnitude = np.maximum(np.log(np.abs(gradient) + np.finfo(np.float32).eps) / 7, -1)
    return np.stack((magnitude.ravel(), np.clip(gradient * np.exp(7), -1, 1).ravel()), axis=1).astype(gradient.dtype)


def mlp(gradients, W1, b1, W2, b2, W3, b3):
    ys = []
    for gradient in gradients:
        h = F.relu(F.linear(preprocess(gradient), W1, b1))
        ys.append(F.reshape(F.linear(F.relu(F.linear(h, W2, b2)), W3, b3), gradient.shape))
    return ys


def lstm(gradients, W, b, V, W_out, b_out):
    link = L.StatelessLSTM(2, V.shape[1])
    # Variables in the place of parameters: gradients then reach the arguments.
    for owner, name, value in ((link.upward, 'W', W), (link.upward, 'b', b), (link.lateral, 'W', V)):
        object.__setattr__(owner, name, chainer.as_variable(value))
    ys = []
    for sequence in gradients:
        c = h = None
        for gradient in sequence:
            c, h = link(c, h, preprocess(gradient))
        ys.append(F.reshape(F.linear(h, W_out, b_out), sequence.shape[1:]))
    return ys
