"""One version of the served model takes over from another while requests are answered: which one answers (`current`),
what was asked of late (`recent`), how a new one is tried on that (`trial`), and the thread that goes with an alias of
the registry (`watcher`), sooner when it is told to (`bell`). What a version is asked over HTTP is in `http/`."""
