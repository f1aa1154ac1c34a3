"""Where the images lie that split files list: in ImageNet's tars or folders by rank, or anywhere by name.

Names of mini-ImageNet's images are 9 characters of synset and 8 digits of rank: n0153282900000005.jpg is the fifth
image of n01532829, counted from 1 in the order of the numbers in ImageNet's names (n01532829_9.JPEG is before
n01532829_10.JPEG). Ranks hold only for synsets that are complete.
"""

import collections
import contextlib
import os
import re
import sys
import tarfile

from tqdm import tqdm

from sources.files import walk
from sources.images import is_system_file
from sources.splits import CSV_FILES, PICKLES, InputError, ending, known_counts, packing, pickle_advice, ranked, stop_on

SPLIT_FOLDERS = {'train', 'val', 'dev', 'test', 'images'}
ARCHIVES = ('.gz', '.tgz', '.zip', '.bz2', '.xz', '.7z', '.rar', '.zst', '.tar')


def tar_files(path, start=0, n_bytes=None):
    """Lists the files of an uncompressed tar, or of one inside the file `path`: `n_bytes` from `start` on.

    Returns:
        {base name: (path, offset, n_bytes)}.

    Raises:
        InputError: The tar is damaged, cut off or compressed, or has two files of one name.
    """
    stop = os.path.getsize(path) if n_bytes is None else start + n_bytes
    try:
        with open(path, 'rb') as f:
            f.seek(start)
            members = _members(f)
            # tarfile takes a broken header for the end of the tar, but the true end is a block of zeros.
            end = members[-1].offset_data + -(-members[-1].size // 512) * 512 if members else start
            f.seek(end)
            if end + 512 > stop or f.read(512) != bytes(512):
                raise tarfile.ReadError(f'no end mark after {len(members)} members')
    except Exception as error:  # on broken bytes, tarfile raises more than its own errors, and asks for any memory
        kind = None if start else packing(path)
        reason = f'it is compressed with {kind}, uncompress it' if kind else str(error) or type(error).__name__
        raise InputError(f'{path} is no complete, uncompressed tar from byte {start} on: {reason}') from error
    result = {}
    for member in members:
        name = os.path.basename(member.name)
        if member.isfile() and not member.issparse() and not is_system_file(name):
            if name in result:
                raise InputError(f'{path} has two files called {name} from byte {start} on')
            result[name] = (path, member.offset_data, member.size)
    return result


def _members(file):
    """All members of a tar. Sizes below 0, with which tarfile would go round in circles, are an error."""
    result = []
    with tarfile.open(fileobj=file, mode='r:') as tar:
        for member in tar:
            if member.size < 0 or result and member.offset <= result[-1].offset:
                raise tarfile.ReadError(f'the header at byte {member.offset} is broken')
            result.append(member)
    return result


def synset_files(source, tars, synset):
    """Returns {name: (path, offset, n_bytes)} for a synset's files, or None if `source` lacks the synset.

    `tars` are the places of the tars in one big tar. A length of -1 means the whole file; instead of a place, None
    stands for what is no file, such as a pipe.
    """
    tar, folder = os.path.join(source, synset + '.tar'), os.path.join(source, synset)
    if synset + '.tar' in tars:
        return tar_files(*tars[synset + '.tar'])
    if os.path.isfile(tar):
        return tar_files(tar)
    if os.path.isdir(folder):
        with os.scandir(folder) as entries:
            return {entry.name: (entry.path, 0, -1) if entry.is_file() else None for entry in entries}
    return None


def original(synset):
    """The pattern of the names of a synset's images in ImageNet, their number as a group."""
    return re.compile(synset + r'_([0-9]+)\.jpe?g', re.IGNORECASE)


def locate(source, splits, listed, output):
    """Finds the bytes of all listed images without reading them.

    Args:
        source (str): ILSVRC2012_img_train.tar; or a folder of tars or folders of synsets, with ImageNet's names for
            images; or a folder below which the images lie under the names that the split files give.
        splits (dict): Those that are wanted of the splits that `read_splits` returns.
        listed (dict): All that it returns.
        output (str): Folder of the results, for messages.

    Returns:
        {label: [(path, offset, n_bytes), ...]}, in the order of `splits`.

    Raises:
        InputError: `source` is none of these; it lacks synsets or images, has a synset with another number of images
            than ImageNet, or several files for an image; a tar is damaged.
    """
    if not os.path.isfile(source) and not os.path.isdir(source):
        raise InputError(f'{source} is neither a file nor a folder. Name ILSVRC2012_img_train.tar, a folder of tars '
                         '(n01532829.tar) or of folders (n01532829), or one with the images that the split files list.')
    classes = {label: names for part in splits.values() for label, names in part.items()}
    counts = known_counts(listed)
    if os.path.isdir(source):
        by_rank = ranked(splits) and not os.path.isdir(os.path.join(source, 'images')) and any(
            _has_originals(source, synset) for synset in classes)
        return _locate_ranks(source, {}, classes, counts) if by_rank else _locate_names(source, splits, listed, output)
    if not ranked(splits):
        raise InputError(f'{source} is a file, but the split files list files by name. Unpack it, and name the folder.')
    tars = tar_files(source)
    if not any(name.endswith('.tar') for name in tars):
        raise InputError(f'{source} holds {len(tars)} files, but no tars of synsets such as n01532829.tar. Unpack it, '
                         'and name the folder.')
    return _locate_ranks(source, tars, classes, counts)


def _has_originals(source, synset):
    if os.path.isfile(os.path.join(source, synset + '.tar')):
        return True
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), \
            os.scandir(os.path.join(source, synset)) as entries:
        return any(original(synset).fullmatch(entry.name) for entry in entries)
    return False


