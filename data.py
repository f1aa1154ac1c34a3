"""Few-shot data: Omniglot, mini-ImageNet, synthetic stand-ins for both, and the sampler of episodes.

A data set is a plain dict {class name: uint8 array of images}; the images of a class have the shape
(n_images, H, W), or (n_images, H, W, 3) in colour, and 255 means full ink or full brightness.
"""

import collections
import contextlib
import csv
import hashlib
import http.client
import io
import os
import posixpath
import re
import sys
import typing
import urllib.request
import zipfile
import zlib

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

OMNIGLOT_URL = 'https://github.com/brendenlake/omniglot/raw/master/python/'
OMNIGLOT_MD5 = {
    'images_background.zip': '68d2efa1b9178cc56df9314c21c6e718',
    'images_evaluation.zip': '6b91aef0f799c5bb55b94e3f2daec811',
}
N_CHARACTERS = {'images_background.zip': 964, 'images_evaluation.zip': 659}
N_DRAWERS = 20
SIZE = 28  # height and width of a character, in pixels
MAX_SIZE = 1050  # of a drawing before it is shrunk, ten times the official: larger ones are no drawings of Omniglot

SPLITS = ('previous', 'standard', 'dev')
SPLIT_TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data', 'omniglot_split.csv')

# The classes of a file that `omniglot` has made, now or before the classes were named by their numbers.
OMNIGLOT_CLASS = re.compile(r'\d{4}|images_(background|evaluation)/.*', re.ASCII)

MINI_IMAGENET = 'data/miniImagenet'
NETWORK_TIMEOUT = 10  # seconds
MAPPED_SIZE = 1 << 28  # bytes from which an npz is mapped instead of read


# Files of classes -----------------------------------------------------------------------------------------


