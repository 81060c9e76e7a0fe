"""A small process that keeps what must outlive the daemon, and keeps the daemon running.

`lazyimg serve` becomes the supervisor (exec, so the process id stays); the supervisor starts the
worker, which does everything: it serves the kernel, the API, the mounts. The worker may crash or
be killed: the kernel's control fd and the API's listening socket stay open here, so whoever reads
only waits, and the next worker takes over.

    lazyimg serve --exec--> supervisor --fork, exec--> worker      python -P -m lazyimg.worker
                            | fds by name  <--FDSTORE=1, SCM_RIGHTS-- |
                            |              --LISTEN_FDS, from 3 up--> | the next one

Some of a worker's callers do not wait long for the first sign of life. A listening socket may be
kept with a greeting (X_GREETING=): from the end of its worker until the next one has it forgotten,
the supervisor accepts what comes there, sends the greeting, and hands the connection over, by a
socket that each worker but the first is given ("callers").

What they say to each other is what systemd and its services say: sd_notify(3) datagrams with
READY=1, FDSTORE=1, FDNAME=, FDSTOREREMOVE=1; LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID at the start.
A worker runs the same below systemd's own fd store. Names of fds mean nothing here.

Life cycle (`protocol` has the table): until the first worker is ready, its failure is the
supervisor's: same exit code, and the worker has said why. From then on a worker that ends is
started again: at once, then with growing pauses. SIGTERM, SIGINT and SIGHUP stop the worker; its
exit code becomes the supervisor's.

Rules:
  - The standard library only, and few modules of it: its memory is what the promise
    costs every node.
  - It parses nothing but its worker's datagrams: what cannot fail needs no restart. What callers
    say it does not read.
  - Datagrams count only from the worker itself (SCM_CREDENTIALS); fds from others are closed.
  - A datagram that a worker sent before it died counts: ends are collected first, then datagrams
    are read, then acted upon in the opposite order.
  - An fd that comes without FDSTORE=1 is closed. That is also how a worker learns that all it sent
    before was taken in (sd_notify_barrier(3)).
  - A supervisor that is killed leaves its worker serving, which says so; then nothing is lost until
    the worker ends as well.

One thread, one loop (`server`) over a port (`ports`) that `device` implements with system calls.
"""
