"""Make mini-ImageNet's train.npz, dev.npz and test.npz from ImageNet.

    python preprocess_mini_imagenet.py SOURCE --splits FOLDER

SOURCE is what you have of ImageNet's training images; which of these it is shows by itself:

    ILSVRC2012_img_train.tar        the official tar of one tar a synset, read in place
    a folder of per-synset tars     n01532829.tar, ...
    a folder of per-synset folders  n01532829/n01532829_1234.JPEG, ...
    the shared mini-ImageNet        images/n0153282900000005.jpg, ...

FOLDER holds the split files of Ravi & Larochelle (2017): train.csv, val.csv and test.csv with the columns
filename,label. A filename is 9 characters of synset and 8 digits of rank: n0153282900000005.jpg is the fifth
image of n01532829, counted from 1 in the order of the numbers in ImageNet's names (n01532829_9.JPEG is before
n01532829_10.JPEG). Ranks hold only for complete synsets, as ImageNet ships them.

Each npz holds one array a class, key = synset, uint8 of shape (n_images, 84, 84, 3) in the order of its csv;
it is not compressed, so that it can be memory-mapped. Images are squeezed into the square, never cropped.

Interrupted and started again, the script goes on after the last finished class.
"""
import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import time
import zipfile
from multiprocessing.pool import ThreadPool

import numpy as np
from PIL import Image
from tqdm import tqdm

# Settings. Each is also an argument on the command line.
source = 'data/ILSVRC2012_img_train.tar'  # this tar, or a folder as listed above
splits = None  # folder with train.csv, val.csv and test.csv; None: they lie in the source folder
output = 'data/miniImagenet'  # folder for train.npz, dev.npz and test.npz
size = 84  # height and width of the images made
workers = os.cpu_count() or 1  # threads; Pillow decodes and resamples outside Python's lock

CSV_FILES = {'train': 'train.csv', 'dev': 'val.csv', 'test': 'test.csv'}
SYNSET_TABLE = os.path.join(os.path.dirname(__file__), 'data', 'mini_imagenet_synsets.csv')
JPEG_END = b'\xff\xd9'


class InputError(Exception):
    """The input cannot be used; the message says what is wrong and what to do about it."""


def stop_on(problems, remedy):
    """Raise one InputError that lists `problems`, if any (100 in full, the rest counted), and the remedy."""
    if problems:
        more = [f'... and {len(problems) - 100} more'] if len(problems) > 100 else []
        raise InputError('\n  '.join([f'{len(problems)} problem(s)'] + problems[:100] + more) + '\n' + remedy)


