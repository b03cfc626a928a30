"""What every command shares: the global flags, how a command meets its cluster, and click bent to etcdctl's habits.

The global flags may stand before or after the command, as with etcdctl; the environment (KVORUMCTL_ENDPOINTS, ...)
gives way to both. A flag may be written --prefix=true. What follows -- is never a flag.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from kvorum import errors
from kvorum.ctl import text
from kvorum.ctl.failure import Exit, Failure
from kvorum.ctl.output import FORMATS, Printer
from kvorum.endpoints import DEFAULT_PORT
from kvorum.sync import Client

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """The global flags."""

    endpoints: list[str]
    command_timeout: float
    dial_timeout: float
    write_out: str
    hex: bool

    def printer(self, *, values_only: bool = False) -> Printer:
        return Printer(sys.stdout.buffer, self.write_out, hex=self.hex, values_only=values_only)

    def client(self, endpoints: list[str] | None = None) -> Client:
        """A client that speaks to the listed endpoints and to no other."""
        try:
            return Client(
                endpoints or self.endpoints,
                timeout=self.command_timeout,
                discover=False,
                dial_timeout=self.dial_timeout,
            )
        except ValueError as error:
            raise Failure(Exit.BAD_ARGS, str(error)) from None

    @contextmanager
    def connected(self) -> Iterator[Client]:
        """A client that has found a node: --command-timeout counts from then on.

        Raises:
          Failure: none of the endpoints was there.
        """
        with self.client() as client:
            try:
                client.hello(timeout=self.dial_timeout * len(self.endpoints))
            except errors.Unavailable as error:
                raise Failure(Exit.BAD_CONNECTION, error.text) from None
            yield client


class Bytes(click.ParamType[bytes]):
    """A key or a value: the bytes that were typed."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")


class Revision(click.ParamType[int]):
    """A revision, or a count of keys: from 0 to what 63 bits hold."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = -1
        if not 0 <= number < 2**63:
            self.fail(f"{value!r} is not a number from 0 on", param, ctx)
        return number


class Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            found = text.seconds(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if found <= 0:
            self.fail(f"{value!r} is not positive", param, ctx)
        return found


class Endpoints(click.ParamType[list[str]]):
    name = "endpoints"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        return value if isinstance(value, list) else [e.strip() for e in str(value).split(",") if e.strip()]


_BOOLEAN = re.compile(r"(--[a-z-]+)=(true|false)")


class Command(click.Command):
    """A command that also takes the global flags, and flags written --flag=true."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += global_options(top=False)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        flags = {o for p in self.params if isinstance(p, click.Option) and p.is_flag for o in p.opts}
        plain: list[str] = []
        for at, arg in enumerate(args):
            if arg == "--":
                plain += args[at:]
                break
            match = _BOOLEAN.fullmatch(arg)
            if match is None or match[1] not in flags:
                plain.append(arg)
            elif match[2] == "true":
                plain.append(match[1])
        return super().parse_args(ctx, plain)


class Group(click.Group):
    """Commands under one word, in the order of their definition."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.name != "kvorumctl":
            self.params += global_options(top=False)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def global_options(*, top: bool) -> list[click.Parameter]:
    """At the top with their defaults; behind a command, overriding what was said before it."""

    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if top or value is not None:
            ctx.find_root().ensure_object(dict)[param.name] = value

    def option(*names: str, default: Any, **more: Any) -> click.Option:
        name = names[0].removeprefix("--").replace("-", "_")
        env: dict[str, Any] = {"envvar": f"KVORUMCTL_{name.upper()}"} if top else {}
        return click.Option(
            [*names], default=default if top else None, expose_value=False, callback=keep, hidden=not top, **env, **more
        )

    return [
        option(
            "--endpoints",
            default=f"127.0.0.1:{DEFAULT_PORT}",
            type=Endpoints(),
            metavar="HOST:PORT,...",
            help=f"Native endpoints, comma separated.  [default: 127.0.0.1:{DEFAULT_PORT}]",
        ),
        option("--command-timeout", default="5s", type=Duration(), help="How long a command may take.  [default: 5s]"),
        option("--dial-timeout", default="2s", type=Duration(), help="How long connecting may take.  [default: 2s]"),
        option(
            "--write-out",
            "-w",
            default="simple",
            metavar="|".join(FORMATS),
            help="The format of the output.  [default: simple]",
        ),
        option("--hex", default=False, is_flag=True, help="Print keys and values in hexadecimal."),
    ]


def settings(ctx: click.Context) -> Settings:
    return Settings(**ctx.find_root().obj)


def with_settings(function: F) -> F:
    """Pass Settings as the first argument."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return function(settings(click.get_current_context()), *args, **kwargs)

    run.__doc__ = function.__doc__
    run.__name__ = function.__name__
    run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]
