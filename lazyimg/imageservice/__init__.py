"""What the kubelet calls instead of containerd, so that its credentials are known.

The kubelet has images pulled through the service `runtime.v1.ImageService` of the CRI, and shows
the image's credentials there. A snapshotter below containerd is not told of them; but layers that
nobody downloaded are fetched long after the pull. So the kubelet calls this service, which passes
every call on to containerd and takes note of what comes with a PullImage.

    kubelet --> imageservice --> containerd --> snapshotter
                     |  PullImage: image, credential          |
                     +--> GivenCredentials (lazyimg.images.given) --> registry client

Files: `pull` reads the request (pure), `proxy` passes calls on. The messages (proto/) are an own
declaration of the few fields that are read; what is passed on are the bytes that came.

Rules:
  - Requests, answers, metadata, deadlines, cancelling, statuses and their details go through as
    they are, for each method that containerd has or will have. What cannot be read is passed on all
    the same: whether it is right is for containerd to say.
  - A credential goes to the repository of the image that it came with, at the registry itself: not
    to mirrors, nor to any other host. If it names a server, that must be this registry.
  - It is in memory only, and in no message, log record or repr. It outlives a worker, but neither
    supervisor nor machine. It counts from when its pull begins, and is kept if that succeeds.
  - The socket is root's.
"""
