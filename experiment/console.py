"""How a script speaks and ends: in sentences that its terminal can show, without tracebacks."""
import contextlib
import ctypes
import os
import re
import signal
import sys
import threading

from experiment import program
from sources.files import open_streams, printable

STOPPED = 'Stopped at once. All that is saved stays; the same command resumes a training from its snapshot.'

importable = False  # whether other processes may import the script that runs, which then does nothing


def start():
    """Lets Ctrl-C end a script with a sentence while it imports, which takes seconds. `run` comes after the imports."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop_at_once)


def _stop_at_once(signum, frame):
    # An exception could be lost, or become another one, in the libraries that are being imported.
    write_error('\n' + STOPPED + '\n')
    os._exit(130)


def run(main):
    """Runs a script's `main` with the words of the command line, and ends the program plainly where it stops.

    What calls this stands behind `if __name__ == '__main__'`: other processes may import the script.
    """
    global importable
    importable = True
    open_streams()
    program.note()
    if signal.getsignal(signal.SIGINT) is _stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _limit_memory()
    keep_memory()
    try:
        try:
            with plain_errors(MemoryError):
                main(sys.argv[1:])
        finally:
            with _writing():
                if sys.stdout is not None:
                    sys.stdout.flush()
    except KeyboardInterrupt:
        write_error('\n' + STOPPED + '\n')
        sys.exit(130)


def _limit_memory():
    """Lets what the machine has no memory for fail with MemoryError; Linux grants it, and kills the program later."""
    if 'cupy' in sys.modules:  # CUDA claims far more than it uses
        return
    with contextlib.suppress(ImportError, OSError, ValueError, KeyError):
        import resource
        with open('/proc/meminfo', encoding='ascii') as file:
            amounts = dict(re.findall(r'^(\w+): *(\d+) kB', file.read(), re.MULTILINE))
        available = 1024 * (int(amounts['MemAvailable']) + int(amounts['SwapFree']))
        resource.setrlimit(resource.RLIMIT_DATA, (available, resource.getrlimit(resource.RLIMIT_DATA)[1]))


class Stop:
    """Within a `with`, in the main thread, waits for Ctrl-C; at the second, it does what it did before.

    Args:
        message: what to say at the first.

    Attributes:
        pressed: whether Ctrl-C was.
    """

    def __init__(self, message):
        self.message = message
        self.pressed = False

    def __enter__(self):
        self.waits = threading.current_thread() is threading.main_thread()
        if self.waits:
            self.previous = signal.signal(signal.SIGINT, self.press)
        return self

    def __exit__(self, *exception):
        if self.waits:
            signal.signal(signal.SIGINT, self.previous)

    def press(self, signum, frame):
        self.pressed = True
        signal.signal(signal.SIGINT, self.previous)
        write_error(f'\n{self.message}\n')


def keep_memory():
    """Lets arrays take the memory of earlier ones: glibc gives that of large ones back, and fresh pages cost time."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # on other systems there is no such thing
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: none of their own
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: nor is the end given back


def say(text, start=''):
    """Prints a line to stdout. Ends the program (SystemExit) when nobody reads it any more, or it cannot be written.

    Args:
        text: the line; what the terminal cannot show, or must not, is escaped.
        start: what the terminal gets before it, as it is.
    """
    with _writing():
        print(start + printable(text), flush=True)


def warn(text):
    """Prints a warning to stderr."""
    with contextlib.suppress(OSError):
        print(f'warning: {printable(text, sys.stderr)}', file=sys.stderr, flush=True)


def write_error(text):
    """Writes text to stderr, if there is one; may be called by a signal's handler."""
    # Not print: it may be what was interrupted, and cannot be entered twice.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stderr__.fileno(), text.encode(sys.__stderr__.encoding, 'backslashreplace'))


@contextlib.contextmanager
def _writing():
    try:
        yield
    except OSError as error:
        drop_output()
        fail(f'the output cannot be written any more ({error.strerror or error}): give it another place, and the same '
             'command again; all that a training has saved stays, and it goes on from there')


def drop_output():
    """Lets stdout, which cannot be written any more, take the rest for nothing; it would fail again at the end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(error):
    """Ends the program (SystemExit) with an error's message."""
    sys.exit(f'error: {printable(error, sys.stderr)}')


@contextlib.contextmanager
def plain_errors(kinds=(ValueError, OSError)):
    """Ends the program with the message alone where settings, data, files or the machine's memory are at fault.

    Args:
        kinds: a class of exceptions or a tuple of them. MemoryError always is one.
    """
    try:
        yield
    except MemoryError as error:
        details = f' ({error})' if str(error) else ''
        fail(f'there is not enough memory{details}: choose smaller sizes, or end other programs')
    except kinds as error:
        fail(error)


def is_terminal(stream):
    """Whether a stream, which may be None, is a terminal."""
    return stream is not None and stream.isatty()
