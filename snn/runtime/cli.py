"""What every command shares: its flags, how they are parsed, errors in one line, interrupts, exit statuses."""

import argparse
import contextlib
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from snn.runtime.device import DeviceName
from snn.runtime.errors import UserError, check, visible
from snn.runtime.lifeline import tied
from snn.runtime.loading import INTERRUPTED, LEFT
from snn.runtime.locks import release_all
from snn.runtime.memory import keep_freed_memory
from snn.runtime.progress import SHOWN, forget_warnings, warn
from snn.runtime.ranges import SEED, check_fields
from snn.runtime.registry import OUT_OF_MEMORY, PLUGINS, load_plugin

Config = TypeVar("Config")

PATIENCE = 10
"""Seconds that compiled code may go on after Ctrl-C before the process ends all the same."""
FORMS = {"INT": "a whole number", "FLOAT": "a number"}
"""How the parser writes what it expects, and how messages do."""
TITLE = re.compile(r"^(Required options|Unrecognized options(?= Unrecognized)|Value error|Parsing error) ")
UNREADABLE = re.compile(r"Error parsing (?P<flag>\S+): (?P<problem>.*) Argument helptext: (?P=flag) (?P<forms>\S+) ")


@dataclass(frozen=True)
class RunOptions:
    """Flags that all commands share."""

    seed: Annotated[int, SEED] = 0
    """Seed of all random draws."""
    device: DeviceName = "auto"
    """Where to compute; auto is CUDA where there is one."""
    figures: bool = True
    """Draw figures beside --out."""
    json: Path | None = None
    """Also write the printed numbers to this file, as JSON."""
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Python file or module to import first, which registers rules, encoders, engines, perturbations or
    backbones."""

    def __post_init__(self) -> None:
        check_fields(self)


def run_command(
    config_type: type[Config],
    function: Callable[[Config], int | None],
    argv: list[str] | None,
    defaults: Callable[[Config], Config] | None = None,
) -> int:
    """Parse ``argv`` (default: the process's) into ``config_type``, call ``function`` with it, return the exit status.

    ``defaults`` turns a first parse into the values of all flags that are left out (such as those of a preset).

    0: done, or another status that ``function`` returns. 2: a user error, in one line on stderr. 130: interrupted (also
    by SIGTERM). 75: another process of a group is gone (:class:`snn.runtime.lifeline.GroupError`).
    """
    module = function.__module__
    spec = sys.modules[module].__spec__
    program = f"python -m {(spec.name if spec else module).removesuffix('.__main__')}"
    # A terminal or pipe that cannot show a character shows another in its place; files are UTF-8 everywhere.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    # A process may be started without them.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    # Another command may have run in this process before.
    forget_warnings()
    keep_freed_memory()
    try:
        with _interrupts(program), _quiet_threads():
            arguments = sys.argv[1:] if argv is None else argv
            _check_text(arguments)
            others = _load_plugins(arguments)
            config = _parse(config_type, arguments, program)
            if defaults:
                config = _parse(config_type, others, program, defaults(config))
            SHOWN.set(lambda message: with_flags(message, config_type))
            with tied(program):
                return function(config) or 0
    except (UserError, OSError) as error:
        # What the operating system refuses (a name too long, a folder that may not be read) is for the user to mend.
        message = visible(with_flags(" ".join(str(error).split()), config_type))
        print(f"{program}: error: {message}", file=sys.stderr)
        return error.status if isinstance(error, UserError) else UserError.status
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        print(f"{program}: error: there is not enough memory: take fewer images or smaller sizes", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemError) as error:
        # Compiled code that is interrupted may end in a SystemError caused by the interrupt.
        if not any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error)):
            raise
        print(f"{program}: {LEFT}", file=sys.stderr)
        return INTERRUPTED
    finally:
        release_all()


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """No traceback of a thread that could not write: TensorBoard keeps its error, and raises it where it is called."""
    before = threading.excepthook

    def say(failed: threading.ExceptHookArgs) -> None:
        if not issubclass(failed.exc_type, OSError):
            before(failed)

    threading.excepthook = say
    try:
        yield
    finally:
        threading.excepthook = before


def _check_text(arguments: list[str]) -> None:
    """Raise :class:`UserError` for an argument that is no text: files and tables, which are UTF-8, record them."""
    for argument in arguments:
        check(
            argument.isascii() or not re.search("[\ud800-\udfff]", argument),
            f"{argument!a}: its bytes are not UTF-8; rename the file or folder",
        )


def _load_plugins(arguments: list[str]) -> list[str]:
    """Import what ``--plugin`` names, as the other flags may hold names that it registers; return these others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", nargs="?", action="append", default=[])
    flags, others = parser.parse_known_args(arguments)
    # Another command may have run in this process before.
    PLUGINS.clear()
    for name in filter(None, flags.plugin):
        load_plugin(name)
    return others


def with_flags(message: str, config_type: type) -> str:
    """An error's message with names in backticks as flags: ```limit_train``` is ``--limit-train``.

    A name that is no flag of this command is one of another's, which the message proposes to call.
    """
    flags = _flags(config_type)
    return re.sub(r"`([a-z][a-z0-9_]*)`", lambda match: flags.get(match[1], "--" + match[1].replace("_", "-")), message)


def _flags(config_type: type, prefix: str = "") -> dict[str, str]:
    """Flag of each field by the field's name; of several fields of one name, that of the first."""
    flags: dict[str, str] = {}
    nested: dict[str, str] = {}
    for name, hint in get_type_hints(config_type, include_extras=True).items():
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        parsed = any(isinstance(extra, PrimitiveConstructorSpec) for extra in extras)
        if isinstance(kind, type) and is_dataclass(kind) and not parsed:
            flat = any(getattr(extra, "name", None) == "" for extra in extras)
            nested = _flags(kind, prefix if flat else f"{prefix}{name}.") | nested
        elif tyro.conf.Positional in extras:
            flags[name] = name.upper()
        else:
            flags[name] = "--" + f"{prefix}{name}".replace("_", "-")
    return nested | flags


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def _interrupts(program: str) -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does, so that no temporary file stays behind; and neither is ever lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    repeats: list[threading.Timer] = []
    answered = threading.Event()
    hook = sys.unraisablehook

    def again() -> None:
        repeats.append(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)))
        repeats[-1].start()

    def interrupt(_: int, frame: FrameType | None) -> None:
        answered.set()
        if _loading(frame):
            # A module may swallow the exception, or turn it into another one: once more, a moment later.
            again()
        else:
            raise KeyboardInterrupt

    def repeat(unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # Raised while an object was deleted, where Python drops exceptions.
            again()
        else:
            hook(unraisable)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.unraisablehook = repeat
    try:
        with _end_if_unanswered(program, answered):
            for number, handler in before.items():
                # A process in the background of a shell ignores Ctrl-C, and goes on to.
                if handler is not signal.SIG_IGN:
                    signal.signal(number, interrupt)
            yield
    finally:
        for timer in repeats:
            timer.cancel()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _end_if_unanswered(program: str, answered: threading.Event) -> Iterator[None]:
    """Ends this process :data:`PATIENCE` seconds after Ctrl-C or SIGTERM if ``answered`` is not set by then.

    Python calls a handler once the main thread is back from compiled code. Code that waits, as for processes of a group
    that never come, is never back. Files are whole at any time, so that nothing is lost.
    """
    if os.name != "posix":
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM) and not answered.wait(PATIENCE):
                os.write(2, f"{program}: {LEFT}\n".encode())
                os._exit(INTERRUPTED)
        os.close(reader)

    threading.Thread(target=watch, daemon=True).start()
    # Of every signal that comes, the system itself writes the number there.
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)


