"""Programs that test the project's promises, each started as `python -m checks.NAME`."""
