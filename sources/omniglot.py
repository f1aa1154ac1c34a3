"""Omniglot, from the official zips, from the folders extracted from them, or from files of the user's own."""

import collections
import csv
import functools
import hashlib
import http.client
import io
import itertools
import os
import posixpath
import re
import sys
import urllib.request
import zipfile

import numpy as np
from PIL import Image
from tqdm import tqdm

from sources.archives import load_classes, save_classes
from sources.checks import check_parts
from sources.files import print_banner, printable, replacing, walk
from sources.synthetic import SIZE, synthetic_strokes

OMNIGLOT_URL = 'https://github.com/brendenlake/omniglot/raw/master/python/'
OMNIGLOT_MD5 = {
    'images_background.zip': '68d2efa1b9178cc56df9314c21c6e718',
    'images_evaluation.zip': '6b91aef0f799c5bb55b94e3f2daec811',
}
N_CHARACTERS = {'images_background.zip': 964, 'images_evaluation.zip': 659}
N_DRAWERS = 20
MAX_SIDE = 1050  # of a drawing before it is shrunk, ten times the official, in pixels
MAX_BYTES = 1 << 20  # of a drawing's file

SPLITS = ('previous', 'standard', 'dev')
SPLIT_TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, 'data', 'omniglot_split.csv')
NETWORK_TIMEOUT = 10  # seconds

# Names of the classes in kept files before these were the characters' numbers.
FORMER_CLASS = re.compile('images_(background|evaluation)/')


def omniglot(input_path='data/omniglot', split='previous', download=True):
    """Omniglot (Lake et al., 2015), 28x28, split into training and test classes, or data of the user's own.

    A class is named by its character's number, such as '0709', which begins the file names of its drawings: copies of
    Omniglot differ in the names of their folders, but not in these. The classes are in the order of their numbers and
    the images in that of the drawers, so that every copy gives the same episodes.

    If `input_path` itself holds train.npz and test.npz, as `save_classes` writes them, these are the data. Otherwise
    the two official zips, or the folders images_background and images_evaluation extracted from them, are looked for
    in `input_path`, then in the folder that the environment variable OMNIGLOT_DIR names; without that variable the
    zips are downloaded. The images are kept as `input_path`/`split`/{train,test}.npz, and later calls read only these.
    They are made anew if they are damaged or of another split. If the zips cannot be had, a banner on stderr says so,
    and 400 + 200 classes of synthetic strokes are returned.

    Args:
        input_path: the folder.
        split: 'previous' (Vinyals et al., 2016: 1200 random classes to train on, the other 423 to test), 'standard'
            (the 964 background classes to train on, the 659 evaluation classes to test) or 'dev' (the 1200 training
            classes of 'previous' alone, 1100 to train on and 100 to choose settings by). data/omniglot_split.csv lists
            the characters of 'previous' and 'dev'. Data of one's own are used as they are.
        download: whether the zips may be downloaded.

    Returns:
        (train, test, name): two dicts {class name: uint8 (20, 28, 28)}, where 255 is ink and 0 is paper, and the data
        set's name: 'Omniglot', 'own data (FOLDER)' for other classes or images, which may also have another size or
        number or be in colour, (n_images, size, size, 3), or 'synthetic strokes'.

    Raises:
        ValueError: the split is unknown; a download has a wrong checksum; a zip is damaged, incomplete or not
            Omniglot's; kept files are to be made anew, but the zips cannot be had; own data are damaged, not square, of
            several sizes or blank, or have a class or an image in both parts.
        FileNotFoundError: OMNIGLOT_DIR is set, but a zip is missing there; one of train.npz and test.npz is missing.
        OSError: the images cannot be kept in `input_path`.
    """
    if split not in SPLITS:
        raise ValueError(f'unknown split {split!r}: choose one of {", ".join(map(repr, SPLITS))}')
    own, kept = [[os.path.join(place, part + '.npz') for part in ('train', 'test')]
                 for place in (input_path, os.path.join(input_path, split))]
    name_of_own = f'own data ({os.path.basename(os.path.abspath(input_path))})'
    if any(map(os.path.lexists, own)):
        for path in own:
            if not os.path.isfile(path):
                raise FileNotFoundError(f'{path} is missing: to train on data of your own, put both train.npz and '
                                        'test.npz there')
        return (*_load_own(own), name_of_own)
    outdated = None
    if any(map(os.path.exists, kept)):
        try:
            parts, known = _load_kept(kept, split)
            return (*parts, 'Omniglot' if known else name_of_own)
        except _Outdated as error:
            outdated = error
    _make_folder(input_path)
    try:
        sources = [_find_source(name, input_path, download) for name in N_CHARACTERS]
    except (_Unavailable, FileNotFoundError) as reason:
        if outdated:
            raise ValueError(f'{outdated}. To make it anew, the zips are needed, but {reason}') from reason
        if isinstance(reason, FileNotFoundError):
            raise
        print_banner('Omniglot', 'synthetic stroke characters', reason, (
            f'put {" and ".join(N_CHARACTERS)}\nfrom {OMNIGLOT_URL}\ninto {os.path.abspath(input_path)},\n'
            'or set the environment variable OMNIGLOT_DIR to the folder that holds them'))
        classes = list(synthetic_strokes(600).items())
        return dict(classes[:400]), dict(classes[400:]), 'synthetic strokes'
    parts = _split_classes(*map(_read_source, sources), split)
    if outdated:
        aside = [_put_aside(path) for path in kept if os.path.lexists(path)]
        print(printable(f'{outdated}: made anew. What was there is kept as {", ".join(aside)}.', sys.stderr),
              file=sys.stderr)
    for path, classes in zip(kept, parts):
        save_classes(path, classes)
    return (*parts, 'Omniglot')


