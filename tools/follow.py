"""Goes on with a run of Omniglot from its snapshot, as it was or with one thing changed, and tells how it fares.

    python tools/follow.py assets/unfinished/20H
    python tools/follow.py assets/unfinished/20H --alpha 3e-4 --out result/smaller_alpha.csv
    python tools/follow.py --draw FILE.csv ... --out PICTURE.png

This is how a breakdown is taken apart: each change starts from the same weights, sees the same episodes, and either
stops the breakdown or doesn't. Nothing is written to the run's folder.
"""
import argparse
import glob
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402

import data  # noqa: E402
import train_omniglot  # noqa: E402
from beyond import CENTRED, Health  # noqa: E402
from experiment.console import keep_memory  # noqa: E402
from experiment.loop import Clipping, EpisodeUpdater  # noqa: E402
from figures.parts import new_picture, read_table, save_picture, write_table  # noqa: E402
from ops.compat import chainer  # noqa: E402

STEP = 50  # episodes to a row


def started(folder, options):
    """The `EpisodeUpdater` of the run in a folder, as its latest snapshot has it but for the options."""
    with open(os.path.join(folder, 'settings.json'), encoding='utf-8') as file:
        settings = json.load(file)
    settings['centred'] = settings['centred'] if options.centred is None else options.centred
    classes, _, source = data.omniglot(options.input_path, settings['split'])
    if source != settings['data']:
        raise SystemExit(f'{folder} was trained on {settings["data"]}, not on {source}: put the data into '
                         f'{options.input_path}, or name their folder in OMNIGLOT_DIR')
    ways = {settings['n_outputs_train'], *np.atleast_1d(settings['n_outputs_test']).tolist()}
    model = train_omniglot.build(settings, sorted(ways))
    optimizer = chainer.optimizers.Adam().setup(model)
    optimizer.add_hook(Clipping(settings['clip'], settings['clipping'] == 'apart'))
    sampler = data.EpisodeSampler(classes, settings['n_outputs_train'], settings['nb_samples_per_class'],
                                  settings['n_queries'], rotate=settings['rotations'] == 'episode')
    updater = EpisodeUpdater(model, optimizer, sampler, STEP)
    snapshot = max(glob.glob(os.path.join(folder, 'snapshot_*')), key=lambda path: int(path.rsplit('_', 1)[1]))
    with np.load(snapshot) as arrays:
        updater.serialize(chainer.serializers.NpzDeserializer(arrays)['updater'])
    optimizer.alpha = settings['alpha']
    for name in 'alpha', 'beta2', 'weight_decay_rate':
        if getattr(options, name) is not None:
            setattr(optimizer, name, getattr(options, name))
    if options.amsgrad:
        optimizer.hyperparam.amsgrad = True
        for param in model.params():
            param.update_rule.state['vhat'] = param.update_rule.state['v'].copy()
    return updater


def follow(updater, n_episodes):
    """Trains on; yields a row of `STEP` episodes after them, a dict. The keys are those of the last one's support."""
    reporter = chainer.Reporter()
    reporter.add_observer('main', updater.model)
    for _ in range(n_episodes // STEP):
        seen = []
        for i in range(STEP):
            observation = {}
            with reporter.scope(observation):
                if i < STEP - 1:
                    updater.update()
                else:
                    with Health(updater.model) as found:
                        updater.update()
            seen.append([float(chainer.as_array(observation[name])) for name in (
                'main/loss', 'main/accuracy', 'main/largest_logit', 'gradient_norm')])
        loss, accuracy, logit, norm = np.transpose(seen)
        yield {'episodes': updater.iteration, 'loss': round(loss.mean(), 4), 'largest loss': round(loss.max(), 4),
               'accuracy': round(accuracy.mean(), 4), 'largest logit': round(np.median(logit), 1),
               'gradient norm': round(np.median(norm), 4), 'keys alike': round(found['alike/keys'][0], 4)}


def draw(paths, picture):
    """Draws loss, largest logit and how alike keys are over the episodes, a line for each csv, named as its file."""
    figure, axes = new_picture(10, 3.4, 3)
    for path in paths:
        rows = read_table(path)
        episodes = [int(row['episodes']) for row in rows]
        label = os.path.splitext(os.path.basename(path))[0].split('_', 1)[-1].replace('_', ' ')
        for one, name in zip(axes, ('loss', 'largest logit', 'keys alike')):
            one.plot(episodes, [float(row[name]) for row in rows], label=label)
            one.set(title=name, xlabel='training episodes', yscale='linear' if name == 'keys alike' else 'log')
            one.grid(alpha=0.25)
    axes[-1].legend(frameon=False, fontsize=8)
    save_picture(figure, picture)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('paths', nargs='+', help='the folder of a run; with --draw, csv files that --out has written')
    parser.add_argument('--n_episodes', type=int, default=1000)
    parser.add_argument('--alpha', type=float, help="Adam's learning rate; as all of these, as the run has it")
    parser.add_argument('--beta2', type=float, help='how long Adam remembers squares')
    parser.add_argument('--weight_decay_rate', type=float, help="Adam's, decoupled")
    parser.add_argument('--amsgrad', action='store_true')
    parser.add_argument('--centred', choices=('', *CENTRED))
    parser.add_argument('--input_path', default=train_omniglot.input_path, help='folder of Omniglot')
    parser.add_argument('--out', help='csv file of the rows; with --draw, the picture')
    parser.add_argument('--draw', action='store_true')
    args = parser.parse_args(words)
    if args.draw:
        draw(args.paths, args.out)
        return
    keep_memory()
    rows = []
    for row in follow(started(args.paths[0], args), args.n_episodes):
        rows.append(row)
        print(', '.join(f'{name} {value}' for name, value in row.items()), flush=True)
        if args.out:
            write_table(args.out, rows)


if __name__ == '__main__':
    main()
