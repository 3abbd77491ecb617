"""Subcommands of ``mitsgan``. Each module has ``add_arguments(parser)`` and ``run(options)``; its docstring is the help."""
