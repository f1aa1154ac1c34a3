"""Npz files: read without trusting them, and the files of classes that data sets are kept in.

An npz is a zip of .npy members, each a header and the bytes of one array. Nothing that such a file says about itself is
taken on trust: directory, headers and sizes must agree with each other and with the file before an array is made, and a
pickle is never opened.
"""

import contextlib
import math
import os
import re
import struct
import typing
import zipfile
import zlib

import numpy as np

from sources.checks import check_one_shape, is_of_images
from sources.files import replacing

MAPPED_SIZE = 1 << 28  # bytes from which an npz of classes is mapped instead of read
CHUNK = 1 << 20  # bytes read at a time
MAX_RATIO = 1100  # no deflated byte gives more than 1032
MAX_NAME = 255  # characters of a class's name
UNSAFE = re.compile('[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')

# What a damaged or tampered zip makes zipfile and NumPy raise.
BROKEN = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, OverflowError,
          SyntaxError, TypeError, KeyError, IndexError)


# Any npz --------------------------------------------------------------------------------------------------------------


class BadFile(ValueError):
    """A file's content is refused; the message names the file, and says why and what to do."""


class Header(typing.NamedTuple):
    """What a member of an npz says about its array."""

    shape: tuple
    dtype: np.dtype
    fortran: bool  # the first index runs fastest
    size: int  # of the header itself, in bytes


class Archive:
    """An open npz file whose directory and headers have been checked.

    Attributes:
        headers: {name of an array: `Header`}, in the file's order. Shapes and dtypes can be judged by these, before any
            array is read.
    """

    def __init__(self, file, remedy, kind):
        self.path = file.name
        self._remedy = remedy
        self._kind = kind
        self._file = file
        with self.plain_errors():
            self._zip = zipfile.ZipFile(file)
            self._members = self._check_directory()
        self.headers = {}
        for name, member in self._members.items():
            with self.plain_errors(name), self._zip.open(member) as content:
                self.headers[name] = _read_header(content, member)

    def _check_directory(self):
        """{name: ZipInfo} of the members, which must follow each other without gaps, and be what NumPy writes."""
        members, end, slack = {}, 0, 0
        for member in sorted(self._zip.infolist(), key=lambda member: member.header_offset):
            name = member.filename
            if UNSAFE.search(member.orig_filename):
                raise ValueError(f'it has a control character in the name {member.orig_filename!r}')
            if not name.endswith('.npy'):
                raise ValueError(f'{name!r} in it is no array')
            if name in members:
                raise ValueError(f'it holds two arrays called {name[:-4]!r}')
            if member.flag_bits & 1:
                raise ValueError(f'{name!r} in it is encrypted')
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f'{name!r} in it is compressed in an unknown way')
            start = self._data_start(member)
            if not end <= member.header_offset <= end + slack:
                raise ValueError(f'{name!r} does not begin where the array before it ends')
            stored = member.compress_type == zipfile.ZIP_STORED
            if stored and member.file_size != member.compress_size or (
                    member.file_size > MAX_RATIO * member.compress_size):
                raise ValueError(f'{name!r} claims other bytes than the file has')
            members[name] = member
            end = start + member.compress_size
            slack = 24 if member.flag_bits & 8 else 0  # its checksum and sizes may follow
        if not end <= self._zip.start_dir <= end + slack:
            raise ValueError('its directory does not begin where its last array ends')
        return {member.filename[:-4]: member for member in self._zip.infolist()}

    def _data_start(self, member):
        """Where in the file a member's bytes begin; its local header must agree with the directory."""
        self._file.seek(member.header_offset)
        local = self._file.read(30)
        if len(local) < 30 or local[:4] != b'PK\3\4':
            raise ValueError(f'{member.filename!r} is not where the directory of the file says')
        name_length, extra_length = struct.unpack('<HH', local[26:30])
        encoding = 'utf-8' if member.flag_bits & 0x800 else 'cp437'
        if self._file.read(name_length).decode(encoding, 'replace') != member.orig_filename:
            raise ValueError(f'{member.filename!r} has another name in the directory of the file')
        return member.header_offset + 30 + name_length + extra_length

    @contextlib.contextmanager
    def plain_errors(self, name=None):
        """Turns what a damaged file raises into `BadFile`, with the names of the file and of the array `name`."""
        where = self.path if name is None else f'{self.path}, {self._kind} {name!r}'
        try:
            yield
        except BadFile:
            raise
        except MemoryError as error:
            raise BadFile(f'{where}: it does not fit into memory; free some, or {self._remedy}') from error
        except BROKEN as error:
            raise BadFile(f'{where}: {error or type(error).__name__}; {self._remedy}') from error

    def read(self, name):
        """Reads an array.

        Args:
            name: a key of `headers`.

        Returns:
            The array, in C order and this machine's byte order; it is the caller's to change.

        Raises:
            ValueError: it is damaged, or does not fit into memory.
        """
        with self.plain_errors(name), self._zip.open(self._members[name]) as file:
            shape, dtype, fortran, size = self.headers[name]
            file.read(size)
            content = bytearray(self._members[name].file_size - size)
            view, n_read = memoryview(content), 0
            while n_read < len(content):  # at the member's end its checksum is compared
                n_new = file.readinto(view[n_read:n_read + CHUNK])
                if not n_new:
                    raise ValueError('it is cut short')
                n_read += n_new
            array = np.ndarray(shape, dtype, content, order='F' if fortran else 'C')
            return np.ascontiguousarray(array, dtype.newbyteorder('=')).reshape(shape)

    def mapped(self, name, content):
        """An array as a view of the file's `content`, a uint8 array; None where the file has it in another form."""
        shape, dtype, fortran, size = self.headers[name]
        member = self._members[name]
        if fortran or not dtype.isnative or member.compress_type != zipfile.ZIP_STORED:
            return None
        with self.plain_errors(name):
            start = self._data_start(member)
            if zlib.crc32(content[start:start + member.file_size]) != member.CRC:
                raise ValueError('its checksum is wrong')
            return np.asarray(content[start + size:start + member.file_size]).view(dtype).reshape(shape)