def _put_aside(path):
    """Gives a file, which may be the user's own, a name that is free; returns that."""
    free = next(name for i in itertools.count(1) if not os.path.lexists(name := f'{path}.old{i}'))
    os.replace(path, free)
    return free


# Kept files and the split ---------------------------------------------------------------------------------------------


class _Outdated(Exception):
    """Kept files are to be made anew; the message says which, and why."""


def _load_own(paths):
    parts = {path: load_classes(path) for path in paths}
    check_parts(parts)
    _warn_of_light(paths[0], parts[paths[0]])
    return list(parts.values())


def _warn_of_light(path, classes):
    """Warns of characters that seem to be dark on light; of each class the first image is looked at."""
    firsts = [images[0] for images in classes.values()]
    if firsts[0].ndim == 2 and np.mean(firsts) > 160:
        print(printable(f'warning: {path} is mostly light. Characters are 255 for ink and 0 for paper here, and '
                        'classify.py reads them so: if yours are the other way round, save 255 - images', sys.stderr),
              file=sys.stderr)


def _load_kept(paths, split):
    """The two parts that an earlier call has kept, or that the user has put there, and whether they are Omniglot."""
    names = [_class_names(path) for path in paths]
    characters = _split_table().keys()
    if not all(name in characters or FORMER_CLASS.match(name) for part in names for name in part):
        return _load_own(paths), False
    if not _is_split(names, split):
        raise _Outdated(f'{" and ".join(paths)} are damaged, or do not hold the characters of the split {split!r} in '
                        'their order')
    try:
        parts = {path: load_classes(path) for path in paths}
    except ValueError as error:
        raise _Outdated(str(error)) from error
    known = all(images.shape == (N_DRAWERS, SIZE, SIZE) for classes in parts.values() for images in classes.values())
    check_parts(parts, identical=not known)
    return list(parts.values()), known


