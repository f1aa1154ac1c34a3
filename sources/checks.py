"""Checks of data sets, which are dicts {class name: uint8 images}."""
import hashlib
import numbers

import numpy as np

from sources.distortion import MOST

COMPARED_SIZE = 1 << 30  # bytes up to which all images of a data set are compared with each other
TOLERATED = 1e-3  # share of a part's images that may be in another part: shrunk photographs can come out the same


def is_of_images(shape):
    """Whether an array of a shape is images of a class: (n_images, H, W), or (n_images, H, W, 3) in colour."""
    return len(shape) in (3, 4) and tuple(shape[3:]) in ((), (3,))


def image_shape(classes):
    """The channels and the size of the images of a data set.

    Args:
        classes: {class name: uint8 (n_images, size, size) or, in colour, (n_images, size, size, 3)}.

    Returns:
        (channels, size): 1 or 3, and the height and width in pixels.

    Raises:
        ValueError: there are no classes, or their images are not square, not of one shape, or neither grey nor in
            colour; the message names a class.
    """
    if not classes:
        raise ValueError('there are no classes: give a data set that has some')
    check_one_shape(classes, 'the data set')
    name, images = next(iter(classes.items()))
    if not is_of_images(images.shape):
        raise ValueError(f'the images of class {name!r} are an array of shape {images.shape}: give '
                         '(n_images, size, size), or (n_images, size, size, 3) in colour')
    height, width = images.shape[1:3]
    if height != width:
        raise ValueError(f'the images of class {name!r} are {width} pixels wide and {height} high: make all square')
    return (1 if images.ndim == 3 else 3), height


def check_one_shape(classes, where):
    """Refuses classes whose images differ in shape.

    Args:
        classes: {class name: images}, at least one.
        where: what to call the data set, such as the path of its file.

    Raises:
        ValueError: the images of two classes differ; the message names both.
    """
    shapes = {name: images.shape[1:] for name, images in classes.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ValueError(f'{where}: the images of class {name!r} have shape {shape}, those of class {first!r} '
                             f'{shapes[first]}: resize them to one shape')


def check_sampling(classes, way, shot, n_query, rotate, distortion):
    """Refuses what `data.EpisodeSampler` could make no episodes of; the arguments and the ValueError are as there."""
    if not 0 <= distortion <= MOST:
        raise ValueError(f'distortion is {distortion}, but must be from 0 to {MOST}')
    for setting, value, least in ('way', way, 2), ('shot', shot, 1), ('n_query', n_query, 1):
        if not isinstance(value, numbers.Integral) or value < least:
            raise ValueError(f'{setting} is {value!r}, but must be a whole number, at least {least}')
    if not classes:
        raise ValueError('there are no classes to sample from: load a data set that has some')
    if len(classes) < way:
        raise ValueError(f'{way}-way episodes need {way} classes, but there are only {len(classes)}: '
                         'lower the way, or load more classes')
    for name, images in classes.items():
        kind = getattr(images, 'dtype', f'a {type(images).__name__}')
        if kind != np.uint8:
            raise ValueError(f'the images of class {name!r} are {kind}: give an array of uint8, 0 to 255')
        if not is_of_images(images.shape):
            raise ValueError(f'the images of class {name!r} have shape {images.shape}: give (n_images, H, W), or '
                             '(n_images, H, W, 3) in colour')
    check_one_shape(classes, 'these classes')
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


def digest_of(source, *parts):
    """What tells data of one's own from others of the same name: a hash; '' of a data set that its name tells of.

    Args:
        source: the data set's name, as `omniglot` and `mini_imagenet` return it.
        parts: its {class name: images}. Of more than 1 GB the classes' names and shapes alone are hashed.
    """
    if not source.startswith('own data'):
        return ''
    whole = hashlib.md5(usedforsecurity=False)
    with_images = sum(array.nbytes for classes in parts for array in classes.values()) <= COMPARED_SIZE
    for classes in parts:
        for name, images in classes.items():
            whole.update(f'{name!r} {images.shape}\n'.encode('utf-8', 'backslashreplace'))
            if with_images:
                whole.update(images.tobytes())
    return whole.hexdigest()


def check_parts(parts, blank=True, identical=True):
    """Refuses parts of a data set that would make its results wrong.

    Args:
        parts: {path of a file: its classes}, such as the training and the test classes.
        blank, identical: look for such images too, if all together have 1 GB at most.

    Raises:
        ValueError: the parts' images differ in shape or are not square; a class is in two parts; more than one image
            in a thousand is in two parts; an image is blank, that is, all 0; no pixel of a part is above 1. The message
            names classes and files.
    """
    shapes = {path: image_shape(classes) for path, classes in parts.items()}
    first = next(iter(parts))
    owners = {}
    for path, classes in parts.items():
        if shapes[path] != shapes[first]:
            (channels, size), (others, other_size) = shapes[path], shapes[first]
            raise ValueError(f'the images in {path} are {size}x{size} with {channels} channels, those in {first} '
                             f'{other_size}x{other_size} with {others}: make them alike')
        for name in classes:
            if owners.setdefault(name, path) != path:
                raise ValueError(f'class {name!r} is in both {owners[name]} and {path}: it must be in one alone')
    n_bytes = sum(array.nbytes for classes in parts.values() for array in classes.values())
    if n_bytes <= COMPARED_SIZE:
        if blank:
            _check_blank(parts)
        if identical:
            _check_identical(parts)


def _check_blank(parts):
    for path, classes in parts.items():
        if max(images.max() for images in classes.values()) == 1:
            raise ValueError(f'{path}: no pixel is above 1, but white, or ink, is 255: multiply the images by 255')
        for name, images in classes.items():
            for i, image in enumerate(images):
                if not image.any():
                    raise ValueError(f'{path}: image {i} of class {name!r} is blank, all 0: remove it, or make the '
                                     'file anew with 255 for ink')


def _check_identical(parts):
    seen = {}
    for path, classes in parts.items():
        shared = []
        for name, images in classes.items():
            for i, image in enumerate(images):
                digest = hashlib.md5(image.tobytes(), usedforsecurity=False).digest()
                other = seen.setdefault(digest, (path, name, i))
                if other[0] != path:
                    shared.append((name, i, other))
        n_images = sum(map(len, classes.values()))
        if len(shared) > TOLERATED * n_images:
            name, i, (other_path, other_name, other_i) = shared[0]
            raise ValueError(f'image {i} of class {name!r} in {path} is the same as image {other_i} of class '
                             f'{other_name!r} in {other_path}, and so are {len(shared)} of {n_images} images there: a '
                             'test of them would tell nothing, remove them')
