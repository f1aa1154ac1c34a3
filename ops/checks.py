"""What a user may hand to a model: anything else is refused in words, before it can be wrong silently."""
import numbers

import numpy

from ops.compat import chainer, cuda

# Images are meant to be in [0, 1], perhaps normalised; beyond this they are surely still in 0 to 255.
LARGEST = 20


def check_episode(support_x, support_y, query_x, model):
    """Refuses a support set and query examples that do not make an episode.

    Args:
        support_x, query_x: float32, or for tokens int32 or int64, (n_support, ...) and (n_query, ...).
        support_y: int32 (n_support,), labels 0 to N - 1, each as often as the others.
        model: link; float examples must have the dtype of its parameters.

    Returns:
        N, the number of classes.

    Raises:
        ValueError: names the array, its shape and dtype, and what it should be.
    """
    dtype = next(param.dtype for param in model.params() if param.is_initialized)
    for name, x in ('support_x', support_x), ('support_y', support_y), ('query_x', query_x):
        _check_device(name, x, model.xp is cuda.cupy)
    for name, x in ('support_x', support_x), ('query_x', query_x):
        tokens = _is_array(x) and x.dtype.kind == 'i' and x.dtype.itemsize >= 4
        if not tokens and not (_is_array(x) and x.dtype == dtype):
            raise ValueError(f'{name} is {_words(x)}: give a {dtype} array of (n, ...), images divided by 255, '
                             'or an int32 array of tokens')
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(f'{name} is {_words(x)}: give (n, ...), at least one example, as in images[None] for one')
        if isinstance(x, numpy.ndarray) and not tokens and not numpy.isfinite(x).all():
            raise ValueError(f'{name} has entries that are NaN or infinite: remove those examples')
    if support_x.shape[1:] != query_x.shape[1:] or support_x.dtype != query_x.dtype:
        raise ValueError(f'support_x is {_words(support_x)}, query_x {_words(query_x)}: give both the same '
                         'shape but for n, and the same dtype')
    if not _is_array(support_y) or support_y.dtype.kind != 'i' or support_y.shape != (len(support_x),):
        raise ValueError(f'support_y is {_words(support_y)}: give an int32 array of ({len(support_x)},), a label for '
                         'each support example')
    labels = cuda.to_cpu(support_y)
    if labels.min() < 0 or labels.max() >= len(labels):
        raise ValueError(f'support_y reaches from {labels.min()} to {labels.max()} for {len(labels)} support examples: '
                         'number the classes 0 to N - 1')
    counts = numpy.bincount(labels)
    if counts.min() != counts.max():
        raise ValueError('support_y has ' + ', '.join(f'{n} of class {i}' for i, n in enumerate(counts)) + ': give the '
                         'same number of examples for each class, 0 to N - 1; otherwise the largest class wins')
    if len(counts) < 2:
        raise ValueError('support_y names one class: give examples of two or more')
    return len(counts)


def _check_device(name, x, on_gpu):
    """Refuses an array on another device than the model's."""
    if _is_array(x) and isinstance(x, cuda.ndarray) != on_gpu:
        devices = ('a GPU', 'the CPU') if on_gpu else ('the CPU', 'a GPU')
        raise ValueError(f'the model is on {devices[0]}, but {name} on {devices[1]}: make the sampler with '
                         'xp=model.xp, or move the model with to_device')


def check_labels(query_y, scores):
    """Refuses what are not the labels of n query examples, integers (n,) from 0 to way - 1; on a GPU by shape alone.

    Args:
        query_y: the labels.
        scores: variable (n, way).

    Returns:
        The labels.

    Raises:
        ValueError: names device, shape, dtype or range, and what they should be.
    """
    n, way = scores.shape
    _check_device('query_y', query_y, isinstance(scores.array, cuda.ndarray))
    if not _is_array(query_y) or query_y.dtype.kind != 'i' or query_y.shape != (n,):
        raise ValueError(f'query_y is {_words(query_y)}: give an int32 array of ({n},), a label for each query example')
    # To look at a GPU's labels would be to wait for them.
    if isinstance(query_y, numpy.ndarray) and not 0 <= query_y.min() <= query_y.max() < way:
        raise ValueError(f'query_y reaches from {query_y.min()} to {query_y.max()} where the support set has {way} '
                         f'classes: give labels from 0 to {way - 1}')
    return query_y


