"""The notebook integration: what `%load_ext` brings. Uses the public API only."""
