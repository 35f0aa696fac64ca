"""SAEs on disk: our own and other libraries' formats."""
