"""The benchmarks that train, and the runner of `python -m benchmarks gpu`. No test depends on how fast anything is."""

import importlib.util
import json
import os
import select
import subprocess
import sys

import pytest
import torch
from conftest import make_store

import pipelines
from benchmarks import blocks, breakdown, epoch_time, gpu, loaders, marks, steps, together
from benchmarks.contenders import CEILING, Contender
from benchmarks.marks import PARTS, Marks, plain_round, split_round
from benchmarks.steps import Index, Step
from pipelines.errors import InputError, NotInstalled
from train.recipe import Recipe

SMALL = ["--net", "level1", "--batch-size", "8", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def absent(monkeypatch):
    """`ffcv` is not installed, whatever this machine has."""
    load = pipelines.load

    def without(name):
        if name == "ffcv":
            raise NotInstalled("pipeline ffcv is not installed: make ffcv")
        return load(name)

    monkeypatch.setattr(pipelines, "load", without)


def numbers(spread: dict, n: int) -> None:
    assert set(spread) == {"median", "least", "largest", "n"} and spread["n"] == n
    assert 0 <= spread["least"] <= spread["median"] <= spread["largest"]


# Where the time goes


def test_breakdown_states_every_part_of_every_pipeline(store, absent, tmp_path, capsys):
    flags = ["--steps", "2", "--first", "1", "--rounds", "2", "--json", str(tmp_path / "b.json"), "--chart", str(tmp_path / "b.png")]
    breakdown.main(["--data", str(store.path), "--pipelines", "ffcv", "resident", *SMALL, *flags])
    written = json.loads((tmp_path / "b.json").read_text())
    missing, resident, fixed = written["rows"]
    assert missing == {"pipeline": "ffcv", "missing": "pipeline ffcv is not installed: make ffcv"}
    assert (resident["pipeline"], fixed["pipeline"]) == ("resident", CEILING) and fixed["speedup_of_fixed_batch"] == 1
    for row in (resident, fixed):
        for key in ("step_seconds", "marked_step_seconds", "first_step_seconds", "host_wait_seconds"):
            numbers(row[key], 2)
        assert set(row["part_seconds"]) == set(row["part_median_step_seconds"]) == set(PARTS)
        assert row["counted_steps"] == 4 and 0 <= row["data_share"] < 1 <= row["speedup_if_data_were_free"]
        assert [min(parts.values()) >= 0 and set(parts) == set(PARTS) for parts in row["rounds"]] == [True, True]
    assert {"command", "commit", "hardware", "versions", "data", "settings", "precision", "marking_seconds"} <= set(written)
    printed = capsys.readouterr().out
    assert "not installed |" in printed and "µs" in printed and (tmp_path / "b.png").stat().st_size > 0


def contender(store, **settings) -> Contender:
    made = Contender("resident")
    made.prepare(Recipe(net="level1", batch_size=8, lr=0.01, schedule="constant", precision="fp32", **settings), store, torch.device("cpu"))
    return made


def test_parts_add_up_to_the_round_by_construction(store, monkeypatch):
    """On a clock that goes on by one with each look, every mark and every wait has its place."""
    ticks = iter(range(10_000))
    training = contender(store, limit=24).training
    monkeypatch.setattr(marks.time, "perf_counter", lambda: float(next(ticks)))
    found, waits = split_round(training, Marks(torch.device("cpu")), 0)
    # next() is looked at before and behind it: three ticks from one mark to the next
    assert found == [{"data": 3.0, "forward": 1.0, "backward": 1.0, "optimiser": 1.0, "rest": 2.0}] * 3 and waits == [1.0] * 3
    # from the first counted step's beginning to the last one's end: two waits looked at twice, and the end
    assert plain_round(training, Marks(torch.device("cpu")), 0, 1) == 5 / 2


def test_marks_on_cuda_are_events_read_when_the_round_is_over(store, monkeypatch):
    made, waited = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            made.append(self)

        def record(self):
            self.at = sum(hasattr(event, "at") for event in made)

        def elapsed_time(self, other):
            return 1000.0 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    found, _ = split_round(contender(store, limit=16).training, Marks(torch.device("cuda")), 0)
    assert found == [{"data": 1.0, "forward": 1.0, "backward": 1.0, "optimiser": 1.0, "rest": 2.0}] * 2
    assert len(made) == 1 + 2 * marks.A_STEP and len(waited) == 1


def test_measuring_changes_neither_losses_nor_the_training(store):
    one, other = contender(store, limit=24).training, contender(store, limit=24).training
    pipeline, plain = one.train, other.epoch(0)[0]
    losses = []
    epoch = one.epoch
    one.epoch = lambda number: losses.append(epoch(number)[0])
    split_round(one, Marks(torch.device("cpu")), 0)
    assert losses == [plain] and one.train is pipeline and not {"forward", "backward", "update"} & set(vars(one))


def test_breakdown_refuses_a_round_without_a_counted_step(store):
    with pytest.raises(InputError, match="37 images are 4 batches of 8, and a round needs 5"):
        breakdown.main(["--data", str(store.path), *SMALL, "--first", "4"])
    with pytest.raises(InputError, match="--steps"):
        breakdown.main(["--data", str(store.path), *SMALL, "--rounds", "0"])


@pytest.mark.parametrize("command", [breakdown, epoch_time, loaders], ids=lambda module: module.__name__)
def test_a_chart_without_matplotlib_is_refused_before_anything_is_measured(store, command, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        command.main(["--data", str(store.path), "--chart", "b.png"])


@pytest.mark.parametrize("command", [blocks, breakdown, epoch_time, loaders, together], ids=lambda module: module.__name__)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(store, command, tmp_path):
    (tmp_path / "file").touch()
    data = [] if command is blocks else ["--data", str(store.path)]
    for place, message in ((tmp_path / "file" / "b.json", "file: cannot be written"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=message):
            command.main([*data, "--json", str(place)])


def test_epoch_time_states_every_figure(store, absent, tmp_path, capsys, drawn):
    flags = ["--epochs", "2", "--passes", "1", "--lr", "0.01", "--json", str(tmp_path / "e.json"), "--chart", str(tmp_path / "e.png")]
    epoch_time.main(["--data", str(store.path), "--pipelines", "ffcv", "resident", *SMALL, *flags])
    missing, resident, fixed = json.loads((tmp_path / "e.json").read_text())["rows"]
    assert missing["missing"] and fixed["pipeline"] == CEILING and fixed["test_accuracy"] is None
    for key in ("loader_images_per_second", "images_per_second", "epoch_seconds"):
        numbers(resident[key], 1)
    assert 0 <= resident["test_accuracy"] <= 1 and "not installed |" in capsys.readouterr().out
    assert "1,000" in drawn and not any("$" in text for text in drawn)


@pytest.mark.parametrize("command", [epoch_time, breakdown, together], ids=lambda module: module.__name__)
def test_a_mistyped_net_is_one_line(store, command):
    with pytest.raises(InputError, match="net 'level9': choose one of"):
        command.main(["--data", str(store.path), "--net", "level9"])


# The runner


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


def step(name: str, code: str = "print('well')", **settings) -> Step:
    return Step(name, python(code), f"What is {name}?", **settings)


def go(out, listed, left=1000.0, commit="abc") -> tuple[list[str], list[str], dict]:
    """(states, lines said, entries as written) of a run with `left` seconds on a clock that stands still."""
    said = []
    states = steps.run(listed, Index(out, commit), left, said.append, clock=lambda: 0.0)
    return states, said, json.loads((out / "summary.json").read_text())["runs"][commit]


def test_steps_run_in_order_and_each_is_written_at_once(tmp_path):
    index = tmp_path / "summary.json"
    look = f"import json; run = json.load(open({str(index)!r}))['runs']['abc']; print(*[n + ' ' + e['state'] for n, e in run.items()])"
    write = f"open({str(tmp_path / 'abc' / 'first.json')!r}, 'w').write('1')"
    states, said, entries = go(tmp_path, [step("first", write, result="first.json"), step("second", look, after="first")])
    assert states == ["done", "done"] and list(entries) == ["first", "second"]
    assert (tmp_path / "abc" / "second.txt").read_text() == "first done\n"
    assert [line.split(":")[0] for line in said] == ["first", "first", "second", "second"]
    assert entries["first"]["files"] == ["first.json", "first.log", "first.txt"] and entries["first"]["tries"] == 1
    page = (tmp_path / "summary.md").read_text()
    assert "What is second?" in page and "first done" in page


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path):
    count = tmp_path / "count"
    once = step("once", f"open({str(count)!r}, 'a').write('x')")
    assert go(tmp_path, [once])[0] == ["done"]
    states, said, _ = go(tmp_path, [once, step("later")])
    assert states == ["done", "done"] and said[0] == "once: done before" and count.read_text() == "x"
    go(tmp_path, [once], commit="another")
    assert count.read_text() == "xx" and "- abc: once done, later done" in (tmp_path / "summary.md").read_text()


def test_a_failure_is_written_down_and_tried_once_more(tmp_path):
    count = tmp_path / "count"
    bad = step("bad", f"open({str(count)!r}, 'a').write('x'); import sys; sys.exit('no such thing')")
    for tries in (1, 2, 2):
        states, said, entries = go(tmp_path, [bad, step("good"), step("rest", after="bad")])
        assert states == ["failed", "done", "skipped"] and entries["rest"]["reason"] == "bad is not done"
        assert entries["bad"]["tries"] == tries and entries["bad"]["reason"] == "exit code 1: no such thing"
    assert count.read_text() == "xx" and said[0].startswith("bad: not run: failed 2 times")


def test_a_step_that_leaves_no_result_or_cannot_start_has_failed(tmp_path):
    absent = Step("absent", ("/no/such/program",), "")
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "empty.json").write_text("of an earlier try")
    states, _, entries = go(tmp_path, [step("empty", result="empty.json"), absent])
    assert states == ["failed", "failed"] and entries["empty"]["reason"] == "ended without writing empty.json"
    assert "cannot be started" in entries["absent"]["reason"]


def test_time_over_kills_the_whole_group_and_the_next_call_needs_more(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    # the grandchild holds the fifo open until it is killed
    forever = Step("forever", ("sh", "-c", f"(echo up; exec sleep infinity) > {fifo} & wait"), "", most=2)
    states, _, entries = go(tmp_path, [forever, step("next")])
    assert states == ["stopped", "done"] and entries["forever"]["reason"] == "not done within 2 s"
    watch, seen = select.poll(), b""
    watch.register(reader, select.POLLIN | select.POLLHUP)
    while watch.poll(60_000):  # an end of file, or the grandchild lives
        part = os.read(reader, 100)
        if not part:
            break
        seen += part
    else:
        pytest.fail("a process of the step outlived it")
    os.close(reader)
    states, said, entries = go(tmp_path, [forever])
    assert said == ["forever: not run: 2 s were too little, and 2 s are left for it"]
    assert states == ["stopped"] and entries["forever"]["tries"] == 1 and seen in (b"up\n", b"")
    assert go(tmp_path, [step("forever", most=3)])[0] == ["done"]


def test_what_keeps_what_it_has_goes_on_however_often_it_is_stopped(tmp_path):
    """A seed a second, of which three are wanted, in calls of two seconds at most."""
    command = ("sh", "-c", f"while [ $(cat {tmp_path}/kept 2>/dev/null | wc -l) -lt 3 ]; do sleep 0.8; echo seed >> {tmp_path}/kept; done")
    for expected in (["stopped"], ["done"]):
        assert go(tmp_path, [Step("seeds", command, "", most=2, goes_on=True)])[0] == expected
    goes_on = {one.name: one.goes_on for one in gpu.steps(tmp_path, "data", "cuda", False)}
    assert goes_on["speed_50"] and goes_on["few"] and not goes_on["loaders"]


def test_steps_that_time_nothing_run_side_by_side(tmp_path):
    """Each waits for what the other writes; a third is killed with its time, and the next begins when all have ended."""

    def wait(mine: str, theirs: str) -> str:
        return f"import os, time; open({str(tmp_path / mine)!r}, 'w').close()\nwhile not os.path.exists({str(tmp_path / theirs)!r}): time.sleep(0.01)"

    pair = [step("a", wait("a", "b"), beside=True), step("b", wait("b", "a"), beside=True)]
    listed = [*pair, step("c", "import time; time.sleep(600)", most=3, beside=True), step("d", beside=True, needs=("no_such_module",)), step("e")]
    states, said, entries = go(tmp_path, listed)
    assert states == ["done", "done", "stopped", "skipped", "done"] and entries["d"]["reason"] == "no_such_module not installed"
    order = [line.split(":")[0] for line in said]
    assert order == ["d", "a", "b", "c", "a", "b", "c", "e", "e"]


def test_what_there_is_no_time_or_no_module_for_is_skipped_with_the_reason(tmp_path):
    listed = [step("long", least=50), step("short", least=5), step("bare", needs=("no_such_module",)), step("told", skip="not here")]
    states, _, entries = go(tmp_path, listed, left=40.0)
    assert states == ["skipped", "done", "skipped", "skipped"]
    assert [entries[n]["reason"] for n in ("long", "bare", "told")] == [
        "needs some 50 s, and 35 s are left",
        "no_such_module not installed",
        "not here",
    ]
    assert go(tmp_path, listed)[0] == ["done", "done", "skipped", "skipped"]


def test_a_damaged_index_and_a_folder_that_cannot_be_made_are_one_line(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    for out in (tmp_path, tmp_path / "summary.json" / "out"):
        with pytest.raises(InputError, match="--out"):
            Index(out, "abc")


# The command


def test_gpu_command_lists_steps_that_fit_together(tmp_path):
    for quick in (False, True):
        listed = gpu.steps(tmp_path, "data", "cuda", quick)
        names = [s.name for s in listed]
        assert names[:4] == ["machine", "tests", "programs-speed", "speed"] and len(set(names)) == len(names)
        assert [s.name for s in listed if s.beside] == names[1:3]
        assert all(s.after in ("", *names[:i]) and s.least < s.most for i, s in enumerate(listed))
    assert [s.skip != "" for s in gpu.steps(tmp_path, "", "cpu", True)] == [name in ("tests", "blocks") for name in names]


def test_some_of_the_list_can_be_asked_for(tmp_path):
    listed = [s.name for s in gpu.steps(tmp_path, "data", "cuda", False, only=("search", "speed"))]
    assert listed == ["machine", "programs-speed", "speed", "search"]  # in the list's order
    assert [s.name for s in gpu.steps(tmp_path, "data", "cuda", False, only=("tests",))] == ["machine", "tests"]
    with pytest.raises(InputError, match="--only spede: choose from tests, speed"):
        gpu.steps(tmp_path, "data", "cuda", False, only=("spede",))


def test_results_belong_to_a_commit_and_to_the_changes_on_it(monkeypatch):
    monkeypatch.setattr(gpu, "commit", lambda: "abc")
    assert gpu.identity() == "abc"
    for said, begins in (("abc+", "abc+"), (None, "sources-")):
        monkeypatch.setattr(gpu, "commit", lambda said=said: said)
        assert gpu.identity().startswith(begins) and len(gpu.identity()) == len(begins) + 8


@pytest.mark.parametrize("name", ["nets/a.py", "nets/a.c", "nets/a.h"])
def test_a_change_of_any_source_is_another_identity(tmp_path, monkeypatch, name):
    monkeypatch.setattr(gpu, "commit", lambda: None)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "nets").mkdir()
    before = gpu.identity()
    (tmp_path / name).touch()
    assert gpu.identity() != before


def command(*given, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *given], capture_output=True, text=True, cwd=steps.ROOT, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_the_command_says_so_and_ends_with_2(tmp_path):
    done = command("-m", "benchmarks", "gpu", "--out", str(tmp_path / "o"), "--minutes", "1")
    assert done.returncode == 2 and "no CUDA device" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_first_step_writes_what_the_machine_is(store, tmp_path):
    out = tmp_path / "o"
    index = Index(out, "abc")
    listed = gpu.steps(index.folder, str(store.path), "cpu", True)
    assert steps.run(listed[:1], index, 1000.0, lambda text: None, clock=lambda: 0.0) == ["done"]
    assert json.loads((out / "abc" / "machine.json").read_text())["settings"]["images"] == {"train": 37, "test": 11}


def test_training_needs_neither_matplotlib_nor_tqdm(tmp_path):
    """As on a borrowed machine: a silent tqdm stands in, and the report has no pictures."""
    store = make_store(tmp_path / "s.safetensors")
    hide = "import sys; sys.modules['matplotlib'] = None; sys.argv = ['train', *sys.argv[1:]]; "
    code = hide + "from pipelines.errors import exit_code; from train.__main__ import main; sys.exit(exit_code(main))"
    flags = ["level1", "--data", str(store.path), "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "o")]
    done = command("-c", code, *flags, env={**os.environ, "PYTHONPATH": os.pathsep.join((str(steps.STAND_INS), str(steps.ROOT)))})
    assert done.returncode == 0 and "matplotlib is not installed" in done.stderr, done.stderr
    assert "![" not in (tmp_path / "o" / "report.md").read_text() and not list((tmp_path / "o").glob("*.png"))


def test_stand_ins_are_on_the_path_only_where_they_are_needed(monkeypatch):
    assert str(steps.STAND_INS) not in steps._environment()["PYTHONPATH"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert steps._environment()["PYTHONPATH"].endswith(str(steps.STAND_INS))
