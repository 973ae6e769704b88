"""The tasks. Importing this package declares them on the broker that the settings describe; it opens no connection.

`dramatiq actors` and `periodiq actors` work with it as with any dramatiq application.
"""

import dramatiq

from core.settings import get_settings
from runs.assembly import make_broker

broker = make_broker(get_settings())
dramatiq.set_broker(broker)

from actors import delete, junk, outbound, periodic, send, spam, spam_learning, sync  # noqa: E402  (actors bind to the broker when they are declared)

__all__ = ["broker", "delete", "junk", "outbound", "periodic", "send", "spam", "spam_learning", "sync"]
