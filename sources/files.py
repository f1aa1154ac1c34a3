"""Writing files so that nothing is lost, and text so that every terminal can show it."""

import contextlib
import errno
import os
import re
import sys
import time

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None

MAX_TRIES = 100  # to open a temporary file
# What `open` or `write` fail with when there is no room for a file.
NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, 'EDQUOT', errno.ENOSPC)}
UNKNOWN_CALL = {errno.EINVAL, errno.ENOSYS, getattr(errno, 'ENOTSUP', errno.EINVAL)}


def open_streams():
    """Gives a program that was started without stdout or stderr one that leads nowhere: print and tqdm want one."""
    for name in 'stdout', 'stderr':
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))  # noqa: SIM115


# Files ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path, mode='wb', **options):
    """Opens a temporary file beside `path`, which takes that name only if the block succeeds.

    Until then an older file stays intact. A power cut loses nothing either: the content is on the disk before the file
    gets its name, and the name before the block is left. The temporary file is called `path`.NUMBER.part; those of
    killed writers are removed first.

    Args:
        path: of the file; its folder is made if need be.
        mode, options: as of `open`. Text is written as UTF-8 unless `options` name another encoding.

    Yields:
        The open file.

    Raises:
        OSError: the file cannot be written; the message names it, and says what to do.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(f'{path} is a folder, so no file can be written there: rename the folder, or give '
                                'another path')
    if 'b' not in mode:
        options.setdefault('encoding', 'utf-8')
    folder = os.path.dirname(path) or '.'
    temporary = f'{path}.{int.from_bytes(os.urandom(4), "big")}.part'  # containers give many processes one number
    try:
        os.makedirs(folder, exist_ok=True)
        clear_strays(path)
        file = _open_locked(temporary, mode, options)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with file:
            yield file
            file.flush()
            _sync(file.fileno())
            if fcntl:  # while the lock keeps others from clearing the file away
                os.replace(temporary, path)
        if not fcntl:  # Windows renames no open file
            os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C leaves nothing behind either
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and (error.errno in NO_ROOM or error.filename == temporary):
            raise _cannot_write(path, error) from error
        raise
    sync_folder(folder)


def _cannot_write(path, error):
    """An error as `error`, which says in a sentence what to do."""
    remedy = ('make room on its disk' if error.errno in NO_ROOM else
              'close programs that have it open, allow writing to its folder, or choose another one')
    plain = type(error)(f'{path} cannot be written ({error.strerror or error}): {remedy}')
    plain.errno = error.errno
    return plain


def _open_locked(path, mode, options):
    """Opens a temporary file, locked as one that is being written. The lock ends with the process, come what may."""
    for _ in range(MAX_TRIES):
        file = open(path, mode, **options)
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is clearing it away: once more
            file.close()
            time.sleep(0.01)
            continue
        except OSError:  # a file system without locks
            return file
        if os.path.exists(path):
            return file
        file.close()  # it has been cleared away before it was locked
    return open(path, mode, **options)


@contextlib.contextmanager
def alone(folder, patience=5, name='.lock'):
    """Within it no other process gets past the same call for the folder, which is made if need be.

    The lock ends with the process, come what may. Windows and disks without locks let everybody in.

    Args:
        folder: path.
        patience: seconds to wait for another process, which may be about to end.
        name: of the file in the folder that is locked.

    Raises:
        BlockingIOError: another process stays at work there.
        OSError: nothing can be written there.
    """
    if not fcntl:
        yield
        return
    os.makedirs(folder, exist_ok=True)
    path, end = os.path.join(folder, name), time.monotonic() + patience
    with contextlib.ExitStack() as held:
        while True:
            file = held.enter_context(open(path, 'w'))  # noqa: SIM115
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
            except FileNotFoundError:  # its last holder has removed it meanwhile
                pass
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise BlockingIOError(f'another process is at work in the folder {folder}: wait for it, or give '
                                          'this run another folder (out)') from error
            except OSError:  # a file system without locks
                break
            held.close()
            time.sleep(0.05)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.remove(path)


def _sync(descriptor):
    """Waits until a file's content is on the disk."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNKNOWN_CALL:  # some file systems have no such call
            raise


def sync_folder(path):
    """Waits until the names in a folder are on the disk, where the operating system allows it (Windows doesn't)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path or '.', os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def walk(folder, onerror):
    """Yields (place, names of what is no folder there) for a folder and all below it, linked ones, too, each once.

    Args:
        folder: its path.
        onerror: function of the OSError of a folder that cannot be read.
    """
    seen = set()
    for place, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        try:
            status = os.stat(place)
        except OSError as error:
            folders.clear()
            onerror(error)
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was there before
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort(reverse=True)  # which of a folder and links to it comes first does not depend on the disk
        yield place, sorted(names)


def clear_strays(*paths):
    """Removes the temporary files that killed writers of the files `paths` have left.

    Files that are still being written stay, and so does everything whose name is not a path's own with .NUMBER.part.
    What cannot be removed stays too.
    """
    for path in map(os.fspath, paths):
        folder, name = os.path.split(path)
        with contextlib.suppress(OSError):
            for other in os.listdir(folder or '.'):
                if re.fullmatch(re.escape(name) + r'\.[0-9]+\.part', other):
                    with contextlib.suppress(OSError):
                        _remove_stray(os.path.join(folder, other))


def _remove_stray(path):
    if os.path.islink(path) or not os.path.isfile(path):
        return  # none of ours
    if fcntl:
        with open(path, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # or else it is another's by now
                os.remove(path)
    else:
        os.remove(path)


# Text -----------------------------------------------------------------------------------------------------------------


def printable(text, stream=None, keep=''):
    r"""Text that is safe to print: names in it can neither steer the terminal nor fail to be encoded.

    Control characters, bidirectional marks and halves of characters become escapes such as \x1b, and so does every
    character that the terminal's encoding lacks.

    Args:
        text: any object; its `str` is taken.
        stream: where it will be printed, sys.stdout if None.
        keep: control characters that stay, such as '\n'.

    Returns:
        The str, unchanged if nothing in it is unsafe.
    """
    text = ''.join(character if character.isprintable() or character in keep or character == '\u3000'
                   else character.encode('unicode_escape').decode() for character in str(text))
    encoding = getattr(stream or sys.stdout, 'encoding', None) or 'utf-8'
    return text.encode(encoding, 'backslashreplace').decode(encoding)


def print_banner(data_set, stand_in, reason, remedy):
    """Says on stderr, so that nobody misses it, that a data set is not there and what takes its place.

    Args:
        data_set: its name, such as 'Omniglot'.
        stand_in: what is used instead, in the plural.
        reason: why, without a full stop.
        remedy: how to get the data, in the imperative, one line or several.
    """
    rule = '!' * 100
    why = f'!!  Why: {reason}.'
    how = f'!!  To get the data: {remedy}.'.replace('\n', '\n!!  ')
    text = f"""
{rule}
!!  THIS IS NOT {data_set.upper()}: {stand_in} are used in its place.
!!
{why}
!!  The numbers of this run are NOT results on {data_set} and cannot be compared with the paper's.
!!
{how}
{rule}
"""
    print(printable(text, sys.stderr, keep='\n'), file=sys.stderr, flush=True)
