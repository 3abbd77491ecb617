"""Training: an engine that knows no task, tasks that know no engine, and recipes (TOML) that bring both together.

``recipes`` turns a TOML file into frozen dataclasses, ``engine`` runs any :class:`~.engine.Task` with checkpoints,
exact resume, mixed precision and early stop, ``team`` spreads it over processes, ``run`` goes from a recipe to weights
with their card. The command is ``commands/train.py``.

A new task is one file in this folder. The task ``my-idea`` lives in ``my_idea.py`` and names its class::

    @dataclass(frozen=True)
    class MyIdeaConfig:                     # root keys and tables of the recipe besides task and [training]
        name: str = "my-idea"
        learning_rate: Positive = 2e-4

    class MyIdea(Task[MyIdeaConfig]):
        Configuration = MyIdeaConfig
        ...                                 # see Task for what to define; attacker.py is an example

    TASK = MyIdea

and a recipe with ``task = "my-idea"`` trains it.
"""
