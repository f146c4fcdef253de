"""Makes pages and pictures from the code, before Sphinx reads its sources.

The pipeline file's keys and the components' options come from the classes that read
them, the command line's page from its own help: they cannot say anything else than
what the program does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from api_page import reference
from pictures import draw_all

from permllm.cli.main import COMMANDS, cli
from permllm.components import KINDS
from permllm.fields.options import describe_options
from permllm.pipeline import schema
from permllm.registry import Registry

SECTIONS = {
    "The file": schema.Pipeline,
    "`calibration`": schema.Calibration,
    "`layers`": schema.Layers,
    "`layers.overrides`": schema.Override,
}
PLURALS = {
    "metric": "Metrics",
    "allocation": "Allocations",
    "permutation": "Permutation learners",
    "pruner": "Pruners",
    "evaluator": "Evaluators",
    "dataset": "Datasets",
    "exporter": "Exporters",
    "observer": "Observers",
}


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: generate(Path(app.srcdir) / "generated"))
    return {"parallel_read_safe": True}


def generate(folder: Path) -> None:
    """Write every generated page and picture to ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "sections.md").write_text("\n".join(sections()), encoding="utf-8")
    (folder / "components.md").write_text("\n".join(components()), encoding="utf-8")
    (folder / "commands.md").write_text("\n".join(commands()), encoding="utf-8")
    (folder / "reference.md").write_text(reference(), encoding="utf-8")
    for readme in sorted((folder.parents[1] / "plugins").glob("*/README.md")):
        text = plugin_page(readme.parent.name, readme.read_text(encoding="utf-8"))
        (folder / f"{readme.parent.name}.md").write_text(text, encoding="utf-8")
    draw_all(folder)


def plugin_page(package: str, readme: str) -> str:
    """A plugin's README with links as they lead from ``docs/plugins/``."""
    moved = readme.replace("](pipelines/", f"](../../plugins/{package}/pipelines/")
    return moved.replace("](../../README.md)", "](../index.md)")


def sections() -> Iterable[str]:
    """The keys of every section of a pipeline file."""
    for title, cls in SECTIONS.items():
        yield f"## {title}\n"
        yield first_paragraph(cls) + "\n"
        yield from option_table(cls)
    yield "## `model`\n"
    yield "Where the model comes from; `source` says which of these keys there are.\n"
    for source, cls in schema.SOURCES.items():
        yield f"### `source: {source}`\n"
        yield first_paragraph(cls) + "\n"
        yield from option_table(cls)


def components() -> Iterable[str]:
    """Every built-in component with its options."""
    registry = Registry.load()
    broken = [info for info in registry.plugins if info.status == "broken"]
    if broken:
        raise RuntimeError(f"plugins that do not load cannot be documented: {registry.warnings}")
    for kind in KINDS:
        yield f"## {PLURALS[kind]}\n"
        for name, entry in registry.components(kind).items():
            if entry.plugin.distribution != "permllm":
                continue
            yield f"### `{name}`\n"
            yield first_paragraph(entry.cls) + "\n"
            yield from option_table(entry.cls)
            for preset, options in getattr(entry.cls, "presets", {}).items():
                values = ", ".join(f"`{key}: {value}`" for key, value in options.items())
                yield f"`preset: {preset}` stands for {values}.\n"


def option_table(cls: type) -> Iterable[str]:
    """The options of a class as a Markdown table."""
    options = describe_options(cls)
    if not options:
        yield "It has no options.\n"
        return
    yield "| key | what it does | type | default |"
    yield "| --- | --- | --- | --- |"
    for option in options:
        default = "*required*" if option.required else f"`{yaml_text(option.default)}`"
        kind = f"{option.type_text}, {option.range}" if option.range else option.type_text
        meaning = option.help
        if option.deprecated:
            meaning += f" (deprecated: {option.deprecated})"
        yield f"| `{option.name}` | {cell(meaning)} | {cell(kind)} | {cell(default)} |"
    yield ""


def commands() -> Iterable[str]:
    """The help of every built-in command."""
    context = click.Context(cli, info_name="permllm")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield f"## `permllm {name}`\n"
        yield from help_block(command, f"permllm {name}")
        for sub in getattr(command, "commands", {}).values():
            yield f"### `permllm {name} {sub.name}`\n"
            yield from help_block(sub, f"permllm {name} {sub.name}")


def help_block(command: click.Command, name: str) -> Iterable[str]:
    """A command's help as a block of text, 88 columns wide."""
    context = click.Context(command, info_name=name, max_content_width=88, terminal_width=88)
    yield f"```text\n{command.get_help(context)}\n```\n"


def first_paragraph(cls: type) -> str:
    """The docstring's text without its sections of fields, as Markdown."""
    text = (cls.__doc__ or "").strip()
    for section in ("Attributes:", "Args:", "Raises:"):
        text = text.partition(section)[0]
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(lines).strip().replace("``", "`")


def cell(text: str) -> str:
    """Text that may stand in a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def yaml_text(value: Any) -> str:
    """A default as a pipeline file would spell it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(yaml_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_text(item)}" for key, item in value.items()) + "}"
    return str(value) if value != "" else '""'
