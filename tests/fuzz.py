"""python tests/fuzz.py --cases N --seed S --json FILE: bad input for every reader, by the thousand.

A case is a function of (seed, case number): a reader, good files of its kind, and what is done to them (`fuzz_readers.py`,
`fuzz_mutations.py`, `fuzz_archives.py`). It must end in an `InputError`, one line that names what was read ("refused"), or in what the file says
("read"). Everything else is a fault:

    exception   any other exception             touched   a process, a socket, or a file outside the target
    unclear     a message that is not one line  memory    more than 160 MiB (cases have some KiB) or an allocation that failed
    wrong       accepted, and not what it says  hang      more than 10 s of processor time, or 120 s asleep
                                                crash     the worker died

Cases run in a forked worker with limits on memory and processor time; a fault that kills it costs that worker only. A fault
is named with its number: `python tests/fuzz.py --seed S --only NUMBER` runs it again, says all and leaves its files.
"""

import argparse
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

sys.dont_write_bytecode = True  # a late import writes nothing

import torch  # noqa: E402
from fuzz_good import prepare  # noqa: E402
from fuzz_readers import READERS  # noqa: E402

from pipelines.errors import InputError  # noqa: E402

GOOD_ENDS = ("read", "refused")
MOST_MEMORY = 160 << 20  # bytes above what the worker had: an image file may have 64 MiB, and is copied once
MOST_ADDRESSES = 1 << 30  # bytes of address space above what the worker had
MOST_SECONDS = 10  # of processor time
MOST_WAITING = 120  # seconds
A_WORKER = 500  # cases

PROCESSES = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "socket.", "urllib.", "ftplib.")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "shutil.")


class Watch:
    """Sees what Python code touches: an audit hook that stays silent until it is armed."""

    def __init__(self, box: Path):
        self.armed, self.seen = False, []
        self.readable = tuple({str(box), sys.prefix, sys.base_prefix, "/dev/null", "/proc", str(Path(__file__).parents[1]), *(p for p in sys.path if p)})
        self.writable = str(box / "out")
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        if event.startswith(PROCESSES):
            self.seen.append(f"{event} {arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path, flags = os.path.abspath(os.fsdecode(arguments[0])), arguments[2] or 0
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not path.startswith((self.writable, "/dev/null") if changes else self.readable):
                self.seen.append(f"open {path} {arguments[1]}")
        elif event.startswith(CHANGES):
            paths = [os.path.abspath(os.fsdecode(a)) for a in arguments if isinstance(a, (str, bytes))]
            self.seen += [f"{event} {path}" for path in paths if not path.startswith(self.writable)]


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def listing(box: Path) -> list[str]:
    return sorted(str(p) for p in box.rglob("*") if p.parent.name != "out")


def attempt(reader: str, files: dict[str, bytes], box: Path, watch: Watch) -> tuple[str, str]:
    """(outcome, what is to be said of it) of one reading. `box` is the working directory: target/ is read, out/ may be written."""
    for name in os.listdir(box):
        shutil.rmtree(box / name) if (box / name).is_dir() else (box / name).unlink()
    (box / "out").mkdir()
    write_files(box / "target", files)
    before, peak = listing(box), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch.seen.clear()
    fault = None
    watch.armed = True
    try:
        READERS[reader].read(box / "target")
    except BaseException as error:
        fault = error
    watch.armed = False
    outcome, said = judge(fault, box)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak << 10
    if watch.seen or listing(box) != before:
        return "touched", f"{watch.seen[:3]} {sorted(set(listing(box)) ^ set(before))[:3]} {said}"
    if grown > MOST_MEMORY:
        return "memory", f"{grown >> 20} MiB; {said}"
    return outcome, said


def judge(fault: BaseException | None, box: Path) -> tuple[str, str]:
    """(outcome, what is to be said of it) of what a reading raised. A refusal is one printable line that names what was read."""
    if fault is None:
        return "read", ""
    if not isinstance(fault, InputError):
        return "wrong" if isinstance(fault, AssertionError) else "exception", f"{fault!r:.300}\n{''.join(traceback.format_exception(fault))[-3000:]}"
    said, cause = str(fault), fault
    while cause is not None:
        if isinstance(cause, MemoryError):
            return "memory", f"an allocation failed; {said}"
        cause = cause.__context__
    clear = said.isprintable() and len(said) < 1000 and str(box / "target") in said
    return ("refused" if clear else "unclear"), said


def make(seed: int, case: int) -> tuple[str, str, dict[str, bytes]]:
    """(reader, mutation, files) of a case."""
    reader = list(READERS)[case % len(READERS)]
    how, files = READERS[reader].make(Random(f"{seed} {case}"))
    return reader, how, files


def work(seed: int, cases: range, box: Path, pipe: int, loud: bool) -> None:
    """Run cases in this process, under limits, and tell `pipe` a JSON line before and after each."""
    if not loud:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # C libraries remark on what they read
    os.chdir(box)
    watch = Watch(box)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + MOST_ADDRESSES,) * 2)
    with open(pipe, "w", buffering=1) as out:
        for case in cases:
            resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY,) * 2)
            reader, how, files = make(seed, case)  # which may pack more than is read of it
            used = resource.getrusage(resource.RUSAGE_SELF)
            used = used.ru_utime + used.ru_stime
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + MOST_SECONDS + 1, resource.RLIM_INFINITY))
            print(json.dumps([case, reader, how]), file=out)
            began = time.process_time()
            outcome, said = attempt(reader, files, box, watch)
            print(json.dumps([outcome, said, time.process_time() - began]), file=out)
            if outcome == "memory":
                return  # the peak of a process never falls


