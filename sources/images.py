"""Reading image files of unknown origin: broken, huge, of any mode, or no images at all."""

import contextlib
import io
import os
import stat
import threading

import numpy as np
from PIL import Image, ImageOps

from sources.synthetic import SIZE

MAX_PIXELS = 178_956_970  # of an image, as its header says; Pillow's own bound
MAX_SIDE = 65_535  # JPEG's bound
MAX_BYTES = 1 << 30  # of an image file
LARGE_SIDE = 8192  # images with a longer side are shrunk, by averaging, before anything else is done to them
LARGE_PIXELS = 1 << 24  # images with more are decoded one at a time, whatever the number of threads

# What systems put into folders for themselves, in lower case; and all that begins with a dot.
SYSTEM_FILES = {'thumbs.db', 'thumbs.db:encryptable', 'ehthumbs.db', 'ehthumbs_vista.db', 'desktop.ini', 'icon\r',
                '__macosx', '@eadir', '$recycle.bin', 'system volume information', 'lost+found'}

ORIENTATION = 0x112  # EXIF's tag
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}

_large_images = threading.Lock()


# Files and bytes ------------------------------------------------------------------------------------------------------


def is_system_file(name):
    """Whether a file or folder of this name is the operating system's own, such as Thumbs.db or .DS_Store."""
    return name.startswith('.') or name.lower() in SYSTEM_FILES


def read_bytes(path, offset=0, n_bytes=-1):
    """Reads a file, or `n_bytes` of it from `offset` on.

    Raises:
        ValueError: it is a folder, a pipe or a device, which might never end, or has more than 1 GiB.
        OSError: it cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe or a device'
        raise ValueError(f'it is {kind}, not a file')
    if (status.st_size if n_bytes < 0 else n_bytes) > MAX_BYTES:
        raise ValueError(f'it has more than {MAX_BYTES >> 20} MiB')
    with open(path, 'rb') as file:
        file.seek(offset)
        return file.read(n_bytes)


def decode(content, turned=False):
    """Decodes the bytes of an image file.

    Transparent images are put on white, values of 16 bits divided by 257. Of several frames it is the first. An image
    that is longer than 8,192 pixels comes shrunk by a whole factor.

    Args:
        content: bytes of a file in any format that Pillow reads, but PostScript.
        turned: whether to turn it as its EXIF data say.

    Returns:
        A PIL image, RGB with 8 bits a channel.

    Raises:
        ValueError: the bytes are not an image, or a broken one, or its header claims more than 178,956,970 pixels or
            65,535 in a row or column; nothing of such an image is decoded.
        MemoryError: there is too little memory for it.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            _check(image)
            # JPEG's decoder can leave out detail, which spares most of the memory.
            if max(image.size) > LARGE_SIDE:
                image.draft(None, (LARGE_SIDE // 2, LARGE_SIDE // 2))
            large = image.width * image.height > LARGE_PIXELS
            with _large_images if large else contextlib.nullcontext():
                image.load()
                orientation = image.getexif().get(ORIENTATION) if turned else None
                rgb = _shrunk_rgb(image)
        return rgb.transpose(TURNS[orientation]) if orientation in TURNS else rgb
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise ValueError('it is in no known image format') from None
    except Image.DecompressionBombError:
        raise ValueError(f'it claims more than {MAX_PIXELS:,} pixels') from None
    except Exception as error:  # Pillow's decoders raise nearly all there are on broken bytes
        raise ValueError(str(error) or type(error).__name__) from error


def _check(image):
    """Refuses an image by its header."""
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ValueError(f'it claims {width}x{height} pixels, more than {MAX_PIXELS:,} or {MAX_SIDE:,} in a row or '
                         'column')
    if not width * height:
        raise ValueError(f'it has {width}x{height} pixels')
    if image.format == 'EPS':  # Pillow would run Ghostscript on it
        raise ValueError('it is PostScript, a program')


def _shrunk_rgb(image):
    """To RGB, and by a whole factor to at most LARGE_SIDE. A large image goes band by band, for conversions copy it."""
    factor = -(-max(image.size) // LARGE_SIDE)
    if factor == 1:
        return _rgb(image)
    width, height = image.size
    result = Image.new('RGB', (-(-width // factor), -(-height // factor)))
    for top in range(0, height, 64 * factor):
        band = image.crop((0, top, width, min(height, top + 64 * factor)))
        result.paste(_rgb(band).reduce(factor), (0, top // factor))
    return result


def _rgb(image):
    if image.mode == 'F':
        raise ValueError('its pixels are floating-point numbers, whose range is unknown')
    if image.mode.startswith('I'):  # 16 bits, which Pillow would cut off instead of scaling
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError(f'its pixels reach from {values.min()} to {values.max()}, beyond 16 bits')
        if 0 < values.max() < 4096:
            raise ValueError(f'its pixels reach to {values.max()} of 65535, so it would be nearly black: scale them to '
                             '16 bits, for they seem to have 12 or fewer')
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image if image.mode == 'RGB' else image.convert('RGB')


def scale(image, size):
    """Squeezes an RGB image into a square.

    BOX averages over the area under each new pixel. Enlarging, it would only repeat pixels: an image with a side
    shorter than `size` gets BICUBIC instead.

    Returns:
        uint8 (size, size, 3).
    """
    method = Image.Resampling.BOX if min(image.size) >= size else Image.Resampling.BICUBIC
    return np.asarray(image.resize((size, size), method))


# Files of models' users -----------------------------------------------------------------------------------------------


def read_character(path):
    """Reads an image of dark strokes on light paper, a drawing or a scan, as Omniglot's are read.

    It is turned as its EXIF data say, put on white paper where it is transparent, padded with paper to a square, and
    its contrast stretched.

    Returns:
        uint8 (28, 28), where 255 is ink and 0 is paper.

    Raises:
        ValueError: with the file's name: it is not an image, or a broken or huge one, or blank, or more dark than
            light.
        OSError: the file cannot be read.
        MemoryError: there is too little memory for it; with its name.
    """
    grey = _read(path).convert('L')
    low, high = grey.getextrema()
    if low == high:
        raise ValueError(f'{path} is blank: remove it, or give an image of dark strokes on light paper')
    grey = ImageOps.autocontrast(grey)
    if np.asarray(grey).mean() < 128:
        raise ValueError(f'{path} is more dark than light: give dark strokes on light paper, invert it if need be')
    square = ImageOps.pad(grey, (max(grey.size),) * 2, color=255)
    return 255 - np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BOX))


def read_photo(path, size):
    """Reads a colour photo: turned as its EXIF data say, its middle square scaled.

    Returns:
        uint8 (size, size, 3).

    Raises:
        ValueError: with the file's name: it is not an image, or a broken or huge one.
        OSError: the file cannot be read.
        MemoryError: there is too little memory for it; with its name.
    """
    image = _read(path)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return scale(image.crop((left, top, left + side, top + side)), size)


def _read(path):
    try:
        return decode(read_bytes(path), turned=True)
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as an image ({error}): remove it, or save it as a PNG') from error
    except MemoryError as error:
        raise MemoryError(f'{path} needs more memory than there is: shrink it, or close other programs') from error
