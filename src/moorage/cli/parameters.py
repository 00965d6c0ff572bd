"""Values as users write them: "256m", "nofile=1024:4096", "10m" ago, NAME=@FILE."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from moorage import errors

__all__ = (
    "DURATION",
    "LABEL",
    "RESTART_POLICY",
    "SIZE",
    "TIME_LIMIT",
    "ULIMIT",
    "OptionalValueCommand",
    "ParsedValue",
    "in_order",
    "label_option",
    "parse_driver_option",
    "parse_duration",
    "parse_instant",
    "parse_label",
    "parse_restart",
    "parse_size",
    "parse_time_limit",
    "parse_ulimit",
    "publish_option",
    "read_secret",
    "read_secret_file",
    "runtime_option",
    "size_text",
)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_NUMBER = re.compile(r"\d+(\.\d+)?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_JOURNAL = re.compile(r"-?\s*((?:\d+(?:\.\d+)?\s*[a-z]+\s*)+?)(?:\s*ago)?", re.IGNORECASE)
_WORDS = (
    ("weeks?", 604800.0),
    ("days?", 86400.0),
    ("hours?|hrs?", 3600.0),
    ("minutes?|mins?", 60.0),
    ("seconds?|secs?", 1.0),
)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2})?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNLIMITED = {"unlimited", "infinity", "-1"}


def parse_size(text: str) -> int:
    """Bytes, from a number with or without k, m, g or t (powers of 1024). Raises: ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size like 256m or 2g (0 is no limit)")
    return int(float(found[1]) * (1 << _UNITS[found[2].lower()]))


def parse_ulimit(text: str) -> tuple[str, tuple[int, int]]:
    """Name, soft and hard limit, from NAME=SOFT[:HARD]; -1 is unlimited. Raises: ValueError."""
    name, equals, values = text.partition("=")
    soft, _, hard = values.partition(":")
    if not equals or not name:
        raise ValueError(f"{text!r} is not NAME=SOFT[:HARD], as in nofile=1024:4096")
    return name.strip().lower().removeprefix("rlimit_"), (_limit(soft), _limit(hard or soft))


def parse_time_limit(text: str) -> tuple[str, float]:
    """A call of plugins and its time limit in seconds, from CALL=SECONDS. Raises: ValueError."""
    call, equals, value = text.partition("=")
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0
    if not equals or "." not in call or not 0 < seconds < float("inf"):
        raise ValueError(f"{text!r} is not CALL=SECONDS, as in VolumeDriver.Mount=300")
    return call.strip().lstrip("/"), seconds


def parse_duration(text: str) -> float:
    """Seconds, from 30, 30s, 1m30s or 500ms. Raises: ValueError."""
    seconds = float(text) if _NUMBER.fullmatch(text) else _find_duration(text)
    if seconds is None:
        raise ValueError(f"{text!r} is not a duration like 30s or 1m30s")
    return seconds


def _find_duration(text: str) -> float | None:
    """Seconds, from numbers with units; None for any other text."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_label(text: str) -> tuple[str, str]:
    """Key and value, from KEY=VALUE; KEY alone has an empty value, as in docker. Raises: ValueError."""
    key, _, value = text.partition("=")
    if not key:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def parse_restart(text: str) -> tuple[str, int | None]:
    """A restart policy and the most restarts in a row, from no or never, always, on-failure, on-failure:5.

    ``unless-stopped`` is ``always`` here: a plugin that is disabled is never restarted. Raises: ValueError.
    """
    name, colon, most = text.partition(":")
    name = {"no": "never", "unless-stopped": "always"}.get(name, name)
    if name not in ("never", "always", "on-failure") or (colon and (name != "on-failure" or not most.isdecimal())):
        raise ValueError(f"{text!r} is not one of no, always, on-failure, on-failure:MAX")
    return name, int(most) if colon else None


def in_order(command: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """The command with these options, which its help lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def size_text(size: int) -> str:
    """A size as ``parse_size`` reads it."""
    for unit in ("t", "g", "m", "k"):
        if size and size % (1 << _UNITS[unit]) == 0:
            return f"{size >> _UNITS[unit]}{unit}"
    return str(size)


def parse_driver_option(text: str) -> tuple[str, str]:
    """Name and value of NAME=VALUE. Raises: click.BadParameter without a name."""
    name, _, value = text.partition("=")
    if not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--opt")
    return name, value


