"""Seconds by what they were spent on. On CUDA a lap waits for the device, at its two ends only; a mark does not."""

import time
from contextlib import contextmanager

import torch

LAPS = ("setup", "compile", "train", "eval")


class Stopwatch:
    """`seconds[name]` adds up every `with lap(name)`; `total` runs from the first line to now.

    setup    finding and checking the data (of several seeds in one process the first one's alone), opening pipelines, building the net
    compile  first batches, that kernels and programs are built for, on a copy of the net or undone afterwards
    train    every training epoch, waiting for data included
    eval     every pass over the test images; `final_eval`, part of it, is the last one alone
    """

    def __init__(self, device: torch.device | None = None):
        self.device, self.start = device, time.perf_counter()
        self.seconds = dict.fromkeys(LAPS, 0.0)

    @contextmanager
    def lap(self, name: str):
        begin = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin

    def mark(self):
        """A moment for `between`; on CUDA the one when the device is through with what it was given, without a wait."""
        if self.device is None or self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, first, second) -> float:
        """Seconds from one mark to another, both of the past."""
        return second - first if isinstance(first, float) else first.elapsed_time(second) / 1000

    def report(self) -> dict[str, float]:
        """Seconds of every lap and in total, to the millisecond."""
        return {k: round(v, 3) for k, v in {**self.seconds, "total": self._now() - self.start}.items()}

    def _now(self) -> float:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