def _forget_the_pipe() -> None:
    # Signals of a forked process are no concern of its parent.
    signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_pipe)


def _loading(frame: FrameType | None) -> bool:
    """Whether a module is being imported inside the command."""
    while frame and frame.f_code is not run_command.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _parse(config_type: type[Config], arguments: list[str], program: str, default: Config | None = None) -> Config:
    """The configuration; a :class:`UserError` in place of the parser's own many lines."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), _whole_paragraphs():
            if default is None:
                return tyro.cli(config_type, args=arguments, prog=program)
            return tyro.cli(config_type, args=arguments, prog=program, default=default)
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        for error in _causes(stop):
            if isinstance(error, UserError):
                # Raised by a record that checks itself: its own words are the message.
                raise error from None
        # The parser frames its message in a box with a title, and with a rule above a hint.
        lines = [line.strip("│╭╮╰╯─ ") for line in captured.getvalue().splitlines()]
        hints = ("For full helptext", f"{program} --help")
        message = " ".join(line for line in lines if line.strip("-") and not line.startswith(hints))
        message = TITLE.sub("", message).replace(f"Missing from {program}:", "missing:")
        message = message.replace(" Perhaps you meant:", "; perhaps you meant:")
        raise UserError(f"{_in_words(message)}; see {program} --help") from stop


@contextlib.contextmanager
def _whole_paragraphs() -> Iterator[None]:
    """Texts of fields as whole paragraphs. The parser would keep the source's line breaks, and it remembers texts."""
    import docstring_parser  # comes with tyro
    from docstring_parser import DocstringStyle as Style

    read = docstring_parser.parse_from_object

    def joined(obj: Any, style: Style = Style.AUTO) -> docstring_parser.Docstring:
        parsed = read(obj, style)
        for field in parsed.params:
            field.description = field.description and re.sub(r"(?<!\n)\n[ \t]*(?=\S)", " ", field.description)
        return parsed

    docstring_parser.parse_from_object = joined
    try:
        yield
    finally:
        docstring_parser.parse_from_object = read


def _in_words(message: str) -> str:
    """What the parser says of a value that it cannot read, without the names of Python's classes; else the message."""
    found = UNREADABLE.match(message)
    value = found and re.search(r"'(.*?)'", found["problem"])
    if not found or not value:
        return message
    forms = [form.strip("{}[]") for form in found["forms"].split("|")]
    return f"{found['flag']} {value[1]!r}: expected {' or '.join(FORMS.get(form, form) for form in forms)}"


def note_unused(record: Any, usual: Any, unused: Mapping[str, str]) -> None:
    """Warn of fields that differ from the ``usual`` record's and yet decide nothing.

    ``unused`` says by the name of such a field what it would need to have an effect.
    """
    for name, needed in unused.items():
        if getattr(record, name) != getattr(usual, name):
            warn(f"`{name}` {getattr(record, name)} has no effect without {needed}")


def check_left_out(config: Any, names: Iterable[str], reason: str) -> None:
    """Raise :class:`UserError` if one of these fields has another value than its default, as it would be ignored.

    ``reason`` follows the names of such fields in the message.
    """
    given = []
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = getattr(config, field.name)
        if field.name in names and value != default:
            # Flags of a group have the names of its own fields.
            parts = fields(default) if is_dataclass(default) else ()
            changed = [part.name for part in parts if getattr(value, part.name) != getattr(default, part.name)]
            given += changed or [field.name]
    shown = ", ".join(f"`{name}`" for name in given)
    check(not given, f"{shown} would be ignored: {reason}; leave {'them' if len(given) > 1 else 'it'} out")


def command_line(module: str, config: object) -> str:
    """The command that a stage's file records: the process's own if it is ``module``, else the library call."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None and spec.name == module:
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return f"{module} called as a library with {config!r}"
