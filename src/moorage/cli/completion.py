"""Completion for shells: names of plugins, and scripts for bash, fish and zsh. Imported only when a shell asks."""

import os
from typing import Any, ClassVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from moorage import errors
from moorage._lib.escapes import escape, is_printable
from moorage._lib.imports import collector_paused
from moorage.cli.engine_location import host_of
from moorage.timeouts import DEFAULT

__all__ = ("find_plugins", "find_volumes", "register", "script")

_VARIABLE = "_MOORAGE_COMPLETE"
_ANSWER_SECONDS = DEFAULT.completion  # no user waits longer for a key
_LATEST = ":latest"

# Like click's, but with the line as it stands: bash breaks words at colons and equal signs, which names have.
_BASH = """\
%(complete_func)s() {
    local type value response
    COMPREPLY=()
    response=$(COMP_HEAD="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
    while IFS=, read -r type value; do
        case $type in
        dir) compopt -o dirnames ;;
        file) compopt -o default ;;
        plain) COMPREPLY+=("$value") ;;
        esac
    done <<<"$response"
    [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Bash(BashComplete):
    source_template: ClassVar[str] = _BASH

    @staticmethod
    def _check_version() -> None:
        """Nothing: the script is also made where no bash is."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one that it is in."""
        head = os.environ.get("COMP_HEAD", "")
        words = split_arg_string(head)[1:]
        self.incomplete = words.pop() if words and not head[-1:].isspace() else ""
        return words, self.incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """The replacement for the part of the word after its last break."""
        breaks = set(":=") & set(os.environ.get("COMP_BREAKS", ""))
        start = max((self.incomplete.rfind(each) + 1 for each in breaks), default=0)
        value = str(item.value)
        return f"{item.type},{value[start:] if value.startswith(self.incomplete[:start]) else value}"


class _Fish(FishComplete):
    # click's would end a description at its first comma
    source_template: ClassVar[str] = FishComplete.source_template.replace('split ","', 'split --max 1 ","')


class _Zsh(ZshComplete):
    # As a file in the function path it is the body of the function _moorage: click's completes nothing when called a
    # second time.
    source_template: ClassVar[str] = ZshComplete.source_template.replace(
        "$zsh_eval_context[-1] == loadautofunc", "$funcstack[1] == _%(prog_name)s"
    )


_SHELLS = {"bash": _Bash, "fish": _Fish, "zsh": _Zsh}


def register() -> None:
    """Let click use what is here, where a shell asks."""
    for found in _SHELLS.values():
        add_completion_class(found)


def script(shell: str, command: click.Command) -> str:
    """What a shell reads to complete the program's lines."""
    return _SHELLS[shell](command, {}, "moorage", _VARIABLE).source()


def find_plugins(context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """The plugins of the engine that the line names, with their state; none where no engine answers."""
    with collector_paused():
        from moorage.client import MoorageClient

    try:
        plugins = MoorageClient(host_of(context), _ANSWER_SECONDS).plugins()
        found = {each.name: each.moorage.state for each in plugins}
    except errors.MoorageError:
        return []
    given = {each for value in context.params.values() for each in (value if isinstance(value, tuple) else ())}
    items = []
    for name, state in sorted(found.items()):
        # hello is hello:latest, and shorter
        offered = name if incomplete.startswith(name.removesuffix(_LATEST) + ":") else name.removesuffix(_LATEST)
        # a shell reads a line for each, and shows it as it is
        if is_printable(name) and offered.startswith(incomplete) and not {name, offered} & given:
            items.append(CompletionItem(offered, help=escape(state)))
    return items


def find_volumes(context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """The volumes of the engine that the line names, with their driver; none where no engine answers."""
    with collector_paused():
        from moorage.client import MoorageClient

    try:
        volumes = MoorageClient(host_of(context), _ANSWER_SECONDS).volumes().volumes
    except errors.MoorageError:
        return []
    given = {each for value in context.params.values() for each in (value if isinstance(value, tuple) else ())}
    return [
        CompletionItem(each.name, help=escape(each.driver))
        for each in volumes
        if is_printable(each.name) and each.name.startswith(incomplete) and each.name not in given
    ]
