"""Each rank beats for the others. One that falls silent ends the run within a minute."""

import atexit
import datetime
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import torch.distributed as dist

PATIENCE = 40  # seconds of silence after which a rank counts as gone; a slow one still beats
BEAT, NOTE = 2, 60  # seconds between beats; of waiting before rank 0 prints where each rank is
ROOT = f"{Path(__file__).parent.parent}{os.sep}"


def place():
    """Where in the program this process's main thread is, in words."""
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame:
        before, _, file = frame.f_code.co_filename.partition(ROOT)
        if file and not before and "site-packages" not in file:  # a virtual environment in here
            return f"in {frame.f_code.co_name} ({file.replace(os.sep, '/')}, line {frame.f_lineno})"
        frame = frame.f_back
    return "elsewhere"


class Heartbeat:
    """Beats for this rank and listens to the others, through the store at address:port. Clocks of
    two machines are never compared. One thread only judges: calls to the store may not return."""

    def __init__(self, address, port, name, rank, world_size, patience=PATIENCE, note=NOTE):
        self.server, self.rank, self.patience, self.note = (address, port), rank, patience, note
        self.keys = [f"{name} {each}" for each in range(world_size)]
        self.seen = [("", "a machine not heard of", "at its start")] * world_size
        self.here, self.over = "", threading.Event()
        self.begin_anew()
        self.threads = [threading.Thread(target=f, daemon=True) for f in (self.beat, self.judge)]
        for thread in self.threads:
            thread.start()
        atexit.register(self.stop)  # a thread inside torch would crash Python's end

    def begin_anew(self):
        # when the store last answered, judge() last looked, this rank last moved, others did beat
        self.answered = self.looked = self.moved = time.monotonic()
        self.heard = [self.answered] * len(self.keys)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(self.patience)

    def beat(self):
        store = None
        while not self.over.is_set():
            try:
                # if the server is gone, this fails in silence, unlike a call to the store
                socket.create_connection(self.server, timeout=self.patience).close()
                if not store:
                    store = dist.TCPStore(*self.server, is_master=False, wait_for_workers=False,
                                          timeout=datetime.timedelta(seconds=self.patience))
                    for key, beat in zip(self.keys, self.seen, strict=True):
                        store.compare_set(key, "", "|".join(beat))  # multi_get waits for keys
                store.set(self.keys[self.rank],
                          f"{time.monotonic()}|{socket.gethostname()}|{place()}")
                for rank, text in enumerate(store.multi_get(self.keys)):
                    beat = tuple(text.decode().split("|", 2))
                    if beat != self.seen[rank]:
                        self.seen[rank], self.heard[rank] = beat, time.monotonic()
                self.answered = time.monotonic()
            except (OSError, RuntimeError):  # torch's errors are RuntimeErrors
                store = None
            self.over.wait(min(BEAT, self.patience / 4))

    def judge(self):
        while not self.over.wait(min(1, self.patience / 8)):
            if time.monotonic() - self.looked > self.patience / 4:
                self.begin_anew()  # this process itself was stopped for a while
            self.looked = time.monotonic()
            self.say_who_waits()
            if said := self.silence():
                print(f"error: {said}. Go on with --resume", file=sys.stderr, flush=True)
                os._exit(2)  # the main thread may wait forever

    def silence(self):
        """The error's text if another rank, or the store, has been silent too long; else ""."""
        now = time.monotonic()
        if now - self.answered > self.patience:
            address = "{}:{} (rank 0's machine)".format(*self.server)
            return (f"rank {self.rank} has had no answer from {address} for "
                    f"{now - self.answered:.0f} s: it or the network is down")
        for rank, (heard, (_, host, where)) in enumerate(zip(self.heard, self.seen, strict=True)):
            if now - heard > self.patience:
                return (f"rank {self.rank} waits for rank {rank} ({host}), silent for "
                        f"{now - heard:.0f} s, last seen {where}: it, its machine or the network "
                        "is down")
        return ""

    def say_who_waits(self):
        """Rank 0 says, once a minute, where each rank is, if it waits and others are elsewhere."""
        here, now, places = place(), time.monotonic(), defaultdict(list)
        if here != self.here:
            self.here, self.moved = here, now
        if self.rank or now - self.moved < self.note:
            return
        self.moved = now
        for rank, (_, host, where) in enumerate(self.seen):
            places[where].append(f"rank {rank} ({host})")
        if len(places) > 1:
            print("waiting    |", "; ".join(f"{', '.join(ranks)} {where}"
                                            for where, ranks in places.items()), flush=True)

