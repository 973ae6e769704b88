"""The tasks. Importing this package declares them on the broker that the settings describe; it opens no connection.

Every module of the package is imported, so a task needs no entry anywhere: one function in one file (docs/adding-a-task.md).
`dramatiq actors` and `periodiq actors` work with it as with any dramatiq application.
"""

import pkgutil
from importlib import import_module

import dramatiq

from core.settings import get_settings
from runs.assembly import make_broker

broker = make_broker(get_settings())
dramatiq.set_broker(broker)

for _name in sorted(module.name for module in pkgutil.iter_modules(__path__)):  # actors bind to the broker when they are declared
    import_module(f"{__name__}.{_name}")

__all__ = ["broker"]
