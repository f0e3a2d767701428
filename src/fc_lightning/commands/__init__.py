"""One module per subcommand.

A subcommand is a function that becomes a method of the command line's Trainer: it takes ``trainer``, ``model`` and
``datamodule`` as Lightning's own subcommands do, and its further parameters are the subcommand's options.
"""
