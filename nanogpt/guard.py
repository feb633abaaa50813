"""What interrupts a run: signals, spikes, numbers that are not finite."""

import signal


class Stop:
    """A request to stop: SIGTERM or SIGUSR1 (Slurm, rented machines), SIGHUP (the connection to
    your terminal drops), or Ctrl-C.

    The handler only remembers the signal; the training loop checks `asked` between steps. A second
    Ctrl-C kills the process. Signals that are ignored at the start stay ignored (nohup).
    """

    def __init__(self):
        self.asked = ""  # the signal's name
        wanted = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")
        names = [name for name in wanted if hasattr(signal, name)  # Windows lacks two
                 and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]
        self.before = {name: signal.signal(getattr(signal, name), self.remember) for name in names}

    def remember(self, number, frame):
        self.asked = signal.Signals(number).name
        if "SIGINT" in self.before:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Restore the previous signal handlers."""
        for name, handler in self.before.items():
            signal.signal(getattr(signal, name), handler)
