"""The documents: their code and commands are run or parsed, links lead somewhere, the map is whole; and so is --help."""

import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import nets
from train import usage
from train.command import COMMANDS
from train.flags import named, parse
from train.recipe import Recipe, flag

REPOSITORY = Path(__file__).parents[1]


FEW = {"train": 2000, "test": 100}  # shapes; all of them take longer to draw than the rest


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (REPOSITORY / document).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_api_is_as_documented(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.report.write", lambda *_: None)  # test_report.py has them
    monkeypatch.setattr("pipelines.shapes.COUNTS", FEW)
    known = {}
    for block in blocks("docs/api.md", "python"):
        exec(compile(block, "docs/api.md", "exec"), known)
    said = capsys.readouterr().out
    assert "runs/first: test accuracy" in said and said.splitlines()[-1] in known["store"].classes


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """The project with what CONTRIBUTING.md adds to it."""
    root = tmp_path_factory.mktemp("project")
    for name in ("pipelines", "nets", "train", "tests"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "setup.cfg", root)
    with (root / "pipelines/shapes.py").open("a", encoding="utf-8") as file:
        file.write(f"COUNTS = {FEW}\n")
    for block in blocks("CONTRIBUTING.md", "python"):
        with (root / block.split()[1]).open("a", encoding="utf-8") as file:
            file.write("\n\n" + block)
    return root


def test_what_contributing_adds_works(copied):
    commands = [line for block in blocks("CONTRIBUTING.md", "sh") for line in block.splitlines()]
    assert [command.split()[2] for command in commands] == ["pytest", "train"]
    done = [
        subprocess.run([sys.executable, *command.split()[1:]], cwd=copied, env={**os.environ, "PYTHONPATH": str(copied)}, capture_output=True, text=True)
        for command in commands
    ]
    assert all(one.returncode == 0 for one in done), "\n".join(one.stdout + one.stderr for one in done)
    assert re.search(r"\d\d passed|^\.{20,}", done[0].stdout, re.MULTILINE)
    assert "pebble: 5,466 parameters, 256 images of shapes through pooled" in done[1].stdout and (copied / "runs/pebble/model.safetensors").exists()


def test_help_lists_every_setting_once_and_fits(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(["--help"], named())
    said = capsys.readouterr().out
    listed = re.findall(r"^  --([a-z0-9-]+)", said, re.MULTILINE)
    assert sorted(listed) == sorted(flag(setting.name) for setting in fields(Recipe)) and max(map(len, said.splitlines())) <= 100
    assert {name for names in usage.GROUPS.values() for name in names.split()} <= {setting.name for setting in fields(Recipe)}
    assert all(f"\n{title}:" in said for title in (*usage.GROUPS, "recipes", "commands", "examples")) and "lr-find" in said


def test_help_shows_the_values_of_a_recipe(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    for words, name, rate in ((["speed", "--help"], "speed", "55"), (["--epochs", "3", "level1", "--help"], "level1", "0.01")):
        with pytest.raises(SystemExit):
            parse(words, named())
        said = capsys.readouterr().out
        assert f"those of the recipe {name};" in " ".join(said.split()) and re.search(rf"^  --lr X .* \[{rate}\]$", said, re.MULTILINE)
        assert not re.search(r"^  --teacher .*\[", said, re.MULTILINE)  # it has no value


def test_help_names_every_net_whose_own_norms_are_no_batch_norms():
    text = next(setting.metadata["help"] for setting in fields(Recipe) if setting.name == "norm")
    own = {name: inspect.signature(nets.find(name)).parameters["norm"].default for name in nets.names()}
    assert all(f"{name} ({norm})" in text for name, norm in own.items() if norm != "batch")


def test_the_layout_names_every_module():
    """In the README's map of the project; a net's own file is named by `python -m nets`."""
    map_of_it = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## Project layout")[1]
    named = set(re.findall(r"\w+\.py", map_of_it))
    files = {file.name for folder in ("pipelines", "nets", "train") for file in (REPOSITORY / folder).glob("*.py")}
    missing = {name for name in files - named if not name.startswith("_") and name.removesuffix(".py") not in nets.names()}
    assert not missing
    assert named <= files | {file.name for file in REPOSITORY.glob("tests/*.py")}  # and none that is gone


def commands() -> list[str]:
    """The whole command lines of `python -m train` in the documents, without those that leave something to be filled in."""
    texts = [page.read_text(encoding="utf-8") for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))]
    lines = [line for text in texts for block in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
    bare = dict.fromkeys(line.split("  #")[0].strip() for line in lines)
    return [line for line in bare if line.startswith("python -m train") and "..." not in line and "[" not in line]


def test_there_are_commands():
    assert len(commands()) > 15


@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line):
    words = shlex.split(line)[3:]
    words = words[: words.index(">")] if ">" in words else words
    if words and words[0] in COMMANDS:
        module = importlib.import_module(f"train.{words[0].replace('-', '_')}")
        _, settings = module.parser().parse_known_args(words[1:])
        assert not settings or words[0] == "lr-find"  # which takes a recipe's, too
    else:
        assert isinstance(parse(words, named())[1], Recipe)


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links, as GitHub does it."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "benchmarks"])
def test_links_lead_somewhere(document):
    place = REPOSITORY / document
    pages = sorted(place.rglob("*.md")) if place.is_dir() else [place]
    broken = []
    for page in pages:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            known = "://" in target or (there.exists() and (not anchor or anchor in anchors(there.read_text(encoding="utf-8"))))
            broken += [] if known else [f"{page.relative_to(REPOSITORY)}: {target}"]
    assert pages and not broken
