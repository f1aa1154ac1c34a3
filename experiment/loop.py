"""The training loop, around Chainer's Trainer: learning from episodes, and stopping at Ctrl-C."""
import sys
import time

import numpy

from experiment.checkpoints import resume
from experiment.console import Stop, fail, is_terminal, plain_errors, say
from ops.blocks import one_blas_thread
from ops.compat import chainer, extensions, training
from sources.files import alone


class EpisodeUpdater(training.Updater):
    """Learns from the sampler's episodes; reports `main/loss`, `main/accuracy` and `seconds`, all of an episode.

    Its `iteration` counts episodes. Ends the program (SystemExit) when an update makes a parameter infinite or nan.

    Args:
        model: a link whose `loss(episode)` reports `loss` and `accuracy`.
        optimizer: set up with the model.
        sampler: `data.EpisodeSampler` of training episodes.
        epoch_size: training episodes to an epoch.
        n_episodes_per_update: episodes whose mean gradient makes an update; `epoch_size` is a multiple of it.

    Each episode sets the seed of `np.random` anew, from one drawn of it when the updater is made.
    """

    def __init__(self, model, optimizer, sampler, epoch_size, n_episodes_per_update=1):
        self.model = model
        self.optimizer = optimizer
        self.sampler = sampler
        self.epoch_size = epoch_size
        self.n_episodes_per_update = n_episodes_per_update
        self.iteration = 0
        self.seed = numpy.random.randint(2 ** 31)  # of what a model draws by itself, for dropout

    @property
    def epoch(self):
        return self.iteration // self.epoch_size

    @property
    def epoch_detail(self):
        return self.iteration / self.epoch_size

    @property
    def previous_epoch_detail(self):
        return (self.iteration - self.n_episodes_per_update) / self.epoch_size

    @property
    def is_new_epoch(self):
        return self.iteration % self.epoch_size == 0

    def get_all_optimizers(self):
        return {'main': self.optimizer}

    def connect_trainer(self, trainer):
        pass

    def finalize(self):
        pass

    def update(self):
        start = time.perf_counter()
        summary = chainer.DictSummary()
        self.model.cleargrads()
        for i in range(self.n_episodes_per_update):
            observation = {}
            numpy.random.seed([self.seed, self.iteration + i])  # so that a run that goes on draws the same
            with one_blas_thread(), chainer.report_scope(observation):
                loss = self.model.loss(self.sampler.sample())
                (loss / self.n_episodes_per_update).backward()
            summary.add(observation)
        self.optimizer.update()
        self.iteration += self.n_episodes_per_update
        xp = self.model.xp
        if not xp.isfinite(xp.concatenate([param.array.ravel() for param in self.model.params()])).all():
            fail(f'the parameters are no longer finite after episode {self.iteration}; what was saved before is as it '
                 'was. Give a run with a smaller alpha or clip, or another seed, another folder (out)')
        chainer.report(summary.compute_mean())
        chainer.report({'seconds': (time.perf_counter() - start) / self.n_episodes_per_update})

    def serialize(self, serializer):
        self.iteration = serializer('iteration', self.iteration)
        self.optimizer.serialize(serializer['optimizer'])
        self.model.serialize(serializer['model'])
        self.sampler.set_state(serializer('sampler', self.sampler.get_state()))
        n_updates = self.optimizer.t
        if isinstance(serializer, chainer.Deserializer) and self.iteration != n_updates * self.n_episodes_per_update:
            raise ValueError(f'{n_updates} updates are not those of {self.iteration} episodes')


class Clipping:
    """An optimizer's hook that bounds the gradient's norm; reports `gradient_norm`, of all parameters, before.

    Args:
        bound: above 0.
        apart: an extension: whether each parameter's gradient is bounded on its own, not that of all together.
    """

    name = 'Clipping'
    timing = 'pre'

    def __init__(self, bound, apart=False):
        self.bound = bound
        self.apart = apart

    def __call__(self, optimizer):
        xp = optimizer.target.xp
        params = list(optimizer.target.params(False))
        gradients = xp.concatenate([param.grad.ravel() for param in params])  # a GPU wants few and large calls
        ends = numpy.cumsum([param.size for param in params])[:-1].tolist()
        parts = xp.split(gradients, ends)
        norm = xp.sqrt(gradients.dot(gradients))
        chainer.report({'gradient_norm': norm})
        for part in parts if self.apart else [gradients]:
            if self.apart:
                norm = xp.sqrt(part.dot(part))
            part *= self.bound / xp.maximum(norm, self.bound)
        for param, part in zip(params, parts):
            param.grad = part.reshape(param.shape)


def decay(updater, n_epoch, n_decay, inverse_decay=0):
    """The extension by which Adam's learning rate falls.

    Args:
        updater: `EpisodeUpdater`.
        n_epoch, n_decay: the rate falls linearly to 0 over the last `n_decay` of `n_epoch` epochs.
        inverse_decay: if not 0, the rate is divided by the square root of 1 + episodes / `inverse_decay` instead.
    """
    optimizer = updater.optimizer
    if inverse_decay:
        gamma = updater.n_episodes_per_update / inverse_decay
        return extensions.InverseShift('alpha', gamma, .5, init=optimizer.alpha, optimizer=optimizer)
    n_updates = updater.epoch_size // updater.n_episodes_per_update  # in an epoch
    between = max(0, n_epoch - n_decay) * n_updates, n_epoch * n_updates
    return extensions.LinearShift('alpha', (optimizer.alpha, 0.0), between, optimizer)


class Epochs(Stop):
    """A stop trigger: after `n_epoch` epochs, or after the update or the tests during which Ctrl-C was pressed."""

    def __init__(self, n_epoch):
        super().__init__('Stopping after the episodes at hand. Press Ctrl-C again to stop at once, and lose what has '
                         'been learned since the last epoch.')
        self.n_epoch = n_epoch

    def __call__(self, trainer):
        return self.pressed or trainer.updater.epoch >= self.n_epoch

    def get_training_length(self):
        return self.n_epoch, 'epoch'


def train(trainer):
    """Trains to the last epoch, going on from the latest snapshot in the trainer's folder if it has one.

    A continued run is the same, bit for bit, as one that never stopped. Ctrl-C leaves a snapshot and ends the program.

    Args:
        trainer: `chainer.training.Trainer` of an `EpisodeUpdater`, with the stop trigger `Epochs` and the extension
            `checkpoints.Snapshot`.

    Raises:
        SystemExit: the snapshots are damaged or of another network, the run has more epochs already, Ctrl-C was
            pressed, parameters are no longer finite, a file cannot be written, or another process trains in the folder.
    """
    updater, out = trainer.updater, trainer.out
    if is_terminal(sys.stdout):
        trainer.extend(extensions.ProgressBar(update_interval=1), trigger=lambda trainer: True)
    with plain_errors(OSError), alone(out), trainer.stop_trigger as stop:
        if resume(trainer):
            say(f'going on after {updater.iteration} episodes, from the snapshot in {out}')
        if updater.epoch_detail > stop.n_epoch:
            fail(f'the folder {out} holds a run that has trained for {updater.epoch_detail:g} epochs, more than '
                 f'n_epoch = {stop.n_epoch}: raise that, or give this run another folder (out)')
        trainer.run(show_loop_exception_msg=False)
        if 0 < updater.epoch_detail < stop.n_epoch:
            trainer.get_extension('snapshot')(trainer)
    if stop.pressed:
        sys.exit(f'Stopped after {updater.iteration} episodes; the same command goes on from there.')
