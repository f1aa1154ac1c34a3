"""Make mini-ImageNet's train.npz, dev.npz and test.npz from its images, or those of other data.

    python preprocess_mini_imagenet.py SOURCE --splits FOLDER

SOURCE is what you have of the images; which of these it is shows by itself:

    ILSVRC2012_img_train.tar        the official tar of one tar a synset, read in place
    a folder of per-synset tars     n01532829.tar, ...
    a folder of per-synset folders  n01532829/n01532829_1234.JPEG, ...
    a folder of mini-ImageNet       n0153282900000005.jpg, ... in images/, in folders of classes or anywhere below it
    a folder of other images        under the names in the split files, in folders of classes or anywhere below it

FOLDER holds the split files: train.csv, val.csv and test.csv with the columns filename,label, no class in two of
them. mini-ImageNet's are those of Ravi & Larochelle (2017). There a filename is 9 characters of synset and 8 digits
of rank: n0153282900000005.jpg is the fifth image of n01532829, counted from 1 in the order of the numbers in
ImageNet's names (n01532829_9.JPEG is before n01532829_10.JPEG). Ranks hold only for complete synsets: if all classes
are mini-ImageNet's, a synset with another number of images than in ImageNet (ILSVRC2012, training) is an error. Other
choices of synsets with ranks of their own are not checked so.

Each npz holds one array a class, key = label, uint8 of shape (n_images, 84, 84, 3) in the order of its csv; it is not
compressed, so that it can be memory-mapped. Images are squeezed into the square, never cropped, and not turned.

Interrupted and started again, the script goes on after the last finished class.
"""
import signal

if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends it silently

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from multiprocessing.pool import ThreadPool

import numpy as np
from tqdm import tqdm

from experiment.console import drop_output
from sources import images
from sources.archives import open_npz
from sources.files import NO_ROOM, alone, open_streams, printable, replacing
from sources.imagenet import locate
from sources.splits import InputError, read_splits, refuse_packed, stop_on

# Settings. Each is also an argument on the command line.
source = 'data/ILSVRC2012_img_train.tar'  # this tar, or a folder as listed above
splits = None  # folder with train.csv, val.csv and test.csv; None: they lie in the source folder
output = 'data/miniImagenet'  # folder for train.npz, dev.npz and test.npz
size = 84  # height and width of the images made
workers = min(os.cpu_count() or 1, 256)  # threads; Pillow decodes and resamples outside Python's lock

JPEG_START, JPEG_END = b'\xff\xd8', b'\xff\xd9'
MAX_SIZE = 4096  # pixels
MAX_WORKERS = 256


def say(text):
    """Prints to whoever listens: a closed pipe is no reason to stop the work."""
    try:
        print(printable(text, keep='\n'), flush=True)
    except OSError:
        drop_output()


# From bytes to arrays -------------------------------------------------------------------------------------------------


def decode(data, size):
    """Decodes an image of any mode to RGB, uint8 (size, size, 3). Raises ValueError if it is broken."""
    return images.scale(images.decode(data), size)


def load_image(place, size):
    """Reads and decodes the image at `place` = (path, offset, n_bytes).

    Returns:
        (size, size, 3) uint8 array, 'whole' or 'truncated', and ''; or None, 'skipped', and why if it is refused.

    Raises:
        MemoryError: there is too little memory, with the path; the image may be sound.
    """
    try:
        data = images.read_bytes(*place)
        try:
            return decode(data, size), 'whole', ''
        except ValueError:
            if not data.startswith(JPEG_START):
                raise
        # With an end mark a cut-off JPEG decodes as far as it goes; Pillow's switch for that acts on all threads.
        return decode(data + JPEG_END, size), 'truncated', ''
    except ValueError as error:
        return None, 'skipped', str(error)
    except MemoryError as error:
        raise MemoryError(f'too little memory for an image in {place[0]}') from error


