"""How the commands are called: `--help` shows arguments by their names, and no option may have an empty value."""

from itertools import pairwise
from types import MethodType
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from task_activity_log.cli.exit_codes import WRONG_USE, fail

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class Group(TyperGroup):
    """A group of commands."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, which shows its arguments as other programs do: `PATH...`, `[ID]...`."""
        command = super().get_command(ctx, cmd_name)
        for argument in () if command is None else command.params:
            if isinstance(argument, TyperArgument):
                argument.display_type_rich = MethodType(lambda *_, **__: None, argument)  # type: ignore[method-assign]
                argument._usage_display_name = MethodType(_usage, argument)  # type: ignore[method-assign]  # noqa: SLF001 - there is no public way
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command, if no option of it has an empty value: that of a shell variable that is not set.

        Taken for an option that is not given, it could widen what a command removes or sends.
        """
        name, command, rest = super().resolve_command(ctx, args)
        options = [
            param for param in getattr(command, "params", ()) if isinstance(param, TyperOption) and not param.is_flag
        ]
        names = {name for option in options for name in option.opts}
        given = rest[: rest.index("--")] if "--" in rest else rest
        for before, value in pairwise([*given, "."]):
            option = before.removesuffix("=")
            if option in names and (value == "" or before != option):
                fail(f"{option}: has an empty value: give it one, or leave the option out", WRONG_USE)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. What is wrong with an option is said without pydantic's `Value error,`."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


def _usage(argument: TyperArgument) -> str:
    name = argument.display_name_raw
    return (name if argument.required else f"[{name}]") + ("..." if argument.nargs != 1 else "")