def parse_instant(text: str, option: str) -> str:
    """A time as the API takes it: a duration, as in 10m, becomes that long ago in seconds since 1970.

    As docker has them (10m, 1h30m, seconds since 1970, RFC 3339), and as journalctl has them (now, today, yesterday,
    -10m, "2 hours ago", 14:30, "2026-01-02 14:30"). Times without a zone are local.

    Raises:
        errors.Invalid: it is neither a time nor a duration; the text names the option
    """
    if not text or _NUMBER.fullmatch(text):
        return text
    if (seconds := _find_duration(text)) is not None:
        return f"{(datetime.now(UTC) - timedelta(seconds=seconds)).timestamp():.6f}"
    if (found := _journal_instant(text.strip().lower())) is not None:
        return f"{found.timestamp():.6f}"
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except ValueError as error:
        raise errors.Invalid(f"cannot read {option} {text}: neither a time nor a duration like 10m or 1h30m") from error


def _journal_instant(text: str) -> datetime | None:
    """An instant as journalctl writes it; None for any other text."""
    now = datetime.now().astimezone()
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("now", "today", "yesterday"):
        return {"now": now, "today": today, "yesterday": today - timedelta(days=1)}[text]
    if _CLOCK.fullmatch(text):
        try:
            hour, minute, *second = map(int, text.split(":"))
            return today.replace(hour=hour, minute=minute, second=second[0] if second else 0)
        except ValueError:
            return None
    if _JOURNAL.fullmatch(text) is None:
        return None
    seconds = 0.0
    for number, word in re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.removesuffix("ago")):
        size = _SECONDS.get(word) or next((size for names, size in _WORDS if re.fullmatch(names, word)), None)
        if size is None:
            return None
        seconds += float(number) * size
    return now - timedelta(seconds=seconds)


def read_secret(assignment: str) -> str:
    """NAME=VALUE for NAME=@FILE, without a trailing newline.

    Raises:
        errors.Invalid: the file cannot be read, or is not UTF-8 text
    """
    name, equals, value = assignment.partition("=")
    if not equals or not value.startswith("@"):
        return assignment
    return read_secret_file(name, Path(value[1:]))


def read_secret_file(name: str, path: Path) -> str:
    """NAME=VALUE with what is in a file, without a trailing newline.

    Raises:
        errors.Invalid: the file cannot be read, or is not UTF-8 text
    """
    try:
        return f"{name}={path.read_text().removesuffix(chr(10))}"
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"cannot read the secret {name} from {path}: it is not UTF-8 text") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read the secret {name} from {path}: {error.strerror}") from error


def _limit(text: str) -> int:
    text = text.strip().lower()
    if text in _UNLIMITED:
        return -1
    if not text.isdigit():
        raise ValueError(f"{text!r} is not a limit: give a number, or unlimited")
    return int(text)


class ParsedValue(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """A value that a function reads; its ValueError is a usage error. ``words`` are what a shell completes."""

    def __init__(self, name: str, parse: Callable[[str], Any], words: Sequence[str] = ()) -> None:
        self.name = name
        self._parse = parse
        self._words = words

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(each) for each in self._words if each.startswith(incomplete)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = ParsedValue("duration", parse_duration)
LABEL = ParsedValue("label", parse_label)
SIZE = ParsedValue("size", parse_size)
ULIMIT = ParsedValue("ulimit", parse_ulimit)
TIME_LIMIT = ParsedValue("time limit", parse_time_limit)
RESTART_POLICY = ParsedValue("policy", parse_restart, ("no", "always", "on-failure", "unless-stopped"))


_WITHOUT_VALUE = {"--publish": "--publish=", "--wait": "--wait=60s"}


class OptionalValueCommand(click.Command):
    """A command with ``--publish[=NAME]`` or ``--wait[=SECONDS]``: what follows these is the next argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; the arguments that are left."""
        end = args.index("--") if "--" in args else len(args)
        return super().parse_args(ctx, [_WITHOUT_VALUE.get(each, each) for each in args[:end]] + args[end:])


def label_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option --label, as the parameter ``labels``: pairs of key and value. ``text`` is its help."""
    return click.option("-l", "--label", "labels", type=LABEL, metavar="KEY=VALUE", multiple=True, help=text)


def publish_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that publishes a new plugin, for a ``OptionalValueCommand``; a text without name is its own."""
    return click.option(
        "--publish",
        metavar="[=NAME]",
        help="Publish the plugin to podman, dockerd and other programs, by its own name or this one.",
    )(command)


def runtime_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that names the OCI runtime."""
    return click.option(
        "--runtime",
        metavar="auto|runc|crun|PATH",
        envvar="MOORAGE_RUNTIME",
        default="auto",
        show_default=True,
        help="Runtime of containers that are created from now on; auto is crun where it works here, else runc.",
    )(command)
