"""Runs a script as `python SCRIPT OPTION ...` does, for as long as the process that asked for it lives.

    python reproduction/child.py FOLDER SCRIPT OPTION ...

A byte `s` on stdin acts as Ctrl-C does. The end of stdin, which comes when the other process ends, however it does,
ends this one at once, so that no other can meet it in the run's folder.
"""
import _thread
import os
import runpy
import signal
import sys
import threading
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PATIENCE = 30  # seconds to wait for a process that is about to end


def follow():
    """Does what stdin says."""
    while True:
        word = os.read(0, 1)
        if not word:
            os._exit(1)
        if word == b's':
            _thread.interrupt_main()


def lock(folder):
    """Takes the run's folder for this process; the operating system gives it back when that ends.

    Returns:
        The open file that holds the lock.
    """
    file = open(os.path.join(folder, 'lock'), 'w', encoding='utf-8')  # noqa: SIM115
    end = time.monotonic() + PATIENCE
    while fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                sys.exit(f'error: another process is at work in {folder}: wait for it, or give another folder (--out)')
            time.sleep(0.5)
        except OSError:  # not every file system has locks
            break
    return file


def main():
    folder, script, *options = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a cluster may have started this with Ctrl-C ignored
    threading.Thread(target=follow, daemon=True).start()
    held = lock(folder)
    sys.argv = [script, *options]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name='__main__')
    held.close()


if __name__ == '__main__':
    main()
