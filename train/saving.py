"""When a training is saved: after every epoch, every few minutes, and when Ctrl-C asks for it."""

import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

from train import checkpoint
from train.loop import Training


class Saver:
    """Keeps `out/checkpoint.pt` fresh while a training runs; a context, in which Ctrl-C waits for the end of a step.

    The first Ctrl-C saves, says how to go on, and raises `KeyboardInterrupt`; a second one does not wait.
    """

    def __init__(self, training: Training, out: Path, name: str, say):
        self.training, self.out, self.name, self.say = training, out, name, say
        self.last, self.asked = time.monotonic(), False

    def __enter__(self) -> "Saver":
        self.before = None
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, *_) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(self.out / "checkpoint.pt", {**self.training.state(), "recipe": {"name": self.name, **asdict(self.training.recipe)}})
        self.last = time.monotonic()

    def on_step(self) -> None:
        """What `Training.run` calls after each step."""
        if self.asked:
            self.save()
            self.say(f"saved: to go on, python -m train --resume {self.out}")
            raise KeyboardInterrupt
        if time.monotonic() - self.last >= 60 * self.training.recipe.save_minutes:
            self.save()
