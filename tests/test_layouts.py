"""preprocess_mini_imagenet: where the images may lie, whose they may be, and what is refused."""
import gzip
import io
import os
import pickle
import tarfile
import textwrap
import zipfile

import numpy as np
import pytest
from PIL import Image
from small_imagenet import (
    CLASSES,
    LAYOUTS,
    NUMBERS,
    check,
    count_decoded,
    error_of,
    lay_out,
    make_content,
    make_tar,
    name_of,
    run_on,
    write_splits,
)

import data
import preprocess_mini_imagenet as preprocess
from sources import splits
from sources.imagenet import tar_files
from sources.splits import CSV_FILES


@pytest.fixture
def content():
    return make_content()


@pytest.fixture
def run(tmp_path):
    return run_on(tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    return count_decoded(monkeypatch)


# Images by name -------------------------------------------------------------------------------------------------------


def write_own(folder, rows):
    """Split files of one's own classes: {split: ['filename,label', ...]}."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, csv in CSV_FILES.items():
        (folder / csv).write_text('\n'.join(['filename,label', *rows[split], '']), encoding='utf-8')


def save(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (90, 90), (grey, 0, 0)).save(path)


@pytest.mark.parametrize('place', ['{label}/{name}', 'images/{label}/{name}', '{split}/{label}/{name}',
                                   '{split}/{name}', 'CUB/data/{label}/{name}', '{name}'])
def test_own_classes_are_read_wherever_their_files_lie(place, run, tmp_path):
    labels = {'train': ['001.Black_footed_Albatross', '2, a gull'], 'dev': ['apple'], 'test': ['\u6843 and train']}
    rows, greys = {}, {}
    for split, names in labels.items():
        rows[split] = []
        for label in names:
            for i in range(2):
                name, grey = f'{len(greys)}_{i}.png', 20 * len(greys) + 100
                greys.setdefault(label, []).append(grey)
                save(tmp_path / 'in' / place.format(label=label, name=name, split=split), grey)
                rows[split].append(f'{name},"{label}"')
            greys[label + str(i)] = None
    write_own(tmp_path / 'own', rows)
    result = run(tmp_path / 'in', '--size', '8', splits=tmp_path / 'own')
    assert {split: list(classes) for split, classes in result.items()} == labels
    for classes in result.values():
        for label, images in classes.items():
            assert images[:, 0, 0, 0].tolist() == greys[label]
    assert list(data.load_classes(str(tmp_path / 'out' / 'test.npz'))) == labels['test']


def test_names_with_folders_and_names_of_several_classes_are_told_apart(run, tmp_path):
    for split in CSV_FILES:
        for i, label in enumerate(('apple', 'pear')):
            save(tmp_path / 'in' / f'{label} {split}' / '0001.png', 50 * i + len(split))
    rows = {split: [f'0001.png,apple {split}', f'./pear {split}/0001.png,pear {split}'] for split in CSV_FILES}
    write_own(tmp_path / 'own', rows)
    result = run(tmp_path / 'in', splits=tmp_path / 'own')
    for split, classes in result.items():
        assert [images[0, 0, 0, 0] for images in classes.values()] == [len(split), 50 + len(split)]


def test_an_image_of_another_class_is_not_taken_for_a_missing_one(run, tmp_path, decoded):
    rows = {split: [f'0001.png,apple {split}', f'0001.png,pear {split}'] for split in CSV_FILES}
    write_own(tmp_path / 'own', rows)
    for split in CSV_FILES:
        for label in ('apple', 'pear')[:2 if split != 'dev' else 1]:
            save(tmp_path / 'in' / f'{label} {split}' / '0001.png', 9)
    error = error_of(run, tmp_path / 'in', splits=tmp_path / 'own')
    assert '1 problem' in error and '0001.png of class pear dev is not below' in error and not decoded
    # Nor is one of a folder that no split file names, where one class alone has that name.
    write_own(tmp_path / 'own', {**rows, 'dev': [rows['dev'][0], '0002.png,apple dev']})
    save(tmp_path / 'in' / 'zebra' / '0002.png', 255)
    assert '0002.png of class apple dev is not below' in error_of(run, tmp_path / 'in', splits=tmp_path / 'own')


def test_a_file_that_is_there_twice_or_would_be_two_images_is_an_error(run, tmp_path, decoded):
    rows = {split: [f'{split}.png,{split}'] for split in CSV_FILES}
    for split in CSV_FILES:
        save(tmp_path / 'in' / f'{split}.png', 9)
    save(tmp_path / 'in' / 'a' / 'b.png', 9)
    save(tmp_path / 'in' / 'c' / 'b.png', 9)
    rows['dev'].append('b.png,dev')
    write_own(tmp_path / 'own', rows)
    error = error_of(run, tmp_path / 'in', splits=tmp_path / 'own')
    assert 'b.png of class dev is there 2 times' in error and os.path.join('a', 'b.png') in error
    os.remove(tmp_path / 'in' / 'a' / 'b.png')
    rows['dev'].append('c/b.png,dev')
    rows['test'] += ['c/b.png,test', 'in/../b.png,test']
    write_own(tmp_path / 'own', rows)
    error = error_of(run, tmp_path / 'in', splits=tmp_path / 'own')
    assert 'c/b.png of class test is not below' in error and 'in a folder of that class or of its split' in error
    assert 'in/../b.png of class test is not below' in error
    rows['test'][1:] = ['c/b.png,test']
    rows['dev'][1:] = ['b.png,dev']
    write_own(tmp_path / 'own', rows)
    error = error_of(run, tmp_path / 'in', splits=tmp_path / 'own')
    assert 'would be two images, of dev and of test' in error and not decoded


def test_links_are_followed_and_do_not_go_round_in_circles(content, run, tmp_path):
    source = lay_out(content, 'classes', tmp_path / 'in')
    (source / 'round').mkdir()
    os.symlink(source, source / 'round' / 'again')
    (source / 'n00000003').rename(tmp_path / 'elsewhere')
    os.symlink(tmp_path / 'elsewhere', source / 'linked')
    check(run(source))


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no pipes in folders')
@pytest.mark.parametrize('layout', ['images', 'folders'])
def test_pipes_among_the_images_are_named_and_not_waited_for(layout, content, run, tmp_path, decoded):
    source = lay_out(content, layout, tmp_path / 'in')
    name = {'images': 'n0000001000000001.jpg', 'folders': 'n00000010_2.JPEG'}[layout]
    path = next(source.rglob(name))
    os.remove(path)
    os.mkfifo(path)
    error = error_of(run, source)
    assert name in error and 'is not a file' in error and not decoded


@pytest.mark.parametrize('row, words', [
    ('a.png', 'is not a file name and a label'), ('a.png,', 'is not a file name and a label'),
    ('./,b', 'is not a file name and a label'), ('"a\x1b[1m.png",b', 'control characters'),
    ('a.png,' + 'b' * 300, 'more than 255 characters'), ('train.png,train', 'is listed already')])
def test_bad_rows_of_own_classes_are_named(row, words, run, tmp_path):
    rows = {split: [f'{split}.png,{split}'] for split in CSV_FILES}
    rows['train'].append(row)
    write_own(tmp_path / 'own', rows)
    error = error_of(run, tmp_path, splits=tmp_path / 'own')
    assert 'train.csv, row 3' in error and words in error and '\x1b' not in error


@pytest.mark.parametrize('content', [b'\0' * 50, 'filename,label\na.png,b'.encode('utf-16'), b'"' + b'x' * 200_000,
                                     b'filename,label\na.png,\xff\xfe'])
def test_split_files_that_are_no_text_are_named(content, run, tmp_path):
    write_own(tmp_path / 'own', {split: [f'{split}.png,{split}'] for split in CSV_FILES})
    (tmp_path / 'own' / 'val.csv').write_bytes(content)
    assert 'val.csv' in error_of(run, tmp_path, splits=tmp_path / 'own')


# Complete synsets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch, tmp_path):
    """The classes here are those of mini-ImageNet, and complete with the images that they have."""
    rows = [f'{synset},{split},{len(NUMBERS)}' for split, names in CLASSES.items() for synset in names]
    (tmp_path / 'synsets.csv').write_text('\n'.join(['synset,split,n_images', *rows, '']))
    monkeypatch.setattr(splits, 'SYNSET_TABLE', str(tmp_path / 'synsets.csv'))


@pytest.mark.parametrize('layout', ['big_tar', 'tars', 'folders'])
def test_complete_synsets_pass_and_one_image_more_or_less_is_an_error(layout, content, run, tmp_path, decoded, known):
    check(run(lay_out(content, layout, tmp_path / 'complete'), output=tmp_path / 'good'))
    del decoded[:], content['n00000003'][1]
    NUMBERS.append(1001)
    try:
        content['n00000004'].append(content['n00000004'][0])
        error = error_of(run, lay_out(content, layout, tmp_path / 'in'))
    finally:
        NUMBERS.remove(1001)
    assert '2 problem' in error and not decoded
    assert any('n00000003' in line and 'has 5' in line and '6,' in line for line in error.splitlines())
    assert any('n00000004' in line and 'has 7' in line and '6,' in line for line in error.splitlines())


def test_of_other_synsets_any_number_will_do_and_a_line_says_so(content, run, tmp_path, known, capsys):
    write_splits(tmp_path / 'splits', {'val.csv': ['n0000009900000001.jpg,n00000099']})
    source = lay_out(content, 'tars', tmp_path / 'in')
    (source / 'n00000099.tar').write_bytes(make_tar({'n00000099_7.JPEG': content['n00000003'][0]}))
    assert len(run(source)['dev']) == 2
    assert 'cannot be checked' in capsys.readouterr().err


def test_the_table_has_the_counts_of_imagenet():
    table = splits.mini_imagenet_synsets()
    assert len(table) == 100
    fewer = {synset: n for synset, (_, n) in table.items() if n != 1300}
    assert fewer == {'n01704323': 1266, 'n02089867': 1025, 'n02606052': 969, 'n03062245': 1154, 'n03400231': 1222,
                     'n04443257': 1250, 'n04612504': 1206, 'n07584110': 1207, 'n03075370': 1216, 'n04418357': 1264}
    counts = [sum(part == split for part, _ in table.values()) for split in CSV_FILES]
    assert counts == [64, 16, 20]


# Packed images --------------------------------------------------------------------------------------------------------


class Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize('where', ['the file', 'a file without ending', 'its folder', 'its folder with split files'])
def test_a_pickle_is_not_loaded_and_the_three_lines_convert_it(where, run, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (5, 84, 84, 3), np.uint8)
    cache = {'image_data': images, 'class_dict': {'n00000003': [0, 1], 'n00000004': [2, 3, 4]}}
    path = tmp_path / 'in' / ('cache-val' if 'ending' in where else 'mini-imagenet-cache-val.pkl')
    path.parent.mkdir()
    path.write_bytes(pickle.dumps([Harmful(str(tmp_path / 'harm')), cache]))
    chosen = {'splits': tmp_path / ('splits' if 'split files' in where else 'in')}
    error = error_of(run, path.parent if 'folder' in where else path, **chosen)
    assert f'{path} is a pickle' in error and 'trust' in error and not (tmp_path / 'harm').exists()
    path.write_bytes(pickle.dumps(cache, protocol=2))
    lines = error.splitlines()[-3:]
    monkeypatch.syspath_prepend(os.path.dirname(data.__file__))
    exec(textwrap.dedent('\n'.join(lines)), {})
    made = data.load_classes(str(tmp_path / 'out' / 'dev.npz'))
    np.testing.assert_array_equal(made['n00000003'], images[:2])
    np.testing.assert_array_equal(made['n00000004'], images[2:])


def compressed(kind, files):
    f = io.BytesIO()
    if kind == 'zip':
        with zipfile.ZipFile(f, 'w') as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return f.getvalue()
    if kind == '7-Zip':
        return b'7z\xbc\xaf\x27\x1c' + bytes(99)
    if kind == 'gzip':
        return gzip.compress(make_tar(files))
    with tarfile.open(fileobj=f, mode={'bzip2': 'w:bz2', 'xz': 'w:xz'}[kind]):
        pass
    return f.getvalue()


@pytest.mark.parametrize('kind', ['gzip', 'zip', 'bzip2', 'xz', '7-Zip'])
def test_archives_are_refused_with_their_kind(kind, content, run, tmp_path, decoded):
    path = tmp_path / 'ILSVRC2012_img_train.tar'
    path.write_bytes(compressed(kind, {'n00000010.tar': b''}))
    error = error_of(run, path)
    assert f'is a {kind} archive' in error and 'Unpack it' in error
    source = lay_out(content, 'tars', tmp_path / 'in')
    (source / 'n00000003.tar').write_bytes(compressed(kind, {'n00000003_2.JPEG': content['n00000003'][0]}))
    error = error_of(run, source)
    assert f'compressed with {kind}' in error and 'n00000003.tar' in error and not decoded


def test_archives_beside_missing_images_are_named(run, tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'images.tar.gz').write_bytes(compressed('gzip', {}))
    error = error_of(run, tmp_path / 'in')
    assert 'unpack images.tar.gz' in error and 'n01532829.tar' in error


def test_a_tar_of_images_is_refused(content, run, tmp_path):
    path = tmp_path / 'mini.tar'
    path.write_bytes(make_tar({name_of('n00000010', 1): content['n00000010'][0]}))
    assert 'no tars of synsets' in error_of(run, path)


def test_two_members_of_one_name_are_an_error(content, run, tmp_path, decoded):
    source = lay_out(content, 'tars', tmp_path / 'in')
    inside = make_tar({'a/n00000003_2.JPEG': content['n00000003'][0], 'b/n00000003_2.JPEG': content['n00000003'][1]})
    (source / 'n00000003.tar').write_bytes(inside)
    error = error_of(run, source)
    assert 'two files called n00000003_2.JPEG' in error and 'n00000003.tar' in error and not decoded
    (tmp_path / 'big.tar').write_bytes(make_tar({'n00000003.tar': inside, 'again/n00000003.tar': inside}))
    assert 'two files called n00000003.tar' in error_of(run, tmp_path / 'big.tar')


@pytest.mark.parametrize('size', [b'\x80' + b'\x7f' * 11, b'\xff' * 12, b'\xff' * 10 + b'\xfe\0', b'77777777777\0'])
@pytest.mark.parametrize('kind', [b'0', b'x', b'L', b'S'])
def test_tars_with_impossible_sizes_end_in_an_error(size, kind, tmp_path):
    archive = bytearray(make_tar({'a.JPEG': b'x' * 100, 'b.JPEG': b'x' * 100}))
    archive[124:136], archive[156:157] = size, kind
    archive[148:156] = b' ' * 8
    archive[148:156] = b'%06o\0 ' % sum(archive[:512])
    (tmp_path / 'a.tar').write_bytes(archive)
    with pytest.raises(splits.InputError, match='a.tar'):
        tar_files(str(tmp_path / 'a.tar'))


def test_a_tar_whose_header_leads_back_is_an_error_and_not_read_for_ever(tmp_path):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w', format=tarfile.PAX_FORMAT) as tar:
        for i in range(3):
            member = tarfile.TarInfo(f'{i}.JPEG')
            member.pax_headers = {'size': '-1536'}
            tar.addfile(member)
    (tmp_path / 'a.tar').write_bytes(f.getvalue())
    with pytest.raises(splits.InputError, match='header at byte 0 is broken'):
        tar_files(str(tmp_path / 'a.tar'))


# Bad input: an error before any image is decoded ----------------------------------------------------------------------


def test_missing_split_files_error_tells_where_to_get_them_and_names_the_synsets(content, tmp_path):
    source = lay_out(content, 'tars', tmp_path / 'in')
    error = error_of(preprocess.main, [str(source), '--output', str(tmp_path / 'out')])
    assert 'train.csv, val.csv, test.csv' in error and 'meta-learning-lstm' in error and '--splits' in error
    lines = {line.split(':')[0].strip(): line.split()[1:] for line in error.splitlines()[1:]}
    assert [len(lines[split]) for split in CLASSES] == [64, 16, 20]
    assert len(set(sum(lines.values(), []))) == 100


def test_only_the_missing_split_file_is_named(content, run, tmp_path):
    os.remove(tmp_path / 'splits' / 'val.csv')
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    assert 'val.csv' in error and 'train.csv' not in error


@pytest.mark.parametrize('row, words', [
    ('n000000100000001.jpg,n00000010', []),  # seven digits of rank
    ('n0000001000000000.jpg,n00000010', ['from 1']),
    ('n0000001000000005.png,n00000010', []),
    ('n0000001000000005.jpg', []),
    ('n0000001000000005.jpg,n00000010,5', []),
    ('n0000001000000005.jpg,n00000002', ['label', 'n00000002']),
    ('n0000001000000003.jpg,n00000010', ['row 4']),  # a duplicate
])
def test_bad_row_is_named(row, words, content, run, tmp_path, decoded):
    splits = write_splits(tmp_path / 'splits', {'train.csv': [row]})
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    for word in ['train.csv, row 10', row.split(',')[0][:9]] + words:
        assert word in error
    assert str(splits) in error and not decoded


def test_class_of_two_splits_is_an_error(content, run, tmp_path, decoded):
    write_splits(tmp_path / 'splits', {'test.csv': ['n0000001000000005.jpg,n00000010']})
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    assert 'test.csv, row 6' in error and 'class n00000010' in error and 'train.csv' in error
    assert not decoded


def test_all_bad_rows_and_headers_are_named_at_once(content, run, tmp_path):
    splits = write_splits(tmp_path / 'splits', {'train.csv': ['first,bad', 'second,bad']})
    (splits / 'val.csv').write_bytes(b'file,class\xff\n')
    (splits / 'test.csv').write_text('filename,label\n')
    error = error_of(run, lay_out(content, 'tars', tmp_path / 'in'))
    for word in ('row 10', 'row 11', 'file,class', 'test.csv: no images'):
        assert word in error


@pytest.mark.parametrize('layout', ['big_tar', 'tars', 'folders'])
def test_all_missing_synsets_and_images_are_named_at_once(layout, content, run, tmp_path, decoded):
    del content['n00000002'], content['n00000004']
    del content['n00000003'][5]
    error = error_of(run, lay_out(content, layout, tmp_path / 'in'))
    assert 'n00000002 n00000004' in error and 'n00000010' not in error
    assert 'n00000003' in error and 'rank 6' in error and 'only 5' in error
    assert not decoded


@pytest.mark.parametrize('layout', LAYOUTS[3:])
def test_missing_jpgs_are_named(layout, content, run, tmp_path, decoded):
    source = lay_out(content, layout, tmp_path / 'in')
    for name in ('n0000001000000001.jpg', 'n0000000300000002.jpg'):
        os.remove(next(source.rglob(name)))
    error = error_of(run, source)
    assert 'n0000001000000001.jpg' in error and 'n0000000300000002.jpg' in error and '2 problem' in error
    assert str(source) in error and not decoded


def test_two_images_of_one_number_are_an_error(content, run, tmp_path):
    source = lay_out(content, 'folders', tmp_path / 'in')
    (source / 'n00000003' / 'n00000003_09.jpg').write_bytes(content['n00000003'][0])
    error = error_of(run, source)
    assert 'n00000003' in error and 'same number' in error


@pytest.mark.parametrize('damage', ['cut', 'cut between images', 'broken header', 'not a tar', 'empty'])
def test_damaged_tars_are_named(damage, content, run, tmp_path, decoded):
    source = lay_out(content, 'tars', tmp_path / 'in')
    for synset in ('n00000010', 'n00000003'):
        path = source / f'{synset}.tar'
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            last = tar.getmembers()[-1].offset
        path.write_bytes({
            'cut': data[:last - 700], 'cut between images': data[:last], 'not a tar': b'a web page' * 99,
            'broken header': data[:last] + b'x' * 512 + data[last + 512:], 'empty': b''}[damage])
    error = error_of(run, source)
    assert 'n00000010.tar' in error and 'n00000003.tar' in error and 'n00000002' not in error
    assert not decoded


def test_damage_inside_the_big_tar_is_named(content, run, tmp_path):
    source = lay_out(content, 'big_tar', tmp_path / 'in')
    with tarfile.open(source) as tar:
        start = tar.getmember('n00000003.tar').offset_data
    with open(source, 'r+b') as f:
        f.seek(start)
        f.write(b'x' * 100)
    error = error_of(run, source)
    assert 'n00000003' in error and str(source) in error and 'n00000010' not in error


def test_big_tar_whose_download_stopped_is_named(content, run, tmp_path):
    source = lay_out(content, 'big_tar', tmp_path / 'in')
    os.truncate(source, os.path.getsize(source) // 2)
    assert str(source) in error_of(run, source)


def test_missing_source_is_named(run, tmp_path):
    assert str(tmp_path / 'nowhere') in error_of(run, tmp_path / 'nowhere')


@pytest.mark.parametrize('arguments', [
    ['--size', '0'], ['--workers', '0'], ['--size', '100000'], ['--workers', '1' + '0' * 400], ['--size', 'nan'],
    ['--output', ''], ['--splits', '']])
def test_bad_options_are_refused(arguments, run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize('name, value', [('size', 84.), ('size', None), ('workers', True), ('output', None),
                                         ('source', None), ('splits', 3)])
def test_bad_constants_are_refused(name, value, monkeypatch, capsys):
    monkeypatch.setattr(preprocess, name, value)
    with pytest.raises(SystemExit):
        preprocess.main([])
    assert f'{name} = {value!r} at the top of the script' in capsys.readouterr().err