def ready(pipe: int, worker: int) -> bool:
    """Whether there is something to read before the worker has slept too long. Seconds in which it waits for a processor are not
    counted, and those in which it has one have a limit of their own."""
    slept = 0
    while slept < MOST_WAITING:
        if select.select([pipe], [], [], 1)[0]:
            return True
        slept += Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("R", "D")
    return False


def start(seed: int, cases: range, box: Path, loud: bool) -> tuple[int, int]:
    """(process id, pipe to read from) of a forked worker."""
    begin, end = os.pipe()
    worker = os.fork()
    if worker:
        os.close(end)
        return worker, begin
    status = 1
    try:
        os.close(begin)
        work(seed, cases, box, end, loud)
        status = 0
    except BaseException:
        print(traceback.format_exc(), flush=True)  # a fault of this file's
    finally:
        os._exit(status)


def run_worker(seed: int, cases: range, box: Path, loud: bool = False) -> list[list]:
    """[case, reader, mutation, outcome, said, seconds] of the cases one worker ran: all, or all up to its end."""
    worker, pipe = start(seed, cases, box, loud)
    text = b""
    while waiting := ready(pipe, worker):
        got = os.read(pipe, 1 << 16)
        text += got
        if not got:
            break
    else:
        os.kill(worker, signal.SIGKILL)
    os.close(pipe)
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    lines = [json.loads(line) for line in text.splitlines()]
    done = [[*start, *end] for start, end in zip(lines[::2], lines[1::2])]
    if waiting and status == -signal.SIGKILL:  # by the system, in want of memory: again
        return done
    if len(lines) % 2:
        outcome = "crash" if waiting and status != -signal.SIGXCPU else "hang"
        return [*done, [*lines[-1], outcome, f"exit code {status}", MOST_SECONDS]]
    if status:
        raise RuntimeError(f"a worker ended before case {cases[0] + len(done)} began, exit code {status}")
    return done


def run(seed: int, cases: range, say=print) -> dict:
    """Run cases and count how they end. The result is plain values."""
    began, results, failures = time.monotonic(), Counter(), []
    slowest, at = (0.0, -1), cases.start
    torch.set_num_threads(1)  # threads do not survive a fork
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=room, prefix="fuzz-") as folder:
        prepare(Path(folder))
        (box := Path(folder) / "box").mkdir()
        while at < cases.stop:
            for case, reader, how, outcome, said, seconds in run_worker(seed, range(at, min(at + A_WORKER, cases.stop)), box):
                results[reader, how, outcome] += 1
                slowest = max(slowest, (round(seconds, 2), case))
                if outcome not in GOOD_ENDS:
                    said = said.replace(str(box), "BOX")
                    failures.append({"case": case, "reader": reader, "mutation": how, "outcome": outcome, "said": said})
                    say(f"case {case} ({reader}, {how}): {outcome}: {said.splitlines()[0] if said else ''}")
                at = case + 1
    return summary(seed, cases, results, failures) | {"slowest": slowest, "seconds": round(time.monotonic() - began, 1)}


def summary(seed: int, cases: range, results: Counter, failures: list[dict]) -> dict:
    readers, mutations = {}, {}
    for (reader, how, outcome), count in sorted(results.items()):
        for table in (readers.setdefault(reader, {}), mutations.setdefault(f"{reader}: {how}", {})):
            table[outcome] = table.get(outcome, 0) + count
    return {"seed": seed, "first": cases.start, "cases": results.total(), "readers": readers, "mutations": mutations, "failures": failures}


def subprocess_run(cases: int, seed: int = 0) -> dict:
    """`run` in a fresh process, for callers that have threads, which do not survive a fork."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--cases", str(cases), "--seed", str(seed), "--json", str(file)]
        ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"})
        if not file.exists():
            raise RuntimeError(ended.stdout + ended.stderr)
        return json.loads(file.read_text(encoding="utf-8"))


def replay(seed: int, case: int) -> None:
    """One case, loudly; its files stay."""
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{seed}-{case}-"))
    torch.set_num_threads(1)
    prepare(folder)
    (box := folder / "box").mkdir()
    (_, reader, how, outcome, said, seconds), *_ = run_worker(seed, range(case, case + 1), box, loud=True)
    print(f"case {case} of seed {seed} ({reader}, {how}): {outcome}, {seconds:.2f} s\n{said}\nfiles: {box / 'target'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this case alone, and say all of it")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    if arguments.only is not None:
        replay(arguments.seed, arguments.only)
        return 0
    result = run(arguments.seed, range(arguments.first, arguments.first + arguments.cases))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for reader, ends in result["readers"].items():
        print(f"{reader:12}" + "".join(f"{outcome} {count:,}   " for outcome, count in ends.items()))
    print(json.dumps({k: result[k] for k in ("seed", "cases", "seconds", "slowest")} | {"failures": len(result["failures"])}))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
