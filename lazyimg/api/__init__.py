"""The local API: how commands ask the daemon. HTTP with JSON, over a unix socket that is root's.

`messages` says what goes over it, `server` answers with the daemon's methods, `client` asks.

Rules:
  - One request for each connection; a reply ends where the connection does. Only prefetch answers
    with a stream: one event on each line.
  - A failure goes over it with all its facts, and is the same error on the other side: same class,
    same exit code, same line.
  - What was begun is finished, or undone, whether or not the caller still waits; a prefetch ends
    with its caller.
  - `messages` and `client` know nothing of the daemon, and load fast: every command has them.
"""