def load_classes(path):
    """Read a data set from an npz file that holds one array a class, under the class's name.

    Arrays are uint8 in 0..255, or float in [0, 1] (the layout of the paper's authors), which is rounded to
    uint8. Returns a dict {class name: uint8 (n_images, H, W) or (n_images, H, W, 3)}, in the file's order.
    Uncompressed uint8 arrays of a file over 256 MB stay in the file: they are mapped read-only, and only images
    that are used come into memory.

    Raises FileNotFoundError if there is no such file, and ValueError, with the file's and the class's name,
    if it is not an npz, is damaged or empty, or if an array has another dtype, range or shape.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} does not exist: give the path of an npz file with one array a class')
    if not zipfile.is_zipfile(path):
        raise ValueError(f'{path} is not an npz file, or is cut short: delete it and make it anew')
    classes = {}
    where = f'{path}'
    try:
        with np.load(path) as archive:
            content = np.memmap(path, np.uint8, 'r') if os.path.getsize(path) > MAPPED_SIZE else None
            for name in archive.files:
                where = f'{path}, class {name!r}'
                images = None if content is None else _mapped(archive.zip, name + '.npy', content)
                classes[name] = _to_uint8(archive[name] if images is None else images)
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f'{where}: {error}. Make the file anew, with one array a class: uint8, or float in '
                         '[0, 1], of shape (n_images, H, W) or (n_images, H, W, 3)') from error
    if not classes:
        raise ValueError(f'{path} holds no class: make it anew, with one array a class')
    shapes = {name: images.shape[1:] for name, images in classes.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ValueError(f'{path}: the images of class {name!r} have shape {shape}, those of class '
                             f'{first!r} {shapes[first]}: resize them to one shape')
    return classes


def _mapped(archive, name, content):
    """The uint8 array of an npz's member as a view of the file's `content`; None if it is not stored as such."""
    if name not in archive.NameToInfo:
        return None
    member = archive.getinfo(name)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](file)
        header = file.tell()
    if dtype != np.uint8 or fortran or member.compress_type != zipfile.ZIP_STORED:
        return None
    # A member's local header: 30 bytes, with the lengths of its name and its extra field in the last four.
    name_length, extra_length = content[member.header_offset + 26:member.header_offset + 30].view('<u2')
    start = member.header_offset + 30 + int(name_length) + int(extra_length) + header
    return np.asarray(content[start:start + int(np.prod(shape))]).reshape(shape)


def save_classes(path, classes):
    """Write a data set, a dict as `load_classes` returns it, to the npz file `path`.

    The file appears under its name only when it is complete; an older one stays intact until then.
    """
    with replacing(path) as file:
        np.savez(file, **classes)


def _to_uint8(images):
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or images.size == 0:
        raise ValueError(f'the array has shape {images.shape}')
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f'the array has dtype {images.dtype}')
    if not (images.min() >= 0 and images.max() <= 1):  # put this way round, NaN is refused too
        raise ValueError(f'the floats reach from {images.min()} to {images.max()}')
    return np.rint(images * 255).astype(np.uint8)


@contextlib.contextmanager
def replacing(path, mode='wb', **options):
    """Open a temporary file beside `path`, which takes that name only if the block succeeds.

    `mode` and `options` are those of `open`.
    """
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = f'{path}.{os.getpid()}.part'
    try:
        with open(temporary, mode, **options) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C leaves nothing behind either
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


# Omniglot -------------------------------------------------------------------------------------------------


def omniglot(input_path='data/omniglot', split='previous', download=True):
    """Omniglot (Lake et al., 2015), 28x28, split into training and test classes.

    `split` is 'previous' (Vinyals et al., 2016: 1200 random classes to train on, the other 423 to test),
    'standard' (the 964 background classes to train on, the 659 evaluation classes to test) or 'dev' (the 1200
    training classes of 'previous' alone, 1100 to train on and 100 to choose settings by). data/omniglot_split.csv lists
    the characters of 'previous' and 'dev'.

    A class is named by its character's number, such as '0709', which begins the file names of its drawings: copies of
    Omniglot differ in their folders' names, but not in these. The classes are in the order of their numbers and the
    images in that of the drawers, so that every copy gives the same episodes.

    The two official zips, or the folders images_background and images_evaluation extracted from them, are looked
    for in `input_path`, then in the folder that the environment variable OMNIGLOT_DIR names; without that variable
    the zips are downloaded, unless `download` is False. The images are kept as
    `input_path`/`split`/{train,test}.npz, and later calls read only these, unless they are damaged or of another
    split: then they are made anew. If the zips cannot be had, a banner on stderr says so, and 400 + 200 classes of
    synthetic strokes are returned.

    Returns (train, test, name): two dicts {class name: uint8 (20, 28, 28)}, where 255 is ink and 0 is paper,
    and the data set's name: 'Omniglot', 'synthetic strokes', or 'own data (FOLDER)' if the kept files hold others.

    Raises ValueError for an unknown split, for a download with a wrong checksum, for damaged or incomplete zips, and
    for kept files that are to be made anew when the zips cannot be had; FileNotFoundError if OMNIGLOT_DIR is set, but a
    zip is missing there; OSError if the images cannot be kept in `input_path`.
    """
    if split not in SPLITS:
        raise ValueError(f'unknown split {split!r}: choose one of {", ".join(map(repr, SPLITS))}')
    paths = [os.path.join(input_path, split, part) for part in ('train.npz', 'test.npz')]
    outdated = None
    if any(map(os.path.exists, paths)):
        try:
            return _load_kept(paths, split)
        except (ValueError, FileNotFoundError) as error:
            outdated = error
    _make_folder(input_path)
    try:
        sources = [_find_source(name, input_path, download) for name in N_CHARACTERS]
    except (_Unavailable, FileNotFoundError) as reason:
        if outdated:
            raise ValueError(f'{outdated}. To make it anew, the zips are needed, but {reason}') from reason
        if isinstance(reason, FileNotFoundError):
            raise
        _print_banner('Omniglot', 'synthetic stroke characters', reason, (
            f"put {' and '.join(N_CHARACTERS)}\n!!  from {OMNIGLOT_URL}\n!!  into {os.path.abspath(input_path)},\n"
            '!!  or set the environment variable OMNIGLOT_DIR to the folder that holds them'))
        classes = list(synthetic_strokes(600).items())
        return dict(classes[:400]), dict(classes[400:]), 'synthetic strokes'
    if outdated:
        print(f'{outdated}: made anew.', file=sys.stderr)
    parts = _split_classes(*map(_read_source, sources), split)
    for path, classes in zip(paths, parts):
        save_classes(path, classes)
    return (*parts, 'Omniglot')


def _split_table():
    """{character's number, such as '0709': train, dev or test} for the splits 'previous' and 'dev'."""
    with open(SPLIT_TABLE, newline='', encoding='utf-8') as file:
        return {row['character']: row['part'] for row in csv.DictReader(file)}


def _load_kept(paths, split):
    """(train, test, name) of two files: those an earlier call has kept, or data of the user's own."""
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f'{path} does not exist')
    names = [_class_names(path) for path in paths]
    if not all(OMNIGLOT_CLASS.fullmatch(name) for part in names for name in part):
        folder = os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(paths[0]))))
        return (*map(load_classes, paths), f'own data ({folder})')
    if split == 'standard':
        kept = [*map(len, names)] == [*N_CHARACTERS.values()] and sorted(names[0] + names[1]) == sorted(_split_table())
    else:
        kept = [*map(set, names)] == [*map(set, _members(split))]
    if not kept or any(part != sorted(part) for part in names):
        raise ValueError(f'{paths[0]} and {paths[1]} do not hold the characters of the split {split!r} in their order')
    return (*map(load_classes, paths), 'Omniglot')


