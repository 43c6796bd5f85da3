"""The command ``vu``: knows its commands by name and imports the one that is asked for."""

from __future__ import annotations

import importlib
from typing import Any

import click

from vu_cli import session
from vu_cli.options import json_option, quiet_option
from vu_cli.session import Failed, Page, Returned
from vu_cli.silence import silenced
from vu_core import ConfigError, Plan, PluginError, RunRecord, Scorecard, Table, did_you_mean
from vu_core.registry import Entry

COMMANDS = {
    "unlearn": "Make a model forget, and measure what was forgotten and what was kept.",
    "measure": "Measure a finished run again, with other settings.",
    "generate": "Generate an image for one prompt before and after a run.",
    "tune-scale": "Find the smallest strength of an edit that forgets enough.",
    "compose": "Put the edits of several runs into one, and measure how they get along.",
    "revoke": "Take concepts out of a composed run, or tasks out of a sequence.",
    "export": "Write an edit for other tools, and prove that they read it as it is.",
    "compare": "Show the scores and settings of several runs side by side.",
    "list-plugins": "List models, data, methods and everything else that is installed.",
    "describe": "Explain a plugin: what it does, where it comes from, its settings.",
    "explain": "Explain an error code.",
    "cache": "List or clear what is kept to save time.",
}
"""Commands of `vu` itself with their line of help; each lives in the module of its name."""

NOUNS = (Page, Plan, RunRecord, Scorecard, Table)
"""What commands of plugins return: one of these, several, or nothing."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, plugins' commands among them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every name that can be used."""
        return [*COMMANDS, *(entry.name for entry in self._plugin_commands(ctx) if entry.usable)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; ``None`` when there is none of this name."""
        if cmd_name in COMMANDS:
            name = cmd_name.replace("-", "_")
            command: click.Command = getattr(importlib.import_module(f"vu_cli.{name}"), name)
            return command
        if any(cmd_name in entry.names for entry in self._plugin_commands(ctx)):
            return _plugin_command(session.of(ctx).plugins.registry.get("command", cmd_name))
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is asked for. Raises: ConfigError, PluginError with near misses and what to install."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            if name.startswith("-"):
                self.parse_args(ctx, args)
            registry = session.of(ctx).plugins.registry
            if name in registry.directory.get("command", {}):
                registry.get("command", name)
            raise ConfigError(
                "VU-C121",
                f"There is no command '{name}'.{did_you_mean(name, self.list_commands(ctx))}",
                "Run `vu --help` for all commands.",
            )
        if name not in COMMANDS and not ctx.resilient_parsing:
            ctx.with_resource(silenced(stdout=session.of(ctx).json))
        return name, command, args[1:]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; hand what it returns or raises to `vu_cli.main`, past click's own handling."""
        try:
            noun = super().invoke(ctx)
            if ctx.invoked_subcommand is not None and ctx.invoked_subcommand not in COMMANDS:
                _check_noun(noun, self._entry(ctx))
            return Returned(noun)
        except click.ClickException:
            raise
        except click.exceptions.Exit as end:
            if not end.exit_code:  # the help was printed
                raise
            return self._ended(ctx, end.exit_code)
        except SystemExit as end:
            return self._ended(ctx, end.code)
        except click.Abort:
            return Failed(KeyboardInterrupt())
        except BaseException as error:  # noqa: BLE001  carried to the one place where everything ends
            return Failed(error)

    def _ended(self, ctx: click.Context, code: object) -> Returned | Failed:
        """Return what ``sys.exit(code)`` means: an error, unless a plugin's command ends itself with success."""
        name = ctx.invoked_subcommand
        if name is None or name in COMMANDS:
            problem = f"Code of a plugin tried to end the program (sys.exit) in the middle of `vu {name}`: {code!r}."
            remedy = "Update the plugins involved; `vu list-plugins` shows all."
            return Failed(PluginError("VU-P122", problem, remedy))
        if code is None or code == 0:
            return Returned(None)
        entry = self._entry(ctx)
        status = code if isinstance(code, int) and 0 < code < 256 else 1
        problem = code if isinstance(code, str) else f"The command '{name}' ended itself with status {status}."
        return Failed(PluginError("VU-P122", problem, f"Run `vu {name} --help`.", where=_origin(entry)), status)

    def _entry(self, ctx: click.Context) -> Entry:
        """Return the registration of the plugin's command that runs."""
        return session.of(ctx).plugins.registry.get("command", str(ctx.invoked_subcommand))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the lists of commands without importing one."""
        own = list(COMMANDS.items())
        brought = [(entry.name, entry.summary) for entry in self._plugin_commands(ctx) if entry.usable]
        for title, rows in (("Commands", own), ("Commands of plugins", brought)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Offer commands without importing one."""
        from click.shell_completion import CompletionItem

        offered = dict(COMMANDS) | {entry.name: entry.summary for entry in self._plugin_commands(ctx) if entry.usable}
        found = [CompletionItem(name, help=text) for name, text in offered.items() if name.startswith(incomplete)]
        return found or click.Command.shell_complete(self, ctx, incomplete)

    def _plugin_commands(self, ctx: click.Context) -> tuple[Entry, ...]:
        entries = session.of(ctx).plugins.registry.entries("command")
        return tuple(entry for entry in entries if entry.name not in COMMANDS)


def _plugin_command(entry: Entry) -> click.Command:
    """Load a command of a plugin and give it what every command has."""
    command = entry.load()
    if not isinstance(command, click.Command):
        raise PluginError(
            "VU-P120",
            f"The command '{entry.name}' is of type {type(command).__name__}, not a click command.",
            f"Update or reinstall {entry.distribution}.",
            where=_origin(entry),
        )
    taken = {name for parameter in command.params for name in parameter.opts}
    if "--json" not in taken:
        command.params.append(json_option())
    if "--quiet" not in taken:
        command.params.append(quiet_option(short="-q" not in taken))
    return command


def _check_noun(value: Any, entry: Entry) -> None:
    """Raise a PluginError if a command of a plugin returned what `vu` cannot show."""
    values = value if isinstance(value, list | tuple) else (value,)
    strange = next((type(each).__name__ for each in values if each is not None and not isinstance(each, NOUNS)), None)
    if strange is not None:
        raise PluginError(
            "VU-P123",
            f"The command '{entry.name}' returned a value of type {strange}, which vu has no way to show.",
            f"Update {entry.distribution}; its authors find the types to return in `vu explain VU-P123`.",
            where=_origin(entry),
        )


def _origin(entry: Entry) -> str:
    return f"distribution {entry.distribution} {entry.version}"


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from vu_core import __version__

        click.echo(f"vu {__version__}")
        context.exit()


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: vu unlearn --method fade-sparse --forget style:neon",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version and exit."
)
@click.pass_context
def cli(context: click.Context) -> Page | None:
    """Remove a concept, a class or an identity from a trained vision model, and prove it."""
    if context.invoked_subcommand is not None:
        return None
    text = context.get_help()
    return Page(text, {"help": text})
