"""`onnxq completion`."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from .command import Command

SHELLS: dict[str, tuple[type[ShellComplete], str]] = {
    "bash": (BashComplete, "onnxq completion bash > ~/.local/share/bash-completion/completions/onnxq"),
    "zsh": (ZshComplete, "onnxq completion zsh > ~/.zfunc/_onnxq, with ~/.zfunc in fpath"),
    "fish": (FishComplete, "onnxq completion fish > ~/.config/fish/completions/onnxq.fish"),
}
"""The class that completes, and where its script belongs."""


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print a script that completes commands and options in SHELL."""
    complete, place = SHELLS[shell]
    script = complete(context.find_root().command, {}, "onnxq", "_ONNXQ_COMPLETE")
    # The head of click's own script asks the installed bash for its version; the script itself needs no answer.
    source = script.source_template % script.source_vars()
    click.echo(f"# {place}\n{source}" if shell != "zsh" else f"{source}\n# {place}")
