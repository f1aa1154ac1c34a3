"""mini-ImageNet, from the files that preprocess_mini_imagenet.py makes."""

import os

from sources.archives import load_classes
from sources.checks import check_parts
from sources.files import print_banner
from sources.splits import mini_imagenet_synsets
from sources.synthetic import synthetic_textures

MINI_IMAGENET = 'data/miniImagenet'
FEWEST = 500  # of the 600 images that each of its classes has: with fewer, results are not those of mini-ImageNet


def mini_imagenet(input_path=MINI_IMAGENET):
    """mini-ImageNet (Vinyals et al., 2016; the split of Ravi & Larochelle, 2017), as prepared by this project.

    Reads `input_path`/{train,dev,test}.npz, which preprocess_mini_imagenet.py makes; any data set in that form will do.
    If none of the three is in the default folder, a banner on stderr says so, and 64 + 16 + 20 classes of synthetic
    textures are returned.

    Args:
        input_path: the folder.

    Returns:
        (train, dev, test, name): three dicts {class name: uint8 (n_images, H, W, 3)}, memory-mapped if large, and the
        data set's name for results: 'mini-ImageNet' if the classes are its own, with 500 images or more of 84x84,
        'own data (FOLDER)' for others, or 'synthetic textures'.

    Raises:
        FileNotFoundError: some of the three files are missing.
        ValueError: as `load_classes`; the images are not in colour or not square, or of different sizes in the three
            files; a class is in two of them. Also, in data of one's own of up to 1 GB, for a blank image, and for an
            image that is in two files.
    """
    paths = {part: os.path.join(input_path, part + '.npz') for part in ('train', 'dev', 'test')}
    missing = [path for path in paths.values() if not os.path.isfile(path)]
    if len(missing) == len(paths) and input_path == MINI_IMAGENET:
        print_banner('mini-ImageNet', 'synthetic textures', f'{missing[0]} does not exist', (
            'run preprocess_mini_imagenet.py on your ImageNet images,\n'
            'or set input_path to the folder that holds its train.npz, dev.npz and test.npz'))
        classes = list(synthetic_textures(100).items())
        return dict(classes[:64]), dict(classes[64:80]), dict(classes[80:]), 'synthetic textures'
    if missing:
        raise FileNotFoundError(f'{", ".join(missing)} missing: make all of train.npz, dev.npz and test.npz with '
                                'preprocess_mini_imagenet.py')
    parts = {path: load_classes(path) for path in paths.values()}
    owners, shapes = {}, set()
    for path, classes in parts.items():
        shape = next(iter(classes.values())).shape[1:]
        shapes.add(shape)
        if len(shape) != 3 or shape[0] != shape[1] or len(shapes) > 1:
            raise ValueError(f'the images in {path} have shape {shape}: all three files must hold square colour '
                             'images of one size; make them anew with preprocess_mini_imagenet.py')
        owners.update(dict.fromkeys(classes, path))
    fewest = min(len(images) for classes in parts.values() for images in classes.values())
    known = shape[0] == 84 and fewest >= FEWEST
    known &= owners == {name: paths[part] for name, (part, _) in mini_imagenet_synsets().items()}
    check_parts(parts, blank=not known, identical=not known)
    folder = os.path.basename(os.path.abspath(input_path))
    return (*parts.values(), 'mini-ImageNet' if known else f'own data ({folder})')