def _locate_ranks(source, tars, classes, counts):
    """The images of the listed ranks among each synset's, which have ImageNet's names."""
    if not counts:
        print('The classes are not all of mini-ImageNet: whether synsets are complete, without which ranks mean other '
              'images, cannot be checked.', file=sys.stderr)
    places, missing, problems = {}, [], []
    for synset, names in tqdm(classes.items(), desc='Listing', unit=' synsets', disable=None):
        try:
            files = synset_files(source, tars, synset)
        except InputError as error:
            problems.append(f'{synset}: {error}')
            continue
        if files is None:
            missing.append(synset)
            continue
        matches = [match for match in map(original(synset).fullmatch, files) if match]
        numbered = sorted((int(match[1]), match[0]) for match in matches)
        ranks = [int(name[9:17]) for name in names]
        odd = [name for _, name in numbered if files[name] is None]
        wanted = counts.get(synset, len(numbered))
        if odd:
            problems.append(f'{synset}: {odd[0]} in {source} is not a file')
        elif len({number for number, _ in numbered}) < len(numbered):
            problems.append(f'{synset}: two of its images in {source} have the same number')
        elif len(numbered) != wanted:
            problems.append(f'{synset}: {source} has {len(numbered)} of its images, ImageNet (ILSVRC2012, training) '
                            f'{wanted}, so that ranks would mean other images')
        elif max(ranks) > len(numbered):
            problems.append(f'{synset}: the split files list images up to rank {max(ranks)}, but {source} '
                            f'has only {len(numbered)}')
        else:
            places[synset] = [files[numbered[rank - 1][1]] for rank in ranks]
    if missing:
        problems.insert(0, f'{source} lacks {len(missing)} of {len(classes)} synsets: ' + ' '.join(missing))
    stop_on(problems, 'Get these synsets anew, complete, from ILSVRC2012_img_train.tar. If yours are a choice of '
                      'images, list them by their own names, as in n01532829_1234.JPEG,n01532829, in all split files.')
    return places


