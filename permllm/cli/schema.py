"""``permllm schema``: the JSON Schema of pipeline files, for editors."""

from __future__ import annotations

import json

import click

from permllm.cli.errors import debug_option, needs_prune
from permllm.cli.registry import load_registry, no_plugin_option


@click.command("schema")
@no_plugin_option
@needs_prune
@debug_option
def command(no_plugin: tuple[str, ...]) -> None:
    """Print the JSON Schema of pipeline files.

    It knows the options of every installed plugin. Save it and name it in a pipeline
    file's first line, and editors complete and check the file:

    \b
    permllm schema > pipeline.schema.json
    # yaml-language-server: $schema=pipeline.schema.json
    """
    from permllm.pipeline.jsonschema import pipeline_schema

    click.echo(json.dumps(pipeline_schema(load_registry(no_plugin)), indent=2))
