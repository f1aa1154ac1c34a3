"""MetaNet+, a variation of MetaNet that the paper tries on Omniglot (table 1). MetaNet- is a setting, `task_level`."""
from metanet import MetaNet, TaskLearner, augmented
from ops.checks import check_episode
from ops.lazy import looking_once


class MetaNetPlus(MetaNet):
    """MetaNet+: b has task-level fast weights, too, by a d of its own, beside those that it reads from the memory.

    Its layers compute activation(W x) + activation(W* x) + activation(V* x), with W* of the query example and V* of the
    task.

    Args:
        args, settings: as of `MetaNet`, but for `task_level`.
    """

    def __init__(self, *args, n_units=20, **settings):
        super().__init__(*args, n_units=n_units, task_level=True, **settings)
        with self.init_scope():
            self.d_base_conv = TaskLearner(n_units, defer=True)
            self.d_base_fc = TaskLearner(n_units)

    @looking_once
    def forward(self, support_x, support_y, query_x):
        """Algorithm 1 with one more step; arguments, result and errors as of `MetaNet.forward`."""
        way = check_episode(support_x, support_y, query_x, self)
        b, u = self.base, self.embed
        b_layers, u_layers = b.fast_layers(way), u.fast_layers(way)
        group = max(1, len(support_x) // self.n_steps)

        gradients = self.meta_information(u, support_x, support_y, way, group)
        with augmented(u_layers, self.meta_learner('d', gradients, u_layers)):          # Q* = d(gradients)
            keys, queries = u(support_x), u(query_x)
        if self.base_on_keys:
            support_x, query_x = keys.array, queries

        gradients = self.meta_information(b, support_x, support_y, way, 1)
        memory = self.memory(keys, self.meta_learner('m', gradients, b_layers))         # M = m(gradients)
        gradients = self.meta_information(b, support_x, support_y, way, group)
        task_weights = self.meta_learner('d_base', gradients, b_layers)                 # V* = d'(gradients)
        with augmented(b_layers, list(zip(memory.read(queries), task_weights))):
            return self.scores(b, query_x, way)                                         # b(W, W*, V*, x)
