"""How `--help` shows the commands: arguments by their names, without the types of Python."""

from types import MethodType
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup

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