def _class_names(path):
    """The names of an npz file's classes, without reading them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name[:-len('.npy')] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f'{path} cannot be read, it seems damaged ({error})') from error


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
            with tqdm(total=size and int(size), desc=name, unit='B', unit_scale=True) as bar:
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


def _read_source(path):
    """Decode an official zip, or the folder extracted from it, into {'0709': uint8 (20, 28, 28)}."""
    zip_name = os.path.basename(path)
    if os.path.isdir(path):
        zip_name += '.zip'
        return _read_drawings(path, zip_name, _list_files(path), lambda name: _read_file(os.path.join(path, name)))
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_drawings(path, zip_name, archive.namelist(), archive.read)
    # RuntimeError: an encrypted member; NotImplementedError: an unknown compression.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f'{path} cannot be read, it seems damaged ({error}): {_fetch_anew(zip_name)}') from error


def _fetch_anew(zip_name):
    return f'delete it and fetch it anew from {OMNIGLOT_URL}{zip_name}'


def _list_files(folder):
    """The paths of all files below a folder, relative to it, with slashes."""
    return [os.path.relpath(os.path.join(place, name), folder).replace(os.sep, '/')
            for place, _, names in os.walk(folder) for name in names]


def _read_file(path):
    with open(path, 'rb') as file:
        return file.read()


def _read_drawings(path, zip_name, names, read):
    """{'0709': uint8 (20, 28, 28)} of the drawings among `names`, whose content is `read(name)`."""
    remedy = _fetch_anew(zip_name)
    drawings = collections.defaultdict(list)  # of a character
    owners = {}  # the characters of folders
    for name in names:
        folder, file_name = posixpath.split(name)
        # What macOS puts into zips: '__MACOSX/.../._0001_01.png' is no image.
        if file_name.startswith('.') or '__MACOSX' in name.split('/') or not file_name.endswith('.png'):
            continue
        if not re.fullmatch(r'\d{4}_\d{2}\.png', file_name, re.ASCII):
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
            if posixpath.basename(name) != f'{character}_{drawer:02d}.png':
                raise ValueError(f'{path}: {folders[0]} has no drawing {character}_{drawer:02d}.png; {remedy}')
    classes = {}
    for character in tqdm(sorted(drawings), f'decoding {zip_name}', unit=' characters'):
        images = []
        for name in drawings[character]:
            try:
                images.append(_decode(read(name)))
            except MemoryError:
                raise
            except Exception as error:  # Pillow raises many kinds for a broken image
                raise ValueError(f'{path}: {name} cannot be read, it seems damaged ({error}); {remedy}') from error
        classes[character] = np.stack(images)
    return classes


def _decode(png):
    """Black ink on white paper, 105x105, to uint8 (28, 28) where 255 is ink."""
    with Image.open(io.BytesIO(png)) as image:
        if max(image.size) > MAX_SIZE:
            raise ValueError(f'the image is {image.width}x{image.height}')
        return _shrink(image.convert('L'))


def _shrink(image):
    return 255 - np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def read_character(path):
    """Read an image of dark strokes on light paper, a drawing or a scan, as Omniglot's are read.

    It is turned as its EXIF data say, put on white paper where it is transparent, padded with paper to a square, and
    its contrast stretched. Returns uint8 (28, 28), where 255 is ink and 0 is paper. Raises ValueError, with the file's
    name, if it is not an image, blank, or more dark than light.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith('I'):  # 16 bits or more, which Pillow would cut off instead of scaling
                image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
            image = image.convert('RGBA')
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f'{path} cannot be read as an image ({error}): remove it, or save it as a PNG') from error
    grey = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('L')
    low, high = grey.getextrema()
    if low == high:
        raise ValueError(f'{path} is blank: remove it, or give an image of dark strokes on light paper')
    grey = ImageOps.autocontrast(grey)
    if np.asarray(grey).mean() < 128:
        raise ValueError(f'{path} is more dark than light: give dark strokes on light paper, invert it if need be')
    return _shrink(ImageOps.pad(grey, (max(grey.size),) * 2, color=255))


