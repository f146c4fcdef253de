"""Typed fields: of a pipeline file, of a component, of an export's manifest."""
