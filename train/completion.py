"""python -m train completion bash|zsh: print a script that completes `python -m train` in a shell.

    python -m train completion bash > ~/.tenfold.bash    and in ~/.bashrc:  source ~/.tenfold.bash
    python -m train completion zsh  > ~/.tenfold.zsh     and in ~/.zshrc, after compinit:  source ~/.tenfold.zsh

Other uses of `python` complete as before.
"""

import argparse
import importlib
from dataclasses import dataclass, field, fields

import nets
import pipelines
from train.command import COMMANDS, parser_of
from train.flags import named
from train.recipe import Recipe, flag

WORDS = """\
# What may stand in place of the word $3, behind the word $2 of the command $1, as `found`; nothing where it is a file or a number.
_tenfold_words() {{
    local flags names
    case "$1" in
{commands}
    esac
    case "$1 $2" in
{values}
    esac
    case "$3" in
    -*) found=$flags ;;
    *) found=$names ;;
    esac
}}
"""

BASH = """\
_tenfold() {{
    local found= command=train word=${{COMP_WORDS[COMP_CWORD]}}
    COMPREPLY=()
    if [[ ${{COMP_WORDS[1]}} != -m || ${{COMP_WORDS[2]}} != train || $COMP_CWORD -lt 3 ]]; then
        [[ -n $_tenfold_before ]] && "$_tenfold_before" "$@"
        return
    fi
    if (( COMP_CWORD > 3 )); then
        case "${{COMP_WORDS[3]}}" in
        {words}) command=${{COMP_WORDS[3]}} ;;
        esac
        _tenfold_words "$command" "${{COMP_WORDS[COMP_CWORD-1]}}" "$word"
    else
        _tenfold_words start "" "$word"
    fi
    COMPREPLY=($(compgen -W "$found" -- "$word"))
}}
declare -F _comp_load >/dev/null && _comp_load python 2>/dev/null  # bash-completion loads python's own when it is first asked for
declare -F _completion_loader >/dev/null && _completion_loader python 2>/dev/null
_tenfold_before=$(complete -p python 2>/dev/null | sed -n 's/.*-F \\([^ ]*\\).*/\\1/p')
[[ $_tenfold_before == _tenfold ]] && _tenfold_before=
complete -o default -F _tenfold python python3
"""

ZSH = """\
_tenfold() {{
    local found= command=train
    if [[ $words[2] != -m || $words[3] != train || CURRENT -lt 4 ]]; then
        if (( $+functions[_python] )); then _python "$@"; else _files; fi
        return
    fi
    if (( CURRENT > 4 )); then
        case "$words[4]" in
        {words}) command=$words[4] ;;
        esac
        _tenfold_words "$command" "$words[CURRENT-1]" "$words[CURRENT]"
    else
        _tenfold_words start "" "$words[CURRENT]"
    fi
    if [[ -n $found ]]; then compadd -- ${{=found}}; else _files; fi
}}
compdef _tenfold python python3
"""


@dataclass
class Spec:
    """What a command takes: `flags`, the `values` that may follow one (none: anything), and `names` in place of arguments."""

    flags: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


def of_recipes(recipes: list[str]) -> Spec:
    """A recipe's name and every field of it."""
    spec = Spec(["--help"], {}, recipes)
    open_choices = {"net": nets.names(), "pipeline": pipelines.names()}
    for setting in fields(Recipe):
        name = f"--{flag(setting.name)}"
        if setting.type is bool:
            spec.flags += [name, f"--no-{flag(setting.name)}"]
        else:
            spec.flags.append(name)
            spec.values[name] = [*map(str, setting.metadata["choices"] or open_choices.get(setting.name, []))]
    return spec


def of_parser(parser: argparse.ArgumentParser) -> Spec:
    """What a command's own parser says; argparse has no public way to ask."""
    spec = Spec()
    for action in parser._actions:
        choices = [str(choice) for choice in action.choices or []]
        if not action.option_strings:
            spec.names += choices
            continue
        spec.flags += [name for name in action.option_strings if name.startswith("--")]
        if action.nargs != 0:
            spec.values |= {name: choices for name in action.option_strings}
    return spec


def specs() -> dict[str, Spec]:
    """Every command's `Spec`; "train" is a training, and "start" the place where a command or recipe is named."""
    training = of_recipes(list(named()))
    training.flags.append("--resume")
    training.values["--resume"] = []
    found = {"start": Spec(training.flags, {}, [*training.names, *COMMANDS]), "train": Spec(training.flags, training.values)}
    for word in COMMANDS:
        module = importlib.import_module(f"train.{word.replace('-', '_')}")
        found[word] = of_parser(module.parser()) if hasattr(module, "parser") else Spec()
    more = found["lr-find"]
    found["lr-find"] = Spec(more.flags + training.flags[:-1], {**training.values, **more.values}, training.names)
    return found


def script(shell: str) -> str:
    """The completion script for "bash" or "zsh"."""
    every = specs()
    commands = [f'    {word}) flags="{" ".join(spec.flags)}" names="{" ".join(spec.names)}" ;;' for word, spec in every.items()]
    values = [f'    "{word} {name}") found="{" ".join(map(str, given))}"; return ;;' for word, spec in every.items() for name, given in spec.values.items()]
    words = " | ".join(word for word in every if word not in ("start", "train"))
    return (WORDS + {"bash": BASH, "zsh": ZSH}[shell]).format(commands="\n".join(commands), values="\n".join(values), words=words)


def parser() -> argparse.ArgumentParser:
    made = parser_of("completion", __doc__)
    made.add_argument("shell", choices=("bash", "zsh"), help="shell to write it for")
    return made


def main(arguments: list[str]) -> None:
    print(script(parser().parse_args(arguments).shell), end="")
