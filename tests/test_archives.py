"""Npz files: of classes, damaged, and tampered with."""

import io
import os
import re
import struct
import warnings
import zipfile

import numpy as np
import pytest
from data_sets import marked_classes, same_classes

import data
from sources import archives


@pytest.mark.parametrize('shape', [(4, 4), (4, 5, 3)])
def test_classes_survive_saving_and_loading(tmp_path, shape):
    classes = {f'Greek/{name}': images for name, images in marked_classes(shape=shape).items()}
    data.save_classes(tmp_path / 'new folder' / 'a.npz', classes)
    loaded = data.load_classes(tmp_path / 'new folder' / 'a.npz')
    assert same_classes(loaded, classes)
    assert all(images.dtype == np.uint8 for images in loaded.values())


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_float_images_are_rounded_to_uint8(tmp_path, dtype):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.savez(tmp_path / 'a.npz', a=(images / 255).astype(dtype), b=np.full((2, 16, 16), 0.999, dtype))
    loaded = data.load_classes(tmp_path / 'a.npz')
    assert loaded['a'].dtype == np.uint8
    assert np.array_equal(loaded['a'], images) and (loaded['b'] == 255).all()


@pytest.mark.parametrize('bad', [
    np.zeros((2, 4, 4), np.int64),
    np.zeros((4, 4), np.uint8),
    np.zeros((2, 4, 4, 4), np.uint8),
    np.zeros((0, 4, 4), np.uint8),
    np.full((2, 4, 4), 1.5, np.float32),
    np.full((2, 4, 4), -0.1, np.float32),
    np.full((2, 4, 4), np.nan, np.float32),
    np.array([[['text']]], object),
    np.zeros((2, 5, 4), np.uint8),
    np.zeros((2, 4, 4, 3), np.uint8),
])
def test_a_bad_class_is_refused_by_name(tmp_path, bad):
    np.savez(tmp_path / 'a.npz', good=np.zeros((2, 4, 4), np.uint8), bad=bad)
    with pytest.raises(ValueError, match=r"a\.npz.*class 'bad'"):
        data.load_classes(tmp_path / 'a.npz')


