"""A group of commands that knows the nearest name of a mistyped one."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from toast_cli.utils.errors import UsageError, did_you_mean


class CommandGroup(TyperGroup):
    """Commands in the order they were added."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names."""
        if args and args[0] not in self.commands:
            raise UsageError(
                f"There is no command '{ctx.command_path} {args[0]}'.", what_to_do=did_you_mean(args[0], self.commands)
            )
        return super().resolve_command(ctx, args)