def turned(classes):
    """Four classes of each: its square images turned by 0, 90, 180 and 270 degrees.

    Takes a data set, a dict, and returns one with names such as 'name, 90 degrees'; the images are views of the given.
    """
    return {f'{name}, {90 * turns} degrees': np.rot90(images, turns, axes=(1, 2))
            for name, images in classes.items() for turns in range(4)}


def _print_banner(data_set, stand_in, reason, remedy):
    rule = '!' * 100
    print(f"""
{rule}
!!  THIS IS NOT {data_set.upper()}: {stand_in} are used in its place.
!!
!!  Why: {reason}.
!!  The numbers of this run are NOT results on {data_set} and cannot be compared with the paper's.
!!
!!  To get the data: {remedy}.
{rule}
""", file=sys.stderr, flush=True)


# mini-ImageNet --------------------------------------------------------------------------------------------


def mini_imagenet(input_path=MINI_IMAGENET):
    """mini-ImageNet (Vinyals et al., 2016; the split of Ravi & Larochelle, 2017), as prepared by this project.

    Reads `input_path`/{train,dev,test}.npz, which preprocess_mini_imagenet.py makes; any data set in that form
    will do. If none of the three is in the default folder, a banner on stderr says so, and 64 + 16 + 20 classes of
    synthetic textures are returned.

    Returns (train, dev, test, name): three dicts {class name: uint8 (n_images, H, W, 3)}, memory-mapped if large,
    and the data set's name for results: 'mini-ImageNet' if the classes are its own and the images 84x84, 'own
    data (FOLDER)' for others, or 'synthetic textures'.

    Raises FileNotFoundError if some of the three files are missing, and ValueError for files as in
    `load_classes`, for images that are not in colour or not square, or of different sizes in the three files, and for a
    class that is in two of them.
    """
    paths = {part: os.path.join(input_path, part + '.npz') for part in ('train', 'dev', 'test')}
    missing = [path for path in paths.values() if not os.path.isfile(path)]
    if len(missing) == len(paths) and input_path == MINI_IMAGENET:
        _print_banner('mini-ImageNet', 'synthetic textures', f'{missing[0]} does not exist', (
            'run preprocess_mini_imagenet.py on your ImageNet images,\n'
            '!!  or set input_path to the folder that holds its train.npz, dev.npz and test.npz'))
        classes = list(synthetic_textures(100).items())
        return dict(classes[:64]), dict(classes[64:80]), dict(classes[80:]), 'synthetic textures'
    if missing:
        raise FileNotFoundError(f'{", ".join(missing)} missing: make all of train.npz, dev.npz and test.npz with '
                                'preprocess_mini_imagenet.py')
    parts = {path: load_classes(path) for path in paths.values()}
    owner, shapes = {}, set()
    for path, classes in parts.items():
        shape = next(iter(classes.values())).shape[1:]
        shapes.add(shape)
        if len(shape) != 3 or shape[0] != shape[1] or len(shapes) > 1:
            raise ValueError(f'the images in {path} have shape {shape}: all three files must hold square colour '
                             'images of one size; make them anew with preprocess_mini_imagenet.py')
        for name in classes:
            if owner.setdefault(name, path) != path:
                raise ValueError(f'class {name!r} is in both {owner[name]} and {path}: it must be in one alone')
    known = shape[0] == 84 and owner == {name: paths[part] for name, part in _mini_imagenet_synsets().items()}
    folder = os.path.basename(os.path.abspath(input_path))
    return (*parts.values(), 'mini-ImageNet' if known else f'own data ({folder})')


def _mini_imagenet_synsets():
    """{synset: train, dev or test}"""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data', 'mini_imagenet_synsets.csv')
    with open(path, newline='') as file:
        return {row['synset']: row['split'] for row in csv.DictReader(file)}


