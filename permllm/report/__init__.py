"""Reports: what a pipeline's runs measured, as a table, a sentence and pictures."""
