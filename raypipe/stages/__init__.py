"""One module per stage, imported when the stage is due: its schema and `run(config, inputs, out) -> Result`."""
