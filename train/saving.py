"""When a training is saved: after an epoch, every few minutes, and when Ctrl-C asks for it."""

import json
import math
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

from pipelines.errors import InputError
from pipelines.files import replacing
from pipelines.store import Store
from train import checkpoint, state
from train.course import Diverged
from train.loop import Training

SHORT = 5.0  # seconds; epochs that take less share a checkpoint: each costs some 40 ms for 2 million parameters, more than a third of a GPU's epoch


class CtrlC:
    """A context in which Ctrl-C is `asked` for, so that it can wait for the end of a step, of one training or of several that go together.

    A second Ctrl-C does not wait: it raises `KeyboardInterrupt`. What comes within a second is the same one: under torchrun the terminal and torchrun
    each pass it on.
    """

    def __init__(self):
        self.time, self.ready = math.inf, 0  # when it came; how many trainings have ended a step since this was last set to 0

    @property
    def asked(self) -> bool:
        return self.time < math.inf

    def __enter__(self) -> "CtrlC":
        self.before = None
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Raises `KeyboardInterrupt` where it was asked for too late for any step."""
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
        if self.asked and error is None:
            raise KeyboardInterrupt

    def _ask(self, *_) -> None:
        if time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        self.time = min(self.time, time.monotonic())


class Saver:
    """Keeps `out/checkpoint.pt` fresh while a training runs; a context. After the step in which Ctrl-C came it saves, says how to go on, and raises
    `KeyboardInterrupt`.

    remedy  the command to go on with
    group   of a training that goes with others: whoever moves them sees to Ctrl-C
    """

    def __init__(self, training: Training, store: Store, out: Path, name: str, say, remedy: str, group: CtrlC | None = None):
        self.training, self.store, self.out, self.name, self.say = training, store, out, name, say
        self.last, self.remedy = time.monotonic(), remedy
        self.alone, self.ctrl_c = group is None, group or CtrlC()

    def __enter__(self) -> "Saver":
        if self.alone:
            self.ctrl_c.__enter__()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, InputError) and not isinstance(error, Diverged) and (self.out / "checkpoint.pt").exists():
            self.say(f"when that is mended: {self.remedy}")
        if self.alone:
            if self.ctrl_c.asked and error is None:  # behind the last epoch, which was saved
                self.say(f"saved: to go on, {self.remedy}")
            self.ctrl_c.__exit__(kind, error, trace)

    def save(self) -> None:
        """Write the checkpoint. Raises `InputError` where it cannot be, and where the images were written over: the last one stays."""
        self.store.check_untouched()
        about = {"recipe": {"name": self.name, **asdict(self.training.recipe)}, "data": self.store.sha256}
        checkpoint.save(self.out / "checkpoint.pt", {**state.taken(self.training), **about})
        self.last = time.monotonic()

    def on_epoch(self, last: bool) -> None:
        """What is called after each epoch: saves the `last`, and one that ends a while after the latest checkpoint."""
        if last or time.monotonic() - self.last >= min(SHORT, 60 * self.training.recipe.save_minutes):
            self.save()

    def on_step(self) -> None:
        """What `Training.run` calls after each step."""
        self.ctrl_c.ready += 1
        if self.alone and self.ctrl_c.asked:
            self.save()
            self.say(f"saved: to go on, {self.remedy}")
            raise KeyboardInterrupt
        if time.monotonic() - self.last >= 60 * self.training.recipe.save_minutes:
            self.save()


class Lines:
    """A file of JSON lines. It begins with those that it has of the first `epochs` epochs.

    Raises `InputError` where it cannot be written; then its last line may be cut, and is left away by the next.
    """

    def __init__(self, path: Path, epochs: int):
        self.path = path
        with replacing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept_lines(path, epochs)), encoding="utf-8")

    def add(self, lines: list[dict]) -> None:
        """Write lines behind the others."""
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            with self.path.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}): free some room") from None


def kept_lines(path: Path, epochs: int) -> list[str]:
    """The lines of a metrics file that belong to the first `epochs` epochs; a line cut off by a kill is left away."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["epoch"] <= epochs:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return kept