@contextlib.contextmanager
def threads(workers):
    """A pool of threads, none of which is still at work when the block has ended, well or not."""
    try:
        pool = ThreadPool(workers)
    except (RuntimeError, AttributeError) as error:  # the second is of the pool's own cleaning up after the first
        raise InputError(f'{workers} threads cannot be started: give fewer with --workers') from error
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


def make_class(names, places, size, path, pool, bar):
    """Saves a class as `path`.npy; names of skipped and truncated images, and a checksum, in `path`.json.

    Returns '', or, where no image can be read and nothing is saved, why the first cannot.
    """
    array = np.empty((len(names), size, size, 3), np.uint8)
    n_images, notes = 0, {'skipped': [], 'truncated': [], 'reason': ''}
    for name, (image, state, reason) in zip(names, pool.imap(lambda place: load_image(place, size), places)):
        notes['reason'] = notes['reason'] or reason
        if state != 'whole':
            notes[state].append(name)
        if state != 'skipped':
            array[n_images] = image
            n_images += 1
        bar.update()
    if n_images:
        # The checksum tells of files cut off or lost by whatever happens, so that the disk needs not be waited for.
        with open(path + '.npy', 'wb') as f:
            # As np.save does, which would not say why it cannot write.
            header = np.lib.format.header_data_from_array_1_0(array[:n_images])
            np.lib.format.write_array_header_1_0(f, header)
            f.write(array[:n_images].data)
        with open(path + '.json', 'wb') as f:
            f.write(json.dumps({**notes, 'adler32': zlib.adler32(array[:n_images])}).encode())
    return '' if n_images else notes['reason']


def is_finished(path, n_listed, size):
    """Whether `path`.npy and `path`.json hold a class whole, as `make_class` saved it."""
    if not os.path.exists(path + '.json'):
        return False
    try:
        array = np.load(path + '.npy', allow_pickle=False)
        with open(path + '.json', 'rb') as f:
            notes = json.loads(f.read())
        return (array.shape == (n_listed - len(notes['skipped']), size, size, 3)
                and zlib.adler32(array) == notes['adler32'])
    except Exception:  # a file that was cut or changed breaks in many ways; the class is made anew
        return False


# The npz files --------------------------------------------------------------------------------------------------------


def listing_path(path):
    """Where it stands which images an npz was made of: beside it."""
    return os.path.splitext(path)[0] + '.json'


def listing(classes, size):
    """What tells the listed images of a split, and their size, from others."""
    return hashlib.sha256(repr((size, sorted(classes.items()))).encode()).hexdigest()


def made_of(path):
    """The `listing` and the source that are noted beside an npz; nothing where that is missing or damaged."""
    with contextlib.suppress(ValueError, OSError, RecursionError), open(listing_path(path), encoding='utf-8') as f:
        note = json.load(f)
        if isinstance(note, dict) and {type(note.get('listing')), type(note.get('source'))} == {str}:
            return note['listing'], note['source']
    return None, ''


def count_images(path, classes, size, noted=None):
    """Counts the images in a finished npz by its headers; InputError if it, or the `listing` noted, has others."""
    counts = {}
    with contextlib.suppress(ValueError, OSError), open_npz(path) as archive:
        counts = {label: header.shape[0] for label, header in archive.headers.items()
                  if header.dtype == np.uint8 and header.shape[1:] == (size, size, 3)}
    same = noted in (None, listing(classes, size))
    if not same or counts.keys() != classes.keys() or not all(
            0 < n <= len(classes[label]) for label, n in counts.items()):
        raise InputError(f'{path} is there already, but is not what these split files give at size {size}')
    return sum(counts.values())


