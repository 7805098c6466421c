"""SIGTERM means: finish this step, save, leave with exit code 0 (how clusters announce preemption)."""

import signal
import threading


class Preemption:
    """`with Preemption() as preemption:` … `preemption.requested` turns True at SIGTERM.

    A second SIGTERM, and any after the block, meets the handler that was there before. Outside the main thread signals
    cannot be caught, and nothing changes.
    """

    requested = False

    def __enter__(self) -> "Preemption":
        self.previous = None
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def _request(self, signum, frame) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, self.previous)

    def __exit__(self, *error) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)
