"""Split files: which images of mini-ImageNet, or of other data in the same form, are for training, dev and test."""

import csv
import os
import re

from sources.archives import UNSAFE

CSV_FILES = {'train': 'train.csv', 'dev': 'val.csv', 'test': 'test.csv'}
SYNSET_TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, 'data', 'mini_imagenet_synsets.csv')
RANKED = re.compile(r'(n[0-9]{8})(?!0{8})[0-9]{8}\.jpg,\1')
PACKED = {b'\x1f\x8b': 'gzip', b'PK\x03\x04': 'zip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'7z\xbc\xaf': '7-Zip',
          b'Rar!': 'RAR', b'\x28\xb5\x2f\xfd': 'Zstandard'}
PICKLES = ('.pkl', '.pickle')
MAX_LABEL = 255  # characters


class InputError(ValueError):
    """The input cannot be used; the message says what is wrong and what to do about it."""


def stop_on(problems, remedy):
    """Raises one InputError that lists `problems`, if any (100 in full, the rest counted), and the remedy."""
    if problems:
        more = [f'... and {len(problems) - 100} more'] if len(problems) > 100 else []
        raise InputError('\n  '.join([f'{len(problems)} problem(s)'] + problems[:100] + more) + '\n' + remedy)


def mini_imagenet_synsets():
    """{synset: (its split: train, dev or test; number of its images in ILSVRC2012's training set)}, in order."""
    with open(SYNSET_TABLE, newline='', encoding='utf-8') as file:
        return {row['synset']: (row['split'], int(row['n_images'])) for row in csv.DictReader(file)}


# The split files ------------------------------------------------------------------------------------------------------


def find_splits(folder):
    """Returns {split: path of its csv}, or raises InputError that says where to get missing ones."""
    paths = {split: os.path.join(folder, name) for split, name in CSV_FILES.items()}
    missing = [CSV_FILES[split] for split, path in paths.items() if not os.path.isfile(path)]
    if missing:
        synsets = mini_imagenet_synsets()
        needed = [f'\n  {split}: ' + ' '.join(synset for synset, (part, _) in synsets.items() if part == split)
                  for split in paths]
        raise InputError(
            f'{", ".join(missing)} not found in {folder}. Name the folder of the split files with --splits. For your '
            'own images, write them: the columns filename,label and a row for each image. Get those of mini-ImageNet '
            'from their authors, github.com/twitter-research/meta-learning-lstm (formerly twitter/meta-learning-lstm), '
            'folder data/miniImagenet. They take images from these synsets:' + ''.join(needed))
    return paths


def read_splits(folder):
    """Reads the split files, of mini-ImageNet or of other data.

    If a row has mini-ImageNet's form, all must. If none has, names are those of files, and labels are any text.

    Returns:
        {'train' or 'dev' or 'test': {label: [filename, ...]}}, in their order.

    Raises:
        InputError: A file is missing, cannot be read or has other columns; a row is malformed, an image is listed
            twice; a synset is not the label's; a class is in two splits.
    """
    problems, rows = [], []
    for split, path in find_splits(folder).items():
        try:
            listed = _read_csv(path)
            rows += [(split, *row) for row in listed]
            problems += [] if listed else [f'{path}: no images are listed']
        except InputError as error:
            problems.append(str(error))
    result = {split: {} for split in CSV_FILES}
    ranked = any(RANKED.fullmatch(','.join(row)) for *_, row in rows)
    first_seen, csv_of = {}, {}
    for split, where, row in rows:
        classes, path = result[split], CSV_FILES[split]
        text = ','.join(row)
        reason = _ranked_problem(text) if ranked and len(row) == 2 else _named_problem(row)
        if reason:
            problems.append(f'{where}: {text[:60]!r} {reason}')
            continue
        name, label = map(str.strip, row)
        # A name such as 0001.jpg may be in several classes, one with a synset cannot.
        key = (name, label)
        if key in first_seen:
            problems.append(f'{where}: {name} is listed already in {first_seen[key]}')
            continue
        first_seen[key] = where
        if csv_of.setdefault(label, path) != path and label not in classes:
            problems.append(f'{where}: class {label} is also in {csv_of[label]}')
        classes.setdefault(label, []).append(name)
    stop_on(problems, 'Split files have the columns filename,label and are UTF-8, none of their images is listed '
                      'twice, and no class is in two files. Rows of mini-ImageNet are like '
                      'n0153282900000005.jpg,n01532829: take them as their authors give them.')
    return result


