"""Shell completion: the scripts are run by their shells."""

import shutil
import subprocess

import pytest

from train.completion import script, specs

ASK = {
    "bash": "COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _tenfold python; echo ${{COMPREPLY[@]}}",
    "zsh": "words=({words}); CURRENT=$#words; _tenfold",
}
# what zsh's own completion has: a place to be entered, and one for what was found
STUBS = {"bash": "", "zsh": "compdef() {}\n_files() { print files }\ncompadd() { shift; print -- ${(M)@:#$words[CURRENT]*} }\n"}

CASES = {
    "python -m train pre": "predict",
    "python -m train lev": "level1 level2 level3 level4",
    "python -m train --optim": "--optimiser",
    "python -m train level1 --optimiser mu": "muon",
    "python3 -m train --net lev": "level1 level2 level3 level4",
    "python -m train export --format o": "onnx",
    "python -m train export --fo": "--format",
    "python -m train lr-find --stepp": "",
    "python -m train lr-find --highest --low": "",  # a number is expected
    "python -m train lr-find level1 --lowes": "--lowest",
    "python -m train completion z": "zsh",
    "python -m train --res": "--resume",
}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_words_are_completed(shell):
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here")
    asked = "\n".join(f"({ASK[shell].format(words=case)})" for case in CASES)
    program = f"{STUBS[shell]}{script(shell)}\n{asked}\n"
    done = subprocess.run([shell], input=program, capture_output=True, text=True)
    assert not done.stderr and dict(zip(CASES, (line.strip() for line in done.stdout.split("\n")))) == {
        case: "files" if shell == "zsh" and case.endswith("--low") else found for case, found in CASES.items()
    }


def test_every_command_and_setting_is_known():
    from dataclasses import fields

    from train.command import COMMANDS
    from train.flags import named
    from train.recipe import Recipe, flag

    found = specs()
    assert set(found) == {"start", "train", *COMMANDS} and set(found["start"].names) == {*named(), *COMMANDS}
    assert {f"--{flag(setting.name)}" for setting in fields(Recipe)} <= set(found["train"].flags) & set(found["lr-find"].flags)
