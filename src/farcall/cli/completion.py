"""`farcall completion SHELL`: a script for the shell that completes commands, options, files and what a file offers."""

import argparse
import re
import sys
from importlib import import_module
from typing import cast

from farcall.cli.usage import Parser

SHELLS = ("bash", "zsh", "fish")

_INSTALL = {
    "bash": "farcall completion bash > ~/.local/share/bash-completion/completions/farcall",
    "zsh": 'farcall completion zsh > "${fpath[1]}/_farcall"',
    "fish": "farcall completion fish > ~/.config/fish/completions/farcall.fish",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def run(options: argparse.Namespace) -> int:
    script = {"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell]()
    sys.stdout.write(script)
    if sys.stdout.isatty():
        print(f"to install: {_INSTALL[options.shell]}", file=sys.stderr)
    return 0


class _Words:
    """What may follow a command: words (subcommands or choices) and options with their help."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.words: dict[str, str] = {}
        self.options: dict[str, str] = {}
        self.takes_files = isinstance(parser, Parser) and parser.program_follows
        for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
            if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
                for choice in action._choices_actions:  # pyright: ignore[reportPrivateUsage]
                    self.words[choice.dest] = choice.help or ""
            elif action.option_strings:
                for option in action.option_strings:
                    if option.startswith("--"):
                        self.options[option] = (action.help or "").replace("%%", "%")
            elif action.choices is not None:
                self.words |= {str(choice): "" for choice in action.choices}
            else:
                self.takes_files = True


def _commands() -> dict[str, tuple[str, _Words]]:
    """Command ("run", "server stop") to its help and what may follow it."""
    from farcall.cli.main import COMMANDS

    found: dict[str, tuple[str, _Words]] = {}
    for command in COMMANDS:
        parser = Parser(prog=f"farcall {command.name}")
        import_module(command.module).add_arguments(parser)
        found[command.name] = command.help, _Words(parser)
        for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
            if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
                inner = cast("dict[str, argparse.ArgumentParser]", action.choices)  # pyright: ignore[reportUnknownMemberType]
                found |= {f"{command.name} {name}": ("", _Words(parser)) for name, parser in inner.items()}
    return found


def _groups(commands: dict[str, tuple[str, _Words]]) -> str:
    """The commands that have commands of their own, as a pattern of the shells' `case`."""
    return "|".join(sorted({name.partition(" ")[0] for name in commands if " " in name}))


def _bash() -> str:
    commands = _commands()
    cases = "\n".join(
        f'        "{name}") words="{" ".join([*words.words, *words.options])}"; files={int(words.takes_files)} ;;'
        for name, (_, words) in commands.items()
    )
    top = " ".join(name for name in commands if " " not in name)
    return f"""\
# bash completion of farcall
_farcall() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words files=0
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{top} --help --version" -- "$current"))
        return
    fi
    case "$command" in
        {_groups(commands)}) [ "$COMP_CWORD" -gt 2 ] && command="$command ${{COMP_WORDS[2]}}" ;;
    esac
    case "$command" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [ "$files" -eq 1 ] && [[ "$current" != -* ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY+=($(compgen -f -X '!*.py' -- "$current") $(compgen -d -- "$current"))
    fi
}}
complete -F _farcall farcall
"""


def _zsh() -> str:
    commands = _commands()
    top = "\n".join(f"        {_quoted(f'{name}:{about}')}" for name, (about, _) in commands.items() if " " not in name)
    lines = [
        f"""\
#compdef farcall

_farcall() {{
    local -a commands follow options
    commands=(
{top}
    )
    if (( CURRENT == 2 )); then
        _describe -t commands command commands
        return
    fi
    local command=${{words[2]}}
    case $command in
        {_groups(commands)}) (( CURRENT > 3 )) && command="$command ${{words[3]}}" ;;
    esac
    case $command in"""
    ]
    for name, (_, words) in commands.items():
        follow = " ".join(_quoted(f"{word}:{about}" if about else word) for word, about in words.words.items())
        options = " ".join(_quoted(f"{option}:{about}" if about else option) for option, about in words.options.items())
        lines.append(f"        {_quoted(name)}) follow=({follow}) options=({options})")
        lines.append("            _files -g '*.py(-.)' ;;" if words.takes_files else "            ;;")
    lines += [
        "    esac",
        "    (( $#follow )) && _describe -t words word follow",
        "    (( $#options )) && _describe -t options option options",
        "}",
        "",
        'if [ "$funcstack[1]" = "_farcall" ]; then _farcall "$@"; else compdef _farcall farcall; fi',
    ]
    return "\n".join(lines) + "\n"


def _fish() -> str:
    lines = ["# fish completion of farcall", "complete -c farcall -f"]
    for name, (about, words) in _commands().items():
        first, _, second = name.partition(" ")
        if not second:
            lines.append(f"complete -c farcall -n __fish_use_subcommand -a {first} -d {_quoted(about)}")
            others = " ".join(words.words)
            seen = f"__fish_seen_subcommand_from {first}"
            inner = f"{seen}; and not __fish_seen_subcommand_from {others}" if others else seen
        else:
            inner = f"__fish_seen_subcommand_from {first}; and __fish_seen_subcommand_from {second}"
        condition = _quoted(inner)
        for word, help_ in words.words.items():
            lines.append(f"complete -c farcall -n {condition} -a {word} -d {_quoted(help_)}")
        for option, help_ in words.options.items():
            lines.append(f"complete -c farcall -n {condition} -l {option[2:]} -d {_quoted(help_)}")
        if words.takes_files:
            lines.append(f"complete -c farcall -n {condition} -F")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """`text` in single quotes, for any of the shells."""
    if re.fullmatch(r"[\w.-]+", text):
        return text
    return "'" + text.replace("'", "'\\''") + "'"