def check_four(episode):
    """Refuses what is not four arrays: support_x, support_y, query_x, query_y; returns them.

    Raises:
        ValueError: says what it is instead.
    """
    if not isinstance(episode, (tuple, list)) or len(episode) != 4:
        n = f' of {len(episode)}' if isinstance(episode, (tuple, list)) else ''
        raise ValueError(f'the episode is a {type(episode).__name__}{n}: give a data.Episode, four arrays, support_x, '
                         'support_y, query_x and query_y')
    return episode


def check_layer(shape, activation):
    """Refuses a shape that lacks a size, and an activation that is none or has parameters; returns the activation.

    Raises:
        ValueError, TypeError: names what is wrong, and what it should be.
    """
    if not all(isinstance(size, (int, numpy.integer)) and size > 0 for size in shape):
        raise ValueError(f'an adaptable layer of weights {tuple(shape)} lacks a size: give each, as a whole number')
    if isinstance(activation, chainer.Link):
        raise TypeError(f'the activation is a link, {type(activation).__name__}, whose parameters the layer would not '
                        "keep: give a function, or None and call the link, one of the network's, on the layer's output")
    if activation is not None and not callable(activation):
        raise TypeError(f'activation = {activation!r}: give a function such as F.relu, or None; adaptable layers have '
                        'no bias, adaptable convolutions have stride 1 and pad by themselves')
    return activation


def check_cnn(n_filters, in_channels, image_size, n_slow):
    """Refuses sizes that make no `CNN`.

    Raises:
        ValueError: names what is wrong, and what it should be.
    """
    for name, size in ('n_filters', n_filters), ('in_channels', in_channels), ('image_size', image_size):
        if not isinstance(size, (int, numpy.integer)) or size < 1:
            raise ValueError(f'{name} = {size!r}: must be a whole number, at least 1; images are square')
    if not isinstance(n_slow, numbers.Integral) or not 0 <= n_slow <= 5:
        raise ValueError(f'n_slow = {n_slow}: there are five convolutions, choose 0 to 5')


def check_attention(weights, n, memory):
    """Refuses what is not the attention of n queries to a memory's examples; on a GPU by shape alone.

    Means of negative fast weights are taken to be negative (`ops.lazy`), which they are if no share is.

    Args:
        weights: what `memory.attention` returned.
        n: number of queries.
        memory: `metanet.Memory`.

    Returns:
        The weights.

    Raises:
        ValueError: names what is wrong, and what it should be.
    """
    n_support = len(memory.keys)
    array = weights.array if isinstance(weights, chainer.Variable) else None
    wanted = f'return a variable of ({n}, {n_support}), of each query the shares of the support examples, none negative'
    if array is None or array.shape != (n, n_support):
        raise ValueError(f'attention returned {_words(weights)}: {wanted}')
    if isinstance(array, numpy.ndarray) and array.min() < 0:
        raise ValueError(f'attention returned shares down to {array.min():.3g}: {wanted}')
    for value in memory.values:
        if getattr(value, 'shape', (n_support,))[0] != n_support:
            raise ValueError(f'the memory has {value.shape[0]} sets of fast weights for {n_support} support examples: '
                             'meta_information returns one group for each where `group` is 1')
    return weights


def check_parts(base, embed, network, ways, n_steps):
    """Refuses what makes no `MetaNet`; `network` is the class that base and embed have to be of.

    Raises:
        TypeError, ValueError: names what is wrong, and what it should be.
    """
    for part in base, embed:
        if not isinstance(part, network):
            raise TypeError(f'base and embed must be of a class derived from Network, not {type(part).__name__}')
        for link in part.links():
            _check_registered(link)
    if not check_ways(ways):
        raise ValueError('ways is empty: give a list of numbers of classes, each at least 2, such as [5]')
    if not isinstance(n_steps, numbers.Integral) or n_steps < 1:
        raise ValueError(f'n_steps = {n_steps}: must be a whole number, at least 1')
    names = {}
    for part, link in ('base', base), ('embed', embed):
        for name, param in link.namedparams():
            first = names.setdefault(id(param), part + name)
            if first != part + name:
                raise ValueError(f'{first} and {part + name} are one parameter: optimizers would step twice, and '
                                 'a copy of the model would have two. Register a layer once, and call it as often as '
                                 'you like; base and embed share layers by base_on_keys=True alone')