def _read_header(file, member):
    """The `Header` of an open .npy member, checked against the size of the member."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f'version {version} of the .npy format is unknown')
        shape, fortran, dtype = read(file)
    except (MemoryError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # the header is a Python literal, which can fail to be read in many ways
        message = str(error).split('\n')[0][:200]
        raise ValueError(f'it does not begin as an array does ({message})') from error
    if dtype.hasobject:
        raise ValueError('the array holds Python objects, which can run code: they are not read')
    if dtype.kind not in 'biufcSU' or dtype.itemsize == 0:
        raise ValueError(f'the array has dtype {dtype}')
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape):
        raise ValueError('the array has an impossible shape')
    expected = math.prod(shape) * dtype.itemsize
    if expected != member.file_size - file.tell():
        raise ValueError(f'the array has shape {shape}, {expected} bytes, but {member.file_size - file.tell()} follow')
    return Header(shape, dtype, fortran, file.tell())


@contextlib.contextmanager
def open_npz(path, remedy='make the file anew', kind='array'):
    """Opens an npz file and checks all about it but the arrays' values. A context manager.

    Refused are files that are cut short; members that are encrypted, unknown to NumPy's format, of one name, or lie
    within each other; headers that claim more, or less, than the file holds; arrays of Python objects; control
    characters in names.

    Args:
        path: of the file.
        remedy: what a user should do about a bad file, in the imperative; it ends the messages of errors.
        kind: what an array is called in them.

    Yields:
        An `Archive`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something is wrong with the file; the message names it, and the array.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):  # neither a folder nor a pipe, which would be waited for
        raise FileNotFoundError(f'{path} does not exist or is no file: give the path of an npz file')
    with open(path, 'rb') as file:
        if not _is_zip(file):
            raise BadFile(f'{path} is not an npz file, or is cut short: {remedy}')
        yield Archive(file, remedy, kind)


def _is_zip(file):
    try:
        return zipfile.is_zipfile(file)
    except (zipfile.BadZipFile, ValueError, struct.error, OverflowError):  # an end that claims several disks, for one
        return False