@contextlib.contextmanager
def atomic(path):
    """Open a binary file that appears as `path` only once the block has ended well."""
    try:
        with open(path + '.tmp', 'wb') as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(path + '.tmp', path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(path + '.tmp')
        raise


# ---- Which images: the split files ----

def find_splits(folder):
    """Return {split: path of its csv}, or raise InputError that says where to get missing ones."""
    paths = {split: os.path.join(folder, name) for split, name in CSV_FILES.items()}
    missing = [CSV_FILES[split] for split, path in paths.items() if not os.path.isfile(path)]
    if missing:
        with open(SYNSET_TABLE, newline='') as f:
            table = list(csv.DictReader(f))
        needed = [f'\n  {split}: ' + ' '.join(row['synset'] for row in table if row['split'] == split)
                  for split in paths]
        raise InputError(
            f'{", ".join(missing)} not found in {folder}. Get the split files from their authors, '
            'github.com/twitter-research/meta-learning-lstm (formerly twitter/meta-learning-lstm), folder '
            'data/miniImagenet, and name their folder with --splits. They take images from these synsets:'
            + ''.join(needed))
    return paths


def read_splits(folder):
    """Read the split files into {'train' or 'dev' or 'test': {synset: [filename, ...]}}, in their order.

    Raises:
        InputError: A file is missing or has other columns; a filename is malformed, listed twice or of
            another class than its label; a class is in two splits.

    """
    result, problems, first_seen, csv_of = {}, [], {}, {}
    for split, path in find_splits(folder).items():
        classes = result[split] = {}
        with open(path, newline='', encoding='utf-8-sig', errors='replace') as f:
            rows = csv.reader(f)
            header = ','.join(next(rows, []))
            if header != 'filename,label':
                problems.append(f'{path}: the columns are {header[:60]!r}, not filename,label')
                continue
            for row in filter(None, rows):
                where, text = f'{path}, row {rows.line_num}', ','.join(row)
                name, label = text[:21], text[22:]
                if not re.fullmatch(r'(n[0-9]{8})(?!0{8})[0-9]{8}\.jpg,\1', text):
                    problems.append(f'{where}: {text[:60]!r} is not synset, 8 digits of rank (from 1), .jpg, '
                                    'and the same synset as label')
                elif name in first_seen:
                    problems.append(f'{where}: {name} is listed already in {first_seen[name]}')
                else:
                    first_seen[name] = where
                    if csv_of.setdefault(label, path) != path and label not in classes:
                        problems.append(f'{where}: class {label} is also in {csv_of[label]}')
                    classes.setdefault(label, []).append(name)
        if not classes:
            problems.append(f'{path}: no images are listed')
    stop_on(problems, 'Split files have the columns filename,label and rows like n0153282900000005.jpg,'
                      'n01532829, none twice, no class in two files. Take them as their authors give them.')
    return result


# ---- Where they are: path, offset and length of every image's bytes ----

def tar_files(path, start=0, n_bytes=None):
    """List the files of an uncompressed tar, or of one inside the file `path`: `n_bytes` from `start` on.

    Returns:
        dict: {base name: (path, offset, n_bytes)}.

    Raises:
        InputError: The tar is damaged, cut off or compressed.

    """
    stop = os.path.getsize(path) if n_bytes is None else start + n_bytes
    try:
        with open(path, 'rb') as f:
            f.seek(start)
            with tarfile.open(fileobj=f, mode='r:') as tar:
                members = tar.getmembers()
            # tarfile takes a broken header for the end of the tar, but the true end is a block of zeros.
            end = members[-1].offset_data + -(-members[-1].size // 512) * 512 if members else start
            f.seek(end)
            if end + 512 > stop or f.read(512) != bytes(512):
                raise tarfile.ReadError(f'no end mark after {len(members)} members')
    except (tarfile.TarError, OSError) as error:
        raise InputError(f'{path} is no complete, uncompressed tar from byte {start} on: {error}') from None
    return {os.path.basename(m.name): (path, m.offset_data, m.size) for m in members if m.isfile()}


def synset_files(source, tars, synset):
    """Return {name: (path, offset, n_bytes)} for a synset's files, or None if `source` lacks the synset.

    `tars` are the places of the tars in one big tar. A length of -1 means the whole file.
    """
    tar, folder = os.path.join(source, synset + '.tar'), os.path.join(source, synset)
    if synset + '.tar' in tars:
        return tar_files(*tars[synset + '.tar'])
    if os.path.isfile(tar):
        return tar_files(tar)
    if os.path.isdir(folder):
        return {name: (os.path.join(folder, name), 0, -1) for name in os.listdir(folder)}
    return None


def locate(source, classes):
    """Find the bytes of all listed images without reading them.

    Args:
        source (str): One of the four kinds described at the top.
        classes (dict): {synset: [filename, ...]}.

    Returns:
        dict: {synset: [(path, offset, n_bytes), ...]}, in the order of `classes`.

    Raises:
        InputError: `source` is none of the four; it lacks synsets or images; a tar is damaged.

    """
    if not os.path.isfile(source) and not os.path.isdir(source):
        raise InputError(f'{source} is neither a file nor a folder. Name ILSVRC2012_img_train.tar, a folder '
                         'of tars (n01532829.tar) or of folders (n01532829), or one with images/*.jpg.')
    images = os.path.join(source, 'images')
    if os.path.isdir(images):
        present = set(os.listdir(images))
        stop_on([f'{name} is not in {images}' for names in classes.values() for name in names
                 if name not in present], 'Put there all images that the split files list.')
        return {synset: [(os.path.join(images, name), 0, -1) for name in names]
                for synset, names in classes.items()}

    tars = tar_files(source) if os.path.isfile(source) else {}
    places, missing, problems = {}, [], []
    for synset, names in tqdm(classes.items(), desc='Listing', unit=' synsets'):
        try:
            files = synset_files(source, tars, synset)
        except InputError as error:
            problems.append(f'{synset}: {error}')
            continue
        if files is None:
            missing.append(synset)
            continue
        matches = [re.fullmatch(synset + r'_([0-9]+)\.jpe?g', name, re.IGNORECASE) for name in files]
        numbered = sorted((int(match[1]), files[match[0]]) for match in matches if match)
        ranks = [int(name[9:17]) for name in names]
        if len({number for number, _ in numbered}) < len(numbered):
            problems.append(f'{synset}: two of its images in {source} have the same number')
        elif max(ranks) > len(numbered):
            problems.append(f'{synset}: the split files list images up to rank {max(ranks)}, but {source} '
                            f'has only {len(numbered)}')
        else:
            places[synset] = [numbered[rank - 1][1] for rank in ranks]
    if missing:
        problems.insert(0, f'{source} lacks {len(missing)} of {len(classes)} synsets: ' + ' '.join(missing))
    stop_on(problems, 'Get these synsets anew, complete, from ILSVRC2012_img_train.tar.')
    return places


# ---- From bytes to arrays ----

def decode(data, size):
    """Decode an image of any mode; return it as RGB, (size, size, 3) uint8.

    BOX averages over the area under each new pixel. Enlarging, it would only repeat pixels: an image with a
    side shorter than `size` gets BICUBIC instead.
    """
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert('RGB')
    method = Image.Resampling.BOX if min(rgb.size) >= size else Image.Resampling.BICUBIC
    return np.asarray(rgb.resize((size, size), method))


def load_image(place, size):
    """Read and decode the image at `place` = (path, offset, n_bytes).

    Returns:
        tuple: (size, size, 3) uint8 array and 'whole' or 'truncated', or None and 'skipped' if it is broken.

    """
    path, offset, n_bytes = place
    with open(path, 'rb') as f:
        f.seek(offset)
        data = f.read(n_bytes)
    # With an end mark a cut-off JPEG decodes as far as it goes; Pillow's switch for that acts on all threads.
    for data, state in ((data, 'whole'), (data + JPEG_END, 'truncated')):
        try:
            return decode(data, size), state
        except Exception:  # Pillow's errors on broken bytes have no base class of their own
            pass
    return None, 'skipped'


@contextlib.contextmanager
def threads(workers):
    """A pool of threads, none of which is still at work when the block has ended, well or not."""
    pool = ThreadPool(workers)
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


def make_class(names, places, size, path, pool, bar):
    """Save a class as `path`.npy, with the names of skipped and truncated images in `path`.json.

    Returns the number of its images; if that is 0, nothing is saved.
    """
    images = np.empty((len(names), size, size, 3), np.uint8)
    n_images, notes = 0, {'skipped': [], 'truncated': []}
    for name, (image, state) in zip(names, pool.imap(lambda place: load_image(place, size), places)):
        if state != 'whole':
            notes[state].append(name)
        if state != 'skipped':
            images[n_images] = image
            n_images += 1
        bar.update()
    if n_images:
        with atomic(path + '.json') as f:
            f.write(json.dumps(notes).encode())
        with atomic(path + '.npy') as f:  # last: its presence says that the class is finished
            np.save(f, images[:n_images])
    return n_images


# ---- The npz files ----

def count_images(path, classes, size):
    """Count the images in a finished npz by its headers; InputError if it is not made of `classes`."""
    shapes = {}
    with contextlib.suppress(zipfile.BadZipFile, ValueError), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as f:
                np.lib.format.read_magic(f)
                shape, _, dtype = np.lib.format.read_array_header_1_0(f)
            shapes[member[:-len('.npy')]] = shape if dtype == np.uint8 else ()
    if shapes.keys() != classes.keys() or not all(
            shape[1:] == (size, size, 3) and 0 < shape[0] <= len(classes[synset])
            for synset, shape in shapes.items()):
        raise InputError(f'{path} is there already, but is not what these split files give at size {size}')
    return sum(shape[0] for shape in shapes.values())


def find_finished(splits, output, size):
    """Return the names of the splits whose npz is there; InputError if one is there with other content."""
    finished, problems = [], []
    for split, classes in splits.items():
        path = os.path.join(output, split + '.npz')
        if not os.path.exists(path):
            continue
        try:
            print(f'{path} is there already: {len(classes)} classes, {count_images(path, classes, size)} of '
                  f'{sum(map(len, classes.values()))} images listed. To make it again, remove it.')
            finished.append(split)
        except InputError as error:
            problems.append(str(error))
    stop_on(problems, 'Move it away, or choose another folder with --output.')
    return finished


def write_npz(path, partials):
    """Write an npz, as np.savez does, from {synset: path of its .npy without the ending}, one by one."""
    with atomic(path) as f, zipfile.ZipFile(f, 'w', zipfile.ZIP_STORED) as archive:
        for synset, partial in partials.items():
            with open(partial + '.npy', 'rb') as array, \
                    archive.open(synset + '.npy', 'w', force_zip64=True) as member:
                shutil.copyfileobj(array, member)


def print_summary(path, partials, n_images):
    """Print what the npz `path` holds and which images are not as they should be."""
    print(f'{path}: {len(partials)} classes, {n_images} images')
    notes = []
    for partial in partials.values():
        with open(partial + '.json') as f:
            notes.append(json.load(f))
    for state, meaning in (('skipped', 'cannot be decoded'), ('truncated', 'decoded as far as they go')):
        names = [name for note in notes for name in note[state]]
        if names:
            more = f' and {len(names) - 10} more' if len(names) > 10 else ''
            print(f'  {len(names)} {state}, {meaning}: {", ".join(names[:10])}{more}')


def run(source, splits, output, size, workers):
    """Make those of train.npz, dev.npz and test.npz that are not there yet. Arguments: the settings above.

    Raises:
        InputError: The input, or what lies in `output`, cannot be used: before any image is decoded. Or no
            image of a class can be decoded: after all other classes are saved.

    """
    begin = time.perf_counter()
    source = os.path.abspath(source)
    wanted = read_splits(splits or source)
    for split in find_finished(wanted, output, size):
        del wanted[split]
    if not wanted:
        return
    classes = {synset: names for split in wanted.values() for synset, names in split.items()}
    places = locate(source, classes)

    # A partial result's name depends on all that the result depends on, so that runs never mix.
    folder, partials = os.path.join(output, 'partial'), {}
    for synset, names in classes.items():
        digest = hashlib.sha256(repr((size, names, places[synset])).encode()).hexdigest()[:12]
        partials[synset] = os.path.join(folder, f'{synset}-{digest}')
    to_do = [synset for synset in classes if not os.path.exists(partials[synset] + '.npy')]
    n_images, n_to_do = (sum(len(classes[synset]) for synset in synsets) for synsets in (classes, to_do))
    os.makedirs(folder, exist_ok=True)
    with threads(workers) as pool, tqdm(
            total=n_images, initial=n_images - n_to_do, desc='Decoding', unit=' images') as bar:
        empty = [synset for synset in to_do
                 if not make_class(classes[synset], places[synset], size, partials[synset], pool, bar)]
    stop_on([f'{synset}: none of its images in {source} can be decoded' for synset in empty],
            'Get these synsets anew and start again; the other classes are kept.')

    for split, names in wanted.items():
        path = os.path.join(output, split + '.npz')
        parts = {synset: partials[synset] for synset in names}
        write_npz(path, parts)
        print_summary(path, parts, count_images(path, names, size))
        for partial in parts.values():
            os.remove(partial + '.npy')
            os.remove(partial + '.json')
    if not os.listdir(folder):
        os.rmdir(folder)
    print(f'{time.perf_counter() - begin:.0f} seconds')


def main(argv=None):
    """Parse the command line and run; an error ends in SystemExit with its message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('source', nargs='?', default=source, help=f'default: {source}')
    parser.add_argument('--splits', default=splits, help='folder of the split files; default: SOURCE')
    parser.add_argument('--output', default=output, help=f'folder for the npz files; default: {output}')
    parser.add_argument('--size', type=int, default=size, help=f'side in pixels; default: {size}')
    parser.add_argument('--workers', type=int, default=workers, help=f'threads; default: {workers}')
    args = parser.parse_args(argv)
    if args.size < 1 or args.workers < 1:
        parser.error('--size and --workers are at least 1')
    try:
        run(**vars(args))
    except (InputError, OSError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit('Interrupted. Finished classes are kept; the same command goes on with the rest.')


if __name__ == '__main__':
    main()