def _check_registered(link):
    """Refuses a link that holds others where Chainer doesn't see them: it would neither train nor copy them."""
    if isinstance(link, chainer.ChainList):
        return
    for name, value in vars(link).items():
        if isinstance(value, chainer.Link) and name not in getattr(link, '_children', ()):
            raise ValueError(f'{type(link).__name__}.{name} is a layer that Chainer neither trains nor copies: set it '
                             'within `with self.init_scope():`, and where it has a name already use that')
        within = value.values() if isinstance(value, dict) else value
        if isinstance(value, (list, tuple, dict)) and any(isinstance(one, chainer.Link) for one in within):
            raise ValueError(f'{type(link).__name__}.{name} is a {type(value).__name__} of layers, which Chainer '
                             'neither trains nor copies: make a chainer.ChainList of them within `with '
                             'self.init_scope():`, or if they are registered, list them in forward')


def check_ways(ways):
    """Refuses what is not a list of numbers of classes; returns each once, in their order.

    Raises:
        ValueError: says what to give.
    """
    if not isinstance(ways, (list, tuple, range, set, numpy.ndarray)) or any(
            not isinstance(way, numbers.Integral) or way < 2 for way in ways):
        raise ValueError(f'ways = {ways}: give a list of numbers of classes, each at least 2, such as [5]')
    return list(dict.fromkeys(map(int, ways)))


def check_weights(layers, fast, copies):
    """Refuses lists of weights that aren't one for each layer, and layers that are in another's hands.

    Raises:
        ValueError: names both numbers.
        RuntimeError: a layer has fast weights or copies already.
    """
    for weights in fast, copies:
        if weights is not None and len(weights) != len(layers):
            raise ValueError(f'{len(weights)} weights for {len(layers)} adaptable layers: give one for each')
    if any(layer.fast is not None or layer.copies is not None for layer in layers):
        raise RuntimeError('a layer has fast weights already, of another thread or of a `with augmented` around this: '
                           "leave that first, and give each thread its own model.copy('share')")


def check_losses(losses, n):
    """Refuses what are not the losses of n support examples, a variable (n,).

    Returns:
        The losses.

    Raises:
        ValueError: names the shape, and what it should be.
    """
    if not isinstance(losses, chainer.Variable) or losses.shape != (n,):
        raise ValueError(f'support_losses returned {_words(losses)} for {n} support examples: return ({n},), '
                         'a variable with the loss of each')
    return losses


def check_meta_information(gradients, layers, slow):
    """Refuses meta information that is not one array (n_groups, ...) for each layer, and layers of an unknown kind.

    Args:
        gradients: what `MetaNet.meta_information` returned.
        layers: the adaptable layers.
        slow: their slow weights, as arrays.

    Raises:
        ValueError: names what is wrong, and what it should be.
    """
    for layer in layers:
        if layer.kind not in ('conv', 'fc'):
            raise ValueError(f"{type(layer).__name__}.kind is {layer.kind!r}: choose 'conv' or 'fc', the set of the "
                             "meta learner's parameters that it is to have")
    if hasattr(gradients, 'shapes'):  # of `Gradients`; to look at the arrays would be to make them
        found = gradients.shapes
    else:
        others = [x for x in gradients if not _is_array(x)] if isinstance(gradients, (list, tuple)) else [gradients]
        if others:
            raise ValueError(f'meta_information returned {_words(others[0])}: return a list of arrays')
        found = [array.shape for array in gradients]
        for array, weights in zip(gradients, slow):
            if array.dtype != weights.dtype:
                raise ValueError(f'meta_information returned an array of {array.dtype}: return {weights.dtype}')
    shapes = [array.shape for array in slow]
    if [tuple(shape[1:]) for shape in found] != shapes:
        raise ValueError(f'meta_information returned arrays (n_groups, ...) of {[tuple(shape[1:]) for shape in found]} '
                         f'for layers of {shapes}: return one number for each slow weight of each of '
                         'fast_layers(way), in their order')
    if len({shape[0] for shape in found}) > 1:
        raise ValueError(f'meta_information returned arrays of {[shape[0] for shape in found]} groups: return as many '
                         'for each layer')