def synthetic_textures(n_classes=100, n_images=40, size=84, seed=0):
    """Invented colour textures, for work without mini-ImageNet.

    A class is three waves, each with a direction, a length and a colour of its own; its images differ in phase,
    scale, turn and light. Returns {class name: uint8 (n_images, size, size, 3)}; the same seed gives the same
    images everywhere.
    """
    rng = np.random.RandomState(seed)
    y, x = (np.mgrid[:size, :size] / size - 0.5).astype(np.float32)
    classes = {}
    for i in range(n_classes):
        angle, frequency = rng.uniform(0, np.pi, 3), rng.uniform(2, 9, 3)
        colour, base = rng.normal(0, 1, (3, 3)), rng.uniform(0.35, 0.65, 3)
        angle = angle + rng.normal(0, 0.25, (n_images, 1))
        frequency = 2 * np.pi * frequency * np.exp(rng.normal(0, 0.2, (n_images, 1)))
        phase = rng.uniform(0, 2 * np.pi, (n_images, 3))
        across, down = [(frequency * f(angle)).astype(np.float32)[:, :, None, None] for f in (np.cos, np.sin)]
        waves = np.sin(across * x + down * y + phase.astype(np.float32)[:, :, None, None])
        colour = colour + rng.normal(0, 0.4, (n_images, 3, 3))
        light = base + rng.normal(0, 0.12, (n_images, 1, 1, 3))
        images = 0.15 * np.einsum('nwyx,nwc->nyxc', waves, colour) + light
        classes[f'texture{i:04d}'] = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    return classes


# Synthetic characters -------------------------------------------------------------------------------------


def synthetic_strokes(n_classes=600, n_drawers=20, seed=0):
    """Invented characters, about as hard to tell apart as Omniglot's, for work without the data set.

    A class is 2 to 4 curved strokes; each of its drawers has a hand, a slant, a place and a pen of their own.
    Returns {class name: uint8 (n_drawers, 28, 28)}; the same seed gives the same images everywhere.
    """
    rng = np.random.RandomState(seed)
    return {f'strokes{i:04d}': _draw(_invent_strokes(rng), n_drawers, rng) for i in range(n_classes)}


def _invent_strokes(rng):
    """Control points, (n_strokes, 4, 2) in about [-1, 1], of the cubic Bezier curves of a new character."""
    n_strokes = rng.randint(2, 5)
    # Strokes run between points of a 3x3 grid: like a letter's, they share corners and heights.
    ends = np.array([rng.permutation(9)[:2] for _ in range(n_strokes)])
    ends = np.stack([ends % 3, ends // 3], axis=2) - 1
    straight = np.linspace([1, 0], [0, 1], 4) @ ends
    bend = rng.normal(0, 0.6, (n_strokes, 1, 2)) * [[0], [1], [1], [0]]
    return straight + bend + rng.normal(0, 0.25, (n_strokes, 4, 2))


def _draw(strokes, n_drawers, rng):
    """uint8 (n_drawers, 28, 28): the character as drawn by `n_drawers` hands."""
    n_strokes = len(strokes)
    hand = (strokes + rng.normal(0, 0.15, (n_drawers, n_strokes, 1, 2))  # strokes misplaced...
            + rng.normal(0, 0.15, (n_drawers, n_strokes, 4, 2)))  # ...and misshapen
    warp = np.eye(2) + rng.normal(0, 0.12, (n_drawers, 1, 2, 2))  # slant, scale and rotation
    shift = rng.normal(0, 1.3, (n_drawers, 1, 1, 2))
    pen = rng.uniform(0.4, 0.6, (n_drawers, 1, 1))

    t = np.linspace(0, 1, 40)[:, None]
    bezier = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t ** 2 * (1 - t), t ** 3])
    curves = 0.27 * SIZE * (bezier @ hand @ warp) + (SIZE - 1) / 2 + shift
    lengths = np.linalg.norm(np.gradient(curves, axis=2), axis=3).reshape(n_drawers, -1, 1)
    x, y = np.moveaxis(curves.reshape(n_drawers, -1, 1, 2), 3, 0)

    # The pen's tip is a Gaussian, a product of one factor in x and one in y, so that the ink, its integral
    # along the curves, is one matrix product a drawing.
    tip_x, tip_y = [np.exp(-0.5 * ((centre - np.arange(SIZE)) / pen) ** 2) for centre in (x, y)]
    ink = tip_y.transpose(0, 2, 1) @ (tip_x * lengths / (np.sqrt(2 * np.pi) * pen))
    return np.rint(255 * np.minimum(ink, 1)).astype(np.uint8)


# Episodes -------------------------------------------------------------------------------------------------