def find_finished(splits, output, size):
    """Returns the names of the splits whose npz is there; InputError if one is there with other content."""
    finished, problems = [], []
    for split, classes in splits.items():
        path = os.path.join(output, split + '.npz')
        if not os.path.lexists(path):
            continue
        try:
            noted, source = made_of(path)
            say(f'{path} is there already: {len(classes)} classes, {count_images(path, classes, size, noted)} of '
                f'{sum(map(len, classes.values()))} images listed'
                + (f', from {source}' if source else '; whether of these very names is not known')
                + '. To make it again, remove it.')
            finished.append(split)
        except InputError as error:
            problems.append(str(error))
    stop_on(problems, 'Move it away, or choose another folder with --output.')
    return finished


def write_npz(path, partials):
    """Writes an npz, as np.savez does, from {label: path of its .npy without the ending}, one by one."""
    with replacing(path) as f, zipfile.ZipFile(f, 'w', zipfile.ZIP_STORED) as archive:
        for label, partial in partials.items():
            with open(partial + '.npy', 'rb') as array, \
                    archive.open(label + '.npy', 'w', force_zip64=True) as member:
                shutil.copyfileobj(array, member)


def print_summary(path, partials, n_images):
    """Prints what the npz `path` holds and which images are not as they should be."""
    say(f'{path}: {len(partials)} classes, {n_images} images')
    notes = []
    for partial in partials.values():
        with open(partial + '.json', encoding='utf-8') as f:
            notes.append(json.load(f))
    reason = next((note['reason'] for note in notes if note.get('reason')), '')
    for state, meaning in (('skipped', 'cannot be read' + (f' (the first: {reason})' if reason else '')),
                           ('truncated', 'decoded as far as they go')):
        names = [name for note in notes for name in note[state]]
        if names:
            more = f' and {len(names) - 10} more' if len(names) > 10 else ''
            say(f'  {len(names)} {state}, {meaning}: {", ".join(names[:10])}{more}')


# The output folder ----------------------------------------------------------------------------------------------------


def prepare(output):
    """Makes the folder of results with its folder of finished classes.

    Returns:
        The folder of finished classes.

    Raises:
        InputError: one of them cannot be made or written to.
    """
    folder = os.path.join(output, 'partial')
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f'{output} cannot be a folder for results ({error}): choose another with --output') from error
    return folder


def clear(folder):
    """Removes the folder of finished classes, or says that some are left in it."""
    left = os.listdir(folder)
    if left:
        say(f'{folder} holds {len(left)} files of interrupted runs with other settings: remove it if you need none')
    else:
        os.rmdir(folder)


def check_room(output, n_bytes):
    """Raises InputError if the disk has not `n_bytes` left."""
    free = shutil.disk_usage(output).free
    if free < n_bytes:
        raise InputError(f'{output} has room for {free / 2**30:.1f} GiB, but {n_bytes / 2**30:.1f} GiB are needed: '
                         'free some, or choose a folder on another disk with --output')


def run(source, splits, output, size, workers):
    """Makes those of train.npz, dev.npz and test.npz that are not there yet. Arguments: the settings above.

    Raises:
        InputError: The input, or what lies in `output`, cannot be used: before any image is decoded. Or no
            image of a class can be decoded: after all other classes are saved.
        OSError: A file cannot be read or written. Finished classes stay.
        MemoryError: There is too little memory for the images. Finished classes stay.
    """
    begin = time.perf_counter()
    source = os.path.abspath(source)
    refuse_packed(source, splits, output)
    listed = read_splits(splits or source)
    finished = find_finished(listed, output, size)
    wanted = {split: classes for split, classes in listed.items() if split not in finished}
    if not wanted:
        return
    places = locate(source, wanted, listed, output)
    prepare(output)
    with alone(output):
        finished = find_finished(wanted, output, size)  # by a run that this one has waited for
        wanted = {split: classes for split, classes in wanted.items() if split not in finished}
        folder = prepare(output)
        if wanted:
            make(source, wanted, places, folder, output, size, workers)
        clear(folder)
    say(f'{time.perf_counter() - begin:.0f} seconds')