def _class_names(path):
    """The names of the classes in an npz file, by the zip's directory alone; none if it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name[:-len('.npy')] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def _is_split(names, split):
    """Whether two lists of class names are the two parts of a split, in order."""
    if split == 'standard':
        return ([*map(len, names)] == [*N_CHARACTERS.values()] and all(part == sorted(part) for part in names)
                and sorted(names[0] + names[1]) == sorted(_split_table()))
    return names == _members(split)


def _split_table():
    """{a character's number, such as '0709': train, dev or test} for the splits 'previous' and 'dev'."""
    with open(SPLIT_TABLE, newline='', encoding='utf-8') as file:
        return {row['character']: row['part'] for row in csv.DictReader(file)}


def _members(split):
    """The characters' numbers in the training and the test part of 'previous' or 'dev'."""
    train, test = {'previous': (('train', 'dev'), ('test',)), 'dev': (('train',), ('dev',))}[split]
    table = _split_table()
    return [[character for character in sorted(table) if table[character] in parts] for parts in (train, test)]


def _split_classes(background, evaluation, split):
    both = background.keys() & evaluation.keys()
    if both:
        first, second = N_CHARACTERS
        raise ValueError(f'{second}: character {min(both)} is in {first} too, so one of them is not the official file; '
                         f'{_fetch_anew(second)}')
    if split == 'standard':
        return [background, evaluation]
    classes = {**background, **evaluation}
    return [{character: classes[character] for character in part} for part in _members(split)]


def _make_folder(path):
    """Makes sure, before any work, that there is a folder to write to."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise OSError(f'the folder {path} cannot be made ({error}): set input_path to one that can') from error
    if not os.access(path, os.W_OK):
        raise PermissionError(f'the folder {path} cannot be written to: set input_path to one that can')


# The official files ---------------------------------------------------------------------------------------------------


class _Unavailable(Exception):
    """Omniglot is not on this computer and could not be downloaded."""


def _find_source(name, input_path, download):
    """The path of a zip, or of the folder extracted from it."""
    folder = os.environ.get('OMNIGLOT_DIR')
    for place in filter(None, (input_path, folder)):
        zipped = os.path.join(place, name)
        extracted = os.path.splitext(zipped)[0]
        if os.path.isfile(zipped):
            return zipped
        if os.path.isdir(extracted):
            return extracted
    if folder:  # set on purpose: a missing file there is a mistake to report, not to work around
        raise FileNotFoundError(f'OMNIGLOT_DIR is set, but {zipped} does not exist: put the zip there '
                                f'(from {OMNIGLOT_URL}{name}), or unset OMNIGLOT_DIR')
    if not download:
        raise _Unavailable(f'{zipped} does not exist and downloads are switched off')
    content = _download(name)
    with replacing(zipped) as file:
        file.write(content)
    return zipped


def _download(name):
    chunks = []
    try:
        with urllib.request.urlopen(OMNIGLOT_URL + name, timeout=NETWORK_TIMEOUT) as response:
            size = response.headers.get('Content-Length')
            total = int(size) if size and size.isdecimal() else None
            with tqdm(total=total, desc=name, unit='B', unit_scale=True, disable=None) as bar:
                for chunk in iter(lambda: response.read(1 << 16), b''):
                    chunks.append(chunk)
                    bar.update(len(chunk))
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise _Unavailable(f'{name} could not be downloaded ({error})') from error
    content = b''.join(chunks)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != OMNIGLOT_MD5[name]:
        raise ValueError(f'the download of {OMNIGLOT_URL}{name} has the MD5 {md5}, not {OMNIGLOT_MD5[name]}: '
                         'it was cut short or changed on its way; try again, or fetch the file by hand')
    return content


def _fetch_anew(zip_name, extracted=False):
    if extracted:
        return f'put there all that is in {OMNIGLOT_URL}{zip_name}'
    return f'delete it and fetch it anew from {OMNIGLOT_URL}{zip_name}'


def _read_source(path):
    """Decodes an official zip, or the folder extracted from it, into {'0709': uint8 (20, 28, 28)}."""
    zip_name = os.path.basename(path)
    if os.path.isdir(path):
        names = [os.path.relpath(os.path.join(place, name), path).replace(os.sep, '/')
                 for place, files in walk(path, _raise) for name in files]
        return _read_drawings(path, f'{zip_name}.zip', names, functools.partial(_read_file, path))
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_drawings(path, zip_name, archive.namelist(), functools.partial(_read_member, archive))
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} cannot be read, it seems damaged ({error}): {_fetch_anew(zip_name)}') from error


def _raise(error):
    raise error


def _read_file(folder, name):
    path = os.path.join(folder, name)
    if not os.path.isfile(path):  # a pipe would be waited for
        raise ValueError('it is no file')
    _check_size(os.path.getsize(path))
    with open(path, 'rb') as file:
        return file.read()


def _read_member(archive, name):
    _check_size(archive.getinfo(name).file_size)
    return archive.read(name)


def _check_size(n_bytes):
    if n_bytes > MAX_BYTES:
        raise ValueError(f'it has {n_bytes} bytes')


def _read_drawings(path, zip_name, names, read):
    """{'0709': uint8 (20, 28, 28)} of the drawings among `names`, whose content is `read(name)`."""
    remedy = _fetch_anew(zip_name, os.path.isdir(path))
    classes = {}
    drawings = _sort_drawings(path, zip_name, names)
    for character in tqdm(sorted(drawings), f'decoding {zip_name}', unit=' characters', disable=None):
        images = []
        for name in drawings[character]:
            try:
                images.append(_decode(read(name)))
                if not images[-1].any():
                    raise ValueError('it is blank')
            except MemoryError:
                raise
            except Exception as error:  # Pillow and zipfile raise many kinds for what is broken
                raise ValueError(f'{path}: {name} cannot be read, it seems damaged ({error}); {remedy}') from error
        classes[character] = np.stack(images)
    return classes


def _sort_drawings(path, zip_name, names):
    """{'0709': the names of its 20 drawings}, by drawer; other than the official file's drawings are refused."""
    remedy = _fetch_anew(zip_name, os.path.isdir(path))
    drawings = collections.defaultdict(list)
    owners = {}  # {folder: its character}
    for name in names:
        folder, file_name = posixpath.split(name)
        # macOS adds files such as __MACOSX/images_background/Greek/._0001_01.png, which are no images.
        if file_name.startswith('.') or '__MACOSX' in name.split('/') or not file_name.lower().endswith('.png'):
            continue
        if not re.fullmatch(r'[0-9]{4}_[0-9]{2}\.png', file_name, re.IGNORECASE):
            raise ValueError(f'{path}: {name} is not named as a drawing of Omniglot is, such as 0709_01.png; {remedy}')
        character = file_name[:4]
        if owners.setdefault(folder, character) != character:
            raise ValueError(f'{path}: {folder} holds drawings of the characters {owners[folder]} and {character}, '
                             f'but a folder must hold one; {remedy}')
        drawings[character].append(name)
    if len(drawings) != N_CHARACTERS[zip_name]:
        raise ValueError(f'{path} holds {len(drawings)} characters, not {N_CHARACTERS[zip_name]}: '
                         f'it is not the whole data set; {remedy}')
    unknown = drawings.keys() - _split_table().keys()
    if unknown:
        raise ValueError(f'{path} holds a character {min(unknown)}, which Omniglot has not; {remedy}')
    for character, members in drawings.items():
        members.sort(key=posixpath.basename)
        folders = sorted(set(map(posixpath.dirname, members)))
        if len(folders) > 1:
            raise ValueError(f'{path}: the drawings of character {character} are in more than one folder, '
                             f'{folders[0]} and {folders[1]}; {remedy}')
        if len(members) != N_DRAWERS:
            raise ValueError(f'{path}: {folders[0]} has {len(members)} drawings, not {N_DRAWERS}; {remedy}')
        for drawer, name in enumerate(members, 1):
            if posixpath.basename(name).lower() != f'{character}_{drawer:02d}.png':
                raise ValueError(f'{path}: {folders[0]} has no drawing {character}_{drawer:02d}.png; {remedy}')
    return drawings


def _decode(png):
    """Black ink on white paper, 105x105, to uint8 (28, 28) where 255 is ink."""
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f'the image is {image.width}x{image.height}')
        return 255 - np.asarray(image.convert('L').resize((SIZE, SIZE), Image.Resampling.BOX))
