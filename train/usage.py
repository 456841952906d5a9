"""What `python -m train --help` prints: the settings in short groups, commands and examples."""

import argparse
import difflib
import inspect
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import Field

from train.command import WIDEST, wrapped

# A setting that is named nowhere here stands under "more settings".
GROUPS = {
    "data": "data size limit held_out pipeline",
    "net": "net norm weights settle freeze",
    "run": "epochs minutes batch_size seed runs together sweep out eval_every views views_share save_minutes events report",
    "speed": "device precision compiled recorded deterministic",
    "optimiser": "optimiser lr momentum nesterov weight_decay beta muon_lr muon_momentum muon_norm head_lr label_smoothing ema",
    "schedule": "schedule warmup floor step_epochs factor patience",
    "progressive resizing": "first_side grown",
    "augmentation, in the pipeline (the same in every one)": "flip translate padding cutout",
    "augmentation, on batches behind any pipeline": "affine_p shift scale rotate erase_p erase erase_fill grey_p brightness contrast saturation sharpness mixup cutmix mix_ramp",
    "distillation": "teacher teacher_share temperature",
}
MORE = "more settings"
METAVARS: dict[object, str] = {int: "N", float: "X", str: "NAME"}
TEXTS = {"data": "PATH", "out": "DIR", "teacher": "RUN", "weights": "RUN", "sweep": "FIELD=V,V"}

USAGE = """python -m train [RECIPE] [--setting value ...]
       python -m train --resume RUN
       python -m train COMMAND ... (each has its own --help)"""

ABOUT = (
    "Train a small net. A recipe is a named set of settings; flags override single ones. Without a recipe, python -m train picks one that suits this machine. "
    "Values in [brackets] are those of the recipe {}; python -m train RECIPE --help shows those of another."
)

EXAMPLES = """
examples:
  python -m train                                         about five minutes on two cores
  python -m train --minutes 5                             as many epochs as fit on this machine
  python -m train level1 --epochs 10 --pipeline dali      a recipe with other settings
  python -m train --data my-pictures --size 32            on your own images, one folder a class
  python -m train --data cifar100 --runs 5                five seeds: mean, deviation, 95% interval
  python -m train --resume runs/20261124-...              go on with an interrupted run, bit for bit
  torchrun --standalone --nproc-per-node 2 -m train level1  two processes share one training
  python -m train predict runs/20261124-... photo.jpg     classify a picture with a trained net
"""


def parser(recipes: dict, commands: dict[str, str], shown: str) -> argparse.ArgumentParser:
    """The parser of a training, still without settings. `recipes` maps names to functions, `commands` names to what they are for; `shown` is the recipe
    whose values the help states."""

    width = min(shutil.get_terminal_size().columns, WIDEST)

    def layout(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=width)

    def listed(texts: dict[str, str]) -> str:
        return "\n".join(textwrap.fill(text, width - 2, initial_indent=f"  {name:12}", subsequent_indent=" " * 14) for name, text in texts.items())

    epilog = f"recipes:\n{listed({name: about(made) for name, made in recipes.items()})}\n\ncommands:\n{listed(commands)}\n{EXAMPLES}"
    made = argparse.ArgumentParser("python -m train", USAGE, wrapped(ABOUT.format(shown)), epilog, formatter_class=layout, allow_abbrev=False)
    made.add_argument("recipe", nargs="?", default="default", metavar="RECIPE", help="a named recipe, see below (default: default)")
    return made


def about(made: Callable) -> str:
    """The first sentence of a recipe's docstring."""
    return " ".join((inspect.getdoc(made) or "").split()).split(". ")[0].rstrip(".")


def groups(made: argparse.ArgumentParser, settings: tuple[Field, ...]) -> list[tuple[Field, argparse._ArgumentGroup]]:
    """Each setting with the group of the parser that it is listed in, in the order in which they are printed."""
    by_name, found = {setting.name: setting for setting in settings}, []
    for title, text in GROUPS.items():
        group = made.add_argument_group(title)
        found += [(by_name.pop(name), group) for name in text.split() if name in by_name]
    if by_name:
        group = made.add_argument_group(MORE)
        found += [(setting, group) for setting in by_name.values()]
    return found


def explained(setting: Field, value) -> str:
    """A setting's help for argparse, with its value in the recipe that is shown."""
    said = {True: "on", False: "off"}[value] if setting.type is bool else f"{value:g}" if setting.type is float else value
    text = setting.metadata["help"] if value == "" else f"{setting.metadata['help']} [{said}]"
    return text.replace("%", "%%")


def near(word: str, words: list[str]) -> str:
    """A question in brackets where one of the words is close to what was given."""
    found = difflib.get_close_matches(word.split("=")[0], words, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def metavar(setting: Field) -> str | None:
    """What stands for a value in the help; None where its choices do."""
    return None if setting.metadata["choices"] else TEXTS.get(setting.name) or METAVARS.get(setting.type)
