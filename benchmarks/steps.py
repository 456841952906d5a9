"""Steps that run one after another until a time is over, and go on where they stopped when called again.

    OUT/summary.json            the index: for every commit the state of every step
    OUT/summary.md              the same to read, with what each finished step printed
    OUT/<commit>/<step>.txt     what a step printed (stdout); .log (stderr); and the files that it wrote itself

A step is a command in a process group of its own, killed as a whole when its time is over. Steps that time nothing, and follow one another, run side by
side: compiling is what takes the time of a short training, and leaves the device idle. A step's state is

    done      ended well and wrote what it promised; not run again
    failed    ended badly; tried once more by a later call
    stopped   its time was over; run again by a call that can give it more
    skipped   not run, for the reason that is written beside it; tried by every call
"""

import importlib.util
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from benchmarks.measure import table
from pipelines.errors import InputError
from pipelines.files import replacing, write_json

ROOT = Path(__file__).parents[1]
STAND_INS = Path(__file__).parent / "stand_ins"
SCHEMA, TRIES = 1, 2
LAST_WORDS = 5.0  # seconds kept back to kill a step and write down that it was


@dataclass(frozen=True)
class Step:
    """One command of the list.

    command  arguments, run in the repository's root
    asks     what it answers, for a person
    result   the file that it must leave, relative to the commit's folder; "" for none
    least    seconds under which it is not begun; an estimate
    most     seconds after which it is killed, however much time is left: a hang must not take everything
    needs    modules without which it is skipped
    after    a step that must be done before
    skip     a reason to skip it that is known beforehand
    beside   times nothing, and may run beside others that do not
    goes_on  keeps what it has when it is killed, and goes on with it: any time brings it further
    """

    name: str
    command: tuple[str, ...]
    asks: str
    result: str = ""
    least: float = 0.0
    most: float = 600.0
    needs: tuple[str, ...] = ()
    after: str = ""
    skip: str = ""
    beside: bool = False
    goes_on: bool = False


@dataclass
class Index:
    """`summary.json` and `summary.md` of a folder, written anew with every change."""

    out: Path
    commit: str
    runs: dict[str, dict] = field(default_factory=dict)  # by commit: {step: its entry}

    def __post_init__(self):
        file = self.out / "summary.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if file.exists():
                self.runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
        except OSError as error:
            raise InputError(f"{self.out}: cannot be used ({error.strerror}): name another folder with --out") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{file}: not an index of this command: name another folder with --out") from None
        self.runs.setdefault(self.commit, {})

    @property
    def folder(self) -> Path:
        return self.out / self.commit

    def entry(self, name: str) -> dict:
        return self.runs[self.commit].get(name, {})

    def put(self, step: Step, state: str, reason: str = "", **facts) -> None:
        """Write down how a step stands; what is known from an earlier try and not given is kept."""
        files = sorted(p.name for p in self.folder.iterdir() if p.name == step.name or p.name.startswith(f"{step.name}."))
        entry = {"asks": step.asks, "state": state, "reason": reason, "files": files, "command": list(step.command)}
        self.runs[self.commit][step.name] = {"tries": 0, **self.entry(step.name), **entry, **facts}
        write_json(self.out / "summary.json", {"schema": SCHEMA, "commit": self.commit, "runs": self.runs})
        with replacing(self.out / "summary.md") as temporary:
            temporary.write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        """This commit's steps as Markdown, then a line for every other commit."""
        steps = self.runs[self.commit]
        rows = [[name, e["state"], f"{e['seconds']:.0f}" if "seconds" in e else "", e["reason"] or e["asks"]] for name, e in steps.items()]
        text = [f"# Benchmarks of {self.commit}", "", table(["step", "state", "seconds", "what"], rows), ""]
        for name, entry in steps.items():
            printed = self.folder / f"{name}.txt"
            if entry["state"] == "done" and printed.exists():
                said = printed.read_text(encoding="utf-8", errors="replace").strip()
                text += [f"## {name}", "", entry["asks"], "", "```", said, "```", ""]
        older = {commit: ", ".join(f"{name} {e['state']}" for name, e in run.items()) for commit, run in self.runs.items()}
        others = [f"- {commit}: {states}" for commit, states in older.items() if commit != self.commit]
        return "\n".join([*text, *(["## Other commits in this folder", "", *others, ""] if others else [])])


