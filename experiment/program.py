"""Whether the files of the program that runs are still those that it was loaded from."""
import hashlib
import os
import sys
import sysconfig

_INSTALLED = {'site-packages', 'dist-packages'}
_digests = {}  # path of a module: of its file when it was noted


def note():
    """Notes the files of all modules that are loaded by now, but for those of Python and of installed packages."""
    library = os.path.join(sysconfig.get_path('stdlib'), '')
    for module in list(sys.modules.values()):
        path = getattr(module, '__file__', None)
        if path and path not in _digests and not path.startswith(library) and not _INSTALLED & set(path.split(os.sep)):
            _digests[path] = _digest(path)


def changed():
    """The paths of those that are others now, sorted; what was loaded since the last `note` is noted.

    What another process imports from these files isn't the code that runs here.
    """
    note()
    return sorted(path for path, digest in _digests.items() if _digest(path) != digest)


def _digest(path):
    try:
        with open(path, 'rb') as file:
            return hashlib.blake2b(file.read()).digest()
    except OSError:
        return None