def test_a_file_that_is_no_data_set_is_refused(tmp_path):
    path = tmp_path / 'a.npz'
    with pytest.raises(FileNotFoundError, match=r'a\.npz does not exist'):
        data.load_classes(path)
    path.write_text('not an npz')
    with pytest.raises(ValueError, match=r'a\.npz is not an npz'):
        data.load_classes(path)
    np.savez(path)
    with pytest.raises(ValueError, match=r'a\.npz holds no class'):
        data.load_classes(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / 'a.npz'
    data.save_classes(path, {'a': np.zeros((9, 28, 28), np.uint8)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz, class 'a'"):
        data.load_classes(path)


@pytest.mark.parametrize('failure', [OSError('disk full'), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise failure

    path = tmp_path / 'a.npz'
    data.save_classes(path, marked_classes())
    with pytest.raises(type(failure)):
        data.save_classes(path, {'fine': np.zeros((2, 4, 4), np.uint8), 'broken': Broken()})
    assert same_classes(data.load_classes(path), marked_classes())
    assert os.listdir(tmp_path) == ['a.npz']


def test_large_files_are_mapped_and_equal_what_is_read(tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    classes = {name: random.randint(256, size=(3, 4, 5)).astype(np.uint8) for name in ('a', 'b/c', 'd')}
    path = str(tmp_path / 'classes.npz')
    data.save_classes(path, classes)
    monkeypatch.setattr(archives, 'MAPPED_SIZE', 0)
    mapped = data.load_classes(path)
    assert list(mapped) == list(classes) and all((mapped[name] == classes[name]).all() for name in classes)
    assert not mapped['a'].flags.writeable
    np.savez_compressed(path, **classes)
    assert all((data.load_classes(path)[name] == classes[name]).all() for name in classes)
    np.savez(path, a=classes['a'] / np.float32(255), b=np.asfortranarray(classes['d']))
    loaded = data.load_classes(path)
    assert (loaded['a'] == classes['a']).all() and (loaded['b'] == classes['d']).all()


# Tampered files -------------------------------------------------------------------------------------------------------


def npy(shape=(2, 4, 4), content=None, descr='|u1', order=False, header=None):
    """The bytes of a .npy file, whose header may claim anything."""
    if header is None:
        header = repr({'descr': descr, 'fortran_order': order, 'shape': shape})
    header = header.encode().ljust(117) + b'\n'
    content = bytes(range(1, 33)) if content is None else content
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + content


def write_members(path, *members, compression=zipfile.ZIP_STORED):
    """A zip of members (name, content)."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w', compression) as archive:
        warnings.simplefilter('ignore')  # of two members of one name
        for name, content in members:
            archive.writestr(name, content)


def pickled():
    class Command:
        def __reduce__(self):
            return open, ('ran', 'w')

    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([Command()], object), allow_pickle=True)
    return file.getvalue()


def patched(offset, fmt, value, signature, nth=0):
    """Writes two good classes and changes a field in the nth header of the zip that has the signature."""
    def write(path):
        write_members(path, ('a.npy', npy()), ('b.npy', npy()))
        content = bytearray(path.read_bytes())
        place = [match.start() for match in re.finditer(re.escape(signature), content)][nth] + offset
        struct.pack_into(fmt, content, place, value)
        path.write_bytes(content)
    return write


def nested(path):
    """Two members, one of them within the bytes of the other, each right by itself."""
    write_members(path, ('b.npy', npy()))
    inner = path.read_bytes()
    inner, entry = inner[:inner.index(DIRECTORY)], inner[inner.index(DIRECTORY):-22]
    write_members(path, ('a.npy', npy(shape=(1, 1, len(inner)), content=inner)))
    outer = path.read_bytes()
    entry = entry[:42] + struct.pack('<I', outer.index(inner)) + entry[46:]
    end = struct.unpack('<4s4H2IH', outer[-22:])
    path.write_bytes(outer[:-22] + entry + struct.pack('<4s4H2IH', end[0], 0, 0, 2, 2, end[5] + len(entry), end[6], 0))


def member(name='b.npy', **options):
    return lambda path: write_members(path, ('a.npy', npy()), (name, npy(**options)))


LOCAL, DIRECTORY = b'PK\x03\x04', b'PK\x01\x02'
TAMPERED = {
    'more bytes than the member has': member(shape=(3, 4, 4)),
    'fewer bytes than the member has': member(shape=(1, 4, 4)),
    'a huge shape': member(shape=(10 ** 9, 10 ** 9, 10 ** 9)),
    'a shape of 400 digits': member(header=f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({'9' * 400}, 4, 4)}}"),
    'a huge empty shape': member(shape=(0, 10 ** 18, 10 ** 18), content=b''),
    'a negative shape': member(shape=(-2, -4, 4)),
    'a shape of truths': member(shape=(True, True, True), content=b'1'),
    'a shape of floats': member(shape=(2.0, 4, 4)),
    '33 dimensions': member(shape=(1,) * 33, content=b'1'),
    'no dimensions': member(shape=(), content=b'1'),
    'no header': lambda path: write_members(path, ('a.npy', npy()), ('b.npy', b'\x93NUMPY\x01\x00')),
    'an empty member': lambda path: write_members(path, ('a.npy', npy()), ('b.npy', b'')),
    'another format': lambda path: write_members(path, ('a.npy', npy()), ('b.npy', b'\x93NUMPY\x07\x00' + npy()[8:])),
    'a header that is code': member(header="__import__('os').system('echo >ran')"),
    'a header of brackets': member(header='[' * 117),
    'a header that lacks a key': member(header="{'descr': '|u1', 'shape': (2, 4, 4)}"),
    'a pickle': lambda path: write_members(path, ('a.npy', npy()), ('b.npy', pickled())),
    'an object array': member(descr='|O'),
    'a record array': member(descr=[('f', '|u1')], shape=(2, 4, 4)),
    'dates': member(descr='<M8[D]', shape=(4, 1, 1)),
    'text': member(descr='|S1'),
    'text of no letters': member(descr='|S0', shape=(2, 4, 4), content=b''),
    'big-endian integers': member(descr='>u2', shape=(1, 4, 4)),
    'NaN': member(descr='<f4', shape=(1, 1, 1), content=np.float32(np.nan).tobytes()),
    'infinity': member(descr='<f4', shape=(1, 1, 1), content=np.float32(np.inf).tobytes()),
    'big-endian NaN': member(descr='>f4', shape=(1, 1, 1), content=np.array(np.nan, '>f4').tobytes()),
    'two members of one name': member('a.npy'),
    'a member that is no array': member('readme.txt'),
    'a name with a control character': member('b\x1b[2J.npy'),
    'a name with a line break': member('b\n.npy'),
    'a name that turns the line around': member('b\u202e.npy'),
    'an encrypted member': patched(8, '<H', 1, DIRECTORY, 1),
    'an unknown compression': patched(10, '<H', 99, DIRECTORY, 1),
    'another compression': patched(10, '<H', 12, DIRECTORY, 1),
    'a directory that claims more': patched(24, '<I', 1 << 30, DIRECTORY, 1),
    'a member that reaches into the directory': patched(20, '<Q', 250 << 32 | 250, DIRECTORY, 1),
    'a member that reaches into the next': patched(20, '<Q', 250 << 32 | 250, DIRECTORY, 0),
    'a member that begins within another': patched(42, '<I', 20, DIRECTORY, 1),
    'a member that begins beyond the end': patched(42, '<I', 1 << 31, DIRECTORY, 1),
    'a member within another': nested,
    'a member of another name': patched(30, '<B', ord('c'), LOCAL, 1),
    'a local header that begins later': patched(28, '<H', 40, LOCAL, 0),
    'a flipped bit': patched(170, '<B', 77, LOCAL, 1),
    'a bomb': lambda path: write_members(path, ('a.npy', npy()), ('b.npy', npy(shape=(1, 1 << 14, 1 << 14))),
                                         compression=zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize('mapped_size', [0, 1 << 28])
@pytest.mark.parametrize('name', TAMPERED)
def test_a_tampered_file_is_refused_in_a_sentence_and_runs_nothing(tmp_path, monkeypatch, name, mapped_size):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(archives, 'MAPPED_SIZE', mapped_size)
    TAMPERED[name](tmp_path / 'x.npz')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(ValueError, match=r'x\.npz.*make the file anew') as error:
            data.load_classes(tmp_path / 'x.npz')
    message = str(error.value)
    assert '\n' not in message and '\x1b' not in message and len(message) < 600
    assert os.listdir(tmp_path) == ['x.npz']
    if name not in ('text', 'big-endian integers', 'NaN', 'infinity', 'big-endian NaN', 'no dimensions', '33 dimensions'
                    ) and 'truths' not in name:
        with pytest.raises(ValueError, match=r'x\.npz.*make the file anew'):
            archives.read_npz(tmp_path / 'x.npz')


@pytest.mark.parametrize('name, words', [
    ('an encrypted member', "x.npz: 'b.npy' in it is encrypted; make"),
    ('an object array', "class 'b': the array holds Python objects, which can run code"),
    ('a member within another', "'b.npy' does not begin where the array before it ends"),
    ('an unknown compression', "'b.npy' in it is compressed in an unknown way"),
    ('two members of one name', "x.npz: it holds two arrays called 'a'"),
    ('more bytes than the member has', r"class 'b': the array has shape \(3, 4, 4\), 48 bytes, but 32 follow"),
])
def test_the_sentence_says_what_is_wrong(tmp_path, name, words):
    TAMPERED[name](tmp_path / 'x.npz')
    with pytest.raises(ValueError, match=words):
        data.load_classes(tmp_path / 'x.npz')


def test_every_cut_and_every_changed_byte_is_refused_or_harmless(tmp_path):
    classes = {'a': np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2), 'b': np.ones((1, 2, 2), np.uint8)}
    path = tmp_path / 'x.npz'
    data.save_classes(path, classes)
    content = path.read_bytes()
    spoilt = [content[:n] for n in range(0, len(content), 7)]
    for i in range(len(content)):
        change = 0xff if i % 2 else 1
        spoilt.append(content[:i] + bytes([content[i] ^ change]) + content[i + 1:])
    n_refused = 0
    for other in spoilt:
        path.write_bytes(other)
        try:
            loaded = data.load_classes(path)
        except ValueError as error:
            n_refused += 1
            assert 'x.npz' in str(error)
        else:  # what zips hold besides, dates for instance, and names
            assert [images.tolist() for images in loaded.values()] == [images.tolist() for images in classes.values()]
    assert n_refused > len(spoilt) / 2


@pytest.mark.parametrize('array', [
    np.float32(1.5), np.array(7), np.array(True), np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((2, 3, 4))),
    np.arange(5, dtype='>i4'), np.array(['text', 'of letters']), np.array(b'bytes'), np.zeros((0, 3)),
    np.zeros(2, complex),
])
def test_arrays_of_every_plain_kind_are_read(tmp_path, array):
    array = np.asarray(array)
    np.savez(tmp_path / 'a.npz', x=array, **{'path/to/y': array.T})
    np.savez_compressed(tmp_path / 'b.npz', x=array, **{'path/to/y': array.T})
    for name in ('a.npz', 'b.npz'):
        loaded = archives.read_npz(tmp_path / name)
        assert list(loaded) == ['x', 'path/to/y']
        for value, expected in zip(loaded.values(), (array, array.T)):
            assert value.dtype == expected.dtype.newbyteorder('=') and value.shape == expected.shape
            assert np.array_equal(value, expected) and value.flags.c_contiguous and value.dtype.isnative
            value[...] = value[...]  # it is writeable


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_where_asked_for(tmp_path, bad):
    np.savez(tmp_path / 'a.npz', good=np.ones(3), bad=np.array([1, bad]))
    assert not np.isfinite(archives.read_npz(tmp_path / 'a.npz')['bad']).all()
    with pytest.raises(ValueError, match="a.npz, array 'bad': .*NaN or infinite; get it anew"):
        archives.read_npz(tmp_path / 'a.npz', 'get it anew', finite=True)


def test_headers_can_be_judged_before_any_array_is_read(tmp_path):
    np.savez(tmp_path / 'a.npz', x=np.ones((2, 3), np.float32), y=np.array(1))
    with archives.open_npz(tmp_path / 'a.npz') as archive:
        assert {name: (header.shape, header.dtype) for name, header in archive.headers.items()} == {
            'x': ((2, 3), np.float32), 'y': ((), np.array(1).dtype)}
        assert archive.read('x').tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no pipes with names')
def test_a_pipe_or_a_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.npz')
    os.mkdir(tmp_path / 'folder.npz')
    for name in ('pipe.npz', 'folder.npz'):
        with pytest.raises(FileNotFoundError, match=f'{name} does not exist or is no file'):
            data.load_classes(tmp_path / name)


def test_floats_of_the_other_byte_order_and_column_order_are_read_right(tmp_path):
    images = np.arange(1, 33).reshape(2, 4, 4)
    np.savez(tmp_path / 'a.npz', a=(images / 255).astype('>f4'), b=np.asfortranarray(images / 255))
    assert all((loaded == images).all() for loaded in data.load_classes(tmp_path / 'a.npz').values())


# Saving ---------------------------------------------------------------------------------------------------------------


def test_classes_may_have_any_plain_name(tmp_path):
    classes = {name: np.ones((1, 2, 2), np.uint8) for name in ('file', 'args', 'a/b', 'kanji \u6f22', 'arr_0', 'self')}
    data.save_classes(tmp_path / 'a.npz', classes)
    assert same_classes(data.load_classes(tmp_path / 'a.npz'), classes)
    with np.load(tmp_path / 'a.npz') as archive:
        assert archive.files == list(classes)


def test_files_of_classes_are_the_same_whenever_they_are_made(tmp_path):
    for name in ('a.npz', 'b.npz'):
        data.save_classes(tmp_path / name, marked_classes())
        os.utime(tmp_path / name, (0, 0))
    assert (tmp_path / 'a.npz').read_bytes() == (tmp_path / 'b.npz').read_bytes()
    assert len((tmp_path / 'a.npz').read_bytes()) > 8 * 6 * 4 * 4


@pytest.mark.parametrize('classes, message', [
    ({}, 'no classes'),
    ({1: np.ones((1, 2, 2), np.uint8)}, '1 cannot be the name'),
    ({'a\n': np.ones((1, 2, 2), np.uint8)}, 'cannot be the name'),
    ({'a': np.ones((1, 2, 2), int)}, "'a' .* dtype int64"),
    ({'a': np.ones((2, 2), np.uint8)}, "'a' .* shape .2, 2"),
    ({'a': np.full((1, 2, 2), 2.0)}, "'a' .*floats reach"),
    ({'a': [[1, 2], [3]]}, "'a' cannot"),
    ({'a': np.ones((1, 2, 2), np.uint8), 'b': np.ones((1, 3, 3), np.uint8)}, "class 'b' have shape"),
])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, classes, message):
    with pytest.raises(ValueError, match=message):
        data.save_classes(tmp_path / 'a.npz', classes)
    assert os.listdir(tmp_path) == []


def test_lists_and_floats_are_saved_as_uint8(tmp_path):
    data.save_classes(tmp_path / 'a.npz', {'a': [[[0.0, 1.0], [0.2, 0.4]]], 'b': np.ones((1, 2, 2), np.uint8)})
    assert data.load_classes(tmp_path / 'a.npz')['a'].tolist() == [[[0, 255], [51, 102]]]


def test_an_end_that_claims_several_disks_is_refused(tmp_path):
    path = tmp_path / 'a.npz'
    data.save_classes(path, marked_classes())
    content = path.read_bytes()
    locator = struct.pack('<4sIQI', b'PK\6\7', 0, 0, 2)
    path.write_bytes(content[:-22] + locator + content[-22:])
    with pytest.raises(ValueError, match='a.npz is not an npz file, or is cut short'):
        data.load_classes(path)


def test_a_name_of_a_class_that_is_too_long_is_refused(tmp_path):
    images = np.zeros((1, 2, 2), np.uint8)
    data.save_classes(tmp_path / 'a.npz', {'x' * 255: images})
    with pytest.raises(ValueError, match='x{255}.* cannot be the name of a class: .* of at most 255'):
        data.save_classes(tmp_path / 'b.npz', {'x' * 256: images})