def _read_csv(path):
    """[(where, fields), ...] of a split file's rows but its first."""
    result = []
    try:
        with open(path, newline='', encoding='utf-8-sig', errors='replace') as file:
            rows = csv.reader(file)
            header = ','.join(next(rows, []))
            if header != 'filename,label':
                raise InputError(f'{path}: the columns are {header[:60]!r}, not filename,label')
            for row in filter(None, rows):
                result.append((f'{path}, row {rows.line_num}', row))
    except (csv.Error, OSError) as error:
        raise InputError(f'{path} cannot be read: {error}') from error
    return result


def _ranked_problem(text):
    return '' if RANKED.fullmatch(text) else ('is not synset, 8 digits of rank (from 1), .jpg, and the same synset as '
                                              'label')


def _named_problem(row):
    text = ','.join(row)
    if len(row) != 2 or not all(map(str.strip, row)) or not row[0].strip('./\\ '):
        return 'is not a file name and a label'
    if '\ufffd' in text or UNSAFE.search(text):
        return 'has characters that are not UTF-8, or control characters'
    return f'has a label of more than {MAX_LABEL} characters' if len(row[1]) > MAX_LABEL else ''


def ranked(splits):
    """Whether the names of `read_splits` are those of mini-ImageNet, a synset and a rank."""
    return all(RANKED.fullmatch(f'{name},{label}') for classes in splits.values() for label, names in classes.items()
               for name in names)


def known_counts(splits):
    """{synset: number of images that it must have} if all classes are mini-ImageNet's, or else {}."""
    table = mini_imagenet_synsets()
    synsets = [synset for classes in splits.values() for synset in classes]
    return {synset: table[synset][1] for synset in synsets} if set(synsets) <= set(table) else {}


# What cannot be read as it is -----------------------------------------------------------------------------------------


def refuse_packed(source, splits, output):
    """Raises InputError if `source` is a pickle or an archive that must be unpacked, or a folder of pickles alone."""
    if os.path.isdir(source):
        pickles = ending(source, PICKLES)
        missing = not all(os.path.isfile(os.path.join(splits or source, name)) for name in CSV_FILES.values())
        if pickles and missing:
            raise InputError(pickle_advice(os.path.join(source, pickles[0]), output))
    elif os.path.isfile(source):
        if source.lower().endswith(PICKLES) or re.match(rb'\x80[\x02-\x05]', _first_bytes(source)):
            raise InputError(pickle_advice(source, output))
        if packing(source):
            raise InputError(f'{source} is a {packing(source)} archive. Unpack it, and name the folder it gives; of '
                             'ILSVRC2012_img_train.tar, which is not compressed, the file itself.')


def packing(path):
    """The kind of compression of a file, such as 'gzip', or None."""
    begin = _first_bytes(path)
    return next((kind for mark, kind in PACKED.items() if begin.startswith(mark)), None)


def _first_bytes(path):
    with open(path, 'rb') as file:
        return file.read(8)


def ending(folder, endings):
    """Names of the files in a folder that end so, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(endings) and entry.is_file())


def pickle_advice(path, output):
    """What to do with a pickle of images instead of giving it to us."""
    part = next((part for part in ('test', 'val', 'train') if part in os.path.basename(path)), 'train')
    npz = os.path.join(output, {'val': 'dev'}.get(part, part) + '.npz')
    return f"""{path} is a pickle. To load one runs whatever its author has put there, so this program loads none.
If it is one of mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl, and you trust it, these three lines convert it,
and the other two with their names, into {', '.join(os.path.join(output, p + '.npz') for p in CSV_FILES)}:
    import pickle, data
    cache = pickle.load(open({path!r}, 'rb'), encoding='latin1')
    data.save_classes({npz!r}, {{k: cache['image_data'][v] for k, v in cache['class_dict'].items()}})"""
