"""Results: what was trained and tested, the final test of each way, and the file that keeps them."""
import csv
import os
import weakref

from experiment.console import say, warn
from experiment.evaluation import interval, pixel_accuracy, test
from experiment.models import WEIGHTS
from sources.files import alone, replacing

# How results name the settings of a model, {name: words}: sizes that are not the paper's, ...
SIZE_WORDS = {'n_filters': '{} filters', 'n_slow': '{} slow convolutions', 'n_steps': '{} steps'}
# ... and {name: (value of the paper, words)} of other settings that are not.
DEPARTURES = {
    'start_from': ('', 'started from {}'),
    'centred': ('', 'centred: {}'),
    'hidden_scale': (0, 'hidden scale {}'),
    'fast_scale': (0, 'fast scale {}'),
    'inserted_scale': (0.1, 'inserted scale {}'),
    'views': ('', 'views: {}'),
    'initialisation': ('uniform', 'initialisation: {}'),
    'alpha': (1e-3, 'alpha {}'),
    'clip': (10, 'clip {}'),
    'amsgrad': (False, 'AMSGrad'),
    'clipping': ('together', 'gradients clipped {}'),
    'n_decay': (0, 'learning rate falling over {} epochs'),
    'inverse_decay': (0, 'inverse_decay {}'),
    'nb_samples_per_class': (1, '{}-shot'),
    'rotations': ('episode', 'rotations: {}'),
    'distortion': (0, 'distortion {}'),
    'mirror': (False, 'trained on mirrored images'),
    'n_episodes_per_update': (1, '{} episodes an update'),
}

# {sampler: {(episodes, state): accuracy of the nearest neighbour on pixels}}: a run's models are tested on the same.
_pixels = weakref.WeakKeyDictionary()


def is_papers(settings, usual, sizes):
    """Whether a model is the paper's own, by the settings of its training; see `model_name`."""
    return all(settings.get(name, value) == value for name, value in {**usual, **sizes}.items())


def model_name(variant, settings, usual, sizes, *remarks):
    """What a line of results calls a model, and in brackets how it and its training depart from the paper's.

    Args:
        variant: the paper's name for it.
        settings: dict of its training's, with `weights`, 'last' or 'average', and `models.class_names`.
        usual: these class names of the paper's model. Others are named.
        sizes: {setting: value} of the paper's model. Others are named.
        remarks: to come first.
    """
    others = {name: settings[name] for name, value in usual.items() if settings.get(name, value) != value}
    variant = variant.replace('MetaNet', others.pop('class_of_model', 'MetaNet'))
    remarks += tuple(f'{name.replace("class_of_", "")}: {value}' for name, value in others.items())
    remarks += tuple(SIZE_WORDS[name].format(settings[name]) for name, size in sizes.items()
                     if settings.get(name, size) != size)
    if settings.get('average_decay'):
        remarks += WEIGHTS[settings['weights']],
    remarks += tuple(words.format(settings[name]) for name, (value, words) in DEPARTURES.items()
                     if settings.get(name, value) != value)
    return variant + (f' ({", ".join(remarks)})' if remarks else '')


def result_label(model, trained, source, detail='', classes='test'):
    """What lines of results say was trained and on what, and on what it was tested.

    Args:
        model: as `model_name` calls it.
        trained: the settings of its training.
        source: the data it was tested on.
        detail: what is to be said of the training data beside their name.
        classes: which of the data's it was tested on; others than 'test' are named.
    """
    words = [] if source == trained['data'] else [source]
    if classes != 'test':
        words += [classes.replace('train', 'training'), 'classes']
    tested = f', tested on {" ".join(words)}' if words else ''
    return f'{model} trained {trained["n_outputs_train"]}-way, on {trained["data"]}{detail}{tested}'


def tested_on(source, digest, trained):
    """The name of the data of a test; it says so where they have the name of those of the training, but are others.

    Args:
        source, digest: the data's name and its `data.digest_of`.
        trained: the settings of the training; runs of earlier versions have no digest.
    """
    same = source != trained['data'] or trained['data_digest'] in ('', digest)
    return source if same else f'{source} with other images'


