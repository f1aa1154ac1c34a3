"""Runs a script as `python SCRIPT OPTION ...` does, for as long as the process that asked for it lives.

    python reproduction/child.py FOLDER SCRIPT OPTION ...

A byte `s` on stdin acts as Ctrl-C does. The end of stdin, which comes when the other process ends, however it does,
ends this one at once, so that no other can meet it in the run's folder.
"""
import _thread
import contextlib
import os
import runpy
import signal
import sys
import threading

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # where the scripts are, as when they are run

from sources.files import alone  # noqa: E402

PATIENCE = 30  # seconds to wait for a process that is about to end


def follow():
    """Does what stdin says."""
    while True:
        word = os.read(0, 1)
        if not word:
            os._exit(1)
        if word == b's':
            _thread.interrupt_main()


def main():
    folder, script, *options = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a cluster may have started this with Ctrl-C ignored
    threading.Thread(target=follow, daemon=True).start()
    sys.argv = [script, *options]
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(alone(folder, PATIENCE, 'lock'))
        except BlockingIOError as error:
            sys.exit(f'error: {error}')
        runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
    main()
