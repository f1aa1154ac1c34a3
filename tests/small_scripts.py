"""Short calls of the training scripts, in this process, on few small images."""
import importlib
import os

from small_runs import ending

import data

STROKES = list(data.synthetic_strokes(28, seed=2).items())
TEXTURES = list(data.synthetic_textures(21, 10, size=32, seed=2).items())
SMALL = {
    'train_omniglot': ['--n_epoch=1', '--n_episodes=1', '--n_test_episodes=1', '--n_final_episodes=3',
                       '--n_queries=2', '--n_queries_test=2', '--n_filters=4', '--out=here'],
    'train_mini_imagenet': ['--n_epoch=1', '--n_episodes=1', '--n_dev_episodes=2', '--n_test_episodes=2',
                            '--n_queries=3', '--n_queries_test=2', '--n_filters=4', '--out=here'],
}


def save_strokes(folder):
    """Writes invented characters to a folder, for `input_path`."""
    for part, classes in ('train', STROKES[:18]), ('test', STROKES[18:]):
        data.save_classes(os.path.join(str(folder), f'{part}.npz'), dict(classes))


def save_parts(folder, names=('train', 'dev', 'test')):
    """Seven classes in each of the three files."""
    os.makedirs(folder)
    for i, part in enumerate(names):
        data.save_classes(os.path.join(folder, part + '.npz'), dict(TEXTURES[7 * i:7 * i + 7]))


def call(script, *words):
    """Runs `script.main` on the words."""
    importlib.import_module(script).main(words)


def train(script, *words):
    """As `call`, for a short training into the folder `here`."""
    call(script, *SMALL[script], *words)


def refusal(script, *words):
    """What `call` ends the program with."""
    return ending(call, script, *words)