def final_test(model, samplers, n_episodes, label, paper, keep=None):
    """Tests each way on many episodes, and prints its line.

    Args:
        model: a link, as for `evaluation.test`.
        samplers: {way: `data.EpisodeSampler`}; they are left as they were, for another model.
        n_episodes: episodes of each way.
        label: what was tested on what, for every line.
        paper: {way: the paper's accuracy in %}, for the ways that it has.
        keep: function that takes each row, a dict, before it is printed: `write_results` with the folder, for one.
    """
    for way, sampler in samplers.items():
        start = sampler.get_state()
        result = interval(100 * test(model, sampler, n_episodes, f'{way}-way test')[:, 1])
        sampler.set_state(start)
        report_result(label, sampler, n_episodes, result, paper.get(way), keep)
        sampler.set_state(start)


def report_result(label, sampler, n_episodes, result, paper, keep=None):
    """Prints one way's result, after a row of it is kept.

    Args:
        label: what was tested on what.
        sampler: the `data.EpisodeSampler` it was tested on, as it was before.
        n_episodes: test episodes.
        result: mean accuracy and half width of its interval, in %.
        paper: the paper's accuracy in %, or None.
        keep: as of `final_test`.
    """
    known = _pixels.setdefault(sampler, {})
    key = n_episodes, sampler.get_state().tobytes()
    if key not in known:
        known[key] = interval(100 * pixel_accuracy(sampler, n_episodes))
    pixels = known[key]
    if keep:
        keep({'model': label, 'way': sampler.way, 'shot': sampler.shot, 'episodes': n_episodes,
              'accuracy': round(result[0], 2), 'interval': round(result[1], 2),
              'pixels': round(pixels[0], 2), 'pixels_interval': round(pixels[1], 2), 'paper': paper})
    beside = 'has no such number' if paper is None else f'{paper} %'
    say(f'{label}, {sampler.way}-way {sampler.shot}-shot: {result[0]:.2f} +- {result[1]:.2f} % on {n_episodes} test '
        f'episodes; nearest neighbour on pixels {pixels[0]:.2f} +- {pixels[1]:.2f} %; the paper {beside}')


def write_results(out, n_trained, row):
    """Adds a row of results to `final_test.csv` in the folder `out`; those of other tests stay.

    Where that file cannot be read or written, a warning says so, and the row goes to another one, `final_test_2.csv`.

    Args:
        out: the folder.
        n_trained: training episodes of the model.
        row: dict, as `report_result` keeps it.
    """
    row = {'trained': str(n_trained), **{name: '' if value is None else str(value) for name, value in row.items()}}
    for name in 'final_test.csv', 'final_test_2.csv', 'final_test_3.csv':
        path = os.path.join(out, name)
        try:
            return _add_row(path, row)
        except (OSError, ValueError, csv.Error) as error:
            warn(f'the result cannot be added to {path} ({error})')
    warn(f'the result is in no file, but here: {", ".join(f"{name} {value}" for name, value in row.items())}')


def _add_row(path, row):
    with alone(os.path.dirname(path) or '.', name='.results'):  # another test may be adding one, too
        _rewrite(path, row)


def _rewrite(path, row):
    rows = []
    if os.path.lexists(path):
        if not os.path.isfile(path):
            raise ValueError('it is no file')
        with open(path, newline='', encoding='utf-8') as file:
            table = csv.DictReader(file)
            names = table.fieldnames or row  # an empty file is a new one
            rows = [other for other in table if other != row]
        if 'trained' not in names or any(None in other or None in other.values() for other in rows):
            raise ValueError('it is no table of results')
    rows.append(row)
    with replacing(path, 'w', newline='', errors='backslashreplace') as file:
        writer = csv.DictWriter(file, list(dict.fromkeys([*row, *(name for other in rows for name in other)])))
        writer.writeheader()
        writer.writerows(rows)
