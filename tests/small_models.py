"""Small models and episodes for the tests."""
import numpy as np

import data
from beyond import CentredMetaNet
from metanet import CNN, MetaNet


def episode(way, shot, n_query=2, seed=0, size=28):
    random = np.random.RandomState(seed)
    support_y, query_y = (random.permutation(np.repeat(np.arange(way, dtype=np.int32), n)) for n in (shot, n_query))
    support_x, query_x = (random.rand(len(y), 1, size, size).astype(np.float32) for y in (support_y, query_y))
    return data.Episode(support_x, support_y, query_x, query_y)


def small_model(ways=(5,), seed=0, **settings):
    np.random.seed(seed)
    kind = CentredMetaNet if 'centred' in settings else MetaNet
    return kind(CNN(8), CNN(8, activation=None), ways, **settings)


def fast_weights(model, name, x, y, way):
    """What m or d makes of a support set."""
    network, group = (model.base, 1) if name == 'm' else (model.embed, max(1, len(x) // model.n_steps))
    return model.meta_learner(name, model.meta_information(network, x, y, way, group), network.fast_layers(way))
