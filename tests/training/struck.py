"""`python -m dmae.training.run` that meets a signal at a moment of its own, however busy the machine is.

    struck.py SIGNAL STEPS SECONDS [options of run.py]

The process sends SIGNAL to itself, SECONDS after its STEPS-th batch; a run that has fewer left ends as usual.
"""

import os
import runpy
import signal
import sys
import threading

from dmae.training.record import LogWindow

number, steps, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
del sys.argv[1:4]
added, add = [], LogWindow.add
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would we


def add_and_strike(self, *arguments):
    add(self, *arguments)
    added.append(1)
    if len(added) == steps:
        strike = threading.Timer(seconds, os.kill, [os.getpid(), number])
        strike.daemon = True  # a run that ends before it does not wait for it
        strike.start()


LogWindow.add = add_and_strike
runpy.run_module("dmae.training.run", None, "__main__")