def make(source, wanted, places, folder, output, size, workers):
    """Makes the npz files of the splits `wanted` of the images in `places`, by way of files in `folder`; see `run`."""
    classes = {label: names for split in wanted.values() for label, names in split.items()}
    # A partial result's name depends on all that the result depends on, so that runs never mix.
    partials, states = {}, {}
    for label, names in classes.items():
        for path in {path for path, _, _ in places[label]} - states.keys():
            state = os.stat(path)
            states[path] = state.st_size, state.st_mtime_ns
        files = [(*place, states[place[0]]) for place in places[label]]
        digest = hashlib.sha256(repr((size, label, names, files)).encode()).hexdigest()
        partials[label] = os.path.join(folder, digest[:12])
    to_do = [label for label, names in classes.items() if not is_finished(partials[label], len(names), size)]
    n_images, n_to_do = (sum(len(classes[label]) for label in labels) for labels in (classes, to_do))
    n_largest = max(sum(map(len, split.values())) for split in wanted.values())
    check_room(output, (n_to_do + n_largest) * size * size * 3)
    with threads(workers) as pool, tqdm(
            total=n_images, initial=n_images - n_to_do, desc='Decoding', unit=' images', disable=None) as bar:
        refused = {label: make_class(classes[label], places[label], size, partials[label], pool, bar)
                   for label in to_do}
    stop_on([f'{label}: none of its images in {source} can be read (the first: {reason})'
             for label, reason in refused.items() if reason],
            'Mend these classes or get them anew, and start again; the others are kept.')

    for split, names in wanted.items():
        path = os.path.join(output, split + '.npz')
        parts = {label: partials[label] for label in names}
        with replacing(listing_path(path), 'w') as f:  # before the npz, beside which an older one shall not lie
            json.dump({'listing': listing(names, size), 'source': source}, f)
        write_npz(path, parts)
        print_summary(path, parts, count_images(path, names, size))
        for partial in parts.values():
            os.remove(partial + '.npy')
            os.remove(partial + '.json')


def main(argv=None):
    """Parses the command line and runs; an error ends in SystemExit with its message."""
    open_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('source', nargs='?', default=source, help=f'default: {source}')
    parser.add_argument('--splits', default=splits, help='folder of the split files; default: SOURCE')
    parser.add_argument('--output', default=output, help=f'folder for the npz files; default: {output}')
    parser.add_argument('--size', type=int, default=size, help=f'side in pixels; default: {size}')
    parser.add_argument('--workers', type=int, default=workers, help=f'threads; default: {workers}')
    args = parser.parse_args(argv)
    for name in 'source', 'splits', 'output', 'size', 'workers':  # a default may have been edited
        value, kind = getattr(args, name), int if name in ('size', 'workers') else str
        if type(value) is not kind and (name, value) != ('splits', None):
            parser.error(f'{name} = {value!r} at the top of the script: give a '
                         + ('whole number' if kind is int else 'path in quotes'))
    if not 1 <= args.size <= MAX_SIZE or not 1 <= args.workers <= MAX_WORKERS:
        parser.error(f'--size and --workers are at least 1 and at most {MAX_SIZE} and {MAX_WORKERS}')
    if '' in (args.source, args.splits, args.output):
        parser.error('SOURCE, --splits and --output are paths, not empty')
    message = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', module='PIL')  # sources.images decides what is wrong with an image
            run(**vars(args))
    except OSError as error:
        message = f'error: {error}'
        if error.errno in NO_ROOM:
            message += f'. Make room in {args.output}; finished classes are kept, the same command goes on'
    except ValueError as error:
        message = f'error: {error}'
    except MemoryError as error:
        message = (f'error: {error or "too little memory"}. Close other programs, or lower --workers or --size. '
                   'Finished classes are kept; the same command goes on with the rest.')
    except KeyboardInterrupt:
        message = 'Interrupted. Finished classes are kept; the same command goes on with the rest.'
    if message:
        raise SystemExit(printable(message, sys.stderr, keep='\n'))


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