def read_npz(path, remedy='make the file anew', finite=False):
    """Reads an npz file whole, trusting nothing in it.

    Args:
        path, remedy: as of `open_npz`.
        finite: refuse NaN and infinity.

    Returns:
        {name: array}, in the file's order; the arrays are the caller's to change.

    Raises:
        FileNotFoundError, ValueError: as `open_npz`; also for damaged arrays, and those that are not `finite`.
    """
    arrays = {}
    with open_npz(path, remedy) as archive:
        for name in archive.headers:
            arrays[name] = archive.read(name)
            if finite and arrays[name].dtype.kind in 'fc' and not np.isfinite(arrays[name]).all():
                raise BadFile(f'{path}, array {name!r}: it has entries that are NaN or infinite; {remedy}')
    return arrays


# Files of classes -----------------------------------------------------------------------------------------------------


REMEDY = ('make the file anew, with one array a class: uint8, or float in [0, 1], of shape (n_images, H, W) or '
          '(n_images, H, W, 3)')


def write_arrays(path, arrays):
    """Writes {name: array} to an npz file, without pickles; it appears under its name only when it is complete.

    `read_npz` reads it. Unlike np.savez it takes an array called 'file'.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def load_classes(path):
    """Reads a data set from an npz file that holds one array a class, under the class's name.

    Arrays are uint8 in 0..255, or float in [0, 1] (the layout of the paper's authors), which is rounded to uint8.
    Uncompressed uint8 arrays of a file over 256 MB stay in the file: they are mapped read-only, and only images that
    are used come into memory.

    Args:
        path: of the file.

    Returns:
        {class name: uint8 (n_images, H, W) or (n_images, H, W, 3)}, in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an npz, is damaged, tampered with or empty, or an array has another dtype, range or shape;
            the message names the file and the class.
    """
    classes = {}
    with open_npz(path, REMEDY, 'class') as archive:
        content = np.memmap(path, np.uint8, 'r') if os.path.getsize(path) > MAPPED_SIZE else None
        for name, header in archive.headers.items():
            with archive.plain_errors(name):
                _check_images(header.shape, header.dtype)
                is_mapped = content is not None and header.dtype == np.uint8
                images = archive.mapped(name, content) if is_mapped else None
                classes[name] = to_uint8(archive.read(name) if images is None else images)
    if not classes:
        raise ValueError(f'{path} holds no class: make it anew, with one array a class')
    check_one_shape(classes, path)
    return classes


def save_classes(path, classes):
    """Writes a data set to an npz file, from which `load_classes` reads it.

    The file appears under its name only when it is complete; an older one stays intact until then.

    Args:
        path: of the file.
        classes: {class name: images}, at least one; images are uint8, or float in [0, 1], of shape (n_images, H, W), or
            (n_images, H, W, 3) in colour, all of one size. Floats are rounded to uint8.

    Raises:
        ValueError: there are no classes, a name is no text or holds control characters, or an array is not as above.
        OSError: the file cannot be written.
    """
    if not classes:
        raise ValueError(f'there are no classes to write to {path}: give one or more')
    arrays = {}
    for name, images in classes.items():
        if not isinstance(name, str) or UNSAFE.search(name) or len(name) > MAX_NAME:
            raise ValueError(f'{name!r:.300} cannot be the name of a class: give text without control characters, of '
                             f'at most {MAX_NAME}')
        try:
            arrays[name] = np.ascontiguousarray(to_uint8(np.asarray(images)))
        except ValueError as error:
            raise ValueError(f'class {name!r} cannot be written to {path}: {error}; give uint8, or float in [0, 1], of '
                             'shape (n_images, H, W) or (n_images, H, W, 3)') from error
    check_one_shape(arrays, path)
    write_arrays(path, arrays)


def to_uint8(images):
    """uint8 images of an array of classes: itself, or floats in [0, 1] times 255, rounded.

    Raises:
        ValueError: the array's shape, dtype or range is none of images.
    """
    _check_images(images.shape, images.dtype)
    if images.dtype == np.uint8:
        return images
    if not (images.min() >= 0 and images.max() <= 1):  # put this way round, NaN is refused too
        raise ValueError(f'the floats reach from {images.min()} to {images.max()}')
    return np.rint(images * 255).astype(np.uint8)


def _check_images(shape, dtype):
    if not is_of_images(shape) or 0 in shape:
        raise ValueError(f'the array has shape {shape}')
    if dtype != np.uint8 and dtype.kind != 'f':
        raise ValueError(f'the array has dtype {dtype}')
