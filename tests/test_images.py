"""sources.images: image files of every kind, broken ones and bombs among them."""
import io
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

import data
from sources import images


def encode(image, kind='PNG', **options):
    f = io.BytesIO()
    image.save(f, kind, **options)
    return f.getvalue()


def chunk(kind, content):
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))


def png(width, height, bits, color, content=b'', extra=b''):
    """A PNG whose header claims what you like."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, color, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + extra + chunk(b'IDAT', content) + chunk(b'IEND', b'')


def picture(mode='RGB'):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


# What is read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode, kind', [
    ('RGB', 'PNG'), ('RGB', 'BMP'), ('RGB', 'TIFF'), ('RGB', 'PPM'), ('RGBA', 'PNG'), ('L', 'PNG'), ('LA', 'PNG'),
    ('1', 'PNG'), ('P', 'GIF'), ('P', 'PNG')])
def test_lossless_files_of_any_mode_give_their_pixels(mode, kind):
    image = picture(mode)
    decoded = images.decode(encode(image, kind))
    assert decoded.mode == 'RGB'
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM'])
def test_sixteen_bits_become_eight_and_not_white(kind):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    if kind == 'PPM':  # which not every Pillow writes with 16 bits
        content = b'P5 16 16 65535\n' + values.astype('>u2').tobytes()
    else:
        content = encode(Image.fromarray(values), kind)
    decoded = images.decode(content)
    np.testing.assert_array_equal(np.asarray(decoded), np.repeat((values // 257)[..., None], 3, 2))


def test_twelve_bits_in_sixteen_are_refused_for_they_would_be_black():
    with pytest.raises(ValueError, match='reach to 4095 of 65535, so it would be nearly black: scale them'):
        images.decode(encode(Image.fromarray(np.array([[0, 4095]], np.uint16)), 'PNG'))
    assert not np.asarray(images.decode(encode(Image.fromarray(np.zeros((2, 2), np.uint16)), 'PNG'))).any()


def test_pixels_beyond_sixteen_bits_and_floats_are_refused():
    with pytest.raises(ValueError, match='from 0 to 70000, beyond 16 bits'):
        images.decode(encode(Image.fromarray(np.array([[0, 70000]], np.int32)), 'TIFF'))
    with pytest.raises(ValueError, match='floating-point'):
        images.decode(encode(Image.fromarray(np.zeros((3, 3), np.float32)), 'TIFF'))


@pytest.mark.parametrize('image, options', [
    (Image.new('RGBA', (3, 3), (10, 20, 30, 0)), {}),
    (Image.new('LA', (3, 3), (10, 0)), {}),
    (Image.new('RGB', (3, 3), (10, 20, 30)), {'transparency': (10, 20, 30)}),
    (Image.new('RGB', (3, 3), (10, 20, 30)).quantize(2), {'transparency': b'\0'}),
])
def test_what_is_transparent_is_white(image, options):
    assert (np.asarray(images.decode(encode(image, **options))) == 255).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_turned_as_their_exif_data_say_only_if_asked(orientation):
    image = picture()
    image.getexif()[images.ORIENTATION] = orientation
    content = encode(image, exif=image.getexif())
    assert images.decode(content).size == image.size
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(images.decode(content, turned=True)), np.asarray(expected.convert('RGB')))


def test_a_photo_is_the_middle_square_scaled(tmp_path):
    pixels = np.zeros((20, 50, 3), np.uint8)
    pixels[:, 15:35] = [10, 20, 30]
    pixels[:10, 15:35] = [50, 60, 70]
    Image.fromarray(pixels).save(tmp_path / 'wide.png')
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / 'high.png')
    wide, high = (images.read_photo(str(tmp_path / name), 10) for name in ('wide.png', 'high.png'))
    assert wide.shape == (10, 10, 3) and wide.dtype == np.uint8
    assert (wide[:5] == [50, 60, 70]).all() and (wide[5:] == [10, 20, 30]).all()
    np.testing.assert_array_equal(high, wide.transpose(1, 0, 2))


def test_large_images_are_shrunk_by_averaging(monkeypatch):
    monkeypatch.setattr(images, 'LARGE_SIDE', 30)
    pixels = np.asarray(picture())
    for image in (picture(), picture('RGBA'), picture('P')):
        expected = np.asarray(image.convert('RGB')).reshape(20, 2, 30, 2, 3).mean((1, 3))
        assert np.abs(np.asarray(images.decode(encode(image))) - expected).max() <= 1
    monkeypatch.setattr(images, 'LARGE_SIDE', 7)  # 9 times: rows and columns are left over
    shrunk = np.asarray(images.decode(encode(picture())))
    assert shrunk.shape == (5, 7, 3)
    assert np.abs(shrunk[-1, -1] - pixels[36:, 54:].mean((0, 1))).max() <= 1


def test_of_a_large_jpeg_only_the_needed_detail_is_decoded(monkeypatch):
    smooth = Image.linear_gradient('L').resize((640, 480)).convert('RGB')
    content = encode(smooth, 'JPEG', quality=95)
    whole = images.scale(images.decode(content), 20).astype(int)
    monkeypatch.setattr(images, 'LARGE_SIDE', 100)
    loaded = []
    monkeypatch.setattr(images, '_shrunk_rgb', lambda image: loaded.append(image.size) or image)
    assert np.abs(images.scale(images.decode(content), 20) - whole).max() <= 2
    assert loaded[0][0] <= 160


def test_a_sound_image_of_169_megapixels_is_read(monkeypatch):
    # Its rows are alike, so that it takes little time to make and to decode; Pillow warns of it, but reads it.
    rows = zlib.compress((b'\0' + b'\xaa' * 1625) * 13000, 1)
    with pytest.warns(Image.DecompressionBombWarning):
        image = images.decode(png(13000, 13000, 1, 0, rows))
    assert image.size == (6500, 6500) and set(np.unique(image)) <= {127, 128}


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('width, height', [(100_000, 1), (1, 100_000), (50_000, 50_000), (14_000, 13_000),
                                           (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(width, height, monkeypatch):
    monkeypatch.setattr(Image.Image, 'load', lambda image: pytest.fail('decoded'))
    with pytest.raises(ValueError, match='claims'):
        images.decode(png(width, height, 8, 0))


def test_postscript_which_is_a_program_is_not_run(monkeypatch):
    content = encode(picture(), 'EPS')
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, 'load', lambda image: pytest.fail('run'))
    with pytest.raises(ValueError, match='PostScript'):
        images.decode(content)


def test_a_long_thin_drawing_needs_no_square_of_its_length(tmp_path):
    rows = zlib.compress((b'\0' + b'\0' * 100 + b'\xff' * 59_900) * 2)
    (tmp_path / 'thin.png').write_bytes(png(60_000, 2, 8, 0, rows))
    assert data.read_character(str(tmp_path / 'thin.png')).shape == (28, 28)


BROKEN = {
    'empty': b'', 'text': b'no image at all', 'web page': b'<!DOCTYPE html><html>', 'zeros': bytes(1000),
    'cut JPEG': encode(picture(), 'JPEG')[:500], 'cut PNG': encode(picture())[:500],
    'PNG without data': png(30, 30, 8, 2), 'PNG of no width': png(0, 30, 8, 2),
    'PNG with half a chunk': encode(picture())[:40],
    'PNG with a wrong checksum': encode(picture()).replace(b'IDAT', b'IDAT', 1)[:-20] + b'x' * 20,
    'PNG with a bad transparency': png(2, 2, 8, 2, zlib.compress(bytes(14)), chunk(b'tRNS', b'1')),
    'PNG with a bad palette': png(2, 2, 8, 3, zlib.compress(bytes(6)), chunk(b'tRNS', b'1')),
    'PNG with a bad profile': png(2, 2, 8, 2, zlib.compress(bytes(14)), chunk(b'iCCP', b'name\0\0' + bytes(9))),
    'PNG with a text bomb': png(2, 2, 8, 2, zlib.compress(bytes(14)),
                                chunk(b'zTXt', b'name\0\0' + zlib.compress(bytes(1 << 26)))),
    'bad EXIF': encode(picture(), 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + bytes(20)),
    'EXIF without end': encode(picture(), exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\0\0'),
    'PostScript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n',
    'TIFF': b'II*\0\x08\0\0\0\xff\xff' + bytes(200),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', BROKEN)
def test_broken_files_give_value_errors_alone(name):
    for turned in (False, True):
        try:
            image = images.decode(BROKEN[name], turned)
        except ValueError as error:
            assert str(error) and '\n' not in str(error)
        else:
            assert 'EXIF' in name or 'PNG with' in name  # what is broken may not be needed
            assert image.mode == 'RGB'


def test_whatever_a_decoder_raises_is_a_value_error_but_no_memory_is_not(monkeypatch):
    for error in (SyntaxError('x'), struct.error('x'), AttributeError(), KeyError(1), RecursionError()):
        def fail(image, error=error):
            raise error
        monkeypatch.setattr(images, '_shrunk_rgb', fail)
        with pytest.raises(ValueError, match='.'):
            images.decode(encode(picture()))

    def exhaust(image):
        raise MemoryError
    monkeypatch.setattr(images, '_shrunk_rgb', exhaust)
    with pytest.raises(MemoryError):
        images.decode(encode(picture()))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind, options', [
    ('JPEG', {}), ('PNG', {}), ('WEBP', {}), ('GIF', {}), ('TIFF', {'compression': 'tiff_lzw'}), ('BMP', {}),
    ('ICO', {})])
def test_flipped_bytes_give_an_image_or_a_value_error(kind, options):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    try:
        content = encode(picture(), kind, exif=exif, **options)
    except (KeyError, OSError):
        pytest.skip(f'this Pillow writes no {kind}')
    rng = random.Random(0)
    outcomes = set()
    for _ in range(150):
        broken = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            broken[rng.randrange(min(len(broken), 200))] = rng.randrange(256)
        try:
            outcomes.add(images.decode(bytes(broken), turned=True).mode)
        except ValueError:
            outcomes.add('refused')
    assert outcomes == {'RGB', 'refused'}


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no pipes in folders')
def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    os.symlink('/dev/zero', tmp_path / 'zeros.png')
    for path, words in ((tmp_path / 'pipe.png', 'a pipe or a device'), (tmp_path / 'zeros.png', 'a pipe or a device'),
                        (tmp_path, 'a folder')):
        with pytest.raises(ValueError, match=words):
            data.read_character(str(path))
    with pytest.raises(FileNotFoundError):
        images.read_photo(str(tmp_path / 'nothing.png'), 84)


def test_a_file_of_gigabytes_is_refused_unread(tmp_path):
    with open(tmp_path / 'large.png', 'wb') as file:
        file.truncate(images.MAX_BYTES + 1)
    with pytest.raises(ValueError, match='large.png.*more than 1024 MiB'):
        images.read_photo(str(tmp_path / 'large.png'), 84)


def test_files_of_operating_systems_are_known():
    assert all(map(images.is_system_file, ('Thumbs.db', 'Desktop.ini', '.DS_Store', '._a.png', '__MACOSX')))
    assert not any(map(images.is_system_file, ('a.png', 'thumbs', 'a.db', 'notes.txt', 'desktop')))
