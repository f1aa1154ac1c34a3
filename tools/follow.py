"""Goes on with a run of Omniglot from its snapshot, as it was or with one thing changed, and tells how it fares.

    python tools/follow.py assets/unfinished/20H
    python tools/follow.py assets/unfinished/20H --alpha 3e-4 --out result/smaller_alpha.csv
    python tools/follow.py --draw FILE.csv ... --out PICTURE.png

This is how a breakdown is taken apart: each change starts from the same weights, sees the same episodes, and either
stops the breakdown or doesn't. Nothing is written to the run's folder.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from experiment import console

if __name__ == '__main__':
    console.start()  # the imports below take seconds, in which Ctrl-C shall be no traceback either

import numpy as np

import data
import train_omniglot
from beyond import Health
from experiment.checkpoints import run_settings, snapshots
from experiment.console import plain_errors
from experiment.loop import Clipping, EpisodeUpdater
from experiment.pictures import check_names, new_picture, read_table, save_picture, write_table
from experiment.results import tested_on
from experiment.settings import as_tuple, check
from ops.compat import chainer
from sources.archives import read_npz

STEP = 50  # episodes to a row
BUILT = 'centred', 'hidden_scale', 'fast_scale'  # settings of the model that may be changed
COLUMNS = {'loss': 'main/loss', 'accuracy': 'main/accuracy', 'largest logit': 'main/largest_logit',
           'gradient norm': 'gradient_norm'}
DRAWN = 'loss', 'largest logit', 'attention peak'


def started(folder, options):
    """The `EpisodeUpdater` of the run in a folder, as its latest snapshot has it but for the options.

    Raises:
        ValueError: the folder has no snapshot of such a run, or the data are others.
        OSError: something cannot be read.
    """
    changed = {name: value for name in BUILT if (value := getattr(options, name)) is not None}
    settings = _settings(folder, changed, options.alpha)
    model = train_omniglot.build({**settings, **changed},
                                 (settings['n_outputs_train'], *as_tuple(settings['n_outputs_test'])))
    optimizer = chainer.optimizers.Adam(settings['alpha'], amsgrad=settings['amsgrad']).setup(model)
    optimizer.add_hook(Clipping(settings['clip'], settings['clipping'] == 'apart'))
    updater = EpisodeUpdater(model, optimizer, _sampler(folder, settings, options.input_path), STEP,
                             settings['n_episodes_per_update'])
    snapshot = snapshots(folder)[0]
    try:
        updater.serialize(chainer.serializers.NpzDeserializer(read_npz(snapshot, 'take an earlier one'))['updater'])
    except (KeyError, ValueError) as error:
        raise ValueError(f'{snapshot} is of another network, or damaged ({error}): give another folder') from error
    for name in 'alpha', 'beta2', 'weight_decay_rate':
        if getattr(options, name) is not None:
            setattr(optimizer, name, getattr(options, name))
    if options.amsgrad:
        optimizer.hyperparam.amsgrad = True
        for param in model.params():
            param.update_rule.state.setdefault('vhat', param.update_rule.state['v'].copy())
    return updater


def _settings(folder, changed, alpha):
    """The settings of the run in a folder; refuses a run that cannot be followed with what is `changed`."""
    settings = run_settings(folder, train_omniglot.EARLIER)
    if not {'split', 'variant'} <= set(settings) or not snapshots(folder):
        raise ValueError(f'{folder} has no snapshot of a run of train_omniglot.py: give the folder of one that has')
    for some in settings, {**settings, **changed}:
        check(some, train_omniglot.CHECKS)
    if (settings['n_decay'] or settings['inverse_decay']) and alpha is None:
        raise ValueError(f'the learning rate of the run in {folder} falls, which is not done here: give the one to go '
                         'on with, --alpha')
    if STEP % settings['n_episodes_per_update']:
        raise ValueError(f'the run in {folder} takes {settings["n_episodes_per_update"]} episodes an update, of which '
                         f'no number makes the {STEP} of a row: give another run')
    return settings


def _sampler(folder, settings, input_path):
    """The sampler of a run's episodes; refuses other data than the run's."""
    *parts, source = data.omniglot(input_path, settings['split'])
    source = tested_on(source, data.digest_of(source, *parts), settings)
    if source != settings['data']:
        raise ValueError(f'{folder} was trained on {settings["data"]}, not on {source}: put the data into '
                         f'{input_path}, or name their folder in OMNIGLOT_DIR')
    classes = data.turned(parts[0]) if settings['rotations'] == 'classes' else parts[0]
    return data.EpisodeSampler(classes, settings['n_outputs_train'], settings['nb_samples_per_class'],
                               settings['n_queries'], rotate=settings['rotations'] == 'episode',
                               distortion=settings['distortion'])


def follow(updater, n_episodes):
    """Trains on; yields a row after every `STEP` episodes, a dict. Attention and spread are of the last update."""
    reporter = chainer.Reporter()
    reporter.add_observer('main', updater.model)
    n_updates = STEP // updater.n_episodes_per_update
    for _ in range(n_episodes // STEP):
        seen = []
        for i in range(n_updates):
            observation = {}
            with reporter.scope(observation):
                if i < n_updates - 1:
                    updater.update()
                else:
                    with Health(updater.model) as found:
                        updater.update()
            seen.append([float(chainer.as_array(observation[name])) for name in COLUMNS.values()])
        loss, accuracy, logit, norm = np.transpose(seen)
        yield {'episodes': updater.iteration, 'loss': round(loss.mean(), 4), 'largest loss': round(loss.max(), 4),
               'accuracy': round(accuracy.mean(), 4), 'largest logit': round(np.median(logit), 1),
               'gradient norm': round(np.median(norm), 4),
               'attention peak': round(np.mean(found['attention/peak']), 4),
               'spread of scores': round(np.mean(found['scores/spread']), 2)}


def check_out(out, folder):
    """Refuses a csv that could not be written, or would lie among the run's own files, before anything is trained.

    Raises:
        ValueError, OSError: says so, and what to give instead.
    """
    if not out.lower().endswith('.csv'):
        raise ValueError(f'{out} is no name of a csv file: give one that ends with .csv (--out)')
    if os.path.realpath(os.path.dirname(out)) == os.path.realpath(folder):
        raise ValueError(f'{out} lies in the folder of the run, which stays as it is: give another place (--out)')
    check_names(os.path.dirname(out) or '.', os.path.basename(out))


def draw(paths, picture):
    """Draws loss, largest logit and attention over the episodes, a line for each csv, named as its file."""
    if not picture.lower().endswith('.png'):
        raise ValueError(f'{picture} is no name of a picture: give one that ends with .png (--out)')
    figure, axes = new_picture(11, 3.6, len(DRAWN))
    for path in paths:
        rows = read_table(path)
        if not rows or not {'episodes', *DRAWN} <= rows[0].keys():
            raise ValueError(f'{path} is no csv that --out has written: give one that is')
        episodes = [int(row['episodes']) for row in rows]
        label = os.path.splitext(os.path.basename(path))[0].replace('_', ' ')
        for one, name in zip(axes, DRAWN):
            one.plot(episodes, [float(row[name]) for row in rows], label=label)
            one.set(title=name, xlabel='training episodes', yscale='linear' if name == 'attention peak' else 'log')
            one.grid(alpha=0.25)
    axes[-1].legend(frameon=False, fontsize=8)
    save_picture(figure, picture)


def main(words=None):
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('paths', nargs='+', help='the folder of a run; with --draw, csv files that --out has written')
    parser.add_argument('--n_episodes', type=int, default=1000, help=f'a multiple of {STEP} (default: 1000)')
    parser.add_argument('--alpha', type=float, help="Adam's learning rate; as all of these, as the run has it")
    parser.add_argument('--beta2', type=float, help='how long Adam remembers squares')
    parser.add_argument('--weight_decay_rate', type=float, help="Adam's, decoupled")
    parser.add_argument('--amsgrad', action='store_true', help='Adam that forgets no large gradient')
    parser.add_argument('--centred', type=train_omniglot.CHECKS['centred'].read, metavar='WORDS',
                        help="some of conv, fc, keys, as in 'fc, keys'")
    parser.add_argument('--hidden_scale', type=train_omniglot.CHECKS['hidden_scale'].read, metavar='NUMBER',
                        help="root mean square that b's last hidden layer is brought to")
    parser.add_argument('--fast_scale', type=train_omniglot.CHECKS['fast_scale'].read, metavar='NUMBER',
                        help="root mean square that the fast weights of b's softmax layer are brought to")
    parser.add_argument('--input_path', default=train_omniglot.input_path, help='folder of Omniglot')
    parser.add_argument('--out', help='csv file of the rows; with --draw, the picture')
    parser.add_argument('--draw', action='store_true', help='draw csv files in place of training')
    args = parser.parse_args(words)
    if args.draw:
        if not args.out:
            parser.error('--draw needs a picture to draw, --out')
        with plain_errors():
            draw(args.paths, args.out)
        return
    if len(args.paths) > 1 or args.n_episodes < STEP or args.n_episodes % STEP:
        parser.error(f'give one folder, and for --n_episodes a multiple of {STEP}')
    if args.beta2 is not None and not 0 <= args.beta2 < 1 or args.alpha is not None and not args.alpha > 0:
        parser.error('--alpha has to be above 0, --beta2 at least 0 and below 1')
    with plain_errors():
        if args.out:
            check_out(args.out, args.paths[0])
        updater = started(args.paths[0], args)
    rows = []
    for row in follow(updater, args.n_episodes):
        rows.append(row)
        print(', '.join(f'{name} {value}' for name, value in row.items()), flush=True)
        if args.out:
            with plain_errors(OSError):
                write_table(args.out, rows)


if __name__ == '__main__':
    console.run(main)