def check_fast_weights(name, fast, slow):
    """Refuses what a meta learner made that is not fast weights.

    Args:
        name: as of `MetaNet.meta_learner`; all but 'm' make a task's, without the axis of groups.
        fast: list of fast weights; of those that wait to be made nothing is looked at.
        slow: {place of a layer: its slow weights, an array}, in the order of `fast`.

    Returns:
        {place of a layer: its fast weights}.

    Raises:
        ValueError: names what is wrong, and what it should be.
    """
    if len(fast) != len(slow):
        raise ValueError(f'a learner {name} returned {len(fast)} fast weights for {len(slow)} layers: return one for '
                         'each')
    for made, weights in zip(fast, slow.values()):
        shape = getattr(made, 'shape', None)
        if shape is not None and (shape[1:] if name == 'm' else shape) != weights.shape:
            wanted = ('n_groups', *weights.shape) if name == 'm' else weights.shape
            raise ValueError(f'a learner {name} returned fast weights of {shape}: return {wanted}')
    return dict(zip(slow, fast))


def check_output(y, x, network):
    """Refuses what is not the output of a network for a batch x, a variable (n, n_out); returns it.

    Raises:
        ValueError: names the network, what it returned, and what it should.
    """
    wanted = len(x), network.n_out
    if not isinstance(y, chainer.Variable) or y.shape != wanted:
        raise ValueError(f'forward of {type(network).__name__} returned {_words(y)} for {len(x)} inputs: return a '
                         f'variable of {wanted}, as its n_out says')
    return y


def check_class(link, kind, name):
    """Refuses a link of another class; returns it.

    Raises:
        TypeError: says what made it, and which class it has to be of.
    """
    if not isinstance(link, kind):
        raise TypeError(f'{name} made a {type(link).__name__}: it has to make links of a class derived from '
                        f'{kind.__name__}')
    return link


def check_shapes(model):
    """Refuses a model of which a parameter has no shape yet; returns its parameters.

    Raises:
        ValueError: names the parameter, and the remedy.
    """
    for name, param in model.namedparams():
        if not param.is_initialized:
            raise ValueError(f'{name} has no shape yet: give its layer the size of its input instead of None')
    return [param for _, param in model.namedparams()]


def check_images(x, shape):
    """Refuses a batch that is not images of a shape, (channels, height, width), in about [0, 1].

    Raises:
        ValueError: names shape, dtype or range, and what they should be.
    """
    array = chainer.as_variable(x).array
    wanted = f'give float32 (n, {", ".join(map(str, shape))}), channels first, in [0, 1]'
    if array.dtype.kind != 'f' or array.shape[1:] != tuple(shape):
        raise ValueError(f'the images are {_words(array)}: {wanted}')
    if isinstance(array, numpy.ndarray) and array.size and abs(array).max() > LARGEST:
        raise ValueError(f'the images reach from {array.min():g} to {array.max():g}: {wanted}; divide by 255')


def check_vectors(x, size):
    """Refuses a batch that is not (n, size).

    Raises:
        ValueError: names shape and dtype, and what the shape should be.
    """
    if x.ndim != 2 or x.shape[1] != size:
        raise ValueError(f'a fully connected layer of {size} inputs got {_words(x)}: give it (n, {size}), n examples; '
                         'of a sequence (n, t, d) take the mean or the last step first, flatten it to (n, t * d), or '
                         'call the layer on each step x[:, i]')


def check_groups(x, weights, layer):
    """Refuses a batch that is not of as many groups as there are weights.

    Raises:
        ValueError: names both numbers, and the remedy.
    """
    n_groups = -(-len(x) // layer.group)
    for weight in weights:
        if getattr(weight, 'ndim', 0) > layer.W.ndim and len(weight) != n_groups:
            raise ValueError(f'a layer of weights {layer.W.shape} got {len(x)} inputs for {len(weight)} groups of '
                             f'{layer.group} examples: keep the examples along the first axis, and call the layer on '
                             'each step x[:, i] of a sequence')


def _is_array(x):
    return isinstance(x, (numpy.ndarray, cuda.ndarray))


def _words(x):
    """What x is, for a message."""
    if hasattr(x, 'dtype') and hasattr(x, 'shape'):
        return f'{"a Variable, " if isinstance(x, chainer.Variable) else ""}{x.dtype} of {tuple(x.shape)}'
    return f'a {type(x).__name__}'
