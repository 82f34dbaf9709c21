"""The options of every command, by group: a parser goes in and gets its arguments. Nothing heavy is imported here."""
