"""Small ImageNets, made in every layout that preprocess_mini_imagenet reads, for its tests."""
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

import preprocess_mini_imagenet as preprocess
from sources.splits import CSV_FILES

CLASSES = {'train': ['n00000010', 'n00000002'], 'dev': ['n00000003'], 'test': ['n00000004']}
SYNSETS = [synset for names in CLASSES.values() for synset in names]
# In numeric order; sorted as text, 1000 and 33 would come before 9.
NUMBERS = [2, 9, 10, 33, 200, 1000]
RANKS = [1, 2, 3, 6]
LAYOUTS = ['big_tar', 'tars', 'folders', 'images', 'flat', 'classes', 'splits', 'classes in splits',
           'classes in images']


def color(synset, rank):
    return 40 * SYNSETS.index(synset) + 60, 30 * rank + 20, 120


def encode(image, kind='JPEG', **options):
    f = io.BytesIO()
    image.save(f, kind, **options)
    return f.getvalue()


def make_tar(files):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w') as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return f.getvalue()


def name_of(synset, rank):
    return f'{synset}{rank:08d}.jpg'


def make_content():
    """{synset: [bytes of the image of rank 1, of rank 2, ...]}, for a test to change and lay out."""
    return {synset: [encode(Image.new('RGB', (120, 100), color(synset, rank)), quality=95)
                     for rank in range(1, len(NUMBERS) + 1)] for synset in SYNSETS}


def write_splits(folder, extra=None):
    """Write the split files; `extra` is {csv name: rows to add}."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, synsets in CLASSES.items():
        name = CSV_FILES[split]
        rows = [f'{name_of(synset, rank)},{synset}' for synset in synsets for rank in RANKS]
        (folder / name).write_text('\n'.join(['filename,label'] + rows + (extra or {}).get(name, [])) + '\n')
    return folder


def lay_out(content, layout, folder):
    """Write the images in one of the layouts and return the SOURCE."""
    # A stranger among the synsets and a stray file among the images, which the ranks must not count.
    synsets = dict(content, n00000099=content[SYNSETS[0]])
    files = {synset: {f'{synset}_{number}.JPEG': data for number, data in zip(NUMBERS, images)}
             for synset, images in synsets.items()}
    folder.mkdir(parents=True)
    for synset, images in files.items():
        files[synset] = dict(sorted(images.items()), **{'notes.txt': b'not an image'})
    if layout == 'big_tar':
        path = folder / 'ILSVRC2012_img_train.tar'
        path.write_bytes(make_tar({synset + '.tar': make_tar(images) for synset, images in files.items()}))
        return path
    for synset, images in files.items():
        if layout == 'tars':
            (folder / f'{synset}.tar').write_bytes(make_tar(images))
        elif layout == 'folders':
            (folder / synset).mkdir()
            for name, data in images.items():
                (folder / synset / name).write_bytes(data)
    places = {'images': 'images', 'flat': '', 'classes': '{synset}', 'splits': '{split}',
              'classes in splits': '{split}/{synset}', 'classes in images': 'images/{synset}'}
    split_of = {synset: CSV_FILES[split][:-len('.csv')] for split, synsets in CLASSES.items() for synset in synsets}
    for synset, images in content.items() if layout in places else ():
        place = folder / places[layout].format(synset=synset, split=split_of[synset])
        place.mkdir(parents=True, exist_ok=True)
        for rank, data in enumerate(images, 1):
            (place / name_of(synset, rank)).write_bytes(data)
    return folder


def run_on(folder):
    """Write split files into folder/splits; return a function that runs the script on a source with these."""
    def run(source, *args, splits=folder / 'splits', output=folder / 'out'):
        preprocess.main([str(source), '--splits', str(splits), '--output', str(output), *args])
        return load(output)
    write_splits(folder / 'splits')
    return run


def load(output):
    result = {}
    for split in CLASSES:
        with np.load(output / f'{split}.npz') as npz:
            result[split] = dict(npz)
    return result


def error_of(call, *args, **options):
    with pytest.raises(SystemExit) as caught:
        call(*args, **options)
    assert isinstance(caught.value.code, str) and caught.value.code.startswith('error: ')
    return caught.value.code


def count_decoded(monkeypatch):
    """A list that grows by one entry for each image decoded."""
    calls, decode = [], preprocess.decode

    def counting(data, size):
        calls.append(size)
        return decode(data, size)
    monkeypatch.setattr(preprocess, 'decode', counting)
    return calls


def check(result):
    """Whether each class has the images of its ranks."""
    assert {split: list(classes) for split, classes in result.items()} == CLASSES
    for classes in result.values():
        for synset, images in classes.items():
            assert images.shape == (len(RANKS), 84, 84, 3) and images.dtype == np.uint8
            for image, rank in zip(images, RANKS):
                assert np.abs(image - np.array(color(synset, rank), float)).max() <= 3