def run(steps: list[Step], index: Index, deadline: float, say: Callable[[str], None] = print, clock=time.monotonic) -> list[str]:
    """Run what is to be run; the state of every step in the end.

    deadline  as `clock` tells it, in seconds: every step has ended then
    """
    for _, some in groupby(steps, key=lambda step: step.beside or step.name):  # True for those that may run side by side
        group = [step for step in some if _begins(step, index, deadline - clock() - LAST_WORDS, say)]
        with ExitStack() as running:
            begin, left = clock(), deadline - clock() - LAST_WORDS
            tries = [running.enter_context(_Try(step, index.folder, min(left, step.most))) for step in group]
            for step, one in zip(group, tries):
                say(f"{step.name}: begins, at most {one.limit:.0f} s ({left:.0f} s left)")
            for step, one in zip(group, tries):
                state, reason = one.outcome(max(begin + one.limit - clock(), 0.0))
                seconds = clock() - begin
                index.put(step, state, reason, seconds=round(seconds, 1), limit=round(one.limit, 1), tries=index.entry(step.name).get("tries", 0) + 1)
                say(f"{step.name}: {state} after {seconds:.0f} s{reason and ': ' + reason}")
    return [index.entry(step.name)["state"] for step in steps]


def _begins(step: Step, index: Index, left: float, say: Callable[[str], None]) -> bool:
    """Whether a step is to be run now; where it is not, that is said and written down."""
    entry = index.entry(step.name)
    if entry.get("state") == "done":
        say(f"{step.name}: done before")
        return False
    reason = _why_not(step, entry, min(left, step.most), index)
    if reason:
        # a failure is not forgotten because there was no time to try it again
        index.put(step, entry["state"] if entry.get("tries") else "skipped", entry["reason"] if entry.get("tries") else reason)
        say(f"{step.name}: not run: {reason}")
    return not reason


def _why_not(step: Step, entry: dict, limit: float, index: Index) -> str:
    """The reason not to run a step now; "" to run it."""
    missing = [name for name in step.needs if not importlib.util.find_spec(name)]
    if step.skip:
        return step.skip
    if missing:
        return f"{', '.join(missing)} not installed"
    if step.after and index.entry(step.after).get("state") != "done":
        return f"{step.after} is not done"
    if entry.get("state") == "failed" and entry["tries"] >= TRIES:
        return f"failed {TRIES} times: {entry['reason']}"
    if entry.get("state") == "stopped" and limit <= entry["limit"] and not step.goes_on:
        return f"{entry['limit']:.0f} s were too little, and {max(limit, 0):.0f} s are left for it"
    if limit < (least := max(step.least, 1.0)):
        return f"needs some {least:.0f} s, and {max(limit, 0):.0f} s are left"
    return ""


class _Try:
    """One try of a step, of at most `limit` seconds; a context, behind which nothing of it is left running."""

    def __init__(self, step: Step, folder: Path, limit: float):
        self.step, self.limit = step, limit
        self.printed, self.log = folder / f"{step.name}.txt", folder / f"{step.name}.log"
        self.result = folder / step.result if step.result else None
        self.process: subprocess.Popen | None = None
        self.error = ""

    def __enter__(self) -> "_Try":
        if self.result:
            self.result.unlink(missing_ok=True)  # what an earlier try left is not this one's
        try:
            with self.printed.open("wb") as out, self.log.open("wb") as err:
                streams = dict(stdin=subprocess.DEVNULL, stdout=out, stderr=err)
                self.process = subprocess.Popen(self.step.command, cwd=ROOT, env=_environment(), **streams, start_new_session=True)
        except OSError as error:
            self.error = f"cannot be started: {error}"
        return self

    def __exit__(self, *_) -> None:
        self.end()

    def end(self) -> None:
        """Kill what is left of it. Ctrl-C comes here, too; and workers that outlive their parent would disturb the next step."""
        if self.process:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def outcome(self, left: float) -> tuple[str, str]:
        """(state, reason), in `left` seconds at the latest."""
        if self.process is None:
            return "failed", self.error
        try:
            code = self.process.wait(left)
        except subprocess.TimeoutExpired:
            return "stopped", f"not done within {self.limit:.0f} s"
        finally:
            self.end()
        if code:
            return "failed", f"exit code {code}: {_last_line(self.log) or _last_line(self.printed)}"
        if self.result and not self.result.exists():
            return "failed", f"ended without writing {self.step.result}"
        return "done", ""


def _environment() -> dict[str, str]:
    """What a step runs in: this checkout's modules, and a silent tqdm where there is none."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", ""), "" if importlib.util.find_spec("tqdm") else str(STAND_INS)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1"}


def _last_line(path: Path) -> str:
    """The last line of a file that is not blank, at most 200 characters."""
    written = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return written[-1].strip()[:200] if written else ""