class Episode(typing.NamedTuple):
    """One task: a labelled support set to learn from, and a query set to be tested on.

    Images are float32 in [0, 1], labels int32 in 0..way-1; C is 1, or 3 in colour.
    """

    support_x: np.ndarray  # (way * shot, C, H, W)
    support_y: np.ndarray  # (way * shot,)
    query_x: np.ndarray  # (way * n_query, C, H, W)
    query_y: np.ndarray  # (way * n_query,)


class EpisodeSampler:
    """An endless iterator over random episodes.

    Each episode has `way` different classes, labelled in random order, and of each class `shot` support and
    `n_query` query images, all different. With `rotate`, each class is turned by a random multiple of 90
    degrees, support and query alike. The arrays are of `xp`, numpy or cupy. The random numbers are the
    sampler's own and depend on `seed` alone.

    Raises ValueError if way < 2, shot < 1 or n_query < 1, if there are too few classes or images for
    them, if images are not uint8, or if images to rotate are not square.
    """

    def __init__(self, classes, way, shot, n_query, rotate=False, seed=0, xp=np):
        for setting, value, least in ('way', way, 2), ('shot', shot, 1), ('n_query', n_query, 1):
            if value < least:
                raise ValueError(f'{setting} is {value}, but must be at least {least}')
        if not classes:
            raise ValueError('there are no classes to sample from: load a data set that has some')
        if len(classes) < way:
            raise ValueError(f'{way}-way episodes need {way} classes, but there are only {len(classes)}: '
                             'lower the way, or load more classes')
        for name, images in classes.items():
            if images.dtype != np.uint8:
                raise ValueError(f'the images of class {name!r} are {images.dtype}: give them as uint8, 0 to 255')
        small = [name for name, images in classes.items() if len(images) < shot + n_query]
        if small:
            raise ValueError(f'an episode needs shot + n_query = {shot + n_query} images of a class, but '
                             f'{len(small)} of the {len(classes)} classes have fewer: {", ".join(small[:5])}'
                             f'{", ..." if len(small) > 5 else ""}; lower shot or n_query')
        if rotate:
            for name, images in classes.items():
                if images.shape[1] != images.shape[2]:
                    raise ValueError(f'the images of class {name!r} are {images.shape[1]}x{images.shape[2]}: '
                                     'only square ones can be rotated; set rotate=False')
        self.way = way
        self.shot = shot
        self.n_query = n_query
        self.rotate = rotate
        self.xp = xp
        self._classes = list(classes.values())
        self._rng = np.random.RandomState(seed)

    def __iter__(self):
        return self

    def __next__(self):
        return self.sample()

    def sample(self):
        """Draw an Episode."""
        support, query = [], []
        for i in self._rng.permutation(len(self._classes))[:self.way]:
            images = self._classes[i]
            images = images[self._rng.permutation(len(images))[:self.shot + self.n_query]]
            if self.rotate:
                images = np.rot90(images, self._rng.randint(4), axes=(1, 2))
            support.append(images[:self.shot])
            query.append(images[self.shot:])
        return Episode(*self._shuffle(support), *self._shuffle(query))

    def _shuffle(self, images):
        """Images by label, a list of `way` uint8 arrays, to a shuffled batch (x, y)."""
        order = self._rng.permutation(sum(map(len, images)))
        x = np.concatenate(images)[order]
        x = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        y = np.repeat(np.arange(self.way, dtype=np.int32), len(images[0]))[order]
        return self.xp.asarray(np.divide(x, 255, dtype=np.float32, order='C')), self.xp.asarray(y)

    def get_state(self):
        """The state of the random generator, a uint32 array (628,): it fits in an npz."""
        _, key, position, has_gauss, gauss = self._rng.get_state()
        counters = np.array([position, has_gauss], dtype=np.uint32)
        return np.concatenate([key, counters, np.array([gauss]).view(np.uint32)])

    def set_state(self, state):
        """Go on exactly where the sampler whose `get_state` gave `state` was.

        Raises ValueError if `state` is not a uint32 array (628,).
        """
        if state.shape != (628,) or state.dtype != np.uint32:
            raise ValueError(f'a {state.dtype} array of shape {state.shape} is not the state of a sampler: '
                             'give the uint32 array (628,) that get_state returned')
        key, (position, has_gauss), gauss = state[:624], state[624:626].tolist(), state[626:].view(np.float64)
        self._rng.set_state(('MT19937', key, position, has_gauss, gauss.item()))
