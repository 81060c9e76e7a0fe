"""How the kernel asks for a range of an object and gets it.

One folder for each way: `cachefiles` (/dev/cachefiles in on-demand mode), `fanotify` (events
of plain files in our own cache). Each has the same shape:
`protocol.py` decides (pure: requests in, frozen actions out), `device.py` does the system calls,
`server.py` loops. What they need of the rest is one port, `ports.Filler`; what they give is a
`lazyimg.fill.ports.Sink` for each open object.

An object is named by its cookie: the sha256 of a bootstrap or the name of a device, so equal names
have equal bytes. A transport knows nothing of images, layers or registries.
"""
