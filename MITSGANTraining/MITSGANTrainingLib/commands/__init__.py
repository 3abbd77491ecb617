"""Subcommands of ``mitsgan``: modules with ``add_arguments(parser)`` and ``run(options)``; its docstring helps."""