def _locate_names(source, splits, listed, output):
    """The files with the listed names, wherever they lie below `source`."""
    rows = [(split, label, name) for split, classes in splits.items() for label, names in classes.items()
            for name in names]
    times = collections.Counter(name for part in listed.values() for names in part.values() for name in names)
    labels = {label for part in listed.values() for label in part} - SPLIT_FOLDERS
    found, odd = _walk(source, {_parts(name)[-1] for name in times})
    folders = {folder for paths in found.values() for path in paths for folder in path.split('/')[:-1]}
    places, owner, problems, n_missing = {}, {}, [], 0
    for split, label, name in rows:
        paths = [os.path.join(source, path) for path in
                 _choose(found, name, label, labels, split, times[name] == 1, label in folders)]
        if not paths:
            n_missing += 1
            problems.append(f'{name} of class {label} is not below {source}'
                            + ('' if times[name] == 1 else ', in a folder of that class or of its split'))
        elif len(paths) > 1:
            problems.append(f'{name} of class {label} is there {len(paths)} times: {paths[0]}, {paths[1]}')
        elif paths[0] in odd:
            problems.append(f'{paths[0]} is not a file')
        elif paths[0] in owner:
            problems.append(f'{paths[0]} would be two images, of {owner[paths[0]]} and of {label}')
        else:
            owner[paths[0]] = label
            places.setdefault(label, []).append((paths[0], 0, -1))
    advice = ('Put there, once, all images that the split files list; folders of classes, of splits and images/ '
              'may hold them.')
    if n_missing == len(rows):
        problems = [f'none of the {n_missing} images that the split files list is below {source}']
        advice += ' Of ImageNet itself, put there the tars (n01532829.tar) or folders (n01532829) of all its synsets.'
    archives, pickles = ending(source, ARCHIVES), ending(source, PICKLES)
    if n_missing and archives:
        advice += f' Archives are not searched: unpack {", ".join(archives[:3])}.'
    if n_missing and pickles:
        advice += '\n' + pickle_advice(os.path.join(source, pickles[0]), output)
    stop_on(problems, advice)
    return places


def _parts(name):
    return [part for part in name.replace('\\', '/').split('/') if part != '.']


def _choose(found, name, label, labels, split, unique, has_folder):
    """The paths among `found` that may be the image `name` of a class: one, if all is well.

    `labels` are those of all classes; `unique` says that the name is listed for one class alone, `has_folder` that some
    of the images lie in a folder of the class.
    """
    parts = _parts(name)
    paths, there, places = [], found.get(parts[-1], ()), ({label}, {split, os.path.splitext(CSV_FILES[split])[0]})
    if unique:
        for exact in ('/'.join(parts), '/'.join(['images', *parts])):
            if exact in there:
                return [exact]
    for path in there:
        *folders, _ = path.split('/')
        outer = path.split('/')[:-len(parts)]
        # 0001.jpg in another class's folder is another image; and if several classes have one, it needs a folder.
        foreign = outer and outer[-1] in labels and outer[-1] != label
        placed = unique or set.union(*places) & set(folders)
        if path.split('/')[-len(parts):] == parts and placed and not foreign:
            paths.append(path)
    for place in places:
        paths = [path for path in paths if place & set(path.split('/')[:-1])] or paths
    if has_folder:  # no image of the class is elsewhere
        return [path for path in paths if label in path.split('/')[:-1]]
    return paths


def _walk(source, wanted):
    """Finds all that has a wanted name and is no folder; links are followed.

    Returns:
        {base name: [path from `source` with /, ...]}.
        set: the paths, with `source`, of those that are no files.
    """
    def onerror(error):
        if not isinstance(error, PermissionError):
            raise error

    found, odd = {}, set()
    for place, names in walk(source, onerror):
        for name in wanted.intersection(names):
            path = os.path.relpath(os.path.join(place, name), source).replace(os.sep, '/')
            found.setdefault(name, []).append(path)
            if not os.path.isfile(os.path.join(source, path)):
                odd.add(os.path.join(source, path))
    return found, odd
