"""The command line: a command checks what was asked, builds, measures, writes. Click and Rich live here only."""
